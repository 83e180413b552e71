"""Lamps, suns, sky and shadows: what light reaches a point.

Light units: a lamp's `intensity` is what it sends to a surface one meter away that faces it, and a white matte surface
sends all of that back. Every sum runs over a fixed number of terms: a scene renders to the same bytes alone and in any
batch.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.scene import Scene
from sim2sg_lib.sim.meshes import Meshes, Textures, pack_textures, rows_of
from sim2sg_lib.sim.rasterizer import depth_map

SUN_DISTANCE = 50.0      # radii of the scene from which a sun's shadow map is drawn


@dataclass(frozen=True)
class Lighting:
    """The light and ground of B scenes; scenes with fewer lamps than L carry dark ones.

    lamp_world: (B, L, 3) meters, of a sun its direction.    is_sun: (B, L) bool.    intensity: (B, L, 3).
    zenith, horizon, ground_color: (B, 3).    exposure: (B,).    ground: texture of each scene's ground.
    shadows: one map a lamp, see `shadow_maps`.    scenes: their skies, rooms and strips.
    """

    lamp_world: Tensor
    is_sun: Tensor
    intensity: Tensor
    zenith: Tensor
    horizon: Tensor
    ground_color: Tensor
    exposure: Tensor
    ground: Textures
    shadows: list[tuple[Cameras, Tensor]]
    scenes: list[Scene]


def pack_lighting(scenes: list[Scene], meshes: Meshes, like: Tensor) -> Lighting:
    """Collect light and ground on the device and dtype of `like`, and draw the shadow maps."""
    lamps = max([len(scene.lights) for scene in scenes] + [1])
    dark = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), False)
    rows = [[(lamp.position_world, lamp.intensity, lamp.directional) for lamp in scene.lights]
            + [dark] * (lamps - len(scene.lights)) for scene in scenes]

    def pack(values):
        return torch.tensor(values, dtype=torch.float64).to(like)

    position = pack([[lamp[0] for lamp in row] for row in rows])
    is_sun = torch.tensor([[lamp[2] for lamp in row] for row in rows], device=like.device)
    return Lighting(
        position, is_sun, pack([[lamp[1] for lamp in row] for row in rows]), pack([s.sky.zenith for s in scenes]),
        pack([s.sky.horizon for s in scenes]), pack([s.ground.color for s in scenes]), pack([s.exposure for s in scenes]),
        pack_textures([s.ground for s in scenes], like.device, like.dtype),
        shadow_maps(meshes, position, is_sun, scenes[0].shadow_texels), scenes)


def incoming(light: Lighting, lamp: int, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions (N, 3) to a lamp and what it sends (N, 3) to points (N, 3) of the scenes (N,), shadows aside."""
    place, sun, intensity = (rows_of(values[:, lamp], scene)
                             for values in (light.lamp_world, light.is_sun[..., None], light.intensity))
    offset = place - points * rows_of((~light.is_sun[:, lamp, None]).to(points.dtype), scene)
    squared = dot(offset, offset).clamp(min=1e-6)
    strength = torch.where(sun, torch.ones_like(squared), 1 / squared)
    return offset / squared.sqrt(), intensity * strength


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3), (N, 3) -> (N, 1), column by column: a sum over three in a row is thrice as slow, and the same to the bit."""
    x, y, z = (a * b).split(1, dim=-1)
    return x + y + z


def pick(rows: Tensor, *values: Tensor) -> list[Tensor]:
    """The rows (M,) of each of several values (N, ...): values[rows], but some times as fast."""
    return [value.index_select(0, rows) for value in values]


def mix(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """torch.lerp of (N, 3) with a share (N, 1): spread out before, which is much faster and the same to the bit."""
    return torch.lerp(start, end, share.expand(-1, 3).contiguous())


def sky(light: Lighting, scene: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) light of the sky in unit directions (N, 3); below the horizon, the horizon's."""
    height = directions[:, 2:].clamp(0, 1).sqrt()
    return mix(rows_of(light.horizon, scene), rows_of(light.zenith, scene), height)


def ground_light(light: Lighting, scene: Tensor, points: Tensor) -> Tensor:
    """(N, 3) what the ground at points (N, 3) sends back, unshadowed and plain: the light that objects get from below."""
    received = rows_of(light.zenith + light.horizon, scene) / 2
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        received = received + sent * to_lamp[:, 2:].clamp(min=0)
    return rows_of(light.ground_color, scene) * received


# --- shadows ----------------------------------------------------------------------------------------------------------

