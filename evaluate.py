"""Stage 3: a network's scene graphs on a labelled target, scored; or the table of a whole loop.

\b
  python evaluate.py --checkpoint runs/clevr/1/model.pt --data data/clevr/target/test --out runs/clevr/1
  python evaluate.py --split hard

Without --checkpoint the latest run under runs/ is taken, without --data the test set beside its target. Writes
OUT/metrics.json (OUT/metrics_SPLIT.json), OUT/predictions.jsonl and OUT/figures/predictions.png. This is the only
program that opens target labels.
"""
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

import click

import envs

PICTURES = 8
# run folder -> row of the loop's table; label and appearance are followed by the iteration's number
ROWS = {"start": "SDR, start of the loop", "sdr": "SDR", "label": "+ label", "appearance": "+ label + appearance",
        "full": "+ label + appearance + prediction"}
ITERATION = re.compile(r"(label|appearance)(\d+)")


@click.command(help=__doc__, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--checkpoint", "checkpoint_path", type=click.Path(path_type=Path), default=None,
              show_default="the latest under runs/", help="Network to evaluate.")
@click.option("--data", type=click.Path(path_type=Path), default=None, show_default="the run's own test set",
              help="Images, with labels for scores.")
@click.option("--out", type=click.Path(path_type=Path), default=None, show_default="the checkpoint's folder",
              help="Folder for metrics, predictions and pictures.")
@click.option("--split", type=click.Choice(["all", "easy", "moderate", "hard"]), default="all",
              help="Objects to count, by KITTI's limits on box height, visible share and truncation.")
@click.option("--van", type=click.Choice(["ignore", "car"]), default=None, show_default="ignore",
              help="KITTI's vans: neither right nor wrong as cars, or cars; KITTI's own AP ignores them.")
@click.option("--summary", type=click.Path(path_type=Path), multiple=True, default=[],
              help="Instead: the table of a finished loop; given several times, mean and spread over loops.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace metrics of another checkpoint or data set.")
def main(checkpoint_path: Path | None, data: Path | None, out: Path | None, split: str, van: str | None,
         summary: tuple[Path, ...], device: str, overwrite: bool) -> None:
    if summary:
        if checkpoint_path or data or out or split != "all" or van or overwrite:
            from sim2sg_lib.graph import InputError
            raise InputError("--summary prints the tables of finished loops and takes no other option")
        return summarise(summary)
    # --- setup: the library is imported here, so that --help answers at once
    from sim2sg_lib import checkpoint
    from sim2sg_lib.dataset import has_labels, open_images, read_labels, write_json
    from sim2sg_lib.graph import write_graphs
    from sim2sg_lib.kitti import kitti_root, unlabelled_categories
    from sim2sg_lib.kitti_eval import folder_scores
    from sim2sg_lib.metrics import KITTI_ROWS, evaluate_graphs

    checkpoint_path = checkpoint_path or latest_run()
    content = checkpoint.read(checkpoint_path)
    env, device = envs.find(content["env"], f"{checkpoint_path}: env"), checkpoint.pick_device(device)
    data = data or own_test_set(checkpoint_path.parent, content["options"], env)
    out = out or checkpoint_path.parent
    record = {"checkpoint": str(checkpoint_path), "data": str(data), "van": van or "ignore",
              "command": "python " + shlex.join(sys.argv)}
    metrics_path = out / ("metrics.json" if split == "all" else f"metrics_{split}.json")
    prepare(out, record, overwrite)

    # --- predict
    images = open_images(data, env)
    truth = read_labels(images, env, van) if has_labels(data) or van else None
    kitti = kitti_root(data)
    missing = unlabelled_categories(kitti, env) if kitti else ()
    model = checkpoint.rebuild(content, checkpoint_path, env, device)
    predicted = checkpoint.predict_folder(model, images, 0.0, 0.0)

    # --- score
    metrics = record | {"split": split, "images": len(images.names)}
    if truth is not None:
        metrics |= evaluate_graphs(truth, labelled_only(predicted, missing, env), env.vocabulary, split)
        metrics["content_gap"] = training_gap(content["options"]["source"], truth, env, missing)
    if truth is not None and kitti and all(camera.height in KITTI_ROWS for camera in images.cameras):
        metrics |= {"kitti": folder_scores(kitti, predicted, env.vocabulary)}

    # --- save and show
    write_graphs(out / "predictions.jsonl", predicted, env.vocabulary)
    write_json(metrics_path, metrics)
    save_pictures(out / "figures" / "predictions.png", images, truth, predicted, env)
    print(f"{checkpoint_path} on {data}, {len(images.names)} images, split {split}")
    if missing and truth:
        labelled = [name for name in env.vocabulary.categories if name not in missing]
        print(f"no labels of {' and '.join(missing)} (label_2_extra/): scores are for {' and '.join(labelled)} only")
    print(metrics_table(metrics) if truth else f"no labels in {data}: predictions written, no scores without labels")


