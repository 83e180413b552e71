"""KITTI's formats, coordinate frames and official scores.

They are checked against hand-written lines, a direct implementation of the rules and real labels.
"""
import contextlib
import csv
import io
import json
import math
import random
import shutil
import tarfile
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import click.testing
import numpy as np
import pytest
from PIL import Image

import envs
import evaluate
import synthesize
import train
from envs import clevr
from sim2sg_lib.net import predict
from sim2sg_lib.score import kitti_ap
from sim2sg_lib import checkpoint
from sim2sg_lib.dataset import has_labels, open_images, read_labels
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.io.export import calib_text, occlusion_state, write_coco, write_kitti
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import Vocabulary, make_graph
from sim2sg_lib.io.graphs import read_graphs
from sim2sg_lib.io.kitti import (
    CAMERA_HEIGHT_M, TYPES, KittiObject, camera_of, format_object, kitti_root, paper_camera,
    read_calib, read_objects, to_graph, unlabeled_categories, world_of, yaw_of)
from sim2sg_lib.score.kitti_ap import (
    DIFFICULTIES, count_hits, kitti_score, make_frame, match_by_score, sample_thresholds,
    to_results)
from sim2sg_lib.sim.meshes import box_mesh, pose_mesh
from sim2sg_lib.score.metrics import LEVELS, box_iou, detection_scores, inside_level
from sim2sg_lib.net.network import SceneGraphNet
from sim2sg_lib.scene import SceneObject

VOCABULARY = Vocabulary(("car", "pedestrian", "house", "vegetation"),
                        ("left", "right", "front", "behind"))
CAR, PEDESTRIAN, HOUSE, VEGETATION = range(4)
LEFT, RIGHT, FRONT, BEHIND = range(4)
STREET = paper_camera(1242, 375)
P2 = np.array([[700, 0, 600, 45], [0, 700, 180, 0.2], [0, 0, 1, 0.003]])
CALIB = "P0: 1\nP2: 700 0 600 45 0 700 180 0.2 0 0 1 0.003\n"
CAR_LINE = "Car 0.00 0 -1.37 603.93 152.73 915.81 308.23 2.00 2.00 4.00 2.00 1.65 10.00 0.00"


def street_layout(env, domain: str, rng: np.random.Generator):
    """Well-separated cars and a pedestrian; the last car is behind the camera and unlabeled."""
    places = [(CAR, -5, 12, 0.3), (CAR, 4, 9, -1.2), (PEDESTRIAN, 0, 11, 2.0), (CAR, 2, 30, 1.5),
              (CAR, 0, -9, 0.0)]
    order = rng.permutation(len(places))
    sizes = {CAR: (4.0, 1.8, 1.5), PEDESTRIAN: (0.8, 0.6, 1.75)}
    return [SceneObject(label, "box", (x + float(rng.uniform(-0.5, 0.5)), float(y), 0.0),
                        sizes[label], yaw)
            for label, x, y, yaw in (places[i] for i in order)], STREET


ENV = replace(
    clevr.ENV, name="street", vocabulary=VOCABULARY,
    presets={name: replace(clevr.ENV.presets[name], image_size=size)
             for name, size in (("quick", (414, 125)), ("paper", (1242, 375)))},
    world=replace(clevr.ENV.world, camera=STREET, assets={"box": box_mesh()},
                  category_assets=(("box",),) * 4, sample_layout=street_layout,
                  asset_sizes_m={"box": ((4.0, 1.8, 1.5),)},
                  yaws_rad=(None,) * 4, size_spreads=(0.0,) * 4))


def complaint(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in error.value.format_message()
    return error.value.format_message()


def item(kind: str, *box, score=None, truncated=0.0, occluded=0, bottom=(-1000, -1000, -1000),
         size=(-1, -1, -1), yaw=-10):
    return KittiObject(kind, truncated, occluded, -10, box, size, bottom, yaw, score)


def write_frames(root: Path, labels: dict[str, str]) -> Path:
    """Write a KITTI folder of black 1242x375 images with the given label files."""
    for name in ("image_2", "label_2", "calib"):
        (root / name).mkdir(parents=True)
    for stem, text in labels.items():
        Image.new("RGB", (1242, 375)).save(root / "image_2" / f"{stem}.png")
        (root / "label_2" / f"{stem}.txt").write_text(text)
        (root / "calib" / f"{stem}.txt").write_text(CALIB)
    return root


@pytest.fixture
def folder(tmp_path):
    """Two frames: one with a car, one without objects."""
    return write_frames(tmp_path / "kitti" / "training",
                        {"000000": CAR_LINE + "\n", "000007": ""}).parent


@cache
def all_labels(folder: Path) -> dict[str, list[KittiObject]]:
    """Returns {stem: objects} for all 7,481 label files of KITTI's training set."""
    with tempfile.TemporaryDirectory() as out:
        with tarfile.open(folder / "all_labels/label_2_training_7481.tar.gz") as archive:
            archive.extractall(out, filter="data")
        return {path.stem: read_objects(path) for path in sorted(Path(out).rglob("*.txt"))}


# --- files ----------------------------------------------------------------------------------------

def test_a_line_field_by_field(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "Car 0.25 1 1.70 400.25 180.50 440.75 200.12 1.60 1.80 3.70 -15.03 2.41 55.10 1.43\n\n"
        "dontcare -1 -1 -10 510.00 170.50 590.25 190.00 -1 -1 -1 -1000 -1000 -1000 -10\n")
    car, region = read_objects(path)
    assert car == KittiObject("Car", 0.25, 1, 1.7, (400.25, 180.5, 440.75, 200.12), (1.6, 1.8, 3.7),
                              (-15.03, 2.41, 55.1), 1.43, None)
    assert car.placed and region.type == "DontCare" and not region.placed
    path.write_text(f"\ufeff{CAR_LINE} 0.75\r\n", encoding="utf-8")
    assert read_objects(path, results=True)[0].score == 0.75
    assert format_object(read_objects(path, results=True)[0]) == f"{CAR_LINE} 0.7500"
    assert format_object(car) == (
        "Car 0.25 1 1.70 400.25 180.50 440.75 200.12 1.60 1.80 3.70 -15.03 2.41 55.10 1.43")


@pytest.mark.parametrize("column, word, words", [
    (14, "", "14 columns, expected 15 (type, truncated,"), (14, "0 0.5", "16 columns, expected 15"),
    (0, "Bus", "type: 'Bus', expected one of Car, Van,"),
    (1, "1.5", "truncated: 1.5, expected a fraction"),
    (1, "x", "truncated: 'x', expected a finite number"),
    (2, "4", "occluded: 4, expected 0, 1, 2, 3 or -1"),
    (2, "0.5", "occluded: 0.5"), (3, "nan", "alpha: 'nan', expected a finite number"),
    (3, "1_0", "alpha: '1_0', expected"), (3, "1,5", "alpha: '1,5', expected"),
    (3, "\u0663", "alpha: '\u0663', expected"), (4, "inf", "left: 'inf'"),
    (6, "603.93", "right: 603.93, expected more than left, 603.93"),
    (7, "10", "bottom: 10, expected more than top, 152.73"), (10, "-inf", "length: '-inf'"),
    (13, "1e999", "z: '1e999'")])
def test_a_bad_line_is_named_with_its_column(tmp_path, column, word, words):
    row = CAR_LINE.split()
    row[column] = word
    path = tmp_path / "000003.txt"
    path.write_text(CAR_LINE + "\n" + " ".join(row) + "\n")
    message = complaint(read_objects, path)
    assert message.startswith(f"{path}:2: ") and words in message


def test_mutated_lines_only_ever_raise_input_errors(tmp_path):
    rng, path, outcomes = random.Random(0), tmp_path / "mutated.txt", Counter()
    alphabet = "0123456789.-+eE_ \tCarVnN\x00\x0b\u0663\u2028é"
    for _ in range(600):
        line = list(rng.choice([
            CAR_LINE, "DontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10"]))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(line))
            line[at:at + rng.randint(0, 2)] = rng.choices(alphabet, k=rng.randint(0, 2))
        path.write_text("".join(line), encoding="utf-8")
        try:
            to_graph("a.png", read_objects(path), STREET, ENV)
            outcomes["fine"] += 1
        except InputError as error:
            assert "\n" not in error.format_message() and "\u2028" not in error.format_message()
            outcomes["refused"] += 1
    path.write_bytes(b"Car \xff\xfe")
    assert "cannot be read as UTF-8" in complaint(read_objects, path)
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.parametrize("text, words", [
    ("P0: 1\n", ": no line P2:"), ("\nP2: 1 2 3\n", ":2: P2: 3 numbers, expected 12"),
    ("P2:" + " x" * 12, ":1: P2: 'x'"),
    ("P2: 700 1 600 45 0 700 180 0 0 0 1 0", ":1: P2: expected rows f 0 cx tx"),
    ("P2: 700 0 600 45 0 -700 180 0 0 0 1 0",
     ":1: P2: expected rows f 0 cx tx, 0 f cy ty, 0 0 1 tz with f >= 1"),
    ("P2: 700 0 600 45 0 700 180 0 0 0.1 1 0", ":1: P2: expected rows")])
