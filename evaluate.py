"""Stage 3: a network's scene graphs on a labeled target, scored; or the table of a whole loop.

\b
  python evaluate.py --checkpoint runs/clevr/1/model.pt --data data/clevr/target/test --out runs/clevr/1
  python evaluate.py --split hard

Without --checkpoint the latest run under runs/ is taken, without --data the test set beside its target. Writes
OUT/metrics.json and OUT/curves.json (with --split OUT/metrics_SPLIT.json, ...), OUT/predictions.jsonl and
OUT/figures/predictions.png. This is the only program that opens target labels. The commands below take their own
options: `evaluate.py predict --help`.
"""
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import FloatRange, InputError, command_line, print_json, output_options, log_info

PICTURES = 8
OVERLAY_PX = (640, 1600)  # the longer side of an image that predict draws on: its own, within these


@click.group(invoke_without_command=True, help=__doc__,
             context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
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
@click.option("--camera", type=click.Choice(["calib", "paper"]), default=None, show_default="calib",
              help="KITTI's cameras: their calibration, or the paper's assumption of 90 degrees.")
@click.option("--summary", type=click.Path(path_type=Path), multiple=True, default=[],
              help="Instead: the table of a finished loop; given several times, mean and spread over loops.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace metrics of another checkpoint or data set.")
@click.option("--resume/--no-resume", default=True, help="Go on where the same command was interrupted, or start anew.")
@output_options
@click.pass_context
def main(context: click.Context, checkpoint_path: Path | None, data: Path | None, out: Path | None, split: str,
         van: str | None, camera: str | None, summary: tuple[Path, ...], device: str, overwrite: bool, resume: bool) -> None:
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    if context.invoked_subcommand:
        if given:
            raise click.UsageError(f"options of {context.invoked_subcommand} go behind it")
    elif summary:
        if set(given) - {"summary", "device"}:
            raise InputError("--summary prints the tables of finished loops and takes no other option")
        summarize(summary)
    else:
        evaluate(checkpoint_path, data, out, split, van, camera, device, overwrite, resume)


def evaluate(checkpoint_path: Path | None, data: Path | None, out: Path | None, split: str, van: str | None, camera: str | None,
             device: str, overwrite: bool, resume: bool) -> None:
    """One checkpoint on one folder, see the options of main."""
    # --- setup: the library is imported here, so that --help answers at once
    from sim2sg_lib import checkpoint
    from sim2sg_lib.net.predict import predict_folder
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, partial_folder
    from sim2sg_lib.io.graphs import write_graphs
    from sim2sg_lib.io.kitti import written_by_export

    checkpoint_path = checkpoint_path or latest_run()
    saved = checkpoint.read(checkpoint_path)
    env, device = envs.find(saved["env"], f"{checkpoint_path}: env"), checkpoint.pick_device(device)
    data = data or own_test_set(checkpoint_path.parent, saved["options"], env)
    out = out or checkpoint_path.parent
    record = {"checkpoint": str(checkpoint_path), "data": str(data), "van": van or "ignore",
              "camera": camera or "calib", "command": "python " + shlex.join(sys.argv)}
    suffix = "" if split == "all" else f"_{split}"
    if not overwrite:
        refuse_other_metrics(out, record)

    # --- predict
    images, truth, missing = open_test_set(data, env, van, camera)
    options = record | checkpoint.runtime_info(device) | {
        "images": len(images.names), "input": digest(checkpoint_path, *(images.folder / name for name in images.names))}
    with partial_folder(out / ".evaluate.partial", out, options, overwrite, resume) as partial:
        model = checkpoint.rebuild(saved, checkpoint_path, env, device)
        predicted = predict_folder(model, images, env, 0.0, 0.0, partial / "predicted.jsonl")

        # --- score
        metrics, curves = record | {"split": split, "images": len(images.names)}, {}
        if truth is not None:
            scores, curves = score(images, truth, missing, predicted, saved["options"]["source"], env, split)
            metrics |= scores

        # --- save all of it before any of it takes its place, then show
        write_graphs(partial / "predictions.jsonl", predicted, env.vocabulary)
        write_json(partial / f"curves{suffix}.json", curves)
        write_json(partial / f"metrics{suffix}.json", metrics)
        (partial / "figures").mkdir(exist_ok=True)
        save_pictures(partial / "figures/predictions.png", images, truth, predicted, env)
        move(partial, out, "predictions.jsonl", "figures/predictions.png", f"curves{suffix}.json", f"metrics{suffix}.json")
        shutil.rmtree(partial)
    log_info(f"{checkpoint_path} on {data}, {len(images.names)} images, split {split}")
    if missing and truth:
        labeled = [name for name in env.vocabulary.categories if name not in missing]
        log_info(f"no labels of {' and '.join(missing)} (label_2_extra/): scores are for {' and '.join(labeled)} only")
    if metrics.get("kitti") and written_by_export(data):
        log_info(f"{data} is one of our data sets in KITTI's format: its AP11 and AP40 are no scores on KITTI")
    log_info(metrics_table(metrics) if truth else f"no labels in {data}: predictions written, no scores without labels")
    print_json(metrics)


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint", "checkpoint_path", type=click.Path(path_type=Path), default=None,
              show_default="the latest under runs/", help="Network to use.")
