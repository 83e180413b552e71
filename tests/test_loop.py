"""The command-line scripts at toy size: what they write, reproduce and refuse."""
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from math import log as ln
from pathlib import Path

import pytest
import torch
from PIL import Image

import envs
from conftest import ENVIRONMENT, ROOT, run
from sim2sg_lib.training_state import TrainingLog


def fingerprint(folder: Path, *skip: str) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in skip}


def test_the_stages_leave_the_documented_files(toy):
    files = {"cameras.jsonl", "dataset.json", "graphs.jsonl", "images", "scenes.jsonl"}
    assert {p.name for p in (toy / "data/sdr").iterdir()} == files
    assert {p.name for p in (toy / "data/target").iterdir()} == {"train", "val", "test"}
    assert {p.name for p in (toy / "data/1").iterdir()} == files | {"predicted.jsonl"}
    assert {p.name for p in (toy / "runs/1").iterdir()} >= {"model.pt", "config.json", "log.jsonl"}
    info = json.loads((toy / "data/target/test/dataset.json").read_text())
    assert ((info["env"], info["method"], info["count"], info["width"])
            == ("clevr", "target", 4, 160))
    # one synthetic image per target image, lifted with the camera of that image
    assert len((toy / "data/1/graphs.jsonl").read_text().splitlines()) == 10
    target, ours = ([json.loads(line)["t"]
                     for line in (toy / path / "cameras.jsonl").read_text().splitlines()]
                    for path in ("data/target/train", "data/1"))
    assert target == ours


def test_the_log_holds_every_loss_and_what_the_discriminators_do(toy):
    # six steps are fewer than a log entry covers; they are logged at the end of the run
    assert [json.loads(line)["step"]
            for line in (toy / "runs/0/log.jsonl").read_text().splitlines()] == [6]
    run(toy, "train.py", "--source", "data/1", "--target", "data/target/train", "--align",
        "appearance", "--init", "runs/0/model.pt", "--steps", 10, "--out", "runs/logged")
    row = json.loads((toy / "runs/logged/log.jsonl").read_text().splitlines()[0])
    assert set(row) == {"step", "loss_objectness", "loss_rpn_box_reg", "loss_classifier",
                        "loss_box_reg", "loss_relpn", "loss_obj", "loss_rel", "loss_appearance",
                        "accuracy_appearance", "reversal_appearance", "rate", "images_per_s"}


def test_evaluate_scores_and_splits(toy):
    printed = run(toy, "evaluate.py", "--checkpoint", "runs/1/model.pt", "--data",
                  "data/target/test")
    metrics = json.loads((toy / "runs/1/metrics.json").read_text())
    assert ("mAP@0.5" in printed and metrics["images"] == 4
            and set(metrics["ap50"]) == {"cube", "sphere", "cylinder"})
    assert 0 <= metrics["content_gap"]["objects_per_image"] <= 1
    assert (toy / "runs/1/figures/predictions.png").stat().st_size > 10_000
    # without options, the latest run is scored on its own test set; other metrics are not changed
    before = (toy / "runs/1/metrics.json").read_bytes()
    os.utime(toy / "runs/1/model.pt")
    assert "runs/1/model.pt on data/target/test" in run(toy, "evaluate.py", "--split", "hard")
    assert ((toy / "runs/1/metrics.json").read_bytes() == before
            and (toy / "runs/1/metrics_hard.json").exists())


