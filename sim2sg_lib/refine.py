"""Refinement by gradient: lifted objects move, turn and grow until what is visible of them fits the predicted boxes.

Lifting (lift.py) places one object at a time and knows nothing of who hides whom. Here all objects of a batch of scenes
are rendered together by the soft rasteriser, each in a channel of its own; the columns and rows it shows in are compared
with its box, and position, yaw and size follow the gradient.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Camera, Cameras, stack_cameras
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.meshes import Mesh, Meshes, build
from sim2sg_lib.raster import rasterize, soft_blend
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky

WIDTH_PX = 120             # of the images that are compared
SIGMA, GAMMA = 1e-4, 1e-3  # softness of edges (squared NDC) and of depth
BLUR_RADIUS = 1e-3         # squared NDC distance beyond its edges in which a face is still seen: two pixels
FACES = 6                  # per pixel
RATE = 0.03                # of Adam: metres, radians and log size a step
SIZE_PRIOR, SHIFT_PRIOR, OVERLAP_PRIOR = 2.0, 0.2, 10.0


@dataclass(frozen=True)
class Placement:
    """Where O objects stand, the part of a scene that is optimised.

    shift_m: (O, 2) along the ground, from where lifting put them.    turn_rad: (O,) added yaw.
    log_size: (O,) log of the factor on all extents.
    """

    shift_m: Tensor
    turn_rad: Tensor
    log_size: Tensor


def refine(objects: list[list[SceneObject]], graphs: list[SceneGraph], cameras: list[Camera], assets: dict[str, Mesh],
           steps: int = 30, device: torch.device | str = "cpu") -> list[list[SceneObject]]:
    """Lifted objects of B scenes, fitted to the boxes of their graphs, whose objects are in the same order.

    Objects stay on the ground, keep category and asset, and are kept apart, and near to where and what they were. A scene
    that fits no better in the end is left as it was.
    """
    if not any(objects):
        return objects
    height_px = round(WIDTH_PX * cameras[0].height / cameras[0].width)
    views = stack_cameras(cameras, WIDTH_PX, height_px, device)
    black = Sky((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    meshes = build([Scene(tuple(row), camera, (), black, Material()) for row, camera in zip(objects, cameras)], assets, device)
    scale = [np.array([WIDTH_PX / g.width, height_px / g.height] * 2) for g in graphs]
    boxes = torch.from_numpy(np.concatenate([g.boxes_px * s for g, s in zip(graphs, scale)])).to(device, torch.float32)
    flat = [o for row in objects for o in row]
    start = torch.tensor([o.position_world[:2] for o in flat], device=device)
    yaw_rad = torch.tensor([o.yaw_rad for o in flat], device=device)
    radius = torch.tensor([(o.size_m[0] + o.size_m[1]) / 4 for o in flat], device=device)

    moves = [torch.zeros(len(flat), *shape, device=device, requires_grad=True) for shape in ((2,), (), ())]
    optimiser = torch.optim.Adam(moves, RATE)
    errors = []
    for step in range(steps + 1):
        placement = Placement(*moves)
        error = box_errors(visible_shares(place(meshes, start, yaw_rad, placement), views), meshes.object_scene, boxes)
        errors.append(error.detach())
        if step == steps:
            break
        optimiser.zero_grad()
        (error.sum() + prior(placement, start, radius, meshes.object_scene)).backward()
        optimiser.step()
    before, after = (torch.zeros(len(objects), device=device).index_add(0, meshes.object_scene, e)
                     for e in (errors[0], errors[-1]))
    better = (after < before).tolist()
    return moved(objects, [move.detach().cpu().numpy() for move in moves], better)


def place(meshes: Meshes, start: Tensor, yaw_rad: Tensor, placement: Placement) -> Meshes:
    """The meshes with every object scaled, turned and set down anew; normals stay, the comparison needs none."""
    owner = torch.zeros(len(meshes.verts_object), dtype=torch.int64, device=start.device)
    owner[meshes.faces.reshape(-1)] = meshes.face_object.repeat_interleave(3)
    angle = (yaw_rad + placement.turn_rad)[owner]
    x, y, z = (meshes.verts_object * placement.log_size.exp()[owner, None]).unbind(-1)
    ground = (start + placement.shift_m)[owner]
    verts = torch.stack([angle.cos() * x - angle.sin() * y + ground[:, 0],
                         angle.sin() * x + angle.cos() * y + ground[:, 1], z], -1)
    return replace(meshes, verts_world=verts)


def visible_shares(meshes: Meshes, cameras: Cameras) -> Tensor:
    """(B, H, W, M): how much of each pixel each scene's objects fill, M the most objects of a scene, front ones first served."""
    fragments = rasterize(meshes, cameras, BLUR_RADIUS, FACES, cull_backfaces=True)
    slot = slots(meshes.object_scene, meshes.scenes)
    owner = slot[meshes.face_object[fragments.pix_to_face.clamp(min=0)]]  # (B, H, W, K)
    channels = F.one_hot(owner, int(slot.max()) + 1).to(fragments.zbuf.dtype)
    return soft_blend(channels, fragments, torch.zeros_like(channels[..., 0, :]), SIGMA, GAMMA)


