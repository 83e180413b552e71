"""Drive-Sim (Prakash et al. 2021, section 5.3 and appendix A.2.3): a street seen from a car.

Source: structured domain randomization. A straight road with 2-6 lanes, 1-2 cars per lane, 2
sidewalks, 0-2 pedestrians, 1-3 houses and 1-3 trees, which may overlap; random time of day, clouds,
colors and textures. Target: a stand-in for KITTI, which cannot be distributed. Numbers and
positions of cars and pedestrians follow KITTI's labels; cars park in rows along the curb, houses
stand beside them, assets are others and materials plausible. It is not KITTI, and no table says so.

World: as in io/kitti.py, the camera is above the origin and looks along +y, with x to its right.
"""
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from envs.assets import street
from envs.assets.kitti_statistics import ACROSS, COUNTS, FACE_US, PLACES, X_EDGES_M, Y_EDGES_M
from sim2sg_lib.camera import Camera
from sim2sg_lib.env import DOMAINS, Env, Preset, World
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.io.kitti import camera_of, paper_camera
from sim2sg_lib.scene import (PATTERNS, Light, Material, RelationRules, Scene, SceneObject, Sky,
                              Strip, Texture)
from sim2sg_lib.sim.render import render_scenes, sample_scene

CATEGORIES = ("car", "pedestrian", "house", "vegetation")
CAR, PEDESTRIAN, HOUSE, VEGETATION = range(4)
WIDTH, HEIGHT = 1242, 375
LANE_M, SIDEWALK_M, ROAD_M = 3.5, 2.5, 240.0
SHADOW_TEXELS = 640  # side of the sun's shadow map, which covers the whole street
MAX_LANES, MAX_RIGHT = 6, 2  # of a road, and to the right of the camera's lane
HEADINGS_RAD = (math.pi / 2, -math.pi / 2)  # with the camera, oncoming
ACROSS_RAD = (0.0, math.pi)
# factors of an asset's extents, smallest to largest; cars and pedestrians of the target have
# KITTI's mean sizes and spreads
SIZE_FACTORS = {"source": {CAR: (1.0,), PEDESTRIAN: (0.92, 1.0, 1.06), HOUSE: (0.8, 1.0, 1.25),
                           VEGETATION: (0.6, 0.8, 1.0, 1.3, 1.7)}}
SIZE_FACTORS["target"] = SIZE_FACTORS["source"] | {CAR: ((0.82, 0.87, 0.94), (1.01, 0.99, 1.08)),
                                                   PEDESTRIAN: (1.03, 1.10)}
KINDS = {"source": street.SOURCE, "target": street.TARGET}
# per category: name of an asset -> the sizes (x, y, z extents) that it comes in, smallest first
Pool = list[dict[str, tuple[tuple[float, float, float], ...]]]
# name -> label, mesh, extents
ASSETS = {f"{look} {name}": (label, *asset) for look, kinds in KINDS.items()
          for label, category in enumerate(CATEGORIES) for name, asset in kinds[category].items()}

# not from KITTI: the fraction that is next to the one before, in a row of cars or a group of
# people, and the fraction that is added because hidden objects have no label. With both, the labels
# have KITTI's statistics, except for occlusion: fewer objects hide others here
FOLLOWS = {CAR: 0.3, PEDESTRIAN: 0.6}
HIDDEN = {CAR: 0.13, PEDESTRIAN: 0.15}
MAX_TRIES = 30  # positions tried for one car or pedestrian

# in most frames; the source has the target's camera, or the rows of the loop's table would differ by it
KITTI_P2 = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1.0, 0]])
CAMERA = camera_of(KITTI_P2, WIDTH, HEIGHT)


def asset_names(look: str) -> tuple[tuple[str, ...], ...]:
    """Per category, the names of a look's assets."""
    return tuple(tuple(f"{look} {name}" for name in KINDS[look][category])
                 for category in CATEGORIES)


def asset_sizes_m(name: str) -> tuple[tuple[float, float, float], ...]:
    label, _, size_m = ASSETS[name]
    factors = SIZE_FACTORS[name.split()[0]][label]
    return tuple(tuple(map(float, np.multiply(size_m, factor))) for factor in factors)


# --- content --------------------------------------------------------------------------------------

def sample_layout(env: Env, domain: str, rng: np.random.Generator
                  ) -> tuple[list[SceneObject], Camera]:
    """Objects without appearance, and the camera."""
    content, look = DOMAINS[domain]  # assets belong to the look
    names = env.world.category_assets if look == "source" else asset_names("target")
    pool = [{name: env.world.asset_sizes_m[name] for name in row} for row in names]
    objects = source_street(pool, rng) if content == "source" else target_street(pool, rng)
    return objects, env.world.camera


