"""The only code that reads or writes a dataset folder.

    FOLDER/dataset.json    what it is: environment, method, seed, size, count; written last
    FOLDER/images/         000000.png ...
    FOLDER/graphs.jsonl    one SceneGraph a line, in image order; absent for an unlabelled target
    FOLDER/cameras.jsonl   one camera a line; absent where the environment's nominal camera holds
    FOLDER/scenes.jsonl    the 3-D scene behind each synthetic image

Any folder of PNG or JPEG files is a valid unlabelled target too. Opening images never opens labels: what `train.py`
and `synthesize.py` read of a target cannot depend on them.
"""
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sim2sg_lib.camera import Camera
from sim2sg_lib.env import Env
from sim2sg_lib.graph import (InputError, SceneGraph, load_json, read_graphs, read_json_lines, select_objects,
                              write_graphs)
from sim2sg_lib.scene import Scene

SUFFIXES = (".png", ".jpg", ".jpeg")


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


def open_images(folder: Path, env: Env) -> ImageFolder:
    """Open a dataset folder, or any folder of images. Errors: InputError (missing, empty, other environment, sizes)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one of images or a data set")
    info = read_info(folder, env) if (folder / "dataset.json").exists() else None
    root = folder / "images" if (folder / "images").is_dir() else folder
    names = sorted(str(p.relative_to(folder)) for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    if not names:
        raise InputError(f"{folder}: no PNG or JPEG image in it or in its images/")
    if info and info["count"] != len(names):
        raise InputError(f"{folder}: {len(names)} images, but dataset.json says {info['count']}")
    if (folder / "cameras.jsonl").exists():
        cameras = read_cameras(folder, names, env, info)
    else:
        cameras = [env.camera] * len(names)
    for name, camera in zip(names, cameras):
        check_size(folder / name, camera, exact=info is not None and (folder / "cameras.jsonl").exists())
    return ImageFolder(folder, names, cameras)


def read_info(folder: Path, env: Env) -> dict:
    """dataset.json, checked against the environment. Errors: InputError."""
    path = Path(folder) / "dataset.json"
    if not path.exists():
        raise InputError(f"{path}: no such file, expected a data set made by synthesize.py")
    info = load_json(path.read_text(encoding="utf-8"), str(path))
    for name in ("width", "height", "count"):
        if not isinstance(info.get(name), int) or info[name] <= 0:
            raise InputError(f"{path}: {name}: {info.get(name)!r}, expected a positive integer")
    if info.get("env") != env.name:
        raise InputError(f"{path}: env: {info.get('env')!r}, expected {env.name!r}")
    for name in ("categories", "predicates"):
        if tuple(info.get(name, ())) != getattr(env.vocabulary, name):
            raise InputError(f"{path}: {name}: {info.get(name)}, expected {list(getattr(env.vocabulary, name))}")
    return info


def source_env(folders: tuple[Path, ...]) -> str:
    """The environment that the first of some data sets names. Errors: InputError."""
    path = Path(folders[0]) / "dataset.json"
    if not path.exists():
        raise InputError(f"{path}: no such file, expected a data set made by synthesize.py")
    name = load_json(path.read_text(encoding="utf-8"), str(path)).get("env")
    if not isinstance(name, str):
        raise InputError(f"{path}: env: {name!r}, expected a name")
    return name


def read_cameras(folder: Path, names: list[str], env: Env, info: dict | None) -> list[Camera]:
    """One camera an image from cameras.jsonl, in pixels of the data set's own size. Errors: InputError."""
    path = Path(folder) / "cameras.jsonl"
    width, height = (info["width"], info["height"]) if info else (env.camera.width, env.camera.height)
    cameras = {}
    for line, row in read_json_lines(path):
        arrays = []
        for name, shape in (("K", (3, 3)), ("R", (3, 3)), ("t", (3,))):
            try:
                array = np.array(row.get(name), np.float64)
            except (TypeError, ValueError):
                array = np.empty(0)
            if array.shape != shape or not np.isfinite(array).all():
                raise InputError(f"{path}:{line}: {name}: expected finite numbers of shape {shape}")
            arrays.append(array)
        K, R, t = arrays
        if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
            raise InputError(f"{path}:{line}: expected positive focal lengths in K and a rotation R")
        cameras[row.get("image")] = Camera(K, R, t, width, height)
    missing = [name for name in names if name not in cameras]
    if missing:
        raise InputError(f"{path}: no camera for {missing[0]}")
    return [cameras[name] for name in names]


def check_size(path: Path, camera: Camera, exact: bool) -> None:
    """Refuse an image whose shape is not the camera's: exactly where it has its own, by aspect ratio otherwise."""
    width, height = open_image(path).size
    same_shape = abs(width * camera.height / (height * camera.width) - 1) < 0.01
    if (width, height) != (camera.width, camera.height) and (exact or not same_shape):
        wanted = f"{camera.width}x{camera.height}" + ("" if exact else " or its aspect ratio")
        raise InputError(f"{path}: {width}x{height} pixels, the camera expects {wanted}")


