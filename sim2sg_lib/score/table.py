"""Scores as text: the table of a loop, one row per run, and the scores of a single run."""
import re
import statistics
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError
from sim2sg_lib.io.graphs import MAX_OBJECTS
from sim2sg_lib.io.reading import is_int, is_number, read_json, read_json_lines, resolve_recorded
from sim2sg_lib.score.content import HISTOGRAMS
from sim2sg_lib.score.metrics import RECALL_POINTS

# run folder -> title of its row; label and appearance are followed by the iteration's number
ROWS = {"start": "SDR, start of the loop", "sdr": "SDR", "label": "+ label",
        "appearance": "+ label + appearance", "full": "+ label + appearance + prediction"}
ITERATION = re.compile(r"(label|appearance)(\d+)")
# column -> where a row of read_loop holds it
COLUMNS = {"mAP@0.5": ("map50",), "R@20": ("recall", "20"), "R@50": ("recall", "50"),
           "objects": ("content_gap", "objects_per_image"),
           "categories": ("content_gap", "categories"),
           "predicates": ("content_gap", "predicates"), "train s": ("seconds",)}

# shapes of the fields that are read here, see `has_shape`
NUMBERS = [float, range(1_000_001)]
CONTENT = dict.fromkeys(HISTOGRAMS, [float, range(MAX_OBJECTS + 2)])
METRICS = {"map50": float, "ap50": {str: float}, "recall": {"20": float, "50": float},
           "content_gap": dict.fromkeys(HISTOGRAMS, float), "van": str, "camera": str, "data": str}
CONFIG = {"seconds": float, "env": str, "source": [str, range(1, 1001)]}
CURVES = {"precision_at_recall": {str: [float, [len(RECALL_POINTS)]]}, "recall_curve": NUMBERS,
          "recall_curve_graph_constraint": NUMBERS, "recall_per_image": {str: NUMBERS},
          "content": {"source": CONTENT, "target": CONTENT}}
MAX_LOGGED = 1e18  # event files hold steps in 64 bits


# --- a run's files --------------------------------------------------------------------------------

def read_loop(loop: Path) -> dict[str, dict]:
    """Run folder -> its read_row, in the table's order. Raises: InputError."""
    if not loop.is_dir():
        raise InputError(f"{loop}: no such folder, expected the folder of a loop")
    found = [match for match in map(ITERATION.fullmatch, (p.name for p in loop.glob("*"))) if match]
    found.sort(key=lambda match: (list(ROWS).index(match[1]), int(match[2])))
    table = {}
    for name in ["start", "sdr", *(match[0] for match in found), "full"]:
        if (loop / name / "metrics.json").exists():
            table[name] = read_row(loop / name)
    if not table:
        raise InputError(f"{loop}: no start/, sdr/, label1/, ... with metrics.json in it, "
                         "as `make loop` writes them")
    return table


def read_row(run: Path) -> dict:
    """A run's metrics, with `seconds`, `env` and `source` of its config.

    Its paths are absolute. Raises: InputError for a field that the table or the report cannot use.
    """
    metrics = read_fields(run / "metrics.json", METRICS, "evaluate.py")
    config = read_fields(run / "config.json", CONFIG, "train.py")
    for field in CONFIG:
        if config.get(field) is None:
            raise InputError(f"{run / 'config.json'}: {field}: not what train.py writes")
    sources = [str(resolve_recorded(path, run / "config.json")) for path in config["source"]]
    if metrics.get("data"):
        metrics["data"] = str(resolve_recorded(metrics["data"], run / "metrics.json"))
    return metrics | {"seconds": config["seconds"], "env": config["env"], "source": sources}


def read_curves(run: Path) -> dict:
    """A run's curves.json. Raises: InputError for a field that cannot be drawn."""
    return read_fields(run / "curves.json", CURVES, "evaluate.py")


def read_fields(path: Path, shapes: dict, writer: str) -> dict:
    """A JSON object, its fields checked against `shapes` where present. Raises: InputError."""
    fields = read_json(path)
    for name, shape in shapes.items():
        if name in fields and not has_shape(fields[name], shape):
            raise InputError(f"{path}: {name}: not what {writer} writes")
    return fields


def has_shape(value, shape) -> bool:
    """Whether a JSON value has a shape; null has all shapes but str.

    A shape is str, float, [shape of the items, possible lengths], {str: shape of all values} or
    {name: shape, ..}, where all names must be present.
    """
    if shape is str:
        return isinstance(value, str)
    if value is None:
        return True
    if shape is float:
        return is_number(value)
    if isinstance(shape, list):
        item, lengths = shape
        return (isinstance(value, list) and len(value) in lengths
                and all(has_shape(inner, item) for inner in value))
    if str in shape:
        shape = dict.fromkeys(value, shape[str]) if isinstance(value, dict) else {}
    return (isinstance(value, dict)
            and all(name in value and has_shape(value[name], shape[name]) for name in shape))


