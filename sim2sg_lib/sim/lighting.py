"""Lamps, suns, sky and shadows: the light that reaches a point.

Units: `intensity` is a lamp's irradiance at one meter; a white diffuse surface reflects all of it
as radiance (irradiance is divided by pi here). Every sum runs over a fixed number of terms, so that
a scene renders to the same bytes alone and in any batch.
"""
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.scene import Light, Material, Scene
from sim2sg_lib.sim.meshes import Meshes, Textures, pack_textures
from sim2sg_lib.sim.rasterizer import depth_map
from sim2sg_lib.sim.tensor_ops import dot, mix, rows_of

SUN_DISTANCE = 50.0  # distance of a sun's shadow camera, in radii of the scene


@dataclass(frozen=True)
class Lighting:
    """Light, ground and paint of B scenes; dark lamps fill up scenes with fewer than L lamps."""

    lamp_world: Tensor  # (B, L, 3) meters; of a sun, its direction
    is_sun: Tensor  # (B, L) bool
    intensity: Tensor  # (B, L, 3), irradiance at one meter, linear RGB
    zenith: Tensor  # (B, 3) linear RGB
    horizon: Tensor
    ground_color: Tensor
    exposure: Tensor  # (B,)
    ground: Textures  # B textures
    paint_color: Tensor  # (P, 3) of all strips and walls, see `paints`
    paint: Textures  # P textures
    first_paint: list[int]  # per scene, the number of its first paint
    shadows: list[tuple[Cameras, Tensor]]  # per lamp, see `shadow_maps`
    scenes: list[Scene]  # with their clouds, rooms and strips


