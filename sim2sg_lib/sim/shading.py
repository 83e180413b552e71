"""From fragments to an image: materials of the objects, tone and style, in pure torch.

Every sum runs over a fixed number of terms, so that a scene renders to the same bytes alone and in
any batch. background.py shades what is behind the objects.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Cameras
from sim2sg_lib.scene import Scene
from sim2sg_lib.sim.background import shade_background
from sim2sg_lib.sim.lighting import (
    Lighting, ground_light, incoming, pack_lighting, shadow_visibility, sky)
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.rasterizer import Fragments
from sim2sg_lib.sim.soft import soft_blend
from sim2sg_lib.sim.tensor_ops import dot, mix, pick, rows_of
from sim2sg_lib.sim.texture import noise, textured

SUPERSAMPLE = 2    # samples per pixel and axis
BLOCK = 1 << 15    # samples shaded at once: their intermediate values stay in the processor's cache
DIELECTRIC = 0.04  # specular reflectance of non-metals at normal incidence
SHOULDER = 0.8     # display value from which highlights are compressed, so that none clips


# --- the image ------------------------------------------------------------------------------------

def shade(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene],
          light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images in [0, 1] at the size of the cameras.

    fragments: finer by a whole factor. Objects are shaded per sample, the background, which is
    smooth, per pixel. Gradients reach lamps, sky, ground and exposure of a given `light`.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    background = tone_map(shade_background(meshes, cameras, light), light.exposure[:, None, None, None])
    samples = object_samples(fragments, cameras)
    images = composite(background, shade_samples(samples, meshes, cameras, light), samples)
    return stylize(images, [scene.style_seed for scene in scenes])


@dataclass(frozen=True)
class Samples:
    """N samples that see an object."""

    face: Tensor  # (N,) int64
    bary: Tensor  # (N, 3) barycentrics
    scene: Tensor  # (N,) int64
    pixel: Tensor  # (N,) int64 among all B * H * W
    per_pixel: int  # samples per pixel, those that see no object included

    def select(self, index: Tensor) -> "Samples":
        """The samples at an index (M,)."""
        return Samples(*pick(index, self.face, self.bary, self.scene, self.pixel), self.per_pixel)


def object_samples(fragments: Fragments, cameras: Cameras) -> Samples:
    """The samples of fragments, finer than the cameras by a whole factor, that see a face."""
    _, fine_height, fine_width, _ = fragments.pix_to_face.shape
    fine, nearest = fine_width // cameras.width, fragments.pix_to_face[..., 0].reshape(-1)
    hit = torch.nonzero(nearest >= 0)[:, 0]
    face, bary = pick(hit, nearest, fragments.bary_coords[..., 0, :].reshape(-1, 3))
    row, column = hit // fine_width % fine_height // fine, hit % fine_width // fine
    scene = hit // (fine_height * fine_width)
    pixel = (scene * cameras.height + row) * cameras.width + column
    return Samples(face, bary, scene, pixel, fine ** 2)


def shade_samples(samples: Samples, meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(N, 3) display values of objects at samples."""
    columns = samples.face, samples.bary, samples.scene
    return torch.cat([
        tone_map(shade_objects(face, bary, meshes, cameras, light), rows_of(light.exposure[:, None], scene))
        for face, bary, scene in zip(*(column.split(BLOCK) for column in columns))])


def composite(background: Tensor, objects: Tensor, samples: Samples) -> Tensor:
    """Average samples (N, 3) over background pixels (B, H, W, 3): (B, 3, H, W).

    Both are display values: averaging before tone mapping leaves jagged edges at highlights.
    """
    pixels = background.view(-1, 3)
    difference = (objects - pixels.index_select(0, samples.pixel)) / samples.per_pixel
    return pixels.index_add(0, samples.pixel, difference).view_as(background).permute(0, 3, 1, 2)


def shade_soft(fragments: Fragments, meshes: Meshes, cameras: Cameras, scenes: list[Scene], sigma: float,
               gamma: float, light: Lighting | None = None) -> Tensor:
    """(B, 3, H, W) images in which pixels blend their K faces and the background (SoftRas, eq. 2).

    fragments: at the size of the cameras. Not stylized. Gradients reach poses, materials, textures,
    cameras, and lamps, sky, ground and exposure of a given `light`; shadow maps are constants.
    """
    light = light or pack_lighting(scenes, meshes, cameras.K)
    hit = torch.nonzero(fragments.pix_to_face.reshape(-1) >= 0)[:, 0]
    face, bary = fragments.pix_to_face.reshape(-1)[hit], fragments.bary_coords.reshape(-1, 3)[hit]
    colors = fragments.zbuf.new_zeros(fragments.pix_to_face.numel(), 3)
    colors = colors.index_put((hit,), shade_objects(face, bary, meshes, cameras, light))
    colors = colors.view(*fragments.pix_to_face.shape, 3)
    blended = soft_blend(colors, fragments, shade_background(meshes, cameras, light), sigma, gamma)
    return tone_map(blended, light.exposure[:, None, None, None]).permute(0, 3, 1, 2)


def tone_map(radiance: Tensor, exposure: Tensor) -> Tensor:
    """Linear radiance (..., 3) and exposure, broadcastable to it -> display values in [0, 1]."""
    value = (radiance * exposure).clamp(min=1e-6) ** (1 / 2.2)
    # beyond SHOULDER, 1 is approached exponentially
    rest = 1 - SHOULDER
    compressed = 1 - rest * torch.exp((SHOULDER - value).clamp(max=0) / rest)
    return torch.where(value < SHOULDER, value, compressed)


