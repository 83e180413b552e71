"""The real programs, interrupted: the files left behind, the exit status, and resuming.

A resumed run must produce the same bytes as an uninterrupted one.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import ENVIRONMENT, ROOT, run
from test_loop import fingerprint

TRAIN = ["--source", "../target/val", "--source", "../sdr", "--target", "../target/train",
         "--align", "appearance,prediction", "--steps", 24, "--augment", "strong", "--seed", 3,
         "--save-every", 9, "--out", "run"]


def interrupt(cwd, arguments, watched, number):
    """Start a program and send it a signal once the watched file has a line.

    Returns its exit status and its stderr.
    """
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True,
                               # background jobs of a shell may ignore SIGINT
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    path = cwd / watched
    while not (path.exists() and b"\n" in path.read_bytes()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=60), process.stderr.read()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    run(root, "synthesize.py", "--num", 12, "--out", "sdr")
    run(root, "synthesize.py", "--domain", "target", "--num", 8, "--out", "target")
    return root


@pytest.mark.parametrize("number, status",
                         [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_synthesis_goes_on_after_any_end(data, tmp_path, number, status):
    arguments = ["synthesize.py", "--env", "drive", "--num", 40, "--export", "kitti",
                 "--out", "set"]
    if not (data / "whole").exists():
        (data / "whole").mkdir()
        run(data / "whole", *arguments)
    code, words = interrupt(tmp_path, arguments, ".set.partial/rendered.jsonl", number)
    assert code == status and "Traceback" not in words and not (tmp_path / "set").exists()
    done = len((tmp_path / ".set.partial/rendered.jsonl").read_bytes().splitlines())
    assert 0 < done < 3  # out of three chunks
    refused = run(tmp_path, *arguments[:-2], "--seed", 5, "--out", "set", code=3)
    assert "was started with seed 0, not 5" in refused
    assert "resumes where it was interrupted" in run(tmp_path, *arguments)
    assert fingerprint(tmp_path / "set") == fingerprint(data / "whole/set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("number, status",
                         [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_training_goes_on_to_the_same_bytes(data, number, status):
    """SIGINT and SIGTERM save the state; after SIGKILL, training resumes from the last save."""
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
    logs = [[{k: v for k, v in json.loads(line).items() if k != "images_per_s"}
             for line in (folder / "run/log.jsonl").read_text().splitlines()]
            for folder in (cwd, data / "undisturbed")]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [10, 20, 24]
    assert {path.name for path in (cwd / "run").iterdir()} == {
        "model.pt", "config.json", "log.jsonl"}


def inside(cwd, setup, *arguments):
    """Run a program in a process that first executes the Python code `setup`.

    Returns (status, stdout, stderr).
    """
    words = [str(ROOT / arguments[0]), *map(str, arguments[1:])]
    code = (f"import errno, os, signal, sys; sys.argv = {words!r}\n"
            f"import {arguments[0][:-3]} as program\n{setup}\n"
            "from sim2sg_lib import cli\ncli.command_line(program.main)")
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=ENVIRONMENT,
                            capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout, result.stderr


STOP_AT = """
from sim2sg_lib.training_state import TrainingLog
add = TrainingLog.add
def stop(self, step, row):
    stopped = add(self, step, row)
    if step == {}: os.kill(os.getpid(), signal.SIGTERM)
    return stopped
TrainingLog.add = stop
"""


def test_stopped_in_the_very_last_step_it_goes_straight_to_saving(data, tmp_path):
    arguments = ["train.py", "--source", data / "sdr", "--steps", 10, "--out", "run", "--json"]
    assert inside(tmp_path, STOP_AT.format(9), *arguments)[0] == 143
    begun = json.loads(run(tmp_path, *arguments))
    state = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "whole").mkdir()
    undisturbed = json.loads(run(tmp_path / "whole", *arguments))
    assert begun["loss"] == undisturbed["loss"] and begun["seconds"] == state["seconds"]
    (tmp_path / "odd").mkdir()
    arguments[4] = 7  # no log line is due at the last step
    assert inside(tmp_path / "odd", STOP_AT.format(6), *arguments)[0] == 143
    run(tmp_path / "odd", *arguments)
    assert [json.loads(line)["step"]
            for line in (tmp_path / "odd/run/log.jsonl").read_text().splitlines()] == [7]


def test_the_seconds_of_all_processes_count(data, tmp_path):
    arguments = ["train.py", "--source", data / "sdr", "--steps", 3, "--out", "run"]
    late = ("import time; begun = time.perf_counter; "
            "time.perf_counter = lambda: begun() + (1000 if asleep else 0); asleep = []")
    sleep = STOP_AT.format(1).replace("if step", "asleep.append(1)\n    if step")
    assert inside(tmp_path, late + sleep, *arguments)[0] == 143
    run(tmp_path, *arguments)
    assert 1000 < json.loads((tmp_path / "run/config.json").read_text())["seconds"] < 1100


FULL = """
import sim2sg_lib.io.files as files
os_replace = os.replace
def replace(a, b):
    if str(b).endswith({!r}): raise OSError(errno.ENOSPC, "No space left on device")
    os_replace(a, b)
