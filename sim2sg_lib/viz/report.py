"""report.html, the page of a loop: one file that opens without a network.

The page shows what train.py logged and evaluate.py measured; no score is computed here.
"""
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError
from sim2sg_lib.dataset import ImageFolder
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.io.files import write_text
from sim2sg_lib.io.images import read_image
from sim2sg_lib.io.reading import read_text
from sim2sg_lib.net.predict import confident_graphs
from sim2sg_lib.score.metrics import FN, FP, RECALL_POINTS, TP, match_graphs, without_labels
from sim2sg_lib.score.table import (mean_std, read_curves, read_log, row_title, shown_columns,
                                    shown_row, table_cells, verdict)
from sim2sg_lib.viz.drawings import (MAX_ARROWS, STYLES, default_style, draw_curves,
                                     draw_histograms, draw_objects, draw_relations, photo_uri,
                                     require_matplotlib, svg_uri)
from sim2sg_lib.viz.sheet import lifted_sets, sheet_rows

KEY = ((TP, "solid", "in the labels, too: IoU of at least 0.5, same categories and predicate"),
       (FP, "dashed", "predicted, but not in the labels"),
       (FN, "dotted", "in the labels, but not predicted"))
EXAMPLES = 4         # first images, and as many of the worst
CURVE_POINTS = 150   # longer training curves are averaged in blocks
CASE_INCHES = 3.6    # 346 pixels: a phone shows a scene graph at its own size
MAX_PHOTO_WIDTH = 640


def write_report(loop: Path, table: dict[str, dict], env: Env, images: ImageFolder | None,
                 truth: list[SceneGraph] | None, predicted: list[SceneGraph]) -> Path:
    """Write LOOP/report.html. Returns its path.

    table:     result of read_loop; scene graphs are shown of its `shown_row`.
    images:    test images of that row; None if they are gone, which leaves the graphs out.
    truth:     their labels, None without labels.
    predicted: their predictions, without thresholding.
    Raises: InputError if matplotlib or jinja2 is not installed or a file of the loop is damaged.
    """
    require_matplotlib()
    try:
        import jinja2
    except ImportError:
        raise InputError("report.html is written with jinja2, which is not installed: "
                         "pip install jinja2") from None
    names, last = list(table), shown_row(table)
    curves = {name: read_curves(loop / name) for name in table
              if (loop / name / "curves.json").exists()}
    logs = {name: read_log(loop / name) for name in table}
    options = loop / "options.txt"  # of `make loop`
    options = read_text(options, "a text file").strip() if options.exists() else ""
    shown, thresholds = confident_graphs(predicted, env, env.threshold)
    recall = (curves.get(last, {}).get("recall_per_image") or {}).get("20") or []
    if recall and len(recall) != len(predicted):
        raise InputError(f"{loop / last}/curves.json: recall_per_image: {len(recall)} images, "
                         f"predictions.jsonl has {len(predicted)}: run evaluate.py on it again")
    lowest = sorted((value, -len(truth[i].relations), i) for i, value in enumerate(recall)
                    if truth and value is not None)

    def cases(indices) -> list[dict]:
        return [draw_case(images, i, truth, shown, recall, env) for i in indices] if images else []

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with default_style():
        page = templates.get_template("report.html.jinja").render(
            title=loop.resolve().name, env=env.name, options=options,
            columns=shown_columns([table], names), last=row_title(last),
            verdict="\n".join(verdict([table], names, [table[last]["seed"]])),
            mix=any(row.get("content_gap_mix") for row in table.values()),
            rows=[(name, *row) for name, row in zip(names, table_cells([table], names))],
            losses=list(draw_losses(logs)), discriminators=list(draw_discriminators(logs)),
            detection=list(draw_detection(table, curves)), recall=list(draw_recall(table, curves)),
            content=list(draw_content(table, curves, env)),
            sheet=list(by_target(sheet_rows(table))),
            examples=cases(range(min(EXAMPLES, len(shown)))),
            worst=cases(i for _, _, i in lowest[:EXAMPLES]),
            missing=[name for name in table if name not in curves],
            thresholds=dict(zip(env.vocabulary.categories, thresholds)), threshold=env.threshold,
            labeled=truth is not None, max_arrows=MAX_ARROWS,
            key=[(status, STYLES[status][0], line, meaning) for status, line, meaning in KEY])
    write_text(loop / "report.html", page)
    return loop / "report.html"


def last_of_each_kind(table: dict[str, dict]) -> list[str]:
    """The rows whose curves are drawn: only the last iteration of each kind."""
    return list({name.rstrip("0123456789"): name for name in table}.values())


