"""Drive-Sim: streets against the paper's appendix, lanes and trees by hand, depths on KITTI."""
import csv
import json
import math
import tarfile
from dataclasses import replace

import numpy as np
import pytest

import envs
from conftest import run
from envs import drive
from envs.assets import street
from envs.drive import CAR, ENV, HOUSE, LANE_M, PEDESTRIAN, VEGETATION
from sim2sg_lib.graph import make_graph
from sim2sg_lib.io.kitti import camera_of, read_calib, read_objects
from sim2sg_lib.sim.lift import lift, lift_box, projected_box, weigh_depths
from sim2sg_lib.sim.meshes import pose_mesh
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.scene import SceneObject, relations

SALOON = "source saloon"


def draw(domain, count=150, seed=3):
    rng = np.random.default_rng(seed)
    return [ENV.world.sample_layout(ENV, domain, rng)[0] for _ in range(count)]


def car(x, y, yaw_rad=math.pi / 2):
    return SceneObject(CAR, SALOON, (x, y, 0.0), ENV.world.asset_sizes_m[SALOON][0], yaw_rad)


def count(objects, label):
    return sum(o.label == label for o in objects)


# --- content --------------------------------------------------------------------------------------

def test_source_streets_match_the_appendix():
    streets = draw("source")
    lanes_seen, places = set(), {1: 0, 2: 0}
    for objects in streets:
        xs = np.array([o.position_world[0] for o in objects if o.label == CAR])
        lanes, cars_in_lane = np.unique(xs.round(6), return_counts=True)
        # cars are in the middle of lanes
        np.testing.assert_allclose(lanes / LANE_M, (lanes / LANE_M).round(), atol=1e-6)
        np.testing.assert_allclose(np.diff(lanes), LANE_M)  # no lane is empty
        lanes_seen.add(len(lanes))
        for number in cars_in_lane:
            places[number] += 1
        left_of_us, right_of_us = round(-lanes[0] / LANE_M), round(lanes[-1] / LANE_M)
        # the camera is on the right half of the road
        assert right_of_us >= 0 and left_of_us >= len(lanes) // 2
        for o in objects:
            if o.label == CAR:
                with_us = round((o.position_world[0] - lanes[0]) / LANE_M) >= len(lanes) // 2
                assert o.yaw_rad == (math.pi / 2 if with_us else -math.pi / 2)
        assert count(objects, PEDESTRIAN) in (0, 1, 2)
        assert count(objects, HOUSE) in (1, 2, 3) and count(objects, VEGETATION) in (1, 2, 3)
    assert lanes_seen == {2, 3, 4, 5, 6} and min(places.values()) > 200


def test_objects_of_the_stand_in_do_not_overlap():
    for objects in draw("target", 100):
        for i, a in enumerate(objects):
            for b in objects[:i]:
                apart = [abs(a.position_world[k] - b.position_world[k])
                         - (drive.ground_extents_m(a)[k] + drive.ground_extents_m(b)[k]) / 2
                         for k in (0, 1)]
                assert max(apart) >= -1e-9, (a, b)


def test_label_files_of_the_stand_in_have_kitti_s_statistics(tmp_path, monkeypatch):
    """Labels of 300 small rendered frames, compared with statistics of KITTI's 7,481 label files."""
    small = replace(ENV, presets={"quick": replace(ENV.presets["quick"], image_size=(320, 97))})
    monkeypatch.setattr(envs, "find", lambda name, where="": small)
    run(tmp_path, "synthesize.py", "--env", "drive", "--domain", "target", "--num", 300, "--seed",
        5, "--export", "kitti", "--out", "t")
    found = {"Car": [], "Pedestrian": []}
    for path in (tmp_path / "t").glob("*/kitti/**/label_2/*.txt"):
        for item in read_objects(path):
            if item.type in found:
                found[item.type].append((item.occluded, *item.size_m, *item.bottom_camera))
    for kind, frame, height_m, width_m, length_m, depth_m, aside_m, visible in (
            ("Car", 3.84, 1.53, 1.63, 3.88, 25.4, (-6.6, 2.9), 0.47),
            ("Pedestrian", 0.60, 1.76, None, None, 14.7, (-3.7, 3.7), 0.59)):
        rows = np.array(found[kind])
        assert len(rows) / 300 == pytest.approx(frame, rel=0.15 if kind == "Car" else 0.35)
        assert rows[:, 1].mean() == pytest.approx(height_m, rel=0.03)
        assert width_m is None or rows[:, 2:4].mean(0) == pytest.approx([width_m, length_m],
                                                                        rel=0.03)
        assert np.median(rows[:, 6]) == pytest.approx(depth_m, rel=0.15)
        np.testing.assert_allclose(np.quantile(rows[:, 4], [0.25, 0.75]), aside_m, atol=1.3)
        # there are fewer trees and poles than in KITTI to hide objects
        assert visible < (rows[:, 0] == 0).mean() < visible + 0.35