os.replace = replace
"""


def test_a_disk_that_is_full_when_all_is_rendered_or_learned_costs_neither(data, tmp_path):
    arguments = ["synthesize.py", "--num", 20, "--out", "set"]
    for name in ("graphs.jsonl", "dataset.json"):
        code, _, words = inside(tmp_path, FULL.format(name), *arguments)
        assert code == 3 and f"{name}: cannot be written (No space left on device)" in words
        assert len((tmp_path / ".set.partial/rendered.jsonl").read_text().splitlines()) == 2
    run(tmp_path, *arguments)
    assert not (tmp_path / "set/rendered.jsonl").exists()
    arguments = ["train.py", "--source", data / "sdr", "--steps", 2, "--out", "run"]
    busy = ("from pathlib import Path\nrename = Path.rename\n"
            "def refuse(self, to): "
            "raise OSError(errno.EBUSY, 'Device or resource busy', str(self))\n"
            "Path.rename = refuse")
    assert inside(tmp_path, busy, *arguments)[0] == 3
    never = "program.learn = None"  # training again would end with a traceback
    assert inside(tmp_path, never, *arguments)[0] == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "model.pt", "config.json", "log.jsonl"}


def test_exchanged_inputs_are_not_mixed(data, tmp_path):
    shutil.copytree(data / "target/train", tmp_path / "photos")
    arguments = ["train.py", "--source", data / "sdr", "--target", "photos",
                 "--align", "appearance", "--steps", 3, "--out", "r"]
    assert inside(tmp_path, STOP_AT.format(0), *arguments)[0] == 143
    image = sorted((tmp_path / "photos/images").iterdir())[0]
    kept = image.read_bytes()
    shutil.copy(data / "target/test/images/000000.png", image)
    assert "was started with other input;" in run(tmp_path, *arguments, code=3)
    image.write_bytes(kept)
    run(tmp_path, *arguments)
    graphs = [json.dumps({"image": f"{i}.png", "width": 160, "height": 120, "objects": [
        {"category": "cube", "box": [60, 40, 90, 70]}], "relations": []}) for i in range(2)]
    (tmp_path / "graphs.jsonl").write_text("\n".join(graphs) + "\n")
    arguments = ["synthesize.py", "--graphs", "graphs.jsonl", "--out", "lifted"]
    assert inside(tmp_path, FULL.format("dataset.json"), *arguments)[0] == 3
    cameras = [json.loads(line)
               for line in (data / "sdr/cameras.jsonl").read_text().splitlines()[:2]]
    (tmp_path / "cameras.jsonl").write_text("".join(
        json.dumps(camera | {"image": f"{i}.png"}) + "\n" for i, camera in enumerate(cameras)))
    assert "was started with other input;" in run(tmp_path, *arguments, code=3)


READS = """
from sim2sg_lib.net import predict
load_tensor, read = predict.load_tensor, []
def count(path, *size):
    read.append(path)
    if len(read) > {}: os.kill(os.getpid(), signal.SIGTERM)
    return load_tensor(path, *size)