@click.option("--out", type=click.Path(path_type=Path), default=None, show_default="predicted/ beside the checkpoint",
              help="Folder to write.")
@click.option("--threshold", type=FloatRange(0, 1), default=None, show_default="the environment's",
              help="Confidence below which objects and relations are dropped, of every category; the report and lifting take an "
                   "adaptive environment's (dining) as a share of what the network is sure of.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier predict wrote.")
@click.option("--resume/--no-resume", default=True, help="Go on where the same command was interrupted, or start anew.")
@output_options
def predict(images: tuple[Path, ...], checkpoint_path: Path | None, out: Path | None, threshold: float | None, device: str,
            overwrite: bool, resume: bool) -> None:
    """Scene graphs of any images, files or folders.

    \b
      python evaluate.py predict photo.jpg --checkpoint runs/clevr/full/model.pt --out predicted
      python evaluate.py predict photos/ --threshold 0.3

    Reads PNG and JPEG. Writes OUT/NAME.png, boxes on the image and the graph beside it; OUT/NAME.dot, the graph for
    Graphviz; OUT/graphs.jsonl, all graphs, boxes in each image's own pixels; OUT/predict.json, which file is which
    NAME. No camera is needed and any size will do, but the network sees every image stretched to its own input.
    """
    from sim2sg_lib import checkpoint
    from sim2sg_lib.net.predict import predict_folder
    from sim2sg_lib.dataset import find_images
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, finished, note_finished, refuse_early, work_folder
    from sim2sg_lib.io.graphs import write_graphs
    from sim2sg_lib.viz.drawings import require_matplotlib

    require_matplotlib()
    checkpoint_path = checkpoint_path or latest_run()
    saved = checkpoint.read(checkpoint_path)
    env, device = envs.find(saved["env"], f"{checkpoint_path}: env"), checkpoint.pick_device(device)
    threshold = env.threshold if threshold is None else threshold
    out = out or checkpoint_path.parent / "predicted"
    refuse_early(out, overwrite, [*images, checkpoint_path])
    found = find_images(images, env)
    names = different_names(found.names)
    model = checkpoint.rebuild(saved, checkpoint_path, env, device)

    record = {"checkpoint": str(checkpoint_path), "env": env.name, "threshold": threshold,
              "command": valid("python " + shlex.join(sys.argv)), "images": dict(zip(names, map(valid, found.names)))}
    options = record | checkpoint.runtime_info(device) | {"input": digest(checkpoint_path, *found.names)}
    with work_folder(out, options, overwrite, resume) as partial:
        counts = finished(partial)
        if counts is None:
            graphs = predict_folder(model, found, env, threshold, threshold, partial / "predicted.jsonl")
            graphs = [replace(graph, image=name) for name, graph in zip(names, graphs)]
            draw_graphs(partial, graphs, found.names, env)
            write_graphs(partial / "graphs.jsonl", graphs, env.vocabulary)
            write_json(partial / "predict.json", record)
            counts = {"objects": sum(map(len, graphs)), "relations": sum(len(graph.relations) for graph in graphs)}
            note_finished(partial, counts)
        (partial / "predicted.jsonl").unlink(missing_ok=True)
    log_info(f"{len(names)} images, {counts['objects']} objects and {counts['relations']} relations from {threshold} on -> {out}")
    print_json({"out": valid(str(out)), "threshold": threshold, "images": len(names), **counts})


