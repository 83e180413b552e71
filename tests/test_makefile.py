"""`make loop`: its commands, stages that are skipped or repeated, options that are refused.

A script that stands in for Python creates empty results.
"""
import os
import shutil
import subprocess
import sys

import pytest

import envs
from conftest import ENVIRONMENT, ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")

# Prints a preset, or logs its arguments and creates the file that the command would create; fails
# if its arguments contain FAIL_AT.
STAND_IN = """#!{python}
import os, sys
from pathlib import Path
words = sys.argv[1:]
if words[:2] == ["-m", "envs"]:
    print("SOURCE_IMAGES=70\\nTARGET_IMAGES=40\\nLIFTED_IMAGES=50\\nSTART_STEPS=8\\nSTEPS=9\\nITERATIONS=2")
    sys.exit()
with open({log!r}, "a") as file:
    print(" ".join(words), file=file)
if os.environ.get("FAIL_AT", "nowhere") in " ".join(words):
    sys.exit(7)
if "--out" in words:
    names = {{"synthesize.py": "test/dataset.json" if "--domain" in words else "dataset.json",
             "train.py": "model.pt", "evaluate.py": "metrics.json"}}
    path = Path(words[words.index("--out") + 1], names[words[0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
"""
STAGES = ["data/target", "data/sdr", "start", "start", "data/more", "sdr", "sdr", "data/label1",
          "label1", "label1", "appearance1", "appearance1", "data/label2", "label2", "label2",
          "data/appearance2", "appearance2", "appearance2", "full", "full"]


@pytest.fixture
def python(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, log=str(tmp_path / "log.txt")))
    path.chmod(0o755)
    return path


def make(python, *options, code=0, **environment):
    """Runs make loop; returns its commands and its output, or its errors if code is not 0."""
    log = python.parent / "log.txt"
    log.unlink(missing_ok=True)
    result = subprocess.run(
        ["make", "-C", ROOT, "-o", ".venv/ready", "loop", f"RUN={python}",
         f"OUT={python.parent}/loop", *options], text=True,
        capture_output=True, env=ENVIRONMENT | environment)
    assert result.returncode == code, result.stderr
    ran = log.read_text().splitlines() if log.exists() else []
    return ran, result.stdout if code == 0 else result.stderr


def outs(python, commands):
    """The output folder of each command, except for those of the table and the report."""
    return [line.split("--out ")[1].split()[0].removeprefix(f"{python.parent}/loop/")
            for line in commands if "--out" in line]


def age(path, seconds):
    os.utime(path, ns=(path.stat().st_mtime_ns - 10**9 * seconds,) * 2)


def test_a_dry_run_prints_the_commands_that_a_run_runs(python):
    nothing, plan = make(python, "-n")
    assert nothing == [] and not (python.parent / "loop").exists()
    commands = [line.removeprefix(f"{python} ")
                for line in plan.splitlines() if line.startswith(f"{python} ")]
    ran, printed = make(python)
    assert ran == commands and outs(python, ran) == STAGES
    assert [line.split()[1] for line in ran[-2:]] == ["--summary", "report"]
    lines = plan.splitlines()
    assert all(before.startswith("# ")
               for before, line in zip(lines, lines[1:]) if line.startswith(str(python)))


