"""Frames, projection, relations, rendering and lifting, by hand and against reference data."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from blender import read_scenes
from envs import clevr, dining, drive
from envs.clevr import CATEGORIES, ENV
from sim2sg_lib.camera import Camera, look_at, stack_cameras
from sim2sg_lib.graph import Vocabulary, make_graph
from sim2sg_lib.sim.annotate import truncated_fractions
from sim2sg_lib.net.predict import confident, thresholds
from sim2sg_lib.sim.lift import (
    aim, bottom_up, find_supports, lift, overlapping, refine_by_relations)
from sim2sg_lib.sim.meshes import box_mesh, build, cylinder_mesh, pose_mesh, sphere_mesh
from sim2sg_lib.sim.rasterizer import rasterize
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.sim.sources import LiftedScenes
from sim2sg_lib.scene import (
    Light, Material, RelationRules, Scene, SceneObject, Sky, predicate_axes, relations)
from sim2sg_lib.cli import InputError

LEVEL = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])  # camera looks along world y, x to the right


def level_camera(height_m=1.65, focal_px=621.0, width=1242, height=375):
    K = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]])
    return Camera(K, LEVEL, -LEVEL @ [0, 0, height_m], width, height)


# --- camera ---------------------------------------------------------------------------------------

def test_projection_by_hand():
    camera = level_camera()
    # 2 m right, 10 m ahead, on the ground: u = 621 + 621*2/10, v = 187.5 + 621*1.65/10
    points_px, depth_m = camera.project(np.array([[2.0, 10.0, 0.0]]))
    np.testing.assert_allclose(points_px, [[745.2, 289.965]])
    np.testing.assert_allclose(depth_m, [10.0])


def test_ground_point_by_hand():
    camera = level_camera()
    np.testing.assert_allclose(camera.ground_point((800, 250)), [4.7256, 16.3944, 0], atol=1e-4)
    np.testing.assert_allclose(camera.ground_point((621, 229)), [0, 24.6904, 0], atol=1e-4)
    np.testing.assert_allclose(
        camera.ground_point((621, 250), height_m=0.65), [0, 9.936, 0.65], atol=1e-3
    )


def test_ground_point_above_the_horizon_is_cut_at_80_m():
    point = level_camera().ground_point((621, 100))
    assert point[2] == 0 and point[1] == pytest.approx(80)


def test_resized_camera_keeps_the_view():
    camera, point = level_camera(), np.array([[1.0, 7.0, 0.5]])
    small = camera.resized(621, 125)
    np.testing.assert_allclose(small.project(point)[0], camera.project(point)[0] * [1 / 2, 1 / 3])


def test_look_at_puts_the_target_in_the_center_and_up_upwards():
    camera = look_at((7, -6, 5), (0, 0, 0), 350, 320, 240)
    np.testing.assert_allclose(camera.project(np.zeros((1, 3)))[0], [[160, 120]], atol=1e-9)
    assert camera.project(np.array([[0, 0, 1.0]]))[0][0, 1] < 120
    np.testing.assert_allclose(np.linalg.det(camera.R), 1)


def test_batched_cameras_agree_with_the_single_one():
    views = [look_at((7, -6, 5), (0, 0, 0), 350, 320, 240), level_camera(width=320, height=240)]
    points = np.random.default_rng(0).uniform(-2, 2, (6, 3)) + [0, 4, 0]
    cameras = stack_cameras(views, 320, 240, dtype=torch.float64)
    for b, view in enumerate(views):
        points_px, depth_m = view.project(points)
        found = cameras.homogeneous_px(torch.from_numpy(points), torch.full((6,), b))
        np.testing.assert_allclose(found[:, :2] / found[:, 2:], points_px)
        np.testing.assert_allclose(found[:, 2], depth_m)
        np.testing.assert_allclose(cameras.positions_world()[b], view.position_world)
        np.testing.assert_allclose(cameras.rays_world()[b, 10, 20], view.ray_world((20.5, 10.5)))


# --- relations ------------------------------------------------------------------------------------

def names(rows):
    return {(int(s), ENV.vocabulary.predicates[p], int(o)) for s, p, o in rows}


def between(positions_world, camera, margin_m=0.2):
    """Relation rows between unit objects at the positions, with one margin for all predicates."""
    objects = [SceneObject(0, "cube", tuple(p), (1.0, 1.0, 1.0), 0.0) for p in positions_world]
    predicates = ENV.vocabulary.predicates
    return relations(objects, camera, predicates,
                     RelationRules({name: margin_m for name in predicates}))


def test_relations_by_hand():
    # forward (0, .8, -.6), right (1, 0, 0): behind is +y, left is -x
    camera = Camera(
        np.eye(3), np.array([[1, 0, 0], [0, -0.6, -0.8], [0, 0.8, -0.6]]), np.zeros(3), 320, 240
    )
    i, j, k = (0, 0, 0.7), (0.1, 0.5, 0.35), (-1, -0.15, 0.7)
    rows = between([i, j, k], camera)
    assert names(rows) == {
        (1, "behind", 0),
        (0, "front", 1),
        (2, "left", 0),
        (0, "right", 2),
        (1, "behind", 2),
        (1, "right", 2),
        (2, "front", 1),
        (2, "left", 1),
    }


def test_relation_margin_is_strict():
    camera = level_camera()
    assert names(between([[0, 0, 0], [0.25, 0, 0]], camera, 0.25)) == set()
    assert names(between([[0, 0, 0], [0.5, 0, 0]], camera, 0.25)) == {
        (0, "left", 1), (1, "right", 0)}


def test_relation_rule_gives_the_official_clevr_relations(real_data):
    folder, scenes, wrong = real_data("clevr_samples"), 0, 0
    for path in sorted(folder.glob("*/scenes/*.json")):
        scene = json.loads(path.read_text())
        d = scene["directions"]
        # a camera whose ground frame has CLEVR's directions: level, looking along "behind"
        forward, right = np.array(d["behind"]), np.array(d["right"])
        camera = Camera(
            np.eye(3), np.stack([right, np.cross(forward, right), forward]), np.zeros(3), 480, 320
        )
        ours = names(between([o["3d_coords"] for o in scene["objects"]], camera))
        theirs = {(s, p, o) for p in ENV.vocabulary.predicates
                  for o, subjects in enumerate(scene["relationships"][p]) for s in subjects}
        wrong += len(ours ^ theirs)
        scenes += 1
    assert scenes >= 10 and wrong == 0


# --- meshes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("mesh", [box_mesh(), sphere_mesh(), cylinder_mesh()])
def test_meshes_are_closed_outward_and_fill_the_unit_box(mesh):
    np.testing.assert_allclose(mesh.verts.min(0), [-0.5, -0.5, 0], atol=2e-3)
    np.testing.assert_allclose(mesh.verts.max(0), [0.5, 0.5, 1], atol=2e-3)
    a, b, c = (mesh.verts[mesh.faces[:, k]] for k in range(3))
    # divergence theorem: equal to the volume only if all faces point outward
    volume = (np.cross(a, b) * c).sum() / 6
    expected = {12: 1.0, 1280: np.pi / 6, 188: np.pi / 4}[len(mesh.faces)]
    assert volume == pytest.approx(expected, rel=0.02)
    edges = {}
    for face in np.round(mesh.verts, 6)[mesh.faces]:
        for k in range(3):
            edge = (tuple(face[k]), tuple(face[(k + 1) % 3]))
            edges[edge] = edges.get(edge, 0) + 1
    assert all(edges.get((q, p)) == n for (p, q), n in edges.items()), (
        "an edge without its opposite: a hole"
    )
    assert ((np.cross(b - a, c - a) * mesh.normals[mesh.faces].mean(1)).sum(1) > 0).all()


def test_a_pose_scales_then_turns_then_moves():
    corner = pose_mesh(box_mesh(), (10, 20, 0), (2, 4, 6), np.pi / 2).verts
    # the x half extent 1 points along +y after a quarter turn, the y half extent 2 along -x
    np.testing.assert_allclose(corner.min(0), [8, 19, 0], atol=1e-9)
    np.testing.assert_allclose(corner.max(0), [12, 21, 6], atol=1e-9)


# --- rasterizer -----------------------------------------------------------------------------------

def slow_rasterize(meshes, camera, width, height):
    """A simple reference: tests every face at every pixel."""
    verts_px, depth_m = camera.project(meshes.verts_world.double().numpy())
    nearest = np.full((height, width), -1)
    zbuf = np.full((height, width), np.inf)
    for f, (a, b, c) in enumerate(meshes.faces.tolist()):
        pa, pb, pc = verts_px[[a, b, c]]
        area = (pb[0] - pa[0]) * (pc[1] - pa[1]) - (pb[1] - pa[1]) * (pc[0] - pa[0])
        for y in range(height):
            for x in range(width):
                p = np.array([x + 0.5, y + 0.5])
                w = np.array([(q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
                              for q, r in ((pb, pc), (pc, pa), (pa, pb))]) / area
                if area < 0 and (w >= 0).all():
                    z = 1 / (w / depth_m[[a, b, c]]).sum()
                    if z < zbuf[y, x]:
                        nearest[y, x], zbuf[y, x] = f, z
    return nearest, zbuf


def toy_scene(*objects, camera=None):
    camera = camera or look_at((4, -4, 3), (0, 0, 0.5), 20, 24, 18)
    items = tuple(
        SceneObject(CATEGORIES.index(asset), asset, position, size, yaw)
        for asset, position, size, yaw in objects
    )
    return Scene(
        items,
        camera,
        (Light((3, -3, 5), (20, 20, 20)),),
        Sky((0.3,) * 3, (0.3,) * 3),
        Material((0.4,) * 3),
    )


def test_rasterize_agrees_with_the_slow_twin():
    scene = toy_scene(
        ("cube", (0, 0, 0), (1, 1, 1), 0.3),
        ("cylinder", (1, -1, 0), (0.8, 0.8, 1.5), 0.0),
        ("sphere", (-0.5, 0.8, 0), (1, 1, 1), 0.0),
    )
    meshes = build([scene], ENV.world.assets, dtype=torch.float64)
    cameras = stack_cameras([scene.camera], 24, 18, dtype=torch.float64)
    fragments = rasterize(meshes, cameras, cull_backfaces=True)
    nearest, zbuf = slow_rasterize(meshes, scene.camera, 24, 18)
    np.testing.assert_array_equal(fragments.pix_to_face[0, ..., 0], nearest)
    hit = nearest >= 0
    assert hit.sum() > 20
    np.testing.assert_allclose(fragments.zbuf[0, ..., 0].numpy()[hit], zbuf[hit], rtol=1e-6)
    # perspective-correct barycentrics give back the point on the pixel's ray
    corners = meshes.verts_world[meshes.faces[fragments.pix_to_face[0, ..., 0][hit]]]
    points = (corners * fragments.bary_coords[0, ..., 0, :][hit][..., None]).sum(1)
    row, column = np.nonzero(hit)
    np.testing.assert_allclose(
        scene.camera.project(points.numpy())[0], np.stack([column, row], 1) + 0.5, atol=1e-9
    )


def render(scenes, width, height, env=ENV):
    """(B, H, W, 3) uint8."""
    return render_scenes(
        env, scenes, ["x.png"] * len(scenes), (width, height), torch.device("cpu")
    ).images


def test_a_scene_renders_to_the_same_bytes_alone_and_in_any_batch():
    rng = np.random.default_rng(3)
    scenes = []
    for domain in ("source", "target", "source"):
        scenes.append(ENV.sample(ENV, domain, "strong", rng))
    scenes.append(
        Scene((), ENV.world.camera, (), Sky((0.3,) * 3, (0.3,) * 3), Material((0.4,) * 3)))

    together = render(scenes, 80, 60)
    for i, scene in enumerate(scenes):
        assert np.array_equal(render([scene], 80, 60)[0], together[i])
    assert np.array_equal(render(scenes[::-1], 80, 60), together[::-1])


def test_shadow_falls_on_the_side_away_from_the_lamp():
    camera = look_at((0, -8, 6), (0, 0, 0), 60, 64, 48)
    lamp = Light((-4.0, 0.0, 4.0), (40.0, 40.0, 40.0))
    box = SceneObject(0, "cube", (0, 0, 0), (1, 1, 1), 0.0, Material())
    lit = Scene((), camera, (lamp,), Sky((0.1,) * 3, (0.1,) * 3), Material((0.5,) * 3))
    shaded = Scene((box,), camera, (lamp,), Sky((0.1,) * 3, (0.1,) * 3), Material((0.5,) * 3))
    bare, with_box = render([lit, shaded], 64, 48).mean(-1) / 255

    def darkened(x, y):
        column, row = camera.project(np.array([[x, y, 0.0]]))[0][0].astype(int)
        return float(bare[row, column] - with_box[row, column])

    assert darkened(0.8, 0.0) > 0.1        # right of the box: in its shadow, which reaches x = 2
    assert 0 < darkened(-1.0, 0.0) < 0.01  # left of it: lit, but the box hides some of the sky
    assert abs(darkened(-3.0, 0.0)) < 0.5 / 255


def test_what_reaches_behind_the_camera_is_truncated():
    """Boxes ahead, cut by the left border, beside the camera and half behind it, and behind it."""
    camera = level_camera()
    boxes = [
        SceneObject(0, "box", (x, y, 0.0), (1.6, 4.0, 1.5), 0.0)
        for x, y in ((0, 20), (-10, 12), (2.5, 0), (0, -10))
    ]
    meshes = build(
        [Scene(tuple(boxes), camera, (), Sky((0.0,) * 3, (0.0,) * 3), Material())],
        {"box": box_mesh()}
    )
    ahead, border, beside, behind = truncated_fractions(
        meshes, stack_cameras([camera], camera.width, camera.height)
    )
    # the second spans u from 621 (1 - 10.8 / 10) to 621 (1 - 9.2 / 14), and v within the image
    assert (
        ahead == 0
        and border == pytest.approx(49.68 / (49.68 + 212.9), abs=1e-3)
        and beside > 0.9
        and behind == 1
    )


# --- against Blender ------------------------------------------------------------------------------

def test_visible_boxes_and_relations_agree_with_blender(real_data):
    """Scenes rendered by Blender, rebuilt from its scene files with our camera and meshes."""
    folder = real_data("clevr_blender") / "val"
    ious, offsets, wrong = [], [], 0
    for item, scene in read_scenes(folder):
        graph = render_labels(scene, item["width"], item["height"])
        theirs = np.array([o["box"] for o in item["objects"]], float)
        assert len(graph) == len(theirs)
        low, high = (
            np.maximum(graph.boxes_px[:, :2], theirs[:, :2]),
            np.minimum(graph.boxes_px[:, 2:], theirs[:, 2:]),
        )
        both = (high - low).clip(0).prod(1)
        area = [(b[:, 2:] - b[:, :2]).prod(1) for b in (graph.boxes_px, theirs)]
        ious += list(both / (area[0] + area[1] - both))
        offsets += list(graph.boxes_px - theirs)
        wrong += len(names(graph.relations) ^ {(s, p, o) for s, p, o in item["relationships"]})
    offset = np.mean(offsets, 0)
    print(
        f"median IoU {np.median(ious):.4f}, 5th percentile {np.quantile(ious, 0.05):.4f}, "
        f"mean offset {offset.round(3)} px"
    )
    assert len(ious) > 90 and np.median(ious) > 0.95
    # no half-pixel shift: Blender's bevels make its boxes slightly smaller, equally on both sides
    assert abs(offset[0] + offset[2]) / 2 < 0.15 and abs(offset[1] + offset[3]) / 2 < 0.15
    assert wrong == 0


# --- lifting --------------------------------------------------------------------------------------

def render_labels(scene, width=320, height=240):
    return render_scenes(ENV, [scene], ["x.png"], (width, height), torch.device("cpu")).graphs[0]


def test_labels_lifted_back_land_on_the_objects():
    """95 % of the lifted objects that are fully visible are within 5 % of the object's size."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng([7, seed])
        objects, camera = ENV.world.sample_layout(ENV, "target", rng)
        graph = render_labels(ENV.world.sample_appearance(objects, camera, "target", "paper", rng))
        if len(graph) < len(objects):
            continue
        lifted, _ = lift(graph, camera, ENV, rng)
        assert len(lifted) == len(objects)
        for true, found, visible, cut in zip(objects, lifted, graph.visible, graph.truncated):
            assert found.label == true.label
            if visible > 0.99 and cut == 0:
                errors.append(
                    np.linalg.norm(np.subtract(found.position_world, true.position_world))
                    / true.size_m[0]
                )
    print(
        f"{len(errors)} objects, median {np.median(errors):.4f}, "
        f"95th percentile {np.quantile(errors, 0.95):.4f}"
    )
    assert len(errors) > 60 and np.quantile(errors, 0.95) < 0.05


