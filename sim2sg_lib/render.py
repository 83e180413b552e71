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
from sim2sg_lib.scene import Scene, Strip
from sim2sg_lib.texture import noise, textured

SUPERSAMPLE = 2          # samples per pixel and axis
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
    hit = torch.nonzero(fragments.pix_to_face[..., 0].reshape(-1) >= 0)[:, 0]
    _, fine_height, fine_width, _ = fragments.pix_to_face.shape
    fine = fine_width // cameras.width
    row, column = hit // fine_width % fine_height // fine, hit % fine_width // fine
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    face, bary = fragments.pix_to_face[..., 0].reshape(-1)[hit], fragments.bary_coords[..., 0, :].reshape(-1, 3)[hit]
    objects = torch.cat([display(shade_objects(f, w, meshes, cameras, light), light.exposure[s, None])  # (N, 3)
                         for f, w, s in zip(*(column.split(BLOCK) for column in (face, bary, scene)))])
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
    blended = soft_blend(colours.view(*fragments.pix_to_face.shape, 3), fragments, shade_background(meshes, cameras, light), sigma,
                         gamma)
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
    scene = torch.arange(len(eye), device=eye.device).repeat_interleave(shape[1] * shape[2])
    rays = rays.reshape(-1, 3)
    down = rays[:, 2] < -1e-4
    distance = torch.where(down, -eye[scene, 2] / torch.where(down, rays[:, 2], -1.0), 0.0)
    points = eye[scene] + rays * distance[:, None]  # (N, 3)
    colour = textured(light.ground_colour[scene], light.ground, scene, points)
    colour = paint_strips(colour, points, rays, down, light, cameras)
    points, normal, colour, solid = raise_walls(points, colour, eye, rays, down, light)
    # half of the sky's light comes from near the horizon
    received = (light.zenith + light.horizon)[scene] / 2 * contact_shade(meshes, scene, points)[:, None]
    for i in range(light.lamp_world.shape[1]):
        to_lamp, sent = incoming(light, i, scene, points)
        lit = F.avg_pool2d(lit_share(light.shadows[i], scene, points).view(shape[:3]), PENUMBRA_PX, 1, PENUMBRA_PX // 2,
                           count_include_pad=False)
        facing = to_lamp[:, 2:] if normal is None else dot(to_lamp, normal)
        received = received + sent * facing.clamp(min=0) * lit.reshape(-1, 1)
    background = cloudy(sky(light, scene, F.normalize(rays, dim=-1)), rays, light)
    return torch.where(solid[:, None], colour * received, background).view(shape)


def paint_strips(colour: Tensor, points: Tensor, rays: Tensor, down: Tensor, light: Lighting, cameras: Cameras) -> Tensor:
    """Ground colours (N, 3) at points (N, 3) with each scene's strips painted over, edges a pixel wide."""
    if not any(scene.strips for scene in light.scenes):
        return colour
    painted, size = colour.clone(), len(colour) // len(light.scenes)
    for b, scene in enumerate(light.scenes):
        seen = b * size + down[b * size:(b + 1) * size].nonzero()[:, 0]
        x, y, _ = points[seen].unbind(1)
        # how many metres of ground a pixel spans, along the view and across it
        reach = (points[seen] - cameras.positions_world()[b]).norm(dim=1)
        across_px = reach / cameras.K[b, 0, 0]
        slant = rays[seen].norm(dim=1) / -rays[seen, 2]
        for strip in scene.strips:
            ahead = rays[seen, :2] / rays[seen, :2].norm(dim=1, keepdim=True)
            share = strip_share(strip, x, y, across_px, slant, ahead)
            chosen = (share > 0).nonzero()[:, 0]
            own, texture = colour.new_tensor(strip.material.colour).expand(len(chosen), 3), pack_textures(
                [strip.material], colour.device, colour.dtype)
            own = textured(own, texture, torch.zeros_like(chosen), points[seen[chosen]])
            painted = painted.index_copy(0, seen[chosen], torch.lerp(painted[seen[chosen]], own, share[chosen, None]))
    return painted


