"""From fragments to an image: background, materials, tone and style, in pure torch.

Every sum runs over a fixed number of terms: a scene renders to the same bytes alone and in any batch.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.light import Lighting, contact_shade, dot, ground_light, incoming, lit_share, pack_lighting, sky
from sim2sg_lib.meshes import Meshes, pack_textures
from sim2sg_lib.raster import Fragments, soft_blend
from sim2sg_lib.scene import Material, Scene, Strip
from sim2sg_lib.texture import noise, textured

SUPERSAMPLE = 2          # samples per pixel and axis
SHARED_FROM = 200_000    # in images of so many pixels, samples of one pixel and face share their shading
PENUMBRA_PX = 3          # width of the box that softens shadows on the ground: lamps are areas, not points
BLOCK = 1 << 15          # samples shaded at once: what they need stays in the processor's cache
DIELECTRIC = 0.04        # reflectance of what is no metal, seen from above
SHOULDER = 0.8           # display values from here on are compressed, so that no highlight clips


# --- the image --------------------------------------------------------------------------------------------------------

def shade(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images in [0, 1] at the cameras' size; `fragments` may be finer by a whole factor.

    The ground is smooth, so it is shaded once a pixel; only objects are shaded once a sample. With a `light` of one's own,
    gradients reach lamps, sky, ground and exposure.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    ground = display(shade_background(meshes, cameras, light), light.exposure[:, None, None, None])  # (B, H, W, 3)
    _, fine_height, fine_width, _ = fragments.pix_to_face.shape
    fine = fine_width // cameras.width
    nearest = fragments.pix_to_face[..., 0].reshape(-1)
    hit = torch.nonzero(nearest >= 0)[:, 0]
    row, column = hit // fine_width % fine_height // fine, hit % fine_width // fine
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    shaded, among = torch.arange(len(hit), device=hit.device), None
    if fine > 1 and cameras.width * cameras.height >= SHARED_FROM:
        shaded, among = share_samples(nearest[hit], pixel, len(ground.view(-1, 3)))
    columns = nearest[hit[shaded]], fragments.bary_coords[..., 0, :].reshape(-1, 3)[hit[shaded]], scene[shaded]
    objects = torch.cat([display(shade_objects(f, w, meshes, cameras, light), light.exposure[s, None])  # (N, 3)
                         for f, w, s in zip(*(column.split(BLOCK) for column in columns))])
    objects = objects if among is None else objects[among]
    # the display curve comes before the average: the other way round leaves jagged edges at highlights
    difference = (objects - ground.view(-1, 3)[pixel]) / fine ** 2
    images = ground.view(-1, 3).index_add(0, pixel, difference).view(len(scenes), cameras.height, cameras.width, 3)
    return stylise(images.permute(0, 3, 1, 2), [scene.style_seed for scene in scenes])


def share_samples(face: Tensor, pixel: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Which of N samples to shade, (M,), and which of those each one shows, (N,): one a pixel and face that it begins with."""
    number = torch.arange(len(face), device=face.device)
    first = torch.full((pixels,), len(face), device=face.device).scatter_reduce(0, pixel, number, "amin")[pixel]
    stand_in = torch.where(face == face[first], first, number)
    shaded = torch.nonzero(stand_in == number)[:, 0]
    place = torch.zeros_like(number).index_put((shaded,), torch.arange(len(shaded), device=face.device))
    return shaded, place[stand_in]


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
    background = shade_background(meshes, cameras, light)
    blended = soft_blend(colours.view(*fragments.pix_to_face.shape, 3), fragments, background, sigma, gamma)
    return display(blended, light.exposure[:, None, None, None]).permute(0, 3, 1, 2)


def display(radiance: Tensor, exposure: Tensor) -> Tensor:
    """Linear radiance (..., 3) and exposure, broadcastable to it -> display values in [0, 1].

    The sRGB exponent up to SHOULDER, from there on what is left is approached exponentially.
    """
    value = (radiance * exposure).clamp(min=1e-6) ** (1 / 2.2)
    room = 1 - SHOULDER
    return torch.where(value < SHOULDER, value, 1 - room * torch.exp((SHOULDER - value).clamp(max=0) / room))


