"""`make faults`: feed broken input files to every reader of the project.

A fault is a function (trials, rng) -> failures. It makes that many broken files, drawing from rng,
and describes each file that was handled incorrectly: every file must either be read or be refused
by an InputError with a one-line message. `complaint` also checks that a reader never takes longer
than 2 s, opens a file outside the folder it was given, or starts a program.
"""
import collections
import copy
import importlib.util
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from contextlib import redirect_stdout
from dataclasses import asdict
from io import BytesIO, StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import click
import numpy as np
import torch
from PIL import Image

from envs.clevr import ENV
from envs.drive import ENV as STREET
from sim2sg_lib import checkpoint
from sim2sg_lib.io.mesh_files import read_mesh
from sim2sg_lib.data_loading import LabeledImages
from sim2sg_lib.dataset import (
    find_images, open_images, read_cameras, read_info, read_labels, write_labels)
from sim2sg_lib.io.images import read_image
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.graph import make_graph
from sim2sg_lib.io.graphs import read_graphs, to_json
from sim2sg_lib.io.kitti import camera_of, read_calib, read_objects, to_graph
from sim2sg_lib.score.metrics import RECALL_POINTS
from sim2sg_lib.score.table import read_loop, read_row
from sim2sg_lib.viz.report import write_events, write_report
from sim2sg_lib.viz.sheet import draw_sheet
from sim2sg_lib.scene import Material, Scene, Sky

SECONDS = 2.0
GROWTH_BYTES = 512 * 2**20  # more memory than any broken file may take
PROGRAMS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen",
            "socket.connect")


# --- watching a reader ----------------------------------------------------------------------------

class Hang(BaseException):
    """Not an Exception, so that no reader mistakes it for an error in the file."""


watched = {"inside": None, "broken": []}


def watch(event: str, arguments: tuple) -> None:
    """Audit hook: while a folder is watched, record programs started and files opened outside it.

    Python's own modules are exempt.
    """
    if watched["inside"] is None:
        return
    if event in PROGRAMS:
        watched["broken"].append(event)
    if (event in ("open", "os.listdir", "os.scandir")
            and isinstance(arguments[0], (str, bytes, os.PathLike))):
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        allowed = (watched["inside"], ROOT, sys.prefix, sys.base_prefix)
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in allowed):
            watched["broken"].append(f"opened {path}")


def ring(*_) -> None:
    raise Hang


def complaint(inside: Path, read, begins: str = "", may_read: bool = True,
              seconds: float = SECONDS) -> list[str]:
    """Returns what is wrong with how `read` handles its file, as a list of at most one line.

    begins: a pattern that the error message must start with. may_read: whether reading the file
    without an error is allowed. seconds: the time limit.
    """
    watched.update(inside=inside, broken=[])
    alarm = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        read()
        found = [] if may_read else ["was read"]
    except click.ClickException as error:
        line = error.format_message()
        found = [] if line.isprintable() and re.match(begins, line) else [f"says {line!r}"]
    except Hang:
        found = [f"takes more than {seconds} s"]
    except BaseException as error:
        found = [f"{type(error).__name__}: {error}"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        watched["inside"] = None
    return (found + watched["broken"])[:1]


sys.addaudithook(watch)


def put(path: Path, content: bytes) -> None:
    """Write a new file; truncating an existing one may wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Apply a few random changes: flip a bit, remove, overwrite or repeat a block, or truncate."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, count = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 16, 64))
        kind = rng.randrange(5)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:at + count]
        elif kind == 2:
            content[at:at + count] = rng.randbytes(count)
        elif kind == 3:
            content[at:at] = content[at:at + count]
        elif rng.randrange(4) == 0:
            del content[at:]
    return bytes(content)


# --- checkpoints ----------------------------------------------------------------------------------

class StandIn(torch.nn.Module):
    """A network of two small layers, whose checkpoint takes only a few kilobytes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = quick_config(3, 4, 160, 120, imagenet=False)
        self.layers = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 9))
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            torch.nn.init.normal_(weight, generator=generator)


