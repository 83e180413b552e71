"""CLEVR (Johnson et al. 2017) with the domains of Prakash et al. 2021, appendix A.2.1.

Source: 4 metal objects in blue, green, magenta or yellow. Target: 2-3 rubber objects in pink, brown
or white, farther apart, and stylized. The ablations of Table 4 mix them: `target-content` has the
target's objects in the source's look, `target-appearance` the opposite. `crowd`, which the paper
does not have, is a harder target: official CLEVR's 3 to 10 objects in the target's look.
"""
from dataclasses import replace

import numpy as np

from sim2sg_lib import env as environments
from sim2sg_lib.camera import Camera, look_at, stack_cameras
from sim2sg_lib.env import Env, Preset, World
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.scene import (PATTERNS, Light, Material, RelationRules, Scene, SceneObject, Sky,
                              Texture, linear, predicate_axes)
from sim2sg_lib.sim.annotate import visible_boxes
from sim2sg_lib.sim.meshes import box_mesh, build, cylinder_mesh, sphere_mesh
from sim2sg_lib.sim.rasterizer import rasterize
from sim2sg_lib.sim.render import render_scenes, sample_scene

CATEGORIES = ("cube", "sphere", "cylinder")
PREDICATES = ("left", "right", "front", "behind")
RADII_M = (0.35, 0.5, 0.7)
WIDTH, HEIGHT, FOCAL_PX = 320, 240, 350.0  # a 35 mm lens on Blender's 32 mm sensor
EYE_WORLD = (7.48, -6.51, 5.34)            # CLEVR's camera, looking at the origin
CAMERA_JITTER_M, LAMP_JITTER_M = 0.5, 1.0
# key, fill and back: position, irradiance at one meter
LAMPS = (((6.45, -2.91, 4.26), 26.0), ((-4.67, -4.01, 3.01), 9.0), ((-1.12, 2.65, 5.83), 20.0))

DOMAINS = environments.DOMAINS | {"crowd": ("crowd", "target")}
# (objects per image), (range of the smallest distance along every predicate's axis, meters)
CONTENT = {"source": ((4,), (0.3, 0.6)), "target": ((2, 3), (0.8, 1.1)),
           "crowd": (tuple(range(3, 11)), (0.4, 0.4))}
GAP_M = 0.25               # smallest distance between two objects
CROWD_TRIES = 50           # positions tried for each object of a crowd
CROWD_VISIBLE_PX = 200     # of 320x240: the least of every object of a crowd
# display colors 0..255 and (metallic, roughness)
APPEARANCE = {
    "source": (((42, 75, 215), (29, 125, 20), (210, 40, 180), (255, 238, 51)), (1.0, 0.5)),
    "target": (((242, 130, 160), (129, 74, 25), (235, 235, 235)), (0.0, 0.7))}
GROUND_RGB = (0.45, 0.45, 0.45)


def size_m(label: int, radius_m: float) -> tuple[float, float, float]:
    """Full extents. CLEVR scales cubes by 1 / sqrt(2), so that they look as large as the others."""
    side = 2 * radius_m / (2 ** 0.5 if CATEGORIES[label] == "cube" else 1.0)
    return (side, side, side)


def sample_layout(env: Env, domain: str,
                  rng: np.random.Generator) -> tuple[list[SceneObject], Camera]:
    """Objects on the ground without appearance, no two touching, and a jittered camera."""
    content = DOMAINS[domain][0]
    counts, margins_m = CONTENT[content]
    eye = np.array(EYE_WORLD) + rng.uniform(-CAMERA_JITTER_M, CAMERA_JITTER_M, 3)
    camera = look_at(eye, (0, 0, 0), FOCAL_PX, WIDTH, HEIGHT)
    count, margin_m = rng.choice(counts), rng.uniform(*margins_m)
    while True:
        if content == "crowd":
            labels, radii_m, positions = place_one_by_one(count, margin_m, camera, rng)
        else:
            labels, radii_m, positions = place_together(count, margin_m, camera, rng)
        yaws_rad = rng.uniform(0, 2 * np.pi, count)
        choices = [env.world.category_assets[label] for label in labels]
        assets = [str(rng.choice(names)) if len(names) > 1 else names[0] for names in choices]
        rows = zip(labels, assets, positions, radii_m, yaws_rad)
        objects = [SceneObject(int(label), asset, (float(x), float(y), 0.0),
                               env.world.asset_sizes_m[asset][RADII_M.index(radius_m)],
                               float(yaw_rad))
                   for label, asset, (x, y), radius_m, yaw_rad in rows]
        if content != "crowd" or least_visible(env, objects, camera) >= CROWD_VISIBLE_PX:
            return objects, camera


def place_together(count: int, margin_m: float, camera: Camera, rng: np.random.Generator):
    """Labels (N,), radii (N,) and positions (N, 2) in meters.

    Whole layouts are drawn until one fits, which favors no object.
    """
    while True:
        labels = rng.integers(len(CATEGORIES), size=count)
        radii_m = rng.choice(RADII_M, size=count)
        positions = rng.uniform(-3, 3, (count, 2))
        i, j = np.triu_indices(count, 1)
        if not in_conflict(positions[i] - positions[j], radii_m[i] + radii_m[j], margin_m,
                           camera).any():
            return labels, radii_m, positions