def test_a_bad_calibration_is_named(tmp_path, text, words):
    (tmp_path / "c.txt").write_text(text)
    assert complaint(read_calib, tmp_path / "c.txt").startswith(f"{tmp_path / 'c.txt'}{words}")


def test_every_real_label_parses_and_the_totals_are_kitti_s(real_data):
    labels = all_labels(real_data("kitti"))
    assert len(labels) == 7481
    assert Counter(o.type for objects in labels.values() for o in objects) == {
        "Car": 28742, "Pedestrian": 4487, "Cyclist": 1627, "Van": 2914, "Truck": 1094,
        "Tram": 511, "Misc": 973, "Person_sitting": 222, "DontCare": 11295}
    # number of objects that KITTI evaluates at each difficulty: by the rule of its evaluator, and
    # by the levels of our graphs
    expected = {"car": [5968, 15706, 21710], "pedestrian": [2310, 3569, 4276]}
    for category, counts in expected.items():
        assert [sum(make_frame(objects, [], category, limits).valid.sum()
                    for objects in labels.values())
                for limits in DIFFICULTIES.values()] == counts
    graphs = [to_graph(f"{stem}.png", objects, paper_camera(1242, 376), ENV)
              for stem, objects in labels.items()]
    for label, counts in enumerate(expected.values()):
        assert [sum(int(np.sum(~g.ignore & inside_level(g, replace(LEVELS[level], scaled=False))
                               & (g.labels == label)))
                    for g in graphs)
                for level in DIFFICULTIES] == counts


# --- frames ---------------------------------------------------------------------------------------

def corners_px(o: KittiObject, projection: np.ndarray) -> list[tuple[float, float]]:
    """The corners of a 3-D box, computed one by one as in the development kit."""
    (height, width, length), (x, y, z), ry = o.size_m, o.bottom_camera, o.rotation_y_rad
    corners = []
    for forward in (-length / 2, length / 2):
        for side in (-width / 2, width / 2):
            for up in (0, -height):
                point = np.array([math.cos(ry) * forward + math.sin(ry) * side + x, up + y,
                                  -math.sin(ry) * forward + math.cos(ry) * side + z, 1])
                u, v, depth = projection @ point
                corners.append((u / depth, v / depth))
    return corners


def projected_box(o: KittiObject, projection: np.ndarray) -> np.ndarray:
    """(4,) 2-D box of the same 3-D box, computed with this project's camera, yaw and unit mesh."""
    height, width, length = o.size_m
    verts = pose_mesh(box_mesh(), world_of(np.array(o.bottom_camera)), (length, width, height),
                      yaw_of(o.rotation_y_rad)).verts
    points_px, _ = camera_of(projection, 1242, 375).project(verts)
    return np.concatenate([points_px.min(0), points_px.max(0)])


def test_camera_and_frames_by_hand():
    camera = camera_of(P2, 1242, 375)
    # 10 m ahead, 2 m to the right, on the ground:
    # (700 * 2 + 600 * 10 + 45) / 10.003, (700 * 1.65 + 180 * 10 + 0.2) / 10.003
    pixel, depth_m = camera.project(np.array([[2.0, 10.0, 0.0]]))
    np.testing.assert_allclose(pixel, [[744.27672, 295.43137]], atol=1e-4)
    assert (depth_m == pytest.approx(10.003)
            and world_of(np.array([2, 1.65, 10])).tolist() == [2, 10, 0])
    # camera 2 is level and 6.4 cm to the left of camera 0, which is 1.65 m above the ground
    np.testing.assert_allclose(camera.position_world,
                               [-(45 - 600 * 0.003) / 700, -0.003,
                                1.65 - (0.2 - 180 * 0.003) / -700],
                               atol=1e-12)
    right, forward = camera.ground_axes()
    assert right.tolist() == [1, 0, 0] and forward.tolist() == [0, 1, 0]
    # the car of CAR_LINE, x 0..4, z 9..11:
    # left (600 * 11 + 45) / 11.003, right (700 * 4 + 600 * 9 + 45) / 9.003, ...
    box = projected_box(item("Car", 0, 0, 1, 1, bottom=(2, 1.65, 10), size=(2, 2, 4), yaw=0.0), P2)
    np.testing.assert_allclose(box, [603.926, 152.749, 915.806, 308.253], atol=1e-3)


def test_yaw_by_hand():
    # a car with rotation_y pi / 2 faces the camera (KITTI's heading is (cos, -sin) in x and z),
    # which is -y in the world
    assert (yaw_of(math.pi / 2) == -math.pi / 2 and yaw_of(-math.pi / 2) == math.pi / 2
            and yaw_of(0) == 0)
    assert yaw_of(3.5) == pytest.approx(2 * math.pi - 3.5)


def test_projections_agree_with_the_development_kit_s_formula():
    rng = np.random.default_rng(0)
    for _ in range(50):
        o = item("Car", 0, 0, 1, 1, bottom=tuple(rng.uniform((-9, 0.5, 8), (9, 2.5, 50))),
                 size=tuple(rng.uniform(1, 5, 3)), yaw=float(rng.uniform(-4, 4)))
        corners = np.array(corners_px(o, P2))
        np.testing.assert_allclose(projected_box(o, P2),
                                   [*corners.min(0), *corners.max(0)], atol=1e-8)


