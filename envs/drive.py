"""Drive-Sim (Prakash et al. 2021, section 5.3 and appendix A.2.3): a street seen by a car's camera, after KITTI.

Source: structured domain randomization. 2-6 lanes of a straight road, 1-2 cars in each, 2 sidewalks, 0-2 pedestrians, 1-3
houses and 1-3 trees, nothing minds what it runs into; time of day, clouds, random colors and textures.
Target: a stand-in for KITTI, which cannot be shipped: cars and pedestrians as many and where KITTI's labels have them,
cars in rows along the kerb, houses beside them, other assets, plausible materials. It is not KITTI, and no table calls it so.

World: as in kitti.py, the camera stands above the origin and looks along +y; x is to its right.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.assets import street
from sim2sg_lib.camera import Camera
from sim2sg_lib.env import DOMAINS, Env, Preset, World
from sim2sg_lib.graph import Vocabulary
from sim2sg_lib.io.kitti import camera_of, paper_camera
from sim2sg_lib.scene import (
    PATTERNS,
    Light,
    Material,
    RelationRules,
    Scene,
    SceneObject,
    Sky,
    Strip,
    Texture,
)
from sim2sg_lib.sim.render import render_scenes, sample_scene

CATEGORIES = ("car", "pedestrian", "house", "vegetation")
CAR, PEDESTRIAN, HOUSE, VEGETATION = range(4)
WIDTH, HEIGHT = 1242, 375
LANE_M, SIDEWALK_M, ROAD_M = 3.5, 2.5, 240.0
SHADOW_TEXELS = 640  # a side of the sun's shadow map, which covers a whole street
MOST_LANES, MOST_RIGHT = 6, 2  # of a road, and to the right of ours
HEADINGS_RAD = (math.pi / 2, -math.pi / 2)  # with us, towards us
# of an asset's extents, smallest to largest; the target's cars and pedestrians come out with KITTI's means and spreads
SIZE_FACTORS = {"source": {CAR: (1.0,), PEDESTRIAN: (0.92, 1.0, 1.06), HOUSE: (0.8, 1.0, 1.25),
                           VEGETATION: (0.6, 0.8, 1.0, 1.3, 1.7)}}
SIZE_FACTORS["target"] = SIZE_FACTORS["source"] | {CAR: ((0.82, 0.87, 0.94), (1.01, 0.99, 1.08)), PEDESTRIAN: (1.03, 1.10)}
KINDS = {"source": street.SOURCE, "target": street.TARGET}
ASSETS = {f"{look} {name}": (label, *asset) for look, kinds in KINDS.items() for label, category in enumerate(CATEGORIES)
          for name, asset in kinds[category].items()}  # name -> label, mesh, extents

# --- what KITTI's 7,481 label files say of cars and pedestrians

# how many of them have 0, 1, 2, ... in a frame, as shares
COUNTS = {CAR: (.107, .190, .147, .110, .101, .082, .068, .057, .039, .030, .023, .016, .013, .008, .006, .003),
          PEDESTRIAN: (.762, .137, .035, .018, .013, .007, .005, .006, .003, .003, .003, .002, .002, .001, .001, .001, .001)}
# where they stand, in thousandths: a row for each bin across the street, a column for each bin of depth
X_EDGES_M = (-40, -15, -10, -7, -5, -3, -1, 1, 3, 5, 7, 10, 15, 40)
Y_EDGES_M = (0, 6, 10, 15, 20, 30, 40, 55, 80)
PLACES = {CAR: ((0, 0, 0, 2, 13, 19, 25, 11), (0, 0, 5, 11, 18, 14, 13, 7), (0, 7, 15, 15, 21, 17, 14, 4),
                (3, 16, 20, 18, 28, 18, 11, 6), (15, 16, 21, 18, 31, 22, 17, 11), (6, 5, 7, 7, 14, 12, 11, 8),
                (0, 4, 3, 7, 28, 22, 16, 4), (13, 11, 14, 14, 24, 16, 14, 3), (13, 14, 17, 15, 24, 15, 12, 4),
                (1, 4, 5, 5, 8, 6, 5, 2), (0, 2, 5, 5, 7, 4, 4, 2), (0, 0, 3, 3, 6, 3, 6, 2), (0, 0, 0, 1, 10, 8, 7, 5)),
          PEDESTRIAN: ((0, 0, 0, 0, 4, 8, 1, 0), (0, 0, 4, 13, 22, 6, 4, 3), (0, 1, 12, 11, 13, 5, 5, 1),
                       (0, 14, 18, 14, 12, 2, 0, 0), (6, 43, 31, 27, 14, 6, 2, 1), (9, 30, 20, 21, 27, 4, 3, 5),
                       (4, 30, 28, 16, 16, 5, 5, 2), (22, 55, 30, 18, 20, 11, 2, 2), (16, 50, 26, 27, 29, 12, 1, 0),
                       (1, 24, 15, 12, 19, 4, 3, 0), (0, 5, 13, 9, 7, 3, 1, 0), (0, 0, 3, 6, 10, 6, 1, 0),
                       (0, 0, 0, 0, 3, 5, 2, 0))}
# of the cars in each bin across the street, the shares that face us and that stand across
FACE_US = (.69, .71, .43, .41, .64, .51, .09, .11, .07, .10, .08, .11, .12)
ACROSS = (.11, .11, .34, .49, .08, .03, .02, .03, .24, .51, .56, .42, .55)
# ours: the share that stands next to the one before, in a row of cars or a group of people, and how many more stand there
# since some will be hidden and bear no label: so the labels come out with KITTI's numbers. Not with its
# occlusions: there is less here to hide behind, the README says how much less
FOLLOWS = {CAR: 0.3, PEDESTRIAN: 0.6}
HIDDEN = {CAR: 0.22, PEDESTRIAN: 0.15}
PLACE_TRIES = 30  # of one car or pedestrian, then the street is full

KITTI_P2 = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1.0, 0]])  # of most frames
CAMERAS = {"source": paper_camera(WIDTH, HEIGHT), "target": camera_of(KITTI_P2, WIDTH, HEIGHT)}


def named(look: str) -> tuple[tuple[str, ...], ...]:
    """Per category, the names of a look's assets."""
    return tuple(tuple(f"{look} {name}" for name in KINDS[look][category]) for category in CATEGORIES)


