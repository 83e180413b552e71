"""Files and folders that survive whatever ends a program.

What a stage makes grows in `.OUT.partial` beside OUT and takes OUT's place once it is whole. A stage that was interrupted
goes on there by itself if its options, inputs and code are the same.
"""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sim2sg_lib.terminal import InputError, say

ROOT = Path(__file__).resolve().parents[1]
STARTED_WITH, LOCK = "started_with.json", "lock"  # in a partial folder: what it will be, and who is at work on it
FREE = ("command", "threads", "torch", "device")  # may differ when a stage goes on; the bytes are then no longer promised
# a data set, a set of splits, a run: anything else may be somebody's only copy and is never overwritten
MARKS = (("dataset.json", "images"), ("train/dataset.json",), ("config.json", "log.jsonl"), ("predict.json", "graphs.jsonl"))


# --- files ------------------------------------------------------------------------------------------------------------

def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Written beside and renamed: the file is the old one or the new one, never a part of it.

    sync: on the disk first, so that this holds for a power cut, too. Errors: InputError where it cannot be written.
    """
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
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
    file = open(path, "ab")
    file.truncate(size)
    return file, rows


def add_line(file: BinaryIO, row: dict) -> None:
    """A row at the end of a file of `open_growing`."""
    file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
    file.flush()


def digest(*paths: Path) -> str:
    """SHA-256 of files, in hexadecimal; what is missing counts as empty."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(Path(path).read_bytes() if Path(path).is_file() else b"").digest())
    return total.hexdigest()


def digest_of_code() -> str:
    """SHA-256 of the project's own modules: a half-made folder must not be finished by other code."""
    return digest(*sorted([*ROOT.glob("*.py"), *ROOT.glob("sim2sg_lib/*.py"), *ROOT.glob("envs/**/*.py")]))


# --- folders that grow beside their place -----------------------------------------------------------------------------

@contextmanager
def work_folder(out: Path, options: dict, overwrite: bool, resume: bool) -> Iterator[Path]:
    """The folder in which OUT grows: what an interrupted stage left of it, or an empty one; published at the end.

    options: all that decides what OUT will hold, for JSON. overwrite: replace a finished OUT, or a half-made one of other
    options. resume: go on with a half-made one. Errors: InputError if OUT is in use, is being made by another process,
    or is half made with other options; click.ClickException leaves what is there for the next time.
    """
    out = Path(out)
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    if old.exists() and not out.exists():  # ended between the two renames of `publish`
        old.rename(out)
    refuse_used(out, overwrite)
    with partial_folder(partial, out, options, overwrite, resume):
        yield partial
        publish(partial, out, old)


@contextmanager
def partial_folder(partial: Path, out: Path, options: dict, overwrite: bool, resume: bool) -> Iterator[Path]:
    """`partial`, in which something for `out` grows, prepared and held against other processes. See `work_folder`."""
    from filelock import FileLock, Timeout
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another process is at work on it") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror})") from None
    try:
        prepare(partial, out, options | {"code": digest_of_code()}, overwrite, resume)
        yield partial
    finally:
        lock.release()


def prepare(partial: Path, out: Path, options: dict, overwrite: bool, resume: bool) -> None:
    """Sweep what was half written, or everything where it cannot go on. Errors: InputError."""
    options = json.loads(json.dumps(options))  # tuples become lists, as they do in the file
    path = partial / STARTED_WITH
    before = read_started(path)
    changed = [name for name in options | (before or {}) if name not in FREE
               and options.get(name) != (before or {}).get(name)]
    if before and resume and changed and not overwrite:
        name = changed[0]
        what = "other code" if name == "code" else f"{name} {before.get(name)!r}, not {options.get(name)!r}"
        raise InputError(f"{partial}: was begun with {what}; give the same options, or start anew with --no-resume")
    if before and resume and not changed:
        for path in partial.rglob("*.tmp"):
            path.unlink()
        note = [f"{name} {before.get(name)!r}, now {options[name]!r}" for name in FREE[1:]
                if name in options and before.get(name) != options[name]]
        say(f"{out}: goes on where it was interrupted" + (f" (not to the same bytes: {', '.join(note)})" if note else ""))
        return
    for path in partial.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(partial / STARTED_WITH, options)


def read_started(path: Path) -> dict | None:
    """What a half-made folder was begun with; None if it holds nothing to go on from."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return options if isinstance(options, dict) else None


def refuse_used(out: Path, overwrite: bool) -> None:
    """Errors: InputError if `out` is a file, or a folder with something in it that may not, or must not, be overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: is not empty; choose another --out or add --overwrite")
    if not any(all((out / name).exists() for name in mark) for mark in MARKS):
        raise InputError(f"{out}: is neither a data set nor a run, so it is not overwritten; choose another --out")


def publish(partial: Path, out: Path, old: Path) -> None:
    """Put the finished folder in `out`'s place: what was there goes only once the new one is complete."""
    for name in (STARTED_WITH, LOCK):
        (partial / name).unlink()
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
