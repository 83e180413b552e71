"""Shared by all tests: the project on the path, two threads, the command lines, a toy loop, real data where there is some.

Some tests compare with data that is not part of the project (Blender renders of CLEVR scenes, official CLEVR scenes,
a COCO sample, KITTI frames and labels). They run where SIM2SG_TEST_DATA names a folder that holds it, and are skipped
elsewhere.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)
ENVIRONMENT = {"OMP_NUM_THREADS": "2"} | os.environ | {"PYTHONPATH": str(ROOT)}  # OMP_NUM_THREADS=1 for a busy machine


def run(cwd: Path, script: str, *arguments, code: int = 0) -> str:
    """Run a script; returns what it printed, or, where it should fail, its error line."""
    result = subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, text=True,
                            capture_output=True, env=ENVIRONMENT)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, result.stdout + result.stderr
    if code == 0:
        return result.stdout
    complaint = [line for line in result.stderr.splitlines() if line and "|" not in line]  # progress bars aside
    assert len(complaint) == 1, result.stderr
    return complaint[0]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A whole loop of one iteration on a handful of images; a test adds what it writes to it under a name of its own."""
    cwd = tmp_path_factory.mktemp("toy")
    run(cwd, "synthesize.py", "--num", 12, "--out", "data/sdr")
    run(cwd, "synthesize.py", "--domain", "target", "--num", 16, "--seed", 1, "--out", "data/target")
    run(cwd, "train.py", "--source", "data/sdr", "--steps", 6, "--out", "runs/0")
    run(cwd, "synthesize.py", "--checkpoint", "runs/0/model.pt", "--target", "data/target/train", "--threshold", 0.06,
        "--out", "data/1")
    run(cwd, "train.py", "--source", "data/1", "--source", "data/sdr", "--target", "data/target/train", "--align",
        "appearance,prediction", "--init", "runs/0/model.pt", "--steps", 4, "--out", "runs/1")
    return cwd


@pytest.fixture
def real_data():
    """Returns a function: name of a data set -> its folder, or the test is skipped."""
    def find(name: str) -> Path:
        folder = Path(os.environ.get("SIM2SG_TEST_DATA", "")) / name
        if "SIM2SG_TEST_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"no {name}: set SIM2SG_TEST_DATA to a folder that holds it")
        return folder
    return find
