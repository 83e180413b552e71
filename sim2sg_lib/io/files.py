"""Files and folders that survive whatever ends a program.

What a stage makes grows in `.OUT.partial` beside OUT and takes OUT's place once it is whole. A stage that was interrupted
goes on there by itself if its options, inputs and code are the same.
"""
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sim2sg_lib.cli import InputError

# --- files ------------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Written beside and renamed: the file is the old one or the new one, never a part of it.

    sync: on the disk first, so that this holds for a power cut, too. Errors: InputError where it cannot be written.
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
    """What the system refuses in here becomes an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """UTF-8, as `write_bytes`; what a file's name may hold and UTF-8 may not becomes a question mark."""
    write_bytes(path, text.encode(errors="replace"), sync)


def write_json(path: Path, value: dict) -> None:
    """One indented JSON object; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def open_growing(path: Path, is_whole=lambda row: True) -> tuple[BinaryIO, list[dict]]:
    """A JSON Lines file to which long work adds a row (`add_line`) whenever a part of it is done, and the rows so far.

    The first row that an interruption left half written goes, and all behind it. is_whole: whether what a row speaks of is
    there, too; a KeyError, TypeError, ValueError or OSError means no.
    """
    rows, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not is_whole(row):
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
    """A row at the end of a file of `open_growing` or `open_log`. Errors: InputError where it cannot be written."""
    content = json.dumps(row, allow_nan=False).encode() + b"\n"
    with writing(file.name):
        while content:  # a file without a buffer may take less than all
            content = content[file.write(content):]


def open_log(path: Path) -> BinaryIO:
    """A file for `add_line`; without a buffer, so that nothing is left that closing it would try to write again."""
    return open(path, "ab", buffering=0)


# --- folders that grow beside their place -----------------------------------------------------------------------------


