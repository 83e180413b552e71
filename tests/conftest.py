"""Shared by all tests: the project on the path, two threads, and a folder of real data where there is one.

Some tests compare with data that is not part of the project (Blender renders of CLEVR scenes, official CLEVR scenes,
a COCO sample, KITTI frames and labels). They run where SIM2SG_TEST_DATA names a folder that holds it, and are skipped
elsewhere.
"""
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)


@pytest.fixture
def real_data():
    """Returns a function: name of a data set -> its folder, or the test is skipped."""
    def find(name: str) -> Path:
        folder = Path(os.environ.get("SIM2SG_TEST_DATA", "")) / name
        if "SIM2SG_TEST_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"no {name}: set SIM2SG_TEST_DATA to a folder that holds it")
        return folder
    return find
