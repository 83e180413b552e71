"""The only code that reads or writes a dataset folder.

    FOLDER/dataset.json    what it is: environment, method, seed, size, count; written last
    FOLDER/images/         000000.png ...
    FOLDER/graphs.jsonl    one SceneGraph a line, in image order; absent for an unlabeled target
    FOLDER/cameras.jsonl   one camera a line; absent where the environment's nominal camera holds
    FOLDER/scenes.jsonl    the 3-D scene behind each synthetic image
    FOLDER/predicted.jsonl the graphs that were lifted, one a target image; only where there were some

Any folder of PNG or JPEG files is a valid unlabeled target too, and so is KITTI's (see kitti.py), with or without labels.
Opening images never opens labels: what `train.py` and `synthesize.py` read of a target cannot depend on them.
"""
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.files import add_line, open_growing, write_json, write_json_lines
from sim2sg_lib.io.graphs import from_json, read_graphs, to_json, write_graphs
from sim2sg_lib.io.images import SUFFIXES, open_image
from sim2sg_lib.io.kitti import (
    TYPES,
    camera_of,
    frame_objects,
    kitti_root,
    paper_camera,
    read_calib,
    to_graph,
)
from sim2sg_lib.io.reading import (
    MAX_PIXELS,
    MAX_SIDE,
    is_int,
    is_number,
    read_json,
    read_json_lines,
    safe_join,
)
from sim2sg_lib.scene import Scene

FORMAT = 1  # of dataset.json and the files beside it
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is MAX_PIXELS, and errors are one line


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and their cameras, never their labels.

    folder:  the folder.
    names:   image paths relative to it, sorted.
    cameras: one a name.
    """

    folder: Path
    names: list[str]
    cameras: list[Camera]


def list_images(folder: Path, env: Env) -> tuple[list[str], list[tuple[int, int]]]:
    """The image paths relative to a dataset folder, KITTI's or any folder of images, sorted; their (width, height) in pixels.

    Errors: InputError (missing, empty, other environment, sizes).
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder, expected one of images or a data set")
    info = read_info(folder, env) if os.path.lexists(folder / "dataset.json") else None
    names = image_names(folder)
    if info and info["count"] != len(names):
        raise InputError(f"{folder}: {len(names)} images, but dataset.json says {info['count']}")
    sizes = [open_image(safe_join(folder, name)).size for name in names]
    for name, (width, height) in zip(names, sizes):
        if info and (width, height) != (info["width"], info["height"]):
            raise InputError(f"{folder / name}: {width}x{height} pixels, dataset.json says {info['width']}x{info['height']}")
        check_aspect(folder / name, width, height, env.world.camera)
    return names, sizes


def open_images(folder: Path, env: Env, camera: str | None = None) -> ImageFolder:
    """The images of list_images and their cameras. Errors: its own, and InputError for cameras that are missing or broken.

    A camera counts pixels of its own image: the nominal view is brought to each image's size.
    camera: KITTI's alone, "calib" (if None) for the calibration of each image, "paper" for the paper's assumption.
    """
    folder = Path(folder)
    names, sizes = list_images(folder, env)
    kitti = kitti_root(folder)
    if folder.name == "image_2" and (folder.parent / "calib").is_dir():
        raise InputError(f"{folder}: holds the images of a KITTI folder without their cameras, expected {folder.parent}")
    if camera and not kitti:
        raise InputError(f"{folder}: --camera {camera} is for a KITTI folder, expected image_2/ or training/image_2/ in it")
    if kitti and camera == "paper":
        return ImageFolder(folder, names, [paper_camera(*size) for size in sizes])
    if kitti:
        calibs = [read_calib(safe_join(kitti, f"calib/{Path(name).stem}.txt")) for name in names]
        return ImageFolder(folder, names, [camera_of(P2, *size) for P2, size in zip(calibs, sizes)])
    if os.path.lexists(folder / "cameras.jsonl"):
        return ImageFolder(folder, names, read_cameras(safe_join(folder, "cameras.jsonl"), names, sizes))
    return ImageFolder(folder, names, [env.world.camera.resized(*size) for size in sizes])


def find_images(paths: list[Path], env: Env) -> ImageFolder:
    """Image files, and those of folders, each once, in that order: names are their paths, any size will do.

    The cameras are only good for their width and height. Errors: InputError (missing, no image, unreadable).
    """
    names = []
    for path in map(Path, paths):
        names += [str(safe_join(path, name)) for name in image_names(path)] if path.is_dir() else [str(path)]
    names = list(dict.fromkeys(names))
    for name in names:
        if not Path(name).is_file():
            raise InputError(f"{name}: no such file or folder")
    sizes = [open_image(Path(name)).size for name in names]
    for name, (width, height) in zip(names, sizes):
        if max(width, height) > MAX_SIDE:
            raise InputError(f"{name}: {width}x{height} pixels, expected {MAX_SIDE} at most in either direction")
    return ImageFolder(Path(), names, [env.world.camera.resized(*size) for size in sizes])