def test_the_worked_example_and_real_projections(real_data):
    root = real_data("kitti")
    car = read_objects(root / "training/label_2/000001.txt")[1]
    expected = [387.88, 181.46, 423.77, 203.29]
    np.testing.assert_allclose(projected_box(car, read_calib(root / "training/calib/000001.txt")),
                               expected, atol=0.006)
    variants = {str(i): read_calib(root / f"all_labels/calib_variant_{i}.txt") for i in range(4)}
    with open(root / "all_labels/calib_variant_of_frame.csv", encoding="utf-8") as file:
        variant_of = {row["frame"]: row["variant"] for row in csv.DictReader(file)}
    cars = [(variant_of[stem], o) for stem, objects in all_labels(root).items() for o in objects
            if o.type == "Car" and o.occluded == 0 and o.truncated == 0]
    overlaps = [box_iou(projected_box(o, variants[v])[None], np.array(o.box_px)[None])[0, 0]
                for v, o in cars]
    assert len(overlaps) == 11017
    assert (np.median(overlaps) == pytest.approx(0.975, abs=5e-4)
            and np.quantile(overlaps, 0.05) > 0.95)


def test_the_paper_s_camera():
    camera = paper_camera(1242, 375)
    assert camera.K.tolist() == [[621, 0, 621], [0, 621, 187.5], [0, 0, 1]]
    assert camera.position_world.tolist() == [0, 0, CAMERA_HEIGHT_M]
    # with a 90-degree field of view, points at 45 degrees project onto the image edge
    np.testing.assert_allclose(camera.project(np.array([[10.0, 10, 1.65], [-10, 10, 1.65]]))[0],
                               [[1242, 187.5], [0, 187.5]])


# --- graphs ---------------------------------------------------------------------------------------

SCENE = [item("Car", 600, 150, 900, 300, occluded=1, truncated=0.2, bottom=(2, 1.65, 10),
              size=(1.5, 1.8, 4), yaw=0),
         item("Van", 300, 150, 400, 250, bottom=(-5, 1.65, 20), size=(2, 2, 5), yaw=0),
         item("DontCare", 10, 10, 1241, 40, occluded=-1, truncated=-1),
         item("Truck", 0, 0, 100, 100, bottom=(9, 1.65, 9), size=(3, 3, 9), yaw=0),
         item("Person_sitting", 500, 150, 520, 200, bottom=(0, 1.65, 15), size=(1, 1, 1), yaw=0),
         item("Pedestrian", 100, 100, 140, 220, occluded=3, bottom=(-5, 1.65, 10.05),
              size=(1.7, 0.6, 0.8), yaw=0),
         item("House", 900, 0, 1250, 200)]


def test_what_becomes_of_each_type():
    graph = to_graph("training/image_2/3.png", SCENE, STREET, ENV)
    assert (graph.image, graph.width, graph.height) == ("training/image_2/3.png", 1242, 375)
    # car, van, DontCare (once per category), Person_sitting, Pedestrian, House
    assert graph.labels.tolist() == [CAR, CAR, CAR, PEDESTRIAN, HOUSE, VEGETATION, PEDESTRIAN,
                                     PEDESTRIAN, HOUSE]
    assert graph.ignore.tolist() == [False, False, True, True, True, True, False, False, False]
    assert graph.is_ground_truth.tolist() == [True, False, False, False, False, False,
                                              False, True, True]
    assert (graph.visible[[0, 1, 6, 7, 8]].tolist() == [0.675, 0, 0, 0.1, 1]
            and graph.truncated[0] == 0.2)
    assert (graph.boxes_px[0].tolist() == [600, 150, 900, 300]
            and graph.boxes_px[8].tolist() == [900, 0, 1242, 200])
    # the car is 7 m to the right of the pedestrian and their depths differ by 0.05 m, which is
    # within the margin; no other pair has relations
    assert graph.relations.tolist() == [[0, RIGHT, 7], [7, LEFT, 0]]


def test_a_van_is_a_car_if_one_says_so():
    graph = to_graph("3.png", SCENE, STREET, ENV, van="car")
    assert graph.is_ground_truth.tolist() == [True, True, False, False, False, False,
                                              False, True, True]
    # the van is 7 m to the left of the car and 10 m behind it, and 9.95 m behind the pedestrian,
    # who is equally far to the left
    assert graph.relations.tolist() == [
        [0, RIGHT, 1], [0, FRONT, 1], [0, RIGHT, 7], [1, LEFT, 0], [1, BEHIND, 0],
        [1, BEHIND, 7], [7, LEFT, 0], [7, FRONT, 1]]


def test_vans_and_dontcare_are_neither_right_nor_wrong():
    boxes = {"car": (600, 150, 900, 300), "van": (300, 150, 400, 250), "region": (50, 12, 100, 38),
             "truck": (0, 0, 100, 100)}

    def ap(*names, van="ignore"):
        found = make_graph("3.png", 1242, 375, [CAR] * len(names), [boxes[n] for n in names],
                           scores=[0.9 - 0.1 * i for i in range(len(names))])
        truth = to_graph("3.png", SCENE, STREET, ENV, van)
        return detection_scores([truth], [found], VOCABULARY)["ap50"]["car"]

    assert ap("car") == ap("van", "car") == ap("region", "region", "car") == 1
    # a truck is not a car, and a van is matched only once
    assert ap("truck", "car") == ap("van", "van", "car") == 0.5
    assert ap("car", van="car") == pytest.approx(51 / 101) and ap("van", "car", van="car") == 1


def test_occlusion_states_are_the_levels():
    states = [item("Car", 10, 10, 60, 60, occluded=state) for state in (0, 1, 2, 3)]
    graph = to_graph("a.png", states, STREET, ENV)
    assert [inside_level(graph, LEVELS[name]).tolist()
            for name in ("easy", "moderate", "hard", "all")] == [
        [True, False, False, False], [True, True, False, False], [True, True, True, False],
        [True] * 4]
    assert [occlusion_state(v) for v in graph.visible] == [0, 1, 2, 3]
    assert [occlusion_state(v) for v in (0.86, 0.85, 0.84, 0.5, 0.49, 0.2, 0.19, 0)] == [
        0, 0, 1, 1, 2, 2, 3, 3]


def test_a_box_outside_the_image_is_refused():
    outside = item("Car", 1300, 10, 1350, 60)
    assert "a.png: box (1300, 10, 1350, 60) lies outside the image of 1242x375" in complaint(
        to_graph, "a.png", [SCENE[0], outside], STREET, ENV)
    read = replace(outside, where="label_2/000000.txt:3")
    assert "label_2/000000.txt:3: box (1300" in complaint(
        to_graph, "a.png", [SCENE[0], read], STREET, ENV)


# --- folders --------------------------------------------------------------------------------------

