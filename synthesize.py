"""Stage 1: scene graphs, drawn at random or predicted from target images, become 3-D scenes, images and exact labels.

\b
  python synthesize.py --env clevr --num 400 --out data/clevr/sdr
  python synthesize.py --checkpoint runs/clevr/0/model.pt --target data/clevr/target/train --out data/clevr/1

Without --checkpoint or --graphs the scenes are random: the source domain gives the SDR data set (structured domain
randomization), any other a stand-in for real images, split into OUT/train, OUT/val and OUT/test. With one of them, each
graph is lifted to 3-D and dressed in the source domain's look: label alignment.
"""
import shlex
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import (
    FloatRange, InputError, command_line, print_json, output_options, progress, log_info)

CHUNK, CHUNK_PIXELS = 16, 16 * 320 * 240  # most scenes rendered at once, and most pixels of more than one
PREVIEWED = 12
KEPT = "read.jsonl"  # in a half-made data set: what the network has read in the target so far


@click.command(help=__doc__, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--env", "env_name", default="clevr", help="Environment.")
@click.option("--out", type=click.Path(path_type=Path), default="data/clevr/sdr", help="Data set folder to write.")
@click.option("--num", type=click.IntRange(1, 10**6), default=None, show_default="400, or one a graph",
              help="Images; with more than there are graphs, each graph gets several looks.")
@click.option("--domain", default="source", help="Domain of random scenes: source, target, target-content, ...")
@click.option("--checkpoint", type=click.Path(path_type=Path), default=None, help="Network that predicts the graphs.")
@click.option("--target", type=click.Path(path_type=Path), default=None, help="Images it predicts them from.")
@click.option("--camera", type=click.Choice(["calib", "paper"]), default=None, show_default="calib",
              help="Of a KITTI --target: its calibration, or the paper's assumption of 90 degrees.")
@click.option("--graphs", "graphs_path", type=click.Path(path_type=Path), default=None,
              help="Lift the graphs of this JSON Lines file.")
@click.option("--threshold", type=FloatRange(0, 1), default=None, show_default="the environment's",
              help="Confidence below which objects and relations are dropped; on dining, for objects, the share of what the "
                   "network is sure of.")
@click.option("--randomize", type=click.Choice(["paper", "strong"]), default="paper",
              help="Source look: as the paper draws it, or varying all that a scene graph does not hold.")
@click.option("--preset", type=click.Choice(["quick", "paper"]), default="quick",
              help="Image size: 160x120 or 320x240 pixels on CLEVR, see the README for the others.")
@click.option("--refine", type=click.IntRange(0), default=0, is_flag=False, flag_value=30, show_default="none",
              help="Gradient steps that fit lifted scenes to their boxes; 30 if no number follows.")
@click.option("--assets", type=click.Path(path_type=Path), default=None,
              help="Folder of OBJ or GLB files by category, ShapeNet's layout too, in the place of the source's own assets.")
@click.option("--export", default="", show_default="none", help="kitti, coco, or both with a comma: OUT/kitti, OUT/coco.")
@click.option("--renderer", type=click.Choice(["own", "pytorch3d"]), default="own", help="Rasterizer.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0,
              help="Image i depends on the other options, the seed and i alone.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--preview", is_flag=True, help="Only draw the first 12 images with their labels: OUT.preview.png.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is not empty.")
@click.option("--resume/--no-resume", default=True, help="Go on where the same command was interrupted, or start anew.")
@output_options
def main(env_name: str, out: Path, num: int | None, domain: str, checkpoint: Path | None, target: Path | None,
         camera: str | None, graphs_path: Path | None, threshold: float | None, randomize: str, preset: str, refine: int,
         assets: Path | None, export: str, renderer: str, seed: int, device: str, preview: bool, overwrite: bool,
         resume: bool) -> None:
    # --- setup: the library is imported here, so that --help answers at once
    from sim2sg_lib.io.mesh_files import replace_assets
    from sim2sg_lib.checkpoint import load, runtime_info, pick_device
    from sim2sg_lib.dataset import open_images
    from sim2sg_lib.io.folders import digest, refuse_early, work_folder
    from sim2sg_lib.io.graphs import write_graphs

    env, device = envs.find(env_name), pick_device(device)
    check_options(env, domain, num, checkpoint, target, camera, graphs_path, threshold, refine, assets, renderer)
    formats = parse_export(export)
    if assets:
        env = replace_assets(env, assets)
    threshold = env.threshold if threshold is None else threshold
    if not preview:
        refuse_early(out, overwrite, [checkpoint, target, graphs_path, assets])

    # --- graphs: of target images, which will be predicted, given, or none
    graphs, names, cameras, levels = [], [], [], [threshold] * len(env.vocabulary.categories)
    if checkpoint:
        model, images = load(checkpoint, env, device), open_images(target, env, camera)
        chosen = sample(images, num, seed)
        names, cameras = chosen.names, chosen.cameras
    elif graphs_path:
        graphs, cameras = open_graphs(graphs_path, env, threshold)
        names = [graph.image for graph in graphs]
    num = num or len(names) or 400
    if "kitti" in formats:
        check_cameras(names[:num], cameras, env)

    # --- scenes: one of a domain, or a lifted graph in the source's look
    method = "label" if names else "sdr" if domain == "source" else domain
    log_info(f"{env.name} | {method} | {num} images | {randomize} look | seed {seed} | {device} -> {out}")

    def make_scenes(indices: range) -> list:
        generators = [random_generator(seed, env.name, method, i) for i in indices]
        if graphs:
            chosen = [i % len(graphs) for i in indices]
            return lift_graphs([graphs[i] for i in chosen], [cameras[i] for i in chosen], env, randomize, refine, generators,
                               device)
        return [env.sample(env, domain, randomize, rng) for rng in generators]

    # --- render and label
    info = {"method": method, "seed": seed, "randomise": randomize, "preset": preset, "renderer": renderer,
            "assets": str(assets) if assets else None, "export": formats, "command": "python " + shlex.join(sys.argv)}
    if names:
        info |= {"threshold": threshold, "thresholds": levels, "refine": refine,
                 "graphs": str(graphs_path or checkpoint), "target": str(target) if target else None, "camera": camera}
    size = env.presets[preset].image_size
    if preview:
        if checkpoint:
            graphs, _ = predict_graphs(model, images, chosen, env, threshold)
        return draw_preview(Path(f"{out}.preview.png"), range(min(num, PREVIEWED)), make_scenes, env, size, info, device)
    splits = {".": range(num)} if names or domain == "source" else split_target(num)
    options = info | runtime_info(device) | {"env": env.name, "domain": domain, "num": num,
                                        "input": digest(*inputs(checkpoint, target, graphs_path, assets, env))}
    with work_folder(out, options, overwrite, resume) as partial:
        if checkpoint:
            graphs, info["thresholds"] = predict_graphs(model, images, chosen, env, threshold, partial / KEPT)
        for name, indices in splits.items():
            write_data_set(partial / name, indices, make_scenes, env, size, info, graphs, device)
        if graphs:
            write_graphs(partial / "predicted.jsonl", graphs, env.vocabulary)
        (partial / KEPT).unlink(missing_ok=True)
    print_json({"out": str(out), "env": env.name, "method": method, "images": num})


def check_options(env, domain: str, num: int | None, checkpoint, target, camera, graphs_path, threshold: float | None,
                  refine: int, assets: Path | None, renderer: str) -> None:
    """Errors: InputError for options that contradict one another, and for a renderer that is not there."""
    from sim2sg_lib.sim import pytorch3d
    if renderer == "pytorch3d":
        pytorch3d.require()
    if domain not in env.domains:
        raise InputError(f"--domain: {domain!r} is not one of {', '.join(env.domains)}")
    if (checkpoint is None) != (target is None) or (checkpoint and graphs_path):
        raise InputError("--checkpoint and --target go together, and not with --graphs")
    if camera and not target:
        raise InputError("--camera is that of a KITTI --target: add --checkpoint and --target, or leave it out")
    if (refine or threshold is not None) and not (checkpoint or graphs_path):
        raise InputError(f"{'--refine' if refine else '--threshold'} is for lifted graphs: add --checkpoint and --target, "
                         "or --graphs")
    if assets and env.domains[domain][1] != "source":
        raise InputError(f"--assets take the place of the source's, and --domain {domain} has none of those")
    if domain != "source" and (checkpoint or graphs_path):
        raise InputError("--domain: lifted graphs take the source's look, leave it out")
    if domain != "source" and num is not None and num < 3:
        raise InputError(f"--num: {num} images cannot be split into train, val and test, expected 3 or more")


def parse_export(export: str) -> list[str]:
    """ "kitti,coco" -> its parts. Errors: InputError."""
    formats = [name.strip() for name in export.split(",") if name.strip()]
    for name in formats:
        if name not in ("kitti", "coco"):
            raise InputError(f"--export: {name!r} is not kitti or coco")
    return formats


def check_cameras(names: list[str], cameras: list, env) -> None:
    """Errors: InputError for a view that KITTI's format cannot hold; asked again when it is written, but nobody should wait
    for that."""
    from sim2sg_lib.io.export import check_level
    views = [(camera, f"the camera of {name}") for name, camera in zip(names, cameras)]
    for view in views or [(env.world.camera, "the camera")]:
        check_level(*view)


def inputs(checkpoint: Path | None, target: Path | None, graphs_path: Path | None, assets: Path | None, env) -> list[Path]:
    """The files on which the images depend; what is not there counts, too."""
    from sim2sg_lib.io.mesh_files import asset_files
    from sim2sg_lib.dataset import input_files
    paths = [checkpoint, *input_files(target)] if checkpoint else []
    paths += [graphs_path, graphs_path.parent / "cameras.jsonl"] if graphs_path else []
    return paths + [path for category in env.vocabulary.categories if assets for path in asset_files(assets / category)]


def predict_graphs(model, images, chosen, env, threshold: float, kept: Path | None = None) -> tuple[list, list[float]]:
    """What the network reads in the chosen ones of the target's images, and each category's threshold.

    kept: a file for what it has read so far.
    """
    from sim2sg_lib.net.predict import predict_folder
    from sim2sg_lib.net.predict import confident, thresholds
    if env.adaptive:
        graphs = predict_folder(model, images, env, 0.0, threshold, kept)  # of all: an image's graph does not depend on --num
        levels, by_name = thresholds(graphs, env, threshold), dict(zip(images.names, graphs))
        graphs = [by_name[name] for name in chosen.names]
    else:
        graphs = predict_folder(model, chosen, env, threshold, threshold, kept)
        levels = thresholds([], env, threshold)
    return [confident(graph, levels, threshold) for graph in graphs], levels


def sample(images, num: int | None, seed: int):
    """Of more target images than are asked for, a random choice; another `num` is a longer or shorter start of the same."""
    import numpy as np
    if num is None or num >= len(images.names):
        return images
    chosen = np.random.default_rng(seed).permutation(len(images.names))[:num]
    return replace(images, names=[images.names[i] for i in chosen], cameras=[images.cameras[i] for i in chosen])


def open_graphs(path: Path, env, threshold: float) -> tuple[list, list]:
    """What is sure enough in the graphs of a JSON Lines file, and their cameras: those of a cameras.jsonl beside it, or the
    nominal one."""
    from sim2sg_lib.dataset import check_aspect, read_cameras
    from sim2sg_lib.io.graphs import read_graphs
    from sim2sg_lib.io.reading import safe_join
    from sim2sg_lib.net.predict import confident
    graphs = [confident(graph, [threshold] * len(env.vocabulary.categories), threshold)
              for graph in read_graphs(path, env.vocabulary)]
    if not graphs:
        raise InputError(f"{path}: no graph in it")
    for graph in graphs:
        check_aspect(f"{path}: {graph.image}", graph.width, graph.height, env.world.camera)
    sizes = [(graph.width, graph.height) for graph in graphs]
    if (path.parent / "cameras.jsonl").exists():
        return graphs, read_cameras(safe_join(path.parent, "cameras.jsonl"), [graph.image for graph in graphs], sizes)
    return graphs, [env.world.camera.resized(*size) for size in sizes]


def random_generator(seed: int, env_name: str, method: str, index: int):
    """Image `index`'s own generator: any order and any number of workers give the same bytes."""
    import numpy as np
    return np.random.default_rng([seed, zlib.crc32(f"{env_name} {method}".encode()), index])


def lift_graphs(graphs: list, cameras: list, env, randomize: str, steps: int, generators: list, device) -> list:
    """Label alignment: 3-D objects where each graph says, in a random look of the source (section 4.1).

    steps: of refinement by gradient, 0 for none.
    """
    from sim2sg_lib.sim.lift import lift
    from sim2sg_lib.sim.fit import refine
    lifted = [lift(graph, camera, env, rng) for graph, camera, rng in zip(graphs, cameras, generators)]
    objects = [row for row, _ in lifted]
    if steps:
        objects = refine(objects, [graph for _, graph in lifted], cameras, env.world.assets, steps, device)
    if env.world.snap_to_context:
        objects = [env.world.snap_to_context(row, graph.boxes_px, camera, rng)
                   for row, (_, graph), camera, rng in zip(objects, lifted, cameras, generators)]
    return [env.world.sample_appearance(row, camera, "source", randomize, rng) for row, camera, rng in zip(objects, cameras, generators)]


def split_target(num: int) -> dict[str, range]:
    """A quarter for the test, an eighth for development, the rest to adapt to."""
    test, val = -(-num // 4), -(-num // 8)
    train = num - test - val
    return {"train": range(train), "val": range(train, train + val), "test": range(train + val, num)}


def in_parallel(work, chunks: list, device):
    """Yields work(chunk) in the chunks' order; on a CPU as many at once as torch has threads, one thread each.

    Rendering is many small operations: whole chunks side by side use the cores better than each operation split up.
    """
    import torch
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1) if workers > 1 else None)
    try:
        yield from pool.map(work, chunks)
    finally:  # without an error there is nothing left to cancel
        pool.shutdown(cancel_futures=True)


