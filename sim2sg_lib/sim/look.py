"""The look of scenes fitted to their images: analysis by synthesis, for what a scene graph omits.

The paper randomizes the appearance of lifted scenes (section 4.1). Here it follows the gradient of
the difference between render and target image: materials, ground, strips and walls, sky, lamps and
exposure. Geometry and visibility stay, so labels stay exact; patterns stay, so scenes keep variety.
"""
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sim2sg_lib.camera import Camera, Cameras, stack_cameras
from sim2sg_lib.scene import Material, Mesh, Scene
from sim2sg_lib.sim.background import (
    BackgroundPoints, background_points, background_visibility, light_background)
from sim2sg_lib.sim.large_images import share_samples
from sim2sg_lib.sim.lighting import Lighting, pack_lighting, shadow_maps
from sim2sg_lib.sim.meshes import Meshes, build
from sim2sg_lib.sim.rasterizer import rasterize, scale_cameras
from sim2sg_lib.sim.shading import (
    SUPERSAMPLE, Samples, SurfacePoints, composite, object_samples, reflect, surface_points, tone_map)
from sim2sg_lib.sim.tensor_ops import pick, rows_of

STEPS = 40            # default number of gradient steps
PIXELS = 4800         # of the images that are compared: 80x60, 128x39
RATE = 0.15           # initial learning rate of Adam
SHADOW_STEPS = 10     # steps after which shadows are redrawn
SHADOW_TEXELS = 192   # of the shadow maps of the fit, at most
WEIGH_STEPS = 5       # steps after which pixels are weighed anew by how well they are explained
OBJECT_SHARE = 0.1    # weight of each object, as a fraction of that of the image
OBJECT_TRUST = 0.3    # lowest weight of an object's pixel: a box says that it is there
CLIP = 0.25           # difference in display values beyond which a pixel counts no more as an error
BLANK = 0.02          # standard deviation of display values of an image that shows nothing
GAIN = 0.98           # of the random look's error that a fit must not exceed
SKY_BRIGHT, SKY_COLORED, SKY_SHARE = 0.45, 0.5, 0.25  # see sky_like, explained


# --- parameters -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """One group of parameters: how it is bounded, how fast it moves, what pulls it to its start."""

    kind: str  # "logit": between low and high; "log": positive; "place": relative to its distance
    scene_of: str  # what its rows belong to: "material", "surface" or "scene"
    rate: float = 1.0  # factor on RATE
    prior: float = 0.0  # weight of the squared distance from the start, in units of the parameter
    low: float = 0.0
    high: float = 1.0


# surfaces: the materials of all objects, then ground, strips and walls of all scenes
GROUPS = {
    "color": Group("logit", "surface", prior=1e-4, low=0.005, high=0.98),
    "second": Group("logit", "surface", 0.5, 0.01, 0.005, 0.98),  # color of the texture
    "amount": Group("logit", "surface", 0.5, 0.01),  # of the texture
    "metallic": Group("logit", "material", prior=1e-3),
    "roughness": Group("logit", "material", prior=1e-3, low=0.05),
    "zenith": Group("log", "scene", 0.5, 0.01),
    "horizon": Group("log", "scene", 0.5, 0.01),
    "strength": Group("log", "scene", 0.5, 0.01),  # of each lamp
    "tint": Group("log", "scene", 0.2, 0.1),  # of each lamp, linear RGB
    "place": Group("place", "scene", 0.2, 0.1),  # of each lamp; of a sun, its direction
    "exposure": Group("log", "scene", 0.3, 0.02)}
METALLIC_PRIOR = 0.01  # most things are no metal
METAL, ROUGH = (0.05, 0.5), (0.2, 0.9)  # ranges in which metallic and roughness start
DECAYS = (0.8, 0.95)  # of Adam's moments


def bounded(group: Group, start: Tensor, offset: Tensor) -> Tensor:
    """The values of a group, `offset` from their start; 0 leaves them, except at the bounds."""
    if group.kind == "log":
        return start * offset.exp()
    if group.kind == "place":
        place = start + offset * start.norm(dim=-1, keepdim=True)
        lowest = 0.1 * start[..., 2:].clamp(min=0)  # lamps and suns do not set
        return torch.cat([place[..., :2], place[..., 2:].maximum(lowest)], -1)
    span = group.high - group.low
    fraction = ((start - group.low) / span).clamp(1e-3, 1 - 1e-3)
    return group.low + span * torch.sigmoid(fraction.logit() + offset)