OPTIONS = {"source": ["data/sdr"], "target": None}


def content_of(**fields) -> dict:
    """The contents of a checkpoint, with some fields changed."""
    return {"format": 1, "env": ENV.name, "categories": list(ENV.vocabulary.categories),
            "predicates": list(ENV.vocabulary.predicates),
            "model": asdict(quick_config(3, 4, 160, 120, imagenet=False)), "options": OPTIONS,
            "weights": StandIn().state_dict()} | fields


def same(a, b) -> bool:
    """Whether two checkpoint contents are bitwise equal."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and (
            a.numpy().tobytes() == b.numpy().tobytes())
    if isinstance(a, dict):
        return (isinstance(b, dict) and list(a) == list(b)
                and all(same(a[name], b[name]) for name in a))
    return type(a) is type(b) and a == b


def read_damaged(whole: bytes, damaged: list) -> list[str]:
    """Returns a failure for each checkpoint that is read although its content has changed."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        put(path, whole)
        original = checkpoint.read(path)

        def read():
            assert same(checkpoint.read(path), original), "changed, and was read"

        for content in damaged:
            put(path, content)
            failures += complaint(path.parent, read, f"{path}: ")
    return failures


def saved() -> bytes:
    """The bytes of a small checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "model.pt", StandIn(), ENV, OPTIONS)
        return (Path(folder) / "model.pt").read_bytes()


def flipped_bits(trials: int, rng: random.Random) -> list[str]:
    """Flip one bit per file: half of them anywhere, half outside the records.

    No checksum covers the bytes outside the records. The first trials flip, for each record, the
    bit that tells torch that the record is a folder.
    """
    whole = saved()
    bare = set(range(len(whole)))
    with zipfile.ZipFile(BytesIO(whole)) as archive:
        for record in archive.infolist():
            at = record.header_offset + 30  # followed by name, padding and the record
            at += sum(int.from_bytes(whole[i:i + 2], "little") for i in (at - 4, at - 2))
            bare -= set(range(at, at + record.file_size))
    bits = [(entry.start() + 38, 4) for entry in re.finditer(b"PK\1\2", whole)]
    bare = sorted(bare)
    bits += [(rng.choice(bare) if trial % 2 else rng.randrange(len(whole)), rng.randrange(8))
             for trial in range(trials)]
    damaged = [bytearray(whole) for _ in range(trials)]
    for content, (at, bit) in zip(damaged, bits):
        content[at] ^= 1 << bit
    return read_damaged(whole, damaged)


def truncated_checkpoints(trials: int, rng: random.Random) -> list[str]:
    whole = saved()
    return read_damaged(whole, [whole[:rng.randrange(len(whole))] for _ in range(trials)])


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive_of(content, edit=lambda text: text, **options) -> bytes:
    """The bytes that torch.save writes for the content, with its pickle edited."""
    written, edited = BytesIO(), BytesIO()
    torch.save(content, written, **options)
    if not zipfile.is_zipfile(written):
        return written.getvalue()
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(edited, "w") as new:
        for record in old.infolist():
            text = old.read(record)
            new.writestr(record.filename,
                         edit(text) if record.filename.endswith("data.pkl") else text)
    return edited.getvalue()


def bomb() -> bytes:
    """A 1 MB record that decompresses to 256 MB of zeros, which a careless reader copies."""
    packed = BytesIO(archive_of(content_of()))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data/9", "w") as record:
            for _ in range(16):
                record.write(bytes(GROWTH_BYTES // 32))
    return packed.getvalue()


def overlapping() -> bytes:
    """An archive that lists the same record two thousand times."""
    repeated = BytesIO(archive_of(content_of()))
    with zipfile.ZipFile(repeated, "a") as archive:
        archive.filelist += [copy.copy(archive.filelist[-1]) for _ in range(2000)]
        archive.writestr("archive/more", b"")
    return repeated.getvalue()


def with_attributes(content: dict, **attributes) -> collections.OrderedDict:
    """A dictionary with instance attributes, with which a pickle may shadow its methods."""
    ordered = collections.OrderedDict(content)
    ordered.__dict__.update(attributes)
    return ordered


def nested(levels: int) -> list:
    """A list that is small when pickled but whose repr has 2^levels words."""
    value = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def malicious_files(marker: Path) -> list[bytes]:
    """Checkpoints that try to create the marker, fill the memory or pass values of a wrong type."""
    touch, weights = f"touch {marker}", content_of()["weights"]
    thousand, most = b"M\xe8\x03", b"J\xff\xff\xff\x7f"  # 1,000 and 2^31 - 1 in a pickle
    calls = [Call(os.system, touch), Call(eval, f"open({str(marker)!r}, 'w')"),
             Call(exec, f"open({str(marker)!r}, 'w')"),
             Call(subprocess.Popen, ["touch", str(marker)]),
             Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
             Call(Path.touch, marker), Call(bytearray, 2**30)]
    return [*(archive_of(content_of(weights=call)) for call in calls),
            pickle.dumps(Call(os.system, touch), 0),
            archive_of(Call(os.system, touch), _use_new_zipfile_serialization=False),
            archive_of(content_of(weights=Call(bytearray, 2**30))).replace(
                b"data.pkl", b"DATA.PKL"),
            bomb(), overlapping(),
            archive_of(content_of(weights={"w": torch.zeros(1000)}),
                       lambda text: text.replace(thousand, most)),
            archive_of(content_of(weights={"w": torch.zeros(1).expand(2**40)})),
            archive_of(content_of(env=nested(60))), archive_of(content_of(categories=nested(60))),
            archive_of(content_of(weights=with_attributes(weights, _metadata=1, keys=1))),
            archive_of(with_attributes(content_of(), get=1)),
            archive_of(content_of(format=torch.ones(2))),
            archive_of(content_of(weights={"w": weights}))]


def malicious_pickles(trials: int, rng: random.Random) -> list[str]:
    """Nothing is executed, memory grows by at most half a gigabyte, and all files are refused."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        path, marker = Path(folder) / "model.pt", Path(folder) / "executed"
        for content in malicious_files(marker)[:trials]:
            put(path, content)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            failures += complaint(path.parent, lambda: checkpoint.load(path, ENV), f"{path}: ",
                                  may_read=False)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            failures += (["was executed"] * marker.exists()
                         + [f"took {grown} bytes"] * (grown > GROWTH_BYTES))
    return failures


