"""Chairs, tables and laptops, five of each for the source and for the target of the dining room.

All lengths are meters in the asset's own frame: x ahead (where a sitter looks, or from a laptop to
its user), y left, z up. A table's highest point is its flat top, for objects `on` it.
"""
import math

from sim2sg_lib.scene import Mesh
from sim2sg_lib.sim.meshes import Part, box_mesh, compose, cylinder_mesh, prism_mesh

Point = tuple[float, float, float]
Asset = tuple[Mesh, Point]  # a unit mesh and its extents in meters

# part numbers: seat and back of a chair; drawers and shelves of a table; a laptop shows a picture
FRAME, SEAT = range(2)
TOP, LEGS, DRAWERS = range(3)
BODY, BEZEL, SCREEN, KEYS, PICTURE = range(5)

BOX, RODS = box_mesh(), {}


# --- pieces ---------------------------------------------------------------------------------------

def box(low: Point, high: Point, number: int = 0) -> Part:
    """An upright box between two corners."""
    size = tuple(b - a for a, b in zip(low, high))
    return Part(BOX, size, ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]), number)


def rod(start: Point, end: Point, width_m: float, number: int = 0, taper: float = 1.0,
        segments: int = 6) -> Part:
    """A round rod between two points; its width at the end is `taper` times that at the start."""
    if (taper, segments) not in RODS:
        RODS[taper, segments] = cylinder_mesh(segments, taper)
    along, length = [b - a for a, b in zip(start, end)], math.dist(start, end)
    turn = (0.0, math.acos(along[2] / length), math.atan2(along[1], along[0]))
    return Part(RODS[taper, segments], (width_m, width_m, length), start, number, turn)


def tube(points: list[Point], width_m: float, number: int = 0, segments: int = 5) -> list[Part]:
    """Rods through points, a little longer than their distances so that bends have no gaps."""
    parts = []
    for a, b in zip(points, points[1:]):
        more = 0.25 * width_m / math.dist(a, b)
        start, end = (tuple(p + more * (p - q) for p, q in zip(*ends)) for ends in ((a, b), (b, a)))
        parts.append(rod(start, end, width_m, number, segments=segments))
    return parts


def slab(outline: list[tuple[float, float]], low_m: float, high_m: float, number: int = 0) -> Part:
    """A flat piece between two heights; outline (x, y), counter-clockwise seen from above."""
    xs, ys = zip(*outline)
    size = (max(xs) - min(xs), high_m - low_m, max(ys) - min(ys))
    middle = ((max(xs) + min(xs)) / 2, min(ys), (low_m + high_m) / 2)
    return Part(prism_mesh(outline), size, middle, number, (-math.pi / 2, 0.0, 0.0))


def rounded(depth_m: float, width_m: float, power: float, corners: int = 12) -> list[tuple]:
    """The outline of a rounded rectangle: a superellipse, power 1 an ellipse, smaller squarer."""
    def bend(value):
        return math.copysign(abs(value) ** power, value) / 2

    angles = [2 * math.pi * (i + 0.5) / corners for i in range(corners)]
    far = bend(math.cos(angles[0]))  # so that the outline is as long and wide as asked for
    return [(depth_m / 2 * bend(math.cos(a)) / far, width_m / 2 * bend(math.sin(a)) / far)
            for a in angles]


def mirrored(points: list[Point]) -> list[list[Point]]:
    """A line of points on the left, and the same on the right."""
    return [points, [(x, -y, z) for x, y, z in points]]


# --- chairs ---------------------------------------------------------------------------------------