def shade_objects(face: Tensor, bary: Tensor, meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(N, 3) radiance of points on faces (N,) at barycentrics (N, 3): light from all around, and from the lamps."""
    corner, skin = meshes.faces[face], meshes.face_material[face]
    scene = meshes.object_scene[meshes.face_object[face]]

    def interpolate(values):
        return (values[corner] * bary[..., None]).sum(1)

    point, normal = interpolate(meshes.verts_world), F.normalize(interpolate(meshes.normals_world), dim=-1)
    view = F.normalize(cameras.positions_world()[scene] - point, dim=-1)
    colour = textured(meshes.colour[skin], meshes.texture, skin, interpolate(meshes.verts_object))
    metallic, roughness = meshes.metallic[skin, None], meshes.roughness[skin, None]
    matte, mirror = (1 - metallic) * colour, torch.lerp(torch.full_like(colour, DIELECTRIC), colour, metallic)

    radiance = surroundings(light, scene, point, normal, view, matte, mirror, roughness)
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, point)
        facing = dot(normal, to_lamp).clamp(min=0)
        lit = lit_share(light.shadows[i], scene, point)[:, None]
        radiance = radiance + sent * facing * lit * (matte + ggx(normal, view, to_lamp, mirror, roughness))
    return radiance


def surroundings(light: Lighting, scene: Tensor, point: Tensor, normal: Tensor, view: Tensor, matte: Tensor,
                 mirror: Tensor, roughness: Tensor) -> Tensor:
    """(N, 3) light from sky and ground: evenly for what is matte, along the mirrored ray for what shines."""
    above = 0.5 + 0.5 * normal[:, 2:]
    every = torch.arange(len(light.scenes), device=scene.device)
    diffuse = matte * torch.lerp(ground_light(light, every, point.new_zeros(len(every), 3))[scene],
                                 (light.zenith + light.horizon)[scene] / 2, above)
    mirrored = 2 * dot(normal, view) * normal - view
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
        return dot(a, b).clamp(min=1e-4)

    alpha = roughness ** 2
    facets = alpha ** 2 / (cosine(normal, halfway) ** 2 * (alpha ** 2 - 1) + 1) ** 2
    k = (roughness + 1) ** 2 / 8

    def unshadowed(direction):
        return 1 / (cosine(normal, direction) * (1 - k) + k)

    fresnel = mirror + (1 - mirror) * (1 - cosine(view, halfway)) ** 5
    return facets * unshadowed(view) * unshadowed(to_lamp) * fresnel / 4


# --- what is behind the objects ---------------------------------------------------------------------------------------

def shade_background(meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(B, H, W, 3) radiance of what is behind the objects: the ground z = 0 under every pixel, walls, and the sky."""
    eye, rays = cameras.positions_world(), cameras.rays_world()
    shape = rays.shape
    every = torch.arange(len(eye), device=eye.device).repeat_interleave(shape[1] * shape[2])
    rays = rays.reshape(-1, 3)
    down = rays[:, 2] < -1e-4
    distance = torch.where(down, -eye[every, 2] / torch.where(down, rays[:, 2], -1.0), 0.0)
    points = eye[every] + rays * distance[:, None]  # (N, 3)
    points, normal, wall = raise_walls(points, eye, rays, light)
    seen = (down | wall).nonzero()[:, 0]
    scene, points, normal, wall = every[seen], points[seen], normal[seen], wall[seen]
    colour = textured(light.ground_colour[scene], light.ground, scene, points)
    colour = paint_strips(colour, points, rays[seen], scene, wall, light, cameras)
    colour = paper_walls(colour, points, scene, wall, light)
    # half of the sky's light comes from near the horizon
    received = (light.zenith + light.horizon)[scene] / 2 * contact_shade(meshes, scene, points)[:, None]
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        lit = torch.ones_like(rays[:, 0]).index_put((seen,), lit_share(light.shadows[i], scene, points))
        lit = F.avg_pool2d(lit.view(shape[:3]), PENUMBRA_PX, 1, PENUMBRA_PX // 2, count_include_pad=False).reshape(-1, 1)
        received = received + sent * dot(to_lamp, normal).clamp(min=0) * lit[seen]
    background = torch.zeros_like(rays).index_put((seen,), colour * received)
    if len(seen) < len(rays):
        above = torch.ones_like(down).index_fill(0, seen, False).nonzero()[:, 0]
        heavens = cloudy(sky(light, every[above], F.normalize(rays[above], dim=-1)), rays[above], every[above], light)
        background = background.index_put((above,), heavens)
    return background.view(shape)


def paint_strips(colour: Tensor, points: Tensor, rays: Tensor, scene: Tensor, wall: Tensor, light: Lighting,
                 cameras: Cameras) -> Tensor:
    """Ground colours (N, 3) at points (N, 3) with each scene's strips painted over, edges a pixel wide."""
    for b, strips in enumerate(own.strips for own in light.scenes):
        if not strips:
            continue
        seen = ((scene == b) & ~wall).nonzero()[:, 0]
        ray, place = rays[seen], points[seen]
        slant = -1 / ray[:, 2]  # how many times more ground a pixel spans along the view than across it
        pixel_m = cameras.positions_world()[b, 2] * slant / cameras.K[b, 0, 0]
        ahead = F.normalize(ray[:, :2], dim=1)
        for strip in strips:
            share = strip_share(strip, place, pixel_m, slant, ahead)
            chosen = (share > 0).nonzero()[:, 0]
            rows = seen[chosen]
            own = plain_texture(strip.material, place[chosen])
            colour = colour.index_copy(0, rows, torch.lerp(colour[rows], own, share[chosen, None]))
    return colour


def plain_texture(material: Material, points: Tensor) -> Tensor:
    """(N, 3) colours of one material at points (N, 3) of its space."""
    colour = points.new_tensor(material.colour).expand(len(points), 3)
    one = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return textured(colour, pack_textures([material], points.device, points.dtype), one, points)


def strip_share(strip: Strip, points: Tensor, pixel_m: Tensor, slant: Tensor, ahead: Tensor) -> Tensor:
    """(N,) share of the pixels at ground points (N, 3) that a strip covers.

    pixel_m: (N,) metres that a pixel spans across the view; slant: (N,) how many times more along `ahead` (N, 2).
    """
    cos, sin = math.cos(strip.yaw_rad), math.sin(strip.yaw_rad)
    dx, dy = points[:, 0] - strip.position_world[0], points[:, 1] - strip.position_world[1]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    along_m, across_m = (pixel_m * (1 + (slant - 1) * (ahead @ ahead.new_tensor(axis)).abs())
                         for axis in ((cos, sin), (-sin, cos)))

    def cover(inside_m, extent_m, wide):  # of a pixel's width: half where the edge halves it, all of a strip thinner than it
        return (inside_m / wide + 0.5).clamp(min=0).minimum((extent_m / wide).clamp(max=1))

    share = (cover(strip.size_m[1] / 2 - across.abs(), strip.size_m[1], across_m)
             * cover(strip.size_m[0] / 2 - along.abs(), strip.size_m[0], along_m))
    if strip.dash_m:
        inside = strip.dash_m / 2 - (along % (2 * strip.dash_m) - strip.dash_m).abs()
        share = share * cover(inside, strip.dash_m, along_m)
    return share


def raise_walls(points: Tensor, eye: Tensor, rays: Tensor, light: Lighting) -> tuple[Tensor, Tensor, Tensor]:
    """Ground points (N, 3), replaced by the walls' where a room's stand before the ground; normals (N, 3); walls (N,)."""
    normal = torch.zeros_like(points) + points.new_tensor([0.0, 0.0, 1.0])
    wall, size = torch.zeros(len(points), dtype=torch.bool, device=points.device), len(points) // len(light.scenes)
    for b, room in enumerate(own.room for own in light.scenes):
        if room is None:
            continue
        ray, steps = rays[b * size:(b + 1) * size], []  # steps to the wall that each ray runs into along x and along y
        for axis in (0, 1):
            limit = torch.where(ray[:, axis] > 0, room.high_m[axis], room.low_m[axis])
            steps.append(torch.where(ray[:, axis].abs() > 1e-9, (limit - eye[b, axis]) / ray[:, axis], torch.inf))
        nearest, axis = torch.stack(steps).min(0)
        met = eye[b] + ray * nearest[:, None]
        on_wall = ((met[:, 2] > 0) & (met[:, 2] < room.height_m)).nonzero()[:, 0]
        rows, axis = b * size + on_wall, axis[on_wall, None]
        inward = torch.zeros_like(met[on_wall]).scatter(1, axis, -ray[on_wall].gather(1, axis).sign())
        points, normal = points.index_copy(0, rows, met[on_wall]), normal.index_copy(0, rows, inward)
        wall = wall.index_fill(0, rows, True)
    return points, normal, wall


def paper_walls(colour: Tensor, points: Tensor, scene: Tensor, wall: Tensor, light: Lighting) -> Tensor:
    """Colours (N, 3) with those of each room's walls."""
    for b, room in enumerate(own.room for own in light.scenes):
        if room is not None:
            rows = ((scene == b) & wall).nonzero()[:, 0]
            colour = colour.index_copy(0, rows, plain_texture(room.wall, points[rows]))
    return colour


def cloudy(background: Tensor, rays: Tensor, scene: Tensor, light: Lighting) -> Tensor:
    """The sky (N, 3) seen along rays (N, 3) of scenes (N,) with each one's clouds before it."""
    for b, own in enumerate(one.sky for one in light.scenes):
        if not own.clouds:
            continue
        up = ((scene == b) & (rays[:, 2] > 1e-3)).nonzero()[:, 0]
        high = rays[up] / (rays[up, 2:] + 0.15)  # on a layer that curves down to the horizon
        shape = noise(high * high.new_tensor([1.5, 1.5, 0.0]), torch.full_like(up, own.seed))
        share = ((shape - 1 + own.clouds) * 4 + 0.5).clamp(0, 1)[:, None]
        white = light.horizon[b].expand(len(up), 3) * 1.1
        background = background.index_copy(0, up, torch.lerp(background[up], white, 0.9 * share))
    return background


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