def strip_share(strip: Strip, x: Tensor, y: Tensor, pixel_m: Tensor, slant: Tensor, ahead: Tensor) -> Tensor:
    """(N,) share of the pixels at ground points x, y (N,) that a strip covers.

    pixel_m: (N,) metres that a pixel spans across the view; slant: (N,) how many times more along `ahead` (N, 2).
    """
    cos, sin = math.cos(strip.yaw_rad), math.sin(strip.yaw_rad)
    dx, dy = x - strip.position_world[0], y - strip.position_world[1]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    along_m, across_m = (pixel_m * (1 + (slant - 1) * (ahead @ ahead.new_tensor(axis)).abs())
                         for axis in ((cos, sin), (-sin, cos)))
    share = (strip.size_m[1] / across_m).clamp(max=1)  # thinner than a pixel, it fades
    share = share * ((strip.size_m[1] / 2 - across.abs()) / across_m + 0.5).clamp(0, 1)
    share = share * ((strip.size_m[0] / 2 - along.abs()) / along_m + 0.5).clamp(0, 1)
    if strip.dash_m:
        inside = strip.dash_m / 2 - (along % (2 * strip.dash_m) - strip.dash_m).abs()
        share = share * (inside / along_m + 0.5).clamp(0, 1)
    return share


def raise_walls(points: Tensor, colour: Tensor, eye: Tensor, rays: Tensor, down: Tensor, light: Lighting):
    """Ground points and colours (N, 3), replaced by the walls' where a room's stand before the ground.

    Returns points, normals (N, 3) (None outdoors, where all point up), colours, and whether there is anything (N,).
    """
    if not any(scene.room for scene in light.scenes):
        return points, None, colour, down
    normal, solid = torch.zeros_like(points) + points.new_tensor([0.0, 0.0, 1.0]), down.clone()
    points, colour, size = points.clone(), colour.clone(), len(colour) // len(light.scenes)
    for b, room in enumerate(scene.room for scene in light.scenes):
        if room is None:
            continue
        rows = slice(b * size, (b + 1) * size)
        steps = []  # to the wall that each ray runs into along x and along y
        for axis in (0, 1):
            ray = rays[rows, axis]
            wall = torch.where(ray > 0, room.high_m[axis], room.low_m[axis])
            steps.append(torch.where(ray.abs() > 1e-9, (wall - eye[b, axis]) / ray, torch.inf))
        nearest, axis = torch.stack(steps).min(0)
        met = eye[b] + rays[rows] * nearest[:, None]
        on_wall = ((met[:, 2] > 0) & (met[:, 2] < room.height_m)).nonzero()[:, 0]
        chosen = b * size + on_wall
        inward = torch.zeros_like(met[on_wall])
        inward.scatter_(1, axis[on_wall, None], -rays[chosen].gather(1, axis[on_wall, None]).sign())
        own, texture = colour.new_tensor(room.wall.colour).expand(len(chosen), 3), pack_textures(
            [room.wall], colour.device, colour.dtype)
        points[chosen], normal[chosen], solid[chosen] = met[on_wall], inward, True
        colour[chosen] = textured(own, texture, torch.zeros_like(chosen), met[on_wall])
    return points, normal, colour, solid


def cloudy(background: Tensor, rays: Tensor, light: Lighting) -> Tensor:
    """The sky (N, 3) seen along rays (N, 3) with each scene's clouds before it."""
    if not any(scene.sky.clouds for scene in light.scenes):
        return background
    size, background = len(rays) // len(light.scenes), background.clone()
    for b, own in enumerate(scene.sky for scene in light.scenes):
        up = b * size + (rays[b * size:(b + 1) * size, 2] > 1e-3).nonzero()[:, 0]
        high = rays[up] / (rays[up, 2:] + 0.15)  # on a layer that curves down to the horizon
        shape = noise(high * high.new_tensor([1.5, 1.5, 0.0]), torch.full_like(up, own.seed))
        share = ((shape - 1 + own.clouds) * 4 + 0.5).clamp(0, 1)[:, None]
        background[up] = torch.lerp(background[up], light.horizon[b] * 1.1, 0.9 * share)
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
