"""Bounded, safe reading of untrusted files."""
import json
import math
import os
import re
from pathlib import Path

from sim2sg_lib.cli import InputError

MAX_FILE_BYTES = 256 * 2**20  # of an image, a mesh or a text file
MAX_LINE = 8 * 2**20  # characters per JSON line; parsing takes forty times as much memory
MAX_PIXELS = 64 * 2**20  # of an image
MAX_SIDE = 65535  # width and height of an image in pixels
MAX_DEPTH = 16  # maximum nesting depth of JSON
NOT_IN_NAMES = "[\0\\\\\ud800-\udfff]"  # pattern of what file names in our files may not hold


def read_json_lines(path: Path) -> list[tuple[int, dict]]:
    """The non-empty lines of a file as (line number from 1, object). Raises: InputError."""
    rows = []
    for line_number, line in enumerate(read_text(path, "JSON Lines").split("\n"), 1):
        where = f"{path}:{line_number}"
        if len(line) > MAX_LINE:
            limit = f"{MAX_LINE} per line at most"
            raise InputError(f"{where}: {len(line)} characters, expected {limit}")
        if line.strip():
            rows.append((line_number, load_json(line, where)))
    return rows


def read_json(path: Path) -> dict:
    """One JSON object. Raises: InputError."""
    return load_json(read_text(path, "one made by synthesize.py or train.py"), str(path))


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 file's text. Raises: InputError saying what was `expected`."""
    content = read_bytes(path, expected)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: cannot be read as UTF-8 text, expected "
                         f"{expected}") from None


def read_bytes(path: Path, expected: str) -> bytes:
    """A file's bytes. Raises: InputError as `check_file`, or if it cannot be read."""
    check_file(path, expected)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror
        raise InputError(f"{path}: cannot be read ({reason}), expected {expected}") from None


def check_file(path: Path, expected: str, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Raises: InputError unless the path is a regular file of at most max_bytes."""
    if not os.path.isfile(path):  # unlike Path.is_file, this takes any name
        kind = "not a regular" if os.path.exists(path) else "no such"
        raise InputError(f"{path}: {kind} file, expected {expected}")
    size = os.path.getsize(path)
    if size > max_bytes:
        raise InputError(f"{path}: {size} bytes, expected {expected}, of {max_bytes} at most")


def safe_join(root: Path, name: str, where: str = "") -> Path:
    """root / name, for an untrusted `name`; `root` itself may be anywhere.

    Raises: InputError, starting with `where` or the path, if the name or a link leads out of root.
    """
    path = Path(root) / name
    real_root = os.path.realpath(root)
    if not stays_inside(name) or not Path(os.path.realpath(path)).is_relative_to(real_root):
        where = where or path
        raise InputError(f"{where}: {name!r} leads out of {root}, expected a path inside it")
    return path


def stays_inside(name: str) -> bool:
    """Whether a name is relative, without "..", and without characters of NOT_IN_NAMES."""
    path = Path(name)
    return not re.search(NOT_IN_NAMES, name) and not path.is_absolute() and ".." not in path.parts


def utf8(text: str | Path) -> str:
    """A path or a command as text for JSON; characters that are not UTF-8 become question marks."""
    return str(text).encode(errors="replace").decode()


def real_path(path: str | Path) -> str:
    """A path for records: absolute and without links, so that one file has one name."""
    return utf8(path if "\0" in str(path) else os.path.realpath(path))


def recorded(path: Path, folder: Path) -> str:
    """A path as the records of a run folder hold it: relative to that folder, without links."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def resolve_recorded(path: str, record_file: Path) -> Path:
    """A path from a record (config.json, model.pt, metrics.json, ...), in any working directory.

    It is absolute or relative to the record's folder. Old records hold paths relative to some
    working directory: then the nearest folder around the record under which it exists is taken.
    """
    if os.path.isabs(path):
        return Path(path)
    for record in (os.path.realpath(record_file), os.path.abspath(record_file)):
        for folder in Path(record).parents:
            if os.path.lexists(folder / path):
                return Path(os.path.normpath(folder / path))
    return Path(path).absolute()


def load_json(text: str, where: str) -> dict:
    """Parse one JSON object. Raises: InputError starting with `where`.

    Stricter than Python: no NaN, no infinity, no duplicate names, no half of a surrogate pair, and
    at most MAX_DEPTH levels.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite,
                           object_pairs_hook=_without_duplicates)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if _is_deeper(value, MAX_DEPTH):
        raise InputError(f"{where}: expected at most {MAX_DEPTH} nested lists and objects")
    return value


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        raise ValueError(f"{word} is not a finite number")
    return float(word)


def _without_duplicates(pairs: list[tuple]) -> dict:
    row = {}
    for name, value in pairs:
        if name in row:
            raise ValueError(f"{name!r} is there twice")
        row[name] = value
    return row


def _is_deeper(value, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    nested = (item for item in inner if isinstance(item, (dict, list)))
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in nested)


def is_int(value) -> bool:
    """Whether a JSON value is an integer, not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a JSON value is a number of magnitude below 1e9, not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
