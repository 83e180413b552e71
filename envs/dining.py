"""Dining-Sim: the indoor domains of Prakash et al. 2021, appendix A.2.2.

Source: a cantilever chair, a workshop table and a PC laptop anywhere in a plain room, the laptop on
the floor or on the table, one color per part. Target: a kitchen table, four Windsor chairs that
face it and two MacBook-like laptops on it, in textured wood and metal under soft, warm light. The
ablations of Table 6 mix them: `target-content` has the target's arrangement of the source's
furniture in the source's look, `target-appearance` the opposite.
"""
import math
from dataclasses import replace
from itertools import combinations

import numpy as np

from envs.assets import furniture
from sim2sg_lib.camera import Camera, look_at
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import DOMAINS, Env, Preset, World
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.scene import (PATTERNS, Light, Material, RelationRules, Room, Scene, SceneObject,
                              Sky, Strip, Texture, from_footprint, linear, to_footprint)
from sim2sg_lib.sim.lift import footprint_corners, overlapping
from sim2sg_lib.sim.render import render_scenes, sample_scene

CATEGORIES = ("chair", "table", "laptop")
PREDICATES = ("left", "right", "front", "behind", "on")
CHAIR, TABLE, LAPTOP = range(3)
WIDTH, HEIGHT = 1024, 768
FOCAL_PX = WIDTH / 2 / math.tan(math.radians(30))  # a horizontal field of view of 60 degrees
# standing at one wall, looking at the furniture
EYE_WORLD, AIM_WORLD = (0.0, -3.2, 1.65), (0.0, -0.3, 0.3)
CAMERA_JITTER_M, LAMP_JITTER_M = 0.12, 0.3
LOW_M, HIGH_M, CEILING_M = (-3.0, -3.5), (3.0, 2.6), 2.7  # the room
FLOOR_M = ((-1.4, 1.4), (-1.4, 1.2))  # x and y ranges of single pieces
SET_M = ((-0.4, 0.4), (-0.4, 0.4))    # x and y ranges of the center of a table with chairs
GAP_M = 0.04                          # smallest distance between two objects
MAX_TRIES = 3000                      # per layout; the environment's own furniture takes about 20
SHADOW_TEXELS = 640                   # of about 7 mm: chairs have thin legs

ASSETS = {f"{kind}_{i}": asset
          for kind, assets in furniture.ASSETS.items() for i, asset in enumerate(assets)}
SCALES = (0.94, 1.0, 1.06)  # each asset comes in three sizes
KINDS = {"source": ("cantilever", "workshop", "pc"), "target": ("windsor", "kitchen", "macbook")}
KIND_NAMES = {look: tuple(tuple(name for name in ASSETS if name.startswith(kind)) for kind in kinds)
              for look, kinds in KINDS.items()}  # look -> per category, names of assets


# --- content --------------------------------------------------------------------------------------

def sample_layout(env: Env, domain: str, rng: np.random.Generator
                  ) -> tuple[list[SceneObject], Camera]:
    """Furniture without appearance, in view and without collisions, and a jittered camera."""
    content, look = DOMAINS[domain]
    eye, aim = (np.array(point) + rng.uniform(-CAMERA_JITTER_M, CAMERA_JITTER_M, 3)
                for point in (EYE_WORLD, AIM_WORLD))
    camera = look_at(eye, aim, FOCAL_PX, WIDTH, HEIGHT)
    kinds = env.world.category_assets if look == "source" else KIND_NAMES["target"]
    on_table = rng.uniform() < 0.5  # outside the loop, which prefers what fits more easily
    for _ in range(MAX_TRIES):
        objects = (dining_set(env, kinds, rng) if content == "target" else
                   single_pieces(env, kinds, on_table, rng))
        clear = not any(overlapping(a, b, GAP_M) for a, b in combinations(objects, 2))
        if clear and all(in_view(o, camera) for o in objects):
            return objects, camera
    names = ", ".join(sorted({o.asset for o in objects}))
    raise InputError(f"no room for {names}: expected furniture that stands side by side within "
                     f"{FLOOR_M} m, all of it in view")