def test_the_naive_bottom_center_would_miss_the_center():
    """Why `aim` corrects the ray through the bottom center of a box.

    That ray meets the ground at the object's nearest edge, about half the object's depth too near.
    """
    camera = ENV.world.camera
    verts = pose_mesh(ENV.world.assets["cylinder"], (0, 0, 0), (1.4, 1.4, 1.4), 0).verts
    points, _ = camera.project(verts + [1, 1, 0])
    box = np.concatenate([points.min(0), points.max(0)])
    naive = camera.ground_point(((box[0] + box[2]) / 2, box[3]))
    corrected, _ = aim(verts, box, camera)
    assert np.linalg.norm(naive - [1, 1, 0]) > 0.5
    assert np.linalg.norm(corrected - [1, 1, 0]) < 0.02


def graph_of(boxes, labels, relation_rows=(), **columns):
    return make_graph("x.png", 320, 240, labels, boxes, relation_rows, **columns)


def test_a_graph_without_objects_lifts_to_an_empty_scene():
    rng = np.random.default_rng(0)
    assert lift(graph_of([], []), ENV.world.camera, ENV, rng)[0] == []
    scene = ENV.world.sample_appearance([], ENV.world.camera, "source", "strong", rng)
    graph = render_labels(scene)
    assert len(graph) == 0 and graph.relations.shape == (0, 3)