def cantilever_chair(width_m: float, seat_m: float, top_m: float, tube_m: float, back: str,
                     arms: bool) -> Asset:
    """A chair on runners that bend up in front, without rear legs.

    back: "panel", "slats" or "pads", two narrow ones.
    """
    y, r, lean = width_m / 2, tube_m / 2, 0.12 * (top_m - seat_m) / 0.4
    side = [(-0.24, y, r), (0.20, y, r), (0.26, y, 0.07), (0.27, y, seat_m - 0.07),
            (0.22, y, seat_m - 0.02), (-0.18, y, seat_m - 0.04), (-0.23, y, seat_m + 0.04),
            (-0.23 - lean, y, top_m)]
    parts = [part for line in mirrored(side) for part in tube(line, tube_m, FRAME)]
    parts += tube([(-0.24, y, r), (-0.24, -y, r)], tube_m, FRAME)
    parts += tube([(0.27, y, 0.2), (0.27, -y, 0.2)], tube_m, FRAME)
    parts.append(slab(rounded(0.46, width_m - tube_m, 0.3), seat_m - 0.03, seat_m + 0.03, SEAT))
    back_m = top_m - seat_m - 0.04
    tilt = -math.atan2(lean, back_m)
    spans = {"panel": [(0.25, 1.0)], "pads": [(0.2, 0.5), (0.7, 1.0)],
             "slats": [(0.2, 0.36), (0.46, 0.62), (0.72, 0.88)]}[back]
    for low, high in spans:
        size_m = (0.04, width_m - tube_m, (high - low) * back_m)
        foot_m = (-0.22 - lean * low, 0, seat_m + 0.04 + low * back_m)
        parts.append(Part(BOX, size_m, foot_m, SEAT, (0, tilt, 0)))
    if arms:
        rest = [(0.26, y, seat_m - 0.05), (0.24, y, seat_m + 0.17), (0.19, y, seat_m + 0.2),
                (-0.26, y, seat_m + 0.2)]
        parts += [part for line in mirrored(rest) for part in tube(line, tube_m, FRAME)]
        parts += [box((-0.2, s * y - 0.025, seat_m + 0.2), (0.2, s * y + 0.025, seat_m + 0.23),
                      SEAT) for s in (-1, 1)]
    return compose(parts)


def windsor_base(seat_m: float, width_m: float, splay_m: float) -> list[Part]:
    """A thick wooden seat on four splayed legs with stretchers between them."""
    parts = [slab(rounded(0.43, width_m, 0.6, 14), seat_m - 0.045, seat_m, SEAT)]
    for side in (-1, 1):
        tops = [(x, side * (width_m / 2 - 0.08), seat_m - 0.03) for x in (0.13, -0.13)]
        feet = [(x + math.copysign(splay_m, x), y + side * splay_m, 0.0) for x, y, _ in tops]
        parts += [rod(top, foot, 0.042, FRAME, 0.65) for top, foot in zip(tops, feet)]
        middle = [tuple(0.45 * a + 0.55 * b for a, b in zip(top, foot))
                  for top, foot in zip(tops, feet)]
        parts.append(rod(*middle, 0.026, FRAME))
    across = width_m / 2 - 0.08 + 0.55 * splay_m
    z = 0.45 * seat_m - 0.01
    return parts + [rod((0, -across, z), (0, across, z), 0.026, FRAME)]