# --- materials ------------------------------------------------------------------------------------

def shade_objects(face: Tensor, bary: Tensor, meshes: Meshes, cameras: Cameras, light: Lighting) -> Tensor:
    """(N, 3) radiance of points on faces (N,) at barycentrics (N, 3)."""
    return reflect(surface_points(face, bary, meshes, cameras, light), meshes, light)


@dataclass(frozen=True)
class SurfacePoints:
    """N points on objects; all that does not depend on materials and on the strength of light."""

    scene: Tensor  # (N,) int64
    material: Tensor  # (N,) int64
    point: Tensor  # (N, 3) in the world
    normal: Tensor  # (N, 3)
    view: Tensor  # (N, 3) unit directions to the camera
    point_object: Tensor  # (N, 3) in the frame of the object, meters
    visible: list[Tensor]  # (N,) of each lamp


def surface_points(face: Tensor, bary: Tensor, meshes: Meshes, cameras: Cameras,
                   light: Lighting) -> SurfacePoints:
    """The points on faces (N,) at barycentrics (N, 3)."""
    corner, material_index, object_index = pick(face, meshes.faces, meshes.face_material, meshes.face_object)
    scene = meshes.object_scene.index_select(0, object_index)

    def interpolate(values):
        corners = values.index_select(0, corner.view(-1)).view(-1, 3, 3)
        first, second, third = (corners * bary[..., None]).unbind(1)
        return first + second + third

    point = interpolate(meshes.verts_world)
    normal = F.normalize(interpolate(meshes.normals_world), dim=-1)
    view = F.normalize(rows_of(cameras.positions_world(), scene) - point, dim=-1)
    visible = [shadow_visibility(shadow, scene, point) for shadow in light.shadows]
    return SurfacePoints(scene, material_index, point, normal, view, interpolate(meshes.verts_object),
                         visible)


def reflect(seen: SurfacePoints, meshes: Meshes, light: Lighting) -> Tensor:
    """(N, 3) radiance of points on objects."""
    scene, point, normal, view = seen.scene, seen.point, seen.normal, seen.view
    color, metallic, roughness = pick(seen.material, meshes.color, meshes.metallic[:, None],
                                      meshes.roughness[:, None])
    color = textured(color, meshes.texture, seen.material, seen.point_object)
    diffuse_albedo = (1 - metallic) * color
    specular_f0 = mix(torch.full_like(color, DIELECTRIC), color, metallic)

    radiance = ambient_light(light, scene, point, normal, view, diffuse_albedo, specular_f0, roughness)
    for i in range(light.lamp_world.shape[1]):
        to_lamp, strength = incoming(light, i, scene, point)
        facing = dot(normal, to_lamp).clamp(min=0)
        reflected = diffuse_albedo + ggx(normal, view, to_lamp, specular_f0, roughness)
        radiance = radiance + strength * facing * seen.visible[i][:, None] * reflected
    return radiance


def ambient_light(light: Lighting, scene: Tensor, point: Tensor, normal: Tensor, view: Tensor,
                  diffuse_albedo: Tensor, specular_f0: Tensor, roughness: Tensor) -> Tensor:
    """(N, 3) reflected radiance of sky and ground: diffuse, and specular along the mirrored ray."""
    above = 0.5 + 0.5 * normal[:, 2:]
    scenes = torch.arange(len(light.scenes), device=scene.device)
    at_origin = ground_light(light, scenes, point.new_zeros(len(scenes), 3))
    sky_mean = rows_of(light.zenith + light.horizon, scene) / 2
    diffuse = diffuse_albedo * mix(rows_of(at_origin, scene), sky_mean, above)
    mirrored = 2 * dot(normal, view) * normal - view
    distance = point[:, 2:] / (-mirrored[:, 2:]).clamp(min=0.1)
    below = ground_light(light, scene, point + mirrored * distance)
    # rough surfaces see a blurred horizon
    upward = (0.5 + mirrored[:, 2:] / (0.2 + 2 * roughness ** 2)).clamp(0, 1)
    return diffuse + specular_f0 * mix(below, sky(light, scene, mirrored), upward)


def ggx(normal: Tensor, view: Tensor, to_lamp: Tensor, specular_f0: Tensor, roughness: Tensor) -> Tensor:
    """(N, 3) specular reflectance: GGX (Walter et al. 2007), Smith's shadowing, Schlick's Fresnel.

    Times pi, since irradiance is divided by pi here (see lighting.py).
    """
    halfway = F.normalize(to_lamp + view, dim=-1)

    def cosine(a, b):
        return dot(a, b).clamp(min=1e-4)

    alpha = roughness ** 2
    facets = alpha ** 2 / (cosine(normal, halfway) ** 2 * (alpha ** 2 - 1) + 1) ** 2
    k = (roughness + 1) ** 2 / 8

    def unshadowed(direction):
        return 1 / (cosine(normal, direction) * (1 - k) + k)

    fresnel = specular_f0 + (1 - specular_f0) * (1 - cosine(view, halfway)) ** 5
    return facets * unshadowed(view) * unshadowed(to_lamp) * fresnel / 4


# --- style ----------------------------------------------------------------------------------------

def stylize(images: Tensor, seeds: list[int | None]) -> Tensor:
    """Procedural stylization of (B, 3, H, W) finished images, one seed or None each.

    Instead of the paper's neural style transfer, whose weights cannot be shipped: mixed channels
    with a warm cast, a flattened tone curve, and brush-like noise along a slowly turning direction.
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
