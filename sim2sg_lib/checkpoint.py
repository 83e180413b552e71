"""A trained network as one file, which may be untrusted; and the device to run it on."""
import io
import pickletools
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Env
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.io.reading import check_file
from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.network import SceneGraphNet

FORMAT = 1
MAX_BYTES, MAX_PICKLE_BYTES = 2**32, 2**21  # the paper's network: 313 MB, its pickle 79 KB
# the only globals that a pickle of tensors needs
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
# former fields of ModelConfig, and the only values that training ever gave them
FORMER_FIELDS = {"attention": "softmax", "pair_geometry": True, "semantic": True}


def save(path: Path, model: SceneGraphNet, env: Env, options: dict,
         methods: nn.ModuleDict | None = None) -> None:
    """Write the weights and, as plain types, all that is needed to rebuild the network.

    options: of the training run, for the record. methods: its adaptation methods, to go on with.
    """
    write(path, {"format": FORMAT, "env": env.name, "categories": list(env.vocabulary.categories),
                 "predicates": list(env.vocabulary.predicates), "model": asdict(model.config),
                 "options": options, "weights": model.state_dict(),
                 "methods": methods.state_dict() if methods else {}})


def write(path: Path, content: dict) -> None:
    """Write tensors and plain types atomically. Raises: InputError if that is impossible."""
    archive = io.BytesIO()
    torch.save(content, archive)
    write_bytes(path, archive.getbuffer())


def load(path: Path, env: Env, device: torch.device | str = "cpu") -> SceneGraphNet:
    """Read and rebuild the network. Raises: InputError."""
    return rebuild(read(path, device), path, env, device)


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """The checkpoint's content. Raises: InputError if it is missing, damaged or not one of ours."""
    content = read_archive(path, device)
    # exact types: an OrderedDict may bring its own `get`, and a tensor compares elementwise
    fields = content if type(content) is dict else {}
    options = fields.get("options") if type(fields.get("options")) is dict else {}
    checks = {"format": type(fields.get("format")) is int and fields["format"] == FORMAT,
              "env": type(fields.get("env")) is str,
              "categories": _are_names(fields.get("categories")),
              "predicates": _are_names(fields.get("predicates")),
              "model": type(fields.get("model")) is dict,
              "options.source": _are_names(options.get("source")) and options["source"] != [],
              "options.target": type(options.get("target", 0)) in (str, type(None)),
              "weights": isinstance(fields.get("weights"), dict),
              "methods": isinstance(fields.get("methods", {}), dict)}
    for name, valid in checks.items():
        if not valid:
            raise InputError(f"{path}: {name}: not what train.py writes, format {FORMAT}")
    return content


def _are_names(value) -> bool:
    return type(value) is list and all(type(name) is str for name in value)


def read_archive(path: Path, device: torch.device | str):
    """Tensors and plain types of `write`. Raises: InputError if the file is missing or damaged."""
    check_file(path, "a checkpoint (train.py writes OUT/model.pt)", MAX_BYTES)
    try:
        return torch.load(_checked_copy(path), map_location=device, weights_only=True)
    except Exception:  # zipfile, pickletools and torch raise all kinds of errors
        raise InputError(f"{path}: damaged, or not a checkpoint of train.py") from None


def _checked_copy(path: Path) -> io.BytesIO:
    """A copy of the archive, made of records whose CRC is right.

    torch checks no CRC and trusts the headers of an archive, where one flipped bit makes it return
    uninitialized memory as weights. Raises: any Exception for a damaged or foreign archive.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        records = archive.infolist()
        compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        size, names = sum(r.file_size for r in records), {r.filename for r in records}
        # compressed, overlapping or repeated records could be unpacked to more than the file's size
        if compressed or size > Path(path).stat().st_size or len(names) < len(records):
            raise zipfile.BadZipFile
        for record in records:
            if record.filename.lower().endswith("data.pkl"):  # torch ignores case
                _check_pickle(archive.read(record))
            clean.writestr(record.filename, archive.read(record))
    copy.seek(0)
    return copy


def _check_pickle(content: bytes) -> None:
    """Raises: ValueError for a global that is not among GLOBALS.

    torch's own list also has bytearray, for instance, which allocates any size.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise ValueError
    for opcode, argument, _ in pickletools.genops(content):
        foreign = opcode.name == "GLOBAL" and not GLOBALS.fullmatch(argument)
        if foreign or opcode.name in ("STACK_GLOBAL", "INST"):
            raise ValueError