def pack_lighting(scenes: list[Scene], meshes: Meshes, like: Tensor) -> Lighting:
    """Light and ground of the scenes as tensors like `like`, and shadow maps, without gradient."""
    lamps = max([len(scene.lights) for scene in scenes] + [1])
    dark = Light((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    rows = [[*scene.lights, *[dark] * (lamps - len(scene.lights))] for scene in scenes]

    def pack(values):
        return torch.tensor(values, dtype=torch.float64).to(like)

    lamp_world = pack([[lamp.position_world for lamp in row] for row in rows])
    is_sun = torch.tensor([[lamp.directional for lamp in row] for row in rows], device=like.device)
    painted = [paints(scene) for scene in scenes]
    materials = [material for row in painted for material in row]
    return Lighting(
        lamp_world, is_sun,
        intensity=pack([[lamp.intensity for lamp in row] for row in rows]),
        zenith=pack([s.sky.zenith for s in scenes]),
        horizon=pack([s.sky.horizon for s in scenes]),
        ground_color=pack([s.ground.color for s in scenes]),
        exposure=pack([s.exposure for s in scenes]),
        ground=pack_textures([s.ground for s in scenes], like.device, like.dtype),
        paint_color=pack([m.color for m in materials]).view(-1, 3),
        paint=pack_textures(materials, like.device, like.dtype),
        first_paint=[0, *accumulate(map(len, painted))],
        shadows=shadow_maps(meshes, lamp_world, is_sun, scenes[0].shadow_texels),
        scenes=scenes)


def paints(scene: Scene) -> list[Material]:
    """What is painted on ground and walls: the materials of the strips, then that of the walls."""
    return [*(strip.material for strip in scene.strips), *([scene.room.wall] if scene.room else [])]


def incoming(light: Lighting, lamp: int, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions (N, 3) from points (N, 3) of scenes (N,) to a lamp, and irradiance (N, 3)."""
    position, sun, intensity = (rows_of(values[:, lamp], scene) for values in (
        light.lamp_world, light.is_sun[..., None], light.intensity))
    offset = position - points * rows_of((~light.is_sun[:, lamp, None]).to(points.dtype), scene)
    squared = dot(offset, offset).clamp(min=1e-6)
    strength = torch.where(sun, torch.ones_like(squared), 1 / squared)
    return offset / squared.sqrt(), intensity * strength


def sky(light: Lighting, scene: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) radiance of the sky in unit directions (N, 3); that of the horizon below it."""
    height = directions[:, 2:].clamp(0, 1).sqrt()
    return mix(rows_of(light.horizon, scene), rows_of(light.zenith, scene), height)


def ground_light(light: Lighting, scene: Tensor, points: Tensor) -> Tensor:
    """(N, 3) radiance reflected by the ground at points (N, 3), without shadows and texture."""
    total = rows_of(light.zenith + light.horizon, scene) / 2
    for i in range(light.lamp_world.shape[1]):
        to_lamp, strength = incoming(light, i, scene, points)
        total = total + strength * to_lamp[:, 2:].clamp(min=0)
    return rows_of(light.ground_color, scene) * total


# --- shadows --------------------------------------------------------------------------------------

@torch.no_grad()
def shadow_maps(meshes: Meshes, lamp_world: Tensor, is_sun: Tensor,
                size: int) -> list[tuple[Cameras, Tensor]]:
    """For each of L lamps, B cameras at the lamp and the depth that they see, inf for nothing.

    Back faces are drawn, so that lit surfaces need no depth bias. The depth is (B, 2 + size + 3,
    2 + size + 3): a margin of inf surrounds the map.
    """
    batch, lamps = is_sun.shape
    backs, maps = replace(meshes, faces=meshes.faces.flip(1)), []
    center, radius = bounding_spheres(meshes, batch)
    for i in range(lamps):
        sun = is_sun[:, i, None]
        direction = F.normalize(lamp_world[:, i] - center.masked_fill(sun, 0.0), dim=-1)
        far = center + direction * SUN_DISTANCE * radius[:, None]
        # a lamp among the objects would miss some of their shadows: its camera stands back
        distance = (lamp_world[:, i] - center).norm(dim=-1).maximum(1.2 * radius)
        near = center + direction * distance[:, None]
        cameras = looking_at(center, radius, torch.where(sun, far, near), size)
        depth = depth_map(backs, cameras)
        maps.append((cameras, F.pad(depth, (2, 3, 2, 3), value=torch.inf)))
    return maps


def bounding_spheres(meshes: Meshes, batch: int) -> tuple[Tensor, Tensor]:
    """Centers (B, 3) and radii (B,) of spheres around the objects of each scene."""
    low, high = bounding_boxes(meshes.verts_world.detach(), meshes.vert_scene, batch)
    return (low + high) / 2, ((high - low).norm(dim=-1) / 2 + 0.1).clamp(min=0.5)


def bounding_boxes(points: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest corners (count, 3) of the points (N, 3) of each owner (N,); 0 for none."""
    index, blank = owner[:, None].expand(-1, 3), points.new_full((count, 3), torch.inf)
    low = blank.scatter_reduce(0, index, points, "amin")
    high = (-blank).scatter_reduce(0, index, points, "amax")
    return (torch.where(low < torch.inf, low, 0.0), torch.where(high > -torch.inf, high, 0.0))


def looking_at(center: Tensor, radius: Tensor, eye: Tensor, size: int) -> Cameras:
    """B square cameras at `eye` (B, 3) that just hold spheres: center (B, 3), radius (B,)."""
    forward = F.normalize(center - eye, dim=-1)
    upright = forward[:, :2].norm(dim=-1, keepdim=True) > 0.05
    up = torch.where(upright, forward.new_tensor([0.0, 0.0, 1.0]), forward.new_tensor([0.0, 1.0, 0.0]))
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    R = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    distance = (center - eye).norm(dim=-1)
    focal_px = size / 2 * (distance ** 2 - radius ** 2).clamp(min=1e-6).sqrt() / radius
    K = torch.zeros_like(R)
    K[:, 0, 0] = K[:, 1, 1] = focal_px
    K[:, :2, 2], K[:, 2, 2] = size / 2, 1.0
    return Cameras(K, R, -(R * eye[:, None]).sum(-1), size, size)


def shadow_visibility(shadow: tuple[Cameras, Tensor], scene: Tensor, points: Tensor) -> Tensor:
    """(N,) in [0, 1], how visible a lamp is from points (N, 3); 1 beyond its shadow map.

    Percentage-closer filtering of four texels (Reeves et al. 1987), so that edges are soft.
    """
    cameras, depth = shadow
    # one affine map per scene, gathered coefficient by coefficient: long rows suit the cache
    turned = (cameras.K[..., None] * cameras.R[:, None]).sum(2)
    moved = (cameras.K * cameras.t[:, None]).sum(2)
    affine = torch.cat([turned.flatten(1), moved], 1)  # (B, 12)
    m = affine.T.contiguous()
    m = m.expand(-1, len(scene)) if len(affine) == 1 else m.index_select(1, scene)
    x, y, z = points.T.contiguous()
    point_depth = m[6] * x + m[7] * y + m[8] * z + m[11]
    scale = 1 / point_depth.clamp(min=1e-6)  # points behind the lamp end up lit
    column = ((m[0] * x + m[1] * y + m[2] * z + m[9]) * scale - 0.5).clamp(-2, cameras.width + 1)
    row = ((m[3] * x + m[4] * y + m[5] * z + m[10]) * scale - 0.5).clamp(-2, cameras.width + 1)
    left, above, width = column.floor(), row.floor(), depth.shape[2]
    texel = (scene * width + above.long() + 2) * width + left.long() + 2
    first, second, third, fourth = (
        (point_depth <= depth.view(-1).index_select(0, texel + step)).to(x.dtype)
        for step in (0, 1, width, width + 1))
    across, down = column - left, row - above
    return torch.lerp(torch.lerp(first, second, across), torch.lerp(third, fourth, across), down)


def ambient_occlusion(meshes: Meshes, scene: Tensor, points: Tensor) -> Tensor:
    """(N,) fraction of the sky visible from points (N, 3) of the ground, objects taken as balls."""
    count = torch.bincount(meshes.object_scene, minlength=meshes.scenes)
    first = count.cumsum(0) - count
    low, high = bounding_boxes(meshes.verts_world, meshes.vert_object, len(meshes.object_scene))
    balls = torch.cat([(low + high) / 2, (high - low).mean(1, keepdim=True) / 2], 1)  # (O, 4), radius last
    x, y, z = points.T.contiguous()
    visible = torch.ones_like(x)
    for k in range(int(count.max()) if len(meshes.object_scene) else 0):
        ball = balls[(first + k).clamp(max=len(balls) - 1)] * (k < count)[:, None]  # (B, 4), 0 if none
        ball_x, ball_y, ball_z, radius = ball.T.contiguous().index_select(1, scene)
        up = ball_z - z
        squared = ((ball_x - x) ** 2 + (ball_y - y) ** 2 + up ** 2).clamp(min=1e-6)
        covered = (radius ** 2 / squared).clamp(max=1) * (up / squared.sqrt()).clamp(min=0)
        visible = visible * (1 - covered)
    return visible
