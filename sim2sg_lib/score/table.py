"""Scores as text: the table of a loop, one row per run, and the scores of a single run."""
import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sim2sg_lib.cli import InputError
from sim2sg_lib.io.graphs import MAX_OBJECTS
from sim2sg_lib.io.reading import is_int, is_number, read_json, read_json_lines, resolve_recorded
from sim2sg_lib.score.content import HISTOGRAMS
from sim2sg_lib.score.metrics import RECALL_POINTS
from sim2sg_lib.score.paired import ALPHA, Comparison, compare, gap_closed

# run folder -> title of its row, in the table's order
ROWS = {"start": "SDR, start of the loop", "sdr": "SDR", "appearance": "+ appearance",
        "label": "+ label", "label-appearance": "+ label + appearance",
        "full": "+ label + appearance + prediction", "look": "+ label + look",
        "look-appearance": "+ label + look + appearance", "oracle": "oracle: labeled target images"}
ITERATED = ("label", "label-appearance", "look")  # followed by the number of the iteration
FORMER = "appearance"  # with a number, the name of label-appearance in older loops
ITERATION = re.compile(rf"({'|'.join(ITERATED)}|{FORMER})(\d+)")
# column -> where a row of read_loop holds it
COLUMNS = {"mAP@0.5": ("map50",), "R@20": ("recall", "20"), "R@50": ("recall", "50"),
           "easy": ("levels", "easy", "map50"), "moderate": ("levels", "moderate", "map50"),
           "hard": ("levels", "hard", "map50"), "probe": ("probe",),
           "objects": ("gap", "objects_per_image"), "categories": ("gap", "categories"),
           "predicates": ("gap", "predicates"), "train s": ("seconds",)}
OPTIONAL = ("easy", "moderate", "hard", "probe")  # printed where a row has a value
# column -> the column whose gap between SDR and oracle it is; printed where there is an oracle
GAPS_CLOSED = {"of mAP": "mAP@0.5", "of R@20": "R@20"}
GROUPS = {"mAP@0.5 at KITTI's levels": ("easy", "moderate", "hard"),
          "gap closed": tuple(GAPS_CLOSED),
          "content gap (total variation)": ("objects", "categories", "predicates")}
COMPARED = ("mAP@0.5", "R@20", "R@50", "hard")  # columns that are compared with SDR

# shapes of the fields that are read here, see `has_shape`
NUMBERS = [float, range(1_000_001)]
CONTENT = dict.fromkeys(HISTOGRAMS, [float, range(MAX_OBJECTS + 2)])
METRICS = {"map50": float, "ap50": {str: float}, "recall": {"20": float, "50": float},
           "content_gap": dict.fromkeys(HISTOGRAMS, float), "probe": float,
           "content_gap_mix": dict.fromkeys(HISTOGRAMS, float), "levels": {str: {"map50": float}},
           "recall_ceiling": {"20": float, "50": float}, "van": str, "camera": str, "data": str}
CONFIG = {"seconds": float, "env": str, "source": [str, range(1, 1001)], "seed": float}
CURVES = {"precision_at_recall": {str: [float, [len(RECALL_POINTS)]]}, "recall_curve": NUMBERS,
          "recall_curve_graph_constraint": NUMBERS, "recall_per_image": {str: NUMBERS},
          "content": {"source": CONTENT, "target": CONTENT}}
MAX_LOGGED = 1e18  # event files hold steps in 64 bits


# --- a run's files --------------------------------------------------------------------------------

def read_loop(loop: Path) -> dict[str, dict]:
    """Run folder -> its read_row, in the table's order. Raises: InputError."""
    if not loop.is_dir():
        raise InputError(f"{loop}: no such folder, expected the folder of a loop")
    table = {}
    for name in sorted((path.name for path in loop.glob("*")), key=row_order):
        if row_title(name) and (loop / name / "metrics.json").exists():
            table[name] = read_row(loop / name)
    if not table:
        raise InputError(f"{loop}: no start/, sdr/, label1/, ... with metrics.json in it, "
                         "as `make loop` writes them")
    return table


def read_row(run: Path) -> dict:
    """A run's metrics, with `seconds`, `env`, `seed` and `source` of its config.

    `gap` is the content gap of the mix of data sets that it was trained on or, in old runs, of the
    newest. Paths are absolute. Raises: InputError for a field that the table or the report cannot
    use.
    """
    metrics = read_fields(run / "metrics.json", METRICS, "evaluate.py")
    config = read_fields(run / "config.json", CONFIG, "train.py")
    for field in ("seconds", "env", "source"):
        if config.get(field) is None:
            raise InputError(f"{run / 'config.json'}: {field}: not what train.py writes")
    sources = [str(resolve_recorded(path, run / "config.json")) for path in config["source"]]
    if metrics.get("data"):
        metrics["data"] = str(resolve_recorded(metrics["data"], run / "metrics.json"))
    return metrics | {"seconds": config["seconds"], "env": config["env"], "source": sources,
                      "seed": config.get("seed"),
                      "gap": metrics.get("content_gap_mix") or metrics.get("content_gap")}


