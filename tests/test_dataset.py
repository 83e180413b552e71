"""Data set folders: errors in their files, and protection of existing files."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from envs.clevr import ENV
from sim2sg_lib.io import images
from sim2sg_lib.data_loading import LabeledImages, batches
from sim2sg_lib.dataset import (
    Rendered, find_images, open_images, write_labels)
from sim2sg_lib.io.images import read_image, write_image
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import make_graph
from sim2sg_lib.io.graphs import to_json
from sim2sg_lib.viz.drawings import draw_boxes
from sim2sg_lib.scene import Material, Scene, Sky


@pytest.fixture
def folder(tmp_path):
    """A data set of two 160x120 images: one with two objects, one with none."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    graphs = [make_graph("images/000000.png", 160, 120, [0, 2],
                         [[10, 20, 30, 40], [80, 60, 160, 120]], [[0, 1, 1]]),
              make_graph("images/000001.png", 160, 120, [], [])]
    for i, graph in enumerate(graphs):
        write_image(root / graph.image, np.full((120, 160, 3), 50 * i, np.uint8))
    scene = Scene((), ENV.world.camera, (), Sky((1.0,) * 3, (1.0,) * 3), Material((0.5,) * 3))
    write_labels(root, graphs, [scene, scene], ENV, {"width": 160, "height": 120})
    return root