def windsor_chair(top_m: float, width_m: float, spindles: int, back: str,
                  cushion: bool = False) -> Asset:
    """Thin spindles from the seat to a bent hoop, a straight comb on top, or a low arm rail."""
    seat_m, rise = 0.45, top_m - 0.45
    parts = windsor_base(seat_m, width_m, 0.07)

    def behind(y: float, z: float) -> Point:  # the back leans, and bends around its sitter
        return (-0.19 + 0.9 * y * y - 0.22 * (z - seat_m), y, z)

    places = [2 * (i + 0.5) / spindles - 1 for i in range(spindles)]  # from -1 to 1
    if back == "hoop":
        angles = [math.pi * i / 10 for i in range(11)]
        hoop = [behind(0.5 * width_m * math.cos(a), seat_m - 0.02 + rise * math.sin(a) ** 0.6)
                for a in angles]
        parts += tube(hoop, 0.03, FRAME)
        heights = [seat_m + rise * (1 - (0.8 * s) ** 2) ** 0.3 - 0.02 for s in places]
        parts += [rod(behind(0.33 * width_m * s, seat_m - 0.02), behind(0.4 * width_m * s, z),
                      0.016, FRAME, segments=5) for s, z in zip(places, heights)]
    elif back == "comb":
        crest = [behind(0.55 * width_m * (i / 3 - 1), top_m - 0.05) for i in range(7)]
        for a, b in zip(crest, crest[1:]):
            turn = math.atan2(b[1] - a[1], b[0] - a[0])
            middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, top_m - 0.09)
            parts.append(Part(BOX, (math.dist(a, b) * 1.05, 0.026, 0.09), middle, FRAME, (0, 0, turn)))
        parts += [rod(behind(0.38 * width_m * s, seat_m - 0.02),
                      behind(0.48 * width_m * s, top_m - 0.05),
                      0.03 if abs(s) == max(places) else 0.017, FRAME, segments=5) for s in places]
    else:  # a rail at the height of the elbows, from one arm around the back to the other
        rail = [(0.14, 0.27, top_m), (0.0, 0.28, top_m), (-0.14, 0.24, top_m), (-0.23, 0.12, top_m)]
        rail += [(x, -y, z) for x, y, z in rail[::-1]]
        parts += tube(rail, 0.045, FRAME, 6)
        feet = [(0.7 * x, 0.8 * y, seat_m - 0.02) for x, y, _ in rail]
        parts += [rod(foot, end, 0.022, FRAME, segments=5) for foot, end in zip(feet, rail)]
        parts += [rod((-0.17, 0.05 * s, seat_m - 0.02), (-0.23, 0.06 * s, top_m), 0.022, FRAME,
                      segments=5) for s in (-1, 0, 1)]
    if cushion:
        parts.append(slab(rounded(0.36, width_m - 0.07, 0.6), seat_m - 0.01, seat_m + 0.03, SEAT))
    return compose(parts)


# --- tables ---------------------------------------------------------------------------------------

def corners(x: float, y: float) -> list[tuple[float, float]]:
    """Four points around the middle."""
    return [(x, y), (-x, y), (-x, -y), (x, -y)]


def planks(depth_m: float, width_m: float, low_m: float, high_m: float, count: int,
           number: int) -> list[Part]:
    """Boards side by side, their length along y, with shallow grooves between them."""
    step = depth_m / count
    x, y = depth_m / 2 - 0.002, width_m / 2 - 0.002
    core = box((-x, -y, low_m + 0.002), (x, y, high_m - 0.004), number)
    return [core] + [box((-depth_m / 2 + i * step + 0.007 * (i > 0), -width_m / 2, low_m),
                         (-depth_m / 2 + (i + 1) * step, width_m / 2, high_m), number)
                     for i in range(count)]


def drawers(low: Point, high: Point, count: int) -> list[Part]:
    """A cabinet with its drawers and their handles in front."""
    parts, rise, middle = [box(low, high, DRAWERS)], (high[2] - low[2]) / count, (low[1] + high[1]) / 2
    for i in range(count):
        z = low[2] + i * rise
        parts.append(box((high[0] - 0.05, low[1] + 0.02, z + 0.02),
                         (high[0] + 0.015, high[1] - 0.02, z + rise - 0.02), TOP))
        z += 0.6 * rise
        parts.append(box((high[0], middle - 0.06, z), (high[0] + 0.035, middle + 0.06, z + 0.02), LEGS))
    return parts