def test_a_kitti_folder_opens_with_its_calibration_or_the_paper_s_camera(folder):
    for given, prefix in ((folder, "training/image_2/"), (folder / "training", "image_2/")):
        images = open_images(given, ENV)
        assert (images.folder == given
                and images.names == [prefix + "000000.png", prefix + "000007.png"])
        assert kitti_root(given) == folder / "training" and has_labels(given)
        np.testing.assert_allclose(images.cameras[0].K, P2[:, :3])
        assert open_images(given, ENV, "paper").cameras[0].K.tolist() == STREET.K.tolist()
        first, second = read_labels(images, ENV)
        assert (first.image == prefix + "000000.png" and first.labels.tolist() == [CAR]
                and len(second) == 0)
    shutil.rmtree(folder / "training/label_2")
    assert not has_labels(folder) and len(open_images(folder, ENV).names) == 2


def test_what_is_missing_or_too_much_is_named(folder, tmp_path):
    root = folder / "training"
    images = open_images(folder, ENV)
    (root / "label_2/000009.txt").write_text("")
    assert "label_2/000009.txt: no image 000009 in" in complaint(read_labels, images, ENV)
    (root / "label_2/000009.txt").unlink()
    (root / "label_2/000007.txt").unlink()
    assert "label_2/000007.txt: no such file, expected a KITTI label file" in complaint(
        read_labels, images, ENV)
    (root / "calib/000007.txt").unlink()
    assert "calib/000007.txt: no such file, expected a KITTI calibration file" in complaint(
        open_images, folder, ENV)
    assert len(open_images(folder, ENV, "paper").names) == 2  # needs no calibration
    assert f"KITTI labels {', '.join(TYPES)}, the environment clevr has only cube" in complaint(
        read_labels, images, clevr.ENV)
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.new("RGB", (1242, 375)).save(plain / "a.png")
    assert "--camera paper is for a KITTI folder" in complaint(open_images, plain, ENV, "paper")
    assert "--van car is for a KITTI folder" in complaint(
        read_labels, open_images(plain, ENV), ENV, "car")
    shutil.rmtree(root / "image_2")
    (root / "image_2").mkdir()
    assert "image_2: no PNG or JPEG image in it" in complaint(open_images, folder, ENV)


def test_houses_and_vegetation_come_from_label_2_extra(folder):
    root = folder / "training"
    assert unlabeled_categories(root, ENV) == ("house", "vegetation")
    (root / "label_2_extra").mkdir()
    (root / "label_2_extra/000000.txt").write_text(
        "House 0.1 2 -10 900 20 1240 200 -1 -1 -1 -1000 -1000 -1000 -10\n"
        "Vegetation 0 0 -10 20 20 90 200 4 3 3 -8 1.65 20 0\n")
    assert "label_2_extra/000007.txt: no such file" in complaint(
        read_labels, open_images(folder, ENV), ENV)
    (root / "label_2_extra/000007.txt").write_text("")
    assert unlabeled_categories(root, ENV) == ()
    graph = read_labels(open_images(folder, ENV), ENV)[0]
    assert (graph.labels.tolist() == [CAR, HOUSE, VEGETATION]
            and graph.visible.tolist() == [1, 0.35, 1])
    # the position of the house is unknown, so it has no relations
    assert graph.relations.tolist() == [[0, RIGHT, 2], [0, FRONT, 2], [2, LEFT, 0], [2, BEHIND, 0]]


def test_each_type_has_its_folder(folder):
    """The folders determine which categories are labeled, so a house in label_2/ is an error."""
    root, images = folder / "training", open_images(folder, ENV)
    for kind in TYPES[:-2]:  # all of KITTI's own
        (root / "label_2/000007.txt").write_text(CAR_LINE.replace("Car", kind))
        assert len(read_labels(images, ENV)) == 2
    (root / "label_2/000007.txt").write_text(f"{CAR_LINE}\n{CAR_LINE.replace('Car', 'House')}\n")
    words = "expected House and Vegetation in label_2_extra/, all others in label_2/"
    assert f"{root}/label_2/000007.txt:2: type: 'House', {words}" in complaint(
        read_labels, images, ENV)
    shutil.rmtree(root / "label_2")
    shutil.copytree(write_frames(folder / "more", {"000000": CAR_LINE, "000007": ""}) / "label_2",
                    root / "label_2")
    shutil.copytree(root / "label_2", root / "label_2_extra")  # duplicates every car
    assert f"{root}/label_2_extra/000000.txt:1: type: 'Car', {words}" in complaint(
        read_labels, images, ENV)


def test_any_of_kitti_s_types_may_be_a_category(folder):
    env = replace(ENV, vocabulary=Vocabulary(("cyclist", "truck"), VOCABULARY.predicates))
    (folder / "training/label_2/000007.txt").write_text(
        f"{CAR_LINE}\n{CAR_LINE.replace('Car', 'Cyclist')}\n")
    assert [graph.labels.tolist()
            for graph in read_labels(open_images(folder, env), env)] == [[], [0]]
    assert unlabeled_categories(folder / "training", env) == ()


@pytest.mark.parametrize("kept", ["label_2", "calib"])
def test_labels_without_images_are_told_from_a_folder_of_photos(folder, kept):
    for name in {"image_2", "label_2", "calib"} - {kept}:
        shutil.rmtree(folder / "training" / name)
    for given in (folder, folder / "training"):
        assert complaint(open_images, given, ENV) == (
            f"{folder}/training: has {kept}/ and no image_2/, expected image_2/ with PNG or JPEG "
            "images")


def test_the_real_frames_open_and_their_labels_are_graphs(real_data):
    images = open_images(real_data("kitti"), ENV)
    graphs = read_labels(images, ENV)
    assert (len(graphs) == 17
            and {(c.width, c.height) for c in images.cameras}
            == {(1242, 375), (1224, 370), (1238, 374)})
    first = graphs[images.names.index("training/image_2/000001.png")]
    # a car and three regions per category; the truck and the cyclist are not in our vocabulary
    assert (first.labels[first.is_ground_truth].tolist() == [CAR]
            and int(first.ignore.sum()) % 4 == 0 and first.ignore.any())


# --- the official scores --------------------------------------------------------------------------

def slow_counts(truth, found, category, limits, threshold, pick):
    """Evaluate one image at one threshold by the rules of the development kit, step by step.

    pick: "score" or "overlap". Returns the scores of the true positives and the number of false
    positives.
    """
    least = {"car": 0.7, "pedestrian": 0.5}[category]
    neighbor = {"car": "Van", "pedestrian": "Person_sitting"}[category]

    def shared(a, b):
        return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

    def size(a):
        return (a[2] - a[0]) * (a[3] - a[1])

    def gt_flag(o):
        if o.type == neighbor:
            return 1
        if o.type.lower() != category:
            return -1
        easy_enough = (o.box_px[3] - o.box_px[1] > limits.min_height_px
                       and o.occluded <= limits.max_occluded)
        return 0 if easy_enough and o.truncated <= limits.max_truncated else 1

    def det_flag(o):
        return (1 if int(o.box_px[3] - o.box_px[1]) < limits.min_height_px
                else 0 if o.type.lower() == category else -1)

    used, hits = set(), []
    for gt in truth:
        best = None
        for j, det in enumerate(found):
            overlap = shared(gt.box_px, det.box_px)
            overlap /= size(gt.box_px) + size(det.box_px) - overlap
            if (gt_flag(gt) == -1 or det_flag(det) == -1 or j in used or det.score < threshold
                    or overlap <= least):
                continue
            rank = det.score if pick == "score" else overlap if det_flag(det) == 0 else 0
            if best is None or rank > best[0]:
                best = (rank, j)
        if best is None:
            continue
        used.add(best[1])
        if gt_flag(gt) == 0 and det_flag(found[best[1]]) == 0:
            hits.append(found[best[1]].score)
    false = [det for j, det in enumerate(found)
             if j not in used and det_flag(det) == 0 and det.score >= threshold]
    regions = [o.box_px for o in truth if o.type == "DontCare"]
    false = [d for d in false
             if all(shared(d.box_px, r) / size(d.box_px) <= least for r in regions)]
    return hits, len(false)


