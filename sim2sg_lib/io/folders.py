"""Output folders that appear complete or not at all, and interrupted commands that continue.

A stage works in `.OUT.partial` beside OUT, which is renamed to OUT when it is complete. The same
command continues in it after an interruption, if options, inputs and code are unchanged.
"""
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sim2sg_lib.cli import InputError, log_info
from sim2sg_lib.io.files import write_json
from sim2sg_lib.io.reading import resolve_recorded

ROOT = Path(__file__).resolve().parents[2]
STARTED_WITH = "started_with.json"  # in a partial folder: the options it was started with
SUMMARY = "summary"  # its key for the result of a stage that only has to be published
# options that may change when a stage resumes; the output may then not be bit-identical
FREE = ("command", "threads", "torch", "device", SUMMARY)
DIGESTS = ("code", "input")  # options whose values mean nothing to a reader
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
# files of a data set, a set of splits, a run, predictions: no other folder is overwritten
MARKS = (("dataset.json", "images"), ("train/dataset.json",), ("config.json", "log.jsonl"),
         ("predict.json", "graphs.jsonl"))


def digest(*paths: Path) -> str:
    """SHA-256 of files and their names, hexadecimal; a missing file counts as empty."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        content = hashlib.sha256()
        with open(path if path.is_file() else os.devnull, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        total.update(hashlib.sha256(os.fsencode(path.name)).digest() + content.digest())
    return total.hexdigest()


def digest_of_code() -> str:
    """SHA-256 of the project's modules: other code must not finish a partial folder."""
    patterns = ("*.py", "sim2sg_lib/**/*.py", "envs/**/*.py")
    return digest(*sorted(path for pattern in patterns for path in ROOT.glob(pattern)))


@contextmanager
def work_folder(out: Path, options: dict, overwrite: bool, resume: bool) -> Iterator[Path]:
    """The partial folder of OUT, empty or left by an interruption; becomes OUT at the end.

    options:   everything that OUT's content depends on, as JSON values.
    overwrite: replace an existing OUT, or a partial folder of other options.
    resume:    continue in a partial folder of the same options.
    Raises: InputError if OUT is in use, must not be replaced, or is partial with other options.
    After any exception the partial folder stays for the next time.
    """
    out = resolve_output(out)
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    options = completed(options)
    with held(partial, out):
        recover(partial, out, old, options if resume else None)
        refuse_used(out, overwrite)
        prepare(partial, out, options, overwrite, resume)
        yield partial
        refuse_used(out, overwrite)  # hours may have passed
        publish(partial, out, old)


@contextmanager
def partial_folder(partial: Path, out: Path, options: dict, overwrite: bool,
                   resume: bool) -> Iterator[Path]:
    """A folder `partial` for work on `out` that the caller publishes. See `work_folder`."""
    with held(partial, out):
        prepare(partial, out, completed(options), overwrite, resume)
        yield partial


@contextmanager
def held(partial: Path, out: Path) -> Iterator[None]:
    """Lock `partial`, which need not exist, against other processes; a dead one holds no lock.

    Without support for locks, a line says so. Raises: InputError if another process holds the lock,
    or if the lock file cannot be made.
    """
    path = partial.with_suffix(".lock")  # beside the folder, which is renamed under the lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror})") from None
    with file:
        try:
            if not lock(file):
                raise InputError(f"{out}: another process is at work on it")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise InputError(f"{out}: cannot be locked ({error.strerror})") from None
            log_info(f"{out}: the file system has no locks ({error.strerror}), so start no second "
                     "process on this folder")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def lock(file: BinaryIO) -> bool:
    """Lock an open file; False if another process holds it. Raises: OSError without support."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # a process that just ended may have deleted the file after it was opened here
    return os.path.exists(file.name) and os.path.samestat(os.fstat(file.fileno()),
                                                          os.stat(file.name))


def resolve_output(out: Path) -> Path:
    """The target of OUT if it is a link. Raises: InputError if no folder can replace it."""
    out = Path(os.path.realpath(out)) if Path(out).is_symlink() else Path(out)
    if Path.cwd().is_relative_to(os.path.realpath(out)):
        raise InputError(f"{out}: is the folder in which this program runs, or one around it; "
                         "choose another --out")
    if os.path.ismount(out):
        raise InputError(f"{out}: is a mount point, which no other folder can replace; choose a "
                         "folder inside")
    return out


def recover(partial: Path, out: Path, old: Path, options: dict | None) -> None:
    """Finish or undo an interrupted `publish`. An OUT of these options is published again."""
    if old.exists() and not out.exists():
        old.rename(out)
    if old.exists():
        shutil.rmtree(old)
    if options is not None and not partial.exists() and differences(out, options) == []:
        out.rename(partial)


def prepare(partial: Path, out: Path, options: dict, overwrite: bool, resume: bool) -> None:
    """Delete temporary files, or everything if the work starts anew. Raises: InputError."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror})") from None
    before, changed = read_started(partial), differences(partial, options)
    if changed and resume and not overwrite:
        raise InputError(f"{partial}: was started with {', '.join(changed)}; give the same "
                         "options, or start anew with --no-resume")
    if changed == [] and resume:
        for path in partial.rglob("*.tmp"):
            path.unlink()
        note = [f"{name} {before.get(name)!r}, now {options[name]!r}" for name in FREE[1:-1]
                if name in options and before.get(name) != options[name]]
        log_info(f"{out}: resumes where it was interrupted"
                 + (f" (not bit-identically: {', '.join(note)})" if note else ""))
        return
    if before:
        reason = f"it was started with {', '.join(changed)}" if resume else "as --no-resume asks"
        log_info(f"{partial}: discarded, {reason}")
    (partial / STARTED_WITH).unlink(missing_ok=True)  # first: a half-emptied folder is not resumed
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(partial / STARTED_WITH, options)