# --- content ----------------------------------------------------------------------------------------------------------

def sample_layout(env: Env, domain: str, rng: np.random.Generator) -> tuple[list[SceneObject], Camera]:
    """Objects without appearance, and the camera."""
    content, look = DOMAINS[domain]
    stock = Stock(env.world.category_assets if look == "source" else named("target"), env.world.asset_sizes_m)  # assets belong to the look
    objects = street_of_source(stock, rng) if content == "source" else street_of_target(stock, rng)
    return objects, CAMERAS[content]


@dataclass(frozen=True)
class Stock:
    """What a street is built of: per category the names of assets, and asset name -> the sizes it comes in, smallest first."""

    names: tuple[tuple[str, ...], ...]
    sizes_m: dict[str, tuple[tuple[float, float, float], ...]]


def stand(label: int, stock: Stock, x: float, y: float, yaw_rad: float, rng: np.random.Generator) -> SceneObject:
    """A random asset of the category at (x, y), in a random size."""
    name = str(rng.choice(stock.names[label]))
    share = rng.uniform()
    size_m = tuple(float(low + share * (high - low)) for low, high in zip(stock.sizes_m[name][0], stock.sizes_m[name][-1]))
    return SceneObject(label, name, (float(x), float(y), 0.0), size_m, float(yaw_rad))