def place_one_by_one(count: int, margin_m: float, camera: Camera, rng: np.random.Generator):
    """The same, each object where those before leave room, as official CLEVR places them.

    A whole layout of ten would almost never fit.
    """
    while True:
        radii_m, positions = np.empty(0), np.empty((0, 2))
        for _ in range(count):
            tried_m, tried = rng.choice(RADII_M, CROWD_TRIES), rng.uniform(-3, 3, (CROWD_TRIES, 2))
            wrong = in_conflict(tried[:, None] - positions, tried_m[:, None] + radii_m, margin_m,
                                camera).any(1)
            if wrong.all():
                break
            first = int(wrong.argmin())
            radii_m = np.append(radii_m, tried_m[first])
            positions = np.vstack([positions, tried[first]])
        if len(radii_m) == count:
            return rng.integers(len(CATEGORIES), size=count), radii_m, positions


def in_conflict(gaps_m: np.ndarray, sums_m: np.ndarray, margin_m: float,
                camera: Camera) -> np.ndarray:
    """(...) bool: pairs that are too near, or not clearly left or right and in front or behind.

    gaps_m: (..., 2) from one position to the other. sums_m: (...) of their radii.
    """
    axes = predicate_axes(camera)
    touching = np.linalg.norm(gaps_m, axis=-1) < sums_m + GAP_M
    return touching | (np.abs(gaps_m @ axes["right"][:2]) < margin_m) | (
        np.abs(gaps_m @ axes["behind"][:2]) < margin_m)


def least_visible(env: Env, objects: list[SceneObject], camera: Camera) -> int:
    """Pixels of 320x240 in which the least visible object shows, counted at half that size."""
    scene = Scene(tuple(objects), camera, (), Sky((0.0,) * 3, (0.0,) * 3), Material())
    meshes, half = build([scene], env.world.assets, "cpu"), (WIDTH // 2, HEIGHT // 2)
    fragments = rasterize(meshes, stack_cameras([camera], *half), cull_backfaces=True)
    return 4 * int(visible_boxes(fragments, meshes)[1].min())


def sample_appearance(objects: list[SceneObject], camera: Camera, domain: str, randomize: str,
                      rng: np.random.Generator) -> Scene:
    """Colors, materials, lamps and ground."""
    look = DOMAINS[domain][1]
    palette, (metallic, roughness) = APPEARANCE[look]
    colors = [linear(palette[i]) for i in rng.integers(len(palette), size=len(objects))]
    materials = [Material(color, metallic, roughness) for color in colors]
    lights = [Light(tuple(np.array(position) + rng.uniform(-LAMP_JITTER_M, LAMP_JITTER_M, 3)),
                    (power,) * 3) for position, power in LAMPS]
    ground, sky, exposure = Material(GROUND_RGB, roughness=1.0), (0.35,) * 3, 1.0
    if randomize == "strong" and look == "source":
        materials = [Material(tuple(rng.uniform(0.02, 0.95, 3)), float(rng.uniform()),
                              float(rng.uniform(0.2, 0.9))) for _ in objects]
        lights = [strong_light(light, rng) for light in lights]
        color = tuple(rng.uniform(0.05, 0.8) * rng.uniform(0.6, 1.0, 3))
        second, amount = tuple(rng.uniform(0.05, 0.95, 3)), float(rng.uniform(0, 0.8))
        scale_m = float(np.exp(rng.uniform(np.log(0.1), np.log(4))))
        pattern, seed = str(rng.choice(PATTERNS)), int(rng.integers(1 << 16))
        texture = Texture(pattern, second, scale_m, amount, seed)
        ground = Material(color, roughness=1.0, texture=texture)
        sky = tuple(rng.uniform(0.1, 0.6) * rng.uniform(0.7, 1.3, 3))
        exposure = float(rng.uniform(0.5, 1.2))
    style_seed = int(rng.integers(1 << 16)) if look == "target" else None
    objects = [replace(o, material=material) for o, material in zip(objects, materials)]
    return Scene(tuple(objects), camera, tuple(lights), Sky(sky, sky), ground, exposure, style_seed)


def strong_light(light: Light, rng: np.random.Generator) -> Light:
    """Another position, brightness and tint."""
    position = np.array(light.position_world) * rng.uniform(0.7, 1.5)
    position = position + rng.uniform(-2, 2, 3) * (1, 1, 0)
    brightness = light.intensity[0] * rng.uniform(0.2, 1.6)
    return Light(tuple(position), tuple(brightness * rng.uniform(0.7, 1.3, 3)))


ENV = Env(
    name="clevr",
    vocabulary=Vocabulary(CATEGORIES, PREDICATES),
    presets={
        "quick": Preset(image_size=(160, 120), source_images=1500, target_images=800,
                        lifted_images=200, start_steps=400, steps=300, iterations=1, warmup=0.0),
        "paper": Preset(image_size=(WIDTH, HEIGHT), source_images=1000, target_images=1600,
                        lifted_images=1000, start_steps=10_000, steps=90_000, iterations=2,
                        warmup=0.0)},
    domains=DOMAINS, threshold=0.5, adaptive=False, sample=sample_scene, render=render_scenes,
    world=World(
        rules=RelationRules({name: 0.2 for name in PREDICATES}),
        camera=look_at(EYE_WORLD, (0, 0, 0), FOCAL_PX, WIDTH, HEIGHT),
        assets={"cube": box_mesh(), "sphere": sphere_mesh(), "cylinder": cylinder_mesh()},
        asset_sizes_m={name: tuple(size_m(label, r) for r in RADII_M)
                       for label, name in enumerate(CATEGORIES)},
        category_assets=tuple((name,) for name in CATEGORIES),
        yaws_rad=(None,) * len(CATEGORIES),
        pitch_spread_rad=0.0,
        size_spreads=(0.0,) * len(CATEGORIES),
        min_visible_fraction=40 / (WIDTH * HEIGHT),
        sample_layout=sample_layout,
        snap_to_context=None,
        sample_appearance=sample_appearance))