def test_domains_combine_content_and_assets():
    for domain, stock in (("source", "source"), ("target", "target"), ("target-content", "source"),
                          ("target-appearance", "target")):
        objects, camera = ENV.world.sample_layout(ENV, domain, np.random.default_rng(0))
        assert {o.asset.split()[0] for o in objects} == {stock}
        assert camera.K[0, 0] == 721.5377  # in the source, too


def test_random_scenes_take_kitti_s_camera_or_the_paper_s(tmp_path, monkeypatch):
    tiny = replace(ENV, presets={"quick": replace(ENV.presets["quick"], image_size=(124, 38))})
    monkeypatch.setattr(envs, "find", lambda name, where="": tiny)
    for options, focal_px in (([], 72.03), (["--camera", "calib"], 72.03),
                              (["--camera", "paper"], 62.0)):
        run(tmp_path, "synthesize.py", "--env", "drive", "--num", 1, "--overwrite", "--out", "s",
            *options)
        camera = json.loads((tmp_path / "s/cameras.jsonl").read_text())
        assert camera["K"][0][0] == pytest.approx(focal_px, abs=0.01)  # a tenth of 720 and of 621
    assert json.loads((tmp_path / "s/dataset.json").read_text())["camera"] == "paper"


@pytest.mark.parametrize("stock", [street.SOURCE, street.TARGET])
def test_assets_are_solid_street_sized_and_many(stock):
    tallest_m = {"car": (1.2, 2.1), "pedestrian": (1.2, 1.9), "house": (4.0, 14.0),
                 "vegetation": (1.0, 11.0)}
    for category, kinds in stock.items():
        assert len(kinds) >= 5
        for name, (mesh, size_m) in kinds.items():
            corners = mesh.verts[mesh.faces] * size_m
            volume = np.einsum("fi,fi->f", corners[:, 0],
                               np.cross(corners[:, 1], corners[:, 2])).sum() / 6
            assert volume > 0, name  # faces wind outward
            np.testing.assert_allclose(mesh.verts.min(0), [-0.5, -0.5, 0], atol=1e-9)
            np.testing.assert_allclose(mesh.verts.max(0), [0.5, 0.5, 1], atol=1e-9)
            assert tallest_m[category][0] < size_m[2] < tallest_m[category][1], name
            assert len(mesh.faces) <= 1000
    assert set(street.SOURCE["car"]).isdisjoint(street.TARGET["car"])


# --- relations ------------------------------------------------------------------------------------

def test_relations_have_margins_in_meters_and_a_car_at_one_end():
    walker = SceneObject(PEDESTRIAN, "source man", (9.0, 30.0, 0.0), (0.5, 0.5, 1.8), 0.0)
    house = SceneObject(HOUSE, "source barn", (15.0, 40.0, 0.0), (9.0, 9.0, 7.0), 0.0)
    far = car(0.0, 85.0)
    objects = [car(0, 10), car(2, 10.1), car(1, 15), walker, house, far]
    rows = relations(objects, ENV.world.camera, ENV.vocabulary.predicates, ENV.world.rules)
    found = {(int(s), ENV.vocabulary.predicates[p], int(o)) for s, p, o in rows}
    assert {row for row in found if row[0] < 3 and row[2] < 3} == {
        (0, "left", 1), (1, "right", 0), (0, "left", 2), (0, "front", 2), (2, "right", 0),
        (2, "behind", 0), (1, "right", 2), (1, "front", 2), (2, "left", 1), (2, "behind", 1)}
    assert not any({s, o} == {3, 4} for s, _, o in found)       # neither is a car
    assert {(4, "behind", 0), (0, "front", 4), (3, "right", 0)} <= found
    assert not any(5 in (s, o) for s, _, o in found)            # too far away


# --- lifting --------------------------------------------------------------------------------------