def street_of_source(stock: Stock, rng: np.random.Generator) -> list[SceneObject]:
    """SDR: counts and places at random along a straight road; the camera drives in one of its right-hand lanes."""
    lanes = int(rng.integers(2, 7))
    own = int(rng.integers(lanes // 2, lanes))  # lanes are counted from the left
    left, right = -(own + 0.5) * LANE_M, (lanes - own - 0.5) * LANE_M
    objects = []
    for lane in range(lanes):
        for _ in range(rng.integers(1, 3)):
            heading = HEADINGS_RAD[0 if lane >= lanes // 2 else 1]
            objects.append(stand(CAR, stock, (lane - own) * LANE_M, rng.uniform(5, 60), heading, rng))
    for _ in range(rng.integers(0, 3)):
        x = rng.choice([left - SIDEWALK_M / 2, right + SIDEWALK_M / 2])
        x += rng.uniform(-0.8, 0.8)
        objects.append(stand(PEDESTRIAN, stock, x, rng.uniform(5, 35), rng.uniform(0, 2 * math.pi), rng))
    for label, nearest_m, farthest_m in ((HOUSE, 9.0, 22.0), (VEGETATION, 2.0, 12.0)):
        for _ in range(rng.integers(1, 4)):
            side = rng.choice([-1, 1])
            edge = (right if side > 0 else -left) + SIDEWALK_M
            x = side * (edge + rng.uniform(nearest_m, farthest_m))
            objects.append(stand(label, stock, x, rng.uniform(8, 65), math.pi if side > 0 else 0.0, rng))
    return objects


def street_of_target(stock: Stock, rng: np.random.Generator) -> list[SceneObject]:
    """A residential street: KITTI's numbers, places and sizes of cars and pedestrians; nothing stands in anything else."""
    objects = []
    for label in (CAR, PEDESTRIAN):
        before, count = None, draw(COUNTS[label], rng)
        for _ in range(count + rng.binomial(count, HIDDEN[label])):
            before = join(objects, label, before, stock, rng)
    for side in (-1, 1):
        front, y = rng.uniform(11, 15), rng.uniform(2, 16)
        while y < 75:  # a row of houses, with gaps
            house = stand(HOUSE, stock, 0.0, 0.0, math.pi if side > 0 else 0.0, rng)
            y += house.size_m[1] / 2
            x = side * (front + house.size_m[0] / 2)
            if rng.uniform() < 0.6:
                add(objects, place_at(house, x, y))
            y += house.size_m[1] / 2 + rng.uniform(1, 14)
    for _ in range(rng.integers(3, 8)):
        side = rng.choice([-1, 1])
        add(objects, stand(VEGETATION, stock, side * rng.uniform(8.5, 14), rng.uniform(8, 65), 0.0, rng))
    return objects


def join(objects: list[SceneObject], label: int, before: SceneObject | None, stock: Stock, rng: np.random.Generator
         ) -> SceneObject | None:
    """A car or pedestrian more, drawn again where it would be out of sight or in another. Returns it, or `before`."""
    for _ in range(PLACE_TRIES):
        if before and rng.uniform() < FOLLOWS[label]:
            x, y, _ = before.position_world
            along_m = rng.choice((-1, 1)) * (along_street(before)[1] + rng.uniform(0.4, 2.0))
            x, y = (x + rng.normal(0, 0.2), y + along_m) if label == CAR else (x, y) + rng.normal(0, 0.8, 2)
            yaw_rad = before.yaw_rad
        else:
            table = np.array(PLACES[label])
            column, row = divmod(draw(table.T.ravel(), rng), len(table))
            x, y = rng.uniform(*X_EDGES_M[row:row + 2]), rng.uniform(*Y_EDGES_M[column:column + 2])
            yaw_rad = rng.choice(HEADINGS_RAD) + rng.normal(0, 0.8)
            if label == CAR:
                turn, facing = rng.uniform(size=2)
                along = HEADINGS_RAD[int(facing < FACE_US[row] / (1 - ACROSS[row]))]
                yaw_rad = along + rng.normal(0, 0.04) + (math.pi / 2 if turn < ACROSS[row] else 0.0)
        item = stand(label, stock, x, y, yaw_rad, rng)
        if abs(x) < 0.84 * y + 0.5 and y > 2.5 and fits(objects, item):  # KITTI's camera sees 0.84 m aside a meter ahead
            objects.append(item)
            return item
    return before


def draw(shares: Sequence[float], rng: np.random.Generator) -> int:
    """A number from its histogram."""
    return int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))


def place_at(item: SceneObject, x: float, y: float) -> SceneObject:
    return replace(item, position_world=(float(x), float(y), item.position_world[2]))


def fits(objects: list[SceneObject], item: SceneObject) -> bool:
    """Whether it stands in no other: the footprints' boxes along the street are compared."""
    return not any(all(abs(a - b) < (extent_a + extent_b) / 2 for a, b, extent_a, extent_b in
                       zip(item.position_world[:2], other.position_world[:2], along_street(item), along_street(other)))
                   for other in objects)


def add(objects: list[SceneObject], item: SceneObject) -> None:
    """If it fits."""
    if fits(objects, item):
        objects.append(item)


def along_street(item: SceneObject) -> tuple[float, float]:
    """Extents of the footprint along x and y."""
    cos, sin = abs(math.cos(item.yaw_rad)), abs(math.sin(item.yaw_rad))
    return item.size_m[0] * cos + item.size_m[1] * sin, item.size_m[0] * sin + item.size_m[1] * cos


def snap_to_context(objects: list[SceneObject], boxes_px: np.ndarray, camera: Camera, rng: np.random.Generator) -> list[SceneObject]:
    """Lifted cars keep to their lanes and head as those do; one box of vegetation becomes as many trees as fit in it (A.2.3)."""
    settled = []
    for item, (x0, _, x1, _) in zip(objects, boxes_px):
        x, y, _ = item.position_world
        if item.label == CAR:
            lane = round(x / LANE_M) * LANE_M
            ahead = HEADINGS_RAD[0 if lane >= 0 else 1]  # a box does not tell, but we drive on the right
            settled.append(replace(place_at(item, lane + float(np.clip(x - lane, -0.8, 0.8)), y), yaw_rad=ahead))
        elif item.label == VEGETATION:
            wide_m = (x1 - x0) * max(y, 1.0) / camera.K[0, 0]
            count = int(np.clip(round(wide_m / item.size_m[0]), 1, 6))
            places = x + (np.arange(count) - (count - 1) / 2) * wide_m / count
            settled += [place_at(item, each, y + (rng.uniform(-1, 1) if count > 1 else 0)) for each in places]
        else:
            settled.append(item)
    return settled


# --- appearance -------------------------------------------------------------------------------------------------------

def sample_appearance(objects: list[SceneObject], camera: Camera, domain: str, randomize: str, rng: np.random.Generator) -> Scene:
    """Colors, textures, time of day, and the road that the cars imply."""
    look = DOMAINS[domain][1]
    paint = paint_of_target if look == "target" else paint_of_source
    dressed = []
    for item in objects:
        first, *others = paint(item.label, randomize, rng)
        dressed.append(replace(item, material=first, part_materials=tuple(others)))
    elevation = math.radians(rng.uniform(20, 60) if look == "target" else rng.uniform(12, 80))
    azimuth = rng.uniform(0, 2 * math.pi)
    sun = (math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation))
    warm = 1 - math.sin(elevation)  # low suns are yellow
    if look == "target":
        light, sky = rng.uniform(1.1, 1.7) * np.array([1.0, 0.95, 0.86]), Sky((0.20, 0.33, 0.60), (0.62, 0.70, 0.78), 0.55,
                                                                             int(rng.integers(1 << 16)))
        exposure = float(rng.uniform(0.75, 1.1))
    else:
        bright = rng.uniform(0.3, 1.3)
        light = bright * np.array([1.0, 1 - 0.25 * warm, 1 - 0.5 * warm])
        zenith = bright * rng.uniform(0.2, 0.6) * np.array([rng.uniform(0.4, 1), rng.uniform(0.6, 1), 1.0])
        sky = Sky(tuple(zenith), tuple(np.minimum(zenith * 1.6, 1.0)), float(rng.uniform(0, 0.9)), int(rng.integers(1 << 16)))
        exposure = float(rng.uniform(0.7, 1.2))
    ground, strips = road(objects, look, rng)
    return Scene(tuple(dressed), camera, (Light(sun, tuple(light), directional=True),), sky, ground, exposure, strips=strips,
                 shadow_texels=SHADOW_TEXELS)