def complaint(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in error.value.format_message()
    return error.value.format_message()


def test_open_images_gives_names_and_cameras(folder):
    images = open_images(folder, ENV)
    assert images.names == ["images/000000.png", "images/000001.png"]
    # the nominal camera at half the resolution
    np.testing.assert_allclose(images.cameras[1].K, [[175, 0, 80], [0, 175, 60], [0, 0, 1]])
    assert (images.cameras[0].width, images.cameras[0].height) == (160, 120)


def test_a_plain_folder_takes_the_nominal_camera_at_each_image_s_size(tmp_path):
    for name, size in (("b.jpg", (640, 480)), ("a.PNG", (320, 240))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    images = open_images(tmp_path, ENV)
    assert images.names == ["a.PNG", "b.jpg"]
    assert [(c.width, c.height, c.K[0, 0], c.K[0, 2]) for c in images.cameras] == [
        (320, 240, 350, 160), (640, 480, 700, 320)]


def test_missing_empty_and_foreign_folders(folder, tmp_path):
    assert "no such folder" in complaint(open_images, tmp_path / "none", ENV)
    (tmp_path / "empty").mkdir()
    assert "no PNG or JPEG" in complaint(open_images, tmp_path / "empty", ENV)
    info = json.loads((folder / "dataset.json").read_text())
    for name, value, words in (("env", "drive", "expected 'clevr'"), ("count", 3, "2 images, but"),
                               ("width", -1, "width: -1"), ("categories", ["cube"], "categories")):
        (folder / "dataset.json").write_text(json.dumps(info | {name: value}))
        assert words in complaint(open_images, folder, ENV)


def test_images_that_do_not_fit_the_camera(folder, tmp_path):
    Image.new("RGB", (161, 120)).save(folder / "images/000001.png")
    assert "000001.png: 161x120 pixels, dataset.json says 160x120" in complaint(
        open_images, folder, ENV)
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (300, 300)).save(tmp_path / "plain/a.png")
    assert "its aspect ratio" in complaint(open_images, tmp_path / "plain", ENV)


def test_truncated_and_disguised_images(folder):
    path = folder / "images/000000.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    assert "000000.png: truncated or broken" in complaint(read_image, path, 160, 120)
    path.write_bytes(b"GIF89a" + bytes(100))
    assert "not a readable PNG or JPEG" in complaint(read_image, path, 160, 120)


@pytest.mark.parametrize("progressive", [False, True])
def test_only_a_photo_s_own_scans_count(tmp_path, monkeypatch, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", progressive=progressive,
                                exif=b"Exif\0\0" + 200 * b"\xff\xda")
    jpeg = (tmp_path / "a.jpg").read_bytes()
    # a phone's video appended to the photo
    (tmp_path / "motion.jpg").write_bytes(jpeg + 200 * b"\xff\xda\0\2")
    assert (read_image(tmp_path / "motion.jpg", 160, 120)
            == read_image(tmp_path / "a.jpg", 160, 120)).all()
    scan = jpeg[jpeg.rindex(b"\xff\xda"):-2]
    (tmp_path / "scans.jpg").write_bytes(jpeg[:-2] + 200 * scan + jpeg[-2:])
    with pytest.raises(InputError, match="scans, expected a JPEG of this size to have 100 at most"):
        read_image(tmp_path / "scans.jpg", 160, 120)
    monkeypatch.setattr(images, "MAX_SCANNED", 5 * 160 * 120)  # a large image may have fewer
    with pytest.raises(InputError, match="scans, expected a JPEG of this size to have 5 at most"):
        read_image(tmp_path / "scans.jpg", 160, 120)


def test_an_image_wider_than_a_graph_may_say_is_refused(tmp_path):
    Image.new("1", (65536, 1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: 65536x1 pixels, expected 65535 at most"):
        find_images([tmp_path], ENV)


def test_every_kind_of_image_becomes_rgb(tmp_path):
    gray = np.array([[0, 255, 256, 65535]], np.uint16)
    color = np.array([[[200, 100, 50, 0]]], np.uint8)
    for name, image, expected in (
            # 256 steps of 16 bits are one step of 8 bits
            ("deep.png", Image.fromarray(gray), [[0] * 3, [0] * 3, [1] * 3, [255] * 3]),
            ("alpha.png", Image.fromarray(color), [[200, 100, 50]]),
            ("one.png", Image.new("1", (1, 1), 1), [[255] * 3]),
            ("palette.png", Image.fromarray(color[..., :3]).quantize(), [[200, 100, 50]]),
            ("cmyk.jpg", Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [[0] * 3])):
        image.save(tmp_path / name)
        assert read_image(tmp_path / name, *image.size)[0].tolist() == expected
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotation tag, which is ignored
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 40, 30).shape == (30, 40, 3)


@pytest.mark.parametrize("name, value, words", [
    ("K", [[1, 0], [0, 1]], "K: expected finite numbers of shape (3, 3)"),
    ("t", [0, 0, None], "t: expected"),
    ("t", [0, 0, True], "t: expected"), ("t", ["0", "0", "0"], "t: expected"),
    ("t", [0, 0, 1e300], "t: expected"),
    ("K", [[175, 1, 80], [0, 175, 60], [0, 0, 1]], "K: expected rows"),
    ("image", "images/000000.png", "has no camera yet"),
    ("R", [[1, 0, 0], [0, 1, 0], [0, 0, -1]], "R: expected a rotation"),
    ("R", [[1, 0, 0], [0, -1, 0], [0, 0, -1]], "R: the camera looks straight"),
    ("R", [[0, 0, -1], [1, 0, 0], [0, -1, 0]], "R: the camera lies on its side"),
    ("image", "images/9.png", "no camera for images/000001.png")])
def test_bad_cameras_are_named_by_line(folder, name, value, words):
    path = folder / "cameras.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1][name] = value
    path.write_text("\n".join(map(json.dumps, rows)))
    message = complaint(open_images, folder, ENV)
    assert words in message and ("cameras.jsonl:2" in message or value == "images/9.png")


def test_links_lead_into_a_data_set_but_not_out_of_it(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert len(LabeledImages([tmp_path / "link"], ENV, 80, 60)) == 2
    image = folder / "images/000001.png"
    image.rename(folder / "elsewhere.png")
    image.symlink_to("../elsewhere.png")
    assert len(LabeledImages([folder], ENV, 80, 60)) == 2
    (folder / "elsewhere.png").rename(tmp_path / "elsewhere.png")
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.png")
    assert f"{image}: 'images/000001.png' leads out of {folder}" in complaint(
        open_images, folder, ENV)


def test_a_target_needs_no_labels_and_never_reads_them(folder):
    (folder / "graphs.jsonl").write_text("garbage")
    assert len(open_images(folder, ENV).names) == 2
    assert "graphs.jsonl:1" in complaint(LabeledImages, [folder], ENV, 160, 120)


def test_training_items_are_scaled_to_the_network(folder):
    image, target = LabeledImages([folder], ENV, 80, 60)[0]
    assert image.shape == (3, 60, 80) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[5, 10, 15, 20], [40, 30, 80, 60]]
    assert target["labels"].tolist() == [1, 3] and target["relations"].tolist() == [[0, 1, 1]]
    _, empty = LabeledImages([folder], ENV, 80, 60)[1]
    assert empty["boxes"].shape == (0, 4) and empty["relations"].shape == (0, 3)


def test_ignore_regions_and_objects_that_do_not_count_are_ignored_in_training(folder):
    graph = make_graph("images/000000.png", 160, 120, [0, 1, 2, 0],
                       [[10, 20, 30, 40], [0, 0, 40, 20], [80, 60, 160, 120], [40, 40, 60, 60]],
                       [(0, 1, 2), (1, 1, 0), (3, 1, 2)],
                       visible=[1, 1, 1, 0], ignore=[0, 1, 0, 0])
    rows = (folder / "graphs.jsonl").read_text().splitlines()
    rows[0] = json.dumps(to_json(graph, ENV.vocabulary))
    (folder / "graphs.jsonl").write_text("\n".join(rows) + "\n")
    (_, target), (_, empty) = LabeledImages([folder], ENV, 80, 60)
    assert (target["boxes"].tolist() == [[5, 10, 15, 20], [40, 30, 80, 60]]
            and target["labels"].tolist() == [1, 3])
    assert target["relations"].tolist() == [[0, 1, 1]]
    assert target["ignore_boxes"].tolist() == [[0, 0, 20, 10], [20, 20, 30, 30]]
    assert empty["ignore_boxes"].shape == (0, 4)


def test_labels_must_be_those_of_the_images(folder):
    """Errors that open_images reports for a target are also reported for a training set."""
    def broken(name, old, new):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        message = complaint(LabeledImages, [folder], ENV, 80, 60)
        (folder / name).write_text(text)
        return message

    assert "dataset.json: format: 9, expected 1" in broken(
        "dataset.json", '"format": 1', '"format": 9')
    assert "2 images, but dataset.json says 7" in broken("dataset.json", '"count": 2', '"count": 7')
    assert "000000.png: 320x240 pixels, the image has 160x120" in broken(
        "graphs.jsonl", '"width": 160, "height": 120, "objects": [{',
        '"width": 320, "height": 240, "objects": [{')
    # line numbers of the file, including empty lines
    assert "graphs.jsonl:3: image: images/000000.png has a second graph" in broken(
        "graphs.jsonl", '\n{"image": "images/000001.png"', '\n\n{"image": "images/000000.png"')
    assert "no graph for images/000001.png" in broken(
        "graphs.jsonl", (folder / "graphs.jsonl").read_text().splitlines()[1], "")
    write_image(folder / "images/000001.png", np.zeros((60, 160, 3), np.uint8))
    assert "000001.png: 160x60 pixels, dataset.json says 160x120" in complaint(
        LabeledImages, [folder], ENV, 80, 60)


def test_boxes_thinner_than_a_pixel_are_drawn():
    graph = make_graph("x.png", 1280, 960, [1], [[640, 480, 642, 481]])
    tile = np.asarray(draw_boxes(np.zeros((960, 1280, 3), np.uint8), graph, ENV.vocabulary))
    assert tile.shape == (180, 240, 3) and tuple(tile[90, 120]) == (0x56, 0xB4, 0xE9)


def test_batches_show_every_image_once_an_epoch():
    order = [i for batch in batches(count=10, batch=4, steps=5, seed=0) for i in batch]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert batches(10, 4, 5, 0) == batches(10, 4, 5, 0) != batches(10, 4, 5, 1)


def test_what_an_interruption_left_of_a_data_set_is_taken_up_where_it_is_whole(tmp_path):
    (tmp_path / "images").mkdir()
    graphs = [make_graph(f"images/{i:06d}.png", 160, 120, [i], [[10, 20, 30.12345, 40]])
              for i in range(3)]
    rendered, pixels = Rendered(tmp_path, ENV.vocabulary), np.zeros((120, 160, 3), np.uint8)
    for i, graph in enumerate(graphs):
        rendered.add([graph], [[i]], {graph.image: write_image(tmp_path / graph.image, pixels + i)})
    rendered.file.write(b'{"graphs": [')  # an incomplete line
    rendered.file.close()
    again = Rendered(tmp_path, ENV.vocabulary)
    assert (again.chunks, again.labeled) == (3, [[0], [1], [2]])
    assert again.graphs[1].boxes_px.tolist() == rendered.graphs[1].boxes_px.tolist() == [
        [10, 20, 30.123, 40]]
    again.file.close()
    (tmp_path / graphs[1].image).write_bytes(b"")  # as after a power failure
    again = Rendered(tmp_path, ENV.vocabulary)
    assert (again.chunks == len(again.graphs) == 1
            and len((tmp_path / "rendered.jsonl").read_bytes().splitlines()) == 1)
    again.close()
    assert not (tmp_path / "rendered.jsonl").exists()
