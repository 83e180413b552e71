"""Refinement by gradient: lifted objects move, turn and grow to fit the predicted boxes.

Lifting (lift.py) treats one object at a time and does not know which hides which. Here all objects
of a batch of scenes are rendered together by the soft rasterizer, each in its own channel; columns
and rows in which an object shows are compared with its box, and its pose follows the gradient.
"""
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Camera, Cameras, stack_cameras
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.scene import Material, Mesh, Scene, SceneObject, Sky
from sim2sg_lib.sim.lift import side_by_side
from sim2sg_lib.sim.meshes import Meshes, Poses, build, object_poses, place
from sim2sg_lib.sim.soft import object_coverage, object_numbers

WIDTH_PX = 120  # of the images that are compared
EDGE_PX = 0.24  # softness of edges, about that of the overlap with a pixel
BLUR_PX = 0.8   # how far beyond its edges a face is seen
RATE = 0.02     # initial learning rate of Adam: meters, radians and log size per step
SIZE_PRIOR, SHIFT_PRIOR, OVERLAP_PRIOR = 2.0, 0.2, 10.0


def refine(objects: list[list[SceneObject]], graphs: list[SceneGraph], cameras: list[Camera],
           assets: dict[str, Mesh], steps: int,
           device: torch.device | str = "cpu") -> list[list[SceneObject]]:
    """The lifted objects of B scenes, fitted to the boxes of their graphs, in the same order.

    Objects keep category, asset and height above the ground; priors keep them near their start and
    apart. Each scene takes the best of all steps, the start included.
    """
    if not any(objects):
        return objects
    height_px = round(WIDTH_PX * cameras[0].height / cameras[0].width)
    views = stack_cameras(cameras, WIDTH_PX, height_px, device)
    black = Sky((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    scenes = [Scene(tuple(row), camera, (), black, Material()) for row, camera in zip(objects, cameras)]
    meshes, start = build(scenes, assets, device), object_poses(scenes, device)
    boxes = np.concatenate([graph.resized(WIDTH_PX, height_px).boxes_px for graph in graphs])
    boxes = torch.from_numpy(boxes).to(device, torch.float32)
    pairs = neighbors(objects).to(device)

    shift_m, turn_rad, log_size = moves = [
        torch.zeros(len(boxes), *shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in ((2,), (), ())]
    optimizer = torch.optim.Adam(moves, RATE)
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(steps, 1))
    best = [values.clone() for values in (start.position_world, start.size_m, start.yaw_rad)]
    best_error = torch.full((len(objects),), torch.inf, dtype=torch.float64, device=device)
    for step in range(steps + 1):
        poses = Poses(start.position_world + F.pad(shift_m, (0, 1)),
                      start.size_m * log_size.exp()[:, None], start.yaw_rad + turn_rad)
        shown = visible_coverage(place(meshes, poses), views)
        error = box_errors(shown, meshes.object_scene, boxes) + prior(poses, start, pairs)
        with torch.no_grad():
            scene_error = torch.zeros_like(best_error).index_add(0, meshes.object_scene, error)
            better = (scene_error < best_error)[meshes.object_scene]
            best_error = best_error.minimum(scene_error)
            for kept, values in zip(best, (poses.position_world, poses.size_m, poses.yaw_rad)):
                kept[better] = values[better]
        if step < steps:
            optimizer.zero_grad()
            error.sum().backward()
            optimizer.step()
            lr_scheduler.step()
    rows = iter(zip(*(values.tolist() for values in best)))
    return [[replace(o, position_world=tuple(position), size_m=tuple(size_m), yaw_rad=yaw_rad)
             for o, (position, size_m, yaw_rad) in zip(row, rows)] for row in objects]


def visible_coverage(meshes: Meshes, cameras: Cameras) -> Tensor:
    """(B, M, H, W) fraction of each pixel that each of at most M objects per scene shows in."""
    coverage, depth_m = object_coverage(meshes, cameras, EDGE_PX, BLUR_PX)
    shown = []
    for i in range(coverage.shape[1]):
        clear = torch.where(depth_m < depth_m[:, i, None], 1 - coverage, 1.0).prod(1)
        shown.append(coverage[:, i] * clear)
    return torch.stack(shown, 1)


def box_errors(shown: Tensor, object_scene: Tensor, boxes_px: Tensor) -> Tensor:
    """(O,) squared differences between the columns and rows of objects and their boxes (O, 4)."""
    channels = shown[object_scene, object_numbers(object_scene, len(shown))]  # (O, H, W)
    total = 0.0
    for axis, low, high in ((1, 0, 2), (2, 1, 3)):
        profile = channels.amax(axis)  # (O, W) or (O, H); a union over the line would widen soft edges
        line = torch.arange(profile.shape[1], device=channels.device)
        span = boxes_px[:, high, None].minimum(line + 1) - boxes_px[:, low, None].maximum(line)
        total = total + ((profile - span.clamp(0, 1)) ** 2).sum(1)
    return total


def neighbors(objects: list[list[SceneObject]]) -> Tensor:
    """(P, 2) int64 indices i > j through all scenes, of objects of one scene that could overlap."""
    pairs, first = [], 0
    for row in objects:
        pairs += [(first + i, first + j) for i in range(len(row)) for j in range(i)
                  if side_by_side(row[i], row[j])]
        first += len(row)
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def prior(poses: Poses, start: Poses, pairs: Tensor) -> Tensor:
    """(O,) cost of growing, of moving, and of overlapping an earlier object, by pairs (P, 2)."""
    log_size = (poses.size_m[:, 0] / start.size_m[:, 0]).log()
    shift_m = (poses.position_world - start.position_world)[:, :2]
    radius_m, (i, j) = poses.size_m[:, :2].sum(1) / 4, pairs.unbind(1)
    apart_m = (poses.position_world[i] - poses.position_world[j])[:, :2].norm(dim=1)
    overlap_m = (radius_m[i] + radius_m[j] - apart_m).clamp(min=0)
    cost = SIZE_PRIOR * log_size.square() + SHIFT_PRIOR * shift_m.square().sum(1)
    return cost.index_add(0, i, OVERLAP_PRIOR * overlap_m.square())