def open_image(path: Path) -> Image.Image:
    """The file's header, pixels not yet read. Errors: InputError."""
    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable PNG or JPEG image ({error.__class__.__name__})") from None


def read_image(path: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8, resized if need be. Errors: InputError for a truncated or broken file."""
    image = open_image(path)
    try:
        image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: truncated or broken image ({error})") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BOX if image.width > width else Image.Resampling.BILINEAR)
    return np.asarray(image)


def load_graphs(folder: Path, env: Env) -> list[SceneGraph]:
    """The labels of a data set, one a line, in image order. Errors: InputError."""
    folder = Path(folder)
    graphs = read_graphs(folder / "graphs.jsonl", env.vocabulary)
    for line, graph in enumerate(graphs, 1):
        if not (folder / graph.image).is_file():
            raise InputError(f"{folder / 'graphs.jsonl'}:{line}: image: {graph.image} is not in {folder}")
    if not graphs:
        raise InputError(f"{folder / 'graphs.jsonl'}: no graph in it")
    return graphs


# --- writing ----------------------------------------------------------------------------------------------------------

def start_folder(out: Path, overwrite: bool) -> Path:
    """A fresh folder beside `out`, to be filled and then published. Errors: InputError if `out` is in use."""
    out = Path(out)
    refuse_used(out, overwrite)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror})") from None
    return partial


def refuse_used(out: Path, overwrite: bool) -> None:
    """Errors: InputError if `out` is a file, or a folder with something in it and not to be overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: is not empty; choose another --out or add --overwrite")


def publish_folder(partial: Path, out: Path) -> None:
    """Put the finished folder in `out`'s place: what was there goes only once the new one is complete."""
    out = Path(out)
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_image(path: Path, image: np.ndarray) -> None:
    """(H, W, 3) uint8 -> PNG; the lightest compression, since writing costs more than rendering."""
    Image.fromarray(image).save(path, compress_level=1)


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
        "format": 1, "env": env.name, **info, "categories": list(env.vocabulary.categories),
        "predicates": list(env.vocabulary.predicates), "count": len(graphs)})


def write_json(path: Path, value: dict) -> None:
    """One indented JSON object; NaN is refused. Written beside and renamed, so that a crash leaves the old file."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_json_lines(path: Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    Path(path).write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")


# --- training ---------------------------------------------------------------------------------------------------------

class LabelledImages(torch.utils.data.Dataset):
    """The images and exact labels of one or more synthetic data sets, at the network's input size.

    An item is (image (3, H, W) uint8, target), the target as SceneGraphNet.losses wants it: `boxes` (G, 4) float32
    network pixels, `labels` (G,) int64 from 1, `relations` (R, 3) int64 rows (subject, predicate, object).
    """

    def __init__(self, folders: list[Path], env: Env, width: int, height: int) -> None:
        self.size = (width, height)
        self.items: list[tuple[Path, SceneGraph]] = []
        for folder in map(Path, folders):
            read_info(folder, env)
            self.items += [(folder / graph.image, graph) for graph in load_graphs(folder, env)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        path, graph = self.items[index]
        graph = select_objects(graph, ~graph.ignore)
        scale = np.array(self.size * 2) / (graph.width, graph.height, graph.width, graph.height)
        target = {"boxes": torch.from_numpy((graph.boxes_px * scale).astype(np.float32)),
                  "labels": torch.from_numpy(graph.labels + 1), "relations": torch.from_numpy(graph.relations)}
        return load_tensor(path, *self.size), target


class TargetImages(torch.utils.data.Dataset):
    """The images of a target folder at the network's input size. It has no label field: none can leak."""

    def __init__(self, images: ImageFolder, width: int, height: int) -> None:
        self.paths, self.size = [images.folder / name for name in images.names], (width, height)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_tensor(self.paths[index], *self.size)


def load_tensor(path: Path, width: int, height: int) -> torch.Tensor:
    """(3, height, width) uint8."""
    return torch.from_numpy(read_image(path, width, height).copy()).permute(2, 0, 1)


def batches(count: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """`steps` batches of indices below `count`: shuffled epoch after epoch, an epoch's end may fall inside a batch."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-batch * steps // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return order[:batch * steps].reshape(steps, batch).tolist()


def loader(images: LabelledImages | TargetImages, batch: int, steps: int, seed: int,
           device: torch.device) -> Iterator:
    """Yields `steps` batches on the device, pixels as float in [0, 1].

    LabelledImages: (images (B, 3, H, W), list of targets, list of names). TargetImages: images alone.
    """
    order = batches(len(images), batch, steps, seed)
    # on a CPU the network needs every core; a GPU leaves them free to decode
    workers = 4 if device.type == "cuda" else 0
    data = torch.utils.data.DataLoader(images, batch_sampler=order, collate_fn=list, num_workers=workers)
    for indices, items in zip(order, data):
        if isinstance(images, TargetImages):
            yield torch.stack(items).to(device).float() / 255
            continue
        pixels = torch.stack([image for image, _ in items]).to(device).float() / 255
        targets = [{k: v.to(device) for k, v in target.items()} for _, target in items]
        yield pixels, targets, [str(images.items[i][0]) for i in indices]
