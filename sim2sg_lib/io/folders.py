"""Output folders that appear whole or not at all, and go on where an interrupted command stopped."""
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
STARTED_WITH = "started_with.json"  # in a partial folder: what it will be
SUMMARY = "summary"  # its key for what a stage concludes with, once only publishing is left to do
FREE = ("command", "threads", "torch", "device", SUMMARY)  # may differ when a stage goes on, then maybe not to the same bytes
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what flock says there
DIGESTS = ("code", "input")  # say no more than that something differs
# a data set, a set of splits, a run: anything else may be somebody's only copy and is never overwritten
MARKS = (("dataset.json", "images"), ("train/dataset.json",), ("config.json", "log.jsonl"), ("predict.json", "graphs.jsonl"))


def digest(*paths: Path) -> str:
    """SHA-256 of files and their names, in hexadecimal; what is missing counts as empty."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        content = hashlib.sha256()
        with open(path if path.is_file() else os.devnull, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        total.update(hashlib.sha256(os.fsencode(path.name)).digest() + content.digest())
    return total.hexdigest()


def digest_of_code() -> str:
    """SHA-256 of the project's own modules: a half-made folder must not be finished by other code."""
    return digest(*sorted([*ROOT.glob("*.py"), *ROOT.glob("sim2sg_lib/**/*.py"), *ROOT.glob("envs/**/*.py")]))


@contextmanager
def work_folder(out: Path, options: dict, overwrite: bool, resume: bool) -> Iterator[Path]:
    """The folder in which OUT grows: what an interrupted stage left of it, or an empty one; published at the end.

    options: all that decides what OUT will hold, for JSON. overwrite: replace a finished OUT, or a half-made one of other
    options. resume: go on with a half-made one. Errors: InputError if OUT is in use, cannot be replaced, is being made by
    another process, or is half made with other options; click.ClickException leaves what is there for the next time.
    """
    out = place(out)
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    options = whole(options)
    with held(partial, out):
        recover(partial, out, old, options if resume else None)
        refuse_used(out, overwrite)
        prepare(partial, out, options, overwrite, resume)
        yield partial
        refuse_used(out, overwrite)  # hours may have gone by
        publish(partial, out, old)


@contextmanager
def partial_folder(partial: Path, out: Path, options: dict, overwrite: bool, resume: bool) -> Iterator[Path]:
    """`partial`, in which something for `out` grows, prepared and held against other processes. See `work_folder`."""
    with held(partial, out):
        prepare(partial, out, whole(options), overwrite, resume)
        yield partial


@contextmanager
def held(partial: Path, out: Path) -> Iterator[None]:
    """Hold `partial`, which need not exist, against other processes. A dead process holds no lock.

    Where the system or the file system has no locks, this is said and nothing is held.
    Raises: InputError if another process has it, or if `partial` cannot be made.
    """
    path = partial.with_suffix(".lock")  # beside the folder, which is renamed while it is held
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
            log_info(f"{out}: the file system has no locks ({error.strerror}), so start no second process on this folder")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def lock(file: BinaryIO) -> bool:
    """Whether the open file is locked now; False if another process has it. Raises: OSError where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # a process that was about to end may have deleted the file after it was opened here
    return os.path.exists(file.name) and os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))


def place(out: Path) -> Path:
    """Where OUT lies: the target of a link. Errors: InputError if no other folder can take its place."""
    out = Path(os.path.realpath(out)) if Path(out).is_symlink() else Path(out)
    if Path.cwd().is_relative_to(os.path.realpath(out)):
        raise InputError(f"{out}: is the folder in which this program runs, or one around it; choose another --out")
    if os.path.ismount(out):
        raise InputError(f"{out}: is a mount point, which no other folder can replace; choose a folder inside")
    return out


def recover(partial: Path, out: Path, old: Path, options: dict | None) -> None:
    """Whatever an end inside `publish` left. options: a finished OUT of these goes back to work, to be published again."""
    if old.exists() and not out.exists():
        old.rename(out)
    if old.exists():
        shutil.rmtree(old)
    if options is not None and not partial.exists() and differences(out / STARTED_WITH, options) == []:
        out.rename(partial)


def prepare(partial: Path, out: Path, options: dict, overwrite: bool, resume: bool) -> None:
    """Sweep what was half written, or everything where it cannot go on. Errors: InputError."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror})") from None
    before = read_started(partial / STARTED_WITH)
    changed = differences(partial / STARTED_WITH, options)
    if changed and resume and not overwrite:
        raise InputError(f"{partial}: was begun with {', '.join(changed)}; give the same options, or start anew with "
                         "--no-resume")
    if changed == [] and resume:
        for path in partial.rglob("*.tmp"):
            path.unlink()
        note = [f"{name} {before.get(name)!r}, now {options[name]!r}" for name in FREE[1:-1]
                if name in options and before.get(name) != options[name]]
        log_info(f"{out}: goes on where it was interrupted" + (f" (not to the same bytes: {', '.join(note)})" if note else ""))
        return
    if before:
        log_info(f"{partial}: thrown away, " + (f"it was begun with {', '.join(changed)}" if resume else "as --no-resume asks"))
    (partial / STARTED_WITH).unlink(missing_ok=True)  # first, so that nobody goes on with what an end here leaves
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(partial / STARTED_WITH, options)


