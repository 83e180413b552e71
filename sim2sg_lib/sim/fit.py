"""Refinement by gradient: lifted objects move, turn and grow until what is visible of them fits the predicted boxes.

Lifting (lift.py) places one object at a time and knows nothing of who hides whom. Here all objects of a batch of scenes
are rendered together by the soft rasterizer, each in a channel of its own; the columns and rows it shows in are compared
with its box, and position, yaw and size follow the gradient.
"""
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Camera, Cameras, stack_cameras
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky
from sim2sg_lib.sim.lift import radius_m, side_by_side
from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import Meshes, build
from sim2sg_lib.sim.rasterizer import (
    covered,
    depth_and_barycentrics,
    screen_faces,
    squared_distance_px,
)

WIDTH_PX = 120             # of the images that are compared
EDGE_PX, BLUR_PX = 0.24, 0.8  # softness of an edge, about that of a pixel's overlap; how far beyond it a face is seen
RATE = 0.02                # of Adam at the start: meters, radians and log size a step
SIZE_PRIOR, SHIFT_PRIOR, OVERLAP_PRIOR = 2.0, 0.2, 10.0


@dataclass(frozen=True)
class Placement:
    """Where O objects stand, the part of a scene that is optimized.

    shift_m: (O, 2) along the ground, from where lifting put them.    turn_rad: (O,) added yaw.
    log_size: (O,) log of the factor on all extents.
    """

    shift_m: Tensor
    turn_rad: Tensor
    log_size: Tensor


def refine(objects: list[list[SceneObject]], graphs: list[SceneGraph], cameras: list[Camera], assets: dict[str, Mesh],
           steps: int = 30, device: torch.device | str = "cpu") -> list[list[SceneObject]]:
    """Lifted objects of B scenes, fitted to the boxes of their graphs, whose objects are in the same order.

    Objects stay on the ground, keep category and asset, and are kept apart, and near to where and what they were. Of all
    steps, the first among them, each scene takes the one that fits best.
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
    start, base, yaw_rad, radius = (torch.tensor(values, dtype=torch.float32, device=device) for values in (
        [o.position_world[:2] for o in flat], [o.position_world[2] for o in flat], [o.yaw_rad for o in flat],
        [radius_m(o) for o in flat]))

    pairs = neighbors(objects).to(device)
    moves = [torch.zeros(len(flat), *shape, device=device, requires_grad=True) for shape in ((2,), (), ())]
    optimizer = torch.optim.Adam(moves, RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(steps, 1))
    best = [move.detach().clone() for move in moves]
    best_error = torch.full((len(objects),), torch.inf, device=device)
    for step in range(steps + 1):
        placement = Placement(*moves)
        error = box_errors(visible_shares(place(meshes, start, base, yaw_rad, placement), views), meshes.object_scene, boxes)
        error = error + prior(placement, start, radius, pairs)
        with torch.no_grad():
            scene_error = torch.zeros_like(best_error).index_add(0, meshes.object_scene, error)
            better = (scene_error < best_error)[meshes.object_scene]
            best_error = best_error.minimum(scene_error)
            for kept, move in zip(best, moves):
                kept[better] = move[better]
        if step < steps:
            optimizer.zero_grad()
            error.sum().backward()
            optimizer.step()
            schedule.step()
    return moved(objects, [kept.cpu().numpy() for kept in best])


def place(meshes: Meshes, start: Tensor, base: Tensor, yaw_rad: Tensor, placement: Placement) -> Meshes:
    """The meshes with every object scaled, turned and set down anew; normals stay, the comparison needs none."""
    owner = meshes.vert_object()
    angle = (yaw_rad + placement.turn_rad)[owner]
    x, y, z = (meshes.verts_object * placement.log_size.exp()[owner, None]).unbind(-1)
    ground = (start + placement.shift_m)[owner]
    verts = torch.stack([angle.cos() * x - angle.sin() * y + ground[:, 0],
                         angle.sin() * x + angle.cos() * y + ground[:, 1], z + base[owner]], -1)
    return replace(meshes, verts_world=verts)


def visible_shares(meshes: Meshes, cameras: Cameras) -> Tensor:
    """(B, M, H, W): how much of each pixel each scene's objects show in, M the most objects of a scene.

    Within its outline an object covers what all its faces do together, beyond it what the nearest one does: together, the
    many of a fine mesh would put its edge too far out. What the objects before it cover hides it.
    """
    faces = screen_faces(meshes, cameras, BLUR_PX, cull_backfaces=True)
    slot = slots(meshes.object_scene, meshes.scenes)
    most, pixels = int(slot.max()) + 1, cameras.height * cameras.width
    with torch.no_grad():
        pairs = covered(faces, (0, meshes.scenes * cameras.height), cameras.width, BLUR_PX)
        depth_m, _ = depth_and_barycentrics(faces, pairs)
        thing = meshes.face_object[faces.face[pairs.face]]
        place = (meshes.object_scene[thing] * most + slot[thing]) * pixels + pairs.pixel % pixels
        blank = depth_m.new_zeros(meshes.scenes * most * pixels)
        nearest_m = (blank + torch.inf).scatter_reduce(0, place, depth_m, "amin")
    squared = squared_distance_px(faces, pairs)
    logit = torch.where(pairs.inside, squared, -squared) / EDGE_PX ** 2
    together = -torch.expm1(blank.index_add(0, place, F.logsigmoid(-logit)))
    best = torch.sigmoid((blank - torch.inf).scatter_reduce(0, place, logit, "amax"))
    shape = (meshes.scenes, most, cameras.height, cameras.width)
    share, nearest_m = torch.where(best > 0.5, together, best).view(shape), nearest_m.view(shape)
    shown = [share[:, i, None] * torch.where(nearest_m < nearest_m[:, i, None], 1 - share, 1.0).prod(1, keepdim=True)
             for i in range(most)]
    return torch.cat(shown, 1)


def slots(object_scene: Tensor, scenes: int) -> Tensor:
    """(O,) an object's number within its scene."""
    count = torch.bincount(object_scene, minlength=scenes)
    return torch.arange(len(object_scene), device=object_scene.device) - (count.cumsum(0) - count)[object_scene]