def sample_object(label: int, pool: Pool, x: float, y: float, yaw_rad: float,
                  rng: np.random.Generator) -> SceneObject:
    """A random asset of the category at (x, y), in a random size."""
    name = str(rng.choice(list(pool[label])))
    between, sizes_m = rng.uniform(), pool[label][name]
    ranges_m = zip(sizes_m[0], sizes_m[-1])  # smallest and largest
    size_m = tuple(float(low + between * (high - low)) for low, high in ranges_m)
    return SceneObject(label, name, (float(x), float(y), 0.0), size_m, float(yaw_rad))


def source_street(pool: Pool, rng: np.random.Generator) -> list[SceneObject]:
    """SDR: random counts and positions on a straight road; the camera is in a right-hand lane."""
    lanes = int(rng.integers(2, 7))
    own = int(rng.integers(lanes // 2, lanes))  # lanes are counted from the left
    left, right, objects = -(own + 0.5) * LANE_M, (lanes - own - 0.5) * LANE_M, []
    for lane in range(lanes):
        for _ in range(rng.integers(1, 3)):
            x, heading_rad = (lane - own) * LANE_M, HEADINGS_RAD[int(lane < lanes // 2)]
            objects.append(sample_object(CAR, pool, x, rng.uniform(5, 60), heading_rad, rng))
    for _ in range(rng.integers(0, 3)):
        x = rng.choice([left - SIDEWALK_M / 2, right + SIDEWALK_M / 2]) + rng.uniform(-0.8, 0.8)
        y, yaw_rad = rng.uniform(5, 35), rng.uniform(0, 2 * math.pi)
        objects.append(sample_object(PEDESTRIAN, pool, x, y, yaw_rad, rng))
    for label, nearest_m, farthest_m in ((HOUSE, 9.0, 22.0), (VEGETATION, 2.0, 12.0)):
        for _ in range(rng.integers(1, 4)):
            side = rng.choice([-1, 1])
            edge = (right if side > 0 else -left) + SIDEWALK_M
            x, y = side * (edge + rng.uniform(nearest_m, farthest_m)), rng.uniform(8, 65)
            objects.append(sample_object(label, pool, x, y, math.pi if side > 0 else 0.0, rng))
    return objects


def target_street(pool: Pool, rng: np.random.Generator) -> list[SceneObject]:
    """A residential street with KITTI's statistics of cars and pedestrians; nothing overlaps."""
    objects = []
    for label in (CAR, PEDESTRIAN):
        before, count = None, sample_index(COUNTS[CATEGORIES[label]], rng)
        for _ in range(count + rng.binomial(count, HIDDEN[label])):
            before = add_traffic_object(objects, label, before, pool, rng)
    for side in (-1, 1):
        front, y = rng.uniform(11, 15), rng.uniform(2, 16)
        while y < 75:  # a row of houses, with gaps
            house = sample_object(HOUSE, pool, 0.0, 0.0, math.pi if side > 0 else 0.0, rng)
            y += house.size_m[1] / 2
            x = side * (front + house.size_m[0] / 2)
            if rng.uniform() < 0.6:
                add_if_free(objects, moved_to(house, x, y))
            y += house.size_m[1] / 2 + rng.uniform(1, 14)
    for _ in range(rng.integers(3, 8)):
        x, y = rng.choice([-1, 1]) * rng.uniform(8.5, 14), rng.uniform(8, 65)
        add_if_free(objects, sample_object(VEGETATION, pool, x, y, 0.0, rng))
    return objects


def add_traffic_object(objects: list[SceneObject], label: int, before: SceneObject | None,
                       pool: Pool, rng: np.random.Generator) -> SceneObject | None:
    """One more car or pedestrian, in view and not overlapping; or `before` if there is no room."""
    for _ in range(MAX_TRIES):
        if before and rng.uniform() < FOLLOWS[label]:
            x, y, _ = before.position_world
            along_m = rng.choice((-1, 1)) * (ground_extents_m(before)[1] + rng.uniform(0.4, 2.0))
            if label == CAR:
                x, y = x + rng.normal(0, 0.2), y + along_m
            else:
                x, y = (x, y) + rng.normal(0, 0.8, 2)
            yaw_rad = before.yaw_rad
        else:
            table = np.array(PLACES[CATEGORIES[label]])
            column, row = divmod(sample_index(table.T.ravel(), rng), len(table))
            x, y = rng.uniform(*X_EDGES_M[row:row + 2]), rng.uniform(*Y_EDGES_M[column:column + 2])
            yaw_rad = rng.choice(HEADINGS_RAD) + rng.normal(0, 0.8)
            if label == CAR:
                turn, facing = rng.uniform(size=2)
                along = HEADINGS_RAD[int(facing < FACE_US[row] / (1 - ACROSS[row]))]
                yaw_rad = along + rng.normal(0, 0.04) + (math.pi / 2 if turn < ACROSS[row] else 0.0)
        item = sample_object(label, pool, x, y, yaw_rad, rng)
        if abs(x) < 0.84 * y + 0.5 and y > 2.5 and is_free(objects, item):  # in view
            objects.append(item)
            return item
    return before


def sample_index(weights: Sequence[float], rng: np.random.Generator) -> int:
    """A random index, `weights` being the histogram."""
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))


def moved_to(item: SceneObject, x: float, y: float) -> SceneObject:
    return replace(item, position_world=(float(x), float(y), item.position_world[2]))


def is_free(objects: list[SceneObject], item: SceneObject) -> bool:
    """Whether the item overlaps no object, by their footprints' boxes along x and y."""
    for other in objects:
        apart_m = np.subtract(item.position_world[:2], other.position_world[:2])
        if (np.abs(apart_m) < np.add(ground_extents_m(item), ground_extents_m(other)) / 2).all():
            return False
    return True


def add_if_free(objects: list[SceneObject], item: SceneObject) -> None:
    """Append an item that overlaps no object."""
    if is_free(objects, item):
        objects.append(item)


def ground_extents_m(item: SceneObject) -> tuple[float, float]:
    """Extents of the footprint along x and y."""
    cos, sin = abs(math.cos(item.yaw_rad)), abs(math.sin(item.yaw_rad))
    return item.size_m[0] * cos + item.size_m[1] * sin, item.size_m[0] * sin + item.size_m[1] * cos


def snap_to_context(objects: list[SceneObject], boxes_px: np.ndarray, camera: Camera,
                    rng: np.random.Generator) -> list[SceneObject]:
    """Cars take the nearest lane and its heading; vegetation becomes a row of trees (A.2.3).

    Unlike in the paper, cars that their boxes show across the street stay as they are.
    """
    snapped = []
    for item, (x0, _, x1, _) in zip(objects, boxes_px):
        x, y, _ = item.position_world
        if item.label == CAR and abs(math.sin(item.yaw_rad)) > math.sqrt(0.5):  # along the street
            lane = round(x / LANE_M) * LANE_M
            item = moved_to(item, lane + float(np.clip(x - lane, -0.8, 0.8)), y)
            # traffic is on the right
            snapped.append(replace(item, yaw_rad=HEADINGS_RAD[int(lane < 0)]))
        elif item.label == VEGETATION:
            wide_m = (x1 - x0) * max(y, 1.0) / camera.K[0, 0]
            count = int(np.clip(round(wide_m / item.size_m[0]), 1, 6))
            places = x + (np.arange(count) - (count - 1) / 2) * wide_m / count
            snapped += [moved_to(item, each, y + (rng.uniform(-1, 1) if count > 1 else 0))
                        for each in places]
        else:
            snapped.append(item)
    return snapped


# --- appearance -----------------------------------------------------------------------------------

def sample_appearance(objects: list[SceneObject], camera: Camera, domain: str, randomize: str,
                      rng: np.random.Generator) -> Scene:
    """Colors, textures, time of day, and the road that the cars imply."""
    look = DOMAINS[domain][1]
    paint = target_materials if look == "target" else source_materials
    painted = []
    for item in objects:
        first, *others = paint(item.label, randomize, rng)
        painted.append(replace(item, material=first, part_materials=tuple(others)))
    elevation = math.radians(rng.uniform(20, 60) if look == "target" else rng.uniform(12, 80))
    azimuth = rng.uniform(0, 2 * math.pi)
    flat = math.cos(elevation)
    sun = (math.cos(azimuth) * flat, math.sin(azimuth) * flat, math.sin(elevation))
    warm = 1 - math.sin(elevation)  # a low sun is yellow
    if look == "target":
        light = rng.uniform(1.1, 1.7) * np.array([1.0, 0.95, 0.86])
        sky = Sky((0.20, 0.33, 0.60), (0.62, 0.70, 0.78), 0.55, int(rng.integers(1 << 16)))
        exposure = float(rng.uniform(0.75, 1.1))
    else:
        bright = rng.uniform(0.3, 1.3)
        light = bright * np.array([1.0, 1 - 0.25 * warm, 1 - 0.5 * warm])
        zenith = bright * rng.uniform(0.2, 0.6) * np.array([*rng.uniform((0.4, 0.6), 1), 1.0])
        horizon, clouds = np.minimum(zenith * 1.6, 1.0), float(rng.uniform(0, 0.9))
        sky = Sky(tuple(zenith), tuple(horizon), clouds, int(rng.integers(1 << 16)))
        exposure = float(rng.uniform(0.7, 1.2))
    ground, strips = road(objects, look, rng)
    return Scene(tuple(painted), camera, (Light(sun, tuple(light), directional=True),), sky, ground,
                 exposure, strips=strips, shadow_texels=SHADOW_TEXELS)


def road(objects: list[SceneObject], look: str,
         rng: np.random.Generator) -> tuple[Material, tuple[Strip, ...]]:
    """Ground, sidewalks, asphalt and lane marks, wide enough for the cars."""
    # the camera's lane is 0; without cars in others there is one oncoming lane beside it
    lanes = {0, *(round(o.position_world[0] / LANE_M) for o in objects if o.label == CAR)}
    low, high = min(lanes) if len(lanes) > 1 else -1, min(max(lanes), MAX_RIGHT)
    low = max(low, high - MAX_LANES + 1, -2 if look == "target" else low)  # cars beyond are parked
    left, right = (low - 0.5) * LANE_M, (high + 0.5) * LANE_M
    if look == "target":
        ground = textured((0.12, 0.15, 0.05), (0.05, 0.07, 0.02), "grass", 0.8, 0.9, rng)
        asphalt = textured((0.14, 0.14, 0.15), (0.07, 0.07, 0.07), "asphalt", 1.2, 0.8, rng)
        pavement = textured((0.35, 0.33, 0.30), (0.22, 0.21, 0.2), "checks", 0.6, 0.4, rng)
        marks = Material((0.7, 0.7, 0.66))
    else:
        ground, asphalt, pavement = (random_material(rng, *shades)
                                     for shades in ((0.05, 0.5), (0.04, 0.3), (0.2, 0.6)))
        marks = Material((float(rng.uniform(0.5, 0.9)),) * 3)
    middle, wide = (left + right) / 2, right - left

    def along(x, width_m, material, dash_m=0.0):
        return Strip((x, 90.0), (ROAD_M, width_m), math.pi / 2, material, dash_m)

    return ground, (
        along(middle, wide + 2 * SIDEWALK_M, pavement), along(middle, wide, asphalt),
        along(left + 0.25, 0.14, marks), along(right - 0.25, 0.14, marks),
        *(along((lane + 0.5) * LANE_M, 0.14, marks, 3.0) for lane in range(low, high)))


def textured(color, other, pattern: str, scale_m: float, amount: float,
             rng: np.random.Generator) -> Material:
    """A matte material with a pattern and a random seed."""
    seed = int(rng.integers(1 << 16))
    texture = Texture(pattern, tuple(map(float, other)), scale_m, amount, seed)
    return Material(tuple(map(float, color)), roughness=1.0, texture=texture)


def random_material(rng: np.random.Generator, dark: float = 0.03, bright: float = 0.8,
                    tint: float = 0.4) -> Material:
    """Any color between two brightnesses, with any pattern."""
    colors = [np.exp(rng.uniform(math.log(dark), math.log(bright))) * rng.uniform(1 - tint, 1, 3)
              for _ in range(2)]
    pattern, scale_m = str(rng.choice(PATTERNS)), np.exp(rng.uniform(math.log(0.15), math.log(4)))
    return textured(*colors, pattern, float(scale_m), float(rng.uniform(0, 0.8)), rng)


def source_materials(label: int, randomize: str, rng: np.random.Generator) -> list[Material]:
    """Random materials of an object's parts; without `strong`, small parts have fixed ones."""
    if randomize == "strong":
        return [random_material(rng, tint=0.9) for _ in range(street.MATERIALS[label])]
    body = random_material(rng, tint=0.9)
    if label == CAR:
        paint = Material(body.color, float(rng.uniform(0, 0.6)), float(rng.uniform(0.25, 0.6)))
        return [paint, Material((0.03, 0.04, 0.05), 0.0, 0.2), Material((0.02,) * 3),
                Material((0.8, 0.8, 0.7)), Material((0.4, 0.02, 0.02))]
    if label == PEDESTRIAN:
        skin = Material(tuple(rng.uniform(0.15, 0.6) * np.array([1.0, 0.72, 0.55])))
        return [body, random_material(rng, tint=0.9), skin, Material((0.05, 0.03, 0.02))]
    if label == HOUSE:
        return [body, random_material(rng), Material((0.05, 0.06, 0.08), 0.0, 0.3),
                random_material(rng)]
    return [random_material(rng, 0.05, 0.5, 0.9), random_material(rng, 0.03, 0.3)]


CAR_COLORS = ((0.75, 0.75, 0.75), (0.5, 0.5, 0.52), (0.03, 0.03, 0.035), (0.14, 0.15, 0.17),
              (0.03, 0.06, 0.2), (0.3, 0.02, 0.02), (0.05, 0.12, 0.08))
WALLS = (((0.62, 0.56, 0.45), "noise"), ((0.70, 0.67, 0.60), "noise"),
         ((0.35, 0.13, 0.08), "brick"), ((0.45, 0.30, 0.2), "brick"), ((0.55, 0.45, 0.25), "noise"))


def target_materials(label: int, randomize: str, rng: np.random.Generator) -> list[Material]:
    """Plausible materials of an object's parts."""
    if label == CAR:
        paint = Material(CAR_COLORS[rng.integers(len(CAR_COLORS))], 0.35, 0.3)
        return [paint, Material((0.02, 0.025, 0.03), 0.0, 0.12), Material((0.015,) * 3),
                Material((0.85, 0.85, 0.8), 0.0, 0.2), Material((0.35, 0.01, 0.01), 0.0, 0.3)]
    if label == PEDESTRIAN:
        skin = Material(tuple(rng.uniform(0.2, 0.6) * np.array([1.0, 0.7, 0.55])))
        jacket = Material(tuple(rng.uniform(0.02, 0.3) * rng.uniform(0.5, 1, 3)))
        trousers = Material(tuple(rng.uniform(0.01, 0.12) * np.ones(3)))
        return [jacket, trousers, skin, Material((0.04, 0.025, 0.015))]
    if label == HOUSE:
        color, pattern = WALLS[rng.integers(len(WALLS))]
        scale_m = 0.5 if pattern == "brick" else 2.0
        wall = textured(color, np.array(color) * 0.6, pattern, scale_m, 0.5, rng)
        roof = textured((0.22, 0.07, 0.04), (0.1, 0.03, 0.02), "brick", 0.5, 0.7, rng)
        return [wall, roof, Material((0.06, 0.07, 0.09), 0.0, 0.15), Material((0.12, 0.06, 0.03))]
    green = rng.uniform(0.5, 1.2) * np.array([0.06, 0.10, 0.025])
    return [textured(green, green * 0.25, "noise", 0.35, 1.0, rng),
            textured((0.12, 0.08, 0.05), (0.05, 0.03, 0.02), "wood", 0.1, 0.8, rng)]


ENV = Env(
    name="drive",
    vocabulary=Vocabulary(CATEGORIES, ("left", "right", "front", "behind")),
    presets={
        "quick": Preset(image_size=(640, 194), source_images=600, target_images=800,
                        lifted_images=200, start_steps=400, steps=200, iterations=1, warmup=0.3,
                        batch=2),
        "paper": Preset(image_size=(WIDTH, HEIGHT), source_images=6000, target_images=9600,
                        lifted_images=6000, start_steps=10_000, steps=90_000, iterations=3,
                        warmup=0.3, batch=2)},
    domains=DOMAINS, threshold=0.2, adaptive=False, sample=sample_scene, render=render_scenes,
    world=World(
        rules=RelationRules({"left": 0.5, "right": 0.5, "front": 1.0, "behind": 1.0},
                            required_category=CAR, reach_m=80.0),
        camera=CAMERA,
        assets={name: mesh for name, (_, mesh, _) in ASSETS.items()},
        asset_sizes_m={name: asset_sizes_m(name) for name in ASSETS},
        category_assets=asset_names("source"),
        yaws_rad=(HEADINGS_RAD + ACROSS_RAD, None, (0.0, math.pi), (0.0,)),
        pitch_spread_rad=math.radians(0.35),
        size_spreads=(0.09, 0.1, 0.4, 0.6),
        min_visible_fraction=0.0001,  # all that KITTI's level `hard` takes
        sample_layout=sample_layout,
        snap_to_context=snap_to_context,
        sample_appearance=sample_appearance,
        paper_camera=paper_camera(WIDTH, HEIGHT)))