def completed(options: dict) -> dict:
    """The options and the code's digest, as they are read back from JSON."""
    return json.loads(json.dumps(options | {"code": digest_of_code()}))


def differences(folder: Path, options: dict) -> list[str] | None:
    """How a folder's STARTED_WITH differs from options, in words; None without such a file."""
    before = read_started(folder)
    if before is None:
        return None
    old, new = [flat({name: value for name, value in row.items() if name not in FREE})
                for row in (before, options)]
    names = [name for name in new | old
             if not same(old.get(name), new.get(name), folder / STARTED_WITH)]
    return [f"other {name}" if name in DIGESTS else
            f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in names]


def same(old, new, record: Path) -> bool:
    """Whether option values are equal, or paths to one file; `old` as recorded in `record`."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same(a, b, record) for a, b in zip(old, new))
    if isinstance(old, str) and isinstance(new, str) and old != new:
        return os.path.realpath(resolve_recorded(old, record)) == os.path.realpath(new)
    return old == new


def flat(options: dict, prefix: str = "") -> dict:
    """{"schedule": {"steps": 6}} -> {"schedule.steps": 6}."""
    rows = {}
    for name, value in options.items():
        is_nested = isinstance(value, dict)
        rows |= flat(value, f"{prefix}{name}.") if is_nested else {f"{prefix}{name}": value}
    return rows


def read_started(folder: Path) -> dict | None:
    """The options that a partial folder was started with; None if they cannot be read."""
    try:
        options = json.loads((folder / STARTED_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return options if isinstance(options, dict) else None


def note_finished(partial: Path, summary: dict) -> None:
    """Note that a partial folder only has to be published; summary: the stage's result."""
    write_json(partial / STARTED_WITH, read_started(partial) | {SUMMARY: summary})


def finished(partial: Path) -> dict | None:
    """The summary of `note_finished`; None while there is work to do."""
    return read_started(partial).get(SUMMARY)


def refuse_used(out: Path, overwrite: bool) -> None:
    """Raises: InputError for a file, or for a folder that must not be overwritten."""
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: is not empty; choose another --out or add --overwrite")
    if not any(all((out / name).exists() for name in mark) for mark in MARKS):
        raise InputError(f"{out}: is neither a data set nor a run, so it is not overwritten; "
                         "choose another --out")


def refuse_early(out: Path, overwrite: bool, inputs: Sequence[Path | None] = ()) -> None:
    """Raises: InputError where `work_folder` would, but early, and for an OUT that holds inputs."""
    for path in filter(None, inputs):
        if path.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
            raise InputError(f"{out}: holds {path}, which is read, and would be replaced; choose "
                             "another --out")
    if not out.exists() or (out / STARTED_WITH).exists():  # publishing was interrupted
        return
    out = resolve_output(out)
    with held(out.parent / f".{out.name}.partial", out):  # also deletes a dead process's lock file
        refuse_used(out, overwrite)


def publish(partial: Path, out: Path, old: Path) -> None:
    """Rename the partial folder to `out`; a previous `out` is deleted last."""
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    (out / STARTED_WITH).unlink()  # until now the next attempt can publish it
    shutil.rmtree(old, ignore_errors=True)
