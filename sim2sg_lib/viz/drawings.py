"""Pictures of the results: boxes on images, contact sheets, and by matplotlib scene graphs, curves and histograms.

A figure here is a matplotlib Figure whose text is 7 to 9 points, a long name in a circle 5: at its own size or somewhat below, as
on a phone, it can be read. What is told apart by color is told apart by the kind of line, too.
"""
import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.score.metrics import (
    MISSED,
    RIGHT,
    UNJUDGED,
    WRONG,
    Judged,
    rank_relations,
    unjudged,
)

# color-blind safe (Okabe and Ito), one a category, repeated if there are more
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
LINES = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES = ("-", "--", "-.")
# color and line of what is drawn of a graph
VERDICTS = {RIGHT: ("#00704F", "-"), WRONG: ("#D55E00", (0, (4, 2))), MISSED: ("#0072B2", (0, (1, 1.5))),
            UNJUDGED: ("#333333", "-")}
MAX_HUBS = 3      # circles inside the others'
MAX_ARROWS = 12   # of one verdict in one graph: more hide one another
NODE_PT = 40      # the most of a node's diameter, points
TEXT_PT = 7       # of text in a graph
CHARACTER = 0.6   # of a character's width, in the size of its font
REACH = 1.35      # of a graph's axes, of which circles stand on the unit circle
BENDS = (0.18, 0.4, 0.65)  # of an arrow, the deviation from a straight line in its length
TILE_WIDTH = 240  # pixels
CAPTION_WIDTH = 150
GAP = 4


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture. Errors: InputError where it cannot be written."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_bytes(path, content.getvalue())


def draw_boxes(image: np.ndarray, graph: SceneGraph, vocabulary: Vocabulary, threshold: float = 0.0) -> Image.Image:
    """The image (H, W, 3) uint8, scaled to a tile, with the boxes of all objects at or above the threshold."""
    tile = to_tile(image)
    scale_x, scale_y = tile.width / graph.width, tile.height / graph.height
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    for label, box, score in zip(graph.labels, graph.boxes_px, graph.scores):
        if score < threshold:
            continue
        color = COLORS[label % len(COLORS)]
        x0, y0, x1, y1 = box * (scale_x, scale_y, scale_x, scale_y)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
        text = vocabulary.categories[label] + ("" if score == 1 else f" {score:.2f}")
        place = (min(x0, tile.width - draw.textlength(text, font)), max(y0 - 13, 0))
        draw.text(place, text, fill=color, font=font, stroke_width=2, stroke_fill="black")
    return tile


