"""Dining-Sim: the indoor domains of Prakash et al. 2021, appendix A.2.2.

Source: a cantilever chair, a workshop table and a PC laptop anywhere in a plain room, the laptop on the floor or on the
table, in one color a part.  Target: a kitchen table, four Windsor chairs that face it and two MacBook-like laptops on it,
in textured wood and metal under soft, warm light. The two ablation pairs of Table 6 take one half of the target each:
`target-content` has the target's arrangement of the source's furniture in the source's look, `target-appearance` the
source's arrangement of the target's furniture in the target's look.
"""
import math
from dataclasses import replace

import numpy as np

from envs.assets import furniture
from sim2sg_lib.camera import Camera, look_at
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import DOMAINS, Env, Preset, World
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.scene import (
    PATTERNS,
    Light,
    Material,
    RelationRules,
    Room,
    Scene,
    SceneObject,
    Sky,
    Strip,
    Texture,
    from_footprint,
    linear,
    to_footprint,
)
from sim2sg_lib.sim.render import render_scenes, sample_scene
from sim2sg_lib.sim.lift import side_by_side

CATEGORIES = ("chair", "table", "laptop")
PREDICATES = ("left", "right", "front", "behind", "on")
CHAIR, TABLE, LAPTOP = range(3)
WIDTH, HEIGHT = 1024, 768
FOCAL_PX = WIDTH / 2 / math.tan(math.radians(30))       # 60 degrees across
EYE_WORLD, AIM_WORLD = (0.0, -3.2, 1.65), (0.0, -0.3, 0.3)  # someone who stands at one wall and looks at the furniture
CAMERA_JITTER_M, LAMP_JITTER_M = 0.12, 0.3
LOW_M, HIGH_M, CEILING_M = (-3.0, -3.5), (3.0, 2.6), 2.7  # the room
FLOOR_M = ((-1.4, 1.4), (-1.4, 1.2))                    # x and y where single pieces stand
SET_M = ((-0.4, 0.4), (-0.4, 0.4))                      # x and y of the middle of a table with its chairs
GAP_M = 0.04                                            # between any two
MOST_DRAWS = 3000                                       # of a layout; the environment's own furniture takes some 20
SHADOW_TEXELS = 640                                     # of some 7 mm: chairs have thin legs

ASSETS = {f"{kind}_{i}": asset for kind, row in (
    ("cantilever", furniture.cantilever_chairs()), ("workshop", furniture.workshop_tables()), ("pc", furniture.pc_laptops()),
    ("windsor", furniture.windsor_chairs()), ("kitchen", furniture.kitchen_tables()),
    ("macbook", furniture.macbook_laptops())) for i, asset in enumerate(row)}
SCALES = (0.94, 1.0, 1.06)  # each asset comes in three sizes
KINDS = {"source": ("cantilever", "workshop", "pc"), "target": ("windsor", "kitchen", "macbook")}


def named(kind: str) -> tuple[str, ...]:
    """The assets of one kind."""
    return tuple(name for name in ASSETS if name.startswith(kind))


# --- content ----------------------------------------------------------------------------------------------------------

def sample_layout(env: Env, domain: str, rng: np.random.Generator) -> tuple[list[SceneObject], Camera]:
    """Furniture without appearance, all of it in view and none within another, and a jittered camera."""
    content, look = DOMAINS[domain]
    eye, aim = (np.array(point) + rng.uniform(-CAMERA_JITTER_M, CAMERA_JITTER_M, 3) for point in (EYE_WORLD, AIM_WORLD))
    camera = look_at(eye, aim, FOCAL_PX, WIDTH, HEIGHT)
    kinds = env.world.category_assets if look == "source" else tuple(named(kind) for kind in KINDS["target"])
    on_table = rng.uniform() < 0.5  # drawn once: layouts drawn again would prefer what fits more easily
    for _ in range(MOST_DRAWS):
        objects = dining_set(env, kinds, rng) if content == "target" else single_pieces(env, kinds, on_table, rng)
        clear = not any(touching(a, b) for i, a in enumerate(objects) for b in objects[:i])
        if clear and all(in_view(o, camera) for o in objects):
            return objects, camera
    names = ", ".join(sorted({o.asset for o in objects}))
    raise InputError(f"no room for {names}: expected furniture that stands side by side within {FLOOR_M} m, all of it in view")


def draw(env: Env, label: int, kinds: tuple[tuple[str, ...], ...], rng: np.random.Generator) -> tuple[int, str, tuple]:
    """A category's label, one of its assets and one of that asset's sizes."""
    asset = str(rng.choice(kinds[label]))
    sizes_m = env.world.asset_sizes_m[asset]
    return label, asset, sizes_m[rng.integers(len(sizes_m))]