def sample_asset(env: Env, label: int, kinds: tuple[tuple[str, ...], ...], rng: np.random.Generator
                 ) -> tuple[int, str, tuple]:
    """The label, a random asset of the category and a random size of it."""
    asset = str(rng.choice(kinds[label]))
    sizes_m = env.world.asset_sizes_m[asset]
    return label, asset, sizes_m[rng.integers(len(sizes_m))]


def single_pieces(env: Env, kinds, on_table: bool, rng: np.random.Generator) -> list[SceneObject]:
    """A chair, a table and a laptop anywhere on the floor, or the laptop on the table."""
    objects = []
    for label in (CHAIR, TABLE, LAPTOP):
        _, asset, size_m = sample_asset(env, label, kinds, rng)
        x, y = (float(rng.uniform(*side)) for side in FLOOR_M)
        yaw_rad = float(rng.uniform(0, 2 * np.pi))
        objects.append(SceneObject(label, asset, (x, y, 0.0), size_m, yaw_rad))
    if on_table:
        objects[2] = sample_on_table(objects[1], *sample_asset(env, LAPTOP, kinds, rng), rng)
    return objects


def dining_set(env: Env, kinds, rng: np.random.Generator) -> list[SceneObject]:
    """A table anywhere, four equal chairs at its sides that face it, and two laptops on it."""
    center, yaw_rad = [rng.uniform(*side) for side in SET_M], float(rng.uniform(0, 2 * np.pi))
    label, asset, size_m = sample_asset(env, TABLE, kinds, rng)
    table = SceneObject(label, asset, (float(center[0]), float(center[1]), 0.0), size_m, yaw_rad)
    label, asset, size_m = sample_asset(env, CHAIR, kinds, rng)
    chairs = []
    for side in range(4):
        away_m = table.size_m[side % 2] / 2 + size_m[0] / 2 + rng.uniform(0.05, 0.2)
        x, y = rotated((away_m, rng.uniform(-0.1, 0.1)), yaw_rad + side * math.pi / 2)
        position = (float(center[0] + x), float(center[1] + y), 0.0)
        chairs.append(SceneObject(label, asset, position, size_m, math.atan2(-y, -x)))
    return [table, *chairs, *(sample_on_table(table, *sample_asset(env, LAPTOP, kinds, rng), rng)
                              for _ in range(2))]


def sample_on_table(table: SceneObject, label: int, asset: str, size_m: tuple,
                    rng: np.random.Generator) -> SceneObject:
    """An object on a table, with any yaw and all of it over the table's top."""
    turn_rad = rng.uniform(0, 2 * np.pi)
    cos, sin = abs(math.cos(turn_rad)), abs(math.sin(turn_rad))
    reach_m = np.array([cos * size_m[0] + sin * size_m[1], sin * size_m[0] + cos * size_m[1]]) / 2
    x, y = rng.uniform(-1, 1, 2) * np.maximum(np.array(table.size_m[:2]) / 2 - reach_m - 0.02, 0)
    position = (*from_footprint(table, x, y), table.size_m[2])
    return SceneObject(label, asset, position, size_m, float(table.yaw_rad + turn_rad))


def rotated(point_m, yaw_rad: float) -> tuple[float, float]:
    """A point (x, y) turned about the origin."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return float(cos * point_m[0] - sin * point_m[1]), float(sin * point_m[0] + cos * point_m[1])


def in_view(item: SceneObject, camera: Camera) -> bool:
    """Whether all of an object's box is in the image."""
    corners_world = [(*corner, item.position_world[2] + z) for corner in footprint_corners(item)
                     for z in (0.0, item.size_m[2])]
    points_px, depth_m = camera.project(np.array(corners_world))
    return bool((depth_m > 0.5).all() and (points_px > 0).all()
                and (points_px < [WIDTH, HEIGHT]).all())