def draw_graphs(folder: Path, graphs: list, paths: list[str], env) -> None:
    """NAME.png and NAME.dot of each graph, whose image lies at `path`; those that are there are from before an interruption."""
    from sim2sg_lib.io.images import read_image
    from sim2sg_lib.io.files import write_text
    from sim2sg_lib.viz.drawings import save_overlay, to_dot
    for path, graph in zip(paths, graphs):
        stem, longer = Path(graph.image).stem, max(graph.width, graph.height)
        if (folder / f"{stem}.dot").exists():
            continue
        scale = min(max(longer, OVERLAY_PX[0]), OVERLAY_PX[1]) / longer
        pixels = read_image(Path(path), max(1, round(graph.width * scale)), max(1, round(graph.height * scale)))
        save_overlay(folder / f"{stem}.png", pixels, graph, env.vocabulary)
        write_text(folder / f"{stem}.dot", to_dot(graph, env.vocabulary))


@main.command()
@click.argument("loop", type=click.Path(path_type=Path))
@output_options
def report(loop: Path) -> None:
    """The page of a loop: LOOP/report.html.

    \b
      python evaluate.py report runs/clevr

    One file that opens without a network: the loop's table, training curves, precision over recall, recall@K,
    content, what each iteration made of the target, and scene graphs with what is right, wrong and missed. Scores are
    those of metrics.json and curves.json, graphs those of predictions.jsonl.
    """
    from sim2sg_lib.io.graphs import read_graphs
    from sim2sg_lib.io.kitti import kitti_root
    from sim2sg_lib.score.table import read_loop
    from sim2sg_lib.viz.report import write_report
    table = read_loop(loop)
    last = list(table)[-1]
    env = envs.find(table[last]["env"], f"{loop / last / 'config.json'}: env")
    predicted = read_graphs(loop / last / "predictions.jsonl", env.vocabulary)
    data, images, truth = Path(str(table[last].get("data"))), None, None
    if data.is_dir():
        of_kitti = [table[last].get(name) if kitti_root(data) else None for name in ("van", "camera")]
        images, truth, missing = open_test_set(data, env, *of_kitti)
        if images.names != [graph.image for graph in predicted]:
            raise InputError(f"{data}: its images are not those of {loop / last}/predictions.jsonl, run evaluate.py on it again")
        predicted = labeled_only(predicted, missing, env)
    page = write_report(loop, table, env, images, truth, predicted)
    log_info(f"{page} shows all of it")
    print_json({"report": valid(str(page)), "rows": list(table)})


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@output_options
def tensorboard(folders: tuple[Path, ...]) -> None:
    """Event files for TensorBoard.

    \b
      python evaluate.py tensorboard runs/clevr
      tensorboard --logdir runs

    Written beside every log.jsonl under FOLDERS, or under runs/, in the place of those that are there.
    """
    from sim2sg_lib.viz.report import write_events
    runs = []
    for folder in folders or (Path("runs"),):
        # a run that still trains lies in a folder with a dot
        found = [path.parent for path in sorted(folder.rglob("log.jsonl")) if not path.parent.name.startswith(".")]
        if not found:
            raise InputError(f"{folder}: no log.jsonl in it, expected runs of train.py")
        for run in found:
            write_events(run)
            log_info(f"{run}: event files written")
        runs += [valid(str(run)) for run in found]
    print_json({"runs": runs})


