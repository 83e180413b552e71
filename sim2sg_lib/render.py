"""From fragments to an image: materials, light, shadows, texture and style, in pure torch.

Light units: a lamp's `intensity` is what it sends to a surface one metre away that faces it, and a white matte surface
sends all of that back. Every sum runs over a fixed number of terms: a scene renders to the same bytes alone and in any
batch.
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.meshes import Meshes, Textures, pack_textures
from sim2sg_lib.raster import Fragments, rasterize, soft_blend
from sim2sg_lib.scene import PATTERNS, Scene

SUPERSAMPLE = 2          # samples per pixel and axis
SHADOW_SIZE = 192        # texels of a shadow map's side
PENUMBRA_PX = 3          # width of the box that softens shadows on the ground: lamps are areas, not points
SUN_DISTANCE = 50.0      # radii of the scene from which a sun's shadow map is drawn
DIELECTRIC = 0.04        # reflectance of what is no metal, seen from above
SHOULDER = 0.8           # display values from here on are compressed, so that no highlight clips


# --- light ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Lighting:
    """The light and ground of B scenes; scenes with fewer lamps than L carry dark ones.

    lamp_world: (B, L, 3) metres, of a sun its direction.    is_sun: (B, L) bool.    intensity: (B, L, 3).
    zenith, horizon, ground_colour: (B, 3).    exposure: (B,).    ground: texture of each scene's ground.
    shadows: one map a lamp, see `shadow_maps`.
    """

    lamp_world: Tensor
    is_sun: Tensor
    intensity: Tensor
    zenith: Tensor
    horizon: Tensor
    ground_colour: Tensor
    exposure: Tensor
    ground: Textures
    shadows: list[tuple[Cameras, Tensor]]


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
        pack([s.sky.horizon for s in scenes]), pack([s.ground.colour for s in scenes]), pack([s.exposure for s in scenes]),
        pack_textures([s.ground for s in scenes], like.device, like.dtype), shadow_maps(meshes, position, is_sun))


def incoming(light: Lighting, lamp: int, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions (N, 3) to a lamp and what it sends (N, 3) to points (N, 3) of the scenes (N,), shadows aside."""
    place, sun = light.lamp_world[scene, lamp], light.is_sun[scene, lamp, None]
    offset = torch.where(sun, place, place - points)
    squared = (offset * offset).sum(-1, keepdim=True).clamp(min=1e-6)
    strength = torch.where(sun, torch.ones_like(squared), 1 / squared)
    return offset / squared.sqrt(), light.intensity[scene, lamp] * strength


def sky(light: Lighting, scene: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) light of the sky in unit directions (N, 3); below the horizon, the horizon's."""
    height = directions[:, 2:].clamp(0, 1).sqrt()
    return torch.lerp(light.horizon[scene], light.zenith[scene], height)


# --- shadows ----------------------------------------------------------------------------------------------------------

@torch.no_grad()  # depths are compared, so no gradient passes them
def shadow_maps(meshes: Meshes, lamp_world: Tensor, is_sun: Tensor) -> list[tuple[Cameras, Tensor]]:
    """For each of L lamps the cameras (B) that look from it and the depth (B, S, S) of what they see, inf for nothing.

    The backs of the objects are drawn: a lit front is then in front of its own shadow without any bias.
    """
    batch, lamps = is_sun.shape
    backs, maps = replace(meshes, faces=meshes.faces.flip(1)), []
    centre, radius = bounding_spheres(meshes, batch)
    for i in range(lamps):
        direction = F.normalize(lamp_world[:, i] - torch.where(is_sun[:, i, None], torch.zeros_like(centre), centre), dim=-1)
        far = centre + direction * SUN_DISTANCE * radius[:, None]
        # from a lamp amid the objects some of their shadows are lost: stand back as far as they reach
        near = centre + direction * (lamp_world[:, i] - centre).norm(dim=-1).maximum(1.2 * radius)[:, None]
        cameras = looking_at(centre, radius, torch.where(is_sun[:, i, None], far, near))
        depth = rasterize(backs, cameras, cull_backfaces=True).zbuf[..., 0]
        maps.append((cameras, torch.where(depth < 0, torch.inf, depth)))
    return maps


