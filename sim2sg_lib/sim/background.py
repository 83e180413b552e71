"""What is behind the objects: ground with painted strips, walls of a room, sky and clouds."""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.scene import Strip, to_footprint
from sim2sg_lib.sim.lighting import Lighting, ambient_occlusion, incoming, shadow_visibility, sky
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.tensor_ops import dot, mix, pick, rows_of
from sim2sg_lib.sim.texture import noise, textured

PENUMBRA_PX = 3  # width of the box that blurs shadows on the ground: lamps have an extent


def shade_background(meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(B, H, W, 3) radiance of ground, walls and sky in every pixel, without the objects."""
    seen = background_points(cameras, light, (0, cameras.height))
    return light_background(seen, background_visibility(seen, meshes, cameras, light), cameras, light)


def background_visibility(seen: "BackgroundPoints", meshes: Meshes, cameras: Cameras,
                          light: Lighting) -> list[Tensor]:
    """`light_visibility` of the pixels of ground and walls, shadows blurred."""
    lit = (~seen.sky).nonzero()[:, 0]
    shape = (len(cameras.K), cameras.height, cameras.width)
    blur = shadow_blur(lit, shape, PENUMBRA_PX)
    return light_visibility(meshes, light, *pick(lit, seen.scene, seen.points), blur)


def light_background(seen: "BackgroundPoints", visible: list[Tensor], cameras: Cameras,
                     light: Lighting) -> Tensor:
    """(B, H, W, 3) radiance of background points of whole images."""
    lit = (~seen.sky).nonzero()[:, 0]
    received = received_light(light, *pick(lit, seen.scene, seen.points, seen.normal), visible)
    received = torch.zeros_like(seen.rays).index_copy(0, lit, received)
    background = add_sky(surface_colors(seen, cameras, light) * received, seen, light)
    return background.view(len(cameras.K), cameras.height, cameras.width, 3)


@dataclass(frozen=True)
class BackgroundPoints:
    """What N pixels see behind the objects, scene after scene."""

    scene: Tensor  # (N,) int64
    rays: Tensor  # (N, 3) world directions, see Cameras.rays_world
    points: Tensor  # (N, 3) on ground and walls; meaningless in the sky, as are the normals
    normal: Tensor  # (N, 3)
    ground: Tensor  # (N,) bool, which pixels see the ground, a wall, the sky
    wall: Tensor
    sky: Tensor


def background_points(cameras: Cameras, light: Lighting, rows: tuple[int, int]) -> BackgroundPoints:
    """What the pixels of some rows of all cameras see."""
    eye, rays = cameras.positions_world(), cameras.rays_world(rows)
    scene = torch.arange(len(eye), device=eye.device).repeat_interleave(rays.shape[1] * rays.shape[2])
    rays = rays.reshape(-1, 3)
    pixel_eye, down = rows_of(eye, scene), rays[:, 2] < -1e-4
    distance = torch.where(down, -pixel_eye[:, 2] / torch.where(down, rays[:, 2], -1.0), 0.0)
    points, normal, wall = raise_walls(pixel_eye + rays * distance[:, None], eye, rays, light)
    return BackgroundPoints(scene, rays, points, normal, down & ~wall, wall, ~(down | wall))


def irradiance(meshes: Meshes, light: Lighting, scene: Tensor, points: Tensor, normal: Tensor,
               blur: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(N, 3) at points (N, 3) with normals (N, 3) of ground and walls; `blur` softens shadows (N,)."""
    return received_light(light, scene, points, normal,
                          light_visibility(meshes, light, scene, points, blur))


def light_visibility(meshes: Meshes, light: Lighting, scene: Tensor, points: Tensor,
                     blur: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """How visible the sky and each lamp are from points (N, 3) of ground and walls: each (N,)."""
    lamps = [shadow_visibility(shadow, scene, points) for shadow in light.shadows]
    return [ambient_occlusion(meshes, scene, points), *(map(blur, lamps) if blur else lamps)]


def received_light(light: Lighting, scene: Tensor, points: Tensor, normal: Tensor,
                   visible: list[Tensor]) -> Tensor:
    """(N, 3) irradiance at points (N, 3); visible: see light_visibility."""
    # half of the light of the sky comes from near the horizon
    total = rows_of(light.zenith + light.horizon, scene) / 2 * visible[0][:, None]
    for i in range(light.lamp_world.shape[1]):
        to_lamp, strength = incoming(light, i, scene, points)
        total = total + strength * dot(to_lamp, normal).clamp(min=0) * visible[1 + i][:, None]
    return total


def shadow_blur(lit: Tensor, shape: tuple[int, int, int], columns: int) -> Callable[[Tensor], Tensor]:
    """A box filter, PENUMBRA_PX by `columns`, of values at the pixels `lit` of images (B, H, W)."""
    def blur(visible: Tensor) -> Tensor:
        image = visible.new_ones(math.prod(shape)).index_copy(0, lit, visible).view(shape)  # 1 in the sky
        padding = (PENUMBRA_PX // 2, columns // 2)
        box = F.avg_pool2d(image, (PENUMBRA_PX, columns), 1, padding, count_include_pad=False)
        return box.view(-1).index_select(0, lit)
    return blur


def surface_colors(seen: BackgroundPoints, cameras: Cameras, light: Lighting) -> Tensor:
    """(N, 3) reflectance of ground and walls, 0 elsewhere."""
    ground = seen.ground.nonzero()[:, 0]
    color = ground_colors(*pick(ground, seen.points, seen.rays, seen.scene), light, cameras)
    color = torch.zeros_like(seen.rays).index_copy(0, ground, color)
    walls = seen.wall.nonzero()[:, 0]
    for b, room in enumerate(one.room for one in light.scenes):
        if room is not None:
            rows = walls[seen.scene.index_select(0, walls) == b]
            number = light.first_paint[b] + len(light.scenes[b].strips)
            paint = painted(light, number, seen.points.index_select(0, rows))
            color = color.index_copy(0, rows, paint)
    return color


# --- ground ---------------------------------------------------------------------------------------

def ground_colors(points: Tensor, rays: Tensor, scene: Tensor, light: Lighting, cameras: Cameras) -> Tensor:
    """(N, 3) reflectance of the ground at points (N, 3), with anti-aliased strips painted on it."""
    color = textured(rows_of(light.ground_color, scene), light.ground, scene, points)
    for b, strips in enumerate(one.strips for one in light.scenes):
        if not strips:
            continue
        pixels = (scene == b).nonzero()[:, 0]
        ray, point = pick(pixels, rays, points)
        slant = -1 / ray[:, 2]  # ratio of the ground that a pixel spans along and across the view
        pixel_m = cameras.positions_world()[b, 2] * slant / cameras.K[b, 0, 0]
        ahead = F.normalize(ray[:, :2], dim=1)
        reach_m = 0.51 * pixel_m * slant.clamp(min=1)  # half a pixel in any direction, and a margin
        for number, strip in enumerate(strips, light.first_paint[b]):
            along, across = to_footprint(strip, point.unbind(1))
            near = ((along.abs() - strip.size_m[0] / 2 < reach_m)
                    & (across.abs() - strip.size_m[1] / 2 < reach_m)).nonzero()[:, 0]
            cover = strip_coverage(strip, *pick(near, along, across, pixel_m, slant, ahead))
            rows, spot = pick(near, pixels, point)
            paint = painted(light, number, spot)
            color = color.index_copy(0, rows, mix(color.index_select(0, rows), paint, cover[:, None]))
    return color


def painted(light: Lighting, number: int, points: Tensor) -> Tensor:
    """(N, 3) colors of one of the paints of `light` at points (N, 3)."""
    color = light.paint_color[number].expand(len(points), 3)
    index = torch.tensor([number], device=points.device)
    first = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return textured(color, light.paint.select(index), first, points)


def strip_coverage(strip: Strip, along: Tensor, across: Tensor, pixel_m: Tensor, slant: Tensor,
                   ahead: Tensor) -> Tensor:
    """(N,) fraction of each pixel that a strip covers, at points along and across it (N,).

    pixel_m: (N,) meters that a pixel spans across the view; `slant` (N,) times more `ahead` (N, 2).
    """
    cos, sin = math.cos(strip.yaw_rad), math.sin(strip.yaw_rad)
    along_m, across_m = (pixel_m * (1 + (slant - 1) * (ahead @ ahead.new_tensor(axis)).abs())
                         for axis in ((cos, sin), (-sin, cos)))

    def cover(inside_m, extent_m, pixel_m):
        """Half a pixel at an edge; at most the extent of a strip that is thinner than the pixel."""
        return (inside_m / pixel_m + 0.5).clamp(min=0).minimum((extent_m / pixel_m).clamp(max=1))

    fraction = (cover(strip.size_m[1] / 2 - across.abs(), strip.size_m[1], across_m)
                * cover(strip.size_m[0] / 2 - along.abs(), strip.size_m[0], along_m))
    if strip.dash_m:
        inside_m = strip.dash_m / 2 - (along % (2 * strip.dash_m) - strip.dash_m).abs()
        fraction = fraction * cover(inside_m, strip.dash_m, along_m)
    return fraction


# --- walls and sky --------------------------------------------------------------------------------

def raise_walls(points: Tensor, eye: Tensor, rays: Tensor, light: Lighting) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 3) on ground or, in front of it, walls; normals (N, 3); (N,) bool on a wall."""
    normal = torch.zeros_like(points) + points.new_tensor([0.0, 0.0, 1.0])
    wall = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    size = len(points) // len(light.scenes)
    for b, room in enumerate(one.room for one in light.scenes):
        if room is None:
            continue
        ray, steps = rays[b * size:(b + 1) * size], []  # steps to the walls ahead along x and y
        for axis in (0, 1):
            limit = torch.where(ray[:, axis] > 0, room.high_m[axis], room.low_m[axis])
            step = (limit - eye[b, axis]) / ray[:, axis]
            steps.append(torch.where(ray[:, axis].abs() > 1e-9, step, torch.inf))
        nearest = torch.minimum(*steps)
        height_m = eye[b, 2] + ray[:, 2] * nearest
        met = ((height_m > 0) & (height_m < room.height_m)).nonzero()[:, 0]
        ray, nearest, along_x, along_y = pick(met, ray, nearest, *steps)
        axis = (along_y < along_x).long()[:, None]
        inward = torch.zeros_like(ray).scatter(1, axis, -ray.gather(1, axis).sign())
        rows = b * size + met
        points = points.index_copy(0, rows, eye[b] + ray * nearest[:, None])
        normal, wall = normal.index_copy(0, rows, inward), wall.index_fill(0, rows, True)
    return points, normal, wall


def add_sky(background: Tensor, seen: BackgroundPoints, light: Lighting) -> Tensor:
    """The background (N, 3) with sky and clouds where they are seen."""
    rows = seen.sky.nonzero()[:, 0]
    if len(rows) == 0:
        return background
    ray, scene = pick(rows, seen.rays, seen.scene)
    color = sky(light, scene, F.normalize(ray, dim=-1))
    return background.index_copy(0, rows, add_clouds(color, ray, scene, light))


def add_clouds(color: Tensor, rays: Tensor, scene: Tensor, light: Lighting) -> Tensor:
    """The sky's colors (N, 3) along rays (N, 3) of scenes (N,) with clouds."""
    for b, one in enumerate(scene.sky for scene in light.scenes):
        if not one.clouds:
            continue
        up = ((scene == b) & (rays[:, 2] > 1e-3)).nonzero()[:, 0]
        layer = rays[up] / (rays[up, 2:] + 0.15)  # curved down to the horizon
        shape = noise(layer * layer.new_tensor([1.5, 1.5, 0.0]), torch.full_like(up, one.seed))
        cover = ((shape - 1 + one.clouds) * 4 + 0.5).clamp(0, 1)[:, None]
        white = light.horizon[b].expand(len(up), 3) * 1.1
        color = color.index_copy(0, up, mix(color[up], white, 0.9 * cover))
    return color