def snap_to_context(objects: list[SceneObject], boxes_px: np.ndarray, camera: Camera,
                    rng: np.random.Generator) -> list[SceneObject]:
    """Lifted objects stay within the walls, and objects above the floor on the nearest table."""
    snapped = []
    for item in objects:
        reach_m = max(item.size_m[:2]) / 2
        low_m, high_m = np.add(LOW_M, reach_m), np.subtract(HIGH_M, reach_m)
        x, y = np.clip(item.position_world[:2], low_m, high_m)
        snapped.append(replace(item, position_world=(float(x), float(y), item.position_world[2])))
    tables = [o for o in snapped if o.label == TABLE]
    return [put_on_nearest(o, tables) if tables and o.position_world[2] > 0 else o for o in snapped]


def put_on_nearest(item: SceneObject, tables: list[SceneObject]) -> SceneObject:
    """The item on the nearest table, its center over the top: the fit moves and resizes both."""
    table = min(tables, key=lambda t: math.dist(item.position_world[:2], t.position_world[:2]))
    half_m = np.array(table.size_m[:2]) / 2
    x, y = to_footprint(table, item.position_world)
    if abs(x) > half_m[0] or abs(y) > half_m[1]:
        x, y = np.clip((x, y), -0.8 * half_m, 0.8 * half_m)
    return replace(item, position_world=(*from_footprint(table, x, y), table.size_m[2]))


# --- appearance -----------------------------------------------------------------------------------

# look -> per category and part, the display colors 0..255 to choose from
COLORS = {
    "source": {
        CHAIR: (((70, 72, 78), (150, 152, 155), (40, 40, 44)),
                ((170, 60, 50), (60, 90, 150), (80, 130, 90), (60, 60, 66))),
        TABLE: (((190, 160, 120), (160, 165, 170), (200, 190, 170)),
                ((70, 90, 120), (90, 95, 100), (60, 110, 90)),
                ((170, 70, 60), (80, 100, 140), (150, 150, 150))),
        LAPTOP: (((48, 50, 56), (84, 88, 96), (36, 40, 60)), ((24, 24, 26),),
                 ((70, 130, 200), (90, 160, 170), (60, 90, 170)), ((90, 92, 96), (58, 58, 62)),
                 ((225, 228, 232), (230, 200, 120)))},
    "target": {
        CHAIR: (((150, 96, 52), (104, 62, 34), (52, 40, 34), (214, 204, 186)),
                ((164, 106, 60), (110, 66, 40), (140, 50, 44))),
        TABLE: (((176, 118, 66), (132, 82, 46), (196, 148, 96)),
                ((120, 72, 40), (222, 214, 198), (84, 54, 36)),
                ((128, 78, 44), (214, 204, 186))),
        LAPTOP: (((206, 208, 212), (150, 152, 158), (226, 212, 196)), ((18, 18, 20),),
                 ((60, 80, 160), (120, 80, 170), (40, 110, 150)), ((30, 30, 32),),
                 ((236, 240, 246), (250, 190, 140)))}}
# metallic, roughness, pattern, size of its cells in meters, brightness of its second color
MATTE, ALUMINUM = (0.0, 0.6, None, 1.0, 1.0), (0.75, 0.38, None, 1.0, 1.0)
WOOD, GRAIN = (0.0, 0.45, "wood", 0.05, 0.55), (0.0, 0.4, "grass", 0.5, 0.4)
CLOTH, GLASS = (0.0, 0.9, "noise", 0.012, 0.5), (0.0, 0.15, None, 1.0, 1.0)
# look -> per category, the material of each part
FINISH = {"source": {CHAIR: (MATTE,) * 2, TABLE: (MATTE,) * 3, LAPTOP: (MATTE,) * 5},
          "target": {CHAIR: (WOOD, CLOTH), TABLE: (GRAIN, WOOD, GRAIN),
                     LAPTOP: (ALUMINUM, MATTE, GLASS, MATTE, GLASS)}}

# look -> (positions of groups, lamps per group, their distance in meters from its center,
#          irradiance of a group at one meter in linear RGB, exposure)
LAMPS = {"source": (((-1.6, -1.5, 2.45), (1.8, -0.6, 2.45), (0.1, 1.0, 2.45)), 1, 0.0,
                    (3.2, 3.2, 3.2), 1.0),
         "target": (((-2.1, -0.8, 2.2), (0.9, 0.2, 2.5)), 3, 0.22, (6.4, 5.0, 3.4), 1.0)}