def workshop_table(depth_m: float, width_m: float, top_m: float, kind: str) -> Asset:
    """A thick top of boards; kind: "frame" with a shelf, "cabinet", "trestles" or "vice"."""
    x, y, under = depth_m / 2 - 0.07, width_m / 2 - 0.08, top_m - 0.07
    parts = planks(depth_m, width_m, under, top_m, 4, TOP)
    if kind == "trestles":
        for side in (-0.75 * y, 0.75 * y):
            parts += [rod((s * 0.04, side + t * 0.04, under), (s * x, side + t * 0.12, 0), 0.06,
                          LEGS, segments=4) for s in (-1, 1) for t in (-1, 1)]
            parts += [box((-x, side - 0.05, under - 0.08), (x, side + 0.05, under), LEGS),
                      box((-x * 0.6, side - 0.1, 0.3), (x * 0.6, side + 0.1, 0.34), DRAWERS)]
        return compose(parts)
    posts = [(a, b) for a, b in corners(x, y) if kind != "cabinet" or b < 0]
    parts += [box((a - 0.04, b - 0.04, 0), (a + 0.04, b + 0.04, under), LEGS) for a, b in posts]
    parts += [box((a - 0.055, b - 0.055, 0), (a + 0.055, b + 0.055, 0.03), LEGS) for a, b in posts]
    if kind == "cabinet":
        parts += drawers((-x, y - 0.45, 0.04), (x, y + 0.04, under), 4)
        parts.append(box((-x, -y, under - 0.1), (-x + 0.03, y, under), LEGS))
        return compose(parts)
    parts += [box((s * x - 0.025, -y, under - 0.1), (s * x + 0.025, y, under), LEGS) for s in (-1, 1)]
    parts += planks(2 * x, 2 * y, 0.16, 0.2, 3, DRAWERS)
    if kind == "vice":  # below the top and within its outline
        middle, z = 0.3 * y + 0.12, under - 0.1
        jaws = box((x + 0.02, 0.3 * y, under - 0.18), (x + 0.07, 0.3 * y + 0.25, under), DRAWERS)
        parts += [jaws, rod((x, middle, z), (x + 0.06, middle, z), 0.05, LEGS)]
        parts += drawers((-0.2, -0.8 * y, under - 0.17), (x, -0.1 * y, under), 1)
    else:
        parts += [rod((-x, -s * y, 0.22), (-x, s * y, under - 0.1), 0.03, LEGS) for s in (1, -1)]
    return compose(parts)


