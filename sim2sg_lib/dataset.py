"""The only code that reads or writes a data set folder.

    FOLDER/dataset.json    what it is: environment, method, seed, size, count; written last
    FOLDER/images/         000000.png ...
    FOLDER/graphs.jsonl    one SceneGraph per line, in image order; absent for an unlabeled target
    FOLDER/cameras.jsonl   one camera per line; absent for nominal cameras and 2-D worlds
    FOLDER/scenes.jsonl    the scene behind each synthetic image
    FOLDER/predicted.jsonl the graphs that were lifted, if any, one per target image

Any folder of PNG or JPEG files is a valid unlabeled target, and so is a KITTI folder (io/kitti.py),
with or without labels. Opening images never opens labels, so `train.py` and `synthesize.py` cannot
depend on a target's labels.
"""
import os
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.io.cameras import read_cameras
from sim2sg_lib.io.files import add_line, open_growing, write_json, write_json_lines
from sim2sg_lib.io.graphs import from_json, read_graphs, to_json, write_graphs
from sim2sg_lib.io.images import image_names, kitti_root, open_image, readable_images
from sim2sg_lib.io.reading import MAX_PIXELS, is_int, read_json, safe_join
from sim2sg_lib.scene import Scene

FORMAT = 1  # of dataset.json and the files beside it
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS bounds images


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and their cameras, never their labels.

    names:   image paths relative to the folder, sorted.
    sizes:   name -> (width, height) in pixels.
    cameras: one camera per name; empty in a 2-D environment.
    """

    folder: Path
    names: list[str]
    sizes: dict[str, tuple[int, int]]
    cameras: list[Camera]

    def sample(self, num: int, seed: int) -> "ImageFolder":
        """`num` random images, or all; fewer are the first ones of the same choice."""
        if num >= len(self.names):
            return self
        rows = np.random.default_rng(seed).permutation(len(self.names))[:num]
        return replace(self, names=[self.names[i] for i in rows],
                       cameras=[self.cameras[i] for i in rows if self.cameras])


def list_images(folder: Path, env: Env) -> tuple[list[str], list[tuple[int, int]]]:
    """The images of a folder: paths relative to it, sorted, and their (width, height) in pixels.

    A data set must be complete; in other folders, broken files are skipped (`readable_images`).
    Raises: InputError (missing, empty, another environment, sizes).
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder, expected one of images or a data set")
    if os.path.lexists(folder / "dataset.json"):
        info, names = read_info(folder, env), image_names(folder)
        if info["count"] != len(names):
            raise InputError(f"{folder}: {len(names)} images, but dataset.json says "
                             f"{info['count']}")
        sizes = {name: open_image(safe_join(folder, name)).size for name in names}
        for name, (width, height) in sizes.items():
            if (width, height) != (info["width"], info["height"]):
                raise InputError(f"{folder / name}: {width}x{height} pixels, dataset.json says "
                                 f"{info['width']}x{info['height']}")
    else:
        sizes = readable_images(folder)
    for name, (width, height) in sizes.items():
        if env.world:
            check_aspect(folder / name, width, height, env.world.camera)
    return list(sizes), list(sizes.values())


def open_images(folder: Path, env: Env, camera: str | None = None) -> ImageFolder:
    """The images of list_images and their cameras; the nominal camera is resized to each image.

    camera: for KITTI only, "calib" (if None) for the calibration of each image, "paper" for the
    paper's assumption. Raises: InputError, also for cameras that are missing or broken.
    """
    folder = Path(folder)
    names, sizes = list_images(folder, env)
    kitti = kitti_root(folder)
    if folder.name == "image_2" and (folder.parent / "calib").is_dir():
        raise InputError(f"{folder}: holds the images of a KITTI folder without their cameras, "
                         f"expected {folder.parent}")
    if camera and not kitti:
        raise InputError(f"{folder}: --camera {camera} is for a KITTI folder, expected image_2/ or "
                         "training/image_2/ in it")
    if env.world is None:
        cameras = []
    elif kitti:
        from sim2sg_lib.io.kitti import frame_cameras
        cameras = frame_cameras(kitti, names, sizes, camera)
    else:
        cameras = _stored_cameras(folder, names, sizes, env)
    return ImageFolder(folder, names, dict(zip(names, sizes)), cameras)


