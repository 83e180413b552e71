"""What a loop came to: its table, its sheet of pictures, and its page, report.html, which needs no other file.

The page draws what train.py logged and evaluate.py measured (log.jsonl, metrics.json, curves.json) and computes no score.
"""
import os
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError
from sim2sg_lib.dataset import ImageFolder, read_info
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.io.files import write_text
from sim2sg_lib.io.graphs import MAX_OBJECTS
from sim2sg_lib.io.images import read_image
from sim2sg_lib.io.reading import (
    is_int,
    is_number,
    read_json,
    read_json_lines,
    read_text,
    safe_join,
)
from sim2sg_lib.net.predict import confident, thresholds
from sim2sg_lib.score.metrics import MISSED, RECALL_POINTS, RIGHT, WRONG, compare, unjudged
from sim2sg_lib.score.table import (
    COLUMNS,
    CONTENT,
    ITERATION,
    gap,
    row_title,
    spread,
    table_cells,
    verdict,
)
from sim2sg_lib.viz.drawings import (
    MAX_ARROWS,
    VERDICTS,
    contact_sheet,
    draw_curves,
    draw_histograms,
    draw_objects,
    draw_relations,
    photo_uri,
    require_matplotlib,
    save_png,
    svg_uri,
    to_tile,
)

KEY = [(RIGHT, "solid", "in the labels, too: IoU from 0.5 at both ends, the same categories and predicate"),
       (WRONG, "dashed", "predicted, but not in the labels"), (MISSED, "dotted", "in the labels, but not predicted")]
SHEET_COLUMNS = 6
LARGEST = 1e18       # a number in a log: TensorBoard's are of 32 bits, its steps of 64
CASES = 4            # example images, and as many of the worst
CURVE_POINTS = 150   # of a training curve; longer ones are averaged in as many blocks
CASE_INCHES = 3.6    # 346 pixels: a phone shows a scene graph at its own size
PHOTO_WIDTH = 640    # pixels, the most an image has on the page


# --- the table --------------------------------------------------------------------------------------------------------


def read_curves(run: Path) -> dict:
    """A run's curves.json. Errors: InputError for a field that cannot be drawn."""
    def numbers(value, *counts, gaps=False):  # a list of one of the counts; gaps: it may hold None
        return (isinstance(value, list) and (not counts or len(value) in counts)
                and all(is_number(item) or gaps and item is None for item in value))

    def each(value, fits, names=()):  # a dictionary with those names, whose every value fits
        return isinstance(value, dict) and set(names) <= set(value) and all(map(fits, value.values()))

    def histograms(value):
        return each(value, lambda h: h is None or numbers(h, *range(MAX_OBJECTS + 1)), CONTENT)

    path = run / "curves.json"
    curves, points = read_json(path), len(RECALL_POINTS["coco101"])
    for field, fits in (("precision_at_recall", lambda value: each(value, lambda p: p is None or numbers(p, points))),
                        ("recall_curve", lambda value: numbers(value, gaps=True)),
                        ("recall_curve_graph_constraint", lambda value: numbers(value, gaps=True)),
                        ("recall_per_image", lambda value: each(value, lambda r: numbers(r, gaps=True))),
                        ("content", lambda value: each(value, lambda h: h is None or histograms(h), ("source", "target")))):
        if field in curves and not fits(curves[field]):
            raise InputError(f"{path}: {field}: not what evaluate.py writes")
    return curves


def read_log(run: Path) -> dict[str, np.ndarray]:
    """Name of a quantity -> (n, 2) steps and values, as train.py logged them; empty without a log. Errors: InputError."""
    path, columns = run / "log.jsonl", {}
    for line, row in read_json_lines(path) if path.exists() else []:
        step = row.pop("step", None)
        if not is_int(step) or not 0 <= step < LARGEST:
            raise InputError(f"{path}:{line}: step: {step!r}, expected an integer from 0")
        for name, value in row.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) >= LARGEST:
                raise InputError(f"{path}:{line}: {name}: {value!r}, expected a number")
            columns.setdefault(name, []).append((step, value))
    return {name: np.array(points, float) for name, points in columns.items()}