def road(objects: list[SceneObject], look: str, rng: np.random.Generator) -> tuple[Material, tuple[Strip, ...]]:
    """Ground, sidewalks, asphalt and marks, as wide as the cars' places ask for."""
    # ours is lane 0; beside it an oncoming one if there is no car that says more
    lanes = {0, *(round(o.position_world[0] / LANE_M) for o in objects if o.label == CAR)}
    low, high = min(lanes) if len(lanes) > 1 else -1, min(max(lanes), MOST_RIGHT)
    low = max(low, high - MOST_LANES + 1, -2 if look == "target" else low)  # cars beyond stand in drives, not in lanes
    left, right = (low - 0.5) * LANE_M, (high + 0.5) * LANE_M
    if look == "target":
        ground = textured((0.12, 0.15, 0.05), (0.05, 0.07, 0.02), "grass", 0.8, 0.9, rng)
        asphalt = textured((0.14, 0.14, 0.15), (0.07, 0.07, 0.07), "asphalt", 1.2, 0.8, rng)
        pavement, marks = textured((0.35, 0.33, 0.30), (0.22, 0.21, 0.2), "checks", 0.6, 0.4, rng), Material((0.7, 0.7, 0.66))
    else:
        ground, asphalt, pavement = (random_material(rng, *shades) for shades in ((0.05, 0.5), (0.04, 0.3), (0.2, 0.6)))
        marks = Material((float(rng.uniform(0.5, 0.9)),) * 3)
    middle, wide = (left + right) / 2, right - left
    strips = [Strip((middle, 90.0), (ROAD_M, wide + 2 * SIDEWALK_M), math.pi / 2, pavement),
              Strip((middle, 90.0), (ROAD_M, wide), math.pi / 2, asphalt)]
    strips += [Strip((x, 90.0), (ROAD_M, 0.14), math.pi / 2, marks) for x in (left + 0.25, right - 0.25)]
    strips += [Strip(((lane + 0.5) * LANE_M, 90.0), (ROAD_M, 0.14), math.pi / 2, marks, 3.0) for lane in range(low, high)]
    return ground, tuple(strips)