def test_the_commands_of_algorithm_1(python):
    folder, (ran, _) = f"{python.parent}/loop", make(
        python, "ITERATIONS=3", "PROTOCOL=strong", "LIFT_OPTIONS=--refine 20",
        "TRAIN_OPTIONS=--scratch", "SEED=5", "LIFTED_IMAGES=6")
    target, source, more, *lifts = [line for line in ran if "synthesize.py" in line]
    assert ("--domain target --num 40 --seed 1 " in target
            and "--num 70 --seed 5 --randomize strong" in source)
    assert "--num 6 --seed 1005 --randomize strong" in more
    # the network of the previous iteration predicts the graphs of the next; the first iteration of
    # both rows uses the start network
    reads = [(f"{folder}/{network}/model.pt", f"{folder}/data/{data}") for network, data in (
        ("start", "label1"), ("label1", "label2"), ("appearance1", "appearance2"),
        ("label2", "label3"), ("appearance2", "appearance3"))]
    assert [(line.split("--checkpoint ")[1].split()[0], line.split("--out ")[1])
            for line in lifts] == reads
    words = (f"--target {folder}/data/target/train "
             "--num 6 --seed 5 --randomize strong --refine 20 --out")
    assert all(words in line for line in lifts)
    start, *rows = [line for line in ran if "train.py" in line]
    assert "--steps 8 " in start and "--init" not in start and len(rows) == 8
    for line in rows:
        assert f"--init {folder}/start/model.pt --steps 9 " in line
        assert "--seed 5 --overwrite --scratch --augment strong" in line
    second = [line.split("--source ")[2].split()[0].removeprefix(f"{folder}/data/")
              for line in rows]
    assert second == ["more", "label1", "label1", "label2", "appearance2", "label3", "appearance3",
                      "appearance3"]
    aligned = [line.split("--align ")[1].split()[0] for line in rows if "--align" in line]
    assert aligned == 3 * ["appearance"] + ["appearance,prediction"]
    assert all((" --target " in line) == (" --align " in line) for line in rows)


def test_a_finished_loop_only_prints_its_table(python):
    make(python)
    ran, printed = make(python)
    assert [line.split()[1] for line in ran] == ["--summary", "report"] and printed.count("# ") == 2
    assert make(python, "-n")[1].count("--out") == 0


@pytest.mark.parametrize("stop, left",
                         [("--out {}/data/sdr", 19), ("--out {}/sdr", 15), ("report", 0)])
def test_an_interrupted_loop_continues_where_it_stopped(python, stop, left):
    at = stop.format(f"{python.parent}/loop")
    if at == "report":  # a loop with a table does not fail if the report cannot be drawn
        assert make(python, FAIL_AT=at)[0][-1].split()[1] == "report"
    else:
        ran, _ = make(python, code=2, FAIL_AT=at)
        assert ran[-1].endswith(at.split()[1])
    ran, _ = make(python)
    assert outs(python, ran) == STAGES[len(STAGES) - left:]


