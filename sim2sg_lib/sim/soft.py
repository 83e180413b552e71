"""Soft images, with gradients to vertices and cameras (SoftRas: Liu et al. 2019)."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.rasterizer import (
    Fragments, covered, depth_and_barycentrics, in_band, row_bands, screen_faces,
    signed_distance, squared_distance_px)

OPAQUE = 1e-4  # a face is cut off where it adds less than this to a silhouette


def silhouette(meshes: Meshes, cameras: Cameras, sigma: float, memory_mb: float = 512) -> Tensor:
    """(B, H, W) coverage of each pixel: 1 - prod(1 - D) over ALL faces (eq. 1 and 3).

    D = sigmoid(-d / sigma), d the signed squared NDC distance to the face.
    """
    blur_px = math.sqrt(sigma * math.log(1 / OPAQUE - 1)) * min(cameras.width, cameras.height) / 2
    faces = screen_faces(meshes, cameras, blur_px, cull_backfaces=False)

    def silhouette_band(low: int, high: int) -> Tensor:
        with torch.no_grad():
            pairs = covered(faces, (low, high), cameras.width, blur_px)
        clear = F.logsigmoid(signed_distance(faces, pairs, cameras) / sigma)  # log(1 - D)
        return clear.new_zeros((high - low) * cameras.width).index_add(0, pairs.pixel, clear)

    bands = row_bands(faces, meshes.scenes * cameras.height, memory_mb)
    clear = torch.cat([in_band(silhouette_band, band, faces, len(bands)) for band in bands])
    return (0.0 - torch.expm1(clear)).view(meshes.scenes, cameras.height, cameras.width)


def soft_blend(colors: Tensor, fragments: Fragments, background: Tensor, sigma: float, gamma: float,
               near_m: float = 1.0, far_m: float = 100.0) -> Tensor:
    """Colors weighted by coverage and depth (eq. 2; PyTorch3D's softmax_rgb_blend): -> (B, H, W, 3).

    colors: (B, H, W, K, 3) of the fragments' faces. background: broadcastable to (B, H, W, 3).
    """
    seen = fragments.pix_to_face >= 0
    coverage = torch.sigmoid(-fragments.dists / sigma) * seen
    closeness = torch.where(seen, (far_m - fragments.zbuf) / (far_m - near_m), 0.0)
    closest = closeness.amax(-1, keepdim=True).clamp(min=1e-10)
    weight = coverage * torch.exp((closeness - closest) / gamma)  # (B, H, W, K)
    behind = torch.exp((1e-10 - closest) / gamma).clamp(min=1e-10)  # (B, H, W, 1)
    blended = (weight[..., None] * colors).sum(-2) + behind * background
    return blended / (weight.sum(-1, keepdim=True) + behind)


def object_coverage(meshes: Meshes, cameras: Cameras, edge_px: float,
                    blur_px: float) -> tuple[Tensor, Tensor]:
    """Soft masks and depths in meters of objects alone: (B, M, H, W), at most M objects per scene.

    edge_px: width of the soft edges.    blur_px: where they end, and depths become inf.

    Where covered by half, an object's mask is that of all its faces together, elsewhere that of the
    nearest face: together, the many faces of a fine mesh would widen its outline.
    """
    faces = screen_faces(meshes, cameras, blur_px, cull_backfaces=True)
    number = object_numbers(meshes.object_scene, meshes.scenes)
    most, pixels = int(number.max()) + 1, cameras.height * cameras.width
    with torch.no_grad():
        pairs = covered(faces, (0, meshes.scenes * cameras.height), cameras.width, blur_px)
        depth_m, _ = depth_and_barycentrics(faces, pairs)
        object_index = meshes.face_object[faces.face[pairs.face]]
        channel = meshes.object_scene[object_index] * most + number[object_index]
        slot = channel * pixels + pairs.pixel % pixels
        blank = depth_m.new_zeros(meshes.scenes * most * pixels)
        nearest_m = (blank + torch.inf).scatter_reduce(0, slot, depth_m, "amin")
    squared = squared_distance_px(faces, pairs)
    logit = torch.where(pairs.inside, squared, -squared) / edge_px ** 2
    together = -torch.expm1(blank.index_add(0, slot, F.logsigmoid(-logit)))
    nearest = torch.sigmoid((blank - torch.inf).scatter_reduce(0, slot, logit, "amax"))
    shape = (meshes.scenes, most, cameras.height, cameras.width)
    return torch.where(nearest > 0.5, together, nearest).view(shape), nearest_m.view(shape)


def object_numbers(object_scene: Tensor, scenes: int) -> Tensor:
    """(O,) int64, the number of each object within its scene."""
    count = torch.bincount(object_scene, minlength=scenes)
    numbers = torch.arange(len(object_scene), device=object_scene.device)
    return numbers - (count.cumsum(0) - count)[object_scene]