def textured(color, other, pattern: str, scale_m: float, amount: float, rng: np.random.Generator) -> Material:
    """A matte material with a pattern, its seed random."""
    return Material(tuple(map(float, color)), roughness=1.0,
                    texture=Texture(pattern, tuple(map(float, other)), scale_m, amount, int(rng.integers(1 << 16))))


def random_material(rng: np.random.Generator, dark: float = 0.03, bright: float = 0.8, tint: float = 0.4) -> Material:
    """Any color between two brightnesses, with any pattern."""
    colors = [np.exp(rng.uniform(math.log(dark), math.log(bright))) * rng.uniform(1 - tint, 1, 3) for _ in range(2)]
    return textured(*colors, str(rng.choice(PATTERNS)), float(np.exp(rng.uniform(math.log(0.15), math.log(4)))),
                    float(rng.uniform(0, 0.8)), rng)


def paint_of_source(label: int, randomize: str, rng: np.random.Generator) -> list[Material]:
    """Materials of an object's parts: random colors and textures; with `strong` those of small parts, too."""
    if randomize == "strong":
        parts = (street.CAR_PARTS, street.WALKER_PARTS, street.HOUSE_PARTS, street.TREE_PARTS)[label]
        return [random_material(rng, tint=0.9) for _ in parts]
    body = random_material(rng, tint=0.9)
    if label == CAR:
        paint = Material(body.color, float(rng.uniform(0, 0.6)), float(rng.uniform(0.25, 0.6)))
        return [paint, Material((0.03, 0.04, 0.05), 0.0, 0.2), Material((0.02,) * 3), Material((0.8, 0.8, 0.7)),
                Material((0.4, 0.02, 0.02))]
    if label == PEDESTRIAN:
        skin = rng.uniform(0.15, 0.6) * np.array([1.0, 0.72, 0.55])
        return [body, random_material(rng, tint=0.9), Material(tuple(skin)), Material((0.05, 0.03, 0.02))]
    if label == HOUSE:
        return [body, random_material(rng), Material((0.05, 0.06, 0.08), 0.0, 0.3), random_material(rng)]
    return [random_material(rng, 0.05, 0.5, 0.9), random_material(rng, 0.03, 0.3)]


