"""Stage 3: score a network's scene graphs on a labeled target, or print the table of a loop.

\b
  python evaluate.py --checkpoint runs/clevr/1/model.pt --data data/clevr/target/test
  python evaluate.py --split hard

Without --checkpoint the latest run under runs/ is taken, without --data the run's test set. Writes
OUT/metrics.json and OUT/curves.json (with --split OUT/metrics_SPLIT.json, ...),
OUT/predictions.jsonl and OUT/figures/predictions.png. This is the only program that reads labels of
the target. The commands below have their own options, see `evaluate.py predict --help`.
"""
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import (
    FloatRange, InputError, command_line, log_info, output_options, print_json)
from sim2sg_lib.io.reading import real_path, utf8

PATH = click.Path(path_type=Path)


@click.group(invoke_without_command=True, help=__doc__,
             context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--checkpoint", "checkpoint_path", type=PATH, show_default="the latest under runs/",
              help="Network to evaluate.")
@click.option("--data", type=PATH, show_default="the run's own test set",
              help="Images, with labels for scores.")
@click.option("--out", type=PATH, show_default="the checkpoint's folder", help="Folder for all results.")
@click.option("--split", type=click.Choice(["all", "easy", "moderate", "hard"]), default="all",
              help="KITTI's difficulty: limits on box height, visible fraction and truncation.")
@click.option("--van", type=click.Choice(["ignore", "car"]), show_default="ignore",
              help="KITTI's vans: ignored, or cars. KITTI's own AP always ignores them.")
@click.option("--camera", type=click.Choice(["calib", "paper"]), show_default="calib",
              help="KITTI's cameras: as calibrated, or the paper's 90 degrees of view.")
@click.option("--summary", type=PATH, multiple=True,
              help="Print the table of a finished loop; repeat for mean and std over loops.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace other metrics in OUT.")
@click.option("--resume/--no-resume", default=True, help="Continue an interrupted command.")
@output_options
@click.pass_context
def main(context: click.Context, checkpoint_path: Path | None, data: Path | None, out: Path | None,
         split: str, van: str | None, camera: str | None, summary: tuple[Path, ...], device: str,
         overwrite: bool, resume: bool) -> None:
    given = {name for name in context.params
             if context.get_parameter_source(name).name == "COMMANDLINE"}
    if context.invoked_subcommand:
        if given:
            raise click.UsageError(f"options of {context.invoked_subcommand} go behind it")
        return
    if summary:
        if given - {"summary", "device"}:
            raise InputError("--summary prints tables of finished loops and takes no other option")
        return summarize(summary)

    # --- setup: the library is imported here, so that --help answers at once
    from sim2sg_lib import checkpoint
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, partial_folder
    from sim2sg_lib.io.graphs import write_graphs
    from sim2sg_lib.net.predict import predict_folder
    from sim2sg_lib.score import labeled_set
    from sim2sg_lib.score.probe import probe_of_run
    from sim2sg_lib.score.table import metrics_table
    from sim2sg_lib.viz.sheet import save_predictions

    checkpoint_path = checkpoint_path or latest_run()
    saved = checkpoint.read(checkpoint_path)
    env = envs.find(saved["env"], f"{checkpoint_path}: env")
    device = checkpoint.pick_device(device)
    data = data or labeled_set.find_test_set(checkpoint_path, saved["options"], env)
    out = out or checkpoint_path.parent
    record = {"checkpoint": real_path(checkpoint_path), "data": real_path(data),
              "van": van or "ignore", "camera": camera or "calib",
              "command": utf8("python " + shlex.join(sys.argv))}
    if not overwrite:
        refuse_other_metrics(out, record)
    test_set = labeled_set.open_test_set(data, env, van, camera)
    images = test_set.images
    inputs = [checkpoint_path, *(images.folder / name for name in images.names)]
    options = record | checkpoint.runtime_info(device) | {
        "images": len(images.names), "input": digest(*inputs)}
    suffix = "" if split == "all" else f"_{split}"
    with partial_folder(out / ".evaluate.partial", out, options, overwrite, resume) as partial:
        # --- predict
        model = checkpoint.rebuild(saved, checkpoint_path, env, device)
        predicted = predict_folder(model, images, env, 0.0, 0.0, partial / "predicted.jsonl")

        # --- score
        probe = probe_of_run(model, saved["options"], checkpoint_path, env, data)
        metrics = record | {"split": split, "images": len(images.names), "probe": probe}
        curves = {}
        if test_set.truth is not None:
            sources = labeled_set.read_sources(saved["options"]["source"], checkpoint_path, env)
            if sources[-1] is None:
                log_info("no content gap: the data set that the network was last trained on is gone")
            newest = (saved["options"].get("schedule") or {}).get("newest")
            scores, curves = labeled_set.score(test_set, predicted, newest, sources, env, split)
            metrics |= scores

        # --- save: write everything before anything is replaced
        (partial / "figures").mkdir(exist_ok=True)
        picture = partial / "figures/predictions.png"
        save_predictions(picture, images, test_set.truth, predicted, env)
        write_graphs(partial / "predictions.jsonl", predicted, env.vocabulary)
        write_json(partial / f"curves{suffix}.json", curves)
        write_json(partial / f"metrics{suffix}.json", metrics)
        move(partial, out, "figures/predictions.png", "predictions.jsonl", f"curves{suffix}.json",
             f"metrics{suffix}.json")
        shutil.rmtree(partial)

    # --- show
    log_info(f"{checkpoint_path} on {data}, {len(images.names)} images, split {split}")
    if test_set.truth is None:
        log_info(f"no labels in {data}: predictions written, no scores without labels")
    else:
        for line in labeled_set.notes(test_set, env):
            log_info(line)
        log_info(metrics_table(metrics))
    print_json(metrics)


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--checkpoint", "checkpoint_path", type=PATH, show_default="the latest under runs/",
              help="Network to use.")