def single_pieces(env: Env, kinds, on_table: bool, rng: np.random.Generator) -> list[SceneObject]:
    """A chair, a table and a laptop anywhere on the floor, or the laptop on the table."""
    chair, table, laptop = (SceneObject(label, asset, (*(float(rng.uniform(*side)) for side in FLOOR_M), 0.0), size_m,
                                        float(rng.uniform(0, 2 * np.pi)))
                            for label, asset, size_m in (draw(env, label, kinds, rng) for label in range(3)))
    return [chair, table, upon(table, *draw(env, LAPTOP, kinds, rng), rng) if on_table else laptop]


def dining_set(env: Env, kinds, rng: np.random.Generator) -> list[SceneObject]:
    """A table anywhere, chairs of one kind at its four sides that face its center, and two laptops on it."""
    center, yaw_rad = [rng.uniform(*side) for side in SET_M], float(rng.uniform(0, 2 * np.pi))
    label, asset, size_m = draw(env, TABLE, kinds, rng)
    table = SceneObject(label, asset, (float(center[0]), float(center[1]), 0.0), size_m, yaw_rad)
    label, asset, size_m = draw(env, CHAIR, kinds, rng)
    chairs = []
    for side in range(4):
        away_m = table.size_m[side % 2] / 2 + size_m[0] / 2 + rng.uniform(0.05, 0.2)
        x, y = turned((away_m, rng.uniform(-0.1, 0.1)), yaw_rad + side * math.pi / 2)
        position = (float(center[0] + x), float(center[1] + y), 0.0)
        chairs.append(SceneObject(label, asset, position, size_m, math.atan2(-y, -x)))
    return [table, *chairs, *(upon(table, *draw(env, LAPTOP, kinds, rng), rng) for _ in range(2))]


def upon(table: SceneObject, label: int, asset: str, size_m: tuple, rng: np.random.Generator) -> SceneObject:
    """A thing on a table, turned any way and wholly over its top."""
    turn_rad = rng.uniform(0, 2 * np.pi)
    cos, sin = abs(math.cos(turn_rad)), abs(math.sin(turn_rad))
    reach_m = np.array([cos * size_m[0] + sin * size_m[1], sin * size_m[0] + cos * size_m[1]]) / 2
    x, y = rng.uniform(-1, 1, 2) * np.maximum(np.array(table.size_m[:2]) / 2 - reach_m - 0.02, 0)
    position = (*from_footprint(table, x, y), table.size_m[2])
    return SceneObject(label, asset, position, size_m, float(table.yaw_rad + turn_rad))


def turned(point_m, yaw_rad: float) -> tuple[float, float]:
    """A point (x, y) turned about the origin."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return float(cos * point_m[0] - sin * point_m[1]), float(sin * point_m[0] + cos * point_m[1])


def corners_world(item: SceneObject) -> np.ndarray:
    """(4, 2) the corners of a footprint."""
    half, signs = np.array(item.size_m[:2]) / 2, ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return np.array([turned(half * sign, item.yaw_rad) for sign in signs]) + item.position_world[:2]


def touching(a: SceneObject, b: SceneObject) -> bool:
    """Whether two boxes come nearer than GAP_M, by their separating axes; what stands on another does not."""
    if not side_by_side(a, b):
        return False
    for item, other in ((a, b), (b, a)):
        seen = np.array([to_footprint(item, corner) for corner in corners_world(other)])
        half = np.array(item.size_m[:2]) / 2 + GAP_M
        if ((seen.min(0) > half) | (seen.max(0) < -half)).any():
            return False
    return True


def in_view(item: SceneObject, camera: Camera) -> bool:
    """Whether all of an object's box is in the image."""
    corners = [(*corner, item.position_world[2] + z) for corner in corners_world(item) for z in (0.0, item.size_m[2])]
    points_px, depth_m = camera.project(np.array(corners))
    return bool((depth_m > 0.5).all() and (points_px > 0).all() and (points_px < [WIDTH, HEIGHT]).all())


def snap_to_context(objects: list[SceneObject], boxes_px: np.ndarray, camera: Camera, rng: np.random.Generator) -> list[SceneObject]:
    """Lifted objects stay within the walls, and those above the floor on the nearest table."""
    settled = []
    for item in objects:
        reach_m = max(item.size_m[:2]) / 2
        x, y = np.clip(item.position_world[:2], np.array(LOW_M) + reach_m, np.array(HIGH_M) - reach_m)
        settled.append(replace(item, position_world=(float(x), float(y), item.position_world[2])))
    tables = [o for o in settled if o.label == TABLE]
    return [rest(o, min(tables, key=lambda table: math.dist(o.position_world[:2], table.position_world[:2])))
            if tables and o.position_world[2] > 0 else o for o in settled]