TOY_TRUTH = [item("Car", 100, 100, 200, 160), item("Car", 300, 100, 340, 130),
             item("Van", 400, 100, 480, 160), item("DontCare", 600, 100, 700, 160),
             item("Car", 10, 100, 90, 160, truncated=0.4), item("Pedestrian", 950, 100, 980, 170)]
TOY_FOUND = [item("Car", *box, score=score) for box, score in [
    ((102, 100, 200, 160), 0.9), ((300, 100, 340, 131), 0.8), ((400, 100, 480, 160), 0.7),
    ((605, 105, 690, 150), 0.6), ((800, 100, 900, 160), 0.5), ((820, 200, 860, 220), 0.4),
    ((10, 100, 90, 160), 0.3), ((950, 100, 980, 170), 0.2)]]


@pytest.mark.parametrize("difficulty, valid, thresholds, counts, everything", [
    ("easy", [True, False, False, False], [0.9], [[1, 0]], (1, 2)),
    ("moderate", [True, True, False, False], [0.9, 0.8], [[1, 0], [2, 0]], (2, 2)),
    ("hard", [True, True, False, True], [0.9, 0.8, 0.3], [[1, 0], [2, 0], [3, 1]], (3, 2))])
def test_the_toy_by_hand(difficulty, valid, thresholds, counts, everything):
    """Cars A, B (low) and C (truncated), a van, a region and a pedestrian.

    The detections on the van and in the region are not counted as false positives.
    """
    limits = DIFFICULTIES[difficulty]
    frame = make_frame(TOY_TRUTH, TOY_FOUND, "car", limits)
    assert frame.valid.tolist() == valid
    assert sample_thresholds(match_by_score(frame), sum(valid)) == thresholds
    assert count_hits([frame], thresholds).tolist() == counts  # hard: precision 1, 1, .75
    assert count_hits([frame], [0.0]).tolist() == [list(everything)]
    hits, false = slow_counts(TOY_TRUTH, TOY_FOUND, "car", limits, 0.0, "overlap")
    assert (len(hits), false) == everything


def random_frame(rng: np.random.Generator) -> tuple[list[KittiObject], list[KittiObject]]:
    def box(high):
        x, y, w, h = rng.integers((0, 0, 20, 18), (60, 30, 60, high))
        return tuple(map(float, (x, y, x + w, y + h)))

    kinds = ["Car", "Car", "Van", "Pedestrian", "Pedestrian", "Person_sitting", "DontCare"]
    truth = [item(str(rng.choice(kinds)), *box(60), truncated=float(rng.choice([0, 0, 0.2, 0.4])),
                  occluded=int(rng.choice([0, 0, 1, 2, 3]))) for _ in range(rng.integers(1, 7))]
    found = []
    for _ in range(rng.integers(0, 9)):
        moved = np.array(truth[rng.integers(len(truth))].box_px) + rng.integers(-3, 4, 4)
        place_px = tuple(map(float, moved)) if rng.random() < 0.8 else box(60)
        found.append(item(str(rng.choice(["Car", "Pedestrian"])), *place_px,
                          score=float(rng.integers(1, 30)) / 30))
    return truth, found


@pytest.mark.parametrize("category", ["car", "pedestrian"])
def test_random_frames_agree_with_the_slow_twin(category):
    rng, compared = np.random.default_rng(1), 0
    for _ in range(3):
        truth, found = zip(*(random_frame(rng) for _ in range(250)))
        for difficulty, limits in DIFFICULTIES.items():
            score, objects = kitti_score(list(truth), list(found), category, difficulty)
            if score is None:
                assert objects < 41
                continue
            hits = [s for t, f in zip(truth, found)
                    for s in slow_counts(t, f, category, limits, -1, "score")[0]]
            precision = [0.0] * 41
            for k, threshold in enumerate(sample_thresholds(hits, objects)):
                rows = [slow_counts(t, f, category, limits, threshold, "overlap")
                        for t, f in zip(truth, found)]
                right, wrong = sum(len(row[0]) for row in rows), sum(row[1] for row in rows)
                precision[k] = right / max(right + wrong, 1)
            expected = [max(precision[k:]) for k in range(41)]
            assert score.precision.tolist() == pytest.approx(expected, abs=1e-12)
            assert score.ap11 == pytest.approx(sum(expected[k] for k in range(0, 41, 4)) / 11)
            assert score.ap40 == pytest.approx(sum(expected[1:]) / 40)
            compared += 0 < score.ap40 < 1
    assert compared >= 6


@pytest.mark.parametrize("objects, ap11, ap40", [
    (1, 0.0909, 0), (10, 0.2727, 0.225), (20, 0.4545, 0.475), (40, 0.9091, 0.975),
    (41, 1, 1), (500, 1, 1)])
def test_a_perfect_detector_needs_41_objects(monkeypatch, objects, ap11, ap40):
    truth = [[item("Car", 0, 0, 100, 100)] for _ in range(objects)]
    found = [[item("Car", 0, 0, 100, 100, score=1 - i / 1000)] for i in range(objects)]
    assert (kitti_score(truth, found, "car", "easy")[0] is None) == (objects < 41)
    monkeypatch.setattr(kitti_ap, "MIN_OBJECTS", 1)
    score, count = kitti_score(truth, found, "car", "easy")
    assert (count == objects
            and (score.ap11, score.ap40)
            == (pytest.approx(ap11, abs=5e-5), pytest.approx(ap40, abs=5e-5)))


def test_overlaps_are_strict_and_low_detections_excused():
    assert make_frame([item("Car", 0, 0, 100, 100)], [item("Car", 0, 0, 100, 70, score=1)], "car",
                      DIFFICULTIES["easy"]).overlap.tolist() == [[0]]  # IoU of exactly .7
    # heights of 40.9 and 39.9 pixels are rounded down to 40 and 39: the second is too low, and
    # matches a car although it is a pedestrian
    truth = [item("Car", 0, 0, 100, 41)]
    for kind, height, hits in (("Car", 40.9, [0.5]), ("Car", 39.9, []), ("Pedestrian", 40.9, [])):
        frame = make_frame(truth, [item(kind, 0, 0, 100, height, score=0.5)], "car",
                           DIFFICULTIES["easy"])
        assert match_by_score(frame) == hits
    low_pedestrian = make_frame(truth, [item("Pedestrian", 0, 0, 100, 39.9, score=0.5)], "car",
                                DIFFICULTIES["easy"])
    assert (low_pedestrian.overlap.shape == (1, 1)
            and count_hits([low_pedestrian], [0.0]).tolist() == [[0, 0]])