def test_objects_and_relations_below_the_threshold_are_dropped():
    boxes = [[100, 100, 140, 140], [200, 100, 240, 140], [20, 100, 60, 140]]
    graph = graph_of(boxes, [0, 1, 1], [[1, 0, 2], [2, 1, 1], [0, 0, 1]], scores=[0.49, 0.5, 0.6],
                     relation_scores=[0.5, 0.4, 0.9])
    kept = confident(graph, [0.5, 0.5, 0.5], 0.5)
    assert kept.labels.tolist() == [1, 1] and kept.relations.tolist() == [[0, 0, 1]]
    assert confident(graph, [0.4, 0.6, 0.5], 0.5).scores.tolist() == [0.49, 0.6]


def test_an_adaptive_threshold_is_a_fraction_of_the_best_scores():
    # best scores of category 0 per image: .2 .3 .4 .5 .6, 0.9 quantile .56; none of category 2
    box = [[0, 0, 9, 9]]
    graphs = [graph_of(box * 2, [0, 0], scores=[score, 0.1]) for score in (0.2, 0.3, 0.4, 0.5, 0.6)]
    graphs.append(graph_of(box, [1], scores=[0.9]))
    unsure = replace(ENV, adaptive=True)
    np.testing.assert_allclose(thresholds(graphs, unsure, 0.5), [0.28, 0.45, 0.5])
    np.testing.assert_allclose(thresholds(graphs, ENV, 0.5), [0.5, 0.5, 0.5])
    noise = [graph_of(box, [0], scores=[0.02])]
    # at least 0.05, unless a lower threshold is requested
    np.testing.assert_allclose(thresholds(noise, unsure, 0.5), [0.05, 0.5, 0.5])
    np.testing.assert_allclose(thresholds(noise, unsure, 0.01), [0.01, 0.01, 0.01])


