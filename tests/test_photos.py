"""Real-world image folders and cameras of other tools are read or refused in one line."""
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from envs.clevr import ENV
from sim2sg_lib.cli import InputError
from sim2sg_lib.dataset import find_images, list_images, open_images, read_labels, write_labels
from sim2sg_lib.graph import make_graph
from sim2sg_lib.io.images import check_image, output_names, read_image
from sim2sg_lib.io.kitti import frame_cameras

FORK = b"\0\5\26\7\0\2\0\0Mac OS X        "


def photo(path, color=(9, 99, 199), size=(160, 120), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def read(folder, capsys):
    """Returns a folder's image names, equal for training and prediction, and the output."""
    names = list_images(folder, ENV)[0]
    said = capsys.readouterr().out
    assert find_images([folder], ENV).names == [str(folder / name) for name in names]
    assert capsys.readouterr().out == said and said.count("\n") <= 1
    return names, said


def test_what_is_no_image_is_skipped_and_counted(tmp_path, capsys):
    photo(tmp_path / "photo.png")
    (tmp_path / "._photo.png").write_bytes(FORK)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert read(tmp_path, capsys) == (
        ["photo.png"],
        f"{tmp_path}: 1 images are read, 1 files are skipped; the first: "
        f"{tmp_path}/._photo.png: a hidden file\n")
    (tmp_path / "._photo.png").unlink()
    assert read(tmp_path, capsys) == (["photo.png"], "")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").write_bytes((tmp_path / "photo.png").read_bytes()[:-40])
    Image.new("RGB", (160, 120)).save(tmp_path / "e.webp")
    photo(tmp_path / "2023/f.png")
    names, said = read(tmp_path, capsys)
    assert (names == ["photo.png"] and "1 images are read, 6 files are skipped; the first: " in said
            and "a.png: not a readable" in said)


def test_a_folder_without_any_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for call in (lambda: list_images(tmp_path, ENV), lambda: find_images([tmp_path], ENV),
                 lambda: find_images([tmp_path / "a.png"], ENV)):
        with pytest.raises(InputError, match="a.png: not a readable PNG or JPEG image"):
            call()


def test_photos_beside_a_folder_of_images_are_read_too(tmp_path, capsys):
    for name in ("mine.png", "images/icon.png"):
        photo(tmp_path / name)
    assert read(tmp_path, capsys) == (["images/icon.png", "mine.png"], "")
    (tmp_path / "graphs.jsonl").write_text("")  # marks a data set, whose images are in images/
    names, said = read(tmp_path, capsys)
    assert (names == ["images/icon.png"] and "1 files are skipped; the first: " in said
            and "mine.png" in said)


def test_a_data_set_of_ours_stays_whole(tmp_path):
    graphs = [make_graph(f"images/{i}.png", 160, 120, [], []) for i in range(2)]
    for graph in graphs:
        photo(tmp_path / graph.image)
    flat = replace(ENV, world=None)
    write_labels(tmp_path, graphs, [], flat, {"width": 160, "height": 120})
    assert len(open_images(tmp_path, flat).names) == 2
    (tmp_path / "images/1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="images/1.png: not a readable"):
        open_images(tmp_path, flat)
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(InputError, match="1 images, but dataset.json says 2"):
        open_images(tmp_path, flat)


def test_a_world_without_cameras_has_images_and_labels(tmp_path):
    class Sprites:
        def to_json(self):
            return {"sprites": []}

    flat, graph = (replace(ENV, world=None),
                   make_graph("images/0.png", 90, 90, [1], [[10, 20, 30, 40]]))
    photo(tmp_path / "set/images/0.png", size=(90, 90))
    write_labels(tmp_path / "set", [graph], [Sprites()], flat, {"width": 90, "height": 90})
    assert (not (tmp_path / "set/cameras.jsonl").exists()
            and json.loads((tmp_path / "set/scenes.jsonl").read_text())["sprites"] == [])
    images = open_images(tmp_path / "set", flat)
    assert (images.cameras, images.sizes) == ([], {"images/0.png": (90, 90)})
    assert read_labels(images, flat)[0].boxes_px.tolist() == [[10, 20, 30, 40]]
    assert find_images([tmp_path / "set"], flat).sizes == {
        str(tmp_path / "set/images/0.png"): (90, 90)}


def test_jpeg_under_other_names(tmp_path, capsys):
    for name in ("a.jpe", "b.jfif", "c.JPG", "d.JPEG", "e.png"):
        photo(tmp_path / name, format="JPEG")
    photo(tmp_path / "f.jpg", format="PNG")
    assert read(tmp_path, capsys) == (["a.jpe", "b.jfif", "c.JPG", "d.JPEG", "e.png", "f.jpg"], "")
    assert all(
        np.abs(read_image(tmp_path / name, 160, 120)[0, 0].astype(int) - [9, 99, 199]).max() < 4
        for name in read(tmp_path, capsys)[0])


@pytest.mark.parametrize("kind", ["iTXt", "zTXt", "tEXt"])
def test_long_metadata_are_ignored(tmp_path, kind):
    info, text = PngImagePlugin.PngInfo(), "x" * (2 << 20)
    if kind == "iTXt":
        info.add_itxt("XML:com.adobe.xmp", text, zip=True)
    else:
        info.add_text("comment", text, zip=kind == "zTXt")
    photo(tmp_path / "a.png", pnginfo=info)
    assert check_image(tmp_path / "a.png") == (160, 120)
    assert read_image(tmp_path / "a.png", 160, 120)[0, 0].tolist() == [9, 99, 199]


def test_a_broken_checksum_behind_the_pixels_does_no_harm(tmp_path):
    content = photo(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + b"\0\0\0\1tEXtx" + b"bad!" + content[-12:])
    assert check_image(tmp_path / "a.png") == (160, 120)
    assert read_image(tmp_path / "a.png", 160, 120)[0, 0].tolist() == [9, 99, 199]


def test_results_of_an_image_with_the_longest_name_can_be_written(tmp_path):
    photo(tmp_path / "in" / ("图" * 83 + ".png"))
    (name,) = output_names(find_images([tmp_path / "in"], ENV).names)
    for suffix in (".png.tmp", ".dot.tmp"):
        (tmp_path / (name.removesuffix(".png") + suffix)).write_text("")


# --- cameras --------------------------------------------------------------------------------------

def turned(R, t):
    """The nominal camera rotated by R (3, 3) in its own frame."""
    camera = ENV.world.camera
    return np.array(R, float) @ camera.R, np.array(R, float) @ camera.t + t


CAMERAS = {
    "OpenGL: y up, z backward": (
        *turned(np.diag([1.0, -1, -1]), 0),
        "R: the camera is upside down or lies on its side; expected a world with z up"),
    "turned by 180 degrees about its view": (*turned(np.diag([-1.0, -1, 1]), 0),
                                             "R: the camera is upside down"),
    "on its side": (*turned([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], 0),
                    "R: the camera is upside down or lies on its side"),
    "a world with y up": (np.diag([1.0, -1, -1]), np.array([0, 1.5, 5.0]),
                          "R: the camera looks|R: the camera lies"),
    "below the ground": (np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([0, -1.5, 0]),
                         "t: the camera is 1.5 m below"),
    "into the sky": (np.array([[1.0, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]), np.array([0, 1.5, 0]),
                     "R: the whole image lies above the horizon"),
}


@pytest.mark.parametrize("kind", CAMERAS)
def test_cameras_that_see_no_scene_are_refused(tmp_path, kind):
    R, t, words = CAMERAS[kind]
    photo(tmp_path / "a.png", size=(320, 240))
    K = ENV.world.camera.K
    (tmp_path / "cameras.jsonl").write_text(
        json.dumps({"image": "a.png", "K": K.tolist(), "R": R.tolist(), "t": t.tolist()}))
    with pytest.raises(InputError, match=rf"cameras.jsonl:1: ({words})"):
        open_images(tmp_path, ENV)


def test_a_level_camera_and_one_that_looks_slightly_up_are_fine(tmp_path):
    photo(tmp_path / "a.png", size=(320, 240))
    for angle in (0.0, 0.2, -0.5):
        up = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)],
                       [0, -np.sin(angle), np.cos(angle)]])
        R = up @ [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]
        row = {"image": "a.png", "K": ENV.world.camera.K.tolist(), "R": R.tolist(),
               "t": (-R @ [0, 0, 1.5]).tolist()}
        (tmp_path / "cameras.jsonl").write_text(json.dumps(row))
        assert open_images(tmp_path, ENV).cameras[0].position_world[2] == pytest.approx(1.5)


def test_a_calibration_below_the_ground_or_above_the_horizon_is_refused(tmp_path):
    (tmp_path / "calib").mkdir()
    for cy, ty, words in ((180, -2000, "P2: t: the camera is"),
                          (400, 0, "P2: R: the whole image lies above the horizon")):
        (tmp_path / "calib/0.txt").write_text(f"P2: 700 0 600 0 0 700 {cy} {ty} 0 0 1 0\n")
        with pytest.raises(InputError, match=f"calib/0.txt: {words}"):
            frame_cameras(tmp_path, ["image_2/0.png"], [(1242, 375)], None)