def test_an_unlabeled_folder_gets_predictions_and_no_scores(toy, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (toy / "data/target/test/images").iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    printed = run(toy, "evaluate.py", "--checkpoint", "runs/0/model.pt", "--data", photos, "--out",
                  tmp_path / "out")
    assert ("no scores without labels" in printed
            and "map50" not in json.loads((tmp_path / "out/metrics.json").read_text()))
    rows = [json.loads(line)
            for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(row["image"], row["width"], row["height"])
            for row in rows[:1]] == [("000000.png", 160, 120)]
    # metrics of another data set are not overwritten
    line = run(toy, "evaluate.py", "--checkpoint", "runs/0/model.pt", "--data", "data/target/val",
               "--split", "hard", "--out", tmp_path / "out", code=3)
    assert "holds the metrics of data" in line


def test_the_table_of_a_loop(toy, tmp_path):
    for name, score in (("start", 0.1), ("sdr", 0.2), ("label10", 0.3), ("label2", 0.3),
                        ("appearance1", 0.3), ("full", 0.25)):
        (tmp_path / "loop" / name).mkdir(parents=True)
        source = ["data/sdr"] + (["data/1"] if name not in ("start", "sdr") else [])
        (tmp_path / "loop" / name / "config.json").write_text(
            json.dumps({"env": "clevr", "seconds": 1, "source": source}))
        metrics = {"map50": score, "recall": {"20": score, "50": score, "100": score},
                   "content_gap": None}
        (tmp_path / "loop" / name / "metrics.json").write_text(json.dumps(metrics))
    printed = run(toy, "evaluate.py", "--summary", tmp_path / "loop")
    rows = [line.split("  ")[0] for line in printed.splitlines()]
    assert rows[2:8] == ["SDR, start of the loop", "SDR", "+ label, iteration 2",
                         "+ label, iteration 10", "+ label + appearance, iteration 1",
                         "+ label + appearance + prediction"]
    # of iterations the last one is compared
    lines = [line.split() for line in printed.splitlines() if "mAP@0.5  " in line]
    assert [line[-6:] for line in lines[1:]] == [
        ["mAP@0.5", change, "R@20", change, "R@50", change] for change in ("+0.100", "+0.100", "+0.050")]
    assert "One seed: no verdict" in printed
    with Image.open(tmp_path / "loop/figures/loop.png") as sheet:  # target, SDR and one iteration
        assert sheet.height == 3 * 184
    # without the images the table is still printed, and the old contact sheet is kept
    for folder in ("data/1", "data/sdr"):
        shutil.copytree(toy / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.png"))
    info = json.loads((tmp_path / "data/1/dataset.json").read_text())
    (tmp_path / "data/1/dataset.json").write_text(json.dumps(info | {"target": "gone"}))
    old = (tmp_path / "loop/figures/loop.png").read_bytes()
    assert "One seed" in run(tmp_path, "evaluate.py", "--summary", "loop")
    assert (tmp_path / "loop/figures/loop.png").read_bytes() == old
    (tmp_path / "loop/full/metrics.json").write_text(
        json.dumps({"map50": None, "recall": {"20": None, "50": None}}))
    assert "No labeled test set" in run(toy, "evaluate.py", "--summary", tmp_path / "loop",
                                        "--summary", tmp_path / "loop")


def test_a_graph_file_is_lifted_and_rendered(toy):
    line = {"image": "x.png", "width": 320, "height": 240, "relations": [],
            "objects": [{"category": "cube", "box": [150, 110, 190, 152]}]}
    (toy / "graphs.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"objects": []})
                                      + "\n")
    run(toy, "synthesize.py", "--graphs", "graphs.jsonl", "--num", 4, "--out", "data/x")
    rows = [json.loads(text) for text in (toy / "data/x/graphs.jsonl").read_text().splitlines()]
    assert [len(row["objects"]) for row in rows] == [1, 0, 1, 0]
    box = rows[0]["objects"][0]["box"]
    # rendered at half the graph's size
    assert max(abs(2 * a - b) for a, b in zip(box, [150, 110, 190, 152])) <= 4
    # refinement fits a box that none of CLEVR's three sizes has
    (toy / "graphs.jsonl").write_text(
        json.dumps(line | {"objects": [{"category": "cube", "box": [150, 100, 215, 170]}]}))
    errors = []
    for options in ([], ["--refine"]):
        run(toy, "synthesize.py", "--graphs", "graphs.jsonl", *options, "--preset", "paper",
            "--out", "data/y", "--overwrite")
        box = json.loads((toy / "data/y/graphs.jsonl").read_text())["objects"][0]["box"]
        errors.append(sum(abs(a - b) for a, b in zip(box, [150, 100, 215, 170])))
        assert json.loads((toy / "data/y/dataset.json").read_text())["refine"] == 30 * len(options)
    assert errors[0] > 15 and errors[1] <= 4


def test_a_street_is_lifted_into_lanes_and_rows_of_trees_and_read_back_as_kitti(tmp_path):
    """A car and a row of trees.

    The car is 12 m ahead and 1.9 m to the right, 1.6 m off the middle of its lane; the vegetation
    is 28 m wide, 2 m high and 30 m away.
    """
    line = {"image": "x.png", "width": 1242, "height": 375, "relations": [],
            "objects": [{"category": "car", "box": [675, 200, 765, 275]},
                        {"category": "vegetation", "box": [560, 164, 1233, 212]}]}
    (tmp_path / "graphs.jsonl").write_text(json.dumps(line))
    run(tmp_path, "synthesize.py", "--env", "drive", "--graphs", "graphs.jsonl", "--export",
        "kitti", "--out", "x")
    objects = json.loads((tmp_path / "x/scenes.jsonl").read_text())["objects"]
    (car_x, car_y, _), = [o["position_world"] for o in objects if o["label"] == 0]
    assert 2.6 < car_x < 4.4 and 10 < car_y < 16  # in its lane, whose middle is at 3.5 m
    trees = [o["position_world"][0] for o in objects if o["label"] == 3]
    assert len(trees) >= 3 and max(trees) - min(trees) > 12  # the widest tree is 8.84 m wide
    printed = run(tmp_path, "tests/kitti_lift.py", "x/kitti", "--out", "lifted.png")
    assert "1 frames, 1 cars: median depth error" in printed
    assert Image.open(tmp_path / "lifted.png").width > 2 * 620


@pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is not None,
                    reason="PyTorch3D is installed")
def test_a_missing_pytorch3d_is_one_line(tmp_path):
    line = run(tmp_path, "synthesize.py", "--num", 2, "--renderer", "pytorch3d", "--out", "x",
               code=3)
    assert "--renderer pytorch3d: cannot import it" in line and "INSTALL.md" in line
    assert not (tmp_path / "x").exists()


def test_same_seed_same_bytes(toy, tmp_path):
    for cwd in (tmp_path / "a", tmp_path / "b"):
        cwd.mkdir()
        (cwd / "data").symlink_to(toy / "data")
        run(cwd, "synthesize.py", "--num", 5, "--seed", 3, "--randomize", "strong", "--out",
            "again")
        run(cwd, "train.py", "--source", "data/1", "--target", "data/target/train", "--align",
            "appearance,prediction", "--steps", 3, "--augment", "strong", "--seed", 3,
            "--out", "run")
    assert fingerprint(tmp_path / "a/again") == fingerprint(tmp_path / "b/again")
    a, b = (torch.load(tmp_path / name / "run/model.pt", weights_only=True)["weights"]
            for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    run(tmp_path / "a", "synthesize.py", "--num", 3, "--seed", 3, "--randomize", "strong", "--out",
        "fewer")
    fewer, more = fingerprint(tmp_path / "a/fewer/images"), fingerprint(tmp_path / "a/again/images")
    assert fewer.items() < more.items()  # image i depends only on seed, domain and i


@pytest.fixture
def two_targets(toy, tmp_path):
    """Folders with the same sdr/ and target/, but for garbage in the second one's target labels."""
    folders = []
    for name, garbage in (("clean", False), ("garbage", True)):
        folder = tmp_path / name
        (folder / "target/images").mkdir(parents=True)
        for path in (toy / "data/target/train").rglob("*.*"):
            (folder / "target" / path.relative_to(toy / "data/target/train")).write_bytes(
                path.read_bytes())
        if garbage:
            (folder / "target/graphs.jsonl").write_text("\0garbage")
            (folder / "target/scenes.jsonl").write_text("{}")
        (folder / "sdr").symlink_to(toy / "data/sdr")
        folders.append(folder)
    return folders


def test_target_labels_cannot_influence_training(toy, two_targets):
    """Garbage in target files other than images and cameras does not change any of the weights."""
    weights = []
    for folder in two_targets:
        run(folder, "train.py", "--source", "sdr", "--target", "target", "--align",
            "appearance,prediction", "--steps", 3, "--out", "run")
        run(folder, "synthesize.py", "--checkpoint", toy / "runs/0/model.pt", "--target", "target",
            "--threshold", 0.06, "--num", 10, "--out", "lifted")
        weights.append((torch.load(folder / "run/model.pt", weights_only=True)["weights"],
                        fingerprint(folder / "lifted", "dataset.json")))
    assert all(torch.equal(weights[0][0][k], weights[1][0][k]) for k in weights[0][0])
    assert weights[0][1] == weights[1][1]


def test_target_labels_cannot_influence_the_fit_nor_render_and_compare(toy, two_targets):
    """As above: neither images, labels and scenes, nor the errors and what was relabeled, change."""
    made = []
    for folder in two_targets:
        run(folder, "synthesize.py", "--checkpoint", toy / "runs/0/model.pt", "--target", "target",
            "--threshold", 0.09, "--num", 2, "--look", "fitted", "--fit", "both", "--fit-steps", 3,
            "--refine", 2, "--compare", "--out", "lifted")
        info = json.loads((folder / "lifted/dataset.json").read_text())
        assert info["compared"]["objects"] > 0 and info["fit"]["dropped"] < 2
        made.append((info["compared"], info["fit"], fingerprint(folder / "lifted", "dataset.json")))
    assert "fitted.jsonl" in made[0][2] and made[0] == made[1]


@pytest.mark.parametrize("script, arguments, words", [
    ("synthesize.py", ["--out", "data/sdr"], "data/sdr: is not empty"),
    ("synthesize.py", ["--env", "mars", "--out", "y"], "'mars' is not one of clevr"),
    ("synthesize.py", ["--domain", "mars", "--out", "y"], "'mars' is not one of source, target"),
    ("synthesize.py", ["--domain", "target", "--num", 2, "--out", "y"], "2 images cannot be split"),
    ("synthesize.py", ["--graphs", "graphs.jsonl", "--domain", "target", "--out", "y"],
     "leave it out"),
    ("synthesize.py", ["--refine", "--out", "y"], "--refine is for lifted graphs"),
    ("synthesize.py", ["--threshold", 0, "--out", "y"], "--threshold is for lifted graphs"),
    ("synthesize.py", ["--env", "dining", "--assets", "nowhere", "--out", "y"],
     "nowhere: no such folder"),
    ("synthesize.py", ["--checkpoint", "runs/0/model.pt", "--target", "data/target/train", "--out",
                       "data/target", "--overwrite"],
     "data/target: holds data/target/train, which is read"),
    ("synthesize.py", ["--graphs", "data/sdr/graphs.jsonl", "--out", "data/sdr", "--overwrite"],
     "holds data/sdr/graphs.jsonl"),
    ("train.py", ["--source", "data/1", "--source", "data/sdr", "--out", "data/sdr", "--overwrite"],
     "holds data/sdr, which is"),
    ("train.py", ["--source", "data/sdr", "--init", "runs/0/model.pt", "--out", "runs/0",
                  "--overwrite"], "holds runs/0/model.pt"),
    ("synthesize.py", ["--out", "runs", "--overwrite"], "is neither a data set nor a run"),
    ("synthesize.py", ["--checkpoint", "runs/0/model.pt", "--out", "y"],
     "--checkpoint and --target go together"),
    ("synthesize.py", ["--graphs", "none.jsonl", "--out", "y"], "none.jsonl: no such file"),
    ("synthesize.py",
     ["--checkpoint", "data/sdr/dataset.json", "--target", "data/target/train", "--out", "y"],
     "dataset.json: damaged, or not a checkpoint"),
    ("synthesize.py", ["--checkpoint", "runs/0/model.pt", "--target", "none", "--out", "y"],
     "none: no such folder"),
    ("train.py", ["--source", "none", "--out", "y"], "none/dataset.json: no such file"),
    ("train.py", ["--source", "data/sdr", "--out", "runs/0"], "runs/0: is not empty"),
    ("train.py", ["--source", "data/sdr", "--align", "magic", "--out", "y"],
     "'magic' is not one of appearance, prediction"),
    ("train.py", ["--source", "data/sdr", "--align", "appearance", "--out", "y"],
     "--align needs --target"),
    ("train.py", ["--source", "data/sdr", "--target", "data/target/train", "--out", "y"],
     "--target is used by --align"),
    ("train.py",
     ["--source", "data/sdr", "--init", "runs/0/model.pt", "--backbone", "resnet50", "--out", "y"],
     "leave --backbone, --imagenet and --input out"),
    ("train.py", ["--source", "data/sdr", "--device", "abacus", "--out", "y"],
     "device 'abacus' is not available"),
    ("evaluate.py", ["--checkpoint", "none.pt"], "none.pt: no such file"),
    ("evaluate.py", ["--checkpoint", "runs/0/model.pt", "--data", "runs/0"],
     "no PNG or JPEG image"),
    ("train.py", ["--source", "data/sdr", "--device", "meta", "--out", "y"],
     "device 'meta' is not available"),
    ("evaluate.py",
     ["--checkpoint", "runs/0/model.pt", "--data", "data/target/test", "--out", "runs/0/model.pt"],
     "model.pt: cannot be made a folder"),
    ("evaluate.py", ["--summary", "runs", "--split", "hard"], "takes no other option"),
    ("evaluate.py", ["--summary", "nowhere"], "nowhere: no such folder"),
    ("evaluate.py", ["--summary", "data"],
     "data: no start/, sdr/, label1/, ... with metrics.json in it"),
    ("evaluate.py",
     ["--summary", ROOT / "docs/results/narrow-0", "--summary", ROOT / "docs/results/dining-0"],
     "loops of clevr and dining, expected loops of one environment"),
])
def test_mistakes_get_one_line_and_harm_nothing(toy, script, arguments, words):
    before = fingerprint(toy)
    line = run(toy, script, *arguments, code=3)
    assert line.startswith("Error: ") and words in line
    assert fingerprint(toy) == before


LIFT = ["--checkpoint", "runs/0/model.pt", "--target", "data/target/train"]


@pytest.mark.parametrize("script, arguments, words", [
    ("synthesize.py", [*LIFT, "--look", "painted"], "'--look': 'painted' is not one of 'random', "),
    ("synthesize.py", [*LIFT, "--fit", "all"], "'--fit': 'all' is not one of 'pose', 'look', 'both'"),
    ("synthesize.py", [*LIFT, "--look", "fitted", "--fit-steps", 0], "'--fit-steps': 0 is not in"),
    ("synthesize.py", [*LIFT, "--fit", "look", "--fit-steps", 2.5], "'--fit-steps': '2.5' is not"),
    ("synthesize.py", [*LIFT, "--compare=yes"], "'--compare' does not take a value"),
    ("synthesize.py", ["--loook", "fitted"], "--loook"),
    ("train.py", ["--source", "data/sdr", "--ema", 2], "'--ema': 2.0 is not in the range"),
    ("train.py", ["--source", "data/sdr", "--ema", 1], "'--ema': 1.0 is not in the range"),
    ("train.py", ["--source", "data/sdr", "--newest", 3], "'--newest': 3.0 is not in the range"),
    ("train.py", ["--source", "data/sdr", "--newest", "nan"], "'--newest': nan is not a finite"),
    ("train.py", ["--source", "data/sdr", "--encoder-rate", -1], "'--encoder-rate': -1.0 is not in"),
    ("train.py", ["--source", "data/sdr", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16'"),
    ("train.py", ["--source", "data/sdr", "--augment", "wild"], "'wild' is not one of 'none', "),
    ("train.py", ["--source", "data/sdr", "--backbone", "vgg"], "'vgg' is not one of "),
    ("evaluate.py", ["--checkpoint", "runs/0/model.pt", "--split", "harder"], "'harder' is not one")])
def test_an_option_s_wrong_value_is_one_line_before_any_work(toy, script, arguments, words):
    before = fingerprint(toy)
    line = run(toy, script, *arguments, "--out", "y", code=2)
    assert line.startswith("Error: ") and words in line
    assert fingerprint(toy) == before


@pytest.mark.parametrize("script, arguments", [
    ("synthesize.py", ["--graphs", "data/sdr/graphs.jsonl", "--threshold", "nan"]),
    ("train.py", ["--source", "data/sdr", "--warmup", "nan"]),
    ("evaluate.py", ["predict", "data/target/test", "--threshold", "nan"])])
def test_a_number_is_finite(toy, script, arguments):
    result = subprocess.run([sys.executable, str(ROOT / script), *arguments, "--out", "y"], cwd=toy,
                            text=True, capture_output=True, env=ENVIRONMENT)
    assert (result.returncode == 2 and f"{arguments[-1]} is not a finite number" in result.stderr
            and not (toy / "y").exists())
    assert "Traceback" not in result.stderr


def test_empty_lifted_scenes_are_counted(toy, tmp_path):
    printed = run(toy, "synthesize.py", "--graphs", "data/sdr/graphs.jsonl", "--num", 2, "--out",
                  tmp_path / "some")
    assert "0 of 2 lifted scenes are empty\nIoU of rendered vs. predicted boxes: median " in printed
    printed = run(toy, "synthesize.py", "--checkpoint", "runs/0/model.pt", "--target",
                  "data/target/test", "--threshold", 1, "--num", 4, "--out", tmp_path / "none")
    assert "4 of 4 lifted scenes are empty\n" in printed and "IoU" not in printed
    assert json.loads((tmp_path / "none/dataset.json").read_text())["fit"] is None


def test_the_fit_of_poses_reports_both_errors(toy, tmp_path):
    """Before it: what the same command without it prints."""
    command = ["synthesize.py", "--graphs", "data/sdr/graphs.jsonl", "--out"]
    plain = run(toy, *command, tmp_path / "plain").split("predicted boxes: ")[1].splitlines()[0]
    printed = run(toy, *command, tmp_path / "fitted", "--refine", 8, "--look", "random")
    assert f"predicted boxes before the fit: {plain}\n" in printed
    raw, fit = (json.loads((tmp_path / name / "dataset.json").read_text())["fit"]
                for name in ("plain", "fitted"))
    assert fit.pop("before") == raw and all(0.5 < fit[name] != raw[name] for name in ("p10", "mean"))


def test_other_environments_and_broken_images_are_refused(toy, tmp_path):
    content = torch.load(toy / "runs/0/model.pt", weights_only=True)
    torch.save(content | {"categories": ["cube", "sphere", "cone"]}, tmp_path / "other.pt")
    line = run(toy, "evaluate.py", "--checkpoint", tmp_path / "other.pt", "--data",
               "data/target/test", "--out", tmp_path / "o", code=3)
    assert "trained for clevr (cube, sphere, cone)" in line
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = next((toy / "data/target/train/images").iterdir()).read_bytes()
    (broken / "a.png").write_bytes(whole[:len(whole) // 2])
    line = run(toy, "synthesize.py", "--checkpoint", "runs/0/model.pt", "--target", broken, "--out",
               tmp_path / "z", code=3)
    assert "a.png: truncated or broken image" in line


def test_a_flipped_bit_in_a_checkpoint_is_noticed(toy, tmp_path):
    content = bytearray((toy / "runs/0/model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rotten.pt").write_bytes(content)
    line = run(toy, "evaluate.py", "--checkpoint", tmp_path / "rotten.pt", "--data",
               "data/target/test", code=3)
    assert "rotten.pt: damaged" in line


@pytest.mark.parametrize("options, resolved", [
    (["--preset", "paper", "--scratch", "--backbone", "resnet18", "--steps", 2, "--align",
      "appearance,prediction"],
     {"optimizer": "sgd", "factor": 4.0, "ramp": False, "imagenet": False, "backbone": "resnet18",
      "width": 320}),
    (["--warmup", 0.5, "--steps", 20, "--set", "appearance.factor=0.3", "--set",
      "prediction.factor=0.01", "--align", "prediction,appearance", "--input", "rgb"],
     {"warmup": 0.5, "factor": 0.3, "ramp": True, "lr": 2e-3, "input": "rgb", "width": 160}),
    (["--steps", 9], {"steps": 9, "input": "rgb", "backbone": "efficientnet_lite0", "enlarge": 2}),
    (["--steps", 1, "--scratch"], {"input": "edges", "backbone": "resnet18", "imagenet": False}),
    (["--steps", 1], {"steps": 1})])
def test_every_option_of_training_has_its_effect(toy, tmp_path, options, resolved):
    target = ["--target", "data/target/train"] if "--align" in options else []
    run(toy, "train.py", "--source", "data/sdr", *target, *options, "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {name: (config["schedule"] | config["model"]
                   | config["adaptation"].get("appearance", {}))[name]
            for name in resolved} == resolved
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == config["schedule"]["steps"]
    # with a warm-up of 0.5, the discriminators start in the second half of training
    assert ["loss_appearance" in row
            for row in rows] == ([False, True] if "--warmup" in options else [bool(target)])


def test_training_stops_at_a_loss_that_is_not_finite(toy, tmp_path):
    content = torch.load(toy / "runs/0/model.pt", weights_only=True)
    content["weights"]["graph.predicate_logits.bias"][:] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    line = run(toy, "train.py", "--source", "data/sdr", "--init", tmp_path / "nan.pt", "--out",
               tmp_path / "run", code=1)
    assert "step 0: loss_obj is nan on data/sdr/images/" in line and not (tmp_path / "run").exists()


def test_training_stops_at_a_gradient_that_is_not_finite_and_keeps_the_state_before(toy, tmp_path):
    # the factor is ramped up from 0 at step 0
    arguments = ["--source", "data/sdr", "--target", "data/target/train", "--align", "appearance",
                 "--steps", 4, "--save-every", 1, "--set", "appearance.factor=1e39",
                 "--out", tmp_path / "run"]
    line = run(toy, "train.py", *arguments, code=1)
    assert "step 1: the gradient of the network is " in line and "data/target/train/images/" in line
    state = torch.load(tmp_path / ".run.partial/state.pt", weights_only=True)
    assert state["done"] == 1 and not (tmp_path / "run").exists()
    assert all(value.isfinite().all() for part in ("model", "methods")
               for value in state["parts"][part].values())


def test_a_fourth_environment_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "__path__", [*envs.__path__, str(tmp_path)])
    text = (ROOT / "envs/clevr.py").read_text()
    (tmp_path / "blocks.py").write_text(
        text.replace('name="clevr"', 'name="blocks"').replace('"cylinder"', '"drum"'))
    run(tmp_path, "synthesize.py", "--env", "blocks", "--num", 4, "--out", "a")
    run(tmp_path, "train.py", "--source", "a", "--steps", 1, "--out", "r")
    run(tmp_path, "evaluate.py", "--checkpoint", "r/model.pt", "--data", "a")
    run(tmp_path, "synthesize.py", "--env", "blocks", "--checkpoint", "r/model.pt", "--target", "a",
        "--num", 4, "--out", "b")
    assert (json.loads((tmp_path / "b/dataset.json").read_text())["categories"]
            == ["cube", "sphere", "drum"])
    assert "drum" in json.loads((tmp_path / "r/metrics.json").read_text())["ap50"]


@pytest.mark.parametrize("script", ["synthesize.py", "train.py", "evaluate.py"])
def test_help_needs_no_torch(script):
    code = ("import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: assert end.code == 0\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    result = subprocess.run([sys.executable, "-c", code, str(ROOT / script)], capture_output=True,
                            text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"python {script}") >= 2 and "default" in result.stdout


def test_training_says_once_when_a_discriminator_has_come_apart_or_won(tmp_path, capsys):
    log = TrainingLog(tmp_path / "log.jsonl", 4, 0.0, {"appearance": ln(2), "prediction": ln(2)})
    for step, (appearance, prediction) in enumerate([(0.7, 0.68)] * 10 + [(3.2, 0.6)] * 10
                                                    + [(3.3, 0.01)] * 10):
        log.add(step,
                {"loss_obj": 1.0, "loss_appearance": appearance, "loss_prediction": prediction})
    log.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 20: loss_appearance 3.2,")
    assert first.endswith("try a smaller --set appearance.factor")
    assert second.startswith("step 30: loss_prediction 0.01,")
    assert second.endswith("try a larger --set prediction.factor")