predict.load_tensor = count
import atexit; atexit.register(lambda: print("read", len(read)))
"""


def test_a_fitted_look_goes_on_after_two_kills(data, tmp_path):
    """The first while boxes are compared, the second when the look of the first images is fitted."""
    arguments = ["synthesize.py", "--graphs", data / "target/test/graphs.jsonl", "--num", 12,
                 "--compare", "--look", "mixed", "--fit-steps", 4, "--out", "set"]
    partial = tmp_path / ".set.partial"
    for name in ("comparing", "fitting"):
        code, words = interrupt(tmp_path, arguments, f".set.partial/{name}.jsonl", signal.SIGKILL)
        assert code == -9 and "Traceback" not in words and not (tmp_path / "set").exists()
        assert (partial / "fitting.jsonl").exists() == (name == "fitting")
    line = run(tmp_path, *arguments[:-2], "--fit-steps", 5, "--out", "set", code=3)
    assert "was started with fit_steps 4, not 5" in line
    before = (partial / "comparing.jsonl").read_bytes()
    assert "resumes where it was interrupted" in run(tmp_path, *arguments)
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole", *arguments)
    assert fingerprint(tmp_path / "set") == fingerprint(tmp_path / "whole/set")
    assert len(before.splitlines()) == 2  # one per image, none twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


THREADS = """
import torch
from sim2sg_lib.sim import fit as module
refine = module.refine
def record(*arguments):
    with open("threads.txt", "a") as file: print(torch.get_num_threads(), file=file)
    return refine(*arguments)
