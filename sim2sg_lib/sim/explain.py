"""Crops of an image explained by one object each: colors in closed form, pose by Gauss-Newton.

The display values of a crop are modeled as a sum of columns with free coefficients per channel:

    object     per part of the asset its coverage, and that times its shading in nominal light;
               coverage times the normal, since light may come from elsewhere, and
               gloss: highlights of the lamps, and whether the mirrored ray sees the sky
    shadows    per nominal lamp the object's shadow on its ground
    ground     where the object does not cover it: constant, and slopes along x and y

So colors, strengths of light and shadows are one robust linear least squares problem per object,
without a step size. The object is rendered once; then its image is moved and scaled to where it
explains the pixels best, from blurred to sharp.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Camera, stack_cameras
from sim2sg_lib.env import Env
from sim2sg_lib.scene import Scene, SceneObject
from sim2sg_lib.sim.meshes import Meshes, build
from sim2sg_lib.sim.rasterizer import Fragments, rasterize

CELLS, FINE = 40, 2  # width of a crop, and rendered samples per cell and axis
MARGIN = 0.3         # of the longer side of a box: how far around it the pixels are compared
LEVELS = ((5, 4), (3, 4), (1, 5))  # width of the blur in cells, Gauss-Newton steps
SETTLE = 3  # fits of the colors alone in the end
OTHERS = 5           # columns of an object that its parts share
HIGHLIGHT = 12       # exponent of highlights around the mirrored ray
SURE = 0.02          # display values: larger residuals count by their size, not its square
RIDGES = {"part": 1e-3, "shading": 1e-5, "normal": 3e-3, "gloss": 3e-3, "shadow": 1e-3, "ground": 1e-5}
MOVES = ((1.5, 10.0), (1.5, 10.0), (0.1, 0.4))  # largest step, and way in all: x, y in cells; log size


@dataclass(frozen=True)
class Crops:
    """N square crops of one image."""

    corner_px: np.ndarray  # (N, 2) int64, x and y of the first pixel; may lie outside the image
    cell_px: np.ndarray  # (N,) int64, width of a cell
    pixels: Tensor  # (N, 3, CELLS, CELLS) display values
    weight: Tensor  # (N, CELLS, CELLS), the fraction of each cell that counts


@dataclass(frozen=True)
class Explained:
    """H objects, each in its crop, moved to where they explain it best."""

    residual: Tensor  # (H, CELLS, CELLS) sum over channels of absolute display values
    coverage: Tensor  # (H, CELLS, CELLS) of the object


# --- crops ----------------------------------------------------------------------------------------

def cut_crops(image: Tensor, boxes_px: np.ndarray, counts: list[Tensor]) -> Crops:
    """Crops of an image (3, H, W) around N boxes (N, 4); counts: N bool masks (H, W) of its pixels."""
    side = (boxes_px[:, 2:] - boxes_px[:, :2]).max(1, initial=0) * (1 + 2 * MARGIN) + 4
    cell_px = np.ceil(side / CELLS).astype(np.int64)
    center = (boxes_px[:, :2] + boxes_px[:, 2:]) / 2
    corner_px = np.round(center - CELLS * cell_px[:, None] / 2).astype(np.int64)
    pixels, weights, whole = [], [], torch.ones_like(image[:1])
    for corner, cell, count in zip(corner_px, cell_px, counts):
        pixels.append(cut(image, corner, cell) / cut(whole, corner, cell).clamp(min=1e-6))
        weights.append(cut(count.to(image.dtype)[None], corner, cell)[0])
    return Crops(corner_px, cell_px, torch.stack(pixels), torch.stack(weights))


def cut(image: Tensor, corner: np.ndarray, cell: int) -> Tensor:
    """(C, H, W) -> (C, CELLS, CELLS), means over cells; 0 outside the image."""
    left, top = map(int, corner)
    side = CELLS * int(cell)
    inside = image[:, max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)]
    before = max(-left, 0), max(-top, 0)
    padding = (before[0], side - before[0] - inside.shape[2], before[1], side - before[1] - inside.shape[1])
    if min(padding) < 0:  # wholly outside
        return image.new_zeros(len(image), CELLS, CELLS)
    return F.avg_pool2d(F.pad(inside, padding), int(cell))


def pick_cells(canvas: Tensor, corner: np.ndarray, cell: int) -> Tensor:
    """(H, W) -> (CELLS, CELLS), the pixel in the middle of each cell; -1 outside the image."""
    line = torch.arange(CELLS, device=canvas.device) * int(cell) + int(cell) // 2
    x, y = line + int(corner[0]), line + int(corner[1])
    height, width = canvas.shape
    inside = ((x >= 0) & (x < width)) & ((y >= 0) & (y < height))[:, None]
    return torch.where(inside, canvas[y.clamp(0, height - 1)[:, None], x.clamp(0, width - 1)], -1.0)


def paste(values: Tensor, corner: np.ndarray, cell: int, canvas: Tensor) -> Tensor:
    """A copy of the canvas (H, W) with the cells (CELLS, CELLS) of a crop in their place."""
    left, top, canvas = *map(int, corner), canvas.clone()
    fine = values.repeat_interleave(int(cell), 0).repeat_interleave(int(cell), 1)
    fine = fine[max(-top, 0):, max(-left, 0):]
    view = canvas[max(top, 0):max(top, 0) + fine.shape[0], max(left, 0):max(left, 0) + fine.shape[1]]
    view.copy_(fine[:view.shape[0], :view.shape[1]])
    return canvas


# --- templates ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Templates:
    """Columns of H objects in their crops, before they move. n = CELLS * FINE."""

    columns: Tensor  # (H, K, n, n): 2 P of the parts, OTHERS, L shadows
    parts: int  # P; columns of parts that an object does not have are 0


def draw_templates(objects: list[SceneObject], row: Tensor, crops: Crops, camera: Camera, env: Env,
                   light: Scene) -> Templates:
    """Render each of H objects alone in its crop row (H,); light: a scene with the nominal lamps."""
    device = crops.pixels.device
    meshes = build([replace(light, objects=(item,), camera=camera) for item in objects],
                   env.world.assets, device)
    views = stack_cameras([camera] * len(objects), camera.width, camera.height, device)
    shift = torch.from_numpy(crops.corner_px).to(device, views.K.dtype)[row]
    scale = FINE / torch.from_numpy(crops.cell_px).to(device, views.K.dtype)[row, None]
    K = views.K.clone()
    K[:, :2, 2] -= shift
    K[:, :2] *= scale[:, :, None]
    views = replace(views, K=K, width=CELLS * FINE, height=CELLS * FINE)
    fragments = rasterize(meshes, views, cull_backfaces=True)
    assets = [env.world.assets[item.asset] for item in objects]
    part = np.concatenate([np.zeros(len(a.faces), np.int64) if a.face_part is None else a.face_part
                           for a in assets])
    base_m = meshes.verts_world.new_tensor([item.position_world[2] for item in objects])
    parts = int(part.max()) + 1
    eye_world = meshes.verts_world.new_tensor(camera.position_world)
    columns = object_columns(fragments, meshes, torch.from_numpy(part).to(device), parts, light, eye_world)
    shadows = []
    for lamp in light.lights:  # the object pressed flat onto its ground, away from the lamp
        height_m = meshes.verts_world[:, 2:] - base_m[meshes.vert_object, None]
        lamp_world = meshes.verts_world.new_tensor(lamp.position_world)
        away = lamp_world if lamp.directional else lamp_world - meshes.verts_world
        flat = meshes.verts_world - away * (height_m / away[..., 2:].clamp(min=0.3))
        flat = torch.cat([flat[:, :2], base_m[meshes.vert_object, None]], 1)
        covered = rasterize(replace(meshes, verts_world=flat), views).pix_to_face[..., 0] >= 0
        shadows.append(covered.to(columns.dtype)[:, None])
    return Templates(torch.cat([columns, *shadows], 1), parts)


def object_columns(fragments: Fragments, meshes: Meshes, part: Tensor, parts: int, light: Scene,
                   eye_world: Tensor) -> Tensor:
    """(H, 2 P + 5, n, n) of faces with parts (F,): P coverages, P shadings, 3 normals, 2 of gloss."""
    nearest = fragments.pix_to_face[..., 0]
    hit = nearest >= 0
    face, bary = nearest[hit], fragments.bary_coords[..., 0, :][hit][..., None]
    normal = F.normalize((meshes.normals_world[meshes.faces[face]] * bary).sum(1), dim=-1)
    point = (meshes.verts_world[meshes.faces[face]] * bary).sum(1)
    view = F.normalize(eye_world - point, dim=-1)
    mirrored = 2 * (normal * view).sum(1, keepdim=True) * normal - view
    highlight = torch.zeros_like(point[:, :1])
    received = float(np.mean(light.sky.zenith)) * (0.75 + 0.25 * normal[:, 2:])
    for lamp in light.lights:
        offset = point.new_tensor(lamp.position_world) - point * (not lamp.directional)
        squared = offset.square().sum(1, keepdim=True)
        strength = float(np.mean(lamp.intensity)) / (1 if lamp.directional else squared)
        facing = (normal * offset).sum(1, keepdim=True) / squared.sqrt()
        received = received + strength * facing.clamp(min=0)
        aligned = (mirrored * offset).sum(1, keepdim=True) / squared.sqrt()
        highlight = highlight + strength * aligned.clamp(min=0) ** HIGHLIGHT
    one = F.one_hot(part[face], parts).to(point.dtype)
    columns = torch.cat([one, one * (received / 2) ** (1 / 2.2), normal, highlight ** (1 / 2.2),
                         (0.5 + mirrored[:, 2:]).clamp(0, 1)], 1)
    image = columns.new_zeros(*nearest.shape, columns.shape[1])
    image[hit] = columns
    return image.permute(0, 3, 1, 2).contiguous()


def move(columns: Tensor, moves: Tensor) -> Tensor:
    """Templates (H, K, n, n) moved by (H, 3) cells along x and y and log size: (H, K, CELLS, CELLS)."""
    shrink, half = torch.exp(-moves[:, 2]), CELLS / 2
    affine = moves.new_zeros(len(moves), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = shrink
    affine[:, :, 2] = -moves[:, :2] * shrink[:, None] / half
    grid = F.affine_grid(affine, list(columns.shape), align_corners=False)
    moved = F.grid_sample(columns, grid, align_corners=False)
    # sums of slices: much faster than avg_pool2d
    moved = sum(moved[..., i::FINE] for i in range(FINE))
    return sum(moved[..., i::FINE, :] for i in range(FINE)) / FINE ** 2


# --- least squares --------------------------------------------------------------------------------

def explain(templates: Templates, row: Tensor, crops: Crops) -> Explained:
    """H objects moved, and their colors and shadows fitted, to explain their crop row (H,)."""
    pixels, weight = crops.pixels[row], crops.weight[row].flatten(1)
    columns, count = templates.columns, 2 * templates.parts + OTHERS
    shadows = columns.shape[1] - count
    ridge = pixels.new_tensor([RIDGES[name] for name, number in (
        ("part", templates.parts), ("shading", templates.parts), ("normal", 3), ("gloss", 2),
        ("shadow", shadows), ("ground", 3)) for _ in range(number)])
    largest, limit = pixels.new_tensor(MOVES).T
    moves, plane = pixels.new_zeros(len(row), 3), ground_columns(pixels)
    for width, steps in LEVELS:
        target, robust = blur(pixels, width).flatten(2), weight / SURE
        for step in range(steps + SETTLE):
            if step <= steps:  # afterwards the object stays where it is
                moved = blur(move(columns, moves), width)
                basis = all_columns(moved, plane, templates.parts).flatten(2)
            colors = solve(basis, target, robust, ridge)
            residual = target - colors @ basis
            error = residual.abs().sum(1)
            robust = weight / (error + SURE)
            if step < steps:
                slopes = image_slopes(moved, plane, colors, templates.parts)
                change = gauss_newton(slopes, residual, robust, moves)
                moves = (moves + change.clamp(-largest, largest)).clamp(-limit, limit)
    coverage = moved[:, :templates.parts].sum(1)
    return Explained(error.view_as(coverage), coverage)


def ground_columns(pixels: Tensor) -> Tensor:
    """(3, CELLS, CELLS): constant, x, y from -1 to 1."""
    line = (torch.arange(CELLS, device=pixels.device, dtype=pixels.dtype) + 0.5) / CELLS * 2 - 1
    x, y = line.expand(CELLS, -1), line[:, None].expand(-1, CELLS)
    return torch.stack([torch.ones_like(x), x, y])


def all_columns(moved: Tensor, plane: Tensor, parts: int) -> Tensor:
    """Object, shadows and ground: (H, K + 3, CELLS, CELLS) of moved templates (H, K, CELLS, CELLS)."""
    clear, count = 1 - moved[:, :parts].sum(1, keepdim=True), 2 * parts + OTHERS
    return torch.cat([moved[:, :count], clear * moved[:, count:], clear * plane], 1)


def solve(basis: Tensor, target: Tensor, weight: Tensor, ridge: Tensor) -> Tensor:
    """Weighted least squares: basis (H, K, P), target (H, 3, P), weight (H, P) -> (H, 3, K).

    ridge: (K,) cost of squared coefficients, relative to the sum of the weights.
    """
    weighted = basis * weight[:, None]
    normal = weighted @ basis.transpose(1, 2)
    cost = (ridge + 1e-7) * weight.sum(1, keepdim=True).clamp(min=1e-6)
    colors = torch.linalg.solve(normal + torch.diag_embed(cost), weighted @ target.transpose(1, 2))
    return colors.transpose(1, 2)


def blur(image: Tensor, width: int) -> Tensor:
    """Box filter of an odd width in cells; at the border a mean of fewer."""
    if width == 1:
        return image
    for axis in (2, 3):
        size, reach = image.shape[axis], width // 2
        padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        padded, one = F.pad(image, padding), F.pad(torch.ones_like(image[:1, :1]), padding)
        total, count = (sum(values.narrow(axis, i, size) for i in range(width)) for values in (padded, one))
        image = total / count
    return image


def image_slopes(moved: Tensor, plane: Tensor, colors: Tensor, parts: int) -> Tensor:
    """(H, 2, 3, CELLS * CELLS) derivatives of the modeled image along x and y of what moves in it."""
    count = 2 * parts + OTHERS
    shadows = moved.shape[1] - count
    clear = 1 - moved[:, :parts].sum(1, keepdim=True).flatten(2)
    ground = colors[:, :, count + shadows:] @ plane.flatten(1)
    slopes = []
    for axis, padding in ((3, (1, 1, 0, 0)), (2, (0, 0, 1, 1))):
        size = moved.shape[axis] - 2
        change = (moved.narrow(axis, 2, size) - moved.narrow(axis, 0, size)) / 2
        change = F.pad(change, padding).flatten(2)
        slopes.append(colors[:, :, :count] @ change[:, :count]
                      + clear * (colors[:, :, count:count + shadows] @ change[:, count:])
                      - ground * change[:, :parts].sum(1, keepdim=True))
    return torch.stack(slopes, 1)


def gauss_newton(slopes: Tensor, residual: Tensor, weight: Tensor, moves: Tensor) -> Tensor:
    """(H, 3) change of the moves (H, 3) that reduces residuals (H, 3, P) with weights (H, P)."""
    line = torch.arange(CELLS, device=moves.device, dtype=moves.dtype) + 0.5 - CELLS / 2
    x = (line - moves[:, :1])[:, None, :].expand(-1, CELLS, -1).flatten(1)[:, None]
    y = (line - moves[:, 1:2])[:, :, None].expand(-1, -1, CELLS).flatten(1)[:, None]
    along, down = slopes.unbind(1)
    jacobian = -torch.stack([along, down, along * x + down * y], 1)  # (H, 3 moves, 3 channels, P)
    weighted = (jacobian * weight[:, None, None]).flatten(2)
    normal = weighted @ jacobian.flatten(2).transpose(1, 2)
    damping = torch.diag(moves.new_tensor([0.05, 0.05, 0.5]))
    return torch.linalg.solve(normal + damping, weighted @ residual.flatten(1)[..., None])[..., 0]


def explain_by_ground(crops: Crops) -> Tensor:
    """(N, CELLS, CELLS) residuals of a crop without an object, as in Explained."""
    target, weight = crops.pixels.flatten(2), crops.weight.flatten(1)
    basis = ground_columns(crops.pixels).flatten(1).expand(len(target), -1, -1)
    robust, ridge = weight, target.new_full((3,), RIDGES["ground"])
    for _ in range(6):
        error = (target - solve(basis, target, robust, ridge) @ basis).abs().sum(1)
        robust = weight / (error + SURE)
    return error.view_as(crops.weight)