def rebuild(content: dict, path: Path, env: Env, device: torch.device | str) -> SceneGraphNet:
    """The network of what `read` returned for `path`.

    Raises: InputError if it was trained for another environment, or does not fit this version.
    """
    names = tuple(content["categories"]), tuple(content["predicates"])
    if (content["env"], *names) != (env.name, env.vocabulary.categories, env.vocabulary.predicates):
        raise InputError(f"{path}: trained for {content['env']} ({', '.join(names[0])}), expected "
                         f"{env.name} ({', '.join(env.vocabulary.categories)})")
    try:
        config = ModelConfig(**{name: value for name, value in content["model"].items()
                                if name not in FORMER_FIELDS or value != FORMER_FIELDS[name]})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: model: {error}") from None
    if [config.categories, config.predicates] != [len(own) for own in names]:
        raise InputError(f"{path}: model: {config.categories} categories and {config.predicates} "
                         "predicates, expected as many as it names")
    with torch.device("meta"):  # allocates nothing: the sizes cannot be trusted yet
        expected = SceneGraphNet(config, pretrained=False).state_dict()
    weights = content["weights"]
    if set(weights) != set(expected) or not all(_alike(weights[n], expected[n]) for n in expected):
        raise InputError(f"{path}: its weights do not fit this version's network, train it again")
    model = SceneGraphNet(config, pretrained=False).to(device)
    model.load_state_dict({name: weights[name] for name in expected})
    return model


def load_methods(content: dict, methods: nn.ModuleDict) -> list[str]:
    """Restore those of a training's methods that `read` found with all weights; returns their names.

    A discriminator goes on where it was, or a network that fooled it would start to move back.
    """
    found = []
    for name, method in methods.items():
        expected = {key: value for key, value in method.state_dict().items() if key != "stopped"}
        saved = {key: content.get("methods", {}).get(f"{name}.{key}") for key in expected}
        if saved and all(_alike(saved[key], expected[key]) for key in expected):
            method.load_state_dict(saved, strict=False)
            found.append(name)
    return found


def _alike(weight, expected: torch.Tensor) -> bool:
    """Whether it is a contiguous tensor of that shape and type, so that the file is as large."""
    return (isinstance(weight, torch.Tensor) and weight.shape == expected.shape
            and weight.dtype == expected.dtype and weight.is_contiguous())


def pick_device(name: str) -> torch.device:
    """The torch device; "auto" is CUDA if available, else the CPU. Raises: InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()  # also refuses "meta", which holds no numbers
        return torch.device(name)
    except Exception:  # torch raises all kinds of errors for unknown and for absent devices
        raise InputError(f"device {name!r} is not available, expected auto, cpu or cuda") from None


def check_precision(name: str, device: torch.device) -> None:
    """Raises: InputError for "bf16" on a processor that can only emulate it."""
    able = (torch.ops.mkldnn._is_mkldnn_bf16_supported() if device.type == "cpu"
            else torch.cuda.is_bf16_supported(including_emulation=False))
    if name == "bf16" and not able:
        raise InputError(f"--precision bf16: {device} does not compute in bfloat16, leave it out")


def runtime_info(device: torch.device) -> dict:
    """What the bytes of a result depend on besides options and inputs, for the record."""
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__),
            "device": str(device)}
