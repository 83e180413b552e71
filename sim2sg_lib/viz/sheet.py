"""Contact sheets: predictions on test images, and what each iteration of a loop rendered."""
import os
from pathlib import Path

import numpy as np

from sim2sg_lib.dataset import ImageFolder, read_info
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.io.images import read_image
from sim2sg_lib.io.reading import read_json_lines, resolve_recorded, safe_join
from sim2sg_lib.net.predict import confident_graphs
from sim2sg_lib.score.table import ITERATION, row_title
from sim2sg_lib.viz.drawings import contact_sheet, draw_boxes, save_png, to_tile

PREDICTION_COLUMNS = 8
LOOP_COLUMNS = 6


def save_predictions(path: Path, images: ImageFolder, truth: list[SceneGraph] | None,
                     predicted: list[SceneGraph], env: Env) -> None:
    """The first images with confident predicted boxes, labels below."""
    pixels = [read_image(images.folder / graph.image, graph.width, graph.height)
              for graph in predicted[:PREDICTION_COLUMNS]]
    confident, _ = confident_graphs(predicted, env, env.threshold)
    rows = [("predicted", [draw_boxes(image, graph, env.vocabulary)
                           for image, graph in zip(pixels, confident)])]
    if truth:
        rows.append(("labeled", [
            draw_boxes(image, select_objects(graph, graph.is_ground_truth), env.vocabulary)
            for image, graph in zip(pixels, truth)]))
    save_png(path, contact_sheet(rows))


def lifted_sets(table: dict[str, dict]) -> dict[Path, str]:
    """Folder of each lifted data set -> the first row of the table that was trained on it."""
    sets = {}
    for name in filter(ITERATION.fullmatch, table):
        sets.setdefault(Path(table[name]["source"][-1]), name)
    return sets


def sheet_rows(table: dict[str, dict]) -> list[tuple[str, list[np.ndarray]]]:
    """Figure 3 of the paper as (caption, images): target images, then SDR's and each iteration's.

    Label alignment's iterations have random looks, those of "+ look" the fitted ones.

    Images (H, W, 3) uint8 have the size of the lifted sets. Rows without images are left out.
    """
    lifted = lifted_sets(table)
    first = next(iter(lifted), None)
    needed = [first / "dataset.json", first / "predicted.jsonl"] if first else []
    if not needed or not all(path.exists() for path in needed):
        return []
    info, predicted = read_info(first, None), safe_join(first, "predicted.jsonl")
    # of a mixed look, every second image is in the fitted look: show these
    mixed = any(read_info(folder, None).get("look") == "mixed" for folder in lifted
                if (folder / "dataset.json").exists())
    shown = slice(0, 2 * LOOP_COLUMNS, 2) if mixed else slice(LOOP_COLUMNS)
    names = [str(row.get("image")) for _, row in read_json_lines(predicted)[shown]]
    target = resolve_recorded(str(info.get("target") or ""), first / "dataset.json")
    rows = [("target", [safe_join(target, name, f"{predicted}: image") for name in names])]
    sdr = {Path(table["sdr"]["source"][0]): "sdr"} if "sdr" in table else {}
    for folder, name in (sdr | lifted).items():
        found = sorted((folder / "images").glob("*.png"))[shown][:len(names)]
        rows.append((row_title(name), [safe_join(folder, f"images/{path.name}") for path in found]))
    return [(caption, [read_image(path, info["width"], info["height"]) for path in paths])
            for caption, paths in rows if paths and all(map(os.path.isfile, paths))]


def draw_sheet(loop: Path, table: dict[str, dict]) -> Path | None:
    """Write LOOP/figures/loop.png, see sheet_rows. Returns its path, None without the images."""
    rows = sheet_rows(table)
    if not rows:
        return None
    path = loop / "figures" / "loop.png"
    path.parent.mkdir(exist_ok=True)
    save_png(path, contact_sheet([
        (caption.replace(" + ", "\n+ ").replace(", ", ",\n"), [to_tile(image) for image in images])
        for caption, images in rows]))
    return path