# --- what to evaluate -------------------------------------------------------------------------------------------------

def latest_run() -> Path:
    """The newest checkpoint of a finished run under runs/. Errors: InputError."""
    whole = [path for path in Path("runs").rglob("model.pt") if not any(part.startswith(".") for part in path.parts)]
    found = sorted(whole, key=lambda p: (p.stat().st_mtime, str(p)))
    if not found:
        raise InputError("no model.pt under runs/: run train.py or make loop first, or give --checkpoint")
    return found[-1]


def own_test_set(run: Path, options: dict, env) -> Path:
    """Where the run was evaluated before, else test or val beside its target or the stand-in, else a labeled target itself."""
    from sim2sg_lib.dataset import has_labels
    from sim2sg_lib.io.reading import read_json
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


def refuse_other_metrics(out: Path, record: dict) -> None:
    """Errors: InputError if `out` holds the metrics of something else."""
    from sim2sg_lib.io.reading import read_json
    for path in sorted(out.glob("metrics*.json")):
        old = read_json(path)
        for name, default in (("checkpoint", None), ("data", None), ("van", "ignore"), ("camera", "calib")):
            if old.get(name, default) != record[name]:
                raise InputError(f"{path}: holds the metrics of {name} {old.get(name)}; choose another --out or add "
                                 "--overwrite")


def move(partial: Path, out: Path, *names: str) -> None:
    """Put finished files where they belong, the last name last; what an end left half written beside them goes."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, out / name)
        Path(f"{out / name}.tmp").unlink(missing_ok=True)


def open_test_set(data: Path, env, van: str | None, camera: str | None) -> tuple:
    """Images, labels (None if it has none), and the categories that nobody labeled. Errors: InputError."""
    from sim2sg_lib.dataset import has_labels, open_images, read_labels
    from sim2sg_lib.io.kitti import kitti_root, unlabeled_categories
    images = open_images(data, env, camera)
    truth = read_labels(images, env, van) if has_labels(data) or van else None
    return images, truth, unlabeled_categories(kitti_root(data), env) if kitti_root(data) else ()


def score(images, truth: list, missing: tuple[str, ...], predicted: list, sources: list[str], env, split: str
          ) -> tuple[dict, dict]:
    """What metrics.json and curves.json say. sources: the data sets that the network learned from, the newest last."""
    from sim2sg_lib.io.kitti import kitti_root
    from sim2sg_lib.score.kitti_ap import folder_scores
    from sim2sg_lib.score.metrics import CURVES, KITTI_ROWS, content, content_gap, evaluate_graphs
    scores = evaluate_graphs(truth, labeled_only(predicted, missing, env), env.vocabulary, split)
    curves = {name: scores.pop(name) for name in CURVES}
    newest = newest_source(sources, env, missing)
    scores["content_gap"] = None if newest is None else content_gap(newest, truth, env.vocabulary)
    curves["content"] = {"source": None if newest is None else content(newest, env.vocabulary),
                         "target": content(truth, env.vocabulary)}
    root = kitti_root(images.folder)
    if root and all(camera.height in KITTI_ROWS for camera in images.cameras):
        scores["kitti"] = folder_scores(root, predicted, env.vocabulary)
    return scores, curves


def newest_source(sources: list[str], env, missing: tuple[str, ...]) -> list | None:
    """The graphs of the last --source the network trained on, without the `missing` categories; None if that is gone."""
    from sim2sg_lib.io.graphs import read_graphs
    newest = Path(sources[-1]) / "graphs.jsonl"
    return labeled_only(read_graphs(newest, env.vocabulary), missing, env) if os.path.exists(newest) else None


def labeled_only(graphs: list, missing: tuple[str, ...], env) -> list:
    """The graphs without the categories that the target has no labels of, which nobody could call right or wrong."""
    import numpy as np
    from sim2sg_lib.graph import select_objects
    labeled = np.array([name not in missing for name in env.vocabulary.categories])
    return [select_objects(graph, labeled[graph.labels]) for graph in graphs] if missing else graphs


def different_names(paths: list[str]) -> list[str]:
    """The files' names, of those with one stem the second as a_2.png and so on; upper and lower case count as one.

    What a graph's file cannot name, a backslash or what is no UTF-8, becomes an underscore.
    """
    from sim2sg_lib.io.reading import NOT_IN_NAMES
    names, taken = [], set()
    for path in (Path(re.sub(NOT_IN_NAMES, "_", Path(path).name)) for path in paths):
        stem, number = path.stem, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem.casefold())
        names.append(stem + path.suffix)
    return names


def valid(text: str) -> str:
    """A name of a file as JSON may hold it: what is no UTF-8 becomes a question mark."""
    return text.encode(errors="replace").decode()


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
    """AP11 and AP40 by KITTI's own rules, a line a category."""
    from sim2sg_lib.score.kitti_ap import MIN_OBJECTS, MIN_OVERLAP
    lines = []
    for category, levels in scores.items():
        cells = [f"{level} {number(s['ap11'])} / {number(s['ap40'])}" + ("" if s["ap11"] is not None else
                 f" ({s['objects']} objects, it takes {MIN_OBJECTS})") for level, s in levels.items()]
        lines.append(f"AP11 / AP40 by KITTI's rules at overlap {MIN_OVERLAP[category]}, {category}:  " + "   ".join(cells))
    return lines


