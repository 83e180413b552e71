"""The renderer, in pure torch: rasterize -> Fragments -> shade -> image.

Pairs of face and pixel are enumerated from each face's bounding box, so that work and memory grow with the sum of
the boxes and never with faces x pixels; the nearest face of a pixel is one `scatter_reduce` over all pairs.
Every sum runs over a fixed number of terms: a scene renders to the same bytes alone and in any batch.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sim2sg_lib.camera import Cameras
from sim2sg_lib.meshes import Meshes
from sim2sg_lib.scene import Scene

SUPERSAMPLE = 2   # samples per pixel and axis
NEAR_M = 0.05     # nothing nearer than this is drawn
PENUMBRA_PX = 3   # width of the box that softens shadow edges; CLEVR's lamps are areas, not points


@dataclass(frozen=True)
class Fragments:
    """What each pixel of B images sees first; faces count through the whole batch.

    pix_to_face: (B, H, W, K) int64, the K = 1 nearest faces; -1 where no face is.
    zbuf:        (B, H, W, K) float, depth in metres; -1 where no face is.
    bary_coords: (B, H, W, K, 3) float, perspective-correct barycentric coordinates in the face; -1 where no face is.
    """

    pix_to_face: torch.Tensor
    zbuf: torch.Tensor
    bary_coords: torch.Tensor


def scale_cameras(cameras: Cameras, factor: int) -> Cameras:
    """The same views on a grid `factor` times as fine."""
    scale = torch.tensor([factor, factor, 1.0], dtype=cameras.K.dtype, device=cameras.K.device)
    return Cameras(cameras.K * scale[:, None], cameras.R, cameras.t, cameras.width * factor, cameras.height * factor)


# --- rasterise --------------------------------------------------------------------------------------------------------

def rasterize(meshes: Meshes, cameras: Cameras) -> Fragments:
    """The nearest face at every pixel centre. Meshes are taken as closed: faces that look away are skipped."""
    width, height, device = cameras.width, cameras.height, cameras.K.device
    verts_px, depth_m = cameras.project(meshes.verts_world, meshes.vert_scene)
    tri_px, tri_depth = verts_px[meshes.faces], depth_m[meshes.faces]  # (F, 3, 2), (F, 3)
    face_scene = meshes.object_scene[meshes.face_object]
    keep = (tri_depth > NEAR_M).all(1) & (signed_area(tri_px) < 0)  # counter-clockwise from outside is < 0 with y down
    face, column, row, bary = covered_pairs(tri_px, keep, width, height)

    inverse_depth = (bary / tri_depth[face]).sum(-1)  # linear on the screen
    pixel = (face_scene[face] * height + row) * width + column
    # a positive float's bits sort like the float, so one integer minimum finds the depth and, on a tie, the lower face
    key = ((1 / inverse_depth).detach().float().view(torch.int32).to(torch.int64) << 32) | face
    empty = torch.iinfo(torch.int64).max
    nearest = torch.full((meshes.scenes * height * width,), empty, dtype=torch.int64, device=device)
    nearest.scatter_reduce_(0, pixel, key, "amin")

    hit = torch.nonzero(nearest != empty)[:, 0]  # (N,) pixels with a face
    winner = nearest[hit] & 0xFFFFFFFF
    points_px = torch.stack([hit % width, hit // width % height], -1).to(verts_px) + 0.5
    bary = screen_barycentrics(tri_px[winner], points_px) / tri_depth[winner]
    shape = (meshes.scenes, height, width, 1)
    pix_to_face = torch.full((len(nearest),), -1, dtype=torch.int64, device=device).index_put((hit,), winner)
    blank = torch.full((len(nearest), 4), -1.0, dtype=verts_px.dtype, device=device)
    depth = 1 / bary.sum(-1, keepdim=True)
    values = blank.index_put((hit,), torch.cat([depth, bary * depth], 1))
    return Fragments(pix_to_face.view(shape), values[:, 0].view(shape), values[:, 1:].view(*shape, 3))


def signed_area(tri_px: torch.Tensor) -> torch.Tensor:
    """(F, 3, 2) pixels -> (F,) twice the area; negative for corners that run counter-clockwise on the screen."""
    ab, ac = tri_px[:, 1] - tri_px[:, 0], tri_px[:, 2] - tri_px[:, 0]
    return ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]


def screen_barycentrics(tri_px: torch.Tensor, points_px: torch.Tensor) -> torch.Tensor:
    """(N, 3, 2) triangles, (N, 2) points -> (N, 3) barycentric coordinates on the screen (not perspective-correct)."""
    to_corner = tri_px - points_px[:, None]  # (N, 3, 2), relative to the point: no large numbers cancel
    b, c = to_corner.roll(-1, 1), to_corner.roll(-2, 1)
    return (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0]) / signed_area(tri_px)[:, None]


def covered_pairs(tri_px: torch.Tensor, keep: torch.Tensor, width: int, height: int) -> tuple[torch.Tensor, ...]:
    """Every pair of a kept face (F,) bool and a pixel whose centre lies in it.

    Returns face (P,), column (P,), row (P,) int64 and the screen-space barycentrics (P, 3).
    """
    size = torch.tensor([width, height], dtype=tri_px.dtype, device=tri_px.device)
    corners = torch.where(keep[:, None, None], tri_px.detach(), 0.0)  # a face behind the camera has no finite corner
    low = (corners.amin(1) - 0.5).ceil().clamp(min=0).minimum(size)  # (F, 2) first column and row
    high = ((corners.amax(1) - 0.5).floor() + 1).clamp(min=0).minimum(size)
    span = (high - low).clamp(min=0).long()
    count = span[:, 0] * span[:, 1] * (keep & (signed_area(corners) != 0))
    face = torch.repeat_interleave(count)  # (P,)
    step = torch.arange(len(face), device=face.device) - (count.cumsum(0) - count)[face]
    columns = span[:, 0][face]
    row = torch.div(step, columns, rounding_mode="floor")
    column = step - row * columns
    # barycentrics are affine in the pixel: three coefficients each, relative to the corner `low` of the face's box
    at_low = screen_barycentrics(corners, low + 0.5)
    across = screen_barycentrics(corners, low + torch.tensor([1.5, 0.5]).to(low)) - at_low
    down = screen_barycentrics(corners, low + torch.tensor([0.5, 1.5]).to(low)) - at_low
    affine = torch.stack([at_low, across, down], 1)[face]  # (P, 3, 3)
    bary = affine[:, 0] + affine[:, 1] * column[:, None] + affine[:, 2] * row[:, None]
    inside = (bary >= 0).all(1)
    face = face[inside]
    first = low.long()[face]
    return face, column[inside] + first[:, 0], row[inside] + first[:, 1], bary[inside]


def coverage(tri_px: torch.Tensor, keep: torch.Tensor, face_group: torch.Tensor, groups: int, width: int,
             height: int) -> torch.Tensor:
    """(groups, H, W) bool: which pixels the kept faces of each group cover, whatever lies in front of them."""
    face, column, row, _ = covered_pairs(tri_px, keep, width, height)
    mask = torch.zeros(groups * height * width, dtype=torch.bool, device=tri_px.device)
    mask[(face_group[face] * height + row) * width + column] = True
    return mask.view(groups, height, width)


# --- shade ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Lighting:
    """The scenes' light and ground as tensors; scenes with fewer lamps than L carry dark ones.

    lamp_world: (B, L, 3) metres.    lamp_intensity: (B, L, 3).    ambient, ground_colour, texture_colour: (B, 3).
    texture_amount, texture_scale_m, exposure: (B,).    texture_seed: (B,) int64.
    """

    lamp_world: torch.Tensor
    lamp_intensity: torch.Tensor
    ambient: torch.Tensor
    ground_colour: torch.Tensor
    texture_colour: torch.Tensor
    texture_amount: torch.Tensor
    texture_scale_m: torch.Tensor
    exposure: torch.Tensor
    texture_seed: torch.Tensor


def pack_lighting(scenes: list[Scene], like: torch.Tensor) -> Lighting:
    """Collect the light and ground of B scenes on the device and dtype of `like`."""
    lamps = max([len(scene.lights) for scene in scenes] + [1])
    dark = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    rows = [[(lamp.position_world, lamp.intensity) for lamp in s.lights] + [dark] * (lamps - len(s.lights)) for s in scenes]

    def pack(values):
        return torch.tensor(values, dtype=torch.float64).to(like)

    return Lighting(
        pack([[p for p, _ in row] for row in rows]), pack([[i for _, i in row] for row in rows]),
        pack([s.ambient for s in scenes]), pack([s.ground.colour for s in scenes]),
        pack([s.ground.texture_colour for s in scenes]), pack([s.ground.texture_amount for s in scenes]),
        pack([s.ground.texture_scale_m for s in scenes]), pack([s.exposure for s in scenes]),
        torch.tensor([s.ground.texture_seed for s in scenes], device=like.device))


def shade(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene]) -> torch.Tensor:
    """(B, 3, H, W) images in [0, 1] at the cameras' size; `fragments` are SUPERSAMPLE times as fine.

    The ground is smooth, so it is shaded once a pixel; only objects are shaded once a sample.
    """
    light = pack_lighting(scenes, cameras.K)
    ground = display(shade_ground(meshes, cameras, light), light.exposure[:, None, None, None])  # (B, H, W, 3)
    hit = torch.nonzero(fragments.pix_to_face.reshape(-1) >= 0)[:, 0]
    batch, fine_height, fine_width, _ = fragments.pix_to_face.shape
    row, column = hit // fine_width % fine_height // SUPERSAMPLE, hit % fine_width // SUPERSAMPLE
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    objects = display(shade_objects(fragments, meshes, cameras, light, hit), light.exposure[scene, None])  # (N, 3)
    # the display curve comes before the average: the other way round leaves jagged edges at highlights
    difference = (objects - ground.view(-1, 3)[pixel]) / SUPERSAMPLE ** 2
    images = ground.view(-1, 3).index_add(0, pixel, difference).view(batch, cameras.height, cameras.width, 3)
    return stylise(images.permute(0, 3, 1, 2), [scene.style_seed for scene in scenes])


def display(radiance: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
    """Linear radiance (..., 3) and exposure, broadcastable to it -> display values in [0, 1] by the sRGB exponent."""
    return (radiance * exposure).clamp(1e-6, 1.0) ** (1 / 2.2)


def shade_ground(meshes: Meshes, cameras: Cameras, light: Lighting) -> torch.Tensor:
    """(B, H, W, 3) radiance of the plane z = 0 under every pixel, lamps' shadows included; the horizon is ambient."""
    eye, rays = cameras.positions_world(), cameras.rays_world()
    down = rays[..., 2] < -1e-4
    distance = torch.where(down, -eye[:, None, None, 2] / torch.where(down, rays[..., 2], -1.0), 0.0)
    points = eye[:, None, None] + rays * distance[..., None]  # (B, H, W, 3)
    colour = light.ground_colour[:, None, None]
    if light.texture_amount.any():
        noise = value_noise(points[..., :2] / light.texture_scale_m[:, None, None, None],
                            light.texture_seed[:, None, None])
        amount = light.texture_amount[:, None, None] * noise
        colour = torch.lerp(colour, light.texture_colour[:, None, None], amount[..., None])
    lit = cast_shadows(meshes, cameras, light)  # (B, L, H, W)
    irradiance = light.ambient[:, None, None].expand_as(points)
    for i in range(light.lamp_world.shape[1]):
        to_lamp = light.lamp_world[:, None, None, i] - points
        squared = (to_lamp * to_lamp).sum(-1)
        strength = to_lamp[..., 2].clamp(min=0) / squared ** 1.5 * lit[:, i]
        irradiance = irradiance + light.lamp_intensity[:, None, None, i] * strength[..., None]
    return torch.where(down[..., None], colour * irradiance, light.ambient[:, None, None])