def bounding_spheres(meshes: Meshes, batch: int) -> tuple[Tensor, Tensor]:
    """Centre (B, 3) and radius (B,) that hold each scene's objects; a scene without any gets a unit sphere."""
    index = meshes.vert_scene[:, None].expand(-1, 3)
    blank = meshes.verts_world.new_zeros(batch, 3)
    low = blank.scatter_reduce(0, index, meshes.verts_world.detach(), "amin", include_self=False)
    high = blank.scatter_reduce(0, index, meshes.verts_world.detach(), "amax", include_self=False)
    return (low + high) / 2, ((high - low).norm(dim=-1) / 2 + 0.1).clamp(min=0.5)


def looking_at(centre: Tensor, radius: Tensor, eye: Tensor) -> Cameras:
    """Square cameras (B) at `eye` (B, 3) that just hold the spheres of `radius` (B,) around `centre` (B, 3)."""
    forward = F.normalize(centre - eye, dim=-1)
    upright = forward[:, :2].norm(dim=-1, keepdim=True) > 0.05
    up = torch.where(upright, forward.new_tensor([0.0, 0.0, 1.0]), forward.new_tensor([0.0, 1.0, 0.0]))
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    R = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    distance = (centre - eye).norm(dim=-1)
    focal_px = SHADOW_SIZE / 2 * (distance ** 2 - radius ** 2).clamp(min=1e-6).sqrt() / radius
    K = torch.zeros_like(R)
    K[:, 0, 0] = K[:, 1, 1] = focal_px
    K[:, :2, 2], K[:, 2, 2] = SHADOW_SIZE / 2, 1.0
    return Cameras(K, R, -(R * eye[:, None]).sum(-1), SHADOW_SIZE, SHADOW_SIZE)


def lit_share(shadow: tuple[Cameras, Tensor], scene: Tensor, points: Tensor) -> Tensor:
    """(N,) share of a lamp's light that reaches points (N, 3): of the four texels around each, those with nothing before it.

    Weighted by closeness, so that edges are soft (percentage-closer filtering, Reeves et al. 1987). Beyond the map all is lit.
    """
    cameras, depth = shadow
    # one affine map a scene, gathered coefficient by coefficient: long rows are what memory likes
    turned, moved = (cameras.K[..., None] * cameras.R[:, None]).sum(2), (cameras.K * cameras.t[:, None]).sum(2)
    affine = torch.cat([turned.flatten(1), moved], 1)  # (B, 12)
    m = affine.T.contiguous().index_select(1, scene)
    x, y, z = points.T.contiguous()
    point_depth = m[6] * x + m[7] * y + m[8] * z + m[11]
    before = point_depth > 0
    share = 1 / torch.where(before, point_depth, 1.0)
    column, row = (torch.where(before, along * share - 0.5, -2.0).clamp(-2, SHADOW_SIZE + 1)  # behind it is beyond the map
                   for along in (m[0] * x + m[1] * y + m[2] * z + m[9], m[3] * x + m[4] * y + m[5] * z + m[10]))
    across, down = column - column.floor(), row - row.floor()
    padded = F.pad(depth, (2, 3, 2, 3), value=torch.inf)  # nothing stands before what is beyond the map
    width = padded.shape[2]
    texel = (scene * width + row.floor().long() + 2) * width + column.floor().long() + 2
    first, second, third, fourth = ((point_depth <= padded.view(-1)[texel + step]).to(x.dtype)
                                    for step in (0, 1, width, width + 1))
    return torch.lerp(torch.lerp(first, second, across), torch.lerp(third, fourth, across), down)


def contact_shade(meshes: Meshes, scene: Tensor, points: Tensor) -> Tensor:
    """(N,) share of the sky that the objects leave to ground points (N, 3), each object taken as a ball."""
    count = torch.bincount(meshes.object_scene, minlength=meshes.scenes)
    first = count.cumsum(0) - count
    index, blank = meshes.vert_object()[:, None].expand(-1, 3), meshes.verts_world.new_zeros(len(meshes.object_scene), 3)
    low = blank.scatter_reduce(0, index, meshes.verts_world, "amin", include_self=False)
    high = blank.scatter_reduce(0, index, meshes.verts_world, "amax", include_self=False)
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


# --- the image --------------------------------------------------------------------------------------------------------

