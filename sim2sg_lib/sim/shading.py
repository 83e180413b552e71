"""From fragments to an image: background, materials, tone and style, in pure torch.

Every sum runs over a fixed number of terms: a scene renders to the same bytes alone and in any batch.
"""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras, stack_cameras
from sim2sg_lib.scene import Material, Scene, Strip
from sim2sg_lib.sim.lighting import (
    Lighting,
    contact_shade,
    dot,
    ground_light,
    incoming,
    lit_share,
    mix,
    pack_lighting,
    pick,
    sky,
)
from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import Meshes, build, pack_textures, rows_of
from sim2sg_lib.sim.rasterizer import Fragments, rasterize, scale_cameras, soft_blend
from sim2sg_lib.sim.texture import noise, textured

SUPERSAMPLE = 2          # samples per pixel and axis
SHARED_FROM = 200_000    # in images of so many pixels, samples of a pixel and face share their shading, columns their light
PENUMBRA_PX = 3          # width of the box that softens shadows on the ground: lamps are areas, not points
BLOCK = 1 << 15          # samples shaded at once: what they need stays in the processor's cache
BAND_PIXELS = 1 << 17    # of the background of a large image at once, to reuse memory instead of having new given
DIELECTRIC = 0.04        # reflectance of what is no metal, seen from above
SHOULDER = 0.8           # display values from here on are compressed, so that no highlight clips


# --- the image --------------------------------------------------------------------------------------------------------

def rasterize_scenes(scenes: list[Scene], assets: dict[str, Mesh], width: int, height: int, device: torch.device | str = "cpu",
                     rasterize: Callable[..., Fragments] = rasterize) -> tuple[Fragments, Meshes, Cameras]:
    """What the samples of B scenes' images see, with the meshes and cameras: how `shade` and `labels.annotate` begin.

    assets: name -> unit mesh, as Env.assets. rasterize: that of `raster`, or another of its interface.
    """
    meshes = build(scenes, assets, device)
    cameras = stack_cameras([scene.camera for scene in scenes], width, height, device)
    return rasterize(meshes, scale_cameras(cameras, SUPERSAMPLE), cull_backfaces=True), meshes, cameras


