"""Cars, pedestrians, houses and trees of Drive-Sim, in meters.

An asset's own x axis points ahead: to a car's hood, a house's front.
"""
import math

import numpy as np

from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import (Part, box_mesh, compose, cylinder_mesh, flat_mesh, prism_mesh,
                                   sphere_mesh)

Asset = tuple[Mesh, tuple[float, float, float]]  # a unit mesh and its extents in meters
BOX, BALL, ROUND = box_mesh(), sphere_mesh(1), cylinder_mesh(12)
# numbers of materials: paint, glass, tire, lamp and rear lamp of a car; jacket, trousers, skin and
# hair of a walker; wall, roof, window and door of a house; leaves and bark of a tree
MATERIALS = (5, 4, 4, 2)


def car(length_m: float, width_m: float, height_m: float, hood: float, trunk: float, screen: float,
        rear: float) -> Asset:
    """A car on four wheels.

    hood, trunk: fractions of the length before and behind the foot of the cabin.
    screen, rear: fractions of the length by which windshield and rear window lean in.
    """
    half, belt, sill, wheel = length_m / 2, 0.6 * height_m, 0.16 * height_m, 0.22 * height_m
    front, back = half - hood * length_m, -half + trunk * length_m
    body = [(-half, sill), (half - 0.03 * length_m, sill), (half, 0.35 * height_m),
            (half - 0.04 * length_m, 0.5 * height_m), (front, belt), (back, belt),
            (-half + 0.02 * length_m, belt - 0.04 * height_m)]
    cabin = [(back, belt), (front, belt), (front - screen * length_m, height_m - 0.04),
             (back + rear * length_m, height_m - 0.04)]
    roof = [(cabin[3][0] - 0.05, height_m - 0.06), (cabin[2][0] + 0.05, height_m - 0.06),
            (cabin[2][0], height_m), (cabin[3][0], height_m)]
    parts = [extruded(body, 0.98 * width_m, 0, 0.93), extruded(cabin, 0.9 * width_m, 1, 0.84),
             extruded(roof, 0.8 * width_m, 0, 0.95)]
    for x in (half - 0.19 * length_m, -half + 0.19 * length_m):
        for side in (-1, 1):
            hub, turn_rad = (x, side * (width_m / 2 - 0.2), wheel), (-side * math.pi / 2, 0.0, 0.0)
            parts.append(Part(ROUND, (2 * wheel, 2 * wheel, 0.2), hub, 2, turn_rad))
    for side in (-1, 1):
        y = side * (width_m / 2 - 0.28)
        lamp, rear_lamp = half - 0.035 * length_m, -half + 0.015 * length_m  # along x
        parts += [Part(BOX, (0.06, 0.36, 0.14), (lamp, y, 0.38 * height_m), 3),
                  Part(BOX, (0.06, 0.3, 0.18), (rear_lamp, y, 0.42 * height_m), 4)]
    # pillars between the windows
    for x in (back + 0.5 * (front - back), back + 0.15 * (front - back)):
        top = height_m - 0.05
        pillar = [(x - 0.05, belt), (x + 0.05, belt), (x + 0.05, top), (x - 0.05, top)]
        parts.append(extruded(pillar, 0.905 * width_m, 0, 0.84))
    return compose(parts)


def extruded(outline: list[tuple[float, float]], width_m: float, number: int, top: float) -> Part:
    """A side view (x, z) in meters, extruded to a width."""
    (low_x, low_z), (high_x, high_z) = np.min(outline, 0), np.max(outline, 0)
    return Part(prism_mesh(outline, top), (high_x - low_x, width_m, high_z - low_z),
                ((low_x + high_x) / 2, 0.0, low_z), number)


def walker(h: float, stride_rad: float, build: float, coat: float, pack: bool = False) -> Asset:
    """A figure h meters tall; coat: how far the jacket reaches down, as a fraction of the legs."""
    leg, limb, parts = 0.47 * h, cylinder_mesh(8, 0.8), []
    for side in (-1, 1):
        swing = side * stride_rad
        hip, shoulder = (0.0, side * 0.09 * build, leg), (0.0, side * 0.24 * build, 0.81 * h)
        foot = (-leg * math.sin(swing) + 0.05, hip[1], leg * (1 - math.cos(swing)))
        arm_turn_rad = (math.pi - side * 0.12, -0.8 * swing, 0.0)
        # a limb hangs from its joint: it is built upwards and turned over
        parts += [Part(limb, (0.15 * build, 0.15 * build, leg), hip, 1, (math.pi, swing, 0.0)),
                  Part(limb, (0.1 * build, 0.1 * build, 0.4 * h), shoulder, 0, arm_turn_rad),
                  Part(BOX, (0.27, 0.1, 0.08), foot, 3)]
    torso = 0.37 * h + coat * leg
    jacket = cylinder_mesh(10, 0.9 if coat < 0.3 else 0.7)
    parts += [Part(jacket, (0.3 * build, 0.44 * build, torso), (0.0, 0.0, 0.83 * h - torso), 0),
              Part(BALL, (0.19, 0.17, 0.15 * h), (0.02, 0.0, 0.84 * h), 2),
              Part(BALL, (0.21, 0.19, 0.11 * h), (-0.01, 0.0, 0.9 * h), 3)]
    if pack:
        parts.append(Part(BOX, (0.16, 0.3, 0.26 * h), (-0.2 * build, 0.0, 0.53 * h), 3))
    return compose(parts)