def model_settings(trials: int, rng: random.Random) -> list[str]:
    """Network settings of any type that do not match the weights."""
    failures, path = [], Path("model.pt")
    values = [None, True, 0, -1, 7, 2**15, 2**40, 1.5, "resnet18", "x", [], [1], [2, 3], [4, 3],
              [0], (1, 2, 3, 4, 5), {"a": 1}, torch.ones(3), [torch.ones(2)], float("nan"),
              nested(5)]
    for _ in range(trials):
        settings = asdict(quick_config(3, 4, 160, 120, imagenet=False))
        for name in rng.sample(sorted(settings), rng.choice((1, 2))):
            settings[name] = rng.choice(values)
        content = content_of(model=settings)
        failures += complaint(ROOT, lambda: checkpoint.rebuild(content, path, ENV, "cpu"),
                              "model.pt: ", may_read=False)
    return failures


# --- images ---------------------------------------------------------------------------------------

def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    (pixels if isinstance(pixels, Image.Image)
     else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def repaired(png: bytes) -> bytes:
    """Recompute the checksums of a PNG's chunks, so that the damage reaches the decoder."""
    content, at = bytearray(png), 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at:at + 4], "big")
        content[end:end + 4] = (zlib.crc32(content[at + 4:end]).to_bytes(4, "big")
                                if end + 4 <= len(content) else b"")
        at = end + 4
    return bytes(content)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (len(content).to_bytes(4, "big") + kind + content
            + zlib.crc32(kind + content).to_bytes(4, "big"))