def shade(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images in [0, 1] at the cameras' size; `fragments` may be finer by a whole factor.

    The ground is smooth, so it is shaded once a pixel; only objects are shaded once a sample. With a `light` of one's own,
    gradients reach lamps, sky, ground and exposure.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    _, fine_height, fine_width, _ = fragments.pix_to_face.shape
    fine, nearest = fine_width // cameras.width, fragments.pix_to_face[..., 0].reshape(-1)
    hidden = (nearest >= 0).view(-1, cameras.height, fine, cameras.width, fine).all(-1).all(2) if is_large(cameras) else None
    ground = display(shade_background(meshes, cameras, light, hidden), light.exposure[:, None, None, None])  # (B, H, W, 3)
    hit = torch.nonzero(nearest >= 0)[:, 0]
    row, column = hit // fine_width % fine_height // fine, hit % fine_width // fine
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    shaded, among = torch.arange(len(hit), device=hit.device), None
    if fine > 1 and is_large(cameras):
        shaded, among = share_samples(nearest.index_select(0, hit), pixel, len(ground.view(-1, 3)))
    own, scene = pick(shaded, hit, scene)
    columns = *pick(own, nearest, fragments.bary_coords[..., 0, :].reshape(-1, 3)), scene
    objects = torch.cat([display(shade_objects(f, w, meshes, cameras, light), rows_of(light.exposure[:, None], s))  # (N, 3)
                         for f, w, s in zip(*(column.split(BLOCK) for column in columns))])
    objects = objects if among is None else objects.index_select(0, among)
    # the display curve comes before the average: the other way round leaves jagged edges at highlights
    difference = (objects - ground.view(-1, 3).index_select(0, pixel)) / fine ** 2
    images = ground.view(-1, 3).index_add(0, pixel, difference).view(len(scenes), cameras.height, cameras.width, 3)
    return stylize(images.permute(0, 3, 1, 2), [scene.style_seed for scene in scenes])


def is_large(cameras: Cameras) -> bool:
    """Whether images are so large that nobody sees what is spared in them."""
    return cameras.width * cameras.height >= SHARED_FROM


def share_samples(face: Tensor, pixel: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Which of N samples to shade, (M,), and which of those each one shows, (N,): one a pixel and face that it begins with."""
    number = torch.arange(len(face), device=face.device)
    first = torch.full((pixels,), len(face), device=face.device).scatter_reduce(0, pixel, number, "amin").index_select(0, pixel)
    stand_in = torch.where(face == face.index_select(0, first), first, number)
    shaded = torch.nonzero(stand_in == number)[:, 0]
    place = torch.zeros_like(number).index_put((shaded,), torch.arange(len(shaded), device=face.device))
    return shaded, place.index_select(0, stand_in)


def shade_soft(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], sigma: float, gamma: float,
               light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images with soft edges: every pixel blends all its K faces and the ground (SoftRas, eq. 2).

    `fragments` of the cameras' size. Not stylized. Gradients reach vertices, normals, materials, textures, camera and light.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    hit = torch.nonzero(fragments.pix_to_face.reshape(-1) >= 0)[:, 0]
    face, bary = fragments.pix_to_face.reshape(-1)[hit], fragments.bary_coords.reshape(-1, 3)[hit]
    colors = fragments.zbuf.new_zeros(fragments.pix_to_face.numel(), 3)
    colors = colors.index_put((hit,), shade_objects(face, bary, meshes, cameras, light))
    background = shade_background(meshes, cameras, light)
    blended = soft_blend(colors.view(*fragments.pix_to_face.shape, 3), fragments, background, sigma, gamma)
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
    corner, skin, thing = pick(face, meshes.faces, meshes.face_material, meshes.face_object)
    scene = meshes.object_scene.index_select(0, thing)

    def interpolate(values):
        first, second, third = (values.index_select(0, corner.view(-1)).view(-1, 3, 3) * bary[..., None]).unbind(1)
        return first + second + third

    point, normal = interpolate(meshes.verts_world), F.normalize(interpolate(meshes.normals_world), dim=-1)
    view = F.normalize(rows_of(cameras.positions_world(), scene) - point, dim=-1)
    color, metallic, roughness = pick(skin, meshes.color, meshes.metallic[:, None], meshes.roughness[:, None])
    color = textured(color, meshes.texture, skin, interpolate(meshes.verts_object))
    matte, mirror = (1 - metallic) * color, mix(torch.full_like(color, DIELECTRIC), color, metallic)

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
    diffuse = matte * mix(rows_of(ground_light(light, every, point.new_zeros(len(every), 3)), scene),
                          rows_of(light.zenith + light.horizon, scene) / 2, above)
    mirrored = 2 * dot(normal, view) * normal - view
    distance = point[:, 2:] / (-mirrored[:, 2:]).clamp(min=0.1)
    below = ground_light(light, scene, point + mirrored * distance)
    # a rough surface sees a blurred horizon
    share = (0.5 + mirrored[:, 2:] / (0.2 + 2 * roughness ** 2)).clamp(0, 1)
    return diffuse + mirror * mix(below, sky(light, scene, mirrored), share)


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

def shade_background(meshes: Meshes, cameras: Cameras, light: Lighting, hidden: Tensor | None = None) -> Tensor:
    """(B, H, W, 3) radiance of what is behind the objects: the ground z = 0 under every pixel, walls, and the sky.

    hidden: (B, H, W) bool, pixels that a large image may leave black.
    """
    if not is_large(cameras):
        return shade_rows(meshes, cameras, light, (0, cameras.height))
    coarse, step = coarse_light(meshes, cameras, light), max(BAND_PIXELS // cameras.width, 1)
    bands = [(low, min(low + step, cameras.height)) for low in range(0, cameras.height, step)]
    return torch.cat([shade_rows(meshes, cameras, light, (low, high), coarse[:, low:high],
                                 None if hidden is None else hidden[:, low:high]) for low, high in bands], 1)


def shade_rows(meshes: Meshes, cameras: Cameras, light: Lighting, rows: tuple[int, int], coarse: Tensor | None = None,
               hidden: Tensor | None = None) -> Tensor:
    """`shade_background` of some rows: all of a small image, or a band of a large one with its part of `coarse_light`."""
    scene, rays, points, normal, wall, solid = behind(cameras, light, rows)
    shape = (len(cameras.K), rows[1] - rows[0], cameras.width)
    shown = torch.ones_like(wall) if hidden is None else ~hidden.reshape(-1)
    ground, walls, above = (part.nonzero()[:, 0] for part in (shown & solid & ~wall, shown & wall, shown & ~solid))
    color = color_ground(*pick(ground, points, rays, scene), light, cameras)
    color = paper_walls(torch.zeros_like(rays).index_copy(0, ground, color), points, scene, walls, light)
    if coarse is None:
        received, lit = torch.zeros_like(rays), solid.nonzero()[:, 0]
    else:  # where the coarse light mixes surfaces it is worked out anew
        received, blended = coarse.reshape(-1, 6).split(3, dim=1)
        lit = (shown & solid & (dot(blended, blended)[:, 0] < 0.99)).nonzero()[:, 0]

    own = received_light(meshes, light, *pick(lit, scene, points, normal),
                         softener(lit, shape, PENUMBRA_PX) if coarse is None else None)
    background = color * received.index_copy(0, lit, own)
    if len(above):
        ray, scene = pick(above, rays, scene)
        background = background.index_copy(0, above, cloudy(sky(light, scene, F.normalize(ray, dim=-1)), ray, scene, light))
    return background.view(*shape, 3)


def behind(cameras: Cameras, light: Lighting, rows: tuple[int, int]) -> tuple[Tensor, ...]:
    """What the N pixels of some rows see: scene (N,), ray, point and normal (N, 3), whether on a wall, on wall or ground (N,)."""
    eye, rays = cameras.positions_world(), cameras.rays_world(rows)
    scene = torch.arange(len(eye), device=eye.device).repeat_interleave(rays.shape[1] * rays.shape[2])
    rays = rays.reshape(-1, 3)
    own_eye, down = rows_of(eye, scene), rays[:, 2] < -1e-4
    distance = torch.where(down, -own_eye[:, 2] / torch.where(down, rays[:, 2], -1.0), 0.0)
    points, normal, wall = raise_walls(own_eye + rays * distance[:, None], eye, rays, light)
    return scene, rays, points, normal, wall, down | wall


def received_light(meshes: Meshes, light: Lighting, scene: Tensor, points: Tensor, normal: Tensor,
                   soften: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(N, 3) light at points (N, 3) of ground and walls with normals (N, 3); `soften` is done to a lamp's lit shares (N,)."""
    # half of the sky's light comes from near the horizon
    received = rows_of(light.zenith + light.horizon, scene) / 2 * contact_shade(meshes, scene, points)[:, None]
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        lit = lit_share(light.shadows[i], scene, points)
        lit = soften(lit) if soften else lit
        received = received + sent * dot(to_lamp, normal).clamp(min=0) * lit[:, None]
    return received


def softener(lit: Tensor, shape: tuple[int, int, int], columns: int) -> Callable[[Tensor], Tensor]:
    """What softens a lamp's lit shares (M,) at the pixels `lit` of images (B, H, W), in a box so many columns wide."""
    def soften(share: Tensor) -> Tensor:
        image = share.new_ones(math.prod(shape)).index_copy(0, lit, share).view(shape)  # all is lit in the sky
        box = F.avg_pool2d(image, (PENUMBRA_PX, columns), 1, (PENUMBRA_PX // 2, columns // 2), count_include_pad=False)
        return box.view(-1).index_select(0, lit)
    return soften


def coarse_light(meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(B, H, W, 6) of ground and walls, worked out in every other column: the light received, and the normal.

    Every row, since neighbors in a column lie far apart on ground that is seen at a low angle. Blending columns softens
    shadows across them. Where surfaces meet, it shortens the normal.
    """
    half = Cameras(cameras.K * cameras.K.new_tensor([0.5, 1.0, 1.0])[:, None], cameras.R, cameras.t,
                   (cameras.width + 1) // 2, cameras.height)
    scene, _, points, normal, _, solid = behind(half, light, (0, half.height))
    solid, shape = solid.nonzero()[:, 0], (len(half.K), half.height, half.width)
    normal = normal.index_select(0, solid)
    received = received_light(meshes, light, *pick(solid, scene, points), normal, softener(solid, shape, 1))
    values = points.new_zeros(len(points), 6).index_copy(0, solid, torch.cat([received, normal], 1)).view(*shape, 6)
    fine = F.interpolate(values.permute(0, 3, 1, 2), size=(half.height, 2 * half.width), mode="bilinear")
    return fine[..., :cameras.width].permute(0, 2, 3, 1)


def color_ground(points: Tensor, rays: Tensor, scene: Tensor, light: Lighting, cameras: Cameras) -> Tensor:
    """(N, 3) colors of the ground at points (N, 3), each scene's strips painted over it, edges a pixel wide."""
    if is_large(cameras):
        points = points * points.new_tensor([1.0, 1.0, 0.0])  # not just nearly: noise then takes half as long
    color = textured(rows_of(light.ground_color, scene), light.ground, scene, points)
    for b, strips in enumerate(own.strips for own in light.scenes):
        if not strips:
            continue
        seen = (scene == b).nonzero()[:, 0]
        ray, place = pick(seen, rays, points)
        slant = -1 / ray[:, 2]  # how many times more ground a pixel spans along the view than across it
        pixel_m = cameras.positions_world()[b, 2] * slant / cameras.K[b, 0, 0]
        ahead = F.normalize(ray[:, :2], dim=1)
        reach_m = 0.51 * pixel_m * slant.clamp(min=1)  # half of a pixel, however it lies, and a little
        for strip in strips:
            along, across = along_strip(strip, place)
            near = (along.abs() - strip.size_m[0] / 2 < reach_m) & (across.abs() - strip.size_m[1] / 2 < reach_m)
            near = near.nonzero()[:, 0]
            share = strip_share(strip, *pick(near, along, across, pixel_m, slant, ahead))
            rows, spot = pick(near, seen, place)
            own = mix(color.index_select(0, rows), plain_texture(strip.material, spot), share[:, None])
            color = color.index_copy(0, rows, own)
    return color


def plain_texture(material: Material, points: Tensor) -> Tensor:
    """(N, 3) colors of one material at points (N, 3) of its space."""
    color = points.new_tensor(material.color).expand(len(points), 3)
    one = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return textured(color, pack_textures([material], points.device, points.dtype), one, points)


def along_strip(strip: Strip, points: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (N,), how far along and across a strip the points (N, 3) lie, meters from its center."""
    cos, sin = math.cos(strip.yaw_rad), math.sin(strip.yaw_rad)
    dx, dy = points[:, 0] - strip.position_world[0], points[:, 1] - strip.position_world[1]
    return cos * dx + sin * dy, cos * dy - sin * dx


def strip_share(strip: Strip, along: Tensor, across: Tensor, pixel_m: Tensor, slant: Tensor, ahead: Tensor) -> Tensor:
    """(N,) share of the pixels that a strip covers, at points along and across it (N,).

    pixel_m: (N,) meters that a pixel spans across the view; slant: (N,) how many times more along `ahead` (N, 2).
    """
    cos, sin = math.cos(strip.yaw_rad), math.sin(strip.yaw_rad)
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
        nearest = torch.minimum(*steps)
        height_m = eye[b, 2] + ray[:, 2] * nearest
        met = ((height_m > 0) & (height_m < room.height_m)).nonzero()[:, 0]
        ray, nearest, along_x, along_y = pick(met, ray, nearest, *steps)
        axis = (along_y < along_x).long()[:, None]
        inward = torch.zeros_like(ray).scatter(1, axis, -ray.gather(1, axis).sign())
        rows = b * size + met
        points, normal = points.index_copy(0, rows, eye[b] + ray * nearest[:, None]), normal.index_copy(0, rows, inward)
        wall = wall.index_fill(0, rows, True)
    return points, normal, wall


def paper_walls(color: Tensor, points: Tensor, scene: Tensor, walls: Tensor, light: Lighting) -> Tensor:
    """Colors (N, 3) with those of each room's walls, which are its `walls` (M,), indices."""
    for b, room in enumerate(own.room for own in light.scenes):
        if room is not None:
            rows = walls[scene.index_select(0, walls) == b]
            color = color.index_copy(0, rows, plain_texture(room.wall, points.index_select(0, rows)))
    return color


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
        background = background.index_copy(0, up, mix(background[up], white, 0.9 * share))
    return background


# --- stylize ----------------------------------------------------------------------------------------------------------

def stylize(images: torch.Tensor, seeds: list[int | None]) -> torch.Tensor:
    """Procedural stylization of (B, 3, H, W) finished images, one seed or None each.

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
    channels = images.new_tensor([[0.80, 0.25, 0.00], [0.15, 0.70, 0.10], [0.10, 0.20, 0.55]])
    mixed = (channels[:, :, None, None] * images[chosen][:, None]).sum(2)
    cast = images.new_tensor([0.10, 0.0, -0.10])[:, None, None]
    styled = 0.10 + 0.82 * mixed ** 1.15 + 0.08 * strokes[:, None] + cast * patches[:, None]
    return images.index_copy(0, torch.tensor(chosen, device=images.device), styled.clamp(0, 1))