def write_data_set(folder: Path, indices: range, make_scenes, env, size: tuple[int, int], info: dict, predicted: list,
                   device) -> None:
    """Build, render, annotate and save make_scenes(indices), some at a time, from where an interruption left it.

    predicted: the graphs that were lifted, if there were: how well what is rendered fits them is printed and kept.
    """
    from sim2sg_lib.dataset import Rendered, write_labels
    from sim2sg_lib.io.export import write_coco, write_kitti
    from sim2sg_lib.score.metrics import lifting_iou

    if (folder / "dataset.json").exists():  # finished before the interruption
        (folder / "rendered.jsonl").unlink(missing_ok=True)
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chunks = cut_into_chunks(indices, size)
    rendered = Rendered(folder, env.vocabulary)
    # on one thread each, as they were made before: refinement's last digits depend on it
    scenes = [scene for made in in_parallel(make_scenes, chunks[:rendered.chunks], device) for scene in made]
    with progress(len(indices), "render", "image", done=len(scenes)) as bar:

        def render(chunk: range):
            own = make_scenes(chunk)
            return own, *write_chunk(folder, own, chunk.start - indices.start, env, size, info, device)

        for own, *labels in in_parallel(render, chunks[rendered.chunks:], device):
            scenes += own
            rendered.add(*labels)
            bar.update(len(own))
    graphs = rendered.graphs
    if "kitti" in info["export"]:
        objects = [[scene.objects[i] for i in rows] for scene, rows in zip(scenes, rendered.labeled)]
        write_kitti(folder, graphs, objects, [scene.camera for scene in scenes], env.vocabulary)
    if "coco" in info["export"]:
        write_coco(folder, graphs, env.vocabulary)
    if predicted:
        fit = lifting_iou([predicted[i % len(predicted)] for i in indices], graphs)
        log_info("what shows against the lifted boxes: IoU " + ", ".join(f"{name} {value:.3f}" for name, value in fit.items())
            if fit else f"no object in any of {len(predicted)} graphs is sure enough: the scenes are empty")
        info = info | {"fit": fit}
    write_labels(folder, graphs, scenes, env, {**info, "width": size[0], "height": size[1]})
    rendered.close()  # not before: until the labels are written it is all that a next attempt has to go on from