module.refine = record
"""


def test_refinement_made_again_after_an_interruption_is_the_same(data, tmp_path):
    """The last digits depend on the number of threads, so each worker uses a single one."""
    arguments = ["synthesize.py", "--graphs", data / "sdr/graphs.jsonl", "--num", 40,
                 "--refine", 3, "--out"]
    assert inside(tmp_path, THREADS + FULL.format("dataset.json"), *arguments, "set")[0] == 3
    assert inside(tmp_path, THREADS, *arguments, "set")[0] == 0
    run(tmp_path, *arguments, "whole")
    assert (tmp_path / "threads.txt").read_text().split() == ["1"] * 6  # three chunks, twice
    for name in ("scenes.jsonl", "graphs.jsonl", "cameras.jsonl"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_make_keeps_what_was_just_finished(data, tmp_path, number):
    command = ["make", "-C", str(ROOT), "-o", ".venv/ready", "loop", f"RUN={sys.executable}",
               f"OUT={tmp_path}", f"TARGET={data}", "SOURCE_IMAGES=4", "ITERATIONS=1"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    path = tmp_path / "data/sdr/dataset.json"
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, number)  # while Python shuts down
    words = process.communicate(timeout=300)[0]
    assert path.exists() and "Deleting" not in words and "Traceback" not in words
    again = subprocess.run([*command, "-n"], env=ENVIRONMENT, capture_output=True, text=True)
    assert (again.returncode == 0 and f"--out {tmp_path}/start" in again.stdout
            ), again.stdout + again.stderr
    assert f"--out {tmp_path}/data/sdr" not in again.stdout


def test_what_the_network_read_is_not_read_again(data, tmp_path):
    run(tmp_path, "train.py", "--source", data / "sdr", "--steps", 2, "--out", "run")
    (tmp_path / "photos").mkdir()
    for i in range(20):
        shutil.copy(data / f"sdr/images/{i % 12:06d}.png", tmp_path / f"photos/{i:02d}.png")
    (tmp_path / "whole").mkdir()
    for name in ("run", "photos"):
        (tmp_path / "whole" / name).symlink_to(tmp_path / name)
    for arguments in (["evaluate.py", "predict", "photos", "--checkpoint", "run/model.pt",
                       "--out", "out"],
                      ["synthesize.py", "--checkpoint", "run/model.pt", "--target", "photos",
                       "--num", 20, "--out", "set"]):
        assert inside(tmp_path, READS.format(16), *arguments)[0] == 143  # a batch is 16 images
        code, printed, _ = inside(tmp_path, READS.format(99), *arguments)
        assert code == 0 and "resumes where it was interrupted" in printed and "read 4\n" in printed
        run(tmp_path / "whole", *arguments)
        assert fingerprint(tmp_path / arguments[-1]) == fingerprint(
            tmp_path / "whole" / arguments[-1])


def test_quiet_and_json(data, tmp_path):
    arguments = ["synthesize.py", "--num", 2, "--out"]
    assert run(tmp_path, *arguments, "a", "-q") == ""
    assert json.loads(run(tmp_path, *arguments, "b", "--json")) == {
        "out": "b", "env": "clevr", "method": "sdr", "images": 2}
    assert "12 samples" in run(tmp_path, "synthesize.py", "--preview", "--out", "c")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c.preview.png"}
    few = ("from sim2sg_lib.sim import chunks\n"
           "chunks.CHUNK, write_chunk = 5, program.write_chunk\n"
           "def write(folder, scenes, *more):\n    assert len(scenes) <= 5\n"
           "    return write_chunk(folder, scenes, *more)\nprogram.write_chunk = write")
    # scenes are rendered in chunks that fit into memory
    assert inside(tmp_path, few, "synthesize.py", "--preview", "--out", "d")[0] == 0
    assert (tmp_path / "c.preview.png").read_bytes() == (tmp_path / "d.preview.png").read_bytes()


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
    for arguments in (["synthesize.py", "--num", 2, "--out", "a"],
                      ["train.py", "--source", "a", "--steps", 1, "--out", "r"],
                      ["synthesize.py", "--checkpoint", "r/model.pt",
                       "--target", data / "target/train", "--num", 5, "--out", "b"],
                      ["evaluate.py", "--checkpoint", "r/model.pt",
                       "--data", data / "target/test"]):
        run(tmp_path, *arguments, environment=bare)
    (tmp_path / "assets/chair").mkdir(parents=True)
    (tmp_path / "assets/chair/a.obj").write_text(  # with inconsistent winding of the second face
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 4 2\nf 2 3 4\nf 1 4 3\n")
    line = run(tmp_path, "synthesize.py", "--env", "dining", "--assets", "assets", "--out", "c",
               environment=bare, code=3)
    assert "pip install trimesh" in line


def test_evaluation_goes_on_after_a_kill(data, tmp_path):
    run(tmp_path, "train.py", "--source", data / "sdr", "--steps", 2, "--out", "run")
    run(tmp_path, "synthesize.py", "--num", 96, "--out", "test")
    arguments = ["evaluate.py", "--checkpoint", "run/model.pt", "--data", "test", "--out", "scores"]
    code, _ = interrupt(tmp_path, arguments, "scores/.evaluate.partial/predicted.jsonl",
                        signal.SIGKILL)
    kept = tmp_path / "scores/.evaluate.partial/predicted.jsonl"
    assert (code == -9 and 0 < len(kept.read_bytes().splitlines()) < 6
            and not (tmp_path / "scores/metrics.json").exists())
    elsewhere = [data / "sdr" if word == "test" else word for word in arguments]
    assert f"was started with data '{tmp_path / 'test'}', not" in run(tmp_path, *elsewhere, code=3)
    assert "resumes where it was interrupted" in run(tmp_path, *arguments)
    whole = run(tmp_path, *arguments[:-1], "whole")
    assert "resumes" not in whole
    for name in ("predictions.jsonl", "curves.json", "figures/predictions.png"):
        assert (tmp_path / "scores" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    scores = [json.loads((tmp_path / folder / "metrics.json").read_text())
              for folder in ("scores", "whole")]
    assert scores[0] | {"command": 0} == scores[1] | {"command": 0}
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {
        "metrics.json", "curves.json", "predictions.jsonl", "figures"}
    before, half = fingerprint(tmp_path / "scores"), FULL.format("partial/metrics.json")
    code, _, words = inside(tmp_path, half, *arguments[:4], data / "sdr", *arguments[5:],
                            "--overwrite")
    assert code == 3 and "metrics.json: cannot be written" in words
    partial = tmp_path / "scores/.evaluate.partial"
    assert {k: v for k, v in fingerprint(tmp_path / "scores").items()
            if not k.startswith(partial.name)} == before
    (tmp_path / "scores/curves.json.tmp").write_text("{")
    assert "discarded, it was started with data " in run(tmp_path, *arguments, "--overwrite")
    assert fingerprint(tmp_path / "scores").keys() == before.keys()


def test_an_evaluation_of_what_is_not_there_makes_no_folder(data, tmp_path):
    run(tmp_path, "train.py", "--source", data / "sdr", "--steps", 1, "--out", "runs/.half.partial")
    arguments = ["--data", "nowhere", "--out", "scores"]
    run(tmp_path, "evaluate.py", "--checkpoint", "runs/.half.partial/model.pt", *arguments, code=3)
    assert not (tmp_path / "scores").exists()
    # the run is incomplete
    assert "no model.pt under runs/" in run(tmp_path, "evaluate.py", *arguments, code=3)
