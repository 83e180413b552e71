"""CLEVR domains against the numbers of the appendix, and labels of scenes with known answers."""
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from conftest import run
from envs import clevr
from envs.clevr import ENV
from sim2sg_lib.camera import look_at
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky, predicate_axes
from sim2sg_lib.cli import InputError
from sim2sg_lib.score.metrics import evaluate_graphs

# blue, green, magenta, yellow
SOURCE_RGB = {(42, 75, 215), (29, 125, 20), (210, 40, 180), (255, 238, 51)}
TARGET_RGB = {(242, 130, 160), (129, 74, 25), (235, 235, 235)}               # pink, brown, white


def draw(domain, count=60, randomize="paper"):
    rng = np.random.default_rng(5)
    scenes = []
    for _ in range(count):
        objects, camera = ENV.world.sample_layout(ENV, domain, rng)
        scenes.append(ENV.world.sample_appearance(objects, camera, domain, randomize, rng))
    return scenes


def smallest_gap(scene):
    """The smallest distance in meters between two objects along left-right or front-behind."""
    axes = predicate_axes(scene.camera)
    positions = np.array([o.position_world for o in scene.objects])
    return min(abs((positions[i] - positions[j]) @ axes[name]) for name in ("right", "behind")
               for i in range(len(positions)) for j in range(i))


@pytest.mark.parametrize("domain, counts, margins_m, palette, metallic, stylized", [
    ("source", {4}, (0.3, 0.8), SOURCE_RGB, 1.0, False),
    ("target", {2, 3}, (0.8, 9.0), TARGET_RGB, 0.0, True),
    ("target-content", {2, 3}, (0.8, 9.0), SOURCE_RGB, 1.0, False),
    ("target-appearance", {4}, (0.3, 0.8), TARGET_RGB, 0.0, True),
    ("crowd", set(range(3, 11)), (0.4, 0.5), TARGET_RGB, 0.0, True)])
def test_domains_match_the_appendix(domain, counts, margins_m, palette, metallic, stylized):
    scenes = draw(domain)
    assert {len(scene.objects) for scene in scenes} == counts
    gaps = [smallest_gap(scene) for scene in scenes]
    assert min(gaps) >= margins_m[0] and np.median(gaps) <= margins_m[1]
    things = [o for scene in scenes for o in scene.objects]
    assert {tuple(round(255 * v ** (1 / 2.2)) for v in o.material.color) for o in things} == palette
    assert {o.material.metallic for o in things} == {metallic}
    assert {scene.style_seed is not None for scene in scenes} == {stylized}
    assert {ENV.vocabulary.categories[o.label] for o in things} == {"cube", "sphere", "cylinder"}


def test_objects_of_a_crowd_are_apart_and_visible():
    """Official CLEVR's rules, pair by pair and in the labels of images of 320x240."""
    scenes = draw("crowd", 12)
    for scene in scenes:
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:
                # a cube is scaled by 1 / sqrt 2
                radii_m = sum(o.size_m[0] / 2 * (2**0.5 if o.asset == "cube" else 1) for o in (a, b))
                assert math.dist(a.position_world, b.position_world) >= radii_m + 0.25 - 1e-9
    strict = replace(ENV, world=replace(ENV.world, min_visible_fraction=180 / (320 * 240)))
    graphs = render_scenes(strict, scenes, ["x.png"] * 12, (320, 240), "cpu").graphs
    assert [len(graph) for graph in graphs] == [len(scene.objects) for scene in scenes]


@pytest.mark.parametrize("domain, ceilings", [
    ("target", (1.0, 1.0, 1.0)), ("target-content", (1.0, 1.0, 1.0)),  # 4 or 12 relations
    ("source", (20 / 24, 1.0, 1.0)), ("target-appearance", (20 / 24, 1.0, 1.0))])
def test_recall_that_a_perfect_prediction_reaches(domain, ceilings):
    """R@20, 50 and 100. The pairs of Table 4 can reach 1 with the target's content on both sides."""
    names = [f"{i}.png" for i in range(8)]
    graphs = render_scenes(ENV, draw(domain, 8), names, (160, 120), "cpu").graphs
    scores = evaluate_graphs(graphs, graphs, ENV.vocabulary)
    assert [scores["recall"][str(k)] for k in (20, 50, 100)] == pytest.approx(ceilings)