def house(depth_m: float, width_m: float, wall_m: float, roof: str, roof_m: float, columns: int,
          rows: int) -> Asset:
    """A house; roof: "gable" (ridge along the front), "front gable", "hip" or "flat"."""
    parts = [Part(BOX, (depth_m, width_m, wall_m), (0.0, 0.0, 0.0), 0),
             house_roof(depth_m, width_m, wall_m, roof, roof_m)]
    if roof != "flat":  # a chimney
        parts.append(Part(BOX, (0.6, 0.6, roof_m + 0.4), (-0.15 * depth_m, 0.25 * width_m, wall_m), 0))
    story, pitch = wall_m / rows, width_m / columns
    for row in range(rows):
        for column in range(columns):
            y = (column - (columns - 1) / 2) * pitch
            size, z, number = (0.12, 1.2, 2.1), 0.0, 3  # a door
            if row > 0 or column != columns // 2:
                size = (0.1, min(1.3, 0.55 * pitch), 0.5 * story)
                z, number = row * story + 0.28 * story, 2
            parts += [Part(BOX, size, (side * depth_m / 2, y, z), number) for side in (-1, 1)]
        z = row * story + 0.28 * story
        for x in (-0.25 * depth_m, 0.25 * depth_m):
            parts += [Part(BOX, (1.1, 0.1, 0.5 * story), (x, side * width_m / 2, z), 2)
                      for side in (-1, 1)]
    return compose(parts)


def house_roof(depth_m: float, width_m: float, wall_m: float, roof: str, roof_m: float) -> Part:
    """The roof, with eaves."""
    x_m, y_m, top = depth_m + 0.8, width_m + 0.8, (0.0, 0.0, wall_m)
    gable = prism_mesh([(-1, 0), (1, 0), (0, 1)])
    if roof == "gable":
        return Part(gable, (x_m, y_m, roof_m), top, 1)
    if roof == "front gable":
        return Part(gable, (y_m, x_m, roof_m), top, 1, (0.0, 0.0, math.pi / 2))
    if roof == "hip":
        hip = prism_mesh([(-1, 0), (1, 0), (0.15, 1), (-0.15, 1)], 0.35)
        return Part(hip, (x_m, y_m, roof_m), top, 1)
    return Part(BOX, (depth_m + 0.3, width_m + 0.3, roof_m), top, 1)


def crown(seed: int, rough: float = 0.22, fineness: int = 2) -> Mesh:
    """A ball of leaves: its surface pushed in and out at random, flat-shaded."""
    ball, rng = sphere_mesh(fineness), np.random.default_rng(seed)
    radial = (ball.verts - [0, 0, 0.5]) * (1 + rough * rng.uniform(-1, 1, (len(ball.verts), 1)))
    low, high = radial.min(0), radial.max(0)
    unit = (radial - [*(low + high)[:2] / 2, low[2]]) / (high - low)
    return flat_mesh([list(unit[face]) for face in ball.faces])


def tree(height_m: float, width_m: float, trunk: float, blobs: int, seed: int) -> Asset:
    """A broad-leaved tree. trunk: bare fraction of its height; blobs: balls of leaves."""
    rng, crown_m = np.random.default_rng(seed), height_m * (1 - trunk)
    trunk_m = (0.05 * height_m, 0.05 * height_m, (trunk + 0.2) * height_m)
    parts = [Part(cylinder_mesh(8, 0.6), trunk_m, (0.0, 0.0, 0.0), 1)]
    if blobs == 1:
        leaves = Part(crown(seed), (width_m, width_m, crown_m), (0.0, 0.0, trunk * height_m), 0)
        return compose([*parts, leaves])
    for i in range(blobs):
        angle, scale = 2 * math.pi * i / blobs + rng.uniform(0, 0.6), rng.uniform(0.5, 0.65)
        size = (scale * width_m, scale * width_m, rng.uniform(0.5, 0.65) * crown_m)
        lift, out = trunk * height_m + rng.uniform(0, 1) * (crown_m - size[2]), 0.24 * width_m
        position = (out * math.cos(angle), out * math.sin(angle), lift)
        parts.append(Part(crown(seed + i, 0.2, 1), size, position, 0))
    return compose(parts)