def test_the_official_program_s_curves(real_data, tmp_path):
    """All 3 x 41 precisions of a real detector on the 3,769 validation frames.

    The expected values were printed by KITTI's official program.
    """
    root = real_data("kitti")
    evaluation = root / "eval/fpointnet_val2ddet"
    with tarfile.open(evaluation / "det_val3769.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    stems, labels = (root / "eval/val.txt").read_text().split(), all_labels(root)
    assert len(stems) == 3769
    truth = [labels[stem] for stem in stems]
    found = [read_objects(tmp_path / "data" / f"{stem}.txt", results=True) for stem in stems]
    curves = np.loadtxt(evaluation / "stats_car_detection.txt")
    published = {"easy": (2906, 89.0628, 91.3023), "moderate": (7874, 84.4204, 87.2961),
                 "hard": (10960, 75.6144, 79.6726)}
    for (difficulty, (objects, ap11, ap40)), curve in zip(published.items(), curves):
        score, count = kitti_score(truth, found, "car", difficulty)
        np.testing.assert_allclose(score.precision, curve, atol=1e-6)
        assert count == objects == score.objects
        assert ((100 * score.ap11, 100 * score.ap40)
                == (pytest.approx(ap11, abs=5e-5), pytest.approx(ap40, abs=5e-5)))


# --- export ---------------------------------------------------------------------------------------

def test_exported_lines_by_hand(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1242, 375)).save(tmp_path / "images/000000.png")
    graph = make_graph("images/000000.png", 1242, 375, [CAR, HOUSE],
                       [[700, 180, 900, 300], [0, 0.5, 99.25, 375]],
                       visible=[0.6, 0.1], truncated=[0, 0.333])
    # 10 m ahead and 2 m to the right on the ground, facing away; alpha = -pi / 2 - atan2(2, 10)
    items = [SceneObject(CAR, "box", (2.0, 10.0, 0.0), (4.0, 1.8, 1.5), math.pi / 2),
             SceneObject(HOUSE, "box", (-6.0, 8.0, 0.5), (8.0, 7.0, 6.0), 0.0)]
    write_kitti(tmp_path, [graph], [items], [STREET], VOCABULARY)
    root = tmp_path / "kitti/training"
    assert (root / "label_2/000000.txt").read_text().splitlines() == [
        "Car 0.00 1 -1.77 700.00 180.00 900.00 300.00 1.50 1.80 4.00 2.00 1.65 10.00 -1.57"]
    # KITTI has no house labels
    assert (root / "label_2_extra/000000.txt").read_text().splitlines() == [
        "House 0.33 3 0.64 0.00 0.50 99.25 375.00 6.00 7.00 8.00 -6.00 1.15 8.00 0.00"]
    assert (root / "calib/000000.txt").read_text().splitlines()[2] == "P2: " + " ".join(
        f"{v:.12e}" for v in (621, 0, 621, 0, 0, 621, 187.5, 0, 0, 0, 1, 0))
    assert (root / "image_2/000000.png").read_bytes() == (
        tmp_path / "images/000000.png").read_bytes()
    write_coco(tmp_path, [graph], VOCABULARY)
    content = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "000000.png", "width": 1242, "height": 375}]
    assert content["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "pedestrian"},
                                     {"id": 3, "name": "house"}, {"id": 4, "name": "vegetation"}]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [700, 180, 200, 120],
         "area": 24000, "iscrowd": 0, "segmentation": [[700, 180, 900, 180, 900, 300, 700, 300]]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0.5, 99.25, 374.5],
         "area": 99.25 * 374.5, "iscrowd": 0,
         "segmentation": [[0, 0.5, 99.25, 0.5, 99.25, 375, 0, 375]]}]
    assert (tmp_path / "coco/images/000000.png").is_file()


