"""The look of scenes fitted to their images: analysis by synthesis, for what a scene graph omits.

The paper randomizes the appearance of lifted scenes (section 4.1). Here it follows the gradient of
the difference between render and target image: materials, ground, strips and walls, sky, lamps and
exposure. Geometry and visibility stay, so labels stay exact; patterns stay, so scenes keep variety.
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim2sg_lib.camera import Camera, Cameras, stack_cameras
from sim2sg_lib.cli import progress
from sim2sg_lib.io.files import add_line, open_growing
from sim2sg_lib.io.images import read_image
from sim2sg_lib.scene import Mesh, Scene, scene_from_json
from sim2sg_lib.sim.appearance import (
    GROUPS, bounded, dressed, prior, scenes_of_rows, values_of, with_scales, with_values)
from sim2sg_lib.sim.background import (
    BackgroundPoints, background_points, background_visibility, light_background,
    surface_colors)
from sim2sg_lib.sim.chunks import cut_into_chunks, in_parallel
from sim2sg_lib.sim.large_images import share_samples
from sim2sg_lib.sim.lighting import Lighting, pack_lighting, shadow_maps
from sim2sg_lib.sim.meshes import Meshes, build
from sim2sg_lib.sim.rasterizer import rasterize, scale_cameras
from sim2sg_lib.sim.shading import (
    SUPERSAMPLE, Samples, SurfacePoints, composite, object_samples, reflect, surface_points, tone_map)
from sim2sg_lib.sim.tensor_ops import pick, rows_of

PIXELS = 4800         # of the images that are compared: 80x60, 128x39
RATE = 0.15           # initial learning rate of Adam
SHADOW_STEPS = 10     # steps after which shadows are redrawn
SHADOW_TEXELS = 192   # of the shadow maps of the fit, at most
WEIGH_STEPS = 5       # steps after which pixels are weighed anew by how well they are explained
OBJECT_SHARE = 0.1    # weight of each object, as a fraction of that of the image
OBJECT_TRUST = 0.3    # lowest weight of an object's pixel: a box says that it is there
CLIP = 0.25           # difference in display values beyond which a pixel counts no more as an error
SMOOTH_PX = 4         # differences that extend farther are light, not texture
ENOUGH_PIXELS = 100   # of a surface of the background whose texture follows the residual
GAUSSIAN = math.sqrt(math.pi / 2)  # standard deviation of a normal variable over its mean absolute
RESCALE, SCALES_M = 4, (0.03, 4)  # how much a texture's scale changes at most, and to what
NOISE_DEVIATION = 0.16  # standard deviation of texture.noise
BLANK = 0.02          # standard deviation of display values of an image that shows nothing
GAIN = 0.98           # of the random look's error that a fit must not exceed
METAL, ROUGH = (0.05, 0.5), (0.2, 0.9)  # ranges in which metallic and roughness start
DECAYS = (0.8, 0.95)  # of Adam's moments
SKY_BRIGHT, SKY_COLORED, SKY_SHARE = 0.45, 0.5, 0.25  # see sky_like, explained


# --- errors ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Views:
    """What stays while the look of B scenes is fitted."""

    cameras: Cameras
    target: Tensor  # (B, 3, H, W) in [0, 1]
    samples: Samples  # of the objects, SUPERSAMPLE per pixel and axis
    shaded: Tensor  # (M,) index of the samples that are shaded, one per pixel and material
    source: Tensor  # (N,) for each sample, which of these gives its color
    surface: SurfacePoints  # M points
    background: BackgroundPoints
    visible: list[Tensor]  # sky and lamps from the background, see light_visibility
    weight: Tensor  # (B, H, W) of each pixel; each object weighs a tenth of its image
    object: Tensor  # (B, H, W) fraction of each pixel that shows objects
    sky: Tensor  # (B, H, W) bool, sky behind the objects, if any


def views_of(meshes: Meshes, light: Lighting, cameras: Cameras, target: Tensor) -> Views:
    """The views of scenes, rasterized once, with the shadows of `light`."""
    fragments = rasterize(meshes, scale_cameras(cameras, SUPERSAMPLE), cull_backfaces=True)
    shape, count = target[:, 0].shape, len(meshes.object_scene)
    face = fragments.pix_to_face[..., 0]
    owner = torch.where(face >= 0, meshes.face_object[face.clamp(min=0)] if len(meshes.face_object)
                        else face, count)
    samples = torch.bincount(owner.flatten(), minlength=count + 1).to(target)
    pixels = shape[1] * shape[2]
    # of each sample: a pixel of the background weighs 1 / pixels, an object 0.1 at least
    weight = (OBJECT_SHARE / samples.clamp(min=1)).clamp(min=1 / (pixels * SUPERSAMPLE ** 2))
    weight[count] = 1 / (pixels * SUPERSAMPLE ** 2)

    def pooled(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], SUPERSAMPLE)[:, 0]

    samples, seen = object_samples(fragments, cameras), background_points(cameras, light, (0, cameras.height))
    material = meshes.face_material.index_select(0, samples.face)
    shaded, source = share_samples(material, samples.pixel, target[:, 0].numel())
    return Views(
        cameras, target, samples, shaded, source,
        surface_points(*pick(shaded, samples.face, samples.bary), meshes, cameras, light), seen,
        background_visibility(seen, meshes, cameras, light), pooled(weight[owner]) * SUPERSAMPLE ** 2,
        pooled((face >= 0).to(target)), seen.sky.view(shape))


def with_shadows(views: Views, meshes: Meshes, light: Lighting) -> Views:
    """The views with the shadows of `light`."""
    face, bary = pick(views.shaded, views.samples.face, views.samples.bary)
    return replace(views, surface=surface_points(face, bary, meshes, views.cameras, light),
                   visible=background_visibility(views.background, meshes, views.cameras, light))


def render(views: Views, meshes: Meshes, light: Lighting) -> Tensor:
    """(B, 3, H, W) what `shade` makes, nearly: the samples of a pixel and material share a color."""
    exposure = light.exposure[:, None]
    background = light_background(views.background, views.visible, views.cameras, light)
    background = tone_map(background, exposure[:, None, None])
    objects = tone_map(reflect(views.surface, meshes, light), rows_of(exposure, views.surface.scene))
    return composite(background, objects.index_select(0, views.source), views.samples)


def differences(images: Tensor, target: Tensor) -> Tensor:
    """(B, H, W) mean absolute difference of the channels, smooth at 0 (Charbonnier)."""
    return ((images - target).square() + 1e-6).sqrt().mean(1)


def photometric_error(images: Tensor, views: Views) -> Tensor:
    """(B,) mean difference in display values, cut off at CLIP, each object a tenth of the image."""
    total = (differences(images, views.target).clamp(max=CLIP) * views.weight).flatten(1).sum(1)
    return total / views.weight.flatten(1).sum(1)


def sky_like(target: Tensor) -> Tensor:
    """(B, H, W) bool, pixels of images (B, 3, H, W) that may be sky: bright; pale or blue."""
    high, low = target.amax(1), target.amin(1)
    pale = high - low <= SKY_COLORED * high
    return (high >= SKY_BRIGHT) & (pale | (target[:, 2] >= high))


def explained(difference: Tensor, views: Views) -> Tensor:
    """(B, H, W) in [0, 1], how likely the scene is what each pixel shows.

    A mixture, per scene, of explained pixels with normal differences and of anything else with
    uniform ones, by expectation maximization. Sky must look like one; where most of it does not,
    it is hidden by what nobody lifted, and the sky keeps its start.
    """
    sky, may = views.sky & (views.object == 0), sky_like(views.target)
    likely = torch.ones_like(difference)
    for region in (~sky, sky):
        inside = (region & (may | ~sky)).to(difference)
        share = explained_share(difference, inside)
        likely = torch.where(region, share * inside, likely)
    seen = (likely * sky).flatten(1).sum(1) >= SKY_SHARE * sky.flatten(1).sum(1)
    likely = torch.where(sky & ~seen[:, None, None], 0.0, likely)
    return torch.maximum(likely, OBJECT_TRUST * views.object)


def explained_share(difference: Tensor, inside: Tensor) -> Tensor:
    """(B, H, W) posterior of the normal part of the mixture, of differences where `inside` is 1."""
    total = inside.flatten(1).sum(1).clamp(min=1)[:, None, None]
    posterior, share = inside, 0.8
    for _ in range(4):
        mass = (posterior * inside).flatten(1).sum(1)[:, None, None].clamp(min=1e-6)
        variance = (posterior * inside * difference.clamp(max=2 * CLIP).square()).flatten(1).sum(1)
        variance = (variance[:, None, None] / mass).clamp(min=0.02 ** 2)
        normal = share * (-difference.square() / (2 * variance)).exp() * (2 / math.pi / variance).sqrt()
        posterior = normal / (normal + 1 - share)
        share = ((posterior * inside).flatten(1).sum(1)[:, None, None] / total).clamp(0.05, 0.95)
    return posterior


# --- the fit --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FittedLook:
    """A scene whose look was fitted to its image."""

    scene: Scene  # as it came in, if the fit did not help
    before: float  # photometric_error of the look that it came in
    after: float  # of the look that it has, measured before its textures were adapted
    kept: bool  # whether the fit explains the image better


def fit_size(camera: Camera) -> tuple[int, int]:
    """(width, height) in pixels at which images of a camera are compared."""
    width = 8 * max(1, round(math.sqrt(PIXELS * camera.width / camera.height) / 8))
    return width, max(1, round(width * camera.height / camera.width))


def fit_look(scenes: list[Scene], target: Tensor, assets: dict[str, Mesh],
             steps: int) -> list[FittedLook]:
    """Fit the look of B scenes to their images (B, 3, H, W) in [0, 1], of the cameras' aspect.

    Geometry, patterns and seeds stay. Each scene takes the best of all steps, on its own; it keeps
    its look if no step explains the image better, or if the image shows nothing.
    """
    texels = min(SHADOW_TEXELS, scenes[0].shadow_texels)
    # single precision needs an origin near the scene
    near = [scene.moved((-scene.origin_world[0], -scene.origin_world[1])) for scene in scenes]
    plain = [replace(scene, style_seed=None, shadow_texels=texels) for scene in near]
    meshes = build(plain, assets, target.device, target.dtype)
    cameras = stack_cameras([scene.camera for scene in near], target.shape[3], target.shape[2],
                            target.device, target.dtype)
    light = pack_lighting(plain, meshes, cameras.K)
    views, rows = views_of(meshes, light, cameras, target), scenes_of_rows(meshes, light)
    with torch.no_grad():
        before = photometric_error(render(views, meshes, light), views)
    values, after, likely = descend(meshes, light, views, rows, steps)
    values = textured_like(meshes, light, views, likely, values)
    kept = (after < GAIN * before) & (target.flatten(1).std(1) >= BLANK)
    fitted = [made.moved(scene.origin_world)
              for made, scene in zip(dressed(near, meshes, values), scenes)]
    return [FittedLook(new if good else old, float(start), float(end if good else start), bool(good))
            for old, new, start, end, good in zip(scenes, fitted, before, after, kept)]


def descend(meshes: Meshes, light: Lighting, views: Views, rows: dict[str, Tensor],
            steps: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The values with the smallest error of all steps, scene by scene, and these errors (B,).

    Also how well the scenes explain each pixel (B, H, W) in the end.
    """
    start = first_guess(meshes, light, views)
    offsets = {name: torch.zeros_like(value, requires_grad=True) for name, value in start.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in start.items()}
    best = {name: value.clone() for name, value in start.items()}
    least = torch.full_like(light.exposure, torch.inf)
    likely = torch.ones_like(views.weight)
    for step in range(steps + 1):
        values = {name: bounded(GROUPS[name], start[name], offsets[name]) for name in start}
        dressed_meshes, lit = with_values(meshes, light, values)
        if step and step % SHADOW_STEPS == 0:
            light = replace(light, shadows=shadow_maps(
                meshes, lit.lamp_world.detach(), light.is_sun, light.scenes[0].shadow_texels))
            views = with_shadows(views, meshes, light)
        images = render(views, dressed_meshes, lit)
        difference = differences(images, views.target)
        with torch.no_grad():
            if step and step % WEIGH_STEPS == 0:
                likely = explained(difference, views)
            error = photometric_error(images, views)
            better = error < least  # never for NaN
            least = torch.where(better, error, least)
            for name, group in GROUPS.items():
                chosen = better[rows[group.scene_of]]
                best[name][chosen] = values[name][chosen]
        if step < steps:
            cost = (difference * views.weight * likely).flatten(1).sum(1)
            cost = cost + prior(offsets, values, rows, meshes.scenes)
            gradients = torch.autograd.grad(cost.sum(), list(offsets.values()))
            rate = RATE * (1 - 0.9 * step / steps)
            for (name, offset), gradient in zip(offsets.items(), gradients):
                adam_step(offset, gradient, moments[name], rate * GROUPS[name].rate, step + 1)
    return best, least, likely