def test_what_stands_on_a_stack_is_lifted_after_what_it_stands_on():
    # a cup (0) on a book (2) on a table (1), the cup first in the graph
    assert bottom_up(np.array([2, -1, 1])) == [2, 0]
    assert bottom_up(np.array([-1, -1])) == []


def test_of_supports_in_a_circle_the_least_certain_does_not_count():
    """Cubes on cubes: 0 on 1, 1 on 2, 2 on 0 and 0 on itself, which cannot all be true."""
    piles = replace(ENV, vocabulary=Vocabulary(CATEGORIES, ("on",)),
                    world=replace(ENV.world, rules=RelationRules({"on": 0.03}, supports={0: 0})))
    boxes = [[100, 100 + 20 * i, 140, 140 + 20 * i] for i in range(3)]
    graph = graph_of(
        boxes,
        [0, 0, 0],
        [[0, 0, 0], [0, 0, 1], [1, 0, 2], [2, 0, 0]],
        relation_scores=[0.9, 0.8, 0.6, 0.7],
    )
    assert find_supports(graph, piles).tolist() == [1, -1, 0]
    objects, kept = lift(graph, ENV.world.camera, piles, np.random.default_rng(0))
    heights = {int(box[1]): o.position_world[2] for box, o in zip(kept.boxes_px, objects)}
    assert heights[120] == 0 < heights[100] < heights[140]


