"""Atomic writes, and JSON Lines files that are appended to."""
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sim2sg_lib.cli import InputError


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Write atomically through PATH.tmp: the file has either its old or its new content.

    sync: wait for the disk, so that this holds even after a power cut. Raises: InputError.
    """
    temporary = Path(f"{path}.tmp")
    with writing(path):
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turns an OSError into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def write_text(path: Path, text: str) -> None:
    """UTF-8, as `write_bytes`; undecodable bytes of file names become question marks."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: dict) -> None:
    """One indented JSON object. Raises: ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: list[dict]) -> None:
    """One JSON object per line."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def open_growing(path: Path, is_complete=lambda row: True) -> tuple[BinaryIO, list[dict]]:
    """Open a JSON Lines file for `add_line`; returns it and the rows that it has so far.

    The first incomplete row, left by an interruption, is cut off with everything after it.
    is_complete: whether the files that a row names are complete, too; an exception means no.
    """
    rows, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not is_complete(row):
                break
        except (KeyError, TypeError, ValueError, OSError):
            break
        rows.append(row)
        size += len(line)
    file = open_log(path)
    with writing(path):
        file.truncate(size)
    return file, rows


def add_line(file: BinaryIO, row: dict) -> None:
    """Append a row to a file of `open_growing` or `open_log`. Raises: InputError."""
    content = json.dumps(row, allow_nan=False).encode() + b"\n"
    with writing(file.name):
        while content:  # an unbuffered write may be partial
            content = content[file.write(content):]


def open_log(path: Path) -> BinaryIO:
    """A file for `add_line`; unbuffered, so that closing it never writes again."""
    return open(path, "ab", buffering=0)