def rest(item: SceneObject, table: SceneObject) -> SceneObject:
    """The item at the table's height, its middle over the top: refinement may have moved either and resized the table."""
    half_m = np.array(table.size_m[:2]) / 2
    x, y = to_footprint(table, item.position_world)
    if abs(x) > half_m[0] or abs(y) > half_m[1]:
        x, y = np.clip((x, y), -0.8 * half_m, 0.8 * half_m)
    return replace(item, position_world=(*from_footprint(table, x, y), table.size_m[2]))


# --- appearance -------------------------------------------------------------------------------------------------------

# look -> per category and part the display colors 0..255 to choose from
COLORS = {
    "source": {
        CHAIR: (((70, 72, 78), (150, 152, 155), (40, 40, 44)), ((170, 60, 50), (60, 90, 150), (80, 130, 90), (60, 60, 66))),
        TABLE: (((190, 160, 120), (160, 165, 170), (200, 190, 170)), ((70, 90, 120), (90, 95, 100), (60, 110, 90)),
                ((170, 70, 60), (80, 100, 140), (150, 150, 150))),
        LAPTOP: (((48, 50, 56), (84, 88, 96), (36, 40, 60)), ((24, 24, 26),),
                 ((70, 130, 200), (90, 160, 170), (60, 90, 170)), ((90, 92, 96), (58, 58, 62)),
                 ((225, 228, 232), (230, 200, 120)))},
    "target": {
        CHAIR: (((150, 96, 52), (104, 62, 34), (52, 40, 34), (214, 204, 186)),
                ((164, 106, 60), (110, 66, 40), (140, 50, 44))),
        TABLE: (((176, 118, 66), (132, 82, 46), (196, 148, 96)), ((120, 72, 40), (222, 214, 198), (84, 54, 36)),
                ((128, 78, 44), (214, 204, 186))),
        LAPTOP: (((206, 208, 212), (150, 152, 158), (226, 212, 196)), ((18, 18, 20),),
                 ((60, 80, 160), (120, 80, 170), (40, 110, 150)), ((30, 30, 32),), ((236, 240, 246), (250, 190, 140)))}}
# look -> per category and part (metallic, roughness, pattern, its cells in meters, its dark color as a share)
MATTE, WOOD, GRAIN = (0.0, 0.6, None, 1.0, 1.0), (0.0, 0.45, "wood", 0.05, 0.55), (0.0, 0.4, "grass", 0.5, 0.4)
CLOTH, ALUMINIUM, GLASS = (0.0, 0.9, "noise", 0.012, 0.5), (0.75, 0.38, None, 1.0, 1.0), (0.0, 0.15, None, 1.0, 1.0)
FINISH = {"source": {CHAIR: (MATTE,) * 2, TABLE: (MATTE,) * 3, LAPTOP: (MATTE,) * 5},
          "target": {CHAIR: (WOOD, CLOTH), TABLE: (GRAIN, WOOD, GRAIN), LAPTOP: (ALUMINIUM, MATTE, GLASS, MATTE, GLASS)}}

# look -> (groups' positions, lamps in a group, meters from its middle, a group's irradiance at one meter in linear RGB, exposure)
LAMPS = {"source": (((-1.6, -1.5, 2.45), (1.8, -0.6, 2.45), (0.1, 1.0, 2.45)), 1, 0.0, (3.2, 3.2, 3.2), 1.0),
         "target": (((-2.1, -0.8, 2.2), (0.9, 0.2, 2.5)), 3, 0.22, (6.4, 5.0, 3.4), 1.0)}
SKY_RGB = {"source": (0.34, 0.34, 0.34), "target": (0.22, 0.2, 0.2)}
FLOOR_RGB, WALL_RGB = (0.34, 0.33, 0.31), (0.52, 0.52, 0.5)


def sample_appearance(objects: list[SceneObject], camera: Camera, domain: str, randomize: str, rng: np.random.Generator) -> Scene:
    """Materials, lamps, walls and floor. `strong` also varies what no scene graph holds, in the source's look only."""
    look = DOMAINS[domain][1]
    strong = randomize == "strong" and look == "source"
    dressed, worn = [], {}
    for item in objects:
        if item.asset not in worn:  # chairs of one kind are a set
            worn[item.asset] = materials(item.label, look, strong, rng)
        dressed.append(replace(item, material=worn[item.asset][0], part_materials=tuple(worn[item.asset][1:])))
    lights, exposure, sky_rgb = lamps(look, rng), LAMPS[look][4], SKY_RGB[look]
    floor, wall, strips = Material(FLOOR_RGB, roughness=1.0), Material(WALL_RGB, roughness=1.0), ()
    if look == "target":
        floor, wall, strips = kitchen(objects, rng)
    elif strong:
        floor, wall = any_material(rng), any_material(rng)
        lights = [Light(tuple(np.array(light.position_world) + rng.uniform(-1, 1, 3) * (1, 1, 0.3)),
                        tuple(np.array(light.intensity) * rng.uniform(0.3, 1.7) * rng.uniform(0.7, 1.3, 3)))
                  for light in lights]
        sky_rgb, exposure = tuple(rng.uniform(0.15, 0.5) * rng.uniform(0.8, 1.2, 3)), float(rng.uniform(0.6, 1.3))
    return Scene(tuple(dressed), camera, tuple(lights), Sky(sky_rgb, sky_rgb), floor, exposure, strips=strips,
                 room=Room(LOW_M, HIGH_M, CEILING_M, wall), shadow_texels=SHADOW_TEXELS)