def header(width: int, height: int, depth: int = 8, color: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG whose header claims the given size."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((depth, color, 0, 0, 0))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(pixels))
            + chunk(b"IEND", b""))


def read_images(contents: list[bytes], failures: list[str]) -> None:
    """Append a failure for each file that is neither read as (30, 40, 3) uint8 nor refused."""
    with tempfile.TemporaryDirectory() as folder:
        for content in contents:
            path = Path(folder) / ("a.png" if content[:1] == b"\x89" else "a.jpg")
            put(path, content)

            def read():
                image = read_image(path, 40, 30)
                assert image.shape == (30, 40, 3) and image.dtype == np.uint8

            failures += complaint(path.parent, read, f"{path}: ")


def mutated_images(trials: int, rng: random.Random) -> list[str]:
    """Alternate PNG and JPEG files of several kinds; half of the PNGs get valid checksums."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    color = Image.fromarray(noise[..., :3])
    pngs = [encoded(color, "PNG"), encoded(noise, "PNG"),
            encoded(color.quantize(), "PNG", transparency=3),
            encoded(noise[..., 0].astype(np.uint16) * 256, "PNG"),
            encoded(color, "PNG", save_all=True,
                    append_images=[Image.fromarray(noise[::-1, :, :3].copy())])]
    jpegs = [encoded(color, "JPEG"), encoded(color, "JPEG", progressive=True),
             encoded(color.convert("CMYK"), "JPEG")]
    failures, contents = [], []
    for trial in range(trials):
        content = mutate(rng.choice(jpegs if trial % 2 else pngs), rng)
        contents.append(repaired(content) if trial % 4 == 0 else content)
    read_images(contents, failures)
    return failures


def odd_images(trials: int, rng: random.Random) -> list[str]:
    """Unusual kinds and sizes of images; memory use stays bounded."""
    rgb, exif = Image.new("RGB", (40, 30), (200, 100, 50)), Image.Exif()
    exif[0x0112] = 6
    png = encoded(rgb, "PNG")
    jpeg, large = (encoded(rgb, "JPEG"),
                   encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True))
    frame = jpeg.index(b"\xff\xc0") + 5  # height and width follow
    texts = [chunk(kind, b"a\0\0" + zlib.compress(bytes(2**27), 1)) for kind in (b"zTXt", b"iCCP")]
    contents = [
        *(encoded(Image.new(mode, (40, 30)), "PNG")
          for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
        *(encoded(Image.new(mode, (40, 30)), "JPEG") for mode in ("L", "CMYK", "RGB")),
        encoded(Image.new("RGB", (1, 1)), "PNG"), encoded(Image.new("RGB", (1, 1)), "JPEG"),
        encoded(rgb, "JPEG", exif=exif), encoded(rgb, "JPEG", exif=b"Exif\0\0" + bytes(100)),
        encoded(rgb, "PNG", save_all=True, append_images=[rgb] * 3),
        encoded(Image.new("1", (20_000, 500)), "PNG"),
        header(16_000, 10_000, 1, 0, bytes(2001 * 10_000)),
        header(8192, 8192, 16, 6),
        header(0, 30), header(40, 0), header(2**31 - 1, 1), header(2**31 - 1, 2**31 - 1),
        header(2**32 - 1, 9), header(40, 30, 3, 9), *(png[:33] + text + png[33:] for text in texts),
        jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4:],
        jpeg[:frame] + bytes(4) + jpeg[frame + 4:],
        large[:-2] + 4000 * large[large.rindex(b"\xff\xda"):-2] + large[-2:],
        b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", encoded(rgb, "GIF"), encoded(rgb, "TIFF"),
        encoded(rgb, "BMP"), b"<svg/>", b"\x89PNG" + bytes(2**20)]
    failures, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_images(contents[:trials], failures)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return failures + [f"took {grown} bytes"] * (grown > GROWTH_BYTES)


# --- JSON -----------------------------------------------------------------------------------------

HOSTILE = ("null", "true", "-1", "0", "0.5", "-0.0", "1e308", "1e999", "NaN",
           "-Infinity", "9" * 5000, "9" * 40, '""',
           '"\\ud800"', '"\\u0000"', '"../x"', '"\\n\\u001b[2J"', '"' + "x" * 9999 + '"',
           "[]", "{}", "[null, null]", '{"a": 1}', "[" * 99 + "]" * 99, "[" * 9999, '{"a":' * 9999)


def places(value):
    """All (container, key) pairs in nested lists and dictionaries."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], (list, dict)):
            yield from places(value[key])