# --- the sheet --------------------------------------------------------------------------------------------------------

def lifted_sets(table: dict[str, dict]) -> dict[Path, str]:
    """Every lifted data set -> the first row that learnt it."""
    sets = {}
    for name in filter(ITERATION.fullmatch, table):
        sets.setdefault(Path(table[name]["source"][-1]), name)
    return sets


def sheet_rows(table: dict[str, dict]) -> list[tuple[str, list[np.ndarray]]]:
    """The paper's Figure 3: target images, then what SDR and each iteration made of them, as (caption, images).

    Images (H, W, 3) uint8 of the lifted sets' size. Rows whose images are gone are left out.
    """
    lifted = lifted_sets(table)
    first = next(iter(lifted), None)
    if first is None or not (first / "dataset.json").exists() or not (first / "predicted.jsonl").exists():
        return []
    info, predicted = read_info(first, None), safe_join(first, "predicted.jsonl")
    names = [str(row.get("image")) for _, row in read_json_lines(predicted)[:SHEET_COLUMNS]]
    sdr = {Path(table["sdr"]["source"][0]): "sdr"} if "sdr" in table else {}
    target = Path(str(info.get("target") or ""))
    shown = [("target", [safe_join(target, name, f"{predicted}: image") for name in names])]
    shown += [(row_title(name), [safe_join(folder, f"images/{path.name}")
                                 for path in sorted((folder / "images").glob("*.png"))[:len(names)]])
              for folder, name in (sdr | lifted).items()]
    return [(caption, [read_image(path, info["width"], info["height"]) for path in paths])
            for caption, paths in shown if paths and all(map(os.path.isfile, paths))]


def draw_sheet(loop: Path, table: dict[str, dict]) -> Path | None:
    """Draw figures/loop.png, a row a data set; returns its path, None if the images are gone."""
    rows = sheet_rows(table)
    if not rows:
        return None
    path = loop / "figures" / "loop.png"
    path.parent.mkdir(exist_ok=True)
    save_png(path, contact_sheet([(caption.replace(" + ", "\n+ ").replace(", ", ",\n"), [to_tile(image) for image in images])
                                  for caption, images in rows]))
    return path


# --- the page ---------------------------------------------------------------------------------------------------------

def write_report(loop: Path, table: dict[str, dict], env: Env, images: ImageFolder | None, truth: list[SceneGraph] | None,
                 predicted: list[SceneGraph]) -> Path:
    """Write LOOP/report.html: one file that opens without a network. Returns its path.

    table:     what read_loop returned; the pictures of graphs are of its last row.
    images:    those the last row was evaluated on; None if they are gone, which leaves the pictures out.
    truth:     their labels, None if there are none. predicted: their predictions, relations not yet thresholded.
    Errors: InputError if matplotlib or jinja2 is not installed, or a file of the loop is not what the programs write.
    """
    require_matplotlib()
    try:
        import jinja2
    except ImportError:
        raise InputError("report.html is written with jinja2, which is not installed: pip install jinja2") from None
    last = list(table)[-1]
    curves = {name: read_curves(loop / name) for name in table if (loop / name / "curves.json").exists()}
    levels = thresholds(predicted, env, env.threshold)
    shown = [confident(graph, levels, env.threshold) for graph in predicted]
    recall = curves.get(last, {}).get("recall_per_image", {}).get("20", [])
    if recall and len(recall) != len(predicted):
        raise InputError(f"{loop / last}/curves.json: recall_per_image: of {len(recall)} images, predictions.jsonl has "
                         f"{len(predicted)}; run evaluate.py --overwrite on it again")
    lowest = sorted((value, -len(truth[i].relations), i) for i, value in enumerate(recall) if truth and value is not None)
    logs = {name: read_log(loop / name) for name in table}

    def cases(indices) -> list[dict]:
        return [draw_case(images, i, truth, shown, recall, env) for i in indices] if images else []

    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                   undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = templates.get_template("report.html.jinja").render(
        title=str(loop), env=env.name, options=read_options(loop), columns=list(COLUMNS),
        rows=[(name, *row) for name, row in zip(table, table_cells([table], list(table)))],
        verdict=verdict([table], list(table)), last=row_title(last),
        learning=draw_learning(logs), judging=draw_judging(logs), detection=draw_detection(table, curves),
        recall=draw_recall(curves, table), content=draw_content(table, curves, env), sheet=transpose(sheet_rows(table)),
        examples=cases(range(min(CASES, len(shown)))), worst=cases(i for _, _, i in lowest[:CASES]),
        missing=[name for name in table if name not in curves],
        levels=dict(zip(env.vocabulary.categories, levels)), threshold=env.threshold, labeled=truth is not None,
        key=[(name, VERDICTS[name][0], line, meaning) for name, line, meaning in KEY], max_arrows=MAX_ARROWS)
    write_text(loop / "report.html", page)
    return loop / "report.html"