def ground_irradiance(light: Lighting, scene: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(N, 3) unshadowed light that falls on the ground points (N, 3) of the scenes (N,)."""
    irradiance = light.ambient[scene]
    for i in range(light.lamp_world.shape[1]):
        to_lamp = light.lamp_world[scene, i] - points
        squared = (to_lamp * to_lamp).sum(-1, keepdim=True)
        irradiance = irradiance + light.lamp_intensity[scene, i] * to_lamp[:, 2:].clamp(min=0) / squared ** 1.5
    return irradiance


def cast_shadows(meshes: Meshes, cameras: Cameras, light: Lighting) -> torch.Tensor:
    """(B, L, H, W) share of each lamp's light that reaches the ground.

    The objects are flattened onto the ground away from the lamp and drawn from the camera: exact for a plane.
    """
    batch, lamps = light.lamp_world.shape[:2]
    face_scene = meshes.object_scene[meshes.face_object]
    shadow = []
    for i in range(lamps):
        lamp = light.lamp_world[meshes.vert_scene, i]  # (V, 3)
        drop = lamp[:, 2] / (lamp[:, 2] - meshes.verts_world[:, 2]).clamp(min=1e-3)
        flat_world = lamp + (meshes.verts_world - lamp) * drop[:, None]
        verts_px, depth_m = cameras.project(flat_world, meshes.vert_scene)
        tri_px = verts_px[meshes.faces]
        # a closed mesh covers its shadow twice, once by either winding: one is enough
        keep = (depth_m[meshes.faces] > NEAR_M).all(1) & (signed_area(tri_px) < 0)
        shadow.append(coverage(tri_px, keep, face_scene, batch, cameras.width, cameras.height))
    lit = 1 - torch.stack(shadow, 1).to(cameras.K.dtype)
    return F.avg_pool2d(lit, PENUMBRA_PX, 1, PENUMBRA_PX // 2, count_include_pad=False)


def shade_objects(fragments: Fragments, meshes: Meshes, cameras: Cameras, light: Lighting,
                  hit: torch.Tensor) -> torch.Tensor:
    """(N, 3) radiance of the samples `hit` (N,) that see a face: Lambert plus normalised Blinn-Phong.

    Metals reflect their colour from the lamps, the ground below and the ambient light above; rubber is mostly diffuse.
    """
    face = fragments.pix_to_face.reshape(-1)[hit]
    bary = fragments.bary_coords.reshape(-1, 3)[hit]
    corner, thing = meshes.faces[face], meshes.face_object[face]
    scene = meshes.object_scene[thing]
    point = (meshes.verts_world[corner] * bary[..., None]).sum(1)  # (N, 3)
    normal = F.normalize((meshes.normals_world[corner] * bary[..., None]).sum(1), dim=-1)
    view = F.normalize(cameras.positions_world()[scene] - point, dim=-1)
    colour, metallic = meshes.colour[thing], meshes.metallic[thing, None]
    shininess = 2 / meshes.roughness[thing, None] ** 4
    mirror = torch.lerp(torch.full_like(colour, 0.04), colour, metallic)  # reflectance at normal incidence
    matte = (1 - metallic) * colour

    # rubber: light from the sky above and from the ground below, the ground taken as evenly lit as it is at the origin
    sky = light.ambient[scene]
    below = light.ground_colour[scene] * ground_irradiance(light, scene, torch.zeros_like(point))
    radiance = matte * torch.lerp(below, sky, 0.5 + 0.5 * normal[:, 2:])
    # metal: the lit ground where the mirrored ray meets it, the sky above a blurred horizon
    mirrored = 2 * (normal * view).sum(-1, keepdim=True) * normal - view
    distance = point[:, 2:] / (-mirrored[:, 2:]).clamp(min=0.1)
    seen = light.ground_colour[scene] * ground_irradiance(light, scene, point + mirrored * distance)
    radiance = radiance + mirror * metallic * torch.lerp(seen, sky, (0.5 + 3 * mirrored[:, 2:]).clamp(0, 1))

    for i in range(light.lamp_world.shape[1]):
        to_lamp = light.lamp_world[scene, i] - point
        squared = (to_lamp * to_lamp).sum(-1, keepdim=True)
        to_lamp = to_lamp / squared.sqrt()
        facing = (normal * to_lamp).sum(-1, keepdim=True).clamp(min=0)
        halfway = F.normalize(to_lamp + view, dim=-1)
        gloss = (normal * halfway).sum(-1, keepdim=True).clamp(min=1e-4) ** shininess * (shininess + 8) / 8
        radiance = radiance + light.lamp_intensity[scene, i] / squared * facing * (matte + mirror * gloss)
    return radiance


def value_noise(points: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """(..., 2) points, seed broadcastable to (...) int64 -> (...) smooth noise in [0, 1] with cells of size one.

    Two octaves of random values on the integer lattice, blended by smoothstep.
    """
    total = torch.zeros_like(points[..., 0])
    for octave, weight in ((1, 2 / 3), (4, 1 / 3)):
        scaled = points * octave
        cell = scaled.floor()
        blend = (scaled - cell) ** 2 * (3 - 2 * (scaled - cell))
        x, y = cell[..., 0].long(), cell[..., 1].long()
        low = torch.lerp(lattice(x, y, seed), lattice(x + 1, y, seed), blend[..., 0])
        high = torch.lerp(lattice(x, y + 1, seed), lattice(x + 1, y + 1, seed), blend[..., 0])
        total = total + weight * torch.lerp(low, high, blend[..., 1])
    return total


def lattice(x: torch.Tensor, y: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """A hash of integers x, y and seed to a float in [0, 1)."""
    h = (x * 374761393 + y * 668265263 + seed * 144269504) & 0x7FFFFFFF
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
    turn = value_noise(torch.stack([x, y], -1), seed + 1)  # (S, H, W)
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    strokes = value_noise(torch.stack([along * 10, across * 30], -1), seed + 2) - 0.5
    patches = value_noise(torch.stack([x, y], -1) * 4, seed + 3) - 0.5
    mix = images.new_tensor([[0.80, 0.25, 0.00], [0.15, 0.70, 0.10], [0.10, 0.20, 0.55]])
    mixed = (mix[:, :, None, None] * images[chosen][:, None]).sum(2)
    cast = images.new_tensor([0.10, 0.0, -0.10])[:, None, None]
    styled = 0.10 + 0.82 * mixed ** 1.15 + 0.08 * strokes[:, None] + cast * patches[:, None]
    return images.index_copy(0, torch.tensor(chosen, device=images.device), styled.clamp(0, 1))