SKY_RGB = {"source": (0.34, 0.34, 0.34), "target": (0.22, 0.2, 0.2)}
FLOOR_RGB, WALL_RGB = (0.34, 0.33, 0.31), (0.52, 0.52, 0.5)


def sample_appearance(objects: list[SceneObject], camera: Camera, domain: str, randomize: str,
                      rng: np.random.Generator) -> Scene:
    """Materials, lamps, walls and floor."""
    look = DOMAINS[domain][1]
    strong = randomize == "strong" and look == "source"
    painted, by_asset = [], {}
    for item in objects:
        if item.asset not in by_asset:  # equal chairs are a set
            by_asset[item.asset] = sample_materials(item.label, look, strong, rng)
        first, *others = by_asset[item.asset]
        painted.append(replace(item, material=first, part_materials=tuple(others)))
    lights, exposure, sky_rgb = sample_lamps(look, rng), LAMPS[look][4], SKY_RGB[look]
    floor, wall, strips = Material(FLOOR_RGB, roughness=1.0), Material(WALL_RGB, roughness=1.0), ()
    if look == "target":
        floor, wall, strips = kitchen(objects, rng)
    elif strong:
        floor, wall = any_material(rng), any_material(rng)
        strips = tuple(any_carpet(rng) for _ in range(rng.integers(3)))
        for i, light in enumerate(lights):
            position = np.array(light.position_world) + rng.uniform(-1, 1, 3) * (1, 1, 0.3)
            brightness = np.array(light.intensity) * rng.uniform(0.3, 1.7)
            lights[i] = Light(tuple(position), tuple(brightness * rng.uniform(0.7, 1.3, 3)))
        sky_rgb = tuple(rng.uniform(0.15, 0.5) * rng.uniform(0.8, 1.2, 3))
        exposure = float(rng.uniform(0.6, 1.3))
    room = Room(LOW_M, HIGH_M, CEILING_M, wall)
    return Scene(tuple(painted), camera, tuple(lights), Sky(sky_rgb, sky_rgb), floor, exposure,
                 strips=strips, room=room, shadow_texels=SHADOW_TEXELS)


def sample_materials(label: int, look: str, strong: bool,
                     rng: np.random.Generator) -> list[Material]:
    """One material per part of a category, in the colors and the finish of a look, or `strong`."""
    if strong:
        return [any_material(rng) for _ in FINISH[look][label]]
    materials = []
    parts = zip(COLORS[look][label], FINISH[look][label])
    for colors, (metallic, roughness, pattern, scale_m, dark) in parts:
        color = linear(colors[rng.integers(len(colors))])
        if pattern:
            second, seed = tuple(dark * c for c in color), int(rng.integers(1 << 16))
            pattern = Texture(pattern, second, scale_m, 0.9, seed)
        materials.append(Material(color, metallic, roughness, pattern))
    return materials


def sample_lamps(look: str, rng: np.random.Generator) -> list[Light]:
    """Groups of lamps under the ceiling; the lamps of a group together cast one soft shadow."""
    positions, count, radius_m, intensity, _ = LAMPS[look]
    lights = []
    for position in positions:
        center = np.array(position) + rng.uniform(-LAMP_JITTER_M, LAMP_JITTER_M, 3) * (1, 1, 0.3)
        for i in range(count):
            x, y = rotated((radius_m, 0.0), 2 * math.pi * i / count)
            lights.append(Light(tuple(map(float, center + [x, y, 0.0])),
                                tuple(c / count for c in intensity)))
    return lights