def thin(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of points (n, 2), averaged in CURVE_POINTS blocks if there are more."""
    blocks = np.array_split(points, min(len(points), CURVE_POINTS))
    x, y = np.stack([block.mean(0) for block in blocks]).T
    return x, y


def picture(figure, caption: str) -> dict[str, str]:
    """A figure for the template; the caption is also its alternative text."""
    return {"uri": svg_uri(figure), "caption": caption}


# --- figures --------------------------------------------------------------------------------------

def draw_losses(logs: dict[str, dict[str, np.ndarray]]) -> Iterator[dict]:
    """One figure per run: the losses of the task. logs: read_log of each run."""
    for name, log in logs.items():
        names = [key.removeprefix("loss_") for key in log if key.startswith("loss_")]
        curves = {term.replace("_", " "): thin(log[f"loss_{term}"]) for term in names
                  if f"accuracy_{term}" not in log}
        if curves:
            figure = draw_curves(curves, f"{name}: losses", ("step", "loss"), ("linear", "log"))
            yield picture(figure, f"Losses of {row_title(name)}")


def draw_discriminators(logs: dict[str, dict[str, np.ndarray]]) -> Iterator[dict]:
    """Losses and accuracies of the discriminators of all runs, with chance level."""
    for quantity, top, chance, chance_name in (("loss", None, np.log(2), "chance level ln 2"),
                                               ("accuracy", 1, 0.5, "chance level 0.5")):
        curves = {}
        for name, log in logs.items():
            for key in [key for key in log if key.startswith("accuracy_")]:
                term = key.removeprefix("accuracy_")
                if f"{quantity}_{term}" in log:
                    curves[f"{name} {term}"] = thin(log[f"{quantity}_{term}"])
        if curves:
            figure = draw_curves(curves, f"discriminators: {quantity}", ("step", quantity),
                                 ylim=(0, top), level=(chance, chance_name))
            yield picture(figure, f"Discriminator {quantity}; {chance_name}")


def draw_detection(table: dict[str, dict], curves: dict[str, dict]) -> Iterator[dict]:
    """One figure per category: precision over recall."""
    rows = [name for name in last_of_each_kind(table)
            if curves.get(name, {}).get("precision_at_recall")]
    for category in curves[rows[-1]]["precision_at_recall"] if rows else ():
        lines = {}
        for name in rows:
            precision = curves[name]["precision_at_recall"].get(category)
            if precision:
                ap = (table[name].get("ap50") or {}).get(category)
                lines[f"{name} {mean_std([ap])}"] = (RECALL_POINTS, np.array(precision, float))
        if lines:
            figure = draw_curves(lines, category, ("recall", "precision"), ylim=(0, 1.02))
            yield picture(figure, f"Precision over recall of {category}")


def draw_recall(table: dict[str, dict], curves: dict[str, dict]) -> Iterator[dict]:
    """Recall@K over K, without and with the graph constraint."""
    for key, title in (("recall_curve", "recall@K"),
                       ("recall_curve_graph_constraint", "recall@K, one predicate per pair")):
        lines = {}
        for name in last_of_each_kind(table):
            recall = curves.get(name, {}).get(key)
            if recall and None not in recall:
                lines[name] = (np.arange(1, len(recall) + 1), np.array(recall))
        if lines:
            figure = draw_curves(lines, title, ("K, ranked relations of an image", "recall"),
                                 ("log", "linear"), ylim=(0, 1.02))
            yield picture(figure, title)


def draw_content(table: dict[str, dict], curves: dict[str, dict], env: Env) -> Iterator[dict]:
    """One figure per data set, random and of each iteration: its content against the target's."""
    ticks = {"objects_per_image": None, "categories": env.vocabulary.categories,
             "predicates": env.vocabulary.predicates}
    random_set = [name for name in ("sdr", "start") if name in table][:1]
    for name in [*random_set, *lifted_sets(table).values()]:
        content = curves.get(name, {}).get("content") or {}
        if content.get("source") and content["target"]:
            figure = draw_histograms(content["source"], content["target"], ticks, row_title(name))
            gap = table[name].get("content_gap") or {}
            gaps = ", ".join(f"{column.replace('_', ' ')} {mean_std([gap.get(column)])}"
                             for column in content["target"])
            yield picture(figure, f"Total variation: {gaps}")


def by_target(rows: list[tuple[str, list[np.ndarray]]]) -> Iterator[list[dict]]:
    """The rows of a sheet as one list of pictures per target image."""
    for i in range(len(rows[0][1]) if rows else 0):
        yield [{"uri": photo_uri(images[i]), "caption": caption}
               for caption, images in rows if i < len(images)]


def draw_case(images: ImageFolder, index: int, truth: list[SceneGraph] | None,
              shown: list[SceneGraph], recall: list[float | None], env: Env) -> dict:
    """The boxes and the graph predicted on one image, and the labeled ones if there are labels."""
    from matplotlib.figure import Figure
    graph = shown[index]
    halves = [("", without_labels(graph))]
    if truth:
        halves = list(zip(("predicted ", "labeled "), match_graphs(truth[index], graph)))
    width = min(graph.width, MAX_PHOTO_WIDTH)
    height = max(1, round(width * graph.height / graph.width))
    pixels = read_image(images.folder / images.names[index], width, height)
    pictures = []
    for what, matched in halves:
        photo = Figure((CASE_INCHES, CASE_INCHES * height / width))
        draw_objects(photo.add_axes((0, 0, 1, 1)), pixels, matched, env.vocabulary)
        drawing = Figure((CASE_INCHES, CASE_INCHES))
        draw_relations(drawing.add_axes((0, 0, 1, 1)), matched, env.vocabulary)
        pictures += [picture(photo, f"{what}objects: {tally(matched.objects)}"),
                     picture(drawing, f"{what}relations: {tally(matched.relations)}")]
    note = f"recall@20 {mean_std([recall[index]])}" if recall else ""
    return {"name": graph.image, "note": note, "pictures": pictures}


def tally(statuses: list[str]) -> str:
    """The number of each status as text."""
    counts = [f"{statuses.count(status)} {status}" for status in STYLES if status in statuses]
    return ", ".join(counts) or "none"


def write_events(run: Path) -> None:
    """Convert log.jsonl to RUN/events.out.tfevents.*, replacing old ones. Raises: InputError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("event files need tensorboard, which is not installed: "
                         "pip install tensorboard") from None
    log, old = read_log(run), list(run.glob("events.out.tfevents.*"))
    with SummaryWriter(str(run)) as writer:
        for name, points in log.items():
            tag = "/".join(name.split("_", 1)) if name.startswith(("loss_", "accuracy_")) else name
            for step, value in points:
                writer.add_scalar(tag, value, int(step))
    for path in old:
        path.unlink()