# --- what to evaluate -------------------------------------------------------------------------------------------------

def latest_run() -> Path:
    """The newest checkpoint under runs/. Errors: InputError."""
    from sim2sg_lib.graph import InputError
    found = sorted(Path("runs").rglob("model.pt"), key=lambda p: (p.stat().st_mtime, str(p)))
    if not found:
        raise InputError("no model.pt under runs/: run train.py or make loop first, or give --checkpoint")
    return found[-1]


def own_test_set(run: Path, options: dict, env) -> Path:
    """Where the run was evaluated before, else test or val beside its target or the stand-in, else a labelled target itself."""
    from sim2sg_lib.dataset import has_labels, read_json
    from sim2sg_lib.graph import InputError
    if (run / "metrics.json").exists():
        data = read_json(run / "metrics.json").get("data")
        if not isinstance(data, str):
            raise InputError(f"{run / 'metrics.json'}: data: {data!r}, expected a folder; give --data")
        return Path(data)
    target = Path(options["target"]) if options["target"] else Path("data") / env.name / "target" / "train"
    # a stand-in for KITTI is a KITTI folder in each split of the data set around it
    exported = target.name == "kitti" and os.path.exists(target.parent / "dataset.json")
    parent, inside = (target.parent.parent, "kitti") if exported else (target.parent, ".")
    for name in ("test", "val"):
        if os.path.isdir(parent / name / inside):
            return parent / name / inside
    if os.path.isdir(target) and has_labels(target):
        return target
    raise InputError(f"no test set beside {target}: give --data")


def prepare(out: Path, record: dict, overwrite: bool) -> None:
    """Make `out`. Errors: InputError if it holds the metrics of something else, or cannot be made."""
    from sim2sg_lib.dataset import read_json
    from sim2sg_lib.graph import InputError
    for path in [] if overwrite else sorted(out.glob("metrics*.json")):
        old = read_json(path)
        for name in ("checkpoint", "data", "van"):
            if old.get(name, "ignore") != record[name]:
                raise InputError(f"{path}: holds the metrics of {name} {old.get(name)}; choose another --out or add "
                                 "--overwrite")
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror})") from None


def training_gap(sources: list[str], truth: list, env, missing: tuple[str, ...]) -> dict | None:
    """Total variation between the last --source the network trained on and the target; None if that is gone.

    missing: categories that the target has no labels of, left out of the source, too.
    """
    from sim2sg_lib.graph import read_graphs
    from sim2sg_lib.metrics import content_gap
    newest = Path(sources[-1]) / "graphs.jsonl"
    if not os.path.exists(newest):
        return None
    return content_gap(labelled_only(read_graphs(newest, env.vocabulary), missing, env), truth, env.vocabulary)


def labelled_only(graphs: list, missing: tuple[str, ...], env) -> list:
    """The graphs without the categories that the target has no labels of, which nobody could call right or wrong."""
    import numpy as np
    from sim2sg_lib.graph import select_objects
    labelled = np.array([name not in missing for name in env.vocabulary.categories])
    return [select_objects(graph, labelled[graph.labels]) for graph in graphs] if missing else graphs


# --- what to show -----------------------------------------------------------------------------------------------------