def cut_into_chunks(indices: range, size: tuple[int, int]) -> list[range]:
    """As many images at once as memory allows. size: width and height in pixels."""
    count = max(1, min(CHUNK, CHUNK_PIXELS // (size[0] * size[1])))
    return [indices[start:start + count] for start in range(0, len(indices), count)]


def write_chunk(folder: Path, scenes: list, first: int, env, size: tuple[int, int], info: dict, device
                ) -> tuple[list, list, dict[str, int]]:
    """Render some scenes into images/ of the folder, numbered from `first`.

    Returns graphs, for KITTI which objects they label, and the CRC of each image by its name.
    """
    from sim2sg_lib.io.images import write_image

    names = [f"images/{i:06d}.png" for i in range(first, first + len(scenes))]
    rendered = env.render(env, scenes, names, size, device, info["renderer"])
    crcs = {name: write_image(folder / name, image) for name, image in zip(names, rendered.images)}
    return rendered.graphs, rendered.object_rows if "kitti" in info["export"] else [], crcs


def draw_preview(path: Path, indices: range, make_scenes, env, size: tuple[int, int], info: dict, device) -> None:
    """A sheet of the first images with their labels, and no data set."""
    from sim2sg_lib.io.images import read_image
    from sim2sg_lib.viz.drawings import contact_sheet, draw_boxes, save_png
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        graphs = [graph for chunk in cut_into_chunks(indices, size) for graph in
                  write_chunk(folder, make_scenes(chunk), chunk.start, env, size, info | {"export": []}, device)[0]]
        tiles = [draw_boxes(read_image(folder / graph.image, *size), graph, env.vocabulary) for graph in graphs]
    rows = [(f"from {start}", tiles[start:start + 4]) for start in range(0, len(tiles), 4)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, contact_sheet(rows))
    log_info(f"{path} shows {len(tiles)} samples")
    print_json({"preview": str(path), "images": len(tiles)})


if __name__ == "__main__":
    command_line(main)