def box_errors(shown: Tensor, object_scene: Tensor, boxes_px: Tensor) -> Tensor:
    """(O,) squared difference of the columns and rows that each object shows in and those its box (O, 4) spans."""
    own = shown[object_scene, slots(object_scene, len(shown))]  # (O, H, W)
    total = 0.0
    for axis, low, high in ((1, 0, 2), (2, 1, 3)):
        profile = own.amax(axis)  # (O, W) or (O, H): shows anywhere along the line; a product would widen soft edges
        line = torch.arange(profile.shape[1], device=own.device)
        span = (boxes_px[:, high, None].minimum(line + 1) - boxes_px[:, low, None].maximum(line)).clamp(0, 1)
        total = total + ((profile - span) ** 2).sum(1)
    return total


def neighbors(objects: list[list[SceneObject]]) -> Tensor:
    """(P, 2) int64 indices i > j, counted through all scenes, of objects of one scene that could stand in one another."""
    pairs, first = [], 0
    for row in objects:
        pairs += [(first + i, first + j) for i in range(len(row)) for j in range(i) if side_by_side(row[i], row[j])]
        first += len(row)
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def prior(placement: Placement, start: Tensor, radius: Tensor, pairs: Tensor) -> Tensor:
    """(O,) what an object costs that grows, wanders, or stands in an earlier one of its scene, pairs (P, 2)."""
    position, size = start + placement.shift_m, radius * placement.log_size.exp()
    i, j = pairs.unbind(1)
    inside = ((position[i] - position[j]).norm(dim=1) - size[i] - size[j]).clamp(max=0)
    cost = SIZE_PRIOR * placement.log_size.square() + SHIFT_PRIOR * placement.shift_m.square().sum(1)
    return cost.index_add(0, i, OVERLAP_PRIOR * inside.square())


def moved(objects: list[list[SceneObject]], moves: list[np.ndarray]) -> list[list[SceneObject]]:
    """The objects with their moves applied: shift (O, 2), turn (O,) and log size (O,), rows as in `objects`."""
    rows = iter(zip(*(move.tolist() for move in moves)))

    def move_one(item: SceneObject) -> SceneObject:
        shift, turn, log_size = next(rows)
        x, y, z = item.position_world
        return replace(item, position_world=(x + shift[0], y + shift[1], z), yaw_rad=item.yaw_rad + turn,
                       size_m=tuple(math.exp(log_size) * extent for extent in item.size_m))

    return [[move_one(item) for item in row] for row in objects]
