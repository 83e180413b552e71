"""Drawings of results: boxes on images, contact sheets, scene graphs, curves and histograms.

Graphs, curves and histograms are matplotlib figures with text of 7 to 9 points, to be readable on a
phone. Line styles differ as well as colors.
"""
import base64
import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.files import write_bytes, write_text
from sim2sg_lib.io.images import read_image
from sim2sg_lib.score.metrics import (FN, FP, PREDICTED, TP, MatchedGraph, rank_relations,
                                      without_labels)

# color-blind safe (Okabe and Ito); categories beyond the seventh repeat them
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
CURVE_COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
                "#777777")
CURVE_DASHES = ("-", "--", "-.")
# how an object or a relation was matched -> color and line style
STYLES = {TP: ("#00704F", "-"), FP: ("#D55E00", (0, (4, 2))), FN: ("#0072B2", (0, (1, 1.5))),
          PREDICTED: ("#333333", "-")}
MAX_CENTRAL_NODES = 3
MAX_ARROWS = 12     # per graph and style: more would hide one another
MAX_NODE_PT = 40    # diameter of a node
TEXT_PT = 7
CHAR_WIDTH = 0.6    # average width of a character, as a fraction of the font size
AXES_LIMIT = 1.35   # of a graph whose nodes lie on the unit circle
BENDS = (0.18, 0.4, 0.65)  # of an arrow: deviation from a straight line over length
OVERLAY_PX = (640, 1600)  # limits of the longer side of an image under predicted boxes
TILE_WIDTH = 240    # pixels
CAPTION_WIDTH = 150
GAP = 4


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture. Raises: InputError if it cannot be written."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_bytes(path, content.getvalue())


def draw_boxes(image: np.ndarray, graph: SceneGraph, vocabulary: Vocabulary) -> Image.Image:
    """The image (H, W, 3) uint8 as a tile, with the boxes of the objects."""
    tile = to_tile(image)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    boxes = graph.resized(tile.width, tile.height).boxes_px
    for label, (x0, y0, x1, y1), score in zip(graph.labels, boxes, graph.scores):
        color = COLORS[label % len(COLORS)]
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
        text = vocabulary.categories[label] + ("" if score == 1 else f" {score:.2f}")
        corner = (min(x0, tile.width - draw.textlength(text, font)), max(y0 - 13, 0))
        draw.text(corner, text, fill=color, font=font, stroke_width=2, stroke_fill="black")
    return tile


def to_tile(image: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> a picture TILE_WIDTH pixels wide."""
    picture = Image.fromarray(image)
    height = round(TILE_WIDTH * picture.height / picture.width)
    return picture.resize((TILE_WIDTH, height), Image.Resampling.LANCZOS)


def contact_sheet(rows: list[tuple[str, list[Image.Image]]],
                  tile_width: int = TILE_WIDTH) -> Image.Image:
    """Rows of tiles with a caption on the left; all tiles have one size, tile_width pixels wide."""
    columns = max(len(tiles) for _, tiles in rows)
    width, height = tile_width + GAP, max(tile.height for _, tiles in rows for tile in tiles) + GAP
    sheet = Image.new("RGB", (CAPTION_WIDTH + columns * width, len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for r, (caption, tiles) in enumerate(rows):
        draw.multiline_text((10, r * height + height / 2), caption, fill="black", font=font,
                            anchor="lm", spacing=6)
        for c, tile in enumerate(tiles):
            sheet.paste(tile, (CAPTION_WIDTH + c * width, r * height))
    return sheet


def require_matplotlib() -> None:
    """Raises: InputError if matplotlib is not installed."""
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; a notebook's backend may not load
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("pictures of scene graphs need matplotlib, which is not installed: "
                         "pip install matplotlib") from None


@contextmanager
def default_style() -> Iterator[None]:
    """Matplotlib's own defaults instead of the user's matplotlibrc; SVG files repeat bit by bit."""
    require_matplotlib()
    import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "sim2sg"
        yield


# --- scene graphs ---------------------------------------------------------------------------------

def draw_objects(axes, image: np.ndarray, matched: MatchedGraph, vocabulary: Vocabulary) -> None:
    """The image (H, W, 3) uint8, of any size, with the graph's boxes and node numbers.

    axes: matplotlib's, of the image's aspect ratio. Color shows the category, line style the match.
    Crowded boxes keep only their number, or no text if even that would hide another text.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
    graph, taken = matched.graph, []
    px_per_pt = graph.height / (72 * axes.get_position().height * axes.figure.get_figheight())
    line_px = 1.4 * TEXT_PT * px_per_pt
    outline = [withStroke(linewidth=3, foreground="black")]
    axes.imshow(image, extent=(0, graph.width, graph.height, 0), interpolation="lanczos")
    axes.set_axis_off()
    for i, (label, box, score) in enumerate(zip(graph.labels, graph.boxes_px, graph.scores)):
        color, (x0, y0, x1, y1) = COLORS[label % len(COLORS)], box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color,
                                 linewidth=1.6, linestyle=STYLES[matched.objects[i]][1],
                                 path_effects=outline))
        name = f"{i} {vocabulary.categories[label]}"
        for text in (name if score == 1 else f"{name} {score:.2f}", name, str(i)):
            text_px = CHAR_WIDTH * TEXT_PT * px_per_pt * (len(text) + 0.5)
            corner = find_text_place(box, text_px, line_px, graph, taken)
            if corner:
                axes.text(corner[0], corner[1] + line_px / 2, text, fontsize=TEXT_PT, va="center",
                          parse_math=False, bbox={"boxstyle": "square,pad=0.08",
                                                  "facecolor": color, "edgecolor": "none"})
                break


