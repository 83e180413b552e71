"""cameras.jsonl: one camera per image, and which cameras can be used."""
from pathlib import Path

import numpy as np

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.io.reading import is_number, read_json_lines

AXES = "expected a world with z up and OpenCV's camera axes: x right, y down, z forward"


def read_cameras(path: Path, names: list[str], sizes: list[tuple[int, int]]) -> list[Camera]:
    """The camera of each named image of known (width, height) in pixels, in the images' order.

    Raises: InputError naming file, line and field; also for a camera that sees no ground.
    """
    cameras, size_of = {}, dict(zip(names, sizes))
    for line, row in read_json_lines(path):
        where, image = f"{path}:{line}", row.get("image")
        K, R, t = (_numbers(row.get(name), shape, f"{where}: {name}")
                   for name, shape in (("K", (3, 3)), ("R", (3, 3)), ("t", (3,))))
        if min(K[0, 0], K[1, 1]) < 1 or K[0, 1] or K[1, 0] or K[2].tolist() != [0, 0, 1]:
            raise InputError(f"{where}: K: expected rows f 0 cx, 0 f cy, 0 0 1 with f >= 1")
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
            raise InputError(f"{where}: R: expected a rotation")
        if not isinstance(image, str) or image in cameras:
            raise InputError(f"{where}: image: {image!r}, expected a path that has no camera yet")
        cameras[image] = Camera(K, R, t, *size_of.get(image, (1, 1)))
        check_pose(cameras[image], where, sees_ground=image in size_of)
    missing = [name for name in names if name not in cameras]
    if missing:
        raise InputError(f"{path}: no camera for {missing[0]}")
    return [cameras[name] for name in names]


def check_pose(camera: Camera, where: str, sees_ground: bool = True) -> None:
    """Raises: InputError, starting with `where`, for a camera before which no scene can stand.

    sees_ground: whether some of the ground must be in the image, whose size is then needed.
    """
    right, down, forward = camera.R  # the camera's axes in the world
    if np.hypot(forward[0], forward[1]) < 1e-3:
        raise InputError(f"{where}: R: the camera looks straight up or down, not ahead")
    if np.hypot(right[0], right[1]) < 1e-3:
        raise InputError(f"{where}: R: the camera lies on its side, so nothing is left or right")
    if down[2] >= 0:
        raise InputError(f"{where}: R: the camera is upside down or lies on its side; {AXES}")
    if camera.position_world[2] <= 0:
        depth_m = -camera.position_world[2]
        raise InputError(f"{where}: t: the camera is {depth_m:g} m below the ground, z = 0; "
                         "expected x_camera = R x_world + t, in meters")
    corners = [camera.ray_world((x, camera.height))[2] for x in (0, camera.width)]
    if sees_ground and min(corners) >= 0:
        raise InputError(f"{where}: R: the whole image lies above the horizon; {AXES}")


def _numbers(value, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Nested lists of JSON as an array. Raises: InputError, also for true and "1"."""
    def fits(value, shape):
        if not shape:
            return is_number(value)
        return (isinstance(value, list) and len(value) == shape[0]
                and all(fits(item, shape[1:]) for item in value))

    if not fits(value, shape):
        raise InputError(f"{where}: expected finite numbers of shape {shape}")
    return np.array(value, np.float64)