def test_a_category_without_spread_has_no_say_where_depths_are_weighed():
    with pytest.raises(
        InputError,
        match="envs/clevr.py: ENV: size_spreads: 0.0 of sphere, expected more than 0 where"
    ):
        replace(ENV, world=replace(ENV.world, pitch_spread_rad=0.01, size_spreads=(0.1, 0.0, 0.1)))
    level = replace(ENV.world, pitch_spread_rad=0.01, size_spreads=(0.1, 0.1, 0.1))
    assert replace(ENV, world=level).world.pitch_spread_rad == 0.01


def test_two_detections_of_one_object_lift_to_one():
    graph = graph_of([[100, 100, 140, 140], [101, 100, 141, 141]], [0, 1], scores=[0.6, 0.9])
    assert [o.label for o in lift(graph, ENV.world.camera, ENV, np.random.default_rng(0))[0]] == [1]


LEFT, RIGHT, FRONT, BEHIND = range(4)  # ENV.vocabulary.predicates
SEEN_LEVEL = predicate_axes(level_camera())  # left is -x, front is -y


def refined(positions_xy, rows, scores, size_m=0.6):
    """Positions (N, 2) of cubes on the ground after refinement by relations; no two may overlap."""
    objects = [SceneObject(0, "cube", (*map(float, xy), 0.0), (size_m,) * 3, 0.0)
               for xy in positions_xy]
    graph = graph_of([[0, 0, 9, 9]] * len(objects), [0] * len(objects), rows,
                     relation_scores=scores)
    found = refine_by_relations(objects, graph, np.full(len(objects), -1), SEEN_LEVEL, ENV)
    assert not any(overlapping(a, b) for i, a in enumerate(found) for b in found[:i])
    return np.array([o.position_world[:2] for o in found])