def input_files(folder: Path) -> list[Path]:
    """Of what files the answer of `open_images` and the pixels depend, for `digest`. Errors: InputError."""
    kitti, names = kitti_root(folder), image_names(folder)
    cameras = [kitti / f"calib/{Path(name).stem}.txt" for name in names] if kitti else [folder / "cameras.jsonl"]
    return [*(folder / name for name in names), *cameras]


def image_names(folder: Path) -> list[str]:
    """The PNG and JPEG files of a folder, of its images/ or of its KITTI image_2/, sorted. Errors: InputError if none."""
    kitti = kitti_root(folder)
    root = kitti / "image_2" if kitti else folder / "images" if (folder / "images").is_dir() else folder
    safe_join(folder, str(root.relative_to(folder)))
    try:
        names = sorted(str(p.relative_to(folder)) for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InputError(f"{root}: cannot be listed ({error.strerror})") from None
    labels = [path for name in ("label_2", "calib") for path in (folder / name, folder / "training" / name) if path.is_dir()]
    if not names and labels and not kitti:
        raise InputError(f"{labels[0].parent}: has {labels[0].name}/ and no image_2/, expected image_2/ with PNG or JPEG images")
    if not names:
        raise InputError(f"{root}: no PNG or JPEG image in it" + ("" if root != folder else " or in its images/"))
    return names


def check_aspect(where: Path | str, width: int, height: int, camera: Camera) -> None:
    """Errors: InputError if width x height has not the camera's shape, within a hundredth."""
    if abs(width * camera.height / (height * camera.width) - 1) > 0.01:
        raise InputError(f"{where}: {width}x{height} pixels, the camera expects {camera.width}x{camera.height} or its aspect "
                         "ratio")


def read_info(folder: Path, env: Env | None) -> dict:
    """dataset.json, checked against the environment if there is one. Errors: InputError."""
    path = safe_join(folder, "dataset.json")
    info = read_json(path)
    if info.get("format") != FORMAT:
        raise InputError(f"{path}: format: {info.get('format')!r}, expected {FORMAT}")
    for name in ("width", "height", "count"):
        if not is_int(info.get(name)) or info[name] <= 0:
            raise InputError(f"{path}: {name}: {info.get(name)!r}, expected a positive integer")
    if info["width"] * info["height"] > MAX_PIXELS:
        raise InputError(f"{path}: width: {info['width']}x{info['height']} pixels, expected {MAX_PIXELS} at most")
    if env and info.get("env") != env.name:
        raise InputError(f"{path}: env: {info.get('env')!r}, expected {env.name!r}")
    for name in ("categories", "predicates") if env else ():
        if info.get(name) != list(getattr(env.vocabulary, name)):
            raise InputError(f"{path}: {name}: {info.get(name)}, expected {list(getattr(env.vocabulary, name))}")
    return info


def read_cameras(path: Path, names: list[str], sizes: list[tuple[int, int]]) -> list[Camera]:
    """The camera of each named image, whose size in pixels (width, height) is known. Errors: InputError."""
    cameras = {}
    for line, row in read_json_lines(path):
        K = _numbers(row.get("K"), (3, 3), f"{path}:{line}: K")
        R = _numbers(row.get("R"), (3, 3), f"{path}:{line}: R")
        t = _numbers(row.get("t"), (3,), f"{path}:{line}: t")
        if min(K[0, 0], K[1, 1]) < 1 or K[0, 1] or K[1, 0] or K[2].tolist() != [0, 0, 1]:
            raise InputError(f"{path}:{line}: K: expected rows f 0 cx, 0 f cy, 0 0 1 with f >= 1")
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
            raise InputError(f"{path}:{line}: R: expected a rotation")
        if np.hypot(R[2, 0], R[2, 1]) < 1e-3:
            raise InputError(f"{path}:{line}: R: the camera looks straight up or down, so nothing is in front or behind")
        if np.hypot(R[0, 0], R[0, 1]) < 1e-3:
            raise InputError(f"{path}:{line}: R: the camera lies on its side, so nothing is left or right")
        if not isinstance(row.get("image"), str) or row["image"] in cameras:
            raise InputError(f"{path}:{line}: image: {row.get('image')!r}, expected a path that has no camera yet")
        cameras[row["image"]] = (K, R, t)
    missing = [name for name in names if name not in cameras]
    if missing:
        raise InputError(f"{path}: no camera for {missing[0]}")
    return [Camera(*cameras[name], *size) for name, size in zip(names, sizes)]


def _numbers(value, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A list of lists of JSON as an array. Errors: InputError, also for what numpy takes for a number: true, or "1"."""
    def fits(value, shape):
        if not shape:
            return is_number(value)
        return isinstance(value, list) and len(value) == shape[0] and all(fits(item, shape[1:]) for item in value)

    if not fits(value, shape):
        raise InputError(f"{where}: expected finite numbers of shape {shape}")
    return np.array(value, np.float64)


def has_labels(folder: Path) -> bool:
    """Whether read_labels has something to read: graphs.jsonl, or KITTI's label_2/."""
    kitti = kitti_root(folder)
    return (kitti / "label_2").is_dir() if kitti else os.path.exists(Path(folder) / "graphs.jsonl")


def read_labels(images: ImageFolder, env: Env, van: str | None = None) -> list[SceneGraph]:
    """The labels of a data set, one an image, in the images' order. Errors: InputError.

    van: KITTI's alone, what its vans are: "ignore" (if None) or "car".
    """
    kitti = kitti_root(images.folder)
    if kitti:
        return read_kitti_labels(kitti, images, env, van or "ignore")
    if van:
        raise InputError(f"{images.folder}: --van {van} is for a KITTI folder, expected image_2/ or training/image_2/ in it")
    path = safe_join(images.folder, "graphs.jsonl")
    by_image = {graph.image: graph for graph in read_graphs(path, env.vocabulary, images.folder)}
    for name, camera in zip(images.names, images.cameras):
        graph = by_image.get(name)
        if graph is None:
            raise InputError(f"{path}: no graph for {name}")
        if (graph.width, graph.height) != (camera.width, camera.height):
            raise InputError(f"{path}: {name}: {graph.width}x{graph.height} pixels, the image has "
                             f"{camera.width}x{camera.height}")
    return [by_image[name] for name in images.names]


def read_kitti_labels(root: Path, images: ImageFolder, env: Env, van: str) -> list[SceneGraph]:
    """The graphs of label_2/ and, if it is there, label_2_extra/. Errors: InputError, also for labels without an image."""
    if not set(map(str.lower, TYPES)) & set(env.vocabulary.categories):
        raise InputError(f"{root}: KITTI labels {', '.join(TYPES)}, the environment {env.name} has only "
                         f"{', '.join(env.vocabulary.categories)}")
    stems = [Path(name).stem for name in images.names]
    for folder in ("label_2", "label_2_extra"):
        without = sorted({path.stem for path in safe_join(root, folder).glob("*.txt")} - set(stems))
        if without:
            raise InputError(f"{root / folder / without[0]}.txt: no image {without[0]} in {root / 'image_2'}")
    return [to_graph(name, frame_objects(root, stem), camera, env, van)
            for name, stem, camera in zip(images.names, stems, images.cameras)]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_labels(folder: Path, graphs: list[SceneGraph], scenes: list[Scene], env: Env, info: dict) -> None:
    """graphs.jsonl, cameras.jsonl, scenes.jsonl and, last, dataset.json of a folder whose images are written.

    info: what dataset.json says beyond the vocabulary and the count.
    """
    folder = Path(folder)
    write_graphs(folder / "graphs.jsonl", graphs, env.vocabulary)
    width, height = info["width"], info["height"]
    cameras = [{"image": g.image, **s.camera.resized(width, height).to_json()} for g, s in zip(graphs, scenes)]
    write_json_lines(folder / "cameras.jsonl", cameras)
    write_json_lines(folder / "scenes.jsonl", [{"image": g.image, **s.to_json()} for g, s in zip(graphs, scenes)])
    write_json(folder / "dataset.json", {
        "format": FORMAT, "env": env.name, **info, "categories": list(env.vocabulary.categories),
        "predicates": list(env.vocabulary.predicates), "count": len(graphs)})


class Rendered:
    """What a growing data set holds so far: rendered.jsonl, a line a chunk of images, in order.

    Opening it after an interruption drops whatever was not written whole, images included.
    graphs:   the labels of the images so far.
    labeled: for each of them which of its scene's objects they label; empty where nobody needs to know.
    chunks:   how many chunks there were when it was opened.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        def images_are_written(row: dict) -> bool:
            return all(zlib.crc32((folder / name).read_bytes()) == crc for name, crc in row["crcs"].items())

        self.path, self.vocabulary = Path(folder) / "rendered.jsonl", vocabulary
        self.graphs: list[SceneGraph] = []
        self.labeled: list[list[int]] = []
        self.file, rows = open_growing(self.path, images_are_written)
        for row in rows:
            self._keep(row)
        self.chunks = len(rows)

    def add(self, graphs: list[SceneGraph], labeled: list[list[int]], crcs: dict[str, int]) -> None:
        """A chunk whose images, by name with their CRCs, are written."""
        row = {"graphs": [to_json(graph, self.vocabulary) for graph in graphs], "labeled": labeled, "crcs": crcs}
        add_line(self.file, row)
        self._keep(row)

    def _keep(self, row: dict) -> None:
        # read from JSON in both cases, so that an interruption changes no digit
        self.graphs += [from_json(graph, self.vocabulary) for graph in row["graphs"]]
        self.labeled += row["labeled"]

    def close(self) -> None:
        """All that is known is in the files that a data set keeps."""
        self.file.close()
        self.path.unlink()