@click.option("--out", type=PATH, show_default="predicted/ beside the checkpoint",
              help="Folder to write.")
@click.option("--threshold", type=FloatRange(0, 1), show_default="the environment's",
              help="Least confidence of objects and relations. For the objects of an adaptive "
                   "environment (dining) a fraction of the network's best scores.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier predict.")
@click.option("--resume/--no-resume", default=True, help="Continue an interrupted command.")
@output_options
def predict(images: tuple[Path, ...], checkpoint_path: Path | None, out: Path | None,
            threshold: float | None, device: str, overwrite: bool, resume: bool) -> None:
    """Scene graphs of any images, files or folders.

    \b
      python evaluate.py predict photo.jpg --checkpoint runs/clevr/full/model.pt --out predicted
      python evaluate.py predict photos/ --threshold 0.3

    Reads PNG and JPEG. Writes OUT/NAME.png, the boxes on the image and the graph beside it;
    OUT/NAME.dot, the graph for Graphviz; OUT/graphs.jsonl, all graphs with boxes in pixels of their
    image; OUT/predict.json, the image file of each NAME. Needs no camera and takes images of any
    size, but the network sees every image resized to its own input size.
    """
    from sim2sg_lib import checkpoint
    from sim2sg_lib.dataset import find_images
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, finished, note_finished, refuse_early, work_folder
    from sim2sg_lib.io.graphs import write_graphs
    from sim2sg_lib.io.images import output_names
    from sim2sg_lib.net.predict import confident_graphs, predict_folder
    from sim2sg_lib.viz.drawings import require_matplotlib, save_graphs

    require_matplotlib()
    checkpoint_path = checkpoint_path or latest_run()
    saved = checkpoint.read(checkpoint_path)
    env = envs.find(saved["env"], f"{checkpoint_path}: env")
    device = checkpoint.pick_device(device)
    threshold = env.threshold if threshold is None else threshold
    out = out or checkpoint_path.parent / "predicted"
    refuse_early(out, overwrite, [*images, checkpoint_path])
    found = find_images(images, env)
    names = output_names(found.names)
    model = checkpoint.rebuild(saved, checkpoint_path, env, device)

    record = {"checkpoint": real_path(checkpoint_path), "env": env.name, "threshold": threshold,
              "command": utf8("python " + shlex.join(sys.argv)),
              "images": dict(zip(names, map(real_path, found.names)))}
    options = record | checkpoint.runtime_info(device) | {
        "input": digest(checkpoint_path, *found.names)}
    with work_folder(out, options, overwrite, resume) as partial:
        counts = finished(partial)
        if counts is None:
            graphs = predict_folder(model, found, env, 0.0, 0.0, partial / "predicted.jsonl")
            graphs, thresholds = confident_graphs(graphs, env, threshold)
            graphs = [replace(graph, image=name) for name, graph in zip(names, graphs)]
            save_graphs(partial, graphs, found.names, env.vocabulary)
            write_graphs(partial / "graphs.jsonl", graphs, env.vocabulary)
            write_json(partial / "predict.json", record | {
                "thresholds": dict(zip(env.vocabulary.categories, thresholds))})
            counts = {"objects": sum(map(len, graphs)),
                      "relations": sum(len(graph.relations) for graph in graphs)}
            note_finished(partial, counts)
        (partial / "predicted.jsonl").unlink(missing_ok=True)
    log_info(f"{len(names)} images, {counts['objects']} objects and {counts['relations']} "
             f"relations at threshold {threshold} -> {out}")
    print_json({"out": utf8(out), "threshold": threshold, "images": len(names), **counts})


