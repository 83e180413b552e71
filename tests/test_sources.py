"""Scene sources: what a scene depends on, what is lifted, numbers of images, a 2-D environment."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
from conftest import run
from envs.clevr import ENV
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import make_graph
from sim2sg_lib.sim.chunks import cut_into_chunks, in_parallel
from sim2sg_lib.sim.sources import LiftedScenes, RandomScenes

CUBE = {"category": "cube", "box": [150, 110, 190, 152]}
CPU = torch.device("cpu")


def graph(*boxes):
    return make_graph("x.png", 320, 240, [0] * len(boxes), np.array(boxes, float).reshape(-1, 4))


def lifted(graphs, seed=0, fit_steps=0):
    return LiftedScenes(ENV, graphs, [ENV.world.camera] * len(graphs), "strong", fit_steps, seed,
                        CPU)


# --- random scenes --------------------------------------------------------------------------------

def test_scene_i_depends_on_the_seed_and_on_i_alone():
    source = RandomScenes(ENV, "source", "paper", 3)
    scenes = source.scenes(range(6))
    for first, last in ((4, 6), (2, 3)):
        again = source.scenes(range(first, last))
        assert [scene.to_json() for scene in again] == [scene.to_json()
                                                        for scene in scenes[first:last]]
    assert len({scene.objects for scene in scenes}) == 6
    assert scenes[0].objects != RandomScenes(ENV, "source", "paper", 4).scenes(range(1))[0].objects
    # the scenes of another domain have other layouts
    other = RandomScenes(ENV, "target-appearance", "paper", 3)
    assert [o.position_world for o in other.scenes(range(1))[0].objects] != [
        o.position_world for o in scenes[0].objects]


def test_a_target_is_split_in_order_and_a_source_is_not():
    assert RandomScenes(ENV, "source", "paper", 0).splits(10) == {".": range(10)}
    target = RandomScenes(ENV, "target", "paper", 0)
    assert target.splits(16) == {"train": range(10), "val": range(10, 12), "test": range(12, 16)}
    assert target.splits(3) == {"train": range(1), "val": range(1, 2), "test": range(2, 3)}
    assert (target.method, RandomScenes(ENV, "source", "paper", 0).method) == ("target", "sdr")


# --- lifted scenes --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["clevr", "dining", "drive"])
def test_networks_are_scored_on_200_images_by_default(name):
    env = envs.find(name)
    splits = RandomScenes(env, "target", "paper", 0).splits(env.presets["quick"].target_images)
    assert len(splits["test"]) == 200


def test_graphs_take_turns_and_each_scene_has_its_own_look():
    one, none = graph(CUBE["box"]), graph()
    scenes = lifted([one, none]).scenes(range(4))
    assert [len(scene.objects) for scene in scenes] == [1, 0, 1, 0]
    assert scenes[0].objects[0].material != scenes[2].objects[0].material
    assert scenes[2].objects == lifted([one, none]).scenes(range(2, 4))[0].objects
    assert lifted([one]).splits(4) == {".": range(4)}


def test_the_fit_is_the_same_alone_and_in_a_batch():
    graphs = [graph([150, 100, 215, 170]), graph([60, 80, 100, 120], [200, 90, 230, 120])]
    together = lifted(graphs, fit_steps=3).scenes(range(2))
    alone = lifted(graphs, fit_steps=3).scenes(range(1, 2))
    for a, b in zip(together[1].objects, alone[0].objects):
        np.testing.assert_allclose(a.position_world, b.position_world, atol=1e-4)
        np.testing.assert_allclose(a.size_m, b.size_m, atol=1e-4)


def fingerprint(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.suffix in (".png", ".jsonl")}


def test_images_do_not_depend_on_the_number_of_threads(tmp_path):
    (tmp_path / "graphs.jsonl").write_text(json.dumps(
        {"image": "x.png", "width": 320, "height": 240, "relations": [],
         "objects": [CUBE, {"category": "sphere", "box": [60, 80, 100, 120]}]}) + "\n")
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            run(tmp_path, "synthesize.py", "--graphs", "graphs.jsonl", "--refine", 3, "--randomize",
                "strong", "--num", 20, "--out", f"set{count}")
            made.append(fingerprint(tmp_path / f"set{count}"))
    finally:
        torch.set_num_threads(threads)
    assert len(made[0]) == 20 + 4 and made[0] == made[1]


def test_regions_to_ignore_and_ignored_objects_are_not_lifted(tmp_path):
    (tmp_path / "graphs.jsonl").write_text(json.dumps(
        {"image": "x.png", "width": 320, "height": 240, "relations": [],
         "objects": [CUBE, {"category": "sphere", "box": [60, 80, 100, 120], "ignore": True},
                     {"category": "cylinder", "box": [200, 80, 240, 130], "visible": 0.0}]}) + "\n")
    printed = run(tmp_path, "synthesize.py", "--graphs", "graphs.jsonl", "--out", "set")
    objects = json.loads((tmp_path / "set/scenes.jsonl").read_text())["objects"]
    assert [ENV.vocabulary.categories[o["label"]] for o in objects] == ["cube"]
    assert "0 of 1 lifted scenes are empty" in printed


# --- numbers of images, and their records ---------------------------------------------------------

def test_the_preset_says_how_many_images(tmp_path, monkeypatch, toy):
    """With 5 source, 7 target and 3 lifted images; a file of graphs gives one image per graph."""
    from dataclasses import replace
    quick = replace(ENV.presets["quick"], source_images=5, target_images=7, lifted_images=3)
    monkeypatch.setattr(envs, "find", lambda name, where="": replace(ENV, presets={"quick": quick}))
    counts = {}
    for name, options in (("source", []), ("target", ["--domain", "target"]),
                          ("lifted", ["--checkpoint", toy / "runs/0/model.pt", "--target",
                                      toy / "data/target/train"]),
                          ("graphs", ["--graphs", toy / "data/target/test/graphs.jsonl"])):
        run(tmp_path, "synthesize.py", *options, "--out", name)
        counts[name] = sum(1 for _ in (tmp_path / name).rglob("*.png"))
    assert counts == {"source": 5, "target": 7, "lifted": 3, "graphs": 4}


def test_records_name_their_inputs_absolutely(toy, tmp_path):
    run(toy, "synthesize.py", "--checkpoint", "runs/0/model.pt", "--target",
        "data/../data/target/val", "--num", 1, "--out", tmp_path / "set")
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert (info["graphs"], info["target"]) == (str(toy / "runs/0/model.pt"),
                                                str(toy / "data/target/val"))
    assert info["assets"] is None


def test_a_run_finds_its_source_from_every_working_directory(toy, tmp_path):
    """The run lies in another tree, where another data set has the same relative path."""
    for folder, num, seed in (("here/data/sdr", 3, 0), ("there/data/sdr", 2, 9)):
        domain = ["--domain", "target-content"] if folder.startswith("there") else []
        run(tmp_path, "synthesize.py", *domain, "--num", num + 1, "--seed", seed, "--out", folder)
    here = tmp_path / "here"
    run(here, "train.py", "--source", "data/sdr", "--steps", 1, "--out", "../there/run")
    config = json.loads((tmp_path / "there/run/config.json").read_text())
    assert config["source"] == ["../../here/data/sdr"]
    gaps = set()
    for number, cwd in enumerate((here, tmp_path / "there/run", Path("/"))):
        run(cwd, "evaluate.py", "--checkpoint", tmp_path / "there/run/model.pt", "--data",
            toy / "data/target/test", "--out", tmp_path / f"out{number}")
        metrics = json.loads((tmp_path / f"out{number}/metrics.json").read_text())
        gaps.add(json.dumps(metrics["content_gap"]))
    assert len(gaps) == 1 and json.loads(gaps.pop())["objects_per_image"] == 1.0


def test_chunks_fit_in_memory_and_results_come_in_order():
    assert cut_into_chunks(range(3, 21), (320, 240)) == [range(3, 19), range(19, 21)]
    # an image that is too large for a chunk is rendered alone
    assert cut_into_chunks(range(2), (5000, 4000)) == [range(0, 1), range(1, 2)]
    assert list(in_parallel(len, cut_into_chunks(range(40), (160, 120)), CPU)) == [16, 16, 8]
    assert set(in_parallel(lambda chunk: torch.get_num_threads(), [range(1)] * 4, CPU)) == {1}


# --- a 2-D environment ----------------------------------------------------------------------------

SPRITES = '''
"""Two bright rectangles beside each other."""
from dataclasses import asdict, dataclass

import numpy as np

from sim2sg_lib.env import Env, Preset, Rendered
from sim2sg_lib.graph import Vocabulary, make_graph


@dataclass(frozen=True)
class Sprites:
    boxes_px: tuple
    labels: tuple
    shade: int

    def to_json(self):
        return asdict(self)


def sample(env, domain, randomize, rng):
    corners = (int(rng.integers(2, 18)), 5), (int(rng.integers(34, 50)), 30)
    boxes = tuple((x, y, x + 12, y + 9) for x, y in corners)
    return Sprites(boxes, tuple(map(int, rng.integers(2, size=2))), 250 if domain == "source" else 150)


def render(env, scenes, names, size, device, renderer):
    width, height = size
    images, graphs = np.zeros((len(scenes), height, width, 3), np.uint8), []
    for image, scene, name in zip(images, scenes, names):
        for (x0, y0, x1, y1), label in zip(scene.boxes_px, scene.labels):
            image[y0:y1, x0:x1, label] = scene.shade
        graphs.append(make_graph(name, width, height, scene.labels, scene.boxes_px, [(0, 0, 1), (1, 1, 0)]))
    return Rendered(images, graphs, [[0, 1]] * len(scenes))


PRESET = Preset(image_size=(64, 48), source_images=6, target_images=8, lifted_images=4,
                start_steps=2, steps=2, iterations=1, warmup=0.0)
ENV = Env("sprites", Vocabulary(("red", "green"), ("left", "right")), {"quick": PRESET, "paper": PRESET},
          {"source": ("source", "source"), "target": ("target", "target")}, 0.5, False, sample, render)
'''


@pytest.fixture
def sprites(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "__path__", [*envs.__path__, str(tmp_path)])
    (tmp_path / "sprites.py").write_text(SPRITES)


def test_a_2d_environment_is_synthesized_trained_on_and_predicted(sprites, tmp_path):
    run(tmp_path, "synthesize.py", "--env", "sprites", "--out", "sdr")
    run(tmp_path, "synthesize.py", "--env", "sprites", "--domain", "target", "--export", "coco",
        "--out", "target")
    assert {path.name for path in (tmp_path / "sdr").iterdir()} == {"dataset.json", "graphs.jsonl",
                                                                    "images", "scenes.jsonl"}
    rows = [json.loads(line) for line in (tmp_path / "sdr/graphs.jsonl").read_text().splitlines()]
    scenes = [json.loads(line) for line in (tmp_path / "sdr/scenes.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and [[o["box"] for o in row["objects"]]
                               for row in rows] == [scene["boxes_px"] for scene in scenes]
    assert (tmp_path / "target/test/coco/annotations.json").exists()
    run(tmp_path, "train.py", "--source", "sdr", "--target", "target/train", "--align",
        "appearance", "--steps", 1, "--out", "run")
    run(tmp_path, "evaluate.py", "--checkpoint", "run/model.pt", "--data", "target/test", "--out",
        "scores")
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert metrics["images"] == 2 and set(metrics["ap50"]) == {"red", "green"}
    printed = run(tmp_path, "synthesize.py", "--env", "sprites", "--preview", "--num", 3, "--out",
                  "look")
    assert "3 samples" in printed


@pytest.mark.parametrize("options", [
    ["--graphs", "sdr/graphs.jsonl"], ["--checkpoint", "m.pt", "--target", "t"], ["--assets", "a"],
    ["--export", "kitti"]])
def test_a_2d_environment_refuses_what_needs_a_3d_world(sprites, tmp_path, options):
    line = run(tmp_path, "synthesize.py", "--env", "sprites", *options, "--out", "x", code=3)
    assert "--env sprites has no 3-D world" in line and not (tmp_path / "x").exists()


def test_an_environment_in_a_file_of_another_name_is_refused(sprites, tmp_path):
    (tmp_path / "spirits.py").write_text(SPRITES)
    with pytest.raises(InputError,
                       match="^envs/spirits.py: ENV: name: 'sprites', expected 'spirits'$"):
        envs.find("spirits")
