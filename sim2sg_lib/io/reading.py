"""Bounded, safe reading of files that may come from anyone."""
import json
import math
import os
import re
from pathlib import Path

from sim2sg_lib.cli import InputError

MAX_FILE_BYTES = 256 * 2**20  # of an image, a mesh or a text, which is read whole
MAX_LINE = 8 * 2**20          # characters of JSON Lines, which in memory take forty times as much
MAX_PIXELS = 64 * 2**20       # of an image, beyond which it is not decoded
MAX_SIDE = 65535              # pixels, of an image in either direction
NOT_IN_NAMES = "[\0\\\\\ud800-\udfff]"  # a pattern: what the name of a file may not hold, a backslash for one
MAX_DEPTH = 16                # of lists and objects inside one another in JSON


def read_json_lines(path: Path) -> list[tuple[int, dict]]:
    """Every non-empty line of a JSON Lines file as (line number from 1, object). Errors: InputError."""
    rows = []
    for line_number, line in enumerate(read_text(path, "JSON Lines").split("\n"), 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path}:{line_number}: {len(line)} characters, expected {MAX_LINE} a line at most")
        if line.strip():
            rows.append((line_number, load_json(line, f"{path}:{line_number}")))
    return rows


def read_text(path: Path, expected: str) -> str:
    """A file's text. Errors: InputError if it is missing or too large, which says what was `expected`, or is no UTF-8."""
    content = read_bytes(path, expected)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: cannot be read as UTF-8 text, expected {expected}") from None


def read_bytes(path: Path, expected: str) -> bytes:
    """A file's bytes. Errors: those of check_file; InputError if it cannot be read."""
    check_file(path, expected)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected {expected}") from None


def check_file(path: Path, expected: str, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Errors: InputError unless there is a file of at most max_bytes; a pipe or a device might never end."""
    if not os.path.isfile(path):  # which, unlike Path's, takes any name
        raise InputError(f"{path}: {'not a regular' if os.path.exists(path) else 'no such'} file, expected {expected}")
    if os.path.getsize(path) > max_bytes:
        raise InputError(f"{path}: {os.path.getsize(path)} bytes, expected {expected}, of {max_bytes} at most")


def safe_join(root: Path, name: str, where: str = "") -> Path:
    """root / name, for a `name` that somebody else wrote or linked; `root` itself may be anywhere.

    Errors: InputError, starting with `where` or else the path, if the name or a link on its way leads out of root.
    """
    path = Path(root) / name
    if not _stays_inside(name) or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise InputError(f"{where or path}: {name!r} leads out of {root}, expected a path inside it")
    return path


def _stays_inside(name: str) -> bool:
    """Whether a name is relative and without "..", backslash, NUL, or what is no character."""
    return not re.search(NOT_IN_NAMES, name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def resolve_recorded(path: str, record_file: Path) -> Path:
    """A path that a record file (config.json, model.pt, metrics.json, ...) holds, wherever the program was started.

    Records hold absolute paths. Older ones hold paths relative to an unknown working directory: the nearest folder around
    the record under which the path exists is taken, else the present working directory.
    """
    if os.path.isabs(path):
        return Path(path)
    for record in (os.path.realpath(record_file), os.path.abspath(record_file)):
        for folder in Path(record).parents:
            if os.path.lexists(folder / path):
                return folder / path
    return Path(path).absolute()


def load_json(text: str, where: str) -> dict:
    """Parse one JSON object. Errors: InputError starting with `where`.

    Refused is also what Python reads and others do not: NaN, infinity, a name twice in an object, half a character, more
    than MAX_DEPTH levels.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_without_twins)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if _deeper(value, MAX_DEPTH):
        raise InputError(f"{where}: expected at most {MAX_DEPTH} lists and objects inside one another")
    return value


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        raise ValueError(f"{word} is not a finite number")
    return float(word)


def _without_twins(pairs: list[tuple]) -> dict:
    row = {}
    for name, value in pairs:
        if name in row:
            raise ValueError(f"{name!r} is there twice")
        row[name] = value
    return row


def _deeper(value, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inner if isinstance(item, (dict, list)))


def is_int(value) -> bool:
    """Whether a value of JSON is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value of JSON is a number below 1e9, beyond which nothing here is meant."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def read_json(path: Path) -> dict:
    """One JSON object. Errors: InputError if it is missing or is none."""
    return load_json(read_text(path, "one made by synthesize.py or train.py"), str(path))