def broken_json(text: str, rng: random.Random) -> bytes:
    """The text with bytes changed, or with one value replaced, removed or duplicated."""
    if rng.randrange(2):
        return mutate(text.encode(), rng)
    value = json.loads(text)
    holder, key = rng.choice(list(places(value)))
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
        return json.dumps(value).encode()
    holder[key] = "@"
    twice = (f"1, {json.dumps(key)}: 2" if kind == 1 and isinstance(holder, dict)
             else rng.choice(HOSTILE))
    return json.dumps(value).replace('"@"', twice).encode()


def data_set(folder: Path) -> Path:
    """A data set of two images with every file that a data set or a run may contain."""
    (folder / "images").mkdir(parents=True)
    graphs = [make_graph(f"images/{i}.png", 160, 120, [0, 2],
                         [[10, 20, 30, 40], [80, 60, 160, 120]], [[0, 1, 1]],
                         [0.5, 1], [0.9, 1], [0, 0.5])
              for i in range(2)]
    for graph in graphs:
        Image.new("RGB", (160, 120)).save(folder / graph.image)
    scene = Scene((), ENV.world.camera, (), Sky((1.0,) * 3, (1.0,) * 3), Material((0.5,) * 3))
    write_labels(folder, graphs, [scene, scene], ENV,
                 {"width": 160, "height": 120, "target": str(folder)})
    shutil.copy(folder / "graphs.jsonl", folder / "predicted.jsonl")
    scores = {"20": 0.5, "50": 0.6}
    gaps = dict.fromkeys(("objects_per_image", "categories", "predicates"), 0.1)
    (folder / "metrics.json").write_text(
        json.dumps({"map50": 0.5, "recall": scores, "content_gap": gaps, "data": "x"}))
    (folder / "config.json").write_text(
        json.dumps({"env": "clevr", "seconds": 1.5, "source": ["data/sdr"]}))
    return folder


def mutated_json(trials: int, rng: random.Random) -> list[str]:
    """Break the last line of each JSON file that the project reads."""
    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder = data_set(Path(name) / "set")
        images = open_images(folder, ENV)
        sizes = [(160, 120)] * 2

        def again(graphs):
            json.dumps([to_json(graph, ENV.vocabulary) for graph in graphs],
                       allow_nan=False).encode()

        def finite(cameras):
            assert all(np.isfinite(camera.resized(40, 30).K @ camera.R @ camera.t).all()
                       for camera in cameras), "not finite"

        readers = {"graphs.jsonl": lambda: again(read_labels(images, ENV)),
                   "dataset.json": lambda: read_info(folder, ENV),
                   "cameras.jsonl": lambda: finite(
                       read_cameras(folder / "cameras.jsonl", images.names, sizes)),
                   "metrics.json": lambda: read_row(folder),
                   "config.json": lambda: read_row(folder),
                   "predicted.jsonl": lambda: again(
                       read_graphs(folder / "predicted.jsonl", ENV.vocabulary))}
        whole = {file: (folder / file).read_bytes() for file in readers}
        for trial in range(trials):
            file = list(readers)[trial % len(readers)]
            *lines, last = whole[file].splitlines() if file.endswith("l") else [whole[file]]
            put(folder / file,
                b"".join(line + b"\n" for line in lines) + broken_json(last.decode(), rng))
            # the broken line, never an earlier one
            where = r"(:[2-9]\d*)?" if lines else r"(:\d+)?"
            failures += complaint(folder, readers[file],
                                  f"{re.escape(str(folder / file))}{where}: ")
            put(folder / file, whole[file])
    return failures