def test_cars_snap_to_lanes_and_a_wide_box_becomes_a_row_of_trees():
    rng = np.random.default_rng(0)
    poplar = SceneObject(VEGETATION, "source poplar", (10.0, 20.0, 0.0), (2.6, 2.6, 9.0), 0.0)
    boxes = np.array([[0, 0, 10, 10]] * 3 + [[900, 0, 1180.6, 200], [0, 0, 10, 10]], float)
    objects = [car(1.9, 12), car(-3.2, 12), car(5.3, 20, math.pi), poplar,
               SceneObject(HOUSE, "source barn", (30.0, 30.0, 0.0), (9, 9, 7), 0.0)]
    settled = drive.snap_to_context(objects, boxes, ENV.world.camera, rng)
    # the lane nearest to 1.9 m is at 3.5 m; of the offset of 1.6 m from its middle, 0.8 m remain
    assert [o.position_world[0] for o in settled if o.label == CAR] == pytest.approx(
        [2.7, -3.2, 5.3])
    # cars on the right drive in our direction, the others towards us; one stands across the street
    assert [o.yaw_rad for o in settled if o.label == CAR] == [math.pi / 2, -math.pi / 2, math.pi]
    # 280.6 px at 20 m, focal length 721.5 px: 7.78 m wide, three poplars of 2.6 m, 2.59 m apart
    trees = [o for o in settled if o.label == VEGETATION]
    assert [o.position_world[0] for o in trees] == pytest.approx([10 - 2.5926, 10.0, 10 + 2.5926],
                                                                 abs=1e-3)
    assert settled[-1] == objects[-1]


def test_the_road_is_wide_enough_for_the_cars():
    rng = np.random.default_rng(0)
    # lanes of the cars -> first and last painted lane: ours is always painted, at most six lanes
    # are, and at most two to the right of ours
    for lanes, (low, high) in (((), (-1, 0)), ((0,), (-1, 0)), ((1,), (0, 1)),
                               ((-1, 0, 2), (-1, 2)), ((-4, 5), (-3, 2))):
        _, strips = drive.road([car(lane * LANE_M, 20) for lane in lanes], "source", rng)
        pavement, asphalt = strips[:2]
        assert asphalt.position_world[0] == pytest.approx((low + high) / 2 * LANE_M)
        assert asphalt.size_m[1] == pytest.approx((high - low + 1) * LANE_M)
        assert pavement.size_m[1] == pytest.approx(asphalt.size_m[1] + 2 * drive.SIDEWALK_M)
        assert sum(strip.dash_m > 0 for strip in strips) == high - low


def test_the_source_s_cars_drive_on_its_asphalt_and_its_walkers_walk_beside_it():
    for objects in draw("source"):
        _, strips = drive.road(objects, "source", np.random.default_rng(0))
        half, middle = strips[1].size_m[1] / 2, strips[1].position_world[0]
        for o in objects:
            off_middle = abs(o.position_world[0] - middle)
            if o.label == CAR:
                assert off_middle < half
            if o.label == PEDESTRIAN:
                assert half < off_middle < half + drive.SIDEWALK_M


def test_two_depths_are_weighed_by_their_errors():
    """A car 20 m ahead whose box is a fifth too short.

    The inverse errors by hand are 1.65 / (400 * pitch) and 1 / (depth * spread).
    """
    camera, item = ENV.world.camera, car(0.0, 20.0)
    mesh = pose_mesh(ENV.world.assets[SALOON], item.position_world, item.size_m, item.yaw_rad)
    box = projected_box(mesh.verts, camera)
    assert weigh_depths(item, box, camera, ENV).position_world == pytest.approx(
        item.position_world, abs=1e-9)
    low = box.copy()
    low[1] = low[3] - (box[3] - box[1]) * 0.8
    near = (item.size_m[0] + item.size_m[1]) / 4
    by_height = (20 - near) / 0.8 + near
    weights = (1.65 / (400 * math.radians(0.35))) ** 2, 1 / (by_height * 0.09) ** 2
    expected = (weights[0] * 20 + weights[1] * by_height) / sum(weights)
    assert weigh_depths(item, low, camera, ENV).position_world[1] == pytest.approx(expected)
    cut = box.copy()
    cut[3] = camera.height
    assert weigh_depths(item, cut, camera, ENV) == item


def test_lifted_cars_of_kitti_are_closer_to_their_measured_positions(real_data):
    """Median depth error of fully visible cars in every twelfth frame, lifted from 2-D labels."""
    folder, errors = real_data("kitti") / "all_labels", []
    cameras = [camera_of(read_calib(folder / f"calib_variant_{variant}.txt"), 1242, 375)
               for variant in range(4)]
    rows = list(csv.reader((folder / "calib_variant_of_frame.csv").open()))[1:]
    camera_of_frame = {int(frame): cameras[int(variant)] for frame, variant in rows}
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "label_2_training_7481.tar.gz") as archive:
        for member in archive:
            stem = member.name.rsplit("/", 1)[-1][:-4]
            if not member.isfile() or not stem.isdigit() or int(stem) % 12:
                continue
            camera = camera_of_frame[int(stem)]
            for line in archive.extractfile(member).read().decode().splitlines():
                kind, truncated, occluded, _, *numbers = line.split()
                if kind == "Car" and float(truncated) == 0 and occluded == "0":
                    box = np.array(numbers[:4], float)
                    depth_m = float(numbers[9])
                    plain = camera.ground_point([(box[0] + box[2]) / 2, box[3]])[1]
                    errors.append((
                        plain - depth_m,
                        lift_box(CAR, box, camera, ENV, rng).position_world[1] - depth_m))
    errors = np.array(errors)
    plain_m, lifted_m = np.median(np.abs(errors), 0)
    print(f"\n{len(errors)} cars: median depth error {plain_m:.2f} m from the box's bottom edge, "
          f"{lifted_m:.2f} m lifted; bias {np.median(errors[:, 0]):.2f} and "
          f"{np.median(errors[:, 1]):.2f} m")
    assert len(errors) > 800
    assert 3.2 < plain_m < 4.2 and lifted_m < 0.6 * plain_m  # the specification measured 3.7 m
    assert abs(np.median(errors[:, 1])) < 0.5 * abs(np.median(errors[:, 0]))


