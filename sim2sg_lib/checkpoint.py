"""A trained network as one file: save it, load it, run it on a folder of images."""
import io
import pickletools
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Env
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.io.reading import check_file
from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.relations import SceneGraphNet

FORMAT = 1
MAX_BYTES, MAX_PICKLE_BYTES = 2**32, 2**21  # the paper's network has 313 MB, its pickle 79 KB
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")  # all that tensors take


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
    wrong = _wrong_fields(content) if type(content) is dict else ["all"]
    if wrong:
        raise InputError(f"{path}: {wrong[0]}: not what train.py writes, format {FORMAT}")
    return content


def read_archive(path: Path, device: torch.device | str):
    """The tensors and plain types that torch.save wrote. Errors: InputError if the file is missing or damaged."""
    check_file(path, "a checkpoint (train.py writes OUT/model.pt)", MAX_BYTES)
    try:
        return torch.load(_checked_copy(path), map_location=device, weights_only=True)
    except Exception:  # damage comes out as whatever zipfile, pickletools or torch stumbles over
        raise InputError(f"{path}: damaged, or not a checkpoint of train.py") from None


def _wrong_fields(content: dict) -> list[str]:
    # exact types: an OrderedDict may bring its own `get`, and a tensor equals a number elementwise
    def names(value):
        return type(value) is list and all(type(name) is str for name in value)

    options = content.get("options")
    options = options if type(options) is dict else {}
    fits = {"format": type(content.get("format")) is int and content["format"] == FORMAT,
            "env": type(content.get("env")) is str, "categories": names(content.get("categories")),
            "predicates": names(content.get("predicates")), "model": type(content.get("model")) is dict,
            "options.source": names(options.get("source")) and options["source"] != [],
            "options.target": type(options.get("target", 0)) in (str, type(None)),
            "weights": isinstance(content.get("weights"), dict)}
    return [name for name, fine in fits.items() if not fine]


def _checked_copy(path: Path) -> io.BytesIO:
    """The archive once more, of what has passed the CRC of each record. Errors: any Exception for a damaged or foreign one.

    torch reads no CRC and more of the archive's headers, where one flipped bit makes it give out unset memory as weights.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        size, names = sum(record.file_size for record in records), {record.filename for record in records}
        if packed or size > Path(path).stat().st_size or len(names) < len(records):  # it would unpack to more than it is
            raise zipfile.BadZipFile
        for record in records:
            if record.filename.lower().endswith("data.pkl"):  # torch minds no case
                _check_pickle(archive.read(record))
            clean.writestr(record.filename, archive.read(record))
    copy.seek(0)
    return copy


def _check_pickle(content: bytes) -> None:
    """Errors: ValueError if it names anything but what tensors are made of: torch allows more, bytearray(2**40) for one."""
    if len(content) > MAX_PICKLE_BYTES:
        raise ValueError
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("STACK_GLOBAL", "INST") or opcode.name == "GLOBAL" and not GLOBALS.fullmatch(argument):
            raise ValueError


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
        config = ModelConfig(**content["model"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: model: {error}") from None
    if (config.categories, config.predicates) != (len(theirs[1]), len(theirs[2])):
        raise InputError(f"{path}: model: {config.categories} categories and {config.predicates} predicates, expected as many "
                         "as it names")
    with torch.device("meta"):  # without memory: before its weights are seen to be there, a network may be of any size
        expected = SceneGraphNet(config, pretrained=False).state_dict()
    weights = content["weights"]
    if set(weights) != set(expected) or not all(_alike(weights[name], expected[name]) for name in expected):
        raise InputError(f"{path}: its weights do not fit this version's network, train it again")
    model = SceneGraphNet(config, pretrained=False).to(device)
    model.load_state_dict({name: weights[name] for name in expected})
    return model


def _alike(weight, expected: torch.Tensor) -> bool:
    """Whether a weight is a tensor of that shape and type that has all of its numbers in the file."""
    return (isinstance(weight, torch.Tensor) and weight.shape == expected.shape and weight.dtype == expected.dtype
            and weight.is_contiguous())


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Errors: InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()  # "meta" is a device, too, but holds no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device {name!r} is not available, expected auto, cpu or cuda") from None


def runtime_info(device: torch.device) -> dict:
    """For the record: on what the same command may give other bytes elsewhere."""
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": str(device)}