def find_text_place(box: np.ndarray, width: float, height: float, graph: SceneGraph,
                    taken: list[tuple]) -> tuple[float, float] | None:
    """Left and top in pixels of a text at a box (4,) that overlaps no other text, or None.

    taken: (left, top, width) of the texts so far; the new one is appended.
    """
    x0, y0, x1, y1 = box
    in_right_half = x0 + x1 > graph.width
    lefts = (min(x0, graph.width - width) if in_right_half else x0, x1 - width)
    tops = (y0 - height, y1, y0, y1 - height, y0 - 2 * height, y1 + height, (y0 + y1) / 2)
    for top, left in itertools.product(tops, lefts):
        inside = 0 <= top <= graph.height - height and 0 <= left <= graph.width - width
        if inside and not any(left < other + other_width and other < left + width
                              and abs(top - other_top) < height
                              for other, other_top, other_width in taken):
            taken.append((left, top, width))
            return left, top
    return None


def draw_relations(axes, matched: MatchedGraph, vocabulary: Vocabulary) -> None:
    """The graph: one circle per object, arrows from subject to object with their predicates.

    axes: matplotlib's, square. At most MAX_ARROWS per style are drawn, and none whose text would
    hide a circle or another text; the number of relations that are left out is written below.
    """
    graph, positions = matched.graph, node_positions(matched.graph)
    axes.set(xlim=(-AXES_LIMIT, AXES_LIMIT), ylim=(-AXES_LIMIT, AXES_LIMIT), aspect="equal")
    axes.set_axis_off()
    size_inches = min(axes.get_position().size * axes.figure.get_size_inches())
    point = 2 * AXES_LIMIT / (72 * size_inches)  # in the axes' units
    # neighboring circles do not touch
    node_pt = min(MAX_NODE_PT, 1.7 * np.sin(np.pi / max(len(graph), 2)) / point)
    taken, bends, drawn = [], {}, 0
    for (s, o, status), predicates in group_arrows(matched, vocabulary).items():
        longest = max(map(len, predicates))
        size = point * TEXT_PT * np.array([CHAR_WIDTH * (longest + 0.5), 1.25 * len(predicates)])
        found = find_arrow_place(positions, s, o, bends.get((s, o), 0), size, point * node_pt / 2,
                                 taken)
        if not found:
            continue
        (bends[s, o], text_at), (color, dashes) = found, STYLES[status]
        axes.annotate("", positions[o], positions[s], arrowprops={
            "arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bends[s, o]}",
            "linestyle": dashes, "color": color, "linewidth": 1.3,
            "shrinkA": node_pt / 2, "shrinkB": node_pt / 2 + 2})
        axes.text(*text_at, "\n".join(predicates), fontsize=TEXT_PT, color=color, ha="center",
                  va="center", zorder=3.5, parse_math=False,
                  bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"})
        drawn += len(predicates)
    if drawn < len(graph.relations):
        note = f"{len(graph.relations) - drawn} more not drawn"
        axes.text(-AXES_LIMIT, -AXES_LIMIT, note, fontsize=TEXT_PT, va="bottom")
    draw_nodes(axes, positions, node_pt, matched, vocabulary)


def draw_nodes(axes, positions: np.ndarray, node_pt: float, matched: MatchedGraph,
               vocabulary: Vocabulary) -> None:
    """Circles of node_pt points at positions (N, 2), with number and, where it fits, category."""
    from matplotlib.colors import to_rgb
    for i, (position, label) in enumerate(zip(positions, matched.graph.labels)):
        name, status = vocabulary.categories[label], matched.objects[i]
        pale = 1 - 0.35 * (1 - np.array(to_rgb(COLORS[label % len(COLORS)])))
        axes.scatter(*position, s=node_pt ** 2, color=[pale], edgecolor=STYLES[status][0],
                     linestyle=STYLES[status][1], linewidth=1.6, zorder=4)
        text_pt = min(TEXT_PT, 0.86 * node_pt / (CHAR_WIDTH * len(name)))
        text, text_pt = (f"{i}\n{name}", text_pt) if text_pt > 5 else (str(i), TEXT_PT)
        axes.text(*position, text, fontsize=text_pt, ha="center", va="center", zorder=5,
                  parse_math=False)


def find_arrow_place(positions: np.ndarray, s: int, o: int, bend: float, size: np.ndarray,
                     radius: float, taken: list[tuple]) -> tuple[float, np.ndarray] | None:
    """A bend above `bend` for the arrow from node s to o, and the center (2,) of its text, or None.

    The text of size (2,) overlaps no circle of that radius at positions (N, 2) and no other text.
    taken: (center, size) of the texts so far; the new one is appended.
    """
    direction = positions[o] - positions[s]
    normal = np.array([direction[1], -direction[0]])
    for candidate in [value for value in BENDS if value > bend]:
        if np.linalg.norm(positions[s] + direction / 2 + candidate / 2 * normal) > AXES_LIMIT - 0.1:
            continue
        for t in (0.4, 0.5, 0.6, 0.33, 0.67):  # near the subject first: arrows cross in the middle
            center = positions[s] + t * direction + 2 * t * (1 - t) * candidate * normal
            gaps = np.maximum(np.abs(positions - center) - size / 2, 0)
            clear = (np.hypot(*gaps.T) > radius).all()
            overlaps = any((np.abs(center - other) < (size + other_size) / 2).all()
                           for other, other_size in taken)
            if clear and not overlaps and (np.abs(center) + size / 2 < AXES_LIMIT).all():
                taken.append((center, size))
                return candidate, center
    return None


def group_arrows(matched: MatchedGraph,
                 vocabulary: Vocabulary) -> dict[tuple[int, int, str], list[str]]:
    """(subject, object, match) -> predicates; of each match, the MAX_ARROWS most certain arrows."""
    found = {}
    for row in rank_relations(matched.graph, graph_constraint=False):
        s, p, o = matched.graph.relations[row].tolist()
        found.setdefault((s, o, matched.relations[row]), []).append(vocabulary.predicates[p])
    shown = [[arrow for arrow in found if arrow[2] == status][:MAX_ARROWS] for status in STYLES]
    return {arrow: found[arrow] for group in shown for arrow in group}


def node_positions(graph: SceneGraph) -> np.ndarray:
    """(N, 2) evenly around the unit circle, y up, in the order of the boxes around their center.

    Up to MAX_CENTRAL_NODES objects with far more relations than others (a table) lie inside it.
    """
    related = np.zeros((len(graph), len(graph)), bool)
    related[graph.relations[:, 0], graph.relations[:, 2]] = True
    degree = (related | related.T).sum(1)
    central = degree > 1.5 * degree.sum() / max(len(graph), 1)
    central &= central.sum() <= MAX_CENTRAL_NODES
    centers_px = (graph.boxes_px[:, :2] + graph.boxes_px[:, 2:]) / 2
    positions = np.zeros((len(graph), 2))
    for ring, radius in ((central, 0.35), (~central, 1.0)):
        if ring.sum() > 1:
            positions[ring] = radius * on_circle(centers_px[ring])
    return positions


def on_circle(points: np.ndarray) -> np.ndarray:
    """(N, 2) evenly around the unit circle, y up, in the order of points (N, 2), y down."""
    offset = points - points.mean(0)
    bearing = np.arctan2(-offset[:, 1], offset[:, 0])
    order = np.argsort(bearing, kind="stable")
    angle = bearing[order[0]] + np.argsort(order) * 2 * np.pi / len(points)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def save_overlay(path: Path, image: np.ndarray, graph: SceneGraph, vocabulary: Vocabulary) -> None:
    """A PNG of the image (H, W, 3) uint8 with the graph's boxes, and the graph beside it."""
    height, width, _ = image.shape
    side = max(480, height, width // 2)
    dpi, left = max(100, max(width, height) / 9), width / (width + side)
    with default_style():
        from matplotlib.figure import Figure
        figure = Figure(((width + side) / dpi, side / dpi), dpi=dpi)
        photo = figure.add_axes((0, 0.5 - height / side / 2, left, height / side))
        draw_objects(photo, image, without_labels(graph), vocabulary)
        draw_relations(figure.add_axes((left, 0, 1 - left, 1)), without_labels(graph), vocabulary)
        figure.savefig(path, format="png")


def to_dot(graph: SceneGraph, vocabulary: Vocabulary) -> str:
    """The graph in Graphviz's language."""
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'

    lines = [f"digraph {quoted(graph.image)} {{"]
    for i, (label, score) in enumerate(zip(graph.labels, graph.scores)):
        lines.append(f"  {i} [label={quoted(f'{i} {vocabulary.categories[label]} {score:.2f}')}];")
    for (s, p, o), score in zip(graph.relations, graph.relation_scores):
        lines.append(f"  {s} -> {o} [label={quoted(f'{vocabulary.predicates[p]} {score:.2f}')}];")
    return "\n".join([*lines, "}", ""])


def save_graphs(folder: Path, graphs: list[SceneGraph], paths: list[str],
                vocabulary: Vocabulary) -> None:
    """Write NAME.png and NAME.dot of each graph; paths: the images. Existing files are kept."""
    for path, graph in zip(paths, graphs):
        stem, longer = Path(graph.image).stem, max(graph.width, graph.height)
        if (folder / f"{stem}.dot").exists():  # written before an interruption
            continue
        scale = min(max(longer, OVERLAY_PX[0]), OVERLAY_PX[1]) / longer
        width, height = (max(1, round(side * scale)) for side in (graph.width, graph.height))
        pixels = read_image(Path(path), width, height)
        save_overlay(folder / f"{stem}.png", pixels, graph, vocabulary)
        write_text(folder / f"{stem}.dot", to_dot(graph, vocabulary))


# --- curves and histograms ------------------------------------------------------------------------

def draw_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str,
                labels: tuple[str, str], scales: tuple[str, str] = ("linear", "linear"),
                ylim: tuple[float, float] | None = None, level: tuple[float, str] | None = None):
    """A figure of named curves (x (n,), y (n,)).

    labels, scales: of x and of y; scales are matplotlib's. level: height and name of a thin line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
    figure = Figure((4.4, 2.7 + 0.17 * ((len(curves) + 1) // 2)), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, CURVE_DASHES[i % len(CURVE_DASHES)], linewidth=1.5, label=name,
                  color=CURVE_COLORS[i % len(CURVE_COLORS)], markersize=4,
                  marker="o" if len(x) == 1 else None)  # a line through one point is invisible
    if level:
        axes.axhline(level[0], color="black", linewidth=1.2, label=level[1], linestyle=(0, (1, 1)))
    axes.set(xscale=scales[0], yscale=scales[1], ylim=ylim)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(labels[0], fontsize=9)
    axes.set_ylabel(labels[1], fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False,
                           handlelength=3)
    for text in legend.get_texts():  # names may come from a file
        text.set_parse_math(False)
    return figure


def draw_histograms(shown: dict[str, list[float] | None], target: dict[str, list[float] | None],
                    ticks: dict[str, tuple[str, ...] | None], title: str):
    """A figure with one panel per histogram: bars for a data set, black outlines for the target.

    shown, target: content.content of both. ticks: names of the bins, None for numbers from 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure((4.4, 2.1), layout="constrained")
    heights = {name: [np.array(of[name] or [], float) for of in (shown, target)] for name in ticks}
    bins = [max(2, *map(len, pair)) for pair in heights.values()]
    panels = figure.subplots(1, len(ticks), sharey=True, width_ratios=[3 + n for n in bins])
    for panel, count, (name, (ours, theirs)) in zip(panels, bins, heights.items()):
        panel.bar(range(len(ours)), ours, width=0.9, color="#56B4E9")
        panel.bar(range(len(theirs)), theirs, width=0.9, fill=False, edgecolor="black",
                  linewidth=1.3)
        panel.set_xlim(-0.7, count - 0.3)
        panel.set_title(name.replace("_", " "), fontsize=8)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ticks[name]:
            panel.set_xticks(range(len(ticks[name])), ticks[name], rotation=60, ha="right",
                             rotation_mode="anchor", parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def svg_uri(figure) -> str:
    """A figure as a data URI; letters are outlines, so that no font is needed."""
    content = io.BytesIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", metadata=no_metadata)
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def photo_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data URI."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
