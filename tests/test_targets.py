"""What the fitted look and render and compare make of targets: images that show nothing or something
else, boxes where nothing can be, other shapes; real streets and rooms."""
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

import envs
from conftest import run
from sim2sg_lib.dataset import open_images, read_labels
from sim2sg_lib.graph import select_objects
from sim2sg_lib.net import predict

W, H = 414, 125  # Drive-Sim's aspect
CAR = {"category": "car", "box": [200, 66, 233, 86]}
BOXES = {"sky": [190, 1, 215, 14],       # far above the horizon
         "near": [0, 100, 414, 125],     # as wide as the image
         "whole": [0, 0, 414, 125],
         "thin": [100, 66, 100.2, 90]}   # less than a pixel


def numbers(path) -> list[float]:
    """All numbers of a JSON Lines file. Raises: ValueError for NaN and infinity."""
    found = []

    def constant(text):
        raise ValueError(text)

    def walk(value):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, (dict, list)):
                walk(item)
            elif isinstance(item, (int, float)):
                found.append(float(item))
    for line in path.read_text().splitlines():
        walk(json.loads(line, parse_constant=constant))
    return found


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_target(folder, objects: dict[str, list[dict]]):
    """Images of noise, or black or white if they are named so, and graphs.jsonl beside them."""
    folder.mkdir()
    for name in objects:
        pixels = np.random.default_rng(len(name)).integers(0, 256, (H, W, 3), np.uint8)
        pixels = np.full_like(pixels, {"black": 0, "white": 255}[name]) if name in (
            "black", "white") else pixels
        Image.fromarray(pixels).save(folder / f"{name}.png")
    lines = [json.dumps({"image": f"{name}.png", "width": W, "height": H, "objects": row,
                         "relations": []}) for name, row in objects.items()]
    (folder / "graphs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "graphs.jsonl"


# --- images and boxes that no scene explains ------------------------------------------------------

def test_blank_images_keep_the_random_look_and_empty_graphs_are_fitted(tmp_path):
    graphs = write_target(tmp_path / "t", {
        "black": [CAR], "empty": [], "noise": [CAR], "white": [CAR]})
    command = ["synthesize.py", "--env", "drive", "--graphs", graphs, "--out"]
    printed = run(tmp_path, *command, "fitted", "--look", "fitted", "--fit-steps", 3)
    assert "; 2 of 4 keep the random look, which no fit improved\n" in printed
    assert "1 of 4 lifted scenes are empty\n" in printed
    fits = rows(tmp_path / "fitted/fitted.jsonl")
    assert [row["kept"] for row in fits] == [False, True, True, False]
    assert all((row["after"] < row["before"]) == row["kept"] for row in fits)
    run(tmp_path, *command, "random")
    fitted, random = (rows(tmp_path / name / "scenes.jsonl") for name in ("fitted", "random"))
    assert [one == other for one, other in zip(fitted, random)] == [True, False, False, True]
    assert all(map(math.isfinite, numbers(tmp_path / "fitted/scenes.jsonl")))


def test_boxes_where_nothing_can_be(tmp_path):
    """Above the horizon, at the camera, thinner than a pixel: dropped or kept, never a crash."""
    graphs = write_target(tmp_path / "t", {
        name: [{"category": "pedestrian", "box": box}] for name, box in BOXES.items()})
    command = ["synthesize.py", "--env", "drive", "--graphs", graphs, "--fit", "both", "--refine",
               2, "--fit-steps", 2, "--out"]
    run(tmp_path, *command, "all")
    assert numbers(tmp_path / "all/scenes.jsonl") and numbers(tmp_path / "all/fitted.jsonl")
    printed = run(tmp_path, *command, "compared", "--compare")
    # noise is no pedestrian; the thin box cannot be judged
    assert "of 3 boxes, 0 got another category, 3 were dropped\n" in printed
    assert "lifted scenes are empty" in printed
    assert [len(row["objects"]) for row in rows(tmp_path / "compared/predicted.jsonl")] == [0, 0, 0, 1]
    assert numbers(tmp_path / "compared/scenes.jsonl")


@pytest.mark.parametrize("size", [(120, 120), (160, 124), (60, 80)])
def test_a_target_of_another_shape_is_one_line_before_anything_is_made(toy, tmp_path, size):
    shutil.copytree(toy / "data/target/val/images", tmp_path / "photos")
    odd = sorted((tmp_path / "photos").iterdir())[-1]
    with Image.open(odd) as image:
        image.resize(size).save(odd)
    graph = {"image": f"photos/{odd.name}", "width": 160, "height": 120, "objects": [], "relations": []}
    (tmp_path / "graphs.jsonl").write_text(json.dumps(graph))
    for given in (["--checkpoint", toy / "runs/0/model.pt", "--target", "photos"],
                  ["--graphs", "graphs.jsonl"]):
        line = run(tmp_path, "synthesize.py", *given, "--look", "fitted", "--compare",
                   "--out", "set", code=3)
        assert f"{odd.name}: {size[0]}x{size[1]} pixels, the camera expects 320x240" in line
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "graphs.jsonl"}


