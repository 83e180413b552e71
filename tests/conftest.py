"""Shared by all tests: the project on the path, the command lines, a toy loop, real data if any.

Some tests compare with data that is not part of the project (Blender renders of CLEVR scenes,
official CLEVR scenes, a COCO sample, KITTI frames and labels). They run where SIM2SG_TEST_DATA
names a folder that holds it, and are skipped elsewhere.
"""
import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sim2sg_lib.cli import command_line  # noqa: E402

THREADS = int(os.environ.get("OMP_NUM_THREADS", 1 if "PYTEST_XDIST_WORKER" in os.environ else 2))
torch.set_num_threads(THREADS)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
PROGRAMS = {}  # script -> its module, imported once


def run(cwd: Path, script: str, *arguments, code: int = 0, environment: dict | None = None) -> str:
    """Run a script's command line. Returns what it printed, or its error line if it should fail.

    It runs in this process, since importing torch takes seconds; in a new one if an `environment`
    is given.
    """
    if environment:
        done = subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd,
                              text=True, capture_output=True, env=environment)
        returned, printed, errors = done.returncode, done.stdout, done.stderr
    else:
        returned, printed, errors = run_here(cwd, script, [str(argument) for argument in arguments])
    assert "Traceback" not in errors, errors
    assert returned == code, printed + errors
    if code == 0:
        return printed
    # without progress bars
    complaint = [line for line in errors.splitlines() if line and "|" not in line]
    assert len(complaint) == 1, errors
    return complaint[0]


def run_here(cwd: Path, script: str, arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command line run in this process."""
    if script not in PROGRAMS:
        spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
        PROGRAMS[script] = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, PROGRAMS[script])
        spec.loader.exec_module(PROGRAMS[script])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, [str(ROOT / script), *arguments]
    printed, errors, before = StringIO(), StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(printed), redirect_stderr(errors):
            command_line(PROGRAMS[script].main)
    except SystemExit as end:
        return end.code or 0, printed.getvalue(), errors.getvalue()
    finally:
        os.chdir(before)
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A whole loop of one iteration on a few images; tests may add files under new names."""
    cwd = tmp_path_factory.mktemp("toy")
    run(cwd, "synthesize.py", "--num", 12, "--out", "data/sdr")
    run(cwd, "synthesize.py", "--domain", "target", "--num", 16, "--seed", 1,
        "--out", "data/target")
    run(cwd, "train.py", "--source", "data/sdr", "--steps", 6, "--out", "runs/0")
    run(cwd, "synthesize.py", "--checkpoint", "runs/0/model.pt", "--target", "data/target/train",
        "--threshold", 0.06, "--num", 10, "--out", "data/1")
    run(cwd, "train.py", "--source", "data/1", "--source", "data/sdr",
        "--target", "data/target/train", "--align", "appearance,prediction",
        "--init", "runs/0/model.pt", "--steps", 4, "--out", "runs/1")
    return cwd


@pytest.fixture
def one_thread():
    """Torch with one thread: with more, the order of sums depends on the batch size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data():
    """Returns a function: name of a data set -> its folder, or the test is skipped."""
    def find(name: str) -> Path:
        folder = Path(os.environ.get("SIM2SG_TEST_DATA", "")) / name
        if "SIM2SG_TEST_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"no {name}: set SIM2SG_TEST_DATA to a folder that holds it")
        return folder
    return find
