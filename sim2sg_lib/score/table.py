"""The table of a loop: one row per run."""
import re
import statistics
from pathlib import Path

from sim2sg_lib.cli import InputError
from sim2sg_lib.io.reading import is_number, read_json

# run folder -> row of the loop's table; label and appearance are followed by the iteration's number
ROWS = {"start": "SDR, start of the loop", "sdr": "SDR", "label": "+ label", "appearance": "+ label + appearance",
        "full": "+ label + appearance + prediction"}
ITERATION = re.compile(r"(label|appearance)(\d+)")
COLUMNS = {  # of the table -> where in a row of read_loop
    "mAP@0.5": lambda row: row.get("map50"), "R@20": lambda row: row["recall"]["20"] if "recall" in row else None,
    "R@50": lambda row: row["recall"]["50"] if "recall" in row else None,
    "objects": lambda row: gap(row, "objects_per_image"), "categories": lambda row: gap(row, "categories"),
    "predicates": lambda row: gap(row, "predicates"), "train s": lambda row: row["seconds"]}
CONTENT = ("objects_per_image", "categories", "predicates")  # the histograms of metrics.content


def read_loop(loop: Path) -> dict[str, dict]:
    """Run folder -> its metrics and training time, in the table's order. Errors: InputError."""
    if not loop.is_dir():
        raise InputError(f"{loop}: no such folder, expected that of a loop")
    found = [match for match in map(ITERATION.fullmatch, (p.name for p in loop.glob("*"))) if match]
    found.sort(key=lambda match: (list(ROWS).index(match[1]), int(match[2])))
    table = {}
    for name in ["start", "sdr", *(match[0] for match in found), "full"]:
        if (loop / name / "metrics.json").exists():
            table[name] = read_row(loop / name)
    if not table:
        raise InputError(f"{loop}: no start/, sdr/, label1/, ... with metrics.json in it, as `make loop` writes them")
    return table


def read_row(run: Path) -> dict:
    """A run's metrics, and of its config `seconds` and `source`. Errors: InputError for a field that the table cannot take."""
    def scores(value, *names):
        return isinstance(value, dict) and all(name in value and (value[name] is None or is_number(value[name]))
                                               for name in names)

    metrics, config = read_json(run / "metrics.json"), read_json(run / "config.json")
    source, gaps, ap50 = config.get("source"), metrics.get("content_gap") or None, metrics.get("ap50", {})
    for field, fits in (("metrics.json: map50", "map50" not in metrics or scores(metrics, "map50")),
                        ("metrics.json: ap50", isinstance(ap50, dict) and scores(ap50, *ap50)),
                        ("metrics.json: van", metrics.get("van") in (None, "ignore", "car")),
                        ("metrics.json: recall", "recall" not in metrics or scores(metrics["recall"], "20", "50")),
                        ("metrics.json: content_gap",
                         gaps is None or scores(gaps, *CONTENT)),
                        ("config.json: seconds", is_number(config.get("seconds"))),
                        ("config.json: env", isinstance(config.get("env"), str)),
                        ("config.json: source", isinstance(source, list) and source and all(isinstance(s, str) for s in source))):
        if not fits:
            raise InputError(f"{run}/{field}: not what train.py and evaluate.py write")
    return metrics | {"seconds": config["seconds"], "source": source, "env": config["env"]}


def table_cells(tables: list[dict[str, dict]], names: list[str]) -> list[tuple[str, list[str]]]:
    """Per named row its title and its COLUMNS as text: of several tables mean and spread."""
    return [(row_title(name), [spread([pick(table[name]) for table in tables], 0 if title == "train s" else 3)
                               for title, pick in COLUMNS.items()]) for name in names]


def gap(metrics: dict, name: str) -> float | None:
    return metrics["content_gap"][name] if metrics.get("content_gap") else None


def spread(values: list[float | None], digits: int) -> str:
    """Mean and, of several, the sample's standard deviation."""
    if any(value is None for value in values):
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def row_title(name: str) -> str:
    iteration = ITERATION.fullmatch(name)
    return f"{ROWS[iteration[1]]}, iteration {iteration[2]}" if iteration else ROWS[name]


def verdict(tables: list[dict], names: list[str]) -> str:
    """Whether the last row beats the SDR row, said plainly."""
    first, last = "sdr" if "sdr" in names else names[0], names[-1]
    parts = []
    for title in ("mAP@0.5", "R@20", "R@50"):
        before, after = ([COLUMNS[title](table[name]) for table in tables] for name in (first, last))
        if None in before + after:
            return "No labeled test set, so no scores: give the loop a target with a labeled test/ or val/ folder."
        a, b = statistics.mean(before), statistics.mean(after)
        parts.append(f"{title} {a:.3f} -> {b:.3f} ({'better' if b > a else 'NOT better'})")
    return f"{row_title(first)} -> {row_title(last)}: " + ", ".join(parts)