# --- real images ----------------------------------------------------------------------------------

def test_real_streets(real_data, toy, tmp_path, monkeypatch):
    """KITTI frames with their calibrations; its own labels stand in for a network."""
    env = envs.find("drive")
    labeled = {graph.image: select_objects(graph, graph.is_ground_truth) for graph in read_labels(
        open_images(real_data("kitti"), env), env)}
    monkeypatch.setattr("sim2sg_lib.checkpoint.load", lambda *_: None)
    monkeypatch.setattr(predict, "predict_folder", lambda _, images, *more: [
        labeled[name] for name in images.names])
    (tmp_path / "no.pt").touch()
    printed = run(tmp_path, "synthesize.py", "--env", "drive", "--checkpoint", "no.pt", "--target",
                  real_data("kitti"), "--num", 2, "--compare", "--fit", "both", "--refine", 3,
                  "--fit-steps", 5, "--out", "set")
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert f"render and compare: of {info['compared']['objects']} boxes" in printed
    assert 0 < info["fit"]["photometric_after"] < info["fit"]["photometric_before"] <= 0.25
    assert numbers(tmp_path / "set/scenes.jsonl")


def test_real_rooms(real_data, tmp_path):
    """Photographs with COCO's boxes and no camera; at most two boxes each."""
    folder, env = real_data("dining_real") / "dev", envs.find("dining")
    told = json.loads((folder / "annotations.json").read_text())
    chosen = [image for image in told["images"] if (image["width"], image["height"]) == (640, 480)][:2]
    names = {row["id"]: row["name"].replace("dining table", "table") for row in told["categories"]}
    lines = []
    for image in chosen:
        shutil.copy(folder / "images" / image["file_name"], tmp_path)
        objects = []
        for row in told["annotations"]:
            x, y, width, height = row["bbox"]
            if row["image_id"] == image["id"] and names[row["category_id"]] in env.vocabulary.categories:
                objects.append({"category": names[row["category_id"]], "box": [
                    max(x, 0), max(y, 0), min(x + width, 640), min(y + height, 480)]})
        lines.append(json.dumps({"image": image["file_name"], "width": 640, "height": 480,
                                 "objects": objects[:2], "relations": []}))
    (tmp_path / "graphs.jsonl").write_text("\n".join(lines))
    run(tmp_path, "synthesize.py", "--env", "dining", "--graphs", "graphs.jsonl", "--compare",
        "--look", "fitted", "--fit-steps", 5, "--out", "set")
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert info["compared"]["objects"] >= 2
    assert 0 < info["fit"]["photometric_after"] < info["fit"]["photometric_before"] <= 0.25
    assert numbers(tmp_path / "set/scenes.jsonl")