def conifer(height_m: float, width_m: float, stories: int) -> Asset:
    """A fir: stacked cones."""
    trunk_m = (0.04 * height_m, 0.04 * height_m, 0.2 * height_m)
    parts = [Part(cylinder_mesh(8), trunk_m, (0.0, 0.0, 0.0), 1)]
    for i in range(stories):
        scale, low = 1 - 0.75 * i / stories, 0.12 + 0.8 * i / stories
        top = 1.0 if i == stories - 1 else low + 1.5 * 0.8 / stories
        size_m = (scale * width_m, scale * width_m, (top - low) * height_m)
        parts.append(Part(cylinder_mesh(14, 0.03), size_m, (0.0, 0.0, low * height_m), 0))
    return compose(parts)


def hedge(height_m: float, width_m: float, length_m: float, seed: int) -> Asset:
    """Bushes in a row along y."""
    count = max(2, round(length_m / width_m))
    size_m = (1.2 * width_m, 1.5 * length_m / count, height_m)
    places = [(0.0, (i - (count - 1) / 2) * length_m / count, 0.0) for i in range(count)]
    return compose([Part(crown(seed + i, 0.15, 1), size_m, at) for i, at in enumerate(places)])


# low-poly assets of the source's simulator, and assets of the target
SOURCE = {
    "car": {"saloon": car(4.4, 1.75, 1.45, 0.27, 0.2, 0.12, 0.1),
            "hatchback": car(3.9, 1.68, 1.5, 0.25, 0.02, 0.12, 0.07),
            "estate": car(4.6, 1.78, 1.48, 0.26, 0.02, 0.12, 0.06),
            "van": car(4.9, 1.9, 2.0, 0.15, 0.01, 0.12, 0.02),
            "compact": car(3.5, 1.6, 1.5, 0.22, 0.03, 0.12, 0.06)},
    "pedestrian": {"man": walker(1.8, 0.35, 1.0, 0.1), "woman": walker(1.68, 0.3, 0.9, 0.45),
                   "child": walker(1.3, 0.35, 0.75, 0.1), "hiker": walker(1.75, 0.45, 1.0, 0.15, True),
                   "elder": walker(1.65, 0.18, 1.1, 0.7)},
    "house": {"cottage": house(8.0, 10.0, 3.0, "gable", 2.6, 4, 1),
              "town": house(9.0, 8.0, 6.0, "front gable", 2.8, 3, 2),
              "block": house(11.0, 15.0, 9.0, "flat", 0.4, 6, 3),
              "villa": house(10.0, 12.0, 5.6, "hip", 2.4, 5, 2),
              "barn": house(9.0, 14.0, 3.6, "gable", 3.6, 3, 1)},
    "vegetation": {"round": tree(6.0, 4.0, 0.3, 1, 1), "poplar": tree(9.0, 2.6, 0.12, 1, 2),
                   "fir": conifer(8.0, 3.6, 3), "bush": tree(1.8, 2.2, 0.02, 1, 3),
                   "clump": tree(7.0, 5.2, 0.28, 3, 4)}}
TARGET = {
    "car": {"notchback": car(4.3, 1.7, 1.42, 0.28, 0.23, 0.09, 0.08),
            "hot hatch": car(4.1, 1.74, 1.44, 0.27, 0.03, 0.14, 0.1),
            "wagon": car(4.75, 1.82, 1.5, 0.28, 0.01, 0.13, 0.09),
            "minivan": car(4.4, 1.8, 1.68, 0.18, 0.01, 0.16, 0.03),
            "city car": car(3.4, 1.56, 1.46, 0.18, 0.02, 0.13, 0.03),
            "coupe": car(4.3, 1.8, 1.32, 0.32, 0.15, 0.16, 0.18),
            "jeep": car(4.5, 1.86, 1.78, 0.26, 0.02, 0.08, 0.03)},
    "pedestrian": {"clerk": walker(1.78, 0.4, 1.0, 0.35), "runner": walker(1.76, 0.65, 0.92, 0.05),
                   "lady": walker(1.7, 0.25, 0.85, 0.75), "pupil": walker(1.45, 0.4, 0.8, 0.12, True),
                   "worker": walker(1.84, 0.3, 1.12, 0.05)},
    "house": {"bungalow": house(9.0, 13.0, 2.8, "hip", 2.0, 5, 1),
              "semi": house(9.5, 11.0, 5.4, "gable", 3.4, 6, 2),
              "terrace": house(8.5, 18.0, 6.4, "gable", 2.6, 9, 2),
              "tenement": house(12.0, 14.0, 12.0, "flat", 0.5, 7, 4),
              "gabled": house(11.0, 8.5, 5.8, "front gable", 4.2, 4, 2)},
    "vegetation": {"lime": tree(8.0, 6.0, 0.24, 5, 11), "maple": tree(6.5, 5.4, 0.3, 4, 21),
                   "cypress": tree(7.0, 1.9, 0.06, 1, 31), "spruce": conifer(10.0, 4.2, 5),
                   "hedge": hedge(1.5, 1.2, 5.0, 41), "oak": tree(9.0, 8.0, 0.26, 6, 51)}}