def values_of(meshes: Meshes, light: Lighting) -> dict[str, Tensor]:
    """The parameters of a batch of scenes by group."""
    textures = meshes.texture, light.ground, light.paint
    return {"color": torch.cat([meshes.color, light.ground_color, light.paint_color]),
            "second": torch.cat([texture.color for texture in textures]),
            "amount": torch.cat([texture.amount for texture in textures]),
            "metallic": meshes.metallic, "roughness": meshes.roughness,
            "zenith": light.zenith, "horizon": light.horizon,
            "strength": torch.ones_like(light.intensity[..., 0]), "tint": light.intensity,
            "place": light.lamp_world, "exposure": light.exposure}


def with_values(meshes: Meshes, light: Lighting, values: dict[str, Tensor]) -> tuple[Meshes, Lighting]:
    """Meshes and light with other values of the parameters; gradients reach these."""
    counts = len(meshes.color), len(light.ground_color), len(light.paint_color)
    color, second, amount = (values[name].split(counts) for name in ("color", "second", "amount"))
    textures = [replace(texture, color=row, amount=weight) for texture, row, weight
                in zip((meshes.texture, light.ground, light.paint), second, amount)]
    meshes = replace(meshes, color=color[0], texture=textures[0], metallic=values["metallic"],
                     roughness=values["roughness"])
    light = replace(
        light, ground_color=color[1], ground=textures[1], paint_color=color[2], paint=textures[2],
        zenith=values["zenith"], horizon=values["horizon"], lamp_world=values["place"],
        intensity=values["strength"][..., None] * values["tint"], exposure=values["exposure"])
    return meshes, light


def scenes_of_rows(meshes: Meshes, light: Lighting) -> dict[str, Tensor]:
    """"material", "surface", "scene" -> the scene (N,) int64 of each row of such a group."""
    scene = torch.arange(meshes.scenes, device=meshes.color.device)
    counts = [1 + len(o.part_materials) for one in light.scenes for o in one.objects]
    counts = torch.tensor(counts, dtype=torch.int64, device=scene.device)
    material = meshes.object_scene.repeat_interleave(counts)
    painted = torch.tensor(light.first_paint, device=scene.device).diff()
    return {"material": material, "scene": scene,
            "surface": torch.cat([material, scene, scene.repeat_interleave(painted)])}


def prior(offsets: dict[str, Tensor], values: dict[str, Tensor], rows: dict[str, Tensor],
          scenes: int) -> Tensor:
    """(B,) cost of leaving the start, and of metal."""
    total = values["exposure"].new_zeros(scenes)
    for name, group in GROUPS.items():
        cost = group.prior * offsets[name].square()
        cost = cost + METALLIC_PRIOR * values[name] if name == "metallic" else cost
        total = total.index_add(0, rows[group.scene_of], cost.flatten(1).sum(1) if cost.dim() > 1 else cost)
    return total


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
        return torch.nn.functional.avg_pool2d(values[:, None], SUPERSAMPLE)[:, 0]

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
    after: float  # of the look that it has
    kept: bool  # whether the fit explains the image better


def fit_size(camera: Camera) -> tuple[int, int]:
    """(width, height) in pixels at which images of a camera are compared."""
    width = 8 * max(1, round(math.sqrt(PIXELS * camera.width / camera.height) / 8))
    return width, max(1, round(width * camera.height / camera.width))


def fit_look(scenes: list[Scene], target: Tensor, assets: dict[str, Mesh],
             steps: int = STEPS) -> list[FittedLook]:
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
    values, after = descend(meshes, light, views, rows, steps)
    kept = (after < GAIN * before) & (target.flatten(1).std(1) >= BLANK)
    fitted = [made.moved(scene.origin_world)
              for made, scene in zip(dressed(near, meshes, values), scenes)]
    return [FittedLook(new if good else old, float(start), float(end if good else start), bool(good))
            for old, new, start, end, good in zip(scenes, fitted, before, after, kept)]