def read_options(loop: Path) -> str:
    """The options of `make loop`, if it made the loop."""
    path = loop / "options.txt"
    return read_text(path, "one made by make loop").strip() if path.exists() else ""


def kinds(table: dict[str, dict]) -> list[str]:
    """The rows worth a curve each: of the iterations only the last of each kind."""
    return list({name.rstrip("0123456789"): name for name in table}.values())


def thin(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of points (n, 2), averaged in CURVE_POINTS blocks if there are more."""
    blocks = np.array_split(points, min(len(points), CURVE_POINTS))
    x, y = np.stack([block.mean(0) for block in blocks]).T
    return x, y


def picture(figure, caption: str) -> dict[str, str]:
    """A figure as the template takes it; the caption stands for it where it cannot be seen."""
    return {"uri": svg_uri(figure), "caption": caption}


def draw_learning(logs: dict[str, dict[str, np.ndarray]]) -> list[dict]:
    """A figure a run: the task's losses. logs: per run what read_log returned."""
    figures = []
    for name, log in logs.items():
        curves = {key.removeprefix("loss_").replace("_", " "): thin(points) for key, points in log.items()
                  if key.startswith("loss_") and key not in ("loss_appearance", "loss_prediction")}
        if curves:
            figure = draw_curves(curves, f"{name}: losses", ("step", "loss"), ("linear", "log"))
            figures.append(picture(figure, f"Losses of {row_title(name)}"))
    return figures


def draw_judging(logs: dict[str, dict[str, np.ndarray]]) -> list[dict]:
    """Losses and accuracies of the discriminators of all runs, beside what a coin would have."""
    figures = []
    for quantity, top, coin, coin_name in (("loss", None, np.log(2), "a coin: ln 2"), ("accuracy", 1, 0.5, "a coin: 0.5")):
        curves = {}
        for name, log in logs.items():
            for term, short in (("appearance", "D_a"), ("prediction", "D_c")):
                if f"{quantity}_{term}" in log:
                    curves[f"{name} {short}"] = thin(log[f"{quantity}_{term}"])
        if curves:
            figure = draw_curves(curves, f"discriminators: {quantity}", ("step", quantity), limits=(0, top),
                                 mark=(coin, coin_name))
            figures.append(picture(figure, f"Discriminators' {quantity}; {coin_name}"))
    return figures


def draw_detection(table: dict[str, dict], curves: dict[str, dict]) -> list[dict]:
    """A figure a category: precision over recall."""
    rows = [name for name in kinds(table) if curves.get(name, {}).get("precision_at_recall")]
    figures = []
    for category in curves[rows[-1]]["precision_at_recall"] if rows else ():
        lines = {f"{name} {spread([table[name].get('ap50', {}).get(category)], 3)}": (RECALL_POINTS["coco101"], precision)
                 for name in rows if (precision := curves[name]["precision_at_recall"].get(category))}
        if lines:
            figure = draw_curves(lines, category, ("recall", "precision"), limits=(0, 1.02))
            figures.append(picture(figure, f"Precision over recall of {category}"))
    return figures


def draw_recall(curves: dict[str, dict], table: dict[str, dict]) -> list[dict]:
    """Recall@K over K, in both readings."""
    figures = []
    for key, title in (("recall_curve", "recall@K"), ("recall_curve_graph_constraint", "recall@K, one predicate a pair")):
        lines = {name: (np.arange(1, len(recall) + 1), np.array(recall)) for name in kinds(table)
                 if (recall := curves.get(name, {}).get(key)) and None not in recall}
        if lines:
            figure = draw_curves(lines, title, ("K, ranked relations of an image", "recall"), ("log", "linear"), (0, 1.02))
            figures.append(picture(figure, title))
    return figures


def draw_content(table: dict[str, dict], curves: dict[str, dict], env: Env) -> list[dict]:
    """A figure a data set, SDR's and each iteration's: its content in the outline of the target's."""
    sdr = [name for name in ("sdr", "start") if name in table][:1]  # one of the two random sets stands for both
    ticks = {"objects_per_image": None, "categories": env.vocabulary.categories, "predicates": env.vocabulary.predicates}
    figures = []
    for name in [*sdr, *lifted_sets(table).values()]:
        content = curves.get(name, {}).get("content", {})
        if content.get("source") and content["target"]:
            figure = draw_histograms(content["source"], content["target"], ticks, row_title(name))
            gaps = ", ".join(f"{key.replace('_', ' ')} {spread([gap(table[name], key)], 3)}" for key in ticks)
            figures.append(picture(figure, f"Total variation: {gaps}"))
    return figures


def transpose(rows: list[tuple[str, list[np.ndarray]]]) -> list[list[dict]]:
    """A sheet's rows as one list of pictures a target image."""
    rows = [(caption, [photo_uri(image) for image in images]) for caption, images in rows]
    return [[{"uri": images[i], "caption": caption} for caption, images in rows if i < len(images)]
            for i in range(len(rows[0][1]) if rows else 0)]


def draw_case(images: ImageFolder, index: int, truth: list[SceneGraph] | None, shown: list[SceneGraph],
              recall: list[float | None], env: Env) -> dict:
    """One image's boxes and graph: what is predicted, right or wrong, and, if there are labels, those, found or missed."""
    from matplotlib.figure import Figure
    graph = shown[index]
    halves = list(zip(("predicted ", "labeled "), compare(truth[index], graph))) if truth else [("", unjudged(graph))]
    width = min(graph.width, PHOTO_WIDTH)
    height = max(1, round(width * graph.height / graph.width))
    pixels = read_image(images.folder / images.names[index], width, height)
    pictures = []
    for what, half in halves:
        photo = Figure((CASE_INCHES, CASE_INCHES * height / width))
        draw_objects(photo.add_axes((0, 0, 1, 1)), pixels, half, env.vocabulary)
        drawing = Figure((CASE_INCHES, CASE_INCHES))
        draw_relations(drawing.add_axes((0, 0, 1, 1)), half, env.vocabulary)
        pictures += [picture(photo, f"{what}objects: {tally(half.objects)}"),
                     picture(drawing, f"{what}relations: {tally(half.relations)}")]
    note = f"recall@20 {spread([recall[index]], 3)}" if recall else ""
    return {"name": graph.image, "note": note, "pictures": pictures}


def tally(verdicts: list[str]) -> str:
    """How many of each."""
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in VERDICTS if kind in verdicts) or "none"


# --- TensorBoard ------------------------------------------------------------------------------------------------------

def write_events(run: Path) -> None:
    """log.jsonl once more as RUN/events.out.tfevents.*, in the place of those there. Errors: InputError without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("event files are written with tensorboard, which is not installed: pip install tensorboard") from None
    log, before = read_log(run), list(run.glob("events.out.tfevents.*"))
    with SummaryWriter(str(run)) as writer:
        for name, points in log.items():
            tag = "/".join(name.split("_", 1)) if name.startswith(("loss_", "accuracy_")) else name
            for step, value in points:
                writer.add_scalar(tag, value, int(step))
    for old in before:
        old.unlink()