def read_log(run: Path) -> dict[str, np.ndarray]:
    """Logged quantity -> (n, 2) steps and values; empty without log.jsonl. Raises: InputError."""
    path, points = run / "log.jsonl", {}
    for line, row in read_json_lines(path) if path.exists() else []:
        for name, value in row.items():
            if type(value) not in (int, float) or abs(value) >= MAX_LOGGED:
                raise InputError(f"{path}:{line}: {name}: {value!r}, expected a number")
        step = row.pop("step", None)
        if not is_int(step) or step < 0:
            raise InputError(f"{path}:{line}: step: {step!r}, expected an integer from 0")
        for name, value in row.items():
            points.setdefault(name, []).append((step, value))
    return {name: np.array(rows, float) for name, rows in points.items()}


# --- a loop ---------------------------------------------------------------------------------------

def cell(row: dict, column: str) -> float | None:
    """The value of one of the COLUMNS in a row of read_loop; None if it is not there."""
    value = row
    for name in COLUMNS[column]:
        value = None if value is None else value.get(name)
    return value


def row_title(name: str) -> str:
    """The title of a run's row."""
    iteration = ITERATION.fullmatch(name)
    return f"{ROWS[iteration[1]]}, iteration {iteration[2]}" if iteration else ROWS[name]


def table_cells(tables: list[dict[str, dict]], names: list[str]) -> list[tuple[str, list[str]]]:
    """For each named row, its title and its COLUMNS as text: over several loops, mean ± std."""
    return [(row_title(name), [mean_std([cell(table[name], column) for table in tables],
                                        0 if column == "train s" else 3) for column in COLUMNS])
            for name in names]


def mean_std(values: list[float | None], digits: int = 3) -> str:
    """Mean and, of several values, the sample's standard deviation; "-" if a value is missing."""
    if None in values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def verdict(tables: list[dict], names: list[str]) -> str:
    """One sentence on whether the last row is better than the SDR row."""
    first, last = "sdr" if "sdr" in names else names[0], names[-1]
    parts = []
    for column in ("mAP@0.5", "R@20", "R@50"):
        before, after = ([cell(table[name], column) for table in tables] for name in (first, last))
        if None in before + after:
            return ("No labeled test set, so no scores: "
                    "give the loop a target with a labeled test/ or val/ folder.")
        a, b = statistics.mean(before), statistics.mean(after)
        parts.append(f"{column} {a:.3f} -> {b:.3f} ({'better' if b > a else 'NOT better'})")
    return f"{row_title(first)} -> {row_title(last)}: " + ", ".join(parts)


def loop_table(tables: list[dict[str, dict]], names: list[str]) -> str:
    """The table of one or several loops with the verdict below it."""
    width = 15 if len(tables) > 1 else 11
    lines = [f"{'':<36}{'':>{3 * width}}{'content gap (total variation)':>{3 * width}}",
             f"{'':<36}" + "".join(f"{column:>{width}}" for column in COLUMNS)]
    for title, cells in table_cells(tables, names):
        lines.append(f"{title:<36}" + "".join(f"{text:>{width}}" for text in cells))
    return "\n".join([*lines, "", verdict(tables, names)])


# --- a run ----------------------------------------------------------------------------------------

RECALLS = (("mean over images", "recall"), ("  ceiling", "recall_ceiling"),
           ("with graph constraint", "recall_graph_constraint"),
           ("  ceiling", "recall_ceiling_graph_constraint"), ("pooled", "recall_pooled"),
           ("pooled, with graph constraint", "recall_graph_constraint_pooled"))


def metrics_table(metrics: dict) -> str:
    """The scores in metrics.json as text."""
    per_category = [f"{name} {number(ap)}" for name, ap in metrics["ap50"].items()]
    lines = [f"mAP@0.5 {number(metrics['map50'])}   " + "  ".join(per_category)]
    if metrics.get("kitti"):
        lines += kitti_lines(metrics["kitti"])
    lines += ["", f"{'triplet recall':<34}" + "".join(f"{'@' + k:>8}" for k in metrics["recall"])]
    rows = [(title, metrics[field]) for title, field in RECALLS]
    rows += [(f"  {name}", recall) for name, recall in metrics["recall_per_predicate"].items()]
    for title, recall in rows:
        lines.append(f"{title:<34}" + "".join(f"{number(value):>8}" for value in recall.values()))
    if metrics.get("content_gap"):
        gaps = [f"{name.replace('_', ' ')} {number(gap)}"
                for name, gap in metrics["content_gap"].items()]
        lines += ["", "content gap (total variation, 0..1)   " + "  ".join(gaps)]
    return "\n".join(lines)


def kitti_lines(scores: dict) -> list[str]:
    """AP11 and AP40 by KITTI's own rules, one line per category."""
    from sim2sg_lib.score.kitti_ap import MIN_OBJECTS, MIN_OVERLAP
    lines = []
    for category, levels in scores.items():
        cells = [f"{level} {number(score['ap11'])} / {number(score['ap40'])}"
                 + (f" ({score['objects']} objects, needs {MIN_OBJECTS})"
                    if score["ap11"] is None else "") for level, score in levels.items()]
        lines.append(f"AP11 / AP40 by KITTI's rules at overlap {MIN_OVERLAP[category]}, "
                     f"{category}:  " + "   ".join(cells))
    return lines


def number(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"