def kitchen_table(depth_m: float, width_m: float, top_m: float, kind: str) -> Asset:
    """kind: "turned" or "tapered" legs, "pedestal", or "trestle" ends with a beam."""
    x, y, under = depth_m / 2 - 0.09, width_m / 2 - 0.09, top_m - 0.035
    if kind == "pedestal":
        parts = [slab(rounded(depth_m, width_m, 0.3, 20), under, top_m, TOP)]
        rings = [(0.0, 0.14, 0.08), (0.08, 0.10, 0.2), (0.28, 0.16, 0.12), (0.40, 0.11, 0.24),
                 (0.64, 0.2, under - 0.64)]
        parts += [rod((0, 0, z), (0, 0, z + h), w, LEGS, segments=10) for z, w, h in rings]
        parts += [rod((0, 0, 0.14), (0.42 * a, 0.42 * b, 0.03), 0.07, LEGS, 0.8)
                  for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        parts += [box((-a, -b, under - 0.05), (a, b, under), LEGS)
                  for a, b in ((0.3, 0.03), (0.03, 0.4))]
        return compose(parts)
    parts = planks(depth_m, width_m, under, top_m, 6, TOP)
    if kind == "trestle":
        for side in (-0.8 * y, 0.8 * y):
            parts += [box((-x, side - 0.05, z), (x, side + 0.05, z + 0.07), LEGS)
                      for z in (0, under - 0.07)]
            parts += [box((a - 0.06, side - 0.035, 0.07), (a + 0.06, side + 0.035, under), LEGS)
                      for a in (-0.14, 0.14)]
        return compose(parts + [box((-0.03, -0.9 * y, 0.3), (0.03, 0.9 * y, 0.42), LEGS)])
    apron = [box((s * x - 0.015, -y, under - 0.1), (s * x + 0.015, y, under), DRAWERS) for s in (-1, 1)]
    apron += [box((-x, s * y - 0.015, under - 0.1), (x, s * y + 0.015, under), DRAWERS)
              for s in (-1, 1)]
    for a, b in corners(x, y):
        if kind == "turned":
            parts.append(box((a - 0.04, b - 0.04, under - 0.14), (a + 0.04, b + 0.04, under), LEGS))
            # from a height, as wide, growing by, and as high
            rings = [(0.0, 0.04, 1.5, 0.08), (0.08, 0.075, 0.7, 0.26), (0.34, 0.045, 1.8, 0.2),
                     (0.54, 0.09, 0.8, under - 0.66)]
            parts += [rod((a, b, z), (a, b, z + h), w, LEGS, grow, 7) for z, w, grow, h in rings]
        else:
            parts.append(rod((a, b, under), (a * 1.06, b * 1.03, 0), 0.075, LEGS, 0.55, 8))
    if kind == "tapered":  # a drawer in its long side
        parts += [box((x, -0.2, under - 0.085), (x + 0.025, 0.2, under - 0.01), TOP),
                  rod((x, 0, under - 0.045), (x + 0.05, 0, under - 0.045), 0.03, LEGS)]
    return compose(parts + apron)


# --- laptops --------------------------------------------------------------------------------------

def laptop(width_m: float, depth_m: float, thick_m: float, lid_m: float, open_rad: float,
           keys: tuple[float, float, int, int], pad_m: tuple[float, float], bezel_m: float,
           round_power: float) -> Asset:
    """A base with keys and touchpad, and a lid opened by `open_rad` beyond upright.

    keys: start and end of the keyboard as fractions of the depth from the front, rows, keys per
    row. pad_m: depth and width of the touchpad. lid_m: thickness of the lid.
    """
    x, y, tilt = depth_m / 2, width_m / 2, (0.0, -open_rad, 0.0)
    parts = [slab(rounded(depth_m, width_m, round_power), 0.0, thick_m, BODY)]
    first, last, rows, columns = keys
    row_m, key_m = (last - first) * depth_m / rows, (width_m - 0.05) / columns
    parts.append(box((x - last * depth_m - 0.006, -y + 0.019, 0.001),
                     (x - first * depth_m + 0.006, y - 0.019, thick_m + 0.0005), BEZEL))
    for row in range(rows):
        low = x - first * depth_m - (row + 1) * row_m
        for column in range(columns):
            left = -y + 0.025 + column * key_m
            parts.append(box((low, left, 0.002),
                             (low + row_m * 0.8, left + key_m * 0.86, thick_m + 0.003), KEYS))
    parts.append(box((x - 0.012 - pad_m[0], -pad_m[1] / 2, 0.002),
                     (x - 0.012, pad_m[1] / 2, thick_m + 0.001), BEZEL))
    hinge = (-x + lid_m / 2, 0.0, thick_m)

    def on_lid(up_m: float, ahead_m: float) -> Point:
        return (hinge[0] - math.sin(open_rad) * up_m + math.cos(open_rad) * ahead_m, 0.0,
                hinge[2] + math.cos(open_rad) * up_m + math.sin(open_rad) * ahead_m)

    def sheet(bottom_m: float, size: tuple[float, float], ahead_m: float, number: int) -> Part:
        # most of it is inside the lid: thin things shade themselves
        return Part(BOX, (0.8 * lid_m, *size), on_lid(bottom_m, ahead_m - 0.4 * lid_m), number, tilt)

    parts += [Part(BOX, (lid_m, width_m, depth_m * 0.97), hinge, BODY, tilt),
              sheet(0.006, (width_m - 0.012, depth_m * 0.97 - 0.012), lid_m / 2 + 0.0008, BEZEL),
              sheet(2 * bezel_m, (width_m - 2 * bezel_m, depth_m * 0.97 - 3 * bezel_m),
                    lid_m / 2 + 0.0016, SCREEN),
              sheet(0.2 * depth_m, (0.5 * width_m, 0.45 * depth_m), lid_m / 2 + 0.0024, PICTURE),
              rod((hinge[0], -0.4 * width_m, thick_m), (hinge[0], 0.4 * width_m, thick_m), 0.012,
                  BEZEL, segments=8)]
    badge = Part(BOX, (0.002, 0.045, 0.045), on_lid(0.45 * depth_m, -lid_m / 2 - 0.001), PICTURE, tilt)
    return compose([*parts, badge])


# kind -> assets: for the source, then for the target
ASSETS = {
    "cantilever": [
        cantilever_chair(0.48, 0.45, 0.84, 0.030, "panel", False),
        cantilever_chair(0.52, 0.46, 0.86, 0.032, "panel", True),
        cantilever_chair(0.46, 0.45, 0.98, 0.028, "slats", False),
        cantilever_chair(0.50, 0.44, 0.80, 0.038, "pads", False),
        cantilever_chair(0.50, 0.47, 1.02, 0.034, "panel", True)],
    "workshop": [
        workshop_table(0.70, 1.40, 0.80, "frame"), workshop_table(0.72, 1.45, 0.78, "cabinet"),
        workshop_table(0.75, 1.50, 0.76, "trestles"), workshop_table(0.72, 1.35, 0.82, "vice"),
        workshop_table(0.85, 1.20, 0.78, "frame")],
    "pc": [
        laptop(0.38, 0.26, 0.026, 0.012, 0.25, (0.40, 0.88, 4, 7), (0.055, 0.10), 0.016, 0.12),
        laptop(0.41, 0.28, 0.032, 0.014, 0.40, (0.36, 0.82, 5, 8), (0.060, 0.10), 0.020, 0.08),
        laptop(0.34, 0.24, 0.024, 0.012, 0.15, (0.38, 0.90, 4, 6), (0.045, 0.08), 0.014, 0.10),
        laptop(0.36, 0.25, 0.030, 0.013, 0.50, (0.42, 0.86, 3, 6), (0.050, 0.09), 0.022, 0.06),
        laptop(0.40, 0.26, 0.022, 0.010, 0.32, (0.40, 0.90, 4, 9), (0.055, 0.11), 0.012, 0.15)],
    "windsor": [
        windsor_chair(0.95, 0.46, 7, "hoop"), windsor_chair(1.0, 0.46, 8, "comb"),
        windsor_chair(0.70, 0.50, 0, "rail"), windsor_chair(0.88, 0.44, 6, "comb", cushion=True),
        windsor_chair(1.02, 0.48, 6, "hoop", cushion=True)],
    "kitchen": [
        kitchen_table(0.85, 1.40, 0.75, "turned"), kitchen_table(1.00, 1.15, 0.74, "pedestal"),
        kitchen_table(0.85, 1.45, 0.76, "trestle"), kitchen_table(0.80, 1.25, 0.75, "tapered"),
        kitchen_table(0.95, 1.10, 0.74, "turned")],
    "macbook": [
        laptop(0.356, 0.248, 0.016, 0.009, 0.30, (0.47, 0.90, 5, 7), (0.095, 0.16), 0.007, 0.3),
        laptop(0.325, 0.226, 0.016, 0.009, 0.20, (0.47, 0.90, 4, 7), (0.085, 0.14), 0.008, 0.3),
        laptop(0.364, 0.250, 0.020, 0.010, 0.42, (0.46, 0.88, 5, 8), (0.080, 0.12), 0.014, 0.25),
        laptop(0.340, 0.237, 0.014, 0.009, 0.35, (0.48, 0.92, 4, 8), (0.085, 0.15), 0.006, 0.35),
        laptop(0.358, 0.246, 0.018, 0.009, 0.10, (0.46, 0.90, 4, 9), (0.090, 0.15), 0.010, 0.3)]}