def descend(meshes: Meshes, light: Lighting, views: Views, rows: dict[str, Tensor],
            steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """The values with the smallest error of all steps, scene by scene, and these errors (B,)."""
    start = first_guess(meshes, light, views)
    offsets = {name: torch.zeros_like(value, requires_grad=True) for name, value in start.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in start.items()}
    best = {name: value.clone() for name, value in start.items()}
    least = best_error = torch.full_like(light.exposure, torch.inf)
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
            best_error = least
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
    return best, best_error


def first_guess(meshes: Meshes, light: Lighting, views: Views) -> dict[str, Tensor]:
    """Values to start from: each material in the color that its pixels have, materials in mid-range.

    From their random values, saturated colors and pure metals would need many steps to turn.
    """
    start = values_of(meshes, light)
    start["metallic"] = start["metallic"].clamp(METAL[0], METAL[1])
    start["roughness"] = start["roughness"].clamp(ROUGH[0], ROUGH[1])
    if len(meshes.color) == 0:
        return start
    neutral = torch.full_like(meshes.color, 0.5)
    plain, lit = with_values(meshes, light, start | {
        "color": torch.cat([neutral, start["color"][len(neutral):]]),
        "amount": torch.cat([0 * neutral[:, 0], start["amount"][len(neutral):]])})
    with torch.no_grad():
        images = render(views, plain, lit)
    number = meshes.face_material[views.samples.face]
    sums = [torch.zeros_like(neutral).index_add(
        0, number, picture.permute(0, 2, 3, 1).reshape(-1, 3)[views.samples.pixel].clamp(min=1e-3) ** 2.2)
        for picture in (views.target, images)]
    guess = (0.5 * sums[0] / sums[1].clamp(min=1e-6)).clamp(0.02, 0.9)
    gain = torch.where(sums[1] > 0, guess / start["color"][:len(guess)], 1.0)
    for name in ("color", "second"):
        start[name] = torch.cat([(start[name][:len(guess)] * gain).clamp(0.01, 0.95),
                                 start[name][len(guess):]])
    return start


def adam_step(values: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float,
              step: int) -> None:
    """One step of Adam (Kingma and Ba 2015) in place, counted from 1; it starts faster than torch's."""
    for moment, new, decay in zip(moments, (gradient, gradient.square()), DECAYS):
        moment.lerp_(new.nan_to_num(0.0, 0.0, 0.0), 1 - decay)
    mean, square = (moment / (1 - decay ** step) for moment, decay in zip(moments, DECAYS))
    with torch.no_grad():
        values -= rate * mean / (square.sqrt() + 1e-8)


def dressed(scenes: list[Scene], meshes: Meshes, values: dict[str, Tensor]) -> list[Scene]:
    """The scenes with the values of the parameters, as rounded numbers."""
    rows = {name: torch.round(value.double(), decimals=5).tolist() for name, value in values.items()}
    surfaces = list(zip(rows["color"], rows["second"], rows["amount"]))
    finish = iter(zip(surfaces, rows["metallic"], rows["roughness"]))
    grounds = iter(surfaces[len(meshes.color):])
    ground = [next(grounds) for _ in scenes]
    painted = grounds

    def paint(material: Material, surface) -> Material:
        color, second, amount = surface
        texture = material.texture and replace(material.texture, color=tuple(second), amount=amount)
        return replace(material, color=tuple(color), texture=texture)

    def finished(material: Material) -> Material:
        surface, metallic, roughness = next(finish)
        return replace(paint(material, surface), metallic=metallic, roughness=roughness)

    made = []
    for b, scene in enumerate(scenes):
        objects = tuple(replace(o, material=finished(o.material),
                                part_materials=tuple(map(finished, o.part_materials)))
                        for o in scene.objects)
        strips = tuple(replace(strip, material=paint(strip.material, next(painted)))
                       for strip in scene.strips)
        room = scene.room and replace(scene.room, wall=paint(scene.room.wall, next(painted)))
        lights = tuple(
            replace(lamp, position_world=tuple(place), intensity=tuple(strength * c for c in tint))
            for lamp, place, strength, tint in zip(
                scene.lights, rows["place"][b], rows["strength"][b], rows["tint"][b]))
        sky = replace(scene.sky, zenith=tuple(rows["zenith"][b]), horizon=tuple(rows["horizon"][b]))
        made.append(replace(scene, objects=objects, strips=strips, room=room, lights=lights, sky=sky,
                            ground=paint(scene.ground, ground[b]), exposure=rows["exposure"][b]))
    return made