def number(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"


def metrics_table(metrics: dict) -> str:
    """The scores as text."""
    lines = [f"mAP@0.5 {number(metrics['map50'])}   "
             + "  ".join(f"{name} {number(ap)}" for name, ap in metrics["ap50"].items()),
             *kitti_table(metrics.get("kitti", {})), "",
             f"{'triplet recall':<34}" + "".join(f"{'@' + k:>8}" for k in metrics["recall"])]
    for title, key in (("mean over images", "recall"), ("  reachable", "recall_ceiling"),
                       ("with graph constraint", "recall_graph_constraint"),
                       ("  reachable", "recall_ceiling_graph_constraint"), ("pooled", "recall_pooled"),
                       ("pooled, with graph constraint", "recall_graph_constraint_pooled")):
        lines.append(f"{title:<34}" + "".join(f"{number(value):>8}" for value in metrics[key].values()))
    for predicate, scores in metrics["recall_per_predicate"].items():
        lines.append(f"{'  ' + predicate:<34}" + "".join(f"{number(value):>8}" for value in scores.values()))
    if metrics.get("content_gap"):
        lines += ["", "content gap (total variation, 0..1)   " + "  ".join(
            f"{name.replace('_', ' ')} {number(value)}" for name, value in metrics["content_gap"].items())]
    return "\n".join(lines)


def kitti_table(scores: dict) -> list[str]:
    """KITTI's own AP11 and AP40, a line a category."""
    from sim2sg_lib.kitti_eval import MIN_OBJECTS, MIN_OVERLAP
    lines = []
    for category, levels in scores.items():
        cells = [f"{level} {number(s['ap11'])} / {number(s['ap40'])}" + ("" if s["ap11"] is not None else
                 f" ({s['objects']} objects, it takes {MIN_OBJECTS})") for level, s in levels.items()]
        lines.append(f"KITTI's AP11 / AP40 at overlap {MIN_OVERLAP[category]}, {category}:  " + "   ".join(cells))
    return lines


def save_pictures(path: Path, images, truth: list | None, predicted: list, env) -> None:
    """A sheet of the first images: predicted boxes above the environment's threshold, labelled ones below."""
    from sim2sg_lib.dataset import read_image
    from sim2sg_lib.graph import select_objects
    from sim2sg_lib.picture import contact_sheet, draw_boxes
    pixels = [read_image(images.folder / name, c.width, c.height) for name, c in zip(images.names[:PICTURES], images.cameras)]
    rows = [("predicted", [draw_boxes(p, g, env.vocabulary, env.threshold) for p, g in zip(pixels, predicted)])]
    if truth:
        counted = [select_objects(graph, graph.counted) for graph in truth[:PICTURES]]
        rows.append(("labelled", [draw_boxes(p, g, env.vocabulary) for p, g in zip(pixels, counted)]))
    contact_sheet(rows).save(path)


# --- the table of a loop ----------------------------------------------------------------------------------------------

def summarise(loops: tuple[Path, ...]) -> None:
    """Print the table of one or several finished loops, and draw figures/loop.png of each."""
    from sim2sg_lib.graph import InputError
    tables = [read_loop(loop) for loop in loops]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if not names:
        raise InputError("--summary: the loops have no row in common")
    columns = {"mAP@0.5": lambda m: m.get("map50"), "R@20": lambda m: m["recall"]["20"] if "recall" in m else None,
               "R@50": lambda m: m["recall"]["50"] if "recall" in m else None,
               "objects": lambda m: gap(m, "objects_per_image"), "categories": lambda m: gap(m, "categories"),
               "predicates": lambda m: gap(m, "predicates"), "train s": lambda m: m["seconds"]}
    wide = 15 if len(loops) > 1 else 11
    print(f"{'':<36}{'':>{3 * wide}}{'content gap (total variation)':>{3 * wide}}")
    print(f"{'':<36}" + "".join(f"{title:>{wide}}" for title in columns))
    for name in names:
        cells = [spread([pick(table[name]) for table in tables], 0 if title == "train s" else 3)
                 for title, pick in columns.items()]
        print(f"{row_title(name):<36}" + "".join(f"{cell:>{wide}}" for cell in cells))
    print(verdict(tables, names))
    for loop, table in zip(loops, tables):
        draw_loop(loop, table)


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


def read_loop(loop: Path) -> dict[str, dict]:
    """Run folder -> its metrics and training time, in the table's order. Errors: InputError."""
    from sim2sg_lib.graph import InputError
    found = [match for match in map(ITERATION.fullmatch, (p.name for p in loop.glob("*"))) if match]
    found.sort(key=lambda match: (list(ROWS).index(match[1]), int(match[2])))
    table = {}
    for name in ["start", "sdr", *(match[0] for match in found), "full"]:
        if (loop / name / "metrics.json").exists():
            table[name] = read_row(loop / name)
    if not table:
        raise InputError(f"{loop}: no run with metrics.json in it, expected a finished loop")
    return table


def read_row(run: Path) -> dict:
    """A run's metrics, and of its config `seconds` and `source`. Errors: InputError for a field that the table cannot take."""
    from sim2sg_lib.dataset import read_json
    from sim2sg_lib.graph import InputError, is_number

    def scores(value, *names):
        return isinstance(value, dict) and all(name in value and (value[name] is None or is_number(value[name]))
                                               for name in names)

    metrics, config = read_json(run / "metrics.json"), read_json(run / "config.json")
    source, gaps = config.get("source"), metrics.get("content_gap") or None
    for field, fits in (("metrics.json: map50", "map50" not in metrics or scores(metrics, "map50")),
                        ("metrics.json: recall", "recall" not in metrics or scores(metrics["recall"], "20", "50")),
                        ("metrics.json: content_gap",
                         gaps is None or scores(gaps, "objects_per_image", "categories", "predicates")),
                        ("config.json: seconds", is_number(config.get("seconds"))),
                        ("config.json: source", isinstance(source, list) and source and all(isinstance(s, str) for s in source))):
        if not fits:
            raise InputError(f"{run}/{field}: not what train.py and evaluate.py write")
    return metrics | {"seconds": config["seconds"], "source": source}


def verdict(tables: list[dict], names: list[str]) -> str:
    """Whether the last row beats the SDR row, said plainly."""
    first, last = "sdr" if "sdr" in names else names[0], names[-1]
    parts = []
    for title, pick in (("mAP@0.5", lambda m: m.get("map50")), ("R@20", lambda m: m.get("recall", {}).get("20"))):
        before, after = ([pick(table[name]) for table in tables] for name in (first, last))
        if None in before + after:
            return "No labelled test set, so no scores: give the loop a target with a labelled test/ or val/ folder."
        a, b = statistics.mean(before), statistics.mean(after)
        parts.append(f"{title} {a:.3f} -> {b:.3f} ({'better' if b > a else 'NOT better'})")
    return f"\n{row_title(first)} -> {row_title(last)}: " + ", ".join(parts)


def first_images(folder: Path, count: int) -> list[Path]:
    """Paths of a data set's first images; none if it is gone."""
    from sim2sg_lib.graph import safe_join
    return [safe_join(folder, f"images/{path.name}") for path in sorted((folder / "images").glob("*.png"))[:count]]


def draw_loop(loop: Path, table: dict[str, dict]) -> None:
    """figures/loop.png: target images on top, what each iteration synthesised for them below (the paper's Figure 3)."""
    from sim2sg_lib.dataset import read_image, read_info
    from sim2sg_lib.graph import read_json_lines, safe_join
    from sim2sg_lib.picture import contact_sheet, to_tile
    lifted = {}  # data set -> the first row that learnt it
    for name in filter(ITERATION.fullmatch, table):
        lifted.setdefault(Path(table[name]["source"][-1]), row_title(name))
    first = next(iter(lifted), None)
    if first is None or not os.path.exists(first / "dataset.json"):
        return
    info, predicted = read_info(first, None), safe_join(first, "predicted.jsonl")
    target, size = Path(str(info.get("target") or "")), (info["width"], info["height"])
    names = [str(row.get("image")) for _, row in read_json_lines(predicted)[:6]]
    shown = [("target", [safe_join(target, name, f"{predicted}: image") for name in names])]
    shown += [("SDR", first_images(Path(table["sdr"]["source"][0]), len(names)))] if "sdr" in table else []
    shown += [(title.replace(" + ", "\n+ ").replace(", ", ",\n"), first_images(folder, len(names)))
              for folder, title in lifted.items()]
    rows = [(caption, [to_tile(read_image(path, *size)) for path in paths])
            for caption, paths in shown if paths and all(map(os.path.isfile, paths))]
    if not rows:
        return
    (loop / "figures").mkdir(exist_ok=True)
    contact_sheet(rows).save(loop / "figures" / "loop.png")
    print(f"\n{loop}/figures/loop.png shows what each iteration made of the target")


if __name__ == "__main__":
    main()