def trained(loop: Path) -> Path:
    """A loop of one run with the minimum that a report draws; its images have been deleted."""
    run = data_set(loop / "start")
    ratios = {"cube": 0.5, "sphere": None, "cylinder": 0.25}
    content = {"objects_per_image": [0, 1], "categories": [0.5, 0.25, 0.25], "predicates": None}
    (run / "metrics.json").write_text(
        json.dumps(json.loads((run / "metrics.json").read_text()) | {"ap50": ratios}))
    (run / "curves.json").write_text(json.dumps({
        "precision_at_recall": {"cube": [0.5] * len(RECALL_POINTS), "sphere": None},
        "content": {"source": content, "target": content},
        "recall_curve": [0.25] * 3, "recall_curve_graph_constraint": [None] * 3,
        "recall_per_image": {"20": [0.5, None]}}))
    (run / "log.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss_obj": 0.5, "accuracy_prediction": 0.5}}\n' for i in (1, 2)))
    return run


def mutated_runs(trials: int, rng: random.Random) -> list[str]:
    """Break the files of a run, then write the report and, if installed, the TensorBoard events."""
    failures, tensorboard = [], importlib.util.find_spec("tensorboard") is not None
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        loop = Path(name) / "loop"
        run = trained(loop)
        predicted = read_graphs(run / "predicted.jsonl", ENV.vocabulary)

        def read():
            write_report(loop, read_loop(loop), ENV, None, None, predicted)
            if file == "log.jsonl" and tensorboard:
                write_events(run)

        file = "log.jsonl"
        read()  # load everything once, outside the timed trials
        whole = {file: (run / file).read_bytes()
                 for file in ("log.jsonl", "curves.json", "metrics.json")}
        for trial in range(trials):
            file = list(whole)[trial % len(whole)]
            *lines, last = whole[file].splitlines() if file.endswith("l") else [whole[file]]
            put(run / file,
                b"".join(line + b"\n" for line in lines) + broken_json(last.decode(), rng))
            where = r"(:[2-9]\d*)?" if lines else r"(:\d+)?"
            # drawing the figures takes longer
            failures += complaint(loop, read, f"{re.escape(str(run / file))}{where}: ",
                                  seconds=10 * SECONDS)
            put(run / file, whole[file])
    return failures


# --- names and links ------------------------------------------------------------------------------

UP = "../outside/secret.png"
NAMES = (UP, f"images/../{UP}", f"./{UP}", f"images//../{UP}", "{outside}/secret.png",
         UP.replace("/", "\\"), "images\\0.png", "", ".", "..", "/", "images", "images/0.png\0",
         "\0", f"{UP}\0.png", "~/secret.png",
         "%2e%2e/outside/secret.png", "file://{outside}/secret.png", "/dev/zero", "/dev/stdin",
         "/proc/self/environ", "more/link.png", "more/folder/secret.png", "more/pipe.png",
         "more/zero.png", "more/loop.png", "x" * 4096, "x/" * 2048, "C:\\secret.png",
         "\\\\host\\secret.png", "images/0.PNG", "images/\u202e.png")