def materials(label: int, look: str, strong: bool, rng: np.random.Generator) -> list[Material]:
    """One a part of a category, in the colors and the finish of a look, or any."""
    if strong:
        return [any_material(rng) for _ in FINISH[look][label]]
    skins = []
    for colors, (metallic, roughness, pattern, scale_m, dark) in zip(COLORS[look][label], FINISH[look][label]):
        color = linear(colors[rng.integers(len(colors))])
        if pattern:
            pattern = Texture(pattern, tuple(dark * c for c in color), scale_m, 0.9, int(rng.integers(1 << 16)))
        skins.append(Material(color, metallic, roughness, pattern))
    return skins


def lamps(look: str, rng: np.random.Generator) -> list[Light]:
    """Groups of lamps under the ceiling; each group shares one group's light and casts one soft shadow."""
    places, count, apart_m, sent, _ = LAMPS[look]
    lights = []
    for place in places:
        middle = np.array(place) + rng.uniform(-LAMP_JITTER_M, LAMP_JITTER_M, 3) * (1, 1, 0.3)
        for i in range(count):
            x, y = turned((apart_m, 0.0), 2 * math.pi * i / count)
            lights.append(Light(tuple(map(float, middle + [x, y, 0.0])), tuple(s / count for s in sent)))
    return lights


def kitchen(objects: list[SceneObject], rng: np.random.Generator) -> tuple[Material, Material, tuple[Strip, ...]]:
    """The target's floor of wood or tiles, its brick or papered walls, and a carpet with a border below the table."""
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
    return floor, wall, tuple(
        Strip(table.position_world[:2], side, table.yaw_rad, matte(color, "noise", (0.6 * c for c in color), 0.03))
        for side, color in zip(sides, (rim, inner)))


def any_material(rng: np.random.Generator) -> Material:
    """Any color, finish and pattern."""
    scale_m = float(np.exp(rng.uniform(np.log(0.03), np.log(1.5))))
    pattern = Texture(str(rng.choice(PATTERNS)), tuple(rng.uniform(0.02, 0.9, 3)), scale_m, float(rng.uniform(0, 0.8)),
                      int(rng.integers(1 << 16)))
    return Material(tuple(rng.uniform(0.02, 0.9, 3)), float(rng.uniform() ** 3), float(rng.uniform(0.2, 0.9)), pattern)


ENV = Env(
    name="dining",
    vocabulary=Vocabulary(CATEGORIES, PREDICATES),
    presets={
        "quick": Preset(image_size=(192, 144), source_images=1000, target_images=400, lifted_images=400,
                         start_steps=500, steps=350, iterations=1, warmup=0.3),
        "paper": Preset(image_size=(WIDTH, HEIGHT), source_images=5000, target_images=8000, lifted_images=5000,
                         start_steps=10_000, steps=70_000, iterations=6, warmup=0.7),
    },
    domains=DOMAINS,
    threshold=0.2,
    adaptive=True,
    sample=sample_scene,
    render=render_scenes,
    world=World(
        # of all 42 ordered pairs with two predicates each, 50 guesses could find 60 %: only those with a table count
        rules=RelationRules({"left": 0.1, "right": 0.1, "front": 0.1, "behind": 0.1, "on": 0.03}, TABLE, {LAPTOP: TABLE}),
        camera=look_at(EYE_WORLD, AIM_WORLD, FOCAL_PX, WIDTH, HEIGHT),
        assets={name: mesh for name, (mesh, _) in ASSETS.items()},
        asset_sizes_m={name: tuple(tuple(scale * side for side in size_m) for scale in SCALES)
                       for name, (_, size_m) in ASSETS.items()},
        category_assets=tuple(named(kind) for kind in KINDS["source"]),
        yaws_rad=(None,) * len(CATEGORIES),
        pitch_spread_rad=0.0,
        size_spreads=(0.0,) * len(CATEGORIES),
        min_visible_fraction=25 / (192 * 144),
        sample_layout=sample_layout,
        snap_to_context=snap_to_context,
        sample_appearance=sample_appearance,
    ),
)