def to_tile(image: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> a picture TILE_WIDTH pixels wide."""
    picture = Image.fromarray(image)
    return picture.resize((TILE_WIDTH, round(TILE_WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], tile_width: int = TILE_WIDTH) -> Image.Image:
    """Rows of tiles, each with its caption on the left; tiles of a sheet share one size, tile_width pixels wide."""
    columns = max(len(tiles) for _, tiles in rows)
    width, height = tile_width + GAP, max(tile.height for _, tiles in rows for tile in tiles) + GAP
    sheet = Image.new("RGB", (CAPTION_WIDTH + columns * width, len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for r, (caption, tiles) in enumerate(rows):
        draw.multiline_text((10, r * height + height / 2), caption, fill="black", font=font, anchor="lm", spacing=6)
        for c, tile in enumerate(tiles):
            sheet.paste(tile, (CAPTION_WIDTH + c * width, r * height))
    return sheet


# --- scene graphs -----------------------------------------------------------------------------------------------------

def require_matplotlib() -> None:
    """Errors: InputError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("pictures of scene graphs need matplotlib, which is not installed: pip install matplotlib") from None


def draw_objects(axes, image: np.ndarray, judged: Judged, vocabulary: Vocabulary) -> None:
    """The image (H, W, 3) uint8, of any size, with the graph's boxes, numbered as the circles of draw_relations are.

    axes: matplotlib's, of the image's shape. A box's color is its category's, its line says the verdict. In a crowd a box
    has its number alone, or, where even that would hide another's, nothing.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
    graph, taken = judged.graph, []
    pixels = graph.height / (72 * axes.get_position().height * axes.figure.get_figheight())  # of the image, a point
    line = 1.4 * TEXT_PT * pixels
    axes.imshow(image, extent=(0, graph.width, graph.height, 0), interpolation="lanczos")
    axes.set_axis_off()
    for i, (label, box, score, verdict) in enumerate(zip(graph.labels, graph.boxes_px, graph.scores, judged.objects)):
        color, (x0, y0, x1, y1) = COLORS[label % len(COLORS)], box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.6,
                                 linestyle=VERDICTS[verdict][1], path_effects=[withStroke(linewidth=3, foreground="black")]))
        name = f"{i} {vocabulary.categories[label]}"
        for text in (name if score == 1 else f"{name} {score:.2f}", name, str(i)):
            place = free_place(box, CHARACTER * TEXT_PT * pixels * (len(text) + 0.5), line, graph, taken)
            if place:
                axes.text(place[0], place[1] + line / 2, text, fontsize=TEXT_PT, va="center", parse_math=False,
                          bbox={"boxstyle": "square,pad=0.08", "facecolor": color, "edgecolor": "none"})
                break


def free_place(box: np.ndarray, width: float, height: float, graph: SceneGraph, taken: list[tuple]) -> tuple[float, float] | None:
    """Left and top, in pixels, of a text at a box (4,) that hides none of those `taken`, to which it is added, or None."""
    x0, y0, x1, y1 = box
    for top in (y0 - height, y1, y0, y1 - height, y0 - 2 * height, y1 + height, (y0 + y1) / 2):
        for left in (x0, x1 - width) if x0 + x1 <= graph.width else (min(x0, graph.width - width), x1 - width):
            hidden = any(left < other + wide and other < left + width and abs(top - high) < height for other, high, wide in taken)
            if 0 <= top <= graph.height - height and 0 <= left <= graph.width - width and not hidden:
                taken.append((left, top, width))
                return left, top
    return None


def draw_relations(axes, judged: Judged, vocabulary: Vocabulary) -> None:
    """The graph: a circle an object, an arrow from subject to object, its predicates on it; at most MAX_ARROWS a verdict.

    axes: matplotlib's. A circle's color is its category's, lines and the arrows' colors say the verdict. An arrow whose text
    would hide a circle or another's text is left out; how many relations are is written below.
    """
    graph, places = judged.graph, places_of(judged.graph)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    axes.set_axis_off()
    point = 2 * REACH / (72 * min(axes.get_position().size * axes.figure.get_size_inches()))  # in the axes' units
    node_pt = min(NODE_PT, 1.7 * np.sin(np.pi / max(len(graph), 2)) / point)  # of many no two touch
    taken, bends, drawn = [], {}, 0
    for (s, o, verdict), predicates in arrows(judged, vocabulary).items():
        size = point * TEXT_PT * np.array([CHARACTER * (max(map(len, predicates)) + 0.5), 1.25 * len(predicates)])
        found = place_on_arrow(places, s, o, bends.get((s, o), 0), size, point * node_pt / 2, taken)
        if found:
            (bends[s, o], text_at), (color, line) = found, VERDICTS[verdict]
            axes.annotate("", places[o], places[s], arrowprops={
                "arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bends[s, o]}", "linestyle": line, "color": color,
                "linewidth": 1.3, "shrinkA": node_pt / 2, "shrinkB": node_pt / 2 + 2})
            axes.text(*text_at, "\n".join(predicates), fontsize=TEXT_PT, color=color, ha="center", va="center", zorder=3.5,
                      parse_math=False, bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"})
            drawn += len(predicates)
    if drawn < len(graph.relations):
        axes.text(-REACH, -REACH, f"{len(graph.relations) - drawn} more not drawn", fontsize=TEXT_PT, va="bottom")
    draw_circles(axes, places, node_pt, judged, vocabulary)


def draw_circles(axes, places: np.ndarray, node_pt: float, judged: Judged, vocabulary: Vocabulary) -> None:
    """The objects at their places (N, 2): number and, where it can be read in a circle of node_pt points, category."""
    from matplotlib.colors import to_rgb
    for i, (place, label, verdict) in enumerate(zip(places, judged.graph.labels, judged.objects)):
        pale, name = 1 - 0.35 * (1 - np.array(to_rgb(COLORS[label % len(COLORS)]))), vocabulary.categories[label]
        axes.scatter(*place, s=node_pt ** 2, color=[pale], edgecolor=VERDICTS[verdict][0], linestyle=VERDICTS[verdict][1],
                     linewidth=1.6, zorder=4)
        size = min(TEXT_PT, 0.86 * node_pt / (CHARACTER * len(name)))
        text, size = (f"{i}\n{name}", size) if size > 5 else (str(i), TEXT_PT)
        axes.text(*place, text, fontsize=size, ha="center", va="center", zorder=5, parse_math=False)


def place_on_arrow(places: np.ndarray, s: int, o: int, bend: float, size: np.ndarray, radius: float, taken: list[tuple]
                   ) -> tuple[float, np.ndarray] | None:
    """How an arrow between two of the places (N, 2) bends, more than `bend`, and the middle of its text of that size (2,).

    The text hides no circle of that radius and none of the texts `taken`, to which it is added; None if there is no room.
    """
    dx, dy = places[o] - places[s]
    aside = np.array([dy, -dx])
    for more in BENDS:
        outside = np.linalg.norm(places[s] + (dx / 2, dy / 2) + more / 2 * aside) > REACH - 0.1
        # nearer to the subject first: all arrows cross in the middle
        for t in () if more <= bend or outside else (0.4, 0.5, 0.6, 0.33, 0.67):
            middle = places[s] + t * np.array([dx, dy]) + 2 * t * (1 - t) * more * aside
            beside = np.hypot(*np.maximum(np.abs(places - middle) - size / 2, 0).T) > radius
            hidden = any((np.abs(middle - other) < (size + large) / 2).all() for other, large in taken)
            if beside.all() and not hidden and (np.abs(middle) + size / 2 < REACH).all():
                taken.append((middle, size))
                return more, middle
    return None


def arrows(judged: Judged, vocabulary: Vocabulary) -> dict[tuple[int, int, str], list[str]]:
    """(subject, object, verdict) -> its predicates: an arrow each, of every verdict the MAX_ARROWS surest."""
    found = {}
    for row in rank_relations(judged.graph, graph_constraint=False):
        s, p, o = judged.graph.relations[row].tolist()
        found.setdefault((s, o, judged.relations[row]), []).append(vocabulary.predicates[p])
    shown = [[arrow for arrow in found if arrow[2] == verdict][:MAX_ARROWS] for verdict in VERDICTS]
    return {arrow: found[arrow] for group in shown for arrow in group}


def places_of(graph: SceneGraph) -> np.ndarray:
    """(N, 2) evenly around the unit circle, y up; objects that most relations have an end at (a table) stand inside it."""
    related = np.zeros((len(graph), len(graph)), bool)
    related[graph.relations[:, 0], graph.relations[:, 2]] = True
    degree = (related | related.T).sum(1)
    hub = degree > 1.5 * degree.sum() / max(len(graph), 1)
    hub &= hub.sum() <= MAX_HUBS
    places = np.zeros((len(graph), 2))
    for ring, radius in ((hub, 0.35), (~hub, 1.0)):
        places[ring] = radius * (ring.sum() > 1) * on_circle((graph.boxes_px[ring, :2] + graph.boxes_px[ring, 2:]) / 2)
    return places


def on_circle(points: np.ndarray) -> np.ndarray:
    """(N, 2) evenly around the unit circle, y up, in the order in which the points (N, 2), y down, lie around their middle."""
    if not len(points):
        return points
    away = points - points.mean(0)
    bearing = np.arctan2(-away[:, 1], away[:, 0])
    order = np.argsort(bearing, kind="stable")
    angle = bearing[order[0]] + np.argsort(order) * 2 * np.pi / len(points)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def save_overlay(path: Path, image: np.ndarray, graph: SceneGraph, vocabulary: Vocabulary) -> None:
    """A PNG of the image (H, W, 3) uint8 with the graph's boxes, the graph beside it."""
    from matplotlib.figure import Figure
    height, width, _ = image.shape
    side = max(480, height, width // 2)
    dpi, share = max(100, max(width, height) / 9), width / (width + side)
    figure = Figure(((width + side) / dpi, side / dpi), dpi=dpi)
    draw_objects(figure.add_axes((0, 0.5 - height / side / 2, share, height / side)), image, unjudged(graph), vocabulary)
    draw_relations(figure.add_axes((share, 0, 1 - share, 1)), unjudged(graph), vocabulary)
    figure.savefig(path, format="png")


def to_dot(graph: SceneGraph, vocabulary: Vocabulary) -> str:
    """The graph in Graphviz' language."""
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'

    lines = [f"digraph {quoted(graph.image)} {{"]
    lines += [f"  {i} [label={quoted(f'{i} {vocabulary.categories[label]} {score:.2f}')}];"
              for i, (label, score) in enumerate(zip(graph.labels, graph.scores))]
    lines += [f"  {s} -> {o} [label={quoted(f'{vocabulary.predicates[p]} {score:.2f}')}];"
              for (s, p, o), score in zip(graph.relations, graph.relation_scores)]
    return "\n".join([*lines, "}", ""])


# --- curves and histograms --------------------------------------------------------------------------------------------

def draw_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str, labels: tuple[str, str],
                scales: tuple[str, str] = ("linear", "linear"), limits: tuple[float, float] | None = None,
                mark: tuple[float, str] | None = None):
    """A figure of named curves (x (n,), y (n,)).

    labels, scales: of x and of y, the latter matplotlib's. limits: of y. mark: a height worth a thin line, and its name.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
    figure = Figure((4.4, 2.7 + 0.17 * ((len(curves) + 1) // 2)), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, DASHES[i % len(DASHES)], color=LINES[i % len(LINES)], linewidth=1.5, label=name,
                  marker="o" if len(x) == 1 else None, markersize=4)  # of one point there is no line to see
    if mark:
        axes.axhline(mark[0], color="black", linewidth=1.2, label=mark[1], linestyle=(0, (1, 1)))
    axes.set(xscale=scales[0], yscale=scales[1], ylim=limits)
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
    legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, handlelength=3)
    for text in legend.get_texts():  # names may come from a file
        text.set_parse_math(False)
    return figure


def draw_histograms(shown: dict[str, list[float] | None], target: dict[str, list[float] | None],
                    ticks: dict[str, tuple[str, ...] | None], title: str):
    """A figure of one panel a histogram: bars for the data set, a black outline for the target it should fill.

    shown, target: metrics.content of both. ticks: per histogram the names of its bins, None for numbers from 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure((4.4, 2.1), layout="constrained")
    bins = {name: max(len(shown[name] or []), len(target[name] or []), 2) for name in ticks}
    panels = figure.subplots(1, len(ticks), sharey=True, width_ratios=[3 + count for count in bins.values()])
    for panel, (name, names) in zip(panels, ticks.items()):
        panel.bar(range(len(shown[name] or [])), shown[name] or [], width=0.9, color="#56B4E9")
        panel.bar(range(len(target[name] or [])), target[name] or [], width=0.9, fill=False, edgecolor="black", linewidth=1.3)
        panel.set_xlim(-0.7, bins[name] - 0.3)
        panel.set_title(name.replace("_", " "), fontsize=8)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if names:
            panel.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def svg_uri(figure) -> str:
    """A figure as a data URI of the same bytes every time, its letters drawn as outlines: no font is needed."""
    import matplotlib
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sim2sg"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def photo_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data URI."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