FILES = ("images/0.png", "images", "graphs.jsonl", "cameras.jsonl", "dataset.json")
STREET_FILES = ("image_2/0.png", "image_2", "calib/0.txt", "calib", "label_2/0.txt", "label_2")
CAR = "Car 0.00 0 -1.37 603.93 152.73 915.81 308.23 2.00 2.00 4.00 2.00 1.65 10.00 0.00"
REGION = "DontCare -1 -1 -10 510.00 170.50 590.25 190.00 -1 -1 -1 -1000 -1000 -1000 -10"
CALIB = "P0: 1\nP2: 700 0 600 45 0 700 180 0.2 0 0 1 0.003\n"


def street(folder: Path) -> Path:
    """A KITTI folder with one frame."""
    for name in ("image_2", "calib", "label_2"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (1242, 375)).save(folder / "image_2/0.png")
    (folder / "calib/0.txt").write_text(CALIB)
    (folder / "label_2/0.txt").write_text(f"{CAR}\n{REGION}\n")
    return folder


def photos(folder: Path) -> Path:
    """A folder with one image."""
    folder.mkdir()
    Image.new("RGB", (160, 120)).save(folder / "0.png")
    return folder


def replace_by(path: Path, kind: str, outside: Path) -> None:
    """Replace a file by a pipe or a link: to itself, to /dev/zero or to the file moved outside."""
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(outside / path.name)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path, "zero": "/dev/zero", "outside": outside / path.name}[kind])


def hostile_names(trials: int, rng: random.Random) -> list[str]:
    """Use image names that lead out of the data set or do not name a file."""
    failures = []
    for name in NAMES[:trials]:
        with tempfile.TemporaryDirectory() as top:
            folder, outside = data_set(Path(top) / "set"), Path(top) / "outside"
            outside.mkdir()
            Image.new("RGB", (160, 120)).save(outside / "secret.png")
            shutil.copy(outside / "secret.png", outside / "link.png")
            for kind in ("pipe", "zero", "loop"):
                replace_by(folder / "more" / f"{kind}.png", kind, outside)
            replace_by(folder / "more/link.png", "outside", outside)
            (folder / "more/folder").symlink_to(outside)
            row = (json.loads((folder / "graphs.jsonl").read_text().splitlines()[0])
                   | {"image": name.format(outside=outside)})
            for file in ("graphs.jsonl", "predicted.jsonl"):
                (folder / file).write_text(json.dumps(row) + "\n")
            path, loop = folder / "graphs.jsonl", {"label1": {"source": [str(folder)]}}
            failures += complaint(folder, lambda: read_graphs(path, ENV.vocabulary, folder),
                                  f"{path}:1: image: ", False)
            with redirect_stdout(StringIO()):
                failures += complaint(folder, lambda: draw_sheet(folder, loop))
    return failures


def hostile_links(trials: int, rng: random.Random) -> list[str]:
    """Replace files of data sets, KITTI folders, photos and runs by links, pipes and devices."""
    failures = []
    cases = [(data_set, file, kind) for file in FILES
             for kind in ("outside", "pipe", "zero", "loop")]
    cases += [(street, file, kind) for file in STREET_FILES
              for kind in ("outside", "pipe", "zero", "loop")]
    cases += [(data_set, "model.pt", kind) for kind in ("pipe", "zero", "loop")]
    cases += [(photos, "0.png", kind) for kind in ("outside", "pipe", "zero", "loop")]
    for make, file, kind in cases[:trials]:
        with tempfile.TemporaryDirectory() as top:
            folder, outside = make(Path(top) / "set"), Path(top) / "outside"
            outside.mkdir()
            replace_by(folder / file, kind, outside)

            def read():
                if file == "model.pt":
                    return checkpoint.read(folder / file)
                if make is photos:  # as evaluate.py predict reads it
                    return read_image(folder / Path(find_images([folder], ENV).names[0]).name,
                                      160, 120)
                if make is data_set:
                    return LabeledImages([folder], ENV, 80, 60)[0]
                return read_labels(open_images(folder, STREET), STREET)

            failures += [f"{file}, {kind}: {line}"
                         for line in complaint(folder, read, f"{folder}", may_read=False)]
    return failures


