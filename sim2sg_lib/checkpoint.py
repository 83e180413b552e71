"""A trained network as one file: save it, load it, run it on a folder of images."""
import io
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from sim2sg_lib.dataset import ImageFolder, load_tensor
from sim2sg_lib.detector import ModelConfig
from sim2sg_lib.env import Env
from sim2sg_lib.files import write_bytes
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.relations import SceneGraphNet, to_graph
from sim2sg_lib.terminal import InputError, progress

FORMAT = 1
FIELDS = {"env", "categories", "predicates", "model", "options", "weights"}


def save(path: Path, model: SceneGraphNet, env: Env, options: dict) -> None:
    """Weights and all that is needed to rebuild the model, as plain types.

    options: what the run was told, kept for the record.
    """
    write(path, {"format": FORMAT, "env": env.name, "categories": list(env.vocabulary.categories),
                 "predicates": list(env.vocabulary.predicates), "model": asdict(model.config), "options": options,
                 "weights": model.state_dict()})


def write(path: Path, content: dict) -> None:
    """Tensors and plain types as one file that is whole or not there. Errors: InputError where it cannot be written."""
    archive = io.BytesIO()
    torch.save(content, archive)
    write_bytes(path, archive.getbuffer())


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """The checkpoint's content. Errors: InputError if it is missing, damaged or not one of ours."""
    content = read_archive(path, device)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not set(content) >= FIELDS:
        raise InputError(f"{path}: not a checkpoint of train.py, format {FORMAT}")
    return content


def read_archive(path: Path, device: torch.device | str):
    """What `write` wrote. Errors: InputError if the file is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file, expected a checkpoint (train.py writes OUT/model.pt)")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load takes a flipped bit for a weight, the archive's CRC does not
            if archive.testzip():
                raise zipfile.BadZipFile
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise InputError(f"{path}: damaged, or not a checkpoint of train.py") from None


def load(path: Path, env: Env, device: torch.device | str = "cpu") -> SceneGraphNet:
    """Read and rebuild the network. Errors: InputError."""
    return rebuild(read(path, device), path, env, device)


def rebuild(content: dict, path: Path, env: Env, device: torch.device | str) -> SceneGraphNet:
    """The network of what `read` returned for `path`. Errors: InputError if it was trained for another environment."""
    theirs = (content["env"], tuple(content["categories"]), tuple(content["predicates"]))
    if theirs != (env.name, env.vocabulary.categories, env.vocabulary.predicates):
        raise InputError(f"{path}: trained for {content['env']} ({', '.join(content['categories'])}), expected {env.name} "
                         f"({', '.join(env.vocabulary.categories)})")
    try:
        model = SceneGraphNet(ModelConfig(**content["model"]), pretrained=False).to(device)
        model.load_state_dict(content["weights"])
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{path}: its weights do not fit this version's network, train it again") from None
    return model


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Errors: InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()  # "meta" is a device, too, but holds no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device {name!r} is not available, expected auto, cpu or cuda") from None


def predict_folder(model: SceneGraphNet, images: ImageFolder, object_threshold: float, predicate_threshold: float,
                   batch: int = 16) -> list[SceneGraph]:
    """The network's scene graph of every image, in order; boxes in the pixels of the image's camera."""
    device = next(model.parameters()).device
    graphs = []
    with progress(len(images.names), "predict", "image", leave=False) as bar:
        for start in range(0, len(images.names), batch):
            names = images.names[start:start + batch]
            pixels = torch.stack([load_tensor(images.folder / n, model.config.width, model.config.height) for n in names])
            with torch.no_grad():
                predictions = model.predict(model.features(pixels.to(device).float() / 255))
            for name, camera, prediction in zip(names, images.cameras[start:start + batch], predictions):
                graphs.append(to_graph(prediction, name, camera.width, camera.height, object_threshold, predicate_threshold))
            bar.update(len(names))
    return graphs