def test_a_source_with_the_target_s_content(tmp_path):
    """`--unsplit`: any number of images, no splits, the source's look, strongly randomized or not."""
    command = ("synthesize.py", "--domain", "target-content", "--unsplit", "--num", 2)
    run(tmp_path, *command, "--out", "plain")
    run(tmp_path, *command, "--randomize", "strong", "--out", "strong")
    for folder, metals in (("plain", {1.0}), ("strong", None)):
        assert sorted(path.name for path in (tmp_path / folder / "images").iterdir()) == [
            "000000.png", "000001.png"]
        assert not (tmp_path / folder / "train").exists()
        lines = (tmp_path / folder / "scenes.jsonl").read_text().splitlines()
        objects = [json.loads(line)["objects"] for line in lines]
        assert {len(row) for row in objects} <= {2, 3}
        found = {o["material"]["metallic"] for row in objects for o in row}
        assert found == metals if metals else len(found) > 2
    complaint = run(tmp_path, "synthesize.py", "--graphs", "x.jsonl", "--unsplit", "--out", "y",
                    code=3)
    assert "--unsplit is for random scenes" in complaint


def test_sizes_match_clevr():
    widths = {name: {round(o.size_m[0], 4) for scene in draw("source") for o in scene.objects
                     if o.asset == name} for name in ENV.vocabulary.categories}
    assert widths["sphere"] == widths["cylinder"] == {0.7, 1.0, 1.4}
    assert widths["cube"] == {0.495, 0.7071, 0.9899}  # scaled by 1 / sqrt 2


def test_camera_and_lamps_are_jittered():
    scenes = draw("source")
    eyes = np.array([scene.camera.position_world for scene in scenes])
    assert (abs(eyes - [7.48, -6.51, 5.34]) <= 0.5).all() and (eyes.std(0) > 0.2).all()
    lamps = np.array([[lamp.position_world for lamp in scene.lights] for scene in scenes])
    assert lamps.shape[1] == 3 and (lamps.std(0) > 0.4).all()


def test_strong_randomizes_everything_that_no_graph_holds_and_nothing_else():
    plain, strong = draw("source"), draw("source", randomize="strong")
    assert {o.material.metallic for scene in plain for o in scene.objects} == {1.0}
    assert len({o.material.metallic for scene in strong for o in scene.objects}) > 100
    for value in (lambda s: s.exposure, lambda s: s.ground.color, lambda s: s.ground.texture,
                  lambda s: s.sky, lambda s: s.lights[0].intensity):
        assert len({value(scene) for scene in plain}) == 1 and len({value(scene)
                                                                    for scene in strong}) > 50
    assert {len(scene.objects) for scene in strong} == {4}
    # the appearance of the target domain is fixed
    assert {o.material.metallic for scene in draw("target", randomize="strong")
            for o in scene.objects} == {0.0}


def test_a_copied_environment_needs_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "__path__", [*envs.__path__, str(tmp_path)])
    text = Path(clevr.__file__).read_text()
    (tmp_path / "mars.py").write_text(text)
    (tmp_path / "venus.py").write_text(text.replace('name="clevr"', 'name="venus"'))
    with pytest.raises(InputError, match="^envs/mars.py: ENV: name: 'clevr', expected 'mars'$"):
        envs.find("mars")
    assert envs.find("venus").name == "venus" and envs.find("clevr") is ENV


def label(*things):
    """Label 1 m boxes at (x, y), seen horizontally from -y in an image of 100 x 100 pixels."""
    camera = look_at((0, -10, 0.5), (0, 0, 0.5), 150, 100, 100)
    objects = tuple(SceneObject(0, "cube", (x, y, 0.0), (1.0, 1.0, 1.0), 0.0) for x, y in things)
    scene = Scene(objects, camera, (), Sky((1.0,) * 3, (1.0,) * 3), Material((0.5,) * 3))
    return render_scenes(ENV, [scene], ["x.png"], (100, 100), "cpu").graphs[0]


def test_visible_fraction_of_an_occluded_object():
    alone = label((0.0, 2.0))
    assert alone.visible.tolist() == [1.0]
    half = label((0.0, 2.0), (0.5, -1.0))  # the nearer box hides the right half of the farther one
    assert half.visible.tolist() == pytest.approx([0.5, 1.0], abs=0.05)
    # its 2-D box covers only the visible part
    assert half.boxes_px[0].tolist() == [*alone.boxes_px[0, :2], 50, alone.boxes_px[0, 3]]
    # an object directly behind another is not in the graph and has no relations
    assert len(label((0.0, 2.0), (0.0, -2.0))) == 1 and len(label((0.0, 2.0),
                                                                  (0.0, -2.0)).relations) == 0


def test_truncated_fraction_of_an_object_at_the_border():
    inside, cut = label((0.0, 0.0)), label((3.2, 0.0))
    assert inside.truncated.tolist() == [0.0]
    width = inside.boxes_px[0, 2] - inside.boxes_px[0, 0]
    shown = cut.boxes_px[0, 2] - cut.boxes_px[0, 0]
    assert cut.boxes_px[0, 2] == 100
    # seen obliquely, its 2-D box is wider than from the front by the side that faces the camera
    assert 1 - shown / width < cut.truncated[0] < 1 - shown / (width * 1.4)
