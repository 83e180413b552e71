"""The pinhole camera, and every frame convention of the project.

World   meters, right-handed, z up; the ground is z = 0. Yaw: radians about world z, x to y.
Camera  OpenCV: x right, y down, z forward (depth). x_camera = R x_world + t.
Pixels  x right, y down; the center of the first pixel is (0.5, 0.5), so an image spans
        [0, width] x [0, height]. u = K00 x/z + K02, v = K11 y/z + K12 with K the 3 x 3 intrinsic
        matrix in pixels (no skew).
Boxes   x0, y0, x1, y1 in float pixels, half-open.

`Camera` is one view in numpy, for files and lifting; `Cameras` a batch in torch, for rendering.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

FAR_M = 80.0  # rays are cut here if they meet the ground farther away, or never


@dataclass(frozen=True)
class Camera:
    """One view."""

    K: np.ndarray  # (3, 3) float64 intrinsics in pixels
    R: np.ndarray  # (3, 3) float64 world -> camera rotation
    t: np.ndarray  # (3,) float64 world -> camera translation, meters
    width: int  # pixels
    height: int

    @property
    def position_world(self) -> np.ndarray:
        """(3,) the optical center, meters."""
        return -self.R.T @ self.t

    def project(self, points_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) world points -> (N, 2) pixels and (N,) depth in meters, positive in front."""
        points_camera = points_world @ self.R.T + self.t  # (N, 3)
        depth_m = points_camera[:, 2]
        points_px = points_camera[:, :2] / depth_m[:, None] * np.diag(self.K)[:2] + self.K[:2, 2]
        return points_px, depth_m

    def ray_world(self, point_px: np.ndarray) -> np.ndarray:
        """(3,) world direction through a pixel; one unit of it is one meter of depth."""
        point_camera = np.append((np.asarray(point_px) - self.K[:2, 2]) / np.diag(self.K)[:2], 1.0)
        return self.R.T @ point_camera

    def ground_point(self, point_px: np.ndarray, height_m: float = 0.0) -> np.ndarray:
        """(3,) where the ray through a pixel meets the plane z = height_m (section 4.1).

        At or above the horizon, or beyond FAR_M, the point at FAR_M is dropped onto the plane.
        """
        origin, ray = self.position_world, self.ray_world(point_px)
        drop = height_m - origin[2]
        meets = ray[2] * drop > 0 and drop / ray[2] <= FAR_M
        point = origin + ray * (drop / ray[2] if meets else FAR_M)
        return np.array([point[0], point[1], height_m])

    def ground_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The ground frame: unit (3,) horizontal world vectors `right` and `forward`."""
        right, forward = self.R[0] * [1, 1, 0], self.R[2] * [1, 1, 0]
        return right / np.linalg.norm(right), forward / np.linalg.norm(forward)

    def resized(self, width: int, height: int) -> "Camera":
        """The same view on another pixel grid."""
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return Camera(scale @ self.K, self.R, self.t, width, height)

    def moved(self, offset_m: Sequence[float]) -> "Camera":
        """The camera (2,) meters farther along x and y of the world."""
        return replace(self, t=self.t - self.R[:, :2] @ np.asarray(offset_m))

    def offset_from(self, nominal: "Camera") -> np.ndarray:
        """(2,) whole meters along x and y from `nominal`: the origin of its world in this one.

        Environments place lamps, roads and walls relative to their nominal camera.
        """
        return np.round((self.position_world - nominal.position_world)[:2])

    def to_json(self) -> dict:
        """The fields of cameras.jsonl."""
        return {"K": self.K.tolist(), "R": self.R.tolist(), "t": self.t.tolist()}


def look_at(eye_world, target_world, focal_px: float, width: int, height: int) -> Camera:
    """An upright camera at `eye_world` (3,) with `target_world` (3,) in the image center."""
    eye = np.asarray(eye_world, np.float64)
    forward = np.asarray(target_world, np.float64) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    K = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1.0]])
    return Camera(K, R, -R @ eye, width, height)


@dataclass(frozen=True)
class Cameras:
    """B views of one pixel size."""

    K: Tensor  # (B, 3, 3)
    R: Tensor  # (B, 3, 3)
    t: Tensor  # (B, 3)
    width: int  # pixels
    height: int

    def homogeneous_px(self, points_world: Tensor, view: Tensor) -> Tensor:
        """(N, 3) world points, each seen by camera `view` (N,) -> (N, 3) depth times (u, v, 1)."""
        # not a matrix product, whose last digits would depend on the number of points
        points_camera = (self.R[view] * points_world[:, None, :]).sum(-1) + self.t[view]
        return (self.K[view] * points_camera[:, None, :]).sum(-1)

    def positions_world(self) -> Tensor:
        """(B, 3) optical centers, meters."""
        return -(self.R * self.t[:, :, None]).sum(1)

    def rays_world(self, rows: tuple[int, int] | None = None) -> Tensor:
        """(B, H, W, 3) world directions through all pixels or rows; one unit is 1 m of depth."""
        like = {"dtype": self.K.dtype, "device": self.K.device}
        u = torch.arange(self.width, **like) + 0.5
        v = torch.arange(*(rows or (0, self.height)), **like) + 0.5
        x = (u[None, :] - self.K[:, 0, 2, None]) / self.K[:, 0, 0, None]  # (B, W)
        y = (v[None, :] - self.K[:, 1, 2, None]) / self.K[:, 1, 1, None]  # (B, H)
        R = self.R[:, None, None]  # (B, 1, 1, 3, 3)
        return x[:, None, :, None] * R[..., 0, :] + y[:, :, None, None] * R[..., 1, :] + R[..., 2, :]


def stack_cameras(cameras: list[Camera], width: int, height: int,
                  device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
                  ) -> Cameras:
    """Several views resized to one pixel size, as a batch."""
    views = [camera.resized(width, height) for camera in cameras]
    K, R, t = (torch.from_numpy(np.stack([getattr(view, name) for view in views])).to(device, dtype)
               for name in "KRt")
    return Cameras(K, R, t, width, height)