@torch.no_grad()  # depths are compared, so no gradient passes them
def shadow_maps(meshes: Meshes, lamp_world: Tensor, is_sun: Tensor, size: int) -> list[tuple[Cameras, Tensor]]:
    """For each of L lamps the cameras (B) that look from it and the depth of what they see, inf for nothing.

    The backs of the objects are drawn: a lit front is then in front of its own shadow without any bias. The depth is
    (B, 2 + size + 3, 2 + size + 3), with nothing around the map.
    """
    batch, lamps = is_sun.shape
    backs, maps = replace(meshes, faces=meshes.faces.flip(1)), []
    center, radius = bounding_spheres(meshes, batch)
    for i in range(lamps):
        direction = F.normalize(lamp_world[:, i] - torch.where(is_sun[:, i, None], torch.zeros_like(center), center), dim=-1)
        far = center + direction * SUN_DISTANCE * radius[:, None]
        # from a lamp amid the objects some of their shadows are lost: stand back as far as they reach
        near = center + direction * (lamp_world[:, i] - center).norm(dim=-1).maximum(1.2 * radius)[:, None]
        cameras = looking_at(center, radius, torch.where(is_sun[:, i, None], far, near), size)
        depth = depth_map(backs, cameras, cull_backfaces=True)
        maps.append((cameras, F.pad(depth, (2, 3, 2, 3), value=torch.inf)))  # nothing stands before what is beyond the map
    return maps


def bounding_spheres(meshes: Meshes, batch: int) -> tuple[Tensor, Tensor]:
    """Center (B, 3) and radius (B,) that hold each scene's objects; a scene without any gets a unit sphere."""
    low, high = bounding_boxes(meshes.verts_world.detach(), meshes.vert_scene, batch)
    return (low + high) / 2, ((high - low).norm(dim=-1) / 2 + 0.1).clamp(min=0.5)


def bounding_boxes(points: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest corners (count, 3) of the points (N, 3) of each owner (N,); 0 for one without any."""
    index, blank = owner[:, None].expand(-1, 3), points.new_zeros(count, 3)
    low, high = (blank.scatter_reduce(0, index, points, end, include_self=False) for end in ("amin", "amax"))
    return low, high


def looking_at(center: Tensor, radius: Tensor, eye: Tensor, size: int) -> Cameras:
    """Square cameras (B) of `size` pixels at `eye` (B, 3) that just hold the spheres of radius (B,) around `center` (B, 3)."""
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


def lit_share(shadow: tuple[Cameras, Tensor], scene: Tensor, points: Tensor) -> Tensor:
    """(N,) share of a lamp's light that reaches points (N, 3): of the four texels around each, those with nothing before it.

    Weighted by closeness, so that edges are soft (percentage-closer filtering, Reeves et al. 1987). Beyond the map all is lit.
    """
    cameras, depth = shadow
    # one affine map a scene, gathered coefficient by coefficient: long rows are what memory likes
    turned, moved = (cameras.K[..., None] * cameras.R[:, None]).sum(2), (cameras.K * cameras.t[:, None]).sum(2)
    affine = torch.cat([turned.flatten(1), moved], 1)  # (B, 12)
    m = affine.T.contiguous()
    m = m.expand(-1, len(scene)) if len(affine) == 1 else m.index_select(1, scene)
    x, y, z = points.T.contiguous()
    point_depth = m[6] * x + m[7] * y + m[8] * z + m[11]
    share = 1 / point_depth.clamp(min=1e-6)  # what is behind the lamp is beyond the map, or nearer than all on it: lit
    column, row = ((along * share - 0.5).clamp(-2, cameras.width + 1)
                   for along in (m[0] * x + m[1] * y + m[2] * z + m[9], m[3] * x + m[4] * y + m[5] * z + m[10]))
    left, above, width = column.floor(), row.floor(), depth.shape[2]
    texel = (scene * width + above.long() + 2) * width + left.long() + 2
    first, second, third, fourth = ((point_depth <= depth.view(-1).index_select(0, texel + step)).to(x.dtype)
                                    for step in (0, 1, width, width + 1))
    across, down = column - left, row - above
    return torch.lerp(torch.lerp(first, second, across), torch.lerp(third, fourth, across), down)


def contact_shade(meshes: Meshes, scene: Tensor, points: Tensor) -> Tensor:
    """(N,) share of the sky that the objects leave to ground points (N, 3), each object taken as a ball."""
    count = torch.bincount(meshes.object_scene, minlength=meshes.scenes)
    first = count.cumsum(0) - count
    low, high = bounding_boxes(meshes.verts_world, meshes.vert_object(), len(meshes.object_scene))
    balls = torch.cat([(low + high) / 2, (high - low).mean(1, keepdim=True) / 2], 1)  # (O, 4) middle, radius
    x, y, z = points.T.contiguous()
    open_share = torch.ones_like(x)
    for k in range(int(count.max()) if len(meshes.object_scene) else 0):
        ball = balls[(first + k).clamp(max=len(balls) - 1)] * (k < count)[:, None]  # (B, 4), no radius where there is none
        ball_x, ball_y, ball_z, radius = ball.T.contiguous().index_select(1, scene)
        up = ball_z - z
        squared = ((ball_x - x) ** 2 + (ball_y - y) ** 2 + up ** 2).clamp(min=1e-6)
        open_share = open_share * (1 - (radius ** 2 / squared).clamp(max=1) * (up / squared.sqrt()).clamp(min=0))
    return open_share