def test_what_is_made_anew_is_followed_by_what_depends_on_it(python):
    loop = python.parent / "loop"
    make(python)
    for i, path in enumerate(sorted(loop.rglob("*.*"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (i, i))  # one second apart
    (loop / "data/more/dataset.json").unlink()
    for options in (["-n"], []):  # a dry run prints what would be repeated
        ran, printed = make(python, *options)
        commands = [line for line in printed.splitlines() if line.startswith(str(python))]
        assert outs(python, commands) == ["data/more", "sdr", "sdr"]
    (loop / "label1/model.pt").touch()
    assert outs(python, make(python)[0]) == ["label1", "data/label2", "label2", "label2"]
    # the target holds the test set of every row, and each iteration reads it
    shutil.rmtree(loop / "data/target")
    assert outs(python, make(python)[0]) == ["data/target", "start", "sdr", *STAGES[7:]]


def test_a_folder_is_bound_to_its_options_once_something_is_made(python):
    loop = python.parent / "loop"
    make(python, "DOMAIN=tagret", code=2, FAIL_AT="tagret")
    make(python, code=2, FAIL_AT="more")  # there is no result of the other DOMAIN
    written = ("ENV=clevr ITERATIONS=2 PRESET=quick SEED=0 TARGET= DOMAIN=target PROTOCOL=paper "
               "TRAIN_OPTIONS= LIFT_OPTIONS=")
    assert (loop / "options.txt").read_text() == written + "\n"  # as in earlier versions
    for options in (["DOMAIN=target-content"], ["SEED=1"], ["CAMERA=paper", "-n"],
                    ["LIFT_OPTIONS=--refine"], ["LIFTED_IMAGES=3"]):
        ran, errors = make(python, *options, code=2)
        assert ran == []
        assert f"Error: {loop} was made with {written}; choose another OUT or remove it" in errors
    make(python, "DEVICE=cpu")


def test_targets_and_their_cameras(python, tmp_path):
    lines = make(python, "-n", "CAMERA=paper")[1].splitlines()
    for line in lines:
        assert (" --camera paper " in line) == ("--data " in line or "synthesize.py" in line
                                                and "--checkpoint" in line)
    assert "--camera" not in make(python, "-n")[1]
    # a data set, and both layouts of a KITTI folder
    for labels in ("graphs.jsonl", "label_2", "training/label_2"):
        target = tmp_path / "with space" / labels.replace("/", "_")
        for split in ("train", "test"):
            (target / split / labels).mkdir(parents=True)
        ran, _ = make(python, f"TARGET={target}", f"OUT={tmp_path}/{target.name}")
        assert {line.split("--data ")[1].split(" --out")[0]
                for line in ran if "--data" in line} == {
            str((target / "test" / labels).parent)}
        assert {line.split("--target ")[1].split(" --")[0]
                for line in ran if "--target" in line} == {f"{target}/train"}
        assert not any("--domain" in line for line in ran)
    plain = tmp_path / "photos"
    plain.mkdir()
    plan = make(python, "-n", f"TARGET={plain}")[1]
    assert f"--target {plain} " in plan and f"--data {plain} " in plan
    drive = make(python, "-n", "ENV=drive")[1]
    assert ("--export kitti" in drive and "target/train/kitti " in drive
            and "target/test/kitti " in drive)


@pytest.mark.parametrize("option, words", [
    ("ITERATIONS=0", "expected paper or strong"), ("ITERATIONS=x", "expected paper or strong"),
    ("SEED=-1", "expected paper"),
    ("PROTOCOL=weak", "expected paper or strong"), ("PROTOCOL=", "expected paper or strong"),
    ("CAMERA=mine", "calib or paper"),
    ("TARGET=nowhere", "no such folder, expected one of images"),
    ("ENV=mars", "expected a file of envs/ without its .py"),
    ("PRESET=big", "expected a file of envs/ without its .py, and quick or paper")])
def test_wrong_options_are_one_line_before_the_first_stage(python, option, words):
    ran, errors = make(python, option, code=2)
    complaint, from_make = errors.splitlines()
    assert (ran == [] and complaint.startswith("Error: ") and words in complaint
            and "Error 2" in from_make)
    assert f"{option} " in complaint.replace(":", " ") and not (python.parent / "loop").exists()


def test_before_the_environment_is_built_a_dry_run_shows_names(tmp_path):
    plan = make(tmp_path / "nothing", "-n")[1]
    for words in ("numbers are shown by their names", "--num SOURCE_IMAGES ",
                  "--steps START_STEPS "):
        assert words in plan


def test_python_m_envs_prints_presets():
    def ask(*words):
        return subprocess.run([sys.executable, "-m", "envs", *words], cwd=ROOT, env=ENVIRONMENT,
                              text=True, capture_output=True)
    preset = envs.find("dining").presets["paper"]
    assert ask("dining", "paper").stdout.splitlines() == [
        "SOURCE_IMAGES=5000", "TARGET_IMAGES=8000", "LIFTED_IMAGES=5000", "START_STEPS=10000",
        "STEPS=70000", "ITERATIONS=6", f"WARMUP={preset.warmup}"]
    lines = ask().stdout.splitlines()
    assert (len(lines) == 6
            and lines[0].startswith("clevr quick image_size=160x120 source_images=1500 "))
    wrong = ask("mars", "quick")
    assert wrong.returncode == 3
    assert wrong.stderr.startswith("Error: --env: 'mars' is not one of clevr, dining, drive")