def open_graphs(path: Path, env: Env) -> tuple[list[SceneGraph], list[Camera]]:
    """The graphs of any JSON Lines file and their cameras, of cameras.jsonl beside it or nominal.

    Raises: InputError, also for a file without a graph.
    """
    graphs = read_graphs(path, env.vocabulary)
    if not graphs:
        raise InputError(f"{path}: no graph in it")
    for graph in graphs:
        check_aspect(f"{path}: {graph.image}", graph.width, graph.height, env.world.camera)
    names, sizes = zip(*[(graph.image, (graph.width, graph.height)) for graph in graphs])
    return graphs, _stored_cameras(path.parent, names, sizes, env)


def _stored_cameras(folder: Path, names, sizes, env: Env) -> list[Camera]:
    """Of each image from FOLDER/cameras.jsonl; without that file, nominal ones."""
    if os.path.lexists(folder / "cameras.jsonl"):
        return read_cameras(safe_join(folder, "cameras.jsonl"), names, sizes)
    return [env.world.camera.resized(*size) for size in sizes]


def find_images(paths: list[Path], env: Env) -> ImageFolder:
    """Image files, and the images of folders, each once, in this order, of any size.

    Names are paths; of the cameras only width and height are meaningful.
    Raises: InputError (missing, no image, unreadable file).
    """
    sizes = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = {str(path / name): size for name, size in readable_images(path).items()}
        elif path.is_file():
            found = {str(path): open_image(path).size}
        else:
            raise InputError(f"{path}: no such file or folder")
        sizes |= found
    cameras = [env.world.camera.resized(*size) for size in sizes.values()] if env.world else []
    return ImageFolder(Path(), list(sizes), sizes, cameras)


def input_files(folder: Path) -> list[Path]:
    """The files that `open_images` and the pixels depend on, for `digest`. Raises: InputError."""
    kitti, names = kitti_root(folder), image_names(folder)
    cameras = ([kitti / f"calib/{Path(name).stem}.txt" for name in names] if kitti
               else [folder / "cameras.jsonl"])
    return [*(folder / name for name in names), *cameras]


def check_aspect(where: Path | str, width: int, height: int, camera: Camera) -> None:
    """Raises: InputError if width : height is not the camera's, within one percent."""
    if abs(width * camera.height / (height * camera.width) - 1) > 0.01:
        expected = f"{camera.width}x{camera.height}"
        raise InputError(f"{where}: {width}x{height} pixels, the camera expects {expected} or its "
                         "aspect ratio")


def read_info(folder: Path, env: Env | None) -> dict:
    """dataset.json, checked against the environment if there is one. Raises: InputError."""
    path = safe_join(folder, "dataset.json")
    info = read_json(path)
    if info.get("format") != FORMAT:
        raise InputError(f"{path}: format: {info.get('format')!r}, expected {FORMAT}")
    for name in ("width", "height", "count"):
        if not is_int(info.get(name)) or info[name] <= 0:
            raise InputError(f"{path}: {name}: {info.get(name)!r}, expected a positive integer")
    if info["width"] * info["height"] > MAX_PIXELS:
        raise InputError(f"{path}: width: {info['width']}x{info['height']} pixels, expected "
                         f"{MAX_PIXELS} at most")
    if env and info.get("env") != env.name:
        raise InputError(f"{path}: env: {info.get('env')!r}, expected {env.name!r}")
    for name, expected in asdict(env.vocabulary).items() if env else ():
        if info.get(name) != list(expected):
            raise InputError(f"{path}: {name}: {info.get(name)}, expected {list(expected)}")
    return info


def has_labels(folder: Path) -> bool:
    """Whether read_labels has something to read: graphs.jsonl, or KITTI's label_2/."""
    kitti = kitti_root(folder)
    return (kitti / "label_2").is_dir() if kitti else os.path.exists(Path(folder) / "graphs.jsonl")