def read_seeds(loops: list[Path], tables: list[dict[str, dict]]) -> list[int | None]:
    """The seed of each loop; None for one that is not recorded.

    Raises: InputError if rows of one loop differ in it, or two loops do not: such are not paired.
    """
    seeds = []
    for loop, table in zip(loops, tables):
        found = sorted({row["seed"] for row in table.values()} - {None})
        if len(found) > 1:
            raise InputError(f"{loop}: rows of seeds {found[0]} and {found[1]}, expected one seed")
        seed = found[0] if found else None
        if seed is not None and seed in seeds:
            raise InputError(f"--summary: {loops[seeds.index(seed)]} and {loop} are both of seed "
                             f"{seed}, expected loops of different seeds")
        seeds.append(seed)
    return seeds


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


def row_title(name: str) -> str | None:
    """The title of a run's row; None for a folder that is no row."""
    iteration = ITERATION.fullmatch(name)
    if not iteration:
        return ROWS.get(name) if name not in ITERATED else None
    kind = "label-appearance" if iteration[1] == FORMER else iteration[1]
    return f"{ROWS[kind]}, iteration {iteration[2]}"


def row_order(name: str) -> tuple:
    """Sorts row folders as the table has them."""
    iteration = ITERATION.fullmatch(name)
    kind, number = iteration.groups() if iteration else (name, 0)
    kind = "label-appearance" if iteration and kind == FORMER else kind
    return list(ROWS).index(kind) if kind in ROWS else len(ROWS), int(number), name


def shown_row(names: Iterable[str]) -> str:
    """The row whose scene graphs a report shows: the last one that was adapted."""
    adapted = [name for name in names if name != "oracle"]
    return adapted[-1] if adapted else "oracle"


def shown_columns(tables: list[dict[str, dict]], names: list[str]) -> list[str]:
    """The columns of a table with these rows."""
    columns = [column for column in COLUMNS if column not in OPTIONAL or any(
        cell(table[name], column) is not None for table in tables for name in names)]
    where = columns.index("R@50") + 1
    return columns[:where] + list(GAPS_CLOSED if "oracle" in names else ()) + columns[where:]


def values_of(tables: list[dict[str, dict]], name: str, column: str) -> list[float | None]:
    """A row's values in a column, one per loop."""
    return [cell(table[name], column) for table in tables]


def gaps_closed(tables: list[dict], names: list[str], column: str) -> dict[str, float | None]:
    """Row -> the fraction of the gap between SDR and oracle that it closes, in one of COMPARED."""
    ends = [values_of(tables, end, column) if end in names else [None] for end in ("sdr", "oracle")]
    rows = {name: values_of(tables, name, column) for name in names}
    return {name: None if None in ends[0] + ends[1] + row else gap_closed(row, *ends)
            for name, row in rows.items()}


def table_cells(tables: list[dict[str, dict]], names: list[str]) -> list[tuple[str, list[str]]]:
    """For each named row, its title and its shown_columns as text; of several loops mean ± std."""
    closed = {column: gaps_closed(tables, names, of) for column, of in GAPS_CLOSED.items()}

    def text(name: str, column: str) -> str:
        if column in closed:
            value = closed[column][name]
            return "-" if value is None else f"{100 * value:.0f} %"
        return mean_std(values_of(tables, name, column), 0 if column == "train s" else 3)

    columns = shown_columns(tables, names)
    return [(row_title(name), [text(name, column) for column in columns]) for name in names]


def mean_std(values: list[float | None], digits: int = 3) -> str:
    """Mean and, of several values, the sample's standard deviation; "-" if a value is missing."""
    if None in values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def ceilings(tables: list[dict], names: list[str]) -> dict[str, float | None]:
    """The highest R@20 and R@50 that any prediction could reach on the test set, over all loops."""
    found = [table[names[-1]].get("recall_ceiling") or {} for table in tables]
    return {f"R@{k}": None if None in (values := [one.get(k) for one in found])
            else statistics.mean(values) for k in ("20", "50")}