def kitchen(objects: list[SceneObject],
            rng: np.random.Generator) -> tuple[Material, Material, tuple[Strip, ...]]:
    """The target's floor of wood or tiles, brick or papered walls, and a carpet below the table."""
    tint, seed = rng.uniform(0.8, 1.2), int(rng.integers(1 << 16))

    def matte(color, pattern, second, scale_m):
        texture = Texture(pattern, tuple(second), scale_m, 0.8, seed)
        return Material(tuple(map(float, color)), roughness=1.0, texture=texture)

    boards = matte(tint * np.array([0.34, 0.19, 0.09]), "grass", (0.1, 0.05, 0.02), 0.7)
    tiles = matte(tint * np.array([0.5, 0.44, 0.36]), "checks", (0.3, 0.2, 0.15), 0.33)
    brick = matte((0.36, 0.16, 0.1), "brick", (0.42, 0.34, 0.28), 0.3)
    paper = matte((0.36, 0.42, 0.34), "noise", (0.5, 0.5, 0.38), 0.12)
    floor, wall = (boards, tiles)[rng.integers(2)], (brick, paper)[rng.integers(2)]
    table = next((o for o in objects if o.label == TABLE), None)
    if table is None or rng.uniform() < 0.4:
        return floor, wall, ()
    colors = [linear(rgb) for rgb in ((120, 40, 40), (50, 70, 100), (190, 170, 130), (90, 100, 70))]
    rim, inner = (colors[i] for i in rng.permutation(len(colors))[:2])
    sides = [tuple(side + grow for side in table.size_m[:2]) for grow in (1.1, 0.85)]
    cloths = [matte(color, "noise", (0.6 * c for c in color), 0.03) for color in (rim, inner)]
    return floor, wall, tuple(Strip(table.position_world[:2], side, table.yaw_rad, cloth)
                              for side, cloth in zip(sides, cloths))


def any_carpet(rng: np.random.Generator) -> Strip:
    """A rectangle of any material anywhere on the floor."""
    position = tuple(float(rng.uniform(*side)) for side in FLOOR_M)
    size_m = tuple(map(float, rng.uniform(0.6, 3.0, 2)))
    return Strip(position, size_m, float(rng.uniform(0, 2 * np.pi)), any_material(rng))


def any_material(rng: np.random.Generator) -> Material:
    """Any color, finish and pattern."""
    scale_m = float(np.exp(rng.uniform(np.log(0.03), np.log(1.5))))
    pattern = Texture(str(rng.choice(PATTERNS)), tuple(rng.uniform(0.02, 0.9, 3)), scale_m,
                      float(rng.uniform(0, 0.8)), int(rng.integers(1 << 16)))
    return Material(tuple(rng.uniform(0.02, 0.9, 3)), float(rng.uniform() ** 3),
                    float(rng.uniform(0.2, 0.9)), pattern)


ENV = Env(
    name="dining",
    vocabulary=Vocabulary(CATEGORIES, PREDICATES),
    presets={
        "quick": Preset(image_size=(320, 240), source_images=1000, target_images=800,
                        lifted_images=200, start_steps=500, steps=350, iterations=1, warmup=0.3),
        "paper": Preset(image_size=(WIDTH, HEIGHT), source_images=5000, target_images=8000,
                        lifted_images=5000, start_steps=10_000, steps=70_000, iterations=6,
                        warmup=0.7, batch=2)},
    domains=DOMAINS, threshold=0.2, adaptive=True, sample=sample_scene, render=render_scenes,
    world=World(
        # only relations with a table: of two predicates for each of 42 ordered pairs, recall@50
        # could find 60 % by guessing
        rules=RelationRules({"left": 0.1, "right": 0.1, "front": 0.1, "behind": 0.1, "on": 0.03},
                            TABLE, {LAPTOP: TABLE}),
        camera=look_at(EYE_WORLD, AIM_WORLD, FOCAL_PX, WIDTH, HEIGHT),
        assets={name: mesh for name, (mesh, _) in ASSETS.items()},
        asset_sizes_m={name: tuple(tuple(scale * side for side in size_m) for scale in SCALES)
                       for name, (_, size_m) in ASSETS.items()},
        category_assets=KIND_NAMES["source"],
        yaws_rad=(None,) * len(CATEGORIES),
        pitch_spread_rad=0.0,
        size_spreads=(0.0,) * len(CATEGORIES),
        min_visible_fraction=25 / (192 * 144),
        sample_layout=sample_layout,
        snap_to_context=snap_to_context,
        sample_appearance=sample_appearance))