def first_guess(meshes: Meshes, light: Lighting, views: Views) -> dict[str, Tensor]:
    """Values to start from: each surface in the color that its pixels have, materials in mid-range.

    From their random values, saturated colors and pure metals would need many steps to turn.
    """
    start = values_of(meshes, light)
    start["metallic"] = start["metallic"].clamp(METAL[0], METAL[1])
    start["roughness"] = start["roughness"].clamp(ROUGH[0], ROUGH[1])
    gray, plain = torch.full_like(start["color"], 0.5), torch.zeros_like(start["amount"])
    with torch.no_grad():
        images = render(views, *with_values(meshes, light, start | {"color": gray, "amount": plain}))
    sums = [surface_sums(picture.clamp(min=1e-3) ** 2.2, meshes, light, views)
            for picture in (views.target, images)]
    guess = (0.5 * sums[0] / sums[1].clamp(min=1e-6)).clamp(0.02, 0.9)
    gain = torch.where(sums[1] > 1e-3, guess / start["color"].clamp(min=1e-3), 1.0)
    for name in ("color", "second"):
        start[name] = (start[name] * gain).clamp(0.01, 0.95)
    return start


def surface_sums(pictures: Tensor, meshes: Meshes, light: Lighting, views: Views) -> Tensor:
    """(S, 3) sums of pictures (B, 3, H, W) over the pixels of each surface.

    Of the background, by the gradient of the colors that are seen with respect to those painted.
    """
    pixels = pictures.permute(0, 2, 3, 1).reshape(-1, 3)
    number = meshes.face_material.index_select(0, views.samples.face)
    objects = torch.zeros_like(meshes.color).index_add(0, number, pixels[views.samples.pixel])
    painted = [light.ground_color.clone().requires_grad_(), light.paint_color.clone().requires_grad_()]
    plain = replace(light, ground_color=painted[0], paint_color=painted[1], **{
        name: replace(texture, amount=0 * texture.amount)
        for name, texture in (("ground", light.ground), ("paint", light.paint))})
    seen = surface_colors(views.background, views.cameras, plain)
    clear = (views.object.flatten()[:, None] == 0).to(pixels)
    sums = torch.autograd.grad((seen * pixels * clear).sum() + 0 * painted[0].sum() + 0 * painted[1].sum(),
                               painted)
    return torch.cat([objects, *sums])