def test_refinement_moves_only_what_the_relations_contradict():
    start = [[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]
    np.testing.assert_array_equal(refined(start, [[0, LEFT, 1]], [0.9]), start)
    # 5 cm apart on the wrong sides, 0.202 m required on the right ones: each object moves 0.126 m
    start = [[0.0, 0.0], [0.05, 0.7], [5.0, 5.0]]
    np.testing.assert_allclose(
        refined(start, [[0, RIGHT, 1]], [0.9]), [[0.126, 0.0], [-0.076, 0.7], [5.0, 5.0]]
    )
    start = [[0.0, 0.0], [1.0, 0.7], [5.0, 5.0]]
    # of two contradicting relations of one pair, however worded, the more certain one counts
    np.testing.assert_array_equal(refined(start, [[0, LEFT, 1], [1, LEFT, 0]], [0.9, 0.6]), start)


def test_a_relation_that_would_push_solids_into_each_other_is_dropped():
    # cubes of 0.6 m in a row: 2 cannot get to the left of 0 without running into 0 or 1
    start = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
    np.testing.assert_array_equal(refined(start, [[0, RIGHT, 2]], [0.9]), start)
    # a dropped relation does not prevent another from being satisfied: 1 gets 0.202 m behind 2
    found = refined(start, [[0, RIGHT, 2], [1, BEHIND, 2]], [0.9, 0.6])
    np.testing.assert_allclose(found, [[0.0, 0.0], [1.0, 0.101], [2.0, -0.101]])


def test_a_relation_that_contradicts_the_boxes_is_dropped():
    """Cubes of 0.6 m move by 0.15 m at most, or the scene is not that of the image."""
    for apart_m, moves in ((0.09, True), (0.11, False)):
        start = [[0.0, 0.0], [apart_m, 0.7]]
        found = refined(start, [[0, RIGHT, 1]], [0.9])
        assert (found != start).any() == moves


def test_of_a_cycle_of_relations_the_least_certain_is_dropped():
    # 0 left of 1 left of 2 left of 0; the objects are in separate rows and cannot collide
    start = [[0.0, 0.0], [0.1, 3.0], [0.2, 6.0]]
    cycle = [[0, LEFT, 1], [1, LEFT, 2], [2, LEFT, 0]]
    for weakest in range(3):
        found = refined(start, cycle, [0.5 if i == weakest else 0.9 for i in range(3)], size_m=2.0)
        holds = [found[o, 0] - found[s, 0] > 0.2 for s, _, o in cycle]
        assert holds == [i != weakest for i in range(3)]
        assert found[:, 1].tolist() == [0.0, 3.0, 6.0] and abs(found[:, 0]).max() < 1


def test_solids_that_touch_or_lie_on_one_another_do_not_overlap():
    cube = SceneObject(0, "cube", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0)
    for position, yaw_rad, expected in (
            ((1.0, 0.0, 0.0), 0.0, False), ((0.99, 0.0, 0.0), 0.0, True),
            ((0.0, 0.0, 1.0), 0.0, False),
            ((1.15, 0.0, 0.0), np.pi / 4, True), ((1.25, 0.0, 0.0), np.pi / 4, False),
            ((0.8, 0.8, 0.0), 0.0, True), ((0.9, 0.9, 0.0), np.pi / 4, False)):
        other = replace(cube, position_world=position, yaw_rad=yaw_rad)
        assert overlapping(cube, other) == overlapping(other, cube) == expected, position


def test_stacked_objects_move_with_what_they_stand_on():
    """A cup on a book on a table; the table is on the wrong side of a chair."""
    def item(x, y, z, size_m):
        return SceneObject(0, "cube", (x, y, z), (size_m,) * 3, 0.0)

    objects = [
        item(0, 0, 0, 1.0),
        item(0.1, 0, 1.0, 0.5),
        item(0.1, 0, 1.5, 0.2),
        item(0.1, 3.0, 0, 1.0),
    ]
    graph = graph_of([[0, 0, 9, 9]] * 4, [0] * 4, [[0, RIGHT, 3]])
    found = refine_by_relations(objects, graph, np.array([-1, 0, 1, -1]), SEEN_LEVEL, ENV)
    assert [o.position_world[0] for o in found] == pytest.approx([0.151, 0.251, 0.251, -0.051])
    assert [o.position_world[2] for o in found] == [0, 1.0, 1.5, 0]


def test_ignore_regions_and_neutral_objects_are_not_lifted():
    boxes = [[100, 100, 140, 140], [200, 100, 240, 140], [20, 100, 60, 140]]
    graph = graph_of(boxes, [0, 1, 2], [[0, LEFT, 1], [2, LEFT, 1]], ignore=[True, False, False],
                     visible=[1.0, 1.0, 0.0])
    objects, kept = lift(graph, ENV.world.camera, ENV, np.random.default_rng(0))
    assert [o.label for o in objects] == kept.labels.tolist() == [1] and len(kept.relations) == 0


# a graph per environment, boxes in pixels: objects on the ground, a laptop on a table
ELSEWHERE = [
    (clevr.ENV, [[50, 50, 70, 70], [100, 50, 120, 70]], [0, 1], []),
    (dining.ENV, [[80, 80, 140, 140], [30, 80, 60, 130], [100, 70, 120, 90]], [1, 0, 2],
     [[2, 4, 0]]),
    (drive.ENV, [[100, 40, 160, 80], [200, 45, 240, 70], [20, 10, 80, 60]], [0, 0, 2], []),
]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("env, boxes, labels, rows", ELSEWHERE,
                         ids=[row[0].name for row in ELSEWHERE])
def test_lifted_scenes_do_not_depend_on_where_the_origin_of_the_world_is(
    env, boxes, labels, rows, steps
):
    size = env.presets["quick"].image_size
    graph = make_graph("x.png", *size, labels, boxes, rows)
    jittered = look_at(
        env.world.camera.position_world + [0.2, -0.3, 0.0],
        env.world.camera.ground_point(
            np.array([env.world.camera.width, 1.2 * env.world.camera.height]) / 2),
        env.world.camera.K[0, 0], env.world.camera.width, env.world.camera.height)
    for camera in (env.world.camera, jittered):
        shifted = replace(camera, t=camera.t - camera.R @ [1000.0, 500.0, 0.0])
        (here,), (there,) = (
            LiftedScenes(
                env, [graph], [view], "strong", steps, 0, torch.device("cpu")).scenes(range(1))
            for view in (camera, shifted))
        assert len(here.objects) == len(there.objects) >= len(labels)
        for a, b in zip(here.objects, there.objects):
            moved_m = np.subtract(b.position_world, a.position_world)
            assert moved_m == pytest.approx([1000.0, 500.0, 0.0], abs=1e-5)
        assert there.to_json()["camera"]["t"] == pytest.approx(shifted.t.tolist(), abs=1e-9)
        difference = np.abs(
            np.subtract(*(render([scene], *size, env)[0].astype(int) for scene in (here, there)))
        )
        assert difference.max() <= 1 and render([here], *size, env).std() > 10


def test_lifting_is_driven_by_the_relations_it_keeps():
    boxes = [[100, 100, 140, 140], [116, 60, 144, 88]]  # one behind the other
    left = ENV.vocabulary.predicates.index("left")
    for score, expected in ((0.9, True), (0.4, False)):
        graph = graph_of(boxes, [0, 0], [[1, left, 0]], relation_scores=[score])
        (a, b), _ = lift(
            confident(graph, [0.5] * 3, 0.5), ENV.world.camera, ENV, np.random.default_rng(0)
        )
        rows = names(between([a.position_world, b.position_world], ENV.world.camera))
        assert ((1, "left", 0) in rows) == expected