def read_labels(images: ImageFolder, env: Env, van: str | None = None) -> list[SceneGraph]:
    """The labels of a data set, one graph per image, in the images' order. Raises: InputError.

    van: for KITTI only, what a Van is: "ignore" (if None) or "car".
    """
    kitti = kitti_root(images.folder)
    if kitti:
        from sim2sg_lib.io.kitti import frame_labels, to_graph
        objects = frame_labels(kitti, images.names, env)
        return [to_graph(name, items, camera, env, van or "ignore")
                for name, items, camera in zip(images.names, objects, images.cameras)]
    if van:
        raise InputError(f"{images.folder}: --van {van} is for a KITTI folder, expected image_2/ "
                         "or training/image_2/ in it")
    path = safe_join(images.folder, "graphs.jsonl")
    by_image = {graph.image: graph for graph in read_graphs(path, env.vocabulary, images.folder)}
    for name in images.names:
        graph, (width, height) = by_image.get(name), images.sizes[name]
        if graph is None:
            raise InputError(f"{path}: no graph for {name}")
        if (graph.width, graph.height) != (width, height):
            raise InputError(f"{path}: {name}: {graph.width}x{graph.height} pixels, the image has "
                             f"{width}x{height}")
    return [by_image[name] for name in images.names]


# --- writing --------------------------------------------------------------------------------------

def write_labels(folder: Path, graphs: list[SceneGraph], scenes: list[Scene], env: Env,
                 info: dict) -> None:
    """Write graphs.jsonl, cameras.jsonl, scenes.jsonl and, last, dataset.json.

    info: fields of dataset.json besides the vocabulary and the count.
    """
    folder = Path(folder)
    write_graphs(folder / "graphs.jsonl", graphs, env.vocabulary)
    if env.world:
        size = info["width"], info["height"]
        cameras = [scene.camera.resized(*size).to_json() for scene in scenes]
        write_json_lines(folder / "cameras.jsonl",
                         [{"image": g.image, **camera} for g, camera in zip(graphs, cameras)])
    write_json_lines(folder / "scenes.jsonl",
                     [{"image": g.image, **s.to_json()} for g, s in zip(graphs, scenes)])
    write_json(folder / "dataset.json", {
        "format": FORMAT, "env": env.name, **info, "categories": list(env.vocabulary.categories),
        "predicates": list(env.vocabulary.predicates), "count": len(graphs)})


class Rendered:
    """The journal of a growing data set: rendered.jsonl, one line per chunk of images, in order.

    Opening it after an interruption drops incomplete chunks.
    chunks: how many chunks there were when it was opened.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        def images_are_complete(row: dict) -> bool:
            return all(zlib.crc32((folder / name).read_bytes()) == crc
                       for name, crc in row["crcs"].items())

        self.path, self.vocabulary = Path(folder) / "rendered.jsonl", vocabulary
        self.file, self.rows = open_growing(self.path, images_are_complete)
        self.chunks = len(self.rows)

    def add(self, graphs: list[SceneGraph], labeled: list[list[int]], crcs: dict[str, int]) -> None:
        """Add a chunk; crcs: the CRC of each written image by its name."""
        row = {"graphs": [to_json(graph, self.vocabulary) for graph in graphs], "labeled": labeled,
               "crcs": crcs}
        add_line(self.file, row)
        self.rows.append(row)

    @property
    def graphs(self) -> list[SceneGraph]:
        """The labels so far, read from the journal, so that an interruption changes no digit."""
        return [from_json(graph, self.vocabulary) for row in self.rows for graph in row["graphs"]]

    @property
    def labeled(self) -> list[list[int]]:
        """Per image, the index of the scene's object behind each row; empty if not needed."""
        return [indices for row in self.rows for indices in row["labeled"]]

    def close(self) -> None:
        """Delete the journal: the data set is complete."""
        self.file.close()
        self.path.unlink()
