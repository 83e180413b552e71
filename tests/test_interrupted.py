"""The real programs, interrupted: what they leave, how they end, and that going on gives the bytes of not stopping."""
import json
import signal
import subprocess
import sys
import time

import pytest

from conftest import ENVIRONMENT, ROOT, run
from test_loop import fingerprint

TRAIN = ["--source", "../sdr", "--target", "../target/train", "--align", "appearance,prediction", "--steps", 24, "--augment",
         "colour", "--seed", 3, "--save-every", 9, "--out", "run"]


def interrupt(cwd, arguments, watched, number):
    """Start a program, send it the signal once the watched file has a line, and return its exit status and last words."""
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # shells' jobs may ignore it
    path = cwd / watched
    while not (path.exists() and b"\n" in path.read_bytes()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(), process.stderr.read()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    run(root, "synthesize.py", "--num", 12, "--out", "sdr")
    run(root, "synthesize.py", "--domain", "target", "--num", 8, "--out", "target")
    return root


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_synthesis_goes_on_after_any_end(data, tmp_path, number, status):
    arguments = ["synthesize.py", "--env", "drive", "--num", 40, "--export", "kitti", "--out", "set"]
    if not (data / "whole").exists():
        (data / "whole").mkdir()
        run(data / "whole", *arguments)
    code, words = interrupt(tmp_path, arguments, ".set.partial/rendered.jsonl", number)
    assert code == status and "Traceback" not in words and not (tmp_path / "set").exists()
    done = len((tmp_path / ".set.partial/rendered.jsonl").read_bytes().splitlines())
    assert 0 < done < 3  # of three chunks
    refused = run(tmp_path, *arguments[:-2], "--seed", 5, "--out", "set", code=3)
    assert "was begun with seed 0, not 5" in refused
    assert "goes on where it was interrupted" in run(tmp_path, *arguments)
    assert fingerprint(tmp_path / "set") == fingerprint(data / "whole/set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_training_goes_on_to_the_same_bytes(data, number, status):
    """Asked to stop, it saves first; killed, it goes on from what it saved before."""
    if not (data / "undisturbed").exists():
        (data / "undisturbed").mkdir()
        run(data / "undisturbed", "train.py", *TRAIN)
    cwd = data / str(status)
    cwd.mkdir()
    code, words = interrupt(cwd, ["train.py", *TRAIN], ".run.partial/log.jsonl", number)
    assert code == status and "Traceback" not in words and not (cwd / "run").exists()
    assert (cwd / ".run.partial/state.pt").exists()
    run(cwd, "train.py", *TRAIN)
    assert (cwd / "run/model.pt").read_bytes() == (data / "undisturbed/run/model.pt").read_bytes()
    logs = [[{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in
             (folder / "run/log.jsonl").read_text().splitlines()] for folder in (cwd, data / "undisturbed")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [10, 20, 24]
    assert {path.name for path in (cwd / "run").iterdir()} == {"model.pt", "config.json", "log.jsonl"}


def test_quiet_and_json(data, tmp_path):
    arguments = ["synthesize.py", "--num", 2, "--out"]
    assert run(tmp_path, *arguments, "a", "-q") == ""
    assert json.loads(run(tmp_path, *arguments, "b", "--json")) == {"out": "b", "env": "clevr", "method": "sdr", "images": 2}
    assert "12 samples" in run(tmp_path, "synthesize.py", "--preview", "--out", "c")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c.preview.png"}


BARE = """
import socket, sys
for name in ("pytorch3d", "trimesh", "matplotlib", "jinja2", "tensorboard", "pycocotools"):
    sys.modules[name] = None  # as if it were not there
def offline(*arguments, **options): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = offline
"""


def test_no_network_no_home_and_no_optional_package_is_needed(data, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(BARE)
    bare = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path / 'bare'}:{ROOT}", "HOME": "/dev/null/home"}
    for arguments in (["synthesize.py", "--num", 2, "--out", "a"], ["train.py", "--source", "a", "--steps", 1, "--out", "r"],
                      ["synthesize.py", "--checkpoint", "r/model.pt", "--target", data / "target/train", "--out", "b"],
                      ["evaluate.py", "--checkpoint", "r/model.pt", "--data", data / "target/test"]):
        run(tmp_path, *arguments, environment=bare)
    (tmp_path / "assets/chair").mkdir(parents=True)
    (tmp_path / "assets/chair/a.obj").write_text("v 0 0 0")
    line = run(tmp_path, "synthesize.py", "--env", "dining", "--assets", "assets", "--out", "c", environment=bare, code=3)
    assert "pip install trimesh" in line


def test_evaluation_goes_on_after_a_kill(data, tmp_path):
    run(tmp_path, "train.py", "--source", data / "sdr", "--steps", 2, "--out", "run")
    run(tmp_path, "synthesize.py", "--num", 96, "--out", "test")
    arguments = ["evaluate.py", "--checkpoint", "run/model.pt", "--data", "test", "--out", "scores"]
    code, _ = interrupt(tmp_path, arguments, "scores/.evaluate.partial/predicted.jsonl", signal.SIGKILL)
    kept = tmp_path / "scores/.evaluate.partial/predicted.jsonl"
    assert code == -9 and 0 < len(kept.read_bytes().splitlines()) < 6 and not (tmp_path / "scores/metrics.json").exists()
    elsewhere = [data / "sdr" if word == "test" else word for word in arguments]
    assert "was begun with data 'test', not" in run(tmp_path, *elsewhere, code=3)
    assert "goes on where it was interrupted" in run(tmp_path, *arguments)
    whole = run(tmp_path, *arguments[:-1], "whole")
    assert "goes on" not in whole
    for name in ("predictions.jsonl", "curves.json", "figures/predictions.png"):
        assert (tmp_path / "scores" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    scores = [json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("scores", "whole")]
    assert scores[0] | {"command": 0} == scores[1] | {"command": 0}
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"metrics.json", "curves.json", "predictions.jsonl", "figures"}
