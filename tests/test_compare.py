"""Render and compare: hand-made fits, renders with known labels, empty boxes, overlaps, occlusion."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import run
from envs.clevr import ENV
from sim2sg_lib.graph import make_graph
from sim2sg_lib.io.images import write_image
from sim2sg_lib.sim.compare import Shapes, compare_folder, distinct_yaws, render_and_compare
from sim2sg_lib.sim.explain import CELLS, cut, gauss_newton, ground_columns, paste, pick_cells, solve
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.sim.sources import RandomScenes

CPU, SIZE = torch.device("cpu"), (160, 120)
CUBE, SPHERE, CYLINDER = range(3)
SHAPES = Shapes.of(ENV)


def rendered(count, domain="target", seed=0, scenes=None):
    """Images (3, H, W) in [0, 1], exact graphs and cameras of random scenes."""
    scenes = scenes or RandomScenes(ENV, domain, "paper", seed).scenes(range(count))
    found = render_scenes(ENV, scenes, [f"{i}.png" for i in range(len(scenes))], SIZE, CPU)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).float() / 255
    return images, found.graphs, [scene.camera for scene in scenes]


def with_labels(graph, labels):
    return replace(graph, labels=np.array(labels, np.int64))


def with_box(graph, box, label=CUBE):
    """The graph with one more object, in a relation with the first one."""
    return make_graph(graph.image, graph.width, graph.height, [*graph.labels, label],
                      [*graph.boxes_px, box], [*graph.relations, (len(graph), 0, 0)])


# --- least squares --------------------------------------------------------------------------------

def test_weighted_least_squares_by_hand():
    """Two cells of a column 1, values 1 and 4, weights 3 and 1: mean 7 / 4. A ridge of 1 halves it."""
    basis, target = torch.ones(1, 1, 2), torch.tensor([[[1.0, 4.0]] * 3])
    weight = torch.tensor([[3.0, 1.0]])
    assert solve(basis, target, weight, torch.zeros(1)).flatten().tolist() == pytest.approx([1.75] * 3, 1e-5)
    halved = solve(basis, target, weight, torch.ones(1)).flatten().tolist()
    assert halved == pytest.approx([0.875] * 3, 1e-5)


def test_colors_of_two_columns_are_found():
    basis = torch.tensor([[[1.0, 1, 0, 0], [0, 1, 1, 1]]])
    colors = torch.tensor([[[0.2, 0.5], [0.7, 0.1], [0.3, 0.9]]])
    found = solve(basis, colors @ basis, torch.ones(1, 4), torch.zeros(2))
    assert torch.allclose(found, colors, atol=1e-5)


def test_one_step_finds_a_small_shift_and_growth():
    """A linear image a x + b y, moved by d and scaled by s about the center, in one step."""
    _, x, y = ground_columns(torch.zeros(1)) * CELLS / 2
    slopes = torch.stack([torch.full((3, CELLS ** 2), v) for v in (0.3, -0.2)])[None]
    slopes[:, :, 1] = torch.tensor([0.1, 0.4])[:, None]
    dx, dy, growth = 0.5, -0.3, 0.02
    residual = -(slopes[:, 0] * (dx + growth * x.flatten()) + slopes[:, 1] * (dy + growth * y.flatten()))
    step = gauss_newton(slopes, residual, torch.full((1, CELLS ** 2), 50.0), torch.zeros(1, 3))
    assert step[0].tolist() == pytest.approx([dx, dy, growth], abs=1e-3)


def test_crops_beyond_the_image_are_cut_and_pasted_back():
    image = torch.arange(12.0).view(1, 3, 4)
    crop = cut(image, np.array([-1, -2]), 1)
    assert crop.shape == (1, CELLS, CELLS) and crop.sum() == image.sum()
    assert crop[0, 2:5, 1:5].equal(image[0])
    assert cut(image, np.array([9, 9]), 1).sum() == 0 and cut(image, np.array([-99, 0]), 1).sum() == 0
    assert cut(image, np.array([0, 0]), 2)[0, 0, 0] == (0 + 1 + 4 + 5) / 4
    canvas = paste(crop[0] + 1, np.array([-1, -2]), 1, torch.zeros(3, 4))
    assert canvas.equal(image[0] + 1)
    picked = pick_cells(image[0], np.array([-1, -2]), 1)
    assert picked[2:5, 1:5].equal(image[0]) and picked[0, 0] == -1


def test_yaws_that_look_the_same_count_once():
    """A quarter turn of a cube and any turn of a sphere or cylinder change nothing."""
    assert len(distinct_yaws("cube", CUBE, ENV)) == 6  # of 24 in a turn
    assert len(distinct_yaws("sphere", SPHERE, ENV)) == len(distinct_yaws("cylinder", CYLINDER, ENV)) == 1


# --- categories -----------------------------------------------------------------------------------

@pytest.mark.parametrize("domain", ["source", "target"])
def test_true_boxes_of_our_own_renders_get_their_categories_back(domain):
    """All boxes start as the next category; at most one of about 20 objects may stay wrong."""
    images, graphs, cameras = rendered(6, domain)
    wrong = 0
    for image, graph, camera in zip(images, graphs, cameras):
        found, report = render_and_compare(with_labels(graph, (graph.labels + 1) % 3), image, camera,
                                           ENV, SHAPES)
        assert len(found) == len(graph) and report.dropped == 0
        assert found.relations.tolist() == graph.relations.tolist()
        assert not isinstance(found.labels, torch.Tensor) and (found.boxes_px == graph.boxes_px).all()
        wrong += int((found.labels != graph.labels).sum())
        assert report.relabeled == int((found.labels != (graph.labels + 1) % 3).sum())
    assert wrong <= 1


def test_scores_are_not_looked_at():
    images, graphs, cameras = rendered(1)
    sure = replace(graphs[0], labels=(graphs[0].labels + 1) % 3)
    unsure = replace(sure, scores=np.full(len(sure), 0.01))
    first, second = (render_and_compare(g, images[0], cameras[0], ENV, SHAPES)[0] for g in (sure, unsure))
    assert first.labels.tolist() == second.labels.tolist() == graphs[0].labels.tolist()


def test_relations_that_new_categories_exclude_are_left_out():
    """Only pairs with a sphere may have relations."""
    images, graphs, cameras = rendered(4)
    rules = replace(ENV.world.rules, required_category=SPHERE)
    env = replace(ENV, world=replace(ENV.world, rules=rules))
    for image, graph, camera in zip(images, graphs, cameras):
        found, _ = render_and_compare(with_labels(graph, [SPHERE] * len(graph)), image, camera, env, SHAPES)
        expected = [row for row in graph.relations.tolist() if SPHERE in found.labels[[row[0], row[2]]]]
        assert found.relations.tolist() == expected


# --- which boxes are kept -------------------------------------------------------------------------

def test_a_box_of_bare_ground_is_dropped_with_its_relations():
    images, graphs, cameras = rendered(4)
    for image, graph, camera in zip(images, graphs, cameras):
        free = next(box for box in np.array([[5.0, 90, 30, 115], [125, 90, 150, 115], [65, 95, 90, 118]])
                    if all(box[2] < b[0] - 9 or b[2] + 9 < box[0] or b[3] + 9 < box[1]
                           for b in graph.boxes_px))
        found, report = render_and_compare(with_box(graph, free), image, camera, ENV, SHAPES)
        assert report.dropped == 1 and found.boxes_px.tolist() == graph.boxes_px.tolist()
        assert found.relations.tolist() == graph.relations.tolist()


def test_of_two_boxes_on_one_object_the_better_one_is_kept():
    images, graphs, cameras = rendered(6)
    for image, graph, camera in zip(images, graphs, cameras):
        shifted = graph.boxes_px[0] - [3, 0, 3, 4]
        found, report = render_and_compare(with_box(graph, shifted, SPHERE), image, camera, ENV, SHAPES)
        assert report.dropped == 1 and len(found) == len(graph)


def test_an_object_mostly_hidden_is_kept():
    """A cylinder of which a nearer cube leaves less than half."""
    scene = RandomScenes(ENV, "target", "paper", 0).scenes(range(1))[0]
    material = scene.objects[0].material
    eye = scene.camera.position_world
    direction = -eye[:2] / np.linalg.norm(eye[:2])
    side = np.array([direction[1], -direction[0]])
    front, back = direction * -0.5, direction * 0.75 + side * 0.25
    objects = (replace(scene.objects[0], label=CUBE, asset="cube", size_m=(0.99,) * 3,
                       position_world=(*map(float, front), 0.0)),
               replace(scene.objects[0], label=CYLINDER, asset="cylinder", size_m=(1.0,) * 3,
                       position_world=(*map(float, back), 0.0),
                       material=replace(material, color=(0.7, 0.6, 0.2))))
    images, graphs, cameras = rendered(1, scenes=[replace(scene, objects=objects)])
    assert len(graphs[0]) == 2 and 0.1 < graphs[0].visible[1] < 0.5
    found, report = render_and_compare(graphs[0], images[0], cameras[0], ENV, SHAPES)
    assert report.dropped == 0 and len(found) == 2


@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_images_of_something_else_end_without_an_object(kind):
    noise = torch.rand(3, *SIZE[::-1], generator=torch.Generator().manual_seed(0))
    image = {"black": noise * 0, "white": noise * 0 + 1, "noise": noise}[kind]
    boxes = [[10, 10, 40, 40], [100.0, 60, 130, 100]]
    graph = make_graph("a.png", *SIZE, [0, 1], boxes, [(0, 0, 1)])
    found, report = render_and_compare(graph, image, ENV.world.camera, ENV, SHAPES)
    assert report.objects == 2 and len(found) + report.dropped == 2
    assert kind == "noise" or len(found) == 0


def test_what_cannot_be_judged_stays():
    """No box; thin boxes, boxes outside the image, ignore regions and ignored objects."""
    image, camera = torch.rand(3, *SIZE[::-1], generator=torch.Generator().manual_seed(0)), ENV.world.camera
    empty = make_graph("a.png", *SIZE, [], [])
    assert len(render_and_compare(empty, image, camera, ENV, SHAPES)[0]) == 0
    boxes = [[5, 5, 5.2, 30], [200.0, 10, 230, 40], [10, 10, 40, 40], [60, 10, 90, 40]]
    graph = make_graph("a.png", *SIZE, [0, 1, 2, 0], boxes, ignore=[0, 0, 1, 0], visible=[1, 1, 1, 0])
    found, report = render_and_compare(graph, image, camera, ENV, SHAPES)
    assert report.objects == 0 and found.labels.tolist() == [0, 1, 2, 0]


# --- folders --------------------------------------------------------------------------------------

def test_a_folder_is_one_image_after_the_other_and_continues(tmp_path, one_thread):
    images, graphs, cameras = rendered(3)
    graphs = [with_labels(graph, (graph.labels + 1) % 3) for graph in graphs]
    paths = [tmp_path / graph.image for graph in graphs]
    for path, image in zip(paths, images):
        write_image(path, (image * 255).round().byte().permute(1, 2, 0).numpy())
    together, report = compare_folder(graphs, paths, cameras, ENV, CPU, tmp_path / "a.jsonl")
    alone = [render_and_compare(g, i, c, ENV)[0] for g, i, c in zip(graphs, images, cameras)]
    assert [g.labels.tolist() for g in together] == [g.labels.tolist() for g in alone]
    assert report.objects == sum(map(len, graphs))
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_bytes(lines[0] + lines[1][:20])  # killed in the second line
    again, same = compare_folder(graphs, paths, cameras, ENV, CPU, tmp_path / "b.jsonl")
    assert same == report and (tmp_path / "b.jsonl").read_bytes() == b"".join(lines)
    assert len(compare_folder(graphs, paths[:1], cameras, ENV, CPU, tmp_path / "c.jsonl")[0]) == 3


def test_on_the_command_line(tmp_path):
    run(tmp_path, "synthesize.py", "--domain", "target", "--num", 4, "--out", "t")
    run(tmp_path, "synthesize.py", "--graphs", "t/train/graphs.jsonl", "--compare", "--out", "lifted")
    assert '"compared": {' in (tmp_path / "lifted/dataset.json").read_text()
    assert not (tmp_path / "lifted/comparing.jsonl").exists()
    message = run(tmp_path, "synthesize.py", "--compare", "--num", 2, "--out", "x", code=3)
    assert "--compare is for lifted graphs" in message