CAR_COLORS = ((0.75, 0.75, 0.75), (0.5, 0.5, 0.52), (0.03, 0.03, 0.035), (0.14, 0.15, 0.17), (0.03, 0.06, 0.2),
               (0.3, 0.02, 0.02), (0.05, 0.12, 0.08))
WALLS = (((0.62, 0.56, 0.45), "noise"), ((0.70, 0.67, 0.60), "noise"), ((0.35, 0.13, 0.08), "brick"),
         ((0.45, 0.30, 0.2), "brick"), ((0.55, 0.45, 0.25), "noise"))


def paint_of_target(label: int, randomize: str, rng: np.random.Generator) -> list[Material]:
    """Materials as such things have them."""
    if label == CAR:
        paint = Material(CAR_COLORS[rng.integers(len(CAR_COLORS))], 0.35, 0.3)
        return [paint, Material((0.02, 0.025, 0.03), 0.0, 0.12), Material((0.015,) * 3), Material((0.85, 0.85, 0.8), 0.0, 0.2),
                Material((0.35, 0.01, 0.01), 0.0, 0.3)]
    if label == PEDESTRIAN:
        skin = rng.uniform(0.2, 0.6) * np.array([1.0, 0.7, 0.55])
        return [Material(tuple(rng.uniform(0.02, 0.3) * rng.uniform(0.5, 1, 3))),
                Material(tuple(rng.uniform(0.01, 0.12) * np.ones(3))), Material(tuple(skin)), Material((0.04, 0.025, 0.015))]
    if label == HOUSE:
        color, pattern = WALLS[rng.integers(len(WALLS))]
        wall = textured(color, np.array(color) * 0.6, pattern, 0.5 if pattern == "brick" else 2.0, 0.5, rng)
        roof = textured((0.22, 0.07, 0.04), (0.1, 0.03, 0.02), "brick", 0.5, 0.7, rng)
        return [wall, roof, Material((0.06, 0.07, 0.09), 0.0, 0.15), Material((0.12, 0.06, 0.03))]
    green = rng.uniform(0.5, 1.2) * np.array([0.06, 0.10, 0.025])
    return [textured(green, green * 0.25, "noise", 0.35, 1.0, rng),
            textured((0.12, 0.08, 0.05), (0.05, 0.03, 0.02), "wood", 0.1, 0.8, rng)]


ENV = Env(
    name="drive",
    vocabulary=Vocabulary(CATEGORIES, ("left", "right", "front", "behind")),
    presets={
        "quick": Preset(image_size=(320, 97), source_images=1000, target_images=400, lifted_images=400,
                         start_steps=500, steps=350, iterations=1, warmup=0.3),
        "paper": Preset(image_size=(WIDTH, HEIGHT), source_images=6000, target_images=9600, lifted_images=6000,
                         start_steps=10_000, steps=90_000, iterations=3, warmup=0.3),
    },
    domains=DOMAINS,
    threshold=0.2,
    adaptive=False,
    sample=sample_scene,
    render=render_scenes,
    world=World(
        rules=RelationRules({"left": 0.5, "right": 0.5, "front": 1.0, "behind": 1.0}, required_category=CAR, reach_m=80.0),
        camera=CAMERAS["source"],
        assets={name: mesh for name, (_, mesh, _) in ASSETS.items()},
        asset_sizes_m={name: tuple(tuple(map(float, np.multiply(size_m, factor))) for factor in SIZE_FACTORS[name.split()[0]][label])
                       for name, (label, _, size_m) in ASSETS.items()},
        category_assets=named("source"),
        yaws_rad=(HEADINGS_RAD, None, (0.0, math.pi), (0.0,)),
        pitch_spread_rad=math.radians(0.35),
        size_spreads=(0.09, 0.1, 0.4, 0.6),
        min_visible_fraction=0.0005,
        sample_layout=sample_layout,
        snap_to_context=snap_to_context,
        sample_appearance=sample_appearance,
    ),
)