def shade(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images in [0, 1] at the cameras' size; `fragments` may be finer by a whole factor.

    The ground is smooth, so it is shaded once a pixel; only objects are shaded once a sample. With a `light` of one's own,
    gradients reach lamps, sky, ground and exposure.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    ground = display(shade_ground(meshes, cameras, light), light.exposure[:, None, None, None])  # (B, H, W, 3)
    hit = torch.nonzero(fragments.pix_to_face[..., 0].reshape(-1) >= 0)[:, 0]
    _, fine_height, fine_width, _ = fragments.pix_to_face.shape
    fine = fine_width // cameras.width
    row, column = hit // fine_width % fine_height // fine, hit % fine_width // fine
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    face, bary = fragments.pix_to_face[..., 0].reshape(-1)[hit], fragments.bary_coords[..., 0, :].reshape(-1, 3)[hit]
    objects = display(shade_objects(face, bary, meshes, cameras, light), light.exposure[scene, None])  # (N, 3)
    # the display curve comes before the average: the other way round leaves jagged edges at highlights
    difference = (objects - ground.view(-1, 3)[pixel]) / fine ** 2
    images = ground.view(-1, 3).index_add(0, pixel, difference).view(len(scenes), cameras.height, cameras.width, 3)
    return stylise(images.permute(0, 3, 1, 2), [scene.style_seed for scene in scenes])


def shade_soft(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], sigma: float, gamma: float,
               light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images with soft edges: every pixel blends all its K faces and the ground (SoftRas, eq. 2).

    `fragments` of the cameras' size. Not stylised. Gradients reach vertices, normals, materials, textures, camera and light.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    hit = torch.nonzero(fragments.pix_to_face.reshape(-1) >= 0)[:, 0]
    face, bary = fragments.pix_to_face.reshape(-1)[hit], fragments.bary_coords.reshape(-1, 3)[hit]
    colours = fragments.zbuf.new_zeros(fragments.pix_to_face.numel(), 3)
    colours = colours.index_put((hit,), shade_objects(face, bary, meshes, cameras, light))
    blended = soft_blend(colours.view(*fragments.pix_to_face.shape, 3), fragments, shade_ground(meshes, cameras, light), sigma,
                         gamma)
    return display(blended, light.exposure[:, None, None, None]).permute(0, 3, 1, 2)


def display(radiance: Tensor, exposure: Tensor) -> Tensor:
    """Linear radiance (..., 3) and exposure, broadcastable to it -> display values in [0, 1].

    The sRGB exponent up to SHOULDER, from there on what is left is approached exponentially.
    """
    value = (radiance * exposure).clamp(min=1e-6) ** (1 / 2.2)
    room = 1 - SHOULDER
    return torch.where(value < SHOULDER, value, 1 - room * torch.exp((SHOULDER - value).clamp(max=0) / room))


def shade_ground(meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(B, H, W, 3) radiance of the plane z = 0 under every pixel, and of the sky above the horizon."""
    eye, rays = cameras.positions_world(), cameras.rays_world()
    shape = rays.shape
    scene = torch.arange(len(eye), device=eye.device).repeat_interleave(shape[1] * shape[2])
    rays = rays.reshape(-1, 3)
    down = rays[:, 2] < -1e-4
    distance = torch.where(down, -eye[scene, 2] / torch.where(down, rays[:, 2], -1.0), 0.0)
    points = eye[scene] + rays * distance[:, None]  # (N, 3)
    colour = textured(light.ground_colour[scene], light.ground, scene, points)
    # half of the sky's light comes from near the horizon
    received = (light.zenith + light.horizon)[scene] / 2 * contact_shade(meshes, scene, points)[:, None]
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        lit = F.avg_pool2d(lit_share(light.shadows[i], scene, points).view(shape[:3]), PENUMBRA_PX, 1, PENUMBRA_PX // 2,
                           count_include_pad=False)
        received = received + sent * to_lamp[:, 2:].clamp(min=0) * lit.reshape(-1, 1)
    background = sky(light, scene, F.normalize(rays, dim=-1))
    return torch.where(down[:, None], colour * received, background).view(shape)


def ground_light(light: Lighting, scene: Tensor, points: Tensor) -> Tensor:
    """(N, 3) what the ground at points (N, 3) sends back, unshadowed and plain: the light that objects get from below."""
    received = (light.zenith + light.horizon)[scene] / 2
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        received = received + sent * to_lamp[:, 2:].clamp(min=0)
    return light.ground_colour[scene] * received


def shade_objects(face: Tensor, bary: Tensor, meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(N, 3) radiance of points on faces (N,) at barycentrics (N, 3): light from all around, and from the lamps."""
    corner, thing = meshes.faces[face], meshes.face_object[face]
    scene = meshes.object_scene[thing]

    def interpolate(values):
        return (values[corner] * bary[..., None]).sum(1)

    point, normal = interpolate(meshes.verts_world), F.normalize(interpolate(meshes.normals_world), dim=-1)
    view = F.normalize(cameras.positions_world()[scene] - point, dim=-1)
    colour = textured(meshes.colour[thing], meshes.texture, thing, interpolate(meshes.verts_object))
    metallic, roughness = meshes.metallic[thing, None], meshes.roughness[thing, None]
    matte, mirror = (1 - metallic) * colour, torch.lerp(torch.full_like(colour, DIELECTRIC), colour, metallic)

    radiance = surroundings(light, scene, point, normal, view, matte, mirror, roughness)
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, point)
        facing = (normal * to_lamp).sum(-1, keepdim=True).clamp(min=0)
        lit = lit_share(light.shadows[i], scene, point)[:, None]
        radiance = radiance + sent * facing * lit * (matte + ggx(normal, view, to_lamp, mirror, roughness))
    return radiance


def surroundings(light: Lighting, scene: Tensor, point: Tensor, normal: Tensor, view: Tensor, matte: Tensor,
                 mirror: Tensor, roughness: Tensor) -> Tensor:
    """(N, 3) light from sky and ground: evenly for what is matte, along the mirrored ray for what shines."""
    above = 0.5 + 0.5 * normal[:, 2:]
    diffuse = matte * torch.lerp(ground_light(light, scene, torch.zeros_like(point)),
                                 (light.zenith + light.horizon)[scene] / 2, above)
    mirrored = 2 * (normal * view).sum(-1, keepdim=True) * normal - view
    distance = point[:, 2:] / (-mirrored[:, 2:]).clamp(min=0.1)
    below = ground_light(light, scene, point + mirrored * distance)
    # a rough surface sees a blurred horizon
    share = (0.5 + mirrored[:, 2:] / (0.2 + 2 * roughness ** 2)).clamp(0, 1)
    return diffuse + mirror * torch.lerp(below, sky(light, scene, mirrored), share)


def ggx(normal: Tensor, view: Tensor, to_lamp: Tensor, mirror: Tensor, roughness: Tensor) -> Tensor:
    """(N, 3) specular share of a lamp's light: microfacets after Walter et al. 2007, Smith's shadowing, Schlick's Fresnel.

    pi times the usual reflectance, since a matte surface here sends back all it gets (see the module's units).
    """
    halfway = F.normalize(to_lamp + view, dim=-1)

    def cosine(a, b):
        return (a * b).sum(-1, keepdim=True).clamp(min=1e-4)

    alpha = roughness ** 2
    facets = alpha ** 2 / (cosine(normal, halfway) ** 2 * (alpha ** 2 - 1) + 1) ** 2
    k = (roughness + 1) ** 2 / 8

    def unshadowed(direction):
        return 1 / (cosine(normal, direction) * (1 - k) + k)

    fresnel = mirror + (1 - mirror) * (1 - cosine(view, halfway)) ** 5
    return facets * unshadowed(view) * unshadowed(to_lamp) * fresnel / 4


# --- texture ----------------------------------------------------------------------------------------------------------

def textured(colour: Tensor, textures: Textures, index: Tensor, points: Tensor) -> Tensor:
    """colour (N, 3) with the texture index (N,) of `textures` blended in at points (N, 3) metres of its own space."""
    for number, name in enumerate(PATTERNS):
        chosen = (textures.pattern[index] == number).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        own = index[chosen]
        share = PATTERN[name](points[chosen] / textures.scale_m[own, None], textures.seed[own])
        blended = torch.lerp(colour[chosen], textures.colour[own], (share * textures.amount[own])[:, None])
        colour = colour.index_copy(0, chosen, blended)
    return colour


def noise(points: Tensor, seed: Tensor) -> Tensor:
    """(..., 3) points, seeds broadcastable to (...) -> (...) in [0, 1]: value noise of two octaves."""
    return (2 * value_noise(points, seed) + value_noise(points * 4, seed)) / 3


def checks(points: Tensor, seed: Tensor) -> Tensor:
    """A board of unit squares, on every side of a solid."""
    return (points + 1e-4).floor().sum(-1) % 2  # a side that lies on the lattice belongs to the cells outside it


def wood(points: Tensor, seed: Tensor) -> Tensor:
    """Rings around z, wavy: a trunk of unit rings cut along any plane."""
    radius = (points[:, :2] ** 2).sum(-1).clamp(min=1e-12).sqrt() + 0.6 * noise(points * 0.7, seed)
    return (0.5 - 0.5 * (2 * math.pi * radius).cos()) ** 2


def brick(points: Tensor, seed: Tensor) -> Tensor:
    """Mortar between unevenly fired bricks, one unit long and a third high; every other row is set off by half."""
    row = (points[:, 2] * 3).floor()
    along = points[:, 0] + points[:, 1] + 0.5 * (row % 2)
    joint = ((along % 1) < 0.06) | ((points[:, 2] * 3 % 1) < 0.15)
    shade_of_brick = 0.3 * lattice(along.floor().long(), row.long(), torch.zeros_like(seed), seed).to(points.dtype)
    return torch.where(joint, 1.0, shade_of_brick)


def asphalt(points: Tensor, seed: Tensor) -> Tensor:
    """Fine grains with some coarse stains."""
    return 0.7 * value_noise(points * 12, seed) ** 2 + 0.3 * value_noise(points * 0.5, seed + 1)


def grass(points: Tensor, seed: Tensor) -> Tensor:
    """Blades: noise drawn out along one direction, in patches."""
    blades = value_noise(points * points.new_tensor([20.0, 4.0, 4.0]), seed)
    return blades * (0.4 + 0.6 * value_noise(points, seed + 1))


PATTERN = {"noise": noise, "checks": checks, "wood": wood, "brick": brick, "asphalt": asphalt, "grass": grass}


def value_noise(points: Tensor, seed: Tensor) -> Tensor:
    """(N, 3) points, (N,) seeds -> (N,) in [0, 1]: random values on the integer lattice, blended by smoothstep."""
    cell = points.floor()
    blend = (points - cell) ** 2 * (3 - 2 * (points - cell))  # (N, 3)
    x, y, z = cell.long().unbind(-1)

    def edge(dy, dz):
        low, high = (lattice(x + dx, y + dy, z + dz, seed).to(points.dtype) for dx in (0, 1))
        return torch.lerp(low, high, blend[..., 0])

    low, high = (torch.lerp(edge(0, dz), edge(1, dz), blend[..., 1]) for dz in (0, 1))
    return torch.lerp(low, high, blend[..., 2])


def lattice(x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """A hash of integers x, y, z and seed to a float in [0, 1)."""
    h = (x * 374761393 + y * 668265263 + z * 2147483647 + seed * 144269504) & 0x7FFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF).float() / 65536


# --- stylise ----------------------------------------------------------------------------------------------------------

def stylise(images: torch.Tensor, seeds: list[int | None]) -> torch.Tensor:
    """Procedural stylisation of (B, 3, H, W) finished images, one seed or None each.

    It stands where the paper uses a neural style transfer, whose weights cannot be shipped: a warm cast with mixed
    channels, a flattened tone curve, and brush-like noise stretched along a slowly turning direction. The strokes' size
    is a share of the image, so that the style is the same at every resolution.
    """
    chosen = [i for i, seed in enumerate(seeds) if seed is not None]
    if not chosen:
        return images
    height, width = images.shape[2:]
    seed = torch.tensor([seeds[i] for i in chosen], device=images.device)[:, None, None]  # (S, 1, 1)
    y, x = torch.meshgrid(torch.arange(height, device=images.device) / height,
                          torch.arange(width, device=images.device) / height, indexing="ij")

    def flat_noise(u, v, offset):
        return noise(torch.stack([u, v, torch.zeros_like(u)], -1), seed + offset)  # (S, H, W)

    turn = flat_noise(x, y, 1)
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    strokes = flat_noise(along * 10, across * 30, 2) - 0.5
    patches = flat_noise(x * 4, y * 4, 3) - 0.5
    mix = images.new_tensor([[0.80, 0.25, 0.00], [0.15, 0.70, 0.10], [0.10, 0.20, 0.55]])
    mixed = (mix[:, :, None, None] * images[chosen][:, None]).sum(2)
    cast = images.new_tensor([0.10, 0.0, -0.10])[:, None, None]
    styled = 0.10 + 0.82 * mixed ** 1.15 + 0.08 * strokes[:, None] + cast * patches[:, None]
    return images.index_copy(0, torch.tensor(chosen, device=images.device), styled.clamp(0, 1))