def comparisons(tables: list[dict], names: list[str]) -> dict[str, dict[str, Comparison]]:
    """Column -> row -> its comparison with SDR. Of iterations only the last is compared."""
    last = {name.rstrip("0123456789"): name for name in names}.values()
    rows = [name for name in last if name not in ("start", "sdr", "oracle")]
    found = {}
    for column in COMPARED if "sdr" in names else ():
        values = {name: values_of(tables, name, column) for name in rows}
        baseline = values_of(tables, "sdr", column)
        if not any(None in row for row in [baseline, *values.values()]):
            found[column] = compare(values, baseline)
    return {column: row for column, row in found.items() if row}


def verdict(tables: list[dict], names: list[str], seeds: list[int | None]) -> list[str]:
    """Lines on which rows are better than the SDR row: a paired test over the loops' seeds."""
    compared = comparisons(tables, names)
    if "mAP@0.5" not in compared:
        labeled = None not in values_of(tables, names[-1], "mAP@0.5")
        return ["No row to compare with SDR." if labeled else "No labeled test set, so no scores: "
                "give the loop a target with a labeled test/ or val/ folder."]
    rows = compared["mAP@0.5"]
    if len(tables) == 1:
        lines = ["Difference to SDR. One seed: no verdict."]
    else:
        paired = ", ".join(map(str, seeds))
        lines = [f"Difference to SDR, paired by seed ({paired}): mean, each seed; p of a one-sided paired",
                 f"t test, and corrected for {len(rows)} rows (Holm). Better: corrected p < {ALPHA}."]
    for name in rows:
        texts = [f"{column:<9}{comparison_text(row[name])}" for column, row in compared.items()]
        if len(tables) == 1:
            texts = ["   ".join(texts)]
        lines += [f"{title:<36}{text}" for title, text in zip([row_title(name), "", "", ""], texts)]
    return lines


def comparison_text(row: Comparison) -> str:
    """Mean difference; over several loops those of each, p, corrected p and the verdict."""
    text = f"{statistics.mean(row.differences):+.3f}"
    if len(row.differences) == 1:
        return text
    each = " ".join(f"{value:+.3f}" for value in row.differences)
    test = "no test" if row.p is None else f"p {row.p:.4f}  corrected {row.p_holm:.4f}"
    return f"{text}  ({each})  {test}  {'better' if row.better else 'not significant'}"


def loop_table(tables: list[dict[str, dict]], names: list[str], seeds: list[int | None]) -> str:
    """The table of one or several loops, the recall's ceilings and the verdict below it."""
    width, columns = 15 if len(tables) > 1 else 11, shown_columns(tables, names)
    mix = any(table[name].get("content_gap_mix") for table in tables for name in names)
    above = ""
    for title, members in GROUPS.items():
        if members[-1] in columns:
            title = "content gap of the mix" if mix and "objects" in members else title
            above = above.ljust(36 + width * columns.index(members[0]))
            above += title.rjust(width * len(members))
    lines = [above, f"{'':<36}" + "".join(f"{column:>{width}}" for column in columns)]
    for title, cells in table_cells(tables, names):
        lines.append(f"{title:<36}" + "".join(f"{text:>{width}}" for text in cells))
    limits = ", ".join(f"{name} {value:.3f}" for name, value in ceilings(tables, names).items()
                       if value is not None)
    lines += ["", f"Highest recall that is possible: {limits}"] if limits else []
    return "\n".join([*lines, "", *verdict(tables, names, seeds)])


def loop_numbers(tables: list[dict[str, dict]], names: list[str]) -> dict[str, dict]:
    """The numbers of loop_table for JSON: per row and column one of each loop, and what compares them."""
    compared = comparisons(tables, names)
    return {
        "rows": {name: {column: values_of(tables, name, column) for column in COLUMNS}
                 for name in names},
        "ceilings": ceilings(tables, names),
        "gap_closed": {column: gaps_closed(tables, names, column) for column in compared},
        "compared": {column: {name: asdict(row) | {"better": row.better}
                              for name, row in rows.items()} for column, rows in compared.items()}}


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
    lines.append("")
    for field, title in (("content_gap", "newest data set"), ("content_gap_mix", "all, as mixed")):
        gaps = "  ".join(f"{name.replace('_', ' ')} {number(gap)}"
                         for name, gap in (metrics.get(field) or {}).items())
        lines += [f"content gap (total variation), {title:<15}   {gaps}"] if gaps else []
    for level, scores in metrics.get("levels", {}).items():
        aps = "  ".join(f"{name} {number(ap)}" for name, ap in scores["ap50"].items())
        lines.append(f"mAP@0.5 {number(scores['map50'])} at KITTI's {level:<10}{aps}")
    if metrics.get("probe") is not None:
        lines.append(f"domain probe {metrics['probe']:.3f} (0.5: features tell no domain)")
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