def slots(object_scene: Tensor, scenes: int) -> Tensor:
    """(O,) an object's number within its scene."""
    count = torch.bincount(object_scene, minlength=scenes)
    return torch.arange(len(object_scene), device=object_scene.device) - (count.cumsum(0) - count)[object_scene]


def box_errors(shown: Tensor, object_scene: Tensor, boxes_px: Tensor) -> Tensor:
    """(O,) squared difference of the columns and rows that each object shows in and those its box (O, 4) spans."""
    own = shown.permute(0, 3, 1, 2)[object_scene, slots(object_scene, len(shown))]  # (O, H, W)
    clear = torch.log1p(-own.clamp(max=1 - 1e-6))
    total = 0.0
    for axis, low, high in ((1, 0, 2), (2, 1, 3)):
        profile = -torch.expm1(clear.sum(axis))  # (O, W) or (O, H): shows anywhere along the line
        line = torch.arange(profile.shape[1], device=own.device)
        span = (boxes_px[:, high, None].minimum(line + 1) - boxes_px[:, low, None].maximum(line)).clamp(0, 1)
        total = total + ((profile - span) ** 2).sum(1)
    return total


def prior(placement: Placement, start: Tensor, radius: Tensor, object_scene: Tensor) -> Tensor:
    """What an object costs that grows, wanders, or stands in another of its scene; a scalar."""
    position, size = start + placement.shift_m, radius * placement.log_size.exp()
    gap = torch.cdist(position, position) - size[:, None] - size
    pair = torch.triu(object_scene[:, None] == object_scene, 1)
    return (SIZE_PRIOR * placement.log_size.square().sum() + SHIFT_PRIOR * placement.shift_m.square().sum()
            + OVERLAP_PRIOR * gap[pair].clamp(max=0).square().sum())


def moved(objects: list[list[SceneObject]], moves: list[np.ndarray], better: list[bool]) -> list[list[SceneObject]]:
    """The objects of scenes that got better, with the moves (shift (O, 2), turn (O,), log size (O,)) applied."""
    result, first = [], 0
    for row, improved in zip(objects, better):
        rows = range(first, first + len(row))
        first = rows.stop
        result.append([replace(
            o, position_world=(o.position_world[0] + float(moves[0][i, 0]), o.position_world[1] + float(moves[0][i, 1]),
                               o.position_world[2]),
            size_m=tuple(float(np.exp(moves[2][i])) * extent for extent in o.size_m), yaw_rad=o.yaw_rad + float(moves[1][i]))
            for i, o in zip(rows, row)] if improved else row)
    return result