def test_a_camera_turned_about_the_vertical_is_its_own_frame(tmp_path):
    """An object ahead of a camera that looks along the world's x axis is exported as ahead."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1242, 375)).save(tmp_path / "images/000000.png")
    east = replace(STREET, R=np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]),
                   t=np.array([5.0, 1.65, 0]))
    graph = make_graph("images/000000.png", 1242, 375, [CAR], [[700, 180, 900, 300]])
    write_kitti(tmp_path, [graph],
                [[SceneObject(CAR, "box", (10.0, 3.0, 0.0), (4.0, 1.8, 1.5), 0.0)]],
                [east], VOCABULARY)
    # 10 m ahead, 5 - 3 = 2 m to the right, facing away
    assert (tmp_path / "kitti/training/label_2/000000.txt").read_text().split()[11:] == [
        "2.00", "1.65", "10.00", "-1.57"]
    tilted = replace(STREET, R=np.array([[1, 0, 0], [0, -0.6, -0.8], [0, 0.8, -0.6]]))
    shutil.rmtree(tmp_path / "kitti")
    assert "the camera of images/000000.png is tilted by 36.9 degrees" in complaint(
        write_kitti, tmp_path, [graph], [[]], [tilted], VOCABULARY)


def command(program, *arguments, code: int = 0) -> str:
    """Run a script's click command in this process and return its output.

    Running in this process lets the command use an environment defined in the tests.
    """
    result = click.testing.CliRunner().invoke(program.main, [str(a) for a in arguments])
    assert (result.exit_code == code
            and (result.exception is None
                 or isinstance(result.exception, SystemExit))), result.output
    if code:
        assert len(result.output.strip().splitlines()) == 1, result.output
    return result.output


@pytest.fixture
def street(monkeypatch):
    monkeypatch.setattr(envs, "find", lambda name, where="": ENV)


def test_a_rendered_data_set_exported_and_read_by_others(street, tmp_path):
    out = tmp_path / "set"
    command(synthesize, "--env", "street", "--num", 5, "--export", "kitti,coco", "--out", out)
    graphs = read_graphs(out / "graphs.jsonl", VOCABULARY)
    # excludes the car behind the camera and, in one image, a car hidden by the pedestrian
    assert sorted(len(graph) for graph in graphs) == [3, 4, 4, 4, 4]
    # KITTI: the labels are read back as the same graph, and each 3-D box projects onto its 2-D box
    images = open_images(out / "kitti",
                         replace(ENV, world=replace(ENV.world, camera=STREET.resized(414, 125))))
    overlaps = []
    for graph, back, name in zip(graphs, read_labels(images, ENV), images.names, strict=True):
        assert (back.labels.tolist() == graph.labels.tolist()
                and back.relations.tolist() == graph.relations.tolist())
        np.testing.assert_allclose(back.boxes_px, graph.boxes_px, atol=0.006)
        root, stem = out / "kitti/training", Path(name).stem
        clear = [o for o in read_objects(root / "label_2" / f"{stem}.txt")
                 if (o.occluded, o.truncated) == (0, 0)]
        projection = read_calib(root / "calib" / f"{stem}.txt")
        overlaps += [box_iou(projected_box(o, projection)[None], np.array(o.box_px)[None])[0, 0]
                     for o in clear]
    # 2-D boxes are rounded to whole pixels of a small image
    assert len(overlaps) >= 10 and min(overlaps) > 0.85 and np.median(overlaps) > 0.92
    # COCO: pycocotools loads the file, and its own boxes get a perfect score
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(out / "coco/annotations.json"))
        perfect = truth.loadRes(
            [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5}
             for a in truth.loadAnns(truth.getAnnIds())])
        evaluator = COCOeval(truth, perfect, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    first = truth.loadAnns(truth.getAnnIds())[0]
    x, y, width, height = map(round, first["bbox"])
    mask = truth.annToMask(first)  # boxes end at whole pixels
    assert (mask.shape == (125, 414)
            and mask.sum() == width * height == mask[y:y + height, x:x + width].sum())
    assert evaluator.stats[0] == 1 and len(truth.getAnnIds()) == sum(map(len, graphs))
    assert all((out / "coco/images" / image["file_name"]).is_file()
               for image in truth.loadImgs(truth.getImgIds()))


def test_a_set_of_splits_is_exported_split_by_split(street, tmp_path):
    command(synthesize, "--domain", "target", "--num", 3, "--export", "coco",
            "--out", tmp_path / "set")
    assert all((tmp_path / "set" / name / "coco/annotations.json").is_file()
               for name in ("train", "val", "test"))
    assert not (tmp_path / "set/test/kitti").exists()


# --- the command lines ----------------------------------------------------------------------------

@pytest.fixture
def network(tmp_path):
    """A checkpoint of an untrained street network that records a source of one labeled image."""
    config = replace(quick_config(4, 4, 160, 48, imagenet=False), fpn_channels=32, head_width=64,
                     graph_width=32, proposals_test=32)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/graphs.jsonl").write_text(
        '{"image": "a.png", "width": 10, "height": 10, '
        '"objects": [{"category": "car", "box": [1, 1, 5, 5]}, '
        '{"category": "house", "box": [1, 1, 5, 5]}], "relations": []}\n')
    path = tmp_path / "run/model.pt"
    path.parent.mkdir()
    checkpoint.save(path, SceneGraphNet(config, pretrained=False), ENV,
                    {"source": [str(tmp_path / "source")], "target": None})
    return path


def test_evaluate_on_kitti(street, network, folder, tmp_path):
    printed = command(evaluate, "--checkpoint", network, "--data", folder)
    assert ("no labels of house and vegetation (label_2_extra/): "
            "scores are for car and pedestrian only") in printed
    assert ("AP11 / AP40 by KITTI's rules at overlap 0.7, car:  "
            "easy     - /     - (1 objects, needs 41)") in printed
    metrics = json.loads((network.parent / "metrics.json").read_text())
    assert (metrics["kitti"]["car"]["easy"] == {"objects": 1, "ap11": None, "ap40": None}
            and metrics["van"] == "ignore")
    assert set(metrics["kitti"]) == {"car", "pedestrian"} and metrics["objects"] == 1
    # without houses, the source has one object per image and the target has one and none: half of
    # the images differ
    assert (metrics["content_gap"]["objects_per_image"] == 0.5
            and metrics["content_gap"]["categories"] == 0)
    (folder / "training/label_2/000007.txt").write_text(CAR_LINE.replace("Car", "Van"))
    line = command(evaluate, "--checkpoint", network, "--data", folder, "--van", "car", code=3)
    assert "holds the metrics of van ignore" in line
    command(evaluate, "--checkpoint", network, "--data", folder, "--van", "car", "--overwrite")
    assert json.loads((network.parent / "metrics.json").read_text())["objects"] == 2
    shutil.rmtree(folder / "training/label_2")
    out = ("--out", tmp_path / "unlabeled")
    assert "no scores without labels" in command(
        evaluate, "--checkpoint", network, "--data", folder, *out)
    line = command(evaluate, "--checkpoint", network, "--data", folder, "--van", "car",
                   "--overwrite", *out, code=3)
    assert "label_2/000000.txt: no such file" in line


def test_kitti_scores_of_enough_objects_are_printed(street, network, tmp_path, monkeypatch):
    """A stand-in for the network finds all 41 cars."""
    data = write_frames(tmp_path / "many/kitti/training", {f"{i:06d}": CAR_LINE for i in range(41)})
    found = {"labels": [CAR], "boxes_px": [[603.93, 152.73, 915.81, 308.23]], "scores": [0.5]}
    monkeypatch.setattr(predict, "predict_folder", lambda model, images, *_: [
        make_graph(name, 1242, 375, **found) for name in images.names])
    printed = command(evaluate, "--checkpoint", network, "--data", data)
    assert ("AP11 / AP40 by KITTI's rules at overlap 0.7, car:  "
            "easy 1.000 / 1.000   moderate 1.000 / 1.000") in printed
    assert "our data sets" not in printed
    # marks the folder as an export of one of our data sets
    (tmp_path / "many/dataset.json").write_text("{}")
    for given in (data, data.parent):
        printed = command(evaluate, "--checkpoint", network, "--data", given, "--overwrite")
        assert (f"{given} is one of our data sets in KITTI's format: "
                "its AP11 and AP40 are no scores on KITTI\n") in printed
    metrics = json.loads((network.parent / "metrics.json").read_text())
    assert (metrics["kitti"]["car"]["hard"] == {"objects": 41, "ap11": 1, "ap40": 1}
            and metrics["ap50"]["car"] == 1)
    assert to_results(make_graph("a.png", 1242, 375, **found), VOCABULARY) == [
        item("Car", 603.93, 152.73, 915.81, 308.23, score=0.5, truncated=-1, occluded=-1)]


def test_houses_that_nobody_labeled_cost_no_recall(street, network, tmp_path, monkeypatch):
    """Houses are not counted without label_2_extra/.

    The detections are two cars and twelve houses with higher scores.
    """
    near = "Car 0.00 0 -1.37 100.00 150.00 300.00 300.00 2.00 2.00 4.00 -6.00 1.65 10.00 0.00"
    data = write_frames(tmp_path / "two", {"000000": f"{CAR_LINE}\n{near}\n"})
    cars = [[603.93, 152.73, 915.81, 308.23], [100, 150, 300, 300]]
    houses = [[50 * i, 10, 50 * i + 40, 60] for i in range(12)]
    pairs = [(s, RIGHT, o) for s in range(14) for o in range(14) if s != o and (s < 2 or o < 2)]
    monkeypatch.setattr(predict, "predict_folder", lambda model, images, *_: [make_graph(
        images.names[0], 1242, 375, [CAR] * 2 + [HOUSE] * 12, cars + houses, pairs,
        scores=[0.5] * 2 + [0.9] * 12)])
    command(evaluate, "--checkpoint", network, "--data", data)
    metrics = json.loads((network.parent / "metrics.json").read_text())
    assert metrics["recall_per_predicate"]["right"]["20"] == 1 and metrics["ap50"]["car"] == 1


def test_kitti_s_images_without_their_cameras_are_refused(street, network, folder):
    line = command(evaluate, "--checkpoint", network, "--data", folder / "training/image_2", code=3)
    assert ("holds the images of a KITTI folder without their cameras, expected "
            f"{folder / 'training'}") in line


def test_a_loop_with_the_paper_s_camera_needs_no_calibration(street, network, folder, tmp_path):
    scores = []
    for camera in ([], ["--camera", "paper"]):  # the ground's axes are the same
        if camera:
            shutil.rmtree(folder / "training/calib")
            line = command(evaluate, "--checkpoint", network, "--data", folder,
                           "--out", tmp_path / "x", code=3)
            assert ("calib/000000.txt: no such file, expected a KITTI calibration file, "
                    "or --camera paper") in line
        out = tmp_path / f"scores{len(camera)}"
        command(evaluate, "--checkpoint", network, "--data", folder, *camera, "--out", out)
        scores.append(json.loads((out / "metrics.json").read_text()))
    assert [row.pop("camera") for row in scores] == ["calib", "paper"]
    assert scores[0] | {"command": 0} == scores[1] | {"command": 0} and scores[0]["objects"] == 1
    assert "holds the metrics of camera paper" in command(
        evaluate, "--checkpoint", network, "--data", folder,
        "--camera", "calib", "--out", out, code=3)
    command(synthesize, "--checkpoint", network, "--target", folder,
            "--camera", "paper", "--num", 2, "--out", tmp_path / "lifted")
    command(train, "--source", tmp_path / "lifted", "--target", folder, "--align", "appearance",
            "--init", network, "--steps", 1, "--out", tmp_path / "aligned")
    # the report opens the test set with the camera that was used in the evaluation
    loop = tmp_path / "loop/start"
    loop.mkdir(parents=True)
    for source, names in ((out, ("metrics.json", "curves.json", "predictions.jsonl")),
                          (tmp_path / "aligned", ("config.json", "log.jsonl"))):
        for name in names:
            shutil.copy(source / name, loop / name)
    command(evaluate, "report", tmp_path / "loop")
    assert (tmp_path / "loop/report.html").is_file()


def test_kitti_is_a_target_to_lift_and_to_align_with(street, network, folder, tmp_path):
    shutil.rmtree(folder / "training/label_2")  # neither program needs labels
    for camera, focal_px in (([], 700), (["--camera", "paper"], 621)):
        out = tmp_path / f"lifted{len(camera)}"
        command(synthesize, "--env", "street", "--checkpoint", network, "--target", folder, *camera,
                "--export", "kitti", "--num", 2, "--out", out)
        views = [json.loads(line) for line in (out / "cameras.jsonl").read_text().splitlines()]
        assert [round(view["K"][0][0] * 3, 6) for view in views] == [focal_px] * 2
        assert (out / "kitti/training/label_2/000001.txt").is_file()
    command(train, "--source", tmp_path / "lifted0", "--target", folder, "--align", "appearance",
            "--init", network, "--steps", 1, "--out", tmp_path / "aligned")
    assert (tmp_path / "aligned/model.pt").is_file()


def test_a_look_is_fitted_to_the_images_of_a_kitti_folder(street, network, tmp_path, monkeypatch):
    """Frames rendered in another look and exported; their exact graphs stand in for the network's."""
    command(synthesize, "--domain", "target", "--unsplit", "--num", 2, "--export", "kitti",
            "--out", tmp_path / "set")
    exact = read_graphs(tmp_path / "set/graphs.jsonl", VOCABULARY)
    folder = tmp_path / "set/kitti"
    shutil.rmtree(folder / "training/label_2")  # no labels are needed
    monkeypatch.setattr(predict, "predict_folder", lambda model, images, *_: [
        replace(graph, image=name) for graph, name in zip(exact, images.names, strict=True)])
    printed = command(synthesize, "--env", "street", "--checkpoint", network, "--target", folder,
                      "--num", 2, "--compare", "--look", "fitted", "--fit-steps", 8,
                      "--out", tmp_path / "lifted")
    assert f"render and compare: of {sum(map(len, exact))} boxes, " in printed
    info = json.loads((tmp_path / "lifted/dataset.json").read_text())
    assert info["fit"]["photometric_after"] < 0.5 * info["fit"]["photometric_before"]
    fits = (tmp_path / "lifted/fitted.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in fits] == [
        f"training/image_2/{i:06d}.png" for i in range(2)]
    views = [json.loads(line)["K"][0][0] for line in
             (tmp_path / "lifted/cameras.jsonl").read_text().splitlines()]
    assert views == pytest.approx([STREET.K[0, 0] / 3] * 2)  # as calibrated