@main.command()
@click.argument("loop", type=PATH)
@output_options
def report(loop: Path) -> None:
    """The page of a loop: LOOP/report.html.

    \b
      python evaluate.py report runs/clevr

    One file that opens without a network: the loop's table, training curves, precision over recall,
    recall@K, content, target images with the scenes lifted from them, and scene graphs with true
    positives, false positives and false negatives. Scores are read from metrics.json and
    curves.json, graphs from predictions.jsonl.
    """
    from sim2sg_lib.io.graphs import read_graphs
    from sim2sg_lib.score.table import read_loop, shown_row
    from sim2sg_lib.score.labeled_set import open_test_set, without_categories
    from sim2sg_lib.viz.report import write_report

    table = read_loop(loop)
    name = shown_row(table)
    row = table[name]
    env = envs.find(row["env"], f"{loop / name / 'config.json'}: env")
    predicted = read_graphs(loop / name / "predictions.jsonl", env.vocabulary)
    images = truth = None
    if row.get("data") and os.path.isdir(row["data"]):
        van, camera = row.get("van"), row.get("camera")
        test_set = open_test_set(Path(row["data"]), env, van if van == "car" else None,
                                 camera if camera == "paper" else None)
        images, truth = test_set.images, test_set.truth
        if images.names != [graph.image for graph in predicted]:
            raise InputError(f"{images.folder}: its images are not those of "
                             f"{loop / name}/predictions.jsonl, run evaluate.py on it again")
        predicted = without_categories(predicted, test_set.unlabeled, env)
    page = write_report(loop, table, env, images, truth, predicted)
    log_info(f"{page} written")
    print_json({"report": utf8(page), "rows": list(table)})


@main.command()
@click.argument("folders", nargs=-1, type=PATH)
@output_options
def tensorboard(folders: tuple[Path, ...]) -> None:
    """Event files for TensorBoard.

    \b
      python evaluate.py tensorboard runs/clevr
      tensorboard --logdir runs

    Written beside every log.jsonl under FOLDERS (by default runs/), replacing older event files.
    """
    from sim2sg_lib.viz.report import write_events
    runs = []
    for folder in folders or (Path("runs"),):
        # folders with a dot belong to runs that still train
        found = [path.parent for path in sorted(folder.rglob("log.jsonl"))
                 if not path.parent.name.startswith(".")]
        if not found:
            raise InputError(f"{folder}: no log.jsonl in it, expected runs of train.py")
        for run in found:
            write_events(run)
            log_info(f"{run}: event files written")
        runs += found
    print_json({"runs": list(map(utf8, runs))})


def summarize(loops: tuple[Path, ...]) -> None:
    """Print the table of one or several finished loops, and draw figures/loop.png of each."""
    from sim2sg_lib.score import table
    from sim2sg_lib.viz.sheet import draw_sheet
    tables = [table.read_loop(loop) for loop in loops]
    env_names = sorted({row["env"] for rows in tables for row in rows.values()})
    if len(env_names) > 1:
        names = " and ".join(env_names)
        raise InputError(f"--summary: loops of {names}, expected loops of one environment")
    seeds = table.read_seeds(loops, tables)
    names = [name for name in tables[0] if all(name in rows for rows in tables)]
    if not names:
        raise InputError("--summary: the loops have no row in common")
    log_info(table.loop_table(tables, names, seeds))
    sheets = [sheet for sheet in map(draw_sheet, loops, tables) if sheet]
    for sheet in sheets:
        log_info(f"\n{sheet} shows target images and the scenes lifted from them")
    print_json({"loops": list(map(utf8, loops)), "seeds": seeds, "sheets": list(map(utf8, sheets)),
                **table.loop_numbers(tables, names)})


def latest_run() -> Path:
    """The newest checkpoint of a finished run under runs/. Raises: InputError."""
    found = [path for path in Path("runs").rglob("model.pt")
             if not any(part.startswith(".") for part in path.parts)]
    if not found:
        raise InputError("no model.pt under runs/: run train.py or make loop, or give --checkpoint")
    return max(found, key=lambda path: (path.stat().st_mtime, str(path)))


def refuse_other_metrics(out: Path, record: dict) -> None:
    """Raises: InputError if `out` holds the metrics of another checkpoint, data set or setting."""
    from sim2sg_lib.io.reading import read_json, resolve_recorded
    for path in sorted(out.glob("metrics*.json")):
        old = {"van": "ignore", "camera": "calib"} | read_json(path)
        for name in ("checkpoint", "data", "van", "camera"):
            value = old.get(name)
            if name in ("checkpoint", "data") and isinstance(value, str):
                value = real_path(resolve_recorded(value, path))
            if value != record[name]:
                raise InputError(f"{path}: holds the metrics of {name} {old.get(name)}; choose "
                                 "another --out or add --overwrite")


def move(partial: Path, out: Path, *names: str) -> None:
    """Move finished files from `partial` to `out`, in this order, and delete temporary files."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, out / name)
        Path(f"{out / name}.tmp").unlink(missing_ok=True)


if __name__ == "__main__":
    command_line(main)