def whole(options: dict) -> dict:
    """The options and the code, as they will be read: tuples are lists in a file."""
    return json.loads(json.dumps(options | {"code": digest_of_code()}))


def differences(started: Path, options: dict) -> list[str] | None:
    """Where a folder's STARTED_WITH file and the present options differ, in words; None if there is no such file."""
    before = read_started(started)
    if before is None:
        return None
    old, new = [flat({name: value for name, value in row.items() if name not in FREE}) for row in (before, options)]
    names = [name for name in new | old if not same(old.get(name), new.get(name), started)]
    return [f"other {name}" if name in DIGESTS else f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in names]


def same(old, new, record: Path) -> bool:
    """Whether two option values are equal; paths may be spelled in different ways, `old` as in the file `record`."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same(a, b, record) for a, b in zip(old, new))
    is_path = isinstance(old, str) and isinstance(new, str)
    return old == new or is_path and os.path.realpath(resolve_recorded(old, record)) == os.path.realpath(new)


def flat(options: dict, prefix: str = "") -> dict:
    """{"schedule": {"steps": 6}} -> {"schedule.steps": 6}."""
    rows = {}
    for name, value in options.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows


def read_started(path: Path) -> dict | None:
    """What a half-made folder was begun with; None if it holds nothing to go on from."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return options if isinstance(options, dict) else None


def note_finished(partial: Path, summary: dict) -> None:
    """Nothing is left to do in a half-made folder but to publish it. summary: what the stage concludes with."""
    write_json(partial / STARTED_WITH, read_started(partial / STARTED_WITH) | {SUMMARY: summary})


def finished(partial: Path) -> dict | None:
    """What `note_finished` noted; None if there is something left to do."""
    return read_started(partial / STARTED_WITH).get(SUMMARY)


def refuse_used(out: Path, overwrite: bool) -> None:
    """Errors: InputError if `out` is a file, or a folder with something in it that may not, or must not, be overwritten."""
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: is not empty; choose another --out or add --overwrite")
    if not any(all((out / name).exists() for name in mark) for mark in MARKS):
        raise InputError(f"{out}: is neither a data set nor a run, so it is not overwritten; choose another --out")


def refuse_early(out: Path, overwrite: bool, inputs: Sequence[Path | None] = ()) -> None:
    """As `work_folder` will, before the work of minutes; and where OUT's replacement would delete what it is made from.

    Errors: InputError.
    """
    for path in filter(None, inputs):
        if path.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
            raise InputError(f"{out}: holds {path}, which is read, and would be replaced; choose another --out")
    if not out.exists() or (out / STARTED_WITH).exists():  # a finished one may only want the end of publishing
        return
    out = place(out)
    with held(out.parent / f".{out.name}.partial", out):  # and sweeps the lock of a process that was killed
        refuse_used(out, overwrite)


def publish(partial: Path, out: Path, old: Path) -> None:
    """Put the finished folder in `out`'s place: what was there goes only once the new one is there."""
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    (out / STARTED_WITH).unlink()  # until now a next attempt can go on
    shutil.rmtree(old, ignore_errors=True)
