"""Images and labels as tensors, in batches: what train.py reads."""
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sim2sg_lib.cli import InputError
from sim2sg_lib.dataset import list_images, open_images, read_info, read_labels
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph, select_objects
from sim2sg_lib.io.images import read_image
from sim2sg_lib.io.reading import safe_join


class LabeledImages(torch.utils.data.Dataset):
    """Images and labels of one or more data sets, at the network's input size.

    An item is (image (3, H, W) uint8, target), with the target of `SceneGraphNet.losses`: `boxes`
    (G, 4) float32 px, `labels` (G,) int64 from 1, `relations` (R, 3) int64 rows of subject,
    predicate, object. `ignore_boxes` (I, 4) are ignore regions and ignored objects (visible = 0) of
    any category: with pseudo labels it is unknown what is there. Raises: InputError.
    """

    def __init__(self, folders: list[Path], env: Env, width: int, height: int) -> None:
        self.size = (width, height)
        self.paths: list[Path] = []
        self.graphs: list[SceneGraph] = []
        for folder in map(Path, folders):
            read_info(folder, env)
            graphs = read_labels(open_images(folder, env), env)
            self.paths += [safe_join(folder, graph.image) for graph in graphs]
            self.graphs += graphs
            self.newest = len(graphs)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        graph = self.graphs[index].resized(*self.size)
        boxes = torch.from_numpy(graph.boxes_px.astype(np.float32))
        valid = graph.is_ground_truth
        truth = select_objects(graph, valid)
        target = {"boxes": boxes[valid], "labels": torch.from_numpy(truth.labels + 1),
                  "relations": torch.from_numpy(truth.relations), "ignore_boxes": boxes[~valid]}
        return load_tensor(self.paths[index], *self.size), target


class UnlabeledImages(torch.utils.data.Dataset):
    """The images of a folder at the network's input size, without labels or cameras.

    Raises: InputError for a folder without images of the environment.
    """

    def __init__(self, folder: Path, env: Env, width: int, height: int) -> None:
        self.paths = [Path(folder) / name for name in list_images(folder, env)[0]]
        self.size = (width, height)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_tensor(self.paths[index], *self.size)


def load_tensor(path: Path, width: int, height: int) -> torch.Tensor:
    """The image, resized: (3, height, width) uint8. Raises: InputError for a broken one."""
    return torch.from_numpy(read_image(path, width, height).copy()).permute(2, 0, 1)


def batches(count: int, batch: int, steps: int, seed: int, newest: int = 0,
            share: float | None = None) -> list[list[int]]:
    """`steps` batches of indices below `count`, epoch after epoch, each one shuffled.

    An epoch may end inside a batch.

    share: the fraction of every run of batches that are among the last `newest` indices, both parts
           with epochs of their own; None: all indices alike.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(count: int, number: int) -> torch.Tensor:
        epochs = -(-number // count)
        order = [torch.randperm(count, generator=generator) for _ in range(epochs)]
        return torch.cat([*order, torch.empty(0, dtype=torch.int64)])[:number]

    if share is None or newest == count:
        return shuffled(count, batch * steps).reshape(steps, batch).tolist()
    # evenly spread: among the first n places, floor(n * share) are of the newest
    quota = (torch.arange(batch * steps + 1, dtype=torch.float64) * share + 1e-9).floor()
    is_newest = quota.diff() > 0
    order, number = torch.empty(batch * steps, dtype=torch.int64), int(is_newest.sum())
    order[~is_newest] = shuffled(count - newest, batch * steps - number)
    order[is_newest] = count - newest + shuffled(newest, number)
    return order.reshape(steps, batch).tolist()


def loader(images: LabeledImages | UnlabeledImages, batch: int, steps: int, seed: int,
           device: torch.device, start_step: int = 0, share: float | None = None) -> Iterator:
    """Yields `steps` batches, without the first `start_step`: (images, names).

    images: (B, 3, H, W) in [0, 1] on the device. LabeledImages: with a list of targets in between.
    share: as in `batches`, of the newest data set. Raises: InputError for a broken image.
    """
    labeled = isinstance(images, LabeledImages)
    newest = images.newest if labeled else 0
    order = batches(len(images), batch, steps, seed, newest, share)[start_step:]
    # on a CPU the network needs all cores; with a GPU they are free to decode images
    workers = 4 if device.type == "cuda" else 0
    # unlabeled images draw nothing from the global generator: training samples as without them
    generator = None if labeled else torch.Generator()
    data = torch.utils.data.DataLoader(images, batch_sampler=order, collate_fn=list,
                                       num_workers=workers, generator=generator)
    try:
        for indices, items in zip(order, data):
            names = [str(images.paths[i]) for i in indices]
            pixels = torch.stack([item[0] if labeled else item for item in items])
            pixels = pixels.to(device).float() / 255
            if not labeled:
                yield pixels, names
                continue
            targets = [{k: v.to(device) for k, v in target.items()} for _, target in items]
            yield pixels, targets, names
    except InputError as error:  # raised in a worker, its text holds the worker's traceback
        line = error.message.strip().splitlines()[-1]
        raise InputError(line.removeprefix("sim2sg_lib.cli.InputError: ")) from None
