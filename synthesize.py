"""Stage 1: scenes, drawn at random or lifted from scene graphs, become images and exact labels.

\b
  python synthesize.py --env clevr --out data/clevr/sdr
  python synthesize.py --checkpoint runs/clevr/0/model.pt --target data/clevr/target/train \\
      --out data/clevr/1

Without --checkpoint or --graphs the scenes are random: the source domain gives the SDR data set
(structured domain randomization), any other a stand-in for real images, split into OUT/train,
OUT/val and OUT/test unless --unsplit makes it a source. With one of them, each graph is lifted to
3-D: label alignment. Lifted scenes have a random look of the source domain or, with --look fitted,
that of the target's own image.
"""
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import (FloatRange, InputError, command_line, log_info, output_options,
                            print_json, progress)

PREVIEWED = 12
POSE_STEPS, LOOK_STEPS = 30, 40  # of --fit pose and --refine without a number; of a fitted look
# in an unfinished data set: the graphs predicted, those compared and the looks fitted so far
PREDICTED, COMPARED, FITTED = "read.jsonl", "comparing.jsonl", "fitting.jsonl"
PATH = click.Path(path_type=Path)


@click.command(help=__doc__,
               context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--env", "env_name", default="clevr", help="Environment.")
@click.option("--out", type=PATH, default="data/clevr/sdr", help="Data set folder to write.")
@click.option("--num", type=click.IntRange(1, 10**6), show_default="the preset's, or one per graph",
              help="Images; with more images than graphs, each graph gets several looks.")
@click.option("--preset", type=click.Choice(["quick", "paper"]), default="quick",
              help="Image size and --num: `python -m envs` lists them.")
@click.option("--randomize", type=click.Choice(["paper", "strong"]), default="paper",
              help="Source look: the paper's, or varying everything that a scene graph does not hold.")
@click.option("--domain", default="source", help="Of random scenes: source, target, ...")
@click.option("--unsplit", is_flag=True,
              help="Another domain than source is a source, too: OUT has no train, val and test.")
@click.option("--checkpoint", type=PATH, help="Network that predicts the graphs.")
@click.option("--target", type=PATH, help="Images it predicts them from.")
@click.option("--camera", type=click.Choice(["calib", "paper"]), show_default="calib",
              help="Of a KITTI --target, or of random scenes on drive: KITTI's calibration, or 90 "
                   "degrees as the paper assumes.")
@click.option("--graphs", "graphs_path", type=PATH, help="Lift the graphs of this JSON Lines file.")
@click.option("--threshold", type=FloatRange(0, 1), show_default="the environment's",
              help="Confidence below which objects and relations are not lifted; on dining, for "
                   "objects, a fraction of the network's best scores.")
@click.option("--compare", is_flag=True,
              help="Correct categories of graphs, and drop boxes, by rendering every category.")
@click.option("--look", type=click.Choice(["random", "fitted", "mixed"]), show_default="random",
              help="Of lifted scenes: a random one, fitted to their images, or half of each.")
@click.option("--fit", type=click.Choice(["pose", "look", "both"]), show_default="none",
              help="By gradient: objects to their boxes, the look to the image, or both; pose is "
                   "--refine, look is --look fitted.")
@click.option("--fit-steps", type=click.IntRange(1, 1000), show_default=str(LOOK_STEPS),
              help="Steps of the look's fit.")
@click.option("--refine", type=click.IntRange(0), default=0, is_flag=False, flag_value=POSE_STEPS,
              help="Gradient steps that fit lifted objects to their boxes; 30 if no number follows.")
@click.option("--assets", type=PATH,
              help="Folder of OBJ or GLB files by category that replace the source's assets.")
@click.option("--export", default="", show_default="none",
              help="kitti, coco, or both with a comma: OUT/kitti, OUT/coco.")
@click.option("--renderer", type=click.Choice(["own", "pytorch3d"]), default="own",
              help="Rasterizer.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0,
              help="Image i depends on the other options, the seed and i alone; graphs of --checkpoint "
                   "also, in their last digits, on the number of threads.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--preview", is_flag=True, help="Only draw 12 labeled images: OUT.preview.png.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is not empty.")
@click.option("--resume/--no-resume", default=True, help="Continue the same command, interrupted.")
@output_options
def main(env_name: str, out: Path, num: int | None, preset: str, randomize: str, domain: str,
         unsplit: bool, checkpoint: Path | None, target: Path | None, camera: str | None,
         graphs_path: Path | None, threshold: float | None, compare: bool, look: str | None,
         fit: str | None, fit_steps: int | None, refine: int, assets: Path | None, export: str,
         renderer: str, seed: int, device: str, preview: bool, overwrite: bool,
         resume: bool) -> None:
    # --- setup: the library is imported here, so that --help answers at once
    from sim2sg_lib.checkpoint import load, pick_device, runtime_info
    from sim2sg_lib.dataset import open_graphs, open_images
    from sim2sg_lib.io.folders import digest, refuse_early, work_folder
    from sim2sg_lib.io.graphs import write_graphs
    from sim2sg_lib.io.reading import real_path, utf8
    from sim2sg_lib.net.predict import confident_graphs
    from sim2sg_lib.sim.sources import LiftedScenes, RandomScenes

    env, device, lifting = envs.find(env_name), pick_device(device), bool(checkpoint or graphs_path)
    formats = [name.strip() for name in export.split(",") if name.strip()]
    check_options(env, domain, unsplit, num, checkpoint, target, camera, graphs_path, threshold,
                  compare, look, fit, fit_steps, refine, assets, formats)
    refine = refine or (POSE_STEPS if fit in ("pose", "both") else 0)
    look = look or ("fitted" if fit in ("look", "both") else "random")
    fit_steps = 0 if look == "random" else fit_steps or LOOK_STEPS
    if renderer == "pytorch3d":
        from sim2sg_lib.sim.pytorch3d import require
        require()
    if assets:
        from sim2sg_lib.io.mesh_files import replace_assets
        env = replace_assets(env, assets)
    if not preview:
        refuse_early(out, overwrite, [checkpoint, target, graphs_path, assets])

    # --- source: random scenes, or graphs to lift, which a network predicts further below
    sizes, threshold = env.presets[preset], env.threshold if threshold is None else threshold
    names, cameras, pictures, by_category = [], [], [], [threshold] * len(env.vocabulary.categories)
    if checkpoint:
        num = num or sizes.lifted_images
        model, images = load(checkpoint, env, device), open_images(target, env, camera)
        chosen = images.sample(num, seed)
        names, cameras = chosen.names, chosen.cameras
    elif graphs_path:
        graphs, cameras = open_graphs(graphs_path, env)
        graphs, by_category = confident_graphs(graphs, env, threshold)
        names, num = [graph.image for graph in graphs], num or len(graphs)
    else:
        is_source = unsplit or domain == "source"
        num = num or (sizes.source_images if is_source else sizes.target_images)
        if camera == "paper":
            env = replace(env, world=replace(env.world, camera=env.world.paper_camera))
        source = RandomScenes(env, domain, randomize, seed, unsplit)
    if lifting and (compare or look != "random"):
        fitted = min(num, PREVIEWED) if preview else num  # the images that are looked at
        pictures = find_pictures(target or graphs_path.parent, names[:fitted], env)
    if "kitti" in formats:  # before hours of rendering
        from sim2sg_lib.io.export import check_level
        for view, name in list(zip(cameras, names))[:num] or [(env.world.camera, "")]:
            check_level(view, f"the camera of {name}".removesuffix(" of "))
    method = LiftedScenes.method if lifting else source.method
    log_info(f"{env.name} | {method} | {num} images | {randomize} look | seed {seed} | {device} "
             f"-> {out}")

    # --- render and label
    info = {"method": method, "seed": seed, "randomise": randomize, "preset": preset,
            "renderer": renderer, "assets": assets and real_path(assets), "export": formats,
            "command": utf8("python " + shlex.join(sys.argv))}
    if lifting:
        info |= {"threshold": threshold, "thresholds": by_category, "refine": refine,
                 "compare": compare, "look": look, "fit_steps": fit_steps, "camera": camera,
                 "graphs": real_path(graphs_path or checkpoint),
                 "target": target and real_path(target)}
    elif camera:
        info["camera"] = camera
    options = info | runtime_info(device) | {
        "env": env.name, "domain": domain, "unsplit": unsplit, "num": num,
        "input": digest(*inputs(checkpoint, target, graphs_path, assets, env), *pictures)}
    with (tempfile.TemporaryDirectory() if preview else
          work_folder(out, options, overwrite, resume)) as partial:
        partial = Path(partial)
        if checkpoint:
            graphs, info["thresholds"] = predict_graphs(model, images, chosen, env, threshold,
                                                        partial / PREDICTED)
        if compare:
            graphs, info["compared"] = compare_images(graphs, pictures, cameras, env, device,
                                                      partial / COMPARED)
        if lifting:
            source = LiftedScenes(env, graphs, cameras, randomize, refine, seed, device)
        if lifting and look != "random":
            source, info["fit"] = fit_images(source, pictures, look, fit_steps, partial)
        if preview:
            return draw_preview(Path(f"{out}.preview.png"), partial, range(min(num, PREVIEWED)),
                                source, sizes.image_size, info, device,
                                pictures if look != "random" else [])
        for name, indices in source.splits(num).items():
            write_data_set(partial / name, indices, source, sizes.image_size, info, device)
        if lifting:
            write_graphs(partial / "predicted.jsonl", graphs, env.vocabulary)
        for name in (PREDICTED, COMPARED, FITTED):
            (partial / name).unlink(missing_ok=True)
    print_json({"out": str(out), "env": env.name, "method": method, "images": num})


# --- options --------------------------------------------------------------------------------------

def check_options(env, domain: str, unsplit: bool, num: int | None, checkpoint: Path | None,
                  target: Path | None, camera: str | None, graphs: Path | None,
                  threshold: float | None, compare: bool, look: str | None, fit: str | None,
                  fit_steps: int | None, refine: int, assets: Path | None, formats: list[str]) -> None:
    """Raises: InputError for options that are unknown, or not of the chosen source of scenes."""
    lifting, flat = checkpoint or target or graphs, env.world is None
    dress, unknown = env.domains.get(domain, ("", ""))[1], set(formats) - {"kitti", "coco"}
    lifted_only = {"--refine": refine, "--threshold": threshold is not None,
                   "--compare": compare, "--look": look not in (None, "random"), "--fit": fit,
                   "--fit-steps": fit_steps}
    for wrong, message in (
            (not dress, f"--domain: {domain!r} is not one of {', '.join(env.domains)}"),
            (unknown, f"--export: {', '.join(sorted(unknown))!r} is not kitti or coco"),
            (assets and dress != "source", f"--assets: --domain {domain} has none of the source's"),
            (flat and (lifting or assets or "kitti" in formats),
             f"--env {env.name} has no 3-D world: leave --checkpoint, --graphs, --assets and --export "
             "kitti out"),
            # lifted graphs
            (bool(checkpoint) != bool(target) or (checkpoint and graphs),
             "--checkpoint and --target go together, and not with --graphs"),
            (lifting and domain != "source",
             "--domain: lifted graphs take the source's look, leave it out"),
            (lifting and unsplit, "--unsplit is for random scenes: leave it out"),
            (camera and not target and (graphs or flat or not env.world.paper_camera),
             "--camera is that of a KITTI --target, or of random scenes on drive: add --checkpoint and "
             "--target, or leave it out"),
            # random scenes
            (not lifting and any(lifted_only.values()),
             f"{next((name for name, given in lifted_only.items() if given), '')} is for lifted graphs: "
             "add --checkpoint and --target, or --graphs"),
            (fit == "pose" and look not in (None, "random"),
             f"--fit pose: leaves the look random, --look {look} needs --fit look or both"),
            (fit in ("look", "both") and look == "random",
             f"--fit {fit}: fits the look, expected --look fitted or mixed"),
            (fit_steps and look in (None, "random") and fit not in ("look", "both"),
             "--fit-steps: the look stays random, add --look fitted or mixed, or leave it out"),
            (domain != "source" and not unsplit and num is not None and num < 3,
             f"--num: {num} images cannot be split into train, val and test, expected 3 or more")):
        if wrong:
            raise InputError(message)


def inputs(checkpoint: Path | None, target: Path | None, graphs_path: Path | None,
           assets: Path | None, env) -> list[Path]:
    """The files on which the images depend, also those that are missing."""
    from sim2sg_lib.dataset import input_files
    paths = [checkpoint, *input_files(target)] if checkpoint else []
    paths += [graphs_path, graphs_path.parent / "cameras.jsonl"] if graphs_path else []
    if assets:
        from sim2sg_lib.io.mesh_files import asset_files
        paths += [path for name in env.vocabulary.categories for path in asset_files(assets / name)]
    return paths


def predict_graphs(model, images, chosen, env, threshold: float,
                   kept: Path) -> tuple[list, list[float]]:
    """Confident graphs of the chosen images, and the threshold per category; `kept` holds progress."""
    from sim2sg_lib.net.predict import confident_graphs, predict_folder
    images = images if env.adaptive else chosen  # adaptive thresholds must not depend on --num
    lowest = 0.0 if env.adaptive else threshold
    graphs, by_category = confident_graphs(
        predict_folder(model, images, env, lowest, threshold, kept), env, threshold)
    by_name = dict(zip(images.names, graphs))
    return [by_name[name] for name in chosen.names], by_category


def find_pictures(folder: Path, names: list[str], env) -> list[Path]:
    """The images of the graphs, to which the look is fitted. Raises: InputError."""
    from sim2sg_lib.dataset import check_aspect
    from sim2sg_lib.io.images import open_image
    from sim2sg_lib.io.reading import safe_join
    paths = [safe_join(folder, name) for name in names]
    for path in paths:
        check_aspect(path, *open_image(path).size, env.world.camera)
    return paths


def compare_images(graphs: list, pictures: list[Path], cameras: list, env, device,
                   kept: Path) -> tuple[list, dict]:
    """The graphs corrected by render and compare, and for dataset.json what that changed."""
    from sim2sg_lib.sim.compare import compare_folder
    graphs, report = compare_folder(graphs, pictures, cameras, env, device, kept)
    log_info(f"render and compare: of {report.objects} boxes, {report.relabeled} got another category, "
             f"{report.dropped} were dropped")
    return graphs, vars(report)


def fit_images(source, pictures: list[Path], look: str, steps: int, partial: Path):
    """The source with the looks of its scenes fitted to the pictures, and errors for dataset.json."""
    from sim2sg_lib.io.files import write_json_lines
    from sim2sg_lib.sim.look import fit_looks
    fits = fit_looks(source, pictures, steps, partial / FITTED)
    source = replace(source, fitted=[one.scene if one.kept else None for one in fits],
                     mixed=look == "mixed")
    before, after = (sum(getattr(one, name) for one in fits) / len(fits) for name in ("before", "after"))
    dropped = sum(not one.kept for one in fits)
    log_info(f"difference of render and image: {before:.3f} in the random look, {after:.3f} fitted; "
             f"{dropped} of {len(fits)} keep the random look, which no fit improved")
    write_json_lines(partial / "fitted.jsonl", [
        {"image": graph.image, "before": one.before, "after": one.after, "kept": one.kept}
        for graph, one in zip(source.graphs, fits)])
    return source, {"photometric_before": before, "photometric_after": after, "dropped": dropped}


# --- rendering ------------------------------------------------------------------------------------

def write_data_set(folder: Path, indices: range, source, size: tuple[int, int], info: dict,
                   device) -> None:
    """Render, label and save scenes chunk by chunk; continues after an interruption."""
    from sim2sg_lib.dataset import Rendered, write_labels
    from sim2sg_lib.sim.chunks import cut_into_chunks, in_parallel

    if (folder / "dataset.json").exists():  # finished before the interruption
        (folder / "rendered.jsonl").unlink(missing_ok=True)
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chunks, vocabulary = cut_into_chunks(indices, size), source.env.vocabulary
    rendered = Rendered(folder, vocabulary)
    done, left = chunks[:rendered.chunks], chunks[rendered.chunks:]
    scenes = [scene for made in in_parallel(source.scenes, done, device) for scene in made]

    def render(chunk: range):
        made, first = source.scenes(chunk), chunk.start - indices.start
        return made, *write_chunk(folder, made, first, source, size, info, device)

    with progress(len(indices), "render", "image", done=len(scenes)) as bar:
        for made, *labels in in_parallel(render, left, device):
            scenes += made
            rendered.add(*labels)
            bar.update(len(made))
    graphs = rendered.graphs
    if info["export"]:
        from sim2sg_lib.io.export import export
        export(folder, info["export"], graphs, scenes, rendered.labeled, vocabulary)
    if source.graphs:
        iou = report_lifting(source, graphs, chunks, size, device)
        info = info | {"fit": iou | info.get("fit", {}) or None}
    write_labels(folder, graphs, scenes, source.env, info | {"width": size[0], "height": size[1]})
    rendered.close()  # last: until the labels are written, the next attempt continues from it


def report_lifting(source, graphs: list, chunks: list[range], size: tuple[int, int], device) -> dict:
    """How well the boxes of lifted scenes match those predicted, see lifting_iou; printed, too."""
    from sim2sg_lib.score.metrics import lifting_iou
    from sim2sg_lib.sim.chunks import in_parallel
    raw, iou = replace(source, pose_steps=0, fitted=()), {}

    def label(chunk: range) -> list:
        return source.env.render(source.env, raw.scenes(chunk), [""] * len(chunk), size, device).graphs

    log_info(f"{sum(len(graph) == 0 for graph in graphs)} of {len(graphs)} lifted scenes are empty")
    lifted, found = [source.graphs[i % len(source.graphs)] for chunk in chunks for i in chunk], {"": graphs}
    if source.pose_steps and any(map(len, lifted)):
        found[" before the fit"] = sum(in_parallel(label, chunks, device), [])
    for when, boxes in found.items():
        if one := lifting_iou(lifted, boxes):
            values = ", ".join(f"{name} {value:.3f}" for name, value in one.items())
            log_info(f"IoU of rendered vs. predicted boxes{when}: {values}")
            iou |= {"before": one} if when else one
    return iou


def write_chunk(folder: Path, scenes: list, first: int, source, size: tuple[int, int], info: dict,
                device) -> tuple[list, list, dict[str, int]]:
    """Render some scenes into images/ of the folder, numbered from `first`.

    Returns graphs, for KITTI also their object rows (see env.Rendered), and each image's CRC.
    """
    from sim2sg_lib.io.images import write_image
    names = [f"images/{i:06d}.png" for i in range(first, first + len(scenes))]
    rendered = source.env.render(source.env, scenes, names, size, device, info["renderer"])
    crcs = {name: write_image(folder / name, image) for name, image in zip(names, rendered.images)}
    return rendered.graphs, rendered.object_rows if "kitti" in info["export"] else [], crcs


def draw_preview(path: Path, folder: Path, indices: range, source, size: tuple[int, int],
                 info: dict, device, pictures: list[Path]) -> None:
    """The first images with their labels on one sheet. folder: for temporary files.

    pictures: the target images, if the look is fitted to them: below each the random look, the
    fitted one, and what the data set will hold.
    """
    from sim2sg_lib.io.images import read_image
    from sim2sg_lib.viz.drawings import contact_sheet, to_tile, save_png
    rows = [("", preview_tiles(folder / "set", indices, source, size, info, device))]
    if pictures:
        random, fitted = replace(source, fitted=()), replace(source, jitter=0.0, mixed=False)
        rows = [("target", [to_tile(read_image(path, *size)) for path in pictures]),
                ("random look", preview_tiles(folder / "random", indices, random, size, info, device)),
                ("fitted look", preview_tiles(folder / "fitted", indices, fitted, size, info, device)),
                ("data set", rows[0][1])]
    columns = 6 if pictures else 4
    rows = [(title or f"from {start}", tiles[start:start + columns])
            for start in range(0, len(indices), columns) for title, tiles in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, contact_sheet(rows))
    log_info(f"{path} shows {len(indices)} samples")
    print_json({"preview": str(path), "images": len(indices)})


def preview_tiles(folder: Path, indices: range, source, size: tuple[int, int], info: dict, device) -> list:
    """Images of the scenes with boxes, rendered into a folder."""
    from sim2sg_lib.io.images import read_image
    from sim2sg_lib.sim.chunks import cut_into_chunks
    from sim2sg_lib.viz.drawings import draw_boxes
    (folder / "images").mkdir(parents=True)
    graphs = []
    for chunk in cut_into_chunks(indices, size):
        graphs += write_chunk(folder, source.scenes(chunk), chunk.start, source, size, info, device)[0]
    return [draw_boxes(read_image(folder / graph.image, *size), graph, source.env.vocabulary)
            for graph in graphs]


if __name__ == "__main__":
    command_line(main)