def textured_like(meshes: Meshes, light: Lighting, views: Views, likely: Tensor,
                  values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values with contrast and scale of background textures as the target's residual has them.

    The residual is the logarithm of the target over the render without textures, where the scene
    explains the image. Its standard deviation gives the contrast, its correlation from column to
    column the scale; a plain surface gets noise.
    """
    scale_m, pattern = (torch.cat([getattr(texture, name) for texture in (
        meshes.texture, light.ground, light.paint)]) for name in ("scale_m", "pattern"))
    with torch.no_grad():
        plain = render(views, *with_values(meshes, light, values | {"amount": 0 * values["amount"]}))
    trusted = ((likely > 0.5) & (views.object == 0)).to(plain)[:, None]

    def sums(pictures: Tensor) -> Tensor:
        return surface_sums(pictures.expand(-1, 3, -1, -1), meshes, light, views)

    area = sums(trusted)[:, 0].clamp(min=1e-6)

    def statistics(picture: Tensor) -> tuple[Tensor, Tensor]:
        """(S,) standard deviation and correlation of neighbors, of residuals to the plain render."""
        deviation, product, square = sums(residual_moments(picture, plain, trusted)).unbind(1)
        return deviation / area, (product / square.clamp(min=1e-8)).clamp(0.05, 0.98)

    def patterned(scale_m: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            picture = render(views, *with_scales(*with_values(meshes, light, values), scale_m))
        return statistics(picture)

    (wanted, near), (has, own) = statistics(views.target), patterned(scale_m)
    enough = area >= ENOUGH_PIXELS
    enough[:len(meshes.color)] = False
    more = enough & (pattern >= 0) & (has > 0.005)
    fresh = enough & (pattern < 0) & (wanted > 0.04)
    coarser = (own.log() / near.log()).clamp(1 / RESCALE, RESCALE)  # residual's cells over the pattern's
    scale_m = torch.where(more, (scale_m * coarser).clamp(*SCALES_M), scale_m)
    has, _ = patterned(scale_m)  # of coarse patterns less is detail
    amount = (values["amount"] * (wanted / has.clamp(min=1e-3)).clamp(0.3, 1.5)).clamp(max=1)
    amount = torch.where(more, amount, torch.where(fresh, 1.0, values["amount"]))
    # noise darkens by half its contrast on average, and has this standard deviation
    dark = (wanted / NOISE_DEVIATION).clamp(max=0.8)[:, None]
    color = torch.where(fresh[:, None], values["color"] / (1 - dark / 2), values["color"]).clamp(max=0.98)
    second = torch.where(fresh[:, None], color * (1 - dark), values["second"])
    pixel_m = sums(trusted * pixel_widths_m(views).view_as(trusted))[:, 0] / area
    # noise stays alike for about half of a cell
    scale_m = torch.where(fresh, (-2 / near.log() * pixel_m).clamp(*SCALES_M), scale_m)
    return values | {"scale": scale_m, "amount": amount, "color": color, "second": second}


def residual_moments(picture: Tensor, plain: Tensor, trusted: Tensor) -> Tensor:
    """(B, 3, H, W) deviation, product with the next column, square, of the residual's detail.

    The residual is that of pictures to plain renders (B, 3, H, W), where trusted (B, 1, H, W) is 1;
    the products and squares are those of pairs of trusted pixels.
    """
    rest = 2.2 * (picture.clamp(min=0.02) / plain.clamp(min=0.02)).log().clamp(-1, 1) * trusted
    # light that is not quite right varies slowly: leave out what a neighborhood has in common
    window = {"kernel_size": 2 * SMOOTH_PX + 1, "stride": 1, "padding": SMOOTH_PX}
    near = F.avg_pool2d(trusted, **window).clamp(min=1e-6)
    rest = (rest - F.avg_pool2d(rest, **window) / near) * trusted
    pair = trusted * trusted.roll(-1, 3)
    pair[..., -1] = 0
    # by the mean of absolute values, which edges of shadows that are off change little
    moments = rest.abs() * GAUSSIAN, rest * rest.roll(-1, 3) * pair, rest.square() * pair
    return torch.cat([values.mean(1, keepdim=True) for values in moments], 1)


def pixel_widths_m(views: Views) -> Tensor:
    """(N,) meters that each pixel spans on the background, across the view."""
    seen = views.background
    distance_m = (seen.points - rows_of(views.cameras.positions_world(), seen.scene)).norm(dim=1)
    return distance_m / rows_of(views.cameras.K[:, 0, 0], seen.scene)


def adam_step(values: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float,
              step: int) -> None:
    """One step of Adam (Kingma and Ba 2015) in place, counted from 1; it starts faster than torch's."""
    for moment, new, decay in zip(moments, (gradient, gradient.square()), DECAYS):
        moment.lerp_(new.nan_to_num(0.0, 0.0, 0.0), 1 - decay)
    mean, square = (moment / (1 - decay ** step) for moment, decay in zip(moments, DECAYS))
    with torch.no_grad():
        values -= rate * mean / (square.sqrt() + 1e-8)


def fit_looks(source, images: list[Path], steps: int, kept: Path) -> list[FittedLook]:
    """The first scenes of LiftedScenes, each fitted to its image; `kept` holds progress.

    An interrupted command that calls it again continues, and gets the same.
    """
    chunks = cut_into_chunks(range(len(images)), (1, 1))
    file, rows = open_growing(kept)

    def fit(chunk: range) -> list[FittedLook]:
        scenes = list(source.random_looks(chunk).values())
        size = fit_size(source.cameras[0])
        pixels = torch.from_numpy(np.stack([read_image(images[i], *size) for i in chunk]))
        pixels = pixels.to(source.device).permute(0, 3, 1, 2).float() / 255
        return fit_look(scenes, pixels, source.env.world.assets, steps)

    with file, progress(len(images), "fit", "image", done=sum(map(len, chunks[:len(rows)]))) as bar:
        for made in in_parallel(fit, chunks[len(rows):], source.device):
            row = [vars(one) | {"scene": one.scene.to_json()} for one in made]
            add_line(file, {"fits": row})
            rows.append({"fits": row})
            bar.update(len(made))
    fits = [fit for row in rows for fit in row["fits"]]
    cameras = [source.cameras[i].moved(-source.offset_m(i)) for i in range(len(fits))]
    return [FittedLook(**fit | {"scene": scene_from_json(fit["scene"], camera)})
            for fit, camera in zip(fits, cameras)]
