"""Refinement by gradient: known displacements, boxes of known scenes, values by hand."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.clevr import ENV
from sim2sg_lib.sim import fit
from sim2sg_lib.camera import stack_cameras
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.sim.meshes import Poses, build, object_poses, place
from sim2sg_lib.sim.rasterizer import rasterize
from sim2sg_lib.sim.fit import box_errors, neighbors, prior, refine, visible_coverage
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.sim.soft import object_numbers
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky

BLACK = Sky((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
CUBE, SPHERE, CYLINDER = range(3)


def thing(label, x, y, size, yaw_rad=0.0):
    return SceneObject(label, ENV.world.category_assets[label][0], (x, y, 0.0), (size,) * 3,
                       yaw_rad)


def bare(rows):
    return [Scene(tuple(row), ENV.world.camera, (), BLACK, Material()) for row in rows]


def boxes_of(rows, size=(320, 240)) -> list[SceneGraph]:
    """Scene graphs rendered from each row of objects."""
    names = [f"{i}.png" for i in range(len(rows))]
    return render_scenes(ENV, bare(rows), names, size, torch.device("cpu")).graphs


def iou(a, b):
    inter = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def test_objects_that_were_pushed_find_back_to_their_boxes():
    """Three scenes of three objects, one partly hidden; off by up to 0.2 m and 15 % in size."""
    rng = np.random.default_rng(0)
    true = [
        [thing(CUBE, -1.0, 1.5, 1.0, 0.3), thing(SPHERE, 1.0, -1.0, 1.4),
         thing(CYLINDER, 1.2, 1.6, 0.7)],
        [thing(SPHERE, -0.4, 1.2, 1.0), thing(CYLINDER, 0.2, -0.2, 1.4),
         thing(SPHERE, 2.0, 2.0, 1.0)],
        [thing(CYLINDER, 0.0, -2.0, 1.0), thing(CUBE, -2.0, 0.5, 0.5), thing(CUBE, 1.5, 1.0, 1.0)],
    ]

    def push(o):
        x, y, z = o.position_world
        dx, dy = rng.uniform(-0.2, 0.2, 2)
        return replace(
            o, position_world=(x + dx, y + dy, z),
            size_m=(o.size_m[0] * rng.uniform(0.85, 1.15),) * 3
        )

    graphs = boxes_of(true)
    assert min(graph.visible.min() for graph in graphs) < 0.9  # at least one is partly hidden
    pushed = [[push(o) for o in row] for row in true]
    want = np.concatenate([graph.boxes_px for graph in graphs])
    before = iou(np.concatenate([g.boxes_px for g in boxes_of(pushed)]), want)
    after = iou(np.concatenate([g.boxes_px for g in boxes_of(
        refine(pushed, graphs, [ENV.world.camera] * 3, ENV.world.assets, 30))]), want)
    assert np.median(before) < 0.8 and np.median(after) > 0.9 and (after > before).all()


def test_positions_are_found_again_within_2_percent_of_the_size():
    """In the median: boxes say little about depth. One object per scene, 0.1 m off to all sides."""
    true = 2 * [[thing(*row, yaw_rad=0.3)] for row in (
        (CUBE, -1.0, 1.5, 1.0), (SPHERE, 1.0, -1.0, 1.4), (CYLINDER, 1.2, 1.6, 0.7),
        (SPHERE, -0.4, 1.2, 1.0), (CYLINDER, 0.2, -0.2, 1.4), (CUBE, 1.5, 1.0, 1.4))]
    graphs, cameras = boxes_of(true, (640, 480)), [ENV.world.camera] * len(true)
    boxes = torch.from_numpy(np.concatenate([g.resized(120, 90).boxes_px for g in graphs])).float()
    pushed = [[replace(row[0], position_world=(
        row[0].position_world[0] + 0.1 * np.cos(1.7 * i),
        row[0].position_world[1] + 0.1 * np.sin(1.7 * i), 0.0))] for i, row in enumerate(true)]

    def off(rows):
        """Distances from the true positions over the sizes (N,), and the errors of the boxes (N,)."""
        gaps_m = [np.subtract(a.position_world, b.position_world) for (a,), (b,) in zip(rows, true)]
        meshes = build(bare(rows), ENV.world.assets)
        shown = visible_coverage(meshes, stack_cameras(cameras, 120, 90))
        errors = box_errors(shown, meshes.object_scene, boxes)
        return np.linalg.norm(gaps_m, axis=1) / [row[0].size_m[0] for row in true], errors.numpy()

    found = refine(pushed, graphs, cameras, ENV.world.assets, 100)
    (before, error_before), (after, error_after) = off(pushed), off(found)
    assert before.min() > 0.07 and np.median(after) < 0.02 and after.max() < 0.05
    assert error_after.mean() < 0.1 * error_before.mean()


def test_a_scene_that_fits_stays_and_no_object_is_no_crash():
    row = [thing(CUBE, -1.0, 1.0, 1.0), thing(SPHERE, 1.0, -1.0, 1.4)]
    graph = boxes_of([row])[0]
    (same,) = refine([row], [graph], [ENV.world.camera], ENV.world.assets, 0)
    assert same == row
    empty = boxes_of([[], row])[0]
    assert refine([[]], [empty], [ENV.world.camera], ENV.world.assets, 5) == [[]]
    nothing, moved = refine([[], row], [empty, graph], [ENV.world.camera] * 2, ENV.world.assets, 3)
    assert nothing == [] and all(
        m.position_world[2] == 0 and m.asset == o.asset for m, o in zip(moved, row)
    )


def test_visible_coverage_splits_pixels_among_objects_by_depth():
    """Of two cubes in a line of sight, the nearer is fully visible, the other where not covered."""
    row = [thing(CUBE, 0.0, 0.0, 1.0), thing(CUBE, -1.2, -1.2, 1.0)]
    meshes = build(bare([row, row[:1]]), ENV.world.assets)
    shown = visible_coverage(meshes, stack_cameras([ENV.world.camera] * 2, 120, 90))
    assert shown.shape == (2, 2, 90, 120) and shown.min() >= 0 and shown.sum(1).max() < 1.01
    hard = rasterize(
        meshes, stack_cameras([ENV.world.camera] * 2, 120, 90), cull_backfaces=True
    ).pix_to_face[..., 0]
    for scene, slot, number in ((0, 0, 0), (0, 1, 1), (1, 0, 2)):
        mask = (hard[scene] >= 0) & (meshes.face_object[hard[scene].clamp(min=0)] == number)
        soft = shown[scene, slot]
        assert ((soft > 0.5)[mask].float().mean() > 0.97
                and (soft < 0.5)[~mask].float().mean() > 0.99)
    assert (shown[1, 1] == 0).all()  # the second scene has one object


def test_box_errors_by_hand():
    """An object that fills columns 2 and 3 of row 1; a box 0.25 px further left than the object."""
    shown = torch.zeros(1, 1, 4, 6)
    shown[0, 0, 1, 2:4] = 1
    exact = box_errors(shown, torch.tensor([0]), torch.tensor([[2.0, 1.0, 4.0, 2.0]]))
    assert exact.tolist() == [0]
    left = box_errors(shown, torch.tensor([0]), torch.tensor([[1.75, 1.0, 3.75, 2.0]]))
    assert left.tolist() == pytest.approx([0.25 ** 2 + 0.25 ** 2])


def test_object_numbers_and_prior_by_hand():
    assert object_numbers(torch.tensor([0, 0, 2, 2, 2]), 3).tolist() == [0, 1, 0, 1, 2]
    start = object_poses(bare([[thing(CUBE, 0.0, 0.0, 1.0), thing(CUBE, 0.6, 0.0, 1.0)]]))
    start = replace(start, size_m=torch.ones_like(start.size_m))
    pair, none = torch.tensor([[1, 0]]), torch.zeros(0, 2, dtype=torch.int64)
    overlap = prior(start, start, pair)  # by 0.4 m
    assert overlap.tolist() == pytest.approx([0, fit.OVERLAP_PRIOR * 0.16])
    assert prior(start, start, none).tolist() == [0, 0]
    grown = Poses(start.position_world + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.0]]),
                  start.size_m * torch.tensor([[0.1], [0.0]]).exp(), start.yaw_rad + 1.0)
    assert prior(grown, start, none).tolist() == pytest.approx(
        [fit.SIZE_PRIOR * 0.01, fit.SHIFT_PRIOR * 0.09]
    )


def test_an_object_on_another_is_no_neighbor_of_it():
    below, above = thing(CUBE, 0.0, 0.0, 1.0), thing(CUBE, 0.1, 0.0, 0.4)
    on_top = replace(above, position_world=(0.1, 0.0, 1.0))
    assert neighbors([[below], [below, above], [below, on_top]]).tolist() == [[2, 1]]


def test_a_scene_is_refined_alike_alone_and_in_company():
    """This includes objects that overlap each other."""
    rows = [[thing(CUBE, 0.1 * i, 0.0, 1.0), thing(SPHERE, 0.5, 0.4 - 0.1 * i, 1.0),
             thing(CYLINDER, -1.0, 1.0, 1.0)]
            for i in range(12)]
    graphs = boxes_of(
        [[thing(CUBE, 0.0, -0.6, 1.0), thing(SPHERE, 0.5, 0.6, 1.0),
          thing(CYLINDER, -1.2, 1.0, 1.0)]]
        * 12
    )
    together = refine(rows, graphs, [ENV.world.camera] * 12, ENV.world.assets, 6)
    for i in (0, 7):
        assert (
            refine(rows[i : i + 1], graphs[i : i + 1], [ENV.world.camera], ENV.world.assets, 6)
            == together[i : i + 1]
        )
    assert together[0] != rows[0]


def test_gradients_of_the_box_error_are_those_of_finite_differences():
    row = [thing(CUBE, -0.6, 1.0, 1.0, 0.2), thing(CYLINDER, -1.0, -0.2, 1.0)]
    meshes = build(bare([row]), ENV.world.assets, dtype=torch.float64)
    views = stack_cameras([ENV.world.camera], 60, 45, dtype=torch.float64)
    boxes = torch.tensor([[20.0, 10.0, 32.0, 22.0], [24.0, 18.0, 40.0, 30.0]], dtype=torch.float64)
    start = object_poses(bare([row]))

    def error(position_world, size_m, yaw_rad):
        placed = place(meshes, Poses(position_world, size_m, yaw_rad))
        return box_errors(visible_coverage(placed, views), meshes.object_scene, boxes).sum()

    moves = [v.clone().requires_grad_()
             for v in (start.position_world, start.size_m, start.yaw_rad)]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(error(*moves), moves)])
    numeric, step = [], 1e-6
    for k, move in enumerate(moves):
        for i in range(move.numel()):
            ends = []
            for sign in (1, -1):
                other = [m.detach().clone() for m in moves]
                other[k].view(-1)[i] += sign * step
                ends.append(error(*other).item())
            numeric.append((ends[0] - ends[1]) / (2 * step))
    assert gradient.numpy() == pytest.approx(np.array(numeric), rel=1e-4, abs=1e-5)