def test_faults_are_one_line_at_the_command_line(street, network, folder, tmp_path):
    label, calib = folder / "training/label_2/000000.txt", folder / "training/calib/000000.txt"
    for text, words in ((CAR_LINE[:-5], ":1: 14 columns"),
                        (CAR_LINE.replace("915.81", "1.81"), ":1: right: 1.81, expected"),
                        (CAR_LINE + "\n" + CAR_LINE.replace("0.00", "nan"),
                         ":2: truncated: 'nan'")):
        label.write_text(text)
        line = command(evaluate, "--checkpoint", network, "--data", folder, code=3)
        assert line.startswith(f"Error: {label}{words}")
    label.unlink()
    assert f"{label}: no such file" in command(
        evaluate, "--checkpoint", network, "--data", folder, code=3)
    calib.unlink()
    for line in (command(evaluate, "--checkpoint", network, "--data", folder, code=3),
                 command(synthesize, "--checkpoint", network, "--target", folder,
                         "--out", tmp_path / "x", code=3)):
        assert f"{calib}: no such file, expected a KITTI calibration file" in line
    out = ("--out", tmp_path / "x")
    assert "--camera is that of a KITTI --target" in command(
        synthesize, "--camera", "paper", *out, code=3)
    assert "--export: 'voc' is not kitti or coco" in command(
        synthesize, "--export", "coco,voc", *out, code=3)


def test_a_tilted_camera_is_refused_before_anything_is_rendered(tmp_path):
    line = command(synthesize, "--num", 2, "--export", "kitti", "--out", tmp_path / "x", code=3)
    assert "the camera is tilted by 28.3 degrees" in line and not (tmp_path / "x").exists()


def test_a_later_graph_s_tilted_camera_is_refused_before_anything_is_rendered(street, tmp_path):
    rows = [{"image": f"{i}.png", "width": 1242, "height": 375, "objects": [], "relations": []}
            for i in range(3)]
    level = {name: matrix.tolist()
             for name, matrix in (("K", STREET.K), ("R", STREET.R), ("t", STREET.t))}
    tilted = level | {"R": [[1, 0, 0], [0, -0.6, -0.8], [0, 0.8, -0.6]]}
    (tmp_path / "graphs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "cameras.jsonl").write_text(
        "\n".join(json.dumps({"image": row["image"], **camera})
                  for row, camera in zip(rows, (level, level, tilted))))
    out = tmp_path / "x"
    line = command(synthesize, "--graphs", tmp_path / "graphs.jsonl", "--export", "kitti",
                   "--out", out, code=3)
    assert ("the camera of 2.png is tilted by 36.9 degrees" in line
            and not list(tmp_path.glob("*x*")))
    command(synthesize, "--graphs", tmp_path / "graphs.jsonl", "--num", 2,
            "--export", "kitti", "--out", out)


def test_a_calibration_of_ours_reads_back(tmp_path):
    (tmp_path / "c.txt").write_text(calib_text(STREET))
    assert read_calib(tmp_path / "c.txt").tolist() == np.hstack(
        [STREET.K, np.zeros((3, 1))]).tolist()