# --- KITTI, meshes --------------------------------------------------------------------------------

WORDS = ("nan", "inf", "-inf", "1e999", "1e308", "-1", "0", "", "1,5", ",", "0x10", "1_0", "\u0663",
         "\ufeff", "\0", "x" * 5000, "9" * 400, "Car", "DontCare", "Van", "P2:")


def broken_words(text: str, rng: random.Random) -> bytes:
    """The text with bytes changed, or with words replaced, inserted or removed."""
    if rng.randrange(2):
        return mutate(text.encode(), rng)
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words))
        words[at:at + rng.randrange(2)] = rng.choices(WORDS, k=rng.randrange(2))
    return rng.choice(("", "", "", "\ufeff")).encode() + " ".join(words).encode()


def mutated_kitti(trials: int, rng: random.Random) -> list[str]:
    """Break label files with a car and a region, and occasionally a calibration file."""
    failures = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "000000.txt"
        camera = camera_of(np.array([[700, 0, 600, 45], [0, 700, 180, 0.2], [0, 0, 1, 0.003]]),
                           1242, 375)
        readers = (lambda: to_graph("a.png", read_objects(path), camera, STREET),
                   lambda: camera_of(read_calib(path), 1242, 375).project(np.ones((2, 3))))
        for trial in range(trials):
            calib = trial % 8 == 0
            put(path, broken_words(CALIB if calib else f"{CAR}\n{REGION}\n", rng))
            failures += complaint(path.parent, readers[calib], rf"{path}(:\d+)?: ")
    return failures


def mutated_meshes(trials: int, rng: random.Random) -> list[str]:
    """Alternate OBJ and GLB files; materials in another folder are ignored. Requires trimesh."""
    try:
        import trimesh
    except ImportError:
        return []
    failures, box = [], trimesh.creation.box()
    whole = {"a.obj": b"mtllib ../outside/a.mtl\n" + box.export(file_type="obj").encode(),
             "a.glb": box.export(file_type="glb")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        (Path(name) / "outside").mkdir()
        (Path(name) / "outside/a.mtl").write_text("newmtl a\nmap_Kd a.png\n")
        folder.mkdir()
        for trial in range(trials):
            path = folder / ("a.glb" if trial % 2 else "a.obj")
            put(path, mutate(whole[path.name], rng) if trial % 2
                else broken_words(whole[path.name].decode(), rng))
            failures += complaint(folder, lambda: read_mesh(path), rf"{path}(:\d+)?: ")
    return failures


# --- all of them ----------------------------------------------------------------------------------

FAULTS = (("checkpoint, one bit flipped", flipped_bits, 1000),
          ("checkpoint, cut off", truncated_checkpoints, 400),
          ("checkpoint, malicious", malicious_pickles, 20),
          ("checkpoint, another network's sizes", model_settings, 400),
          ("images, mutated PNG and JPEG", mutated_images, 4000),
          ("images, odd kinds and sizes", odd_images, 36),
          ("JSON, mutated lines and files", mutated_json, 20_000),
          ("JSON of a run, through its report", mutated_runs, 400),
          ("names that lead out", hostile_names, len(NAMES)),
          ("links, pipes, devices", hostile_links, 51),
          ("KITTI labels and calibrations", mutated_kitti, 2000),
          ("OBJ and GLB files", mutated_meshes, 400))


def main() -> None:
    print(f"{'fault':<40}{'trials':>8}{'failures':>10}{'seconds':>9}")
    broken = False
    for name, fault, trials in FAULTS:
        start = time.perf_counter()
        failures = fault(trials, random.Random(name))
        print(f"{name:<40}{trials:>8,}{len(failures):>10}{time.perf_counter() - start:>9.1f}",
              flush=True)
        for line, count in collections.Counter(line[:200] for line in failures).most_common(5):
            print(f"  {count} x {line}")
        broken |= bool(failures)
    sys.exit(broken)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