def test_a_street_s_own_graph_lifts_to_the_street_again():
    """Saloons of a rendered street, none hidden, are lifted into their lanes, depths within 5 %."""
    saloons = replace(
        ENV, world=replace(ENV.world, category_assets=((SALOON,), *ENV.world.category_assets[1:])))
    rng = np.random.default_rng(1)
    objects = [car(0.0, 14.0), car(-3.5, 22.0, -math.pi / 2), car(3.5, 30.0)]
    scene = ENV.world.sample_appearance(objects, ENV.world.camera, "source", "paper", rng)
    graph = render_scenes(ENV, [scene], ["a.png"], (621, 188), "cpu").graphs[0]
    assert len(graph) == 3
    lifted, kept = lift(graph, ENV.world.camera, saloons, rng)
    settled = drive.snap_to_context(lifted, kept.boxes_px * 2, ENV.world.camera, rng)
    for before, after in zip(objects, settled):
        assert round(after.position_world[0] / LANE_M) == round(before.position_world[0] / LANE_M)
        assert after.position_world[1] == pytest.approx(before.position_world[1], rel=0.05)
        assert after.yaw_rad == before.yaw_rad


def test_boxes_tell_cars_across_the_street_from_cars_along_it():
    """True boxes of the stand-in's cars that are neither hidden nor cut off, in 60 frames.

    The boxes are of the target's assets, the projections of the source's.
    """
    rng, right = np.random.default_rng(4), {True: [], False: []}
    for _ in range(60):
        objects, camera = ENV.world.sample_layout(ENV, "target", rng)
        for item in objects:
            mesh = pose_mesh(ENV.world.assets[item.asset], item.position_world, item.size_m,
                             item.yaw_rad)
            box, (depth_m,) = projected_box(mesh.verts, camera), camera.project(
                np.array([item.position_world]))[1]
            inside = (box[:2] > 0).all() and box[2] < camera.width and box[3] < camera.height
            if item.label == CAR and inside and depth_m < 50:
                lifted = lift_box(CAR, box, camera, ENV, rng)
                settled = drive.snap_to_context([lifted], box[None], camera, rng)[0]
                across = [abs(math.cos(o.yaw_rad)) > 0.5 for o in (item, settled)]
                right[across[0]].append(across[0] == across[1])
    along, across = np.mean(right[False]), np.mean(right[True])
    print(f"\nheading of cars: {along:.2f} of {len(right[False])} along the street are right, "
          f"{across:.2f} of {len(right[True])} across it")
    assert len(right[True]) > 25 and along > 0.95 and across > 0.65


def test_all_that_kitti_s_hard_level_takes_is_labeled():
    """A pedestrian of 25 of 375 rows, the level's limit, at the size of the quick preset."""
    walker = SceneObject(PEDESTRIAN, "source man", (0.5, 50.0, 0.0), (0.5, 0.5, 1.75), 0.0)
    scene = ENV.world.sample_appearance([walker], ENV.world.camera, "source", "paper",
                                        np.random.default_rng(0))
    graph = render_scenes(ENV, [scene], ["a.png"], ENV.presets["quick"].image_size, "cpu").graphs[0]
    height_px = graph.boxes_px[0, 3] - graph.boxes_px[0, 1]
    assert height_px * 375 / 194 == pytest.approx(25, abs=1.5)


def test_an_empty_graph_is_an_empty_street():
    graph = make_graph("a.png", 1242, 375, [], np.zeros((0, 4)), np.zeros((0, 3), int))
    lifted, kept = lift(graph, ENV.world.camera, ENV, np.random.default_rng(0))
    scene = ENV.world.sample_appearance(
        drive.snap_to_context(lifted, kept.boxes_px, ENV.world.camera, None), ENV.world.camera,
        "source", "paper", np.random.default_rng(0))
    # sidewalk, asphalt, two edges, one row of dashes
    assert scene.objects == () and len(scene.strips) == 5
