"""The second half of `make faults`: kill processes at random, fail their writes, look for leaks.

    python tests/kills.py [fraction]     fraction 0.1 runs a tenth of the trials

Each trial is a fork of one process that has imported all modules but computed nothing, so that it
starts immediately and is killed during the actual work. The same command is then run again and must
produce the same bytes as an uninterrupted run.
"""
import builtins
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import synthesize
import train
from sim2sg_lib import checkpoint, cli, dataset  # noqa: F401
from sim2sg_lib.adapt import sim2sg  # noqa: F401
from sim2sg_lib.io import export  # noqa: F401
from sim2sg_lib.net import backbone, predict  # noqa: F401
from sim2sg_lib.score import metrics  # noqa: F401
from sim2sg_lib.sim import fit, lift, shading  # noqa: F401
from sim2sg_lib.viz import drawings  # noqa: F401

SYNTHESIS = ["--env", "clevr", "--num", "40", "--out", "out"]
TRAINING = ["--source", "../data", "--target", "../data", "--align", "appearance,prediction",
            "--augment", "strong", "--steps", "12", "--save-every", "2", "--seed", "1",
            "--out", "out"]
SHORT = {"synthesize.py": ["--num", "3", "--out", "out"],
         "train.py": ["--source", "../data", "--steps", "3", "--save-every", "1", "--out", "out"]}
KILLS = {"synthesize.py": 200, "train.py": 100}


def small_config(categories: int, predicates: int, width: int, height: int, *_):
    """A small network that trains at some hundredths of a second per step."""
    return replace(whole_config(categories, predicates, width, height, imagenet=False), width=64, height=48,
                   fpn_channels=16, head_width=16, graph_width=16)


whole_config, backbone.quick_config = backbone.quick_config, small_config


def start(module, arguments: list[str], folder: Path, sabotage=None) -> int:
    """Fork a process that runs a program in the folder, and return its process id.

    Exit status 99 means that the program ended with a traceback.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = [f"{module.__name__}.py", *arguments]
        if sabotage:
            sabotage()
        cli.command_line(module.main)
    except SystemExit as end:
        status = end.code
    finally:
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a process and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all files except those that record timings."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("config.json", "log.jsonl")}


def whole(module, arguments: list[str], folder: Path) -> tuple[dict[str, str], float]:
    """Returns the fingerprint of an uninterrupted run and its duration in seconds."""
    folder.mkdir()
    begun = time.perf_counter()
    assert finish(start(module, arguments, folder)) == 0, (folder / "log.txt").read_text()
    return fingerprint(folder / "out"), time.perf_counter() - begun


def kill(module, arguments: list[str], trials: int, root: Path, rng: random.Random) -> int:
    """Send kill -9 at a random moment, then run the same command again.

    Returns the number of trials whose result differs from that of the uninterrupted run.
    """
    wanted, seconds = whole(module, arguments, root / "whole")
    failures = 0
    for trial in range(trials):
        folder = root / str(trial)
        folder.mkdir()
        pid = start(module, arguments, folder)
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if finish(pid) == -signal.SIGKILL:  # otherwise it had already finished
            finish(start(module, arguments, folder))
        left = sorted(path.name for path in folder.iterdir())
        failures += left != ["log.txt", "out"] or fingerprint(folder / "out") != wanted
    return failures


def fail_at(count: int):
    """Make the n-th call that opens for writing, writes, truncates, syncs or renames fail."""
    left, whole_open = [count], open

    def spoil(call):
        def spoilt(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)
        return spoilt

    class Spoilt:
        """A wrapper of a file opened for writing."""

        def __init__(self, file) -> None:
            self.file, self.write, self.truncate = file, spoil(file.write), spoil(file.truncate)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

        def __enter__(self) -> "Spoilt":
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

    def spoilt_open(path, mode: str = "r", *arguments, **options):
        if not set(mode) & set("wax+"):
            return whole_open(path, mode, *arguments, **options)
        return Spoilt(spoil(whole_open)(path, mode, *arguments, **options))

    builtins.open = spoilt_open
    for name in ("replace", "rename", "fsync"):
        setattr(os, name, spoil(getattr(os, name)))


def fail_writes(module, arguments: list[str], root: Path) -> tuple[int, int]:
    """Fail the n-th write for n = 1, 2, ... until a run succeeds. Returns (trials, failures).

    A run that overwrites finished results must end with a one-line message, leave either the old or
    the new results, and complete once there is space again.
    """
    arguments = [*arguments, "--overwrite"]
    wanted, _ = whole(module, arguments, root / "whole")
    trials = failures = 0
    while True:
        trials += 1
        folder = root / str(trials)
        folder.mkdir()
        finish(start(module, arguments, folder))
        status = finish(start(module, arguments, folder, lambda: fail_at(trials)))
        if status == 0:
            return trials - 1, failures
        words = (folder / "log.txt").read_text()
        intact = fingerprint(folder / "out") == wanted if (folder / "out").exists() else False
        again = finish(start(module, arguments, folder))
        failures += (status != 3 or "Traceback" in words or not intact or again != 0
                     or fingerprint(folder / "out") != wanted)


def growth(command: list[str], folder: Path) -> float:
    """Ratio of a program's peak memory in the last quarter of its run to the second quarter.

    Returns 0 if the program failed.
    """
    process = subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder,
                               stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    pages = []
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/statm").read_text().split()
        pages.append(int(fields[1]) if len(fields) > 1 else 0)
        time.sleep(0.2)
    quarter = len(pages) // 4
    return (max(pages[-quarter:]) / max(pages[quarter:2 * quarter])
            if process.returncode == 0 else 0.0)


def main() -> None:
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rng, failed = random.Random(0), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        finish(start(synthesize, ["--num", "8", "--out", "data"], root))
        for module, arguments in ((synthesize, SYNTHESIS), (train, TRAINING)):
            script = f"{module.__name__}.py"
            trials = max(1, round(KILLS[script] * share))
            (root / "kill").mkdir()
            (root / "kill/data").symlink_to(root / "data")
            failures = kill(module, arguments, trials, root / "kill", rng)
            print(f"{'kill -9 in ' + script + ', then again':<52}{trials:8d}{failures:10d}",
                  flush=True)
            (root / "kill").rename(root / f"killed-{module.__name__}")
            (root / "disk").mkdir()
            (root / "disk/data").symlink_to(root / "data")
            trials, broken = fail_writes(module, SHORT[script], root / "disk")
            print(f"{'disk full at the n-th write of ' + script:<52}{trials:8d}{broken:10d}",
                  flush=True)
            (root / "disk").rename(root / f"full-{module.__name__}")
            failed += failures + broken
        # with fewer images, memory still grows during warm-up
        for command in (["synthesize.py", "--num", "500", "--out", "soak"],
                        ["train.py", "--source", "soak", "--steps", "500", "--out", "soaked"]):
            # the value varies with the allocator, so use the median
            grown = sorted(growth([*command, "--overwrite"], root) for _ in range(3))
            print(f"{command[0] + ', 500 images or steps: memory grows':<52}{'':8}"
                  f"{100 * (grown[1] - 1):9.1f}%", flush=True)
            failed += not 0 < grown[0] <= grown[1] < 1.05
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