def save_pictures(path: Path, images, truth: list | None, predicted: list, env) -> None:
    """A sheet of the first images: predicted boxes above the environment's threshold, labeled ones below."""
    from sim2sg_lib.io.images import read_image
    from sim2sg_lib.graph import select_objects
    from sim2sg_lib.viz.drawings import contact_sheet, draw_boxes, save_png
    pixels = [read_image(images.folder / name, c.width, c.height) for name, c in zip(images.names[:PICTURES], images.cameras)]
    rows = [("predicted", [draw_boxes(p, g, env.vocabulary, env.threshold) for p, g in zip(pixels, predicted)])]
    if truth:
        counted = [select_objects(graph, graph.is_ground_truth) for graph in truth[:PICTURES]]
        rows.append(("labeled", [draw_boxes(p, g, env.vocabulary) for p, g in zip(pixels, counted)]))
    save_png(path, contact_sheet(rows))


# --- a whole loop -----------------------------------------------------------------------------------------------------

def summarize(loops: tuple[Path, ...]) -> None:
    """Print the table of one or several finished loops, and draw figures/loop.png of each."""
    from sim2sg_lib.score.table import COLUMNS, read_loop, table_cells, verdict
    from sim2sg_lib.viz.report import draw_sheet
    tables = [read_loop(loop) for loop in loops]
    env_names = sorted({row["env"] for table in tables for row in table.values()})
    if len(env_names) > 1:
        raise InputError(f"--summary: loops of {' and '.join(env_names)}, expected those of one environment")
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if not names:
        raise InputError("--summary: the loops have no row in common")
    wide = 15 if len(loops) > 1 else 11
    log_info(f"{'':<36}{'':>{3 * wide}}{'content gap (total variation)':>{3 * wide}}")
    log_info(f"{'':<36}" + "".join(f"{title:>{wide}}" for title in COLUMNS))
    for title, cells in table_cells(tables, names):
        log_info(f"{title:<36}" + "".join(f"{cell:>{wide}}" for cell in cells))
    log_info(f"\n{verdict(tables, names)}")
    sheets = [sheet for sheet in map(draw_sheet, loops, tables) if sheet]
    for sheet in sheets:
        log_info(f"\n{sheet} shows what each iteration made of the target")
    print_json({"loops": [valid(str(loop)) for loop in loops], "sheets": [valid(str(sheet)) for sheet in sheets], "rows": {
        name: {title: [pick(table[name]) for table in tables] for title, pick in COLUMNS.items()} for name in names}})


if __name__ == "__main__":
    command_line(main)
