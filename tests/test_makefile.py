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
    print("SOURCE_IMAGES=70\\nTARGET_IMAGES=40\\nLIFTED_IMAGES=50\\nSTART_STEPS=8\\nSTEPS=9\\nITERATIONS=2\\n"
          "DOMAINS=source target target-content crowd")
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
STAGES = ["data/target", "data/sdr", "start", "start", "data/more", "data/label1",
          *["sdr"] * 2, *["label1"] * 2, "data/label2", *["label2"] * 2,
          *["label-appearance1"] * 2, "data/label-appearance2", *["full"] * 2,
          "data/look1", *["look1"] * 2, "data/look2", *["look2"] * 2, *["oracle"] * 2]


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
         f"OUT={python.parent}/loop", "JOBS=1", *options], text=True,
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


def rows_of(python, commands):
    """Per train.py command: its row, --source after the first, --init, --steps and --align."""
    folder, rows = f"{python.parent}/loop/", []
    for line in commands:
        if line.startswith("train.py"):
            words = line.replace(folder, "").split()
            option = {name: value for name, value in zip(words, words[1:]) if name[:2] == "--"}
            rows.append((option["--out"], option["--source"],
                         option.get("--init", "").removesuffix("/model.pt"),
                         int(option["--steps"]), option.get("--align", "")))
    return rows


def test_the_commands_of_algorithm_1(python):
    folder, (ran, _) = f"{python.parent}/loop", make(
        python, "ITERATIONS=3", "PROTOCOL=strong", "LIFT_OPTIONS=--refine 20",
        "TRAIN_OPTIONS=--scratch", "SEED=5", "LIFTED_IMAGES=6", "ROWS=label,full")
    target, source, *lifts = [line for line in ran if "synthesize.py" in line]
    assert ("--domain target --num 40 --seed 1 " in target
            and "--num 70 --seed 5 --randomize strong" in source)
    # the network of the previous iteration predicts the graphs of the next; the first iteration of
    # both rows uses the start network
    reads = [(f"{folder}/{network}/model.pt", f"{folder}/data/{data}") for network, data in (
        ("start", "label1"), ("label1", "label2"), ("label2", "label3"),
        ("label-appearance1", "label-appearance2"), ("label-appearance2", "label-appearance3"))]
    assert [(line.split("--checkpoint ")[1].split()[0], line.split("--out ")[1])
            for line in lifts] == reads
    words = (f"--target {folder}/data/target/train "
             "--num 6 --seed 5 --randomize strong --refine 20 --out")
    assert all(words in line for line in lifts)
    start, *rows = rows_of(python, ran)
    assert start == ("start", "data/sdr", "", 8, "")
    assert rows == [
        *((f"label{k}", f"data/label{k}", "start", 9, "") for k in (1, 2, 3)),
        ("label-appearance1", "data/label1", "start", 9, "appearance"),
        ("label-appearance2", "data/label-appearance2", "start", 9, "appearance"),
        ("full", "data/label-appearance3", "start", 9, "appearance,prediction")]
    for line in [line for line in ran if line.startswith("train.py")]:
        assert "--seed 5 --overwrite --augment strong --scratch --source" in line
        assert (" --target " in line) == (" --align " in line)
        assert (" --newest 0.5 " in line) == (" --init " in line)  # rows with other than random scenes
        assert f"--source {folder}/data/sdr " in line


def test_rows_beside_algorithm_1(python):
    folder, (ran, _) = f"{python.parent}/loop", make(
        python, "ITERATIONS=2", "LOOK=mixed", "LOOK_OPTIONS=--compare", "LIFT_OPTIONS=--refine",
        "ROWS=sdr appearance look-appearance oracle")
    assert rows_of(python, ran)[1:] == [
        ("sdr", "data/more", "start", 9, ""), ("appearance", "data/more", "start", 9, "appearance"),
        ("look1", "data/look1", "start", 9, ""),
        ("look-appearance", "data/look2", "start", 9, "appearance"),
        ("oracle", "data/target/train", "start", 9, "")]
    mixed = [" --newest 0.5 " in line for line in ran if line.startswith("train.py")]
    assert mixed == [False] * 3 + [True] * 3  # of the start, sdr and appearance, all scenes are random
    more, *looks = [line for line in ran if line.startswith("synthesize.py")][2:]
    assert "--num 50 --seed 1000 --randomize paper --out" in more
    for line, network, data in zip(looks, ("start", "look1"), ("look1", "look2"), strict=True):
        assert f"--checkpoint {folder}/{network}/model.pt " in line
        assert line.endswith("--num 50 --seed 0 --randomize paper --look mixed --compare --refine "
                             f"--out {folder}/data/{data}")


def test_rows_that_continue_take_as_many_steps_as_the_others(python):
    _, *rows = rows_of(python, make(python, "CONTINUE=1", "ITERATIONS=3",
                                    "ROWS=sdr,full,look-appearance,oracle")[0])
    assert [row[:1] + row[2:] for row in rows] == [
        ("sdr", "start", 9, ""), ("label-appearance1", "start", 3, "appearance"),
        ("label-appearance2", "label-appearance1", 3, "appearance"),
        ("full", "label-appearance2", 3, "appearance,prediction"), ("look1", "start", 3, ""),
        ("look2", "look1", 3, ""),
        ("look-appearance", "look2", 3, "appearance"), ("oracle", "start", 9, "")]


def test_a_finished_loop_is_extended_by_further_rows(python):
    make(python, "ROWS=sdr full")
    ran, _ = make(python, "ROWS=sdr full label-appearance oracle")
    assert outs(python, ran) == ["label-appearance2", "label-appearance2", "oracle", "oracle"]


def test_there_is_no_oracle_without_labels(python, tmp_path):
    (tmp_path / "photos").mkdir()
    ran, printed = make(python, f"TARGET={tmp_path}/photos", "ROWS=sdr oracle")
    assert [row[0] for row in rows_of(python, ran)] == ["start", "sdr"]
    assert f"# No oracle: {tmp_path}/photos is not a labeled data set" in printed
    for name in ("dataset.json", "graphs.jsonl"):
        (tmp_path / "photos" / name).touch()
    ran, _ = make(python, f"TARGET={tmp_path}/photos", "ROWS=sdr oracle")
    assert rows_of(python, ran) == [("oracle", f"{tmp_path}/photos", "start", 9, "")]


def test_a_loop_per_seed(python):
    ran, printed = make(python, "SEEDS=3,1", "ROWS=sdr", "STEPS=5")
    folder = f"{python.parent}/loop"
    assert [row[0] for row in rows_of(python, ran)] == [f"{folder}-{seed}/{row}".removeprefix(
        f"{folder}/") for seed in (3, 1) for row in ("start", "sdr")]
    assert [" --seed 3 " in line for line in ran if line.startswith("train.py")] == [1, 1, 0, 0]
    assert ran[-1] == f"evaluate.py --summary {folder}-3 --summary {folder}-1"
    assert not (python.parent / "loop").exists()


# --- rows side by side ----------------------------------------------------------------------------

def test_rows_side_by_side_are_the_same_commands(python):
    one_by_one, _ = make(python)
    shutil.rmtree(python.parent / "loop")
    ran, printed = make(python, "JOBS=3")
    assert sorted(ran) == sorted(one_by_one) and ran[:6] == one_by_one[:6]
    assert ran[-2:] == one_by_one[-2:]
    for row in ("look", "full"):  # what depends on each other keeps its order
        mine = [line for line in one_by_one if f"/{row}" in line.split("--out ")[-1]]
        assert [line for line in ran if line in mine] == mine
    lines = printed.splitlines()
    assert f"oracle | {python} " in printed and "look | # Score look2 on the target." in lines
    assert all(" | " in line or not line or "|" not in line for line in lines)
    assert not [path for path in (python.parent / "loop").iterdir() if path.name[0] == "."]


def test_a_row_that_fails_stops_the_loop_and_the_rows_beside_it(python):
    ran, errors = make(python, "JOBS=2", code=2, FAIL_AT=f"--out {python.parent}/loop/sdr")
    assert not any("summary" in line or "oracle" in line for line in ran)
    ran, _ = make(python, "JOBS=2")
    assert outs(python, ran).count("sdr") == 2 and "--summary" in ran[-2]


def test_a_finished_loop_only_prints_its_table(python):
    make(python)
    ran, printed = make(python)
    assert [line.split()[1] for line in ran] == ["--summary", "report"] and printed.count("# ") == 2
    assert make(python, "-n")[1].count("--out") == 0


@pytest.mark.parametrize("stop, left",
                         [("--out {}/data/sdr", len(STAGES) - 1), ("--out {}/sdr", len(STAGES) - 6),
                          ("report", 0)])
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
        assert outs(python, commands) == ["data/more", *2 * ["sdr"]]
    (loop / "label1/model.pt").touch()
    assert outs(python, make(python)[0]) == ["label1", "data/label2", "label2", "label2"]
    # the target holds the test set of every row, and each iteration reads it
    shutil.rmtree(loop / "data/target")
    assert outs(python, make(python)[0]) == ["data/target", "start", "data/label1", "sdr",
                                             *STAGES[8:]]


def test_a_folder_is_bound_to_its_options_once_something_is_made(python):
    loop = python.parent / "loop"
    make(python, "DOMAIN=crowd", code=2, FAIL_AT="crowd")
    make(python, code=2, FAIL_AT="more")  # there is no result of the other DOMAIN
    written = ("ENV=clevr ITERATIONS=2 PRESET=quick SEED=0 TARGET= DOMAIN=target PROTOCOL=paper "
               "AUGMENT=full TRAIN_OPTIONS= LIFT_OPTIONS= LOOK=fitted LOOK_OPTIONS=--compare "
               "NEWEST=0.5 CONTINUE=")
    assert (loop / "options.txt").read_text() == written + "\n"
    for options in (["DOMAIN=target-content"], ["SEED=1"], ["CAMERA=paper", "-n"],
                    ["LIFT_OPTIONS=--refine"], ["LIFTED_IMAGES=3"], ["LOOK=mixed"]):
        ran, errors = make(python, *options, code=2)
        assert ran == []
        assert f"Error: {loop} was made with {written}; choose another OUT or remove it" in errors
    make(python, "DEVICE=cpu")


def test_targets_and_their_cameras(python, tmp_path):
    lines = make(python, "-n", "CAMERA=paper")[1].splitlines()
    for line in lines:
        assert (" --camera paper " in line) == ("--data " in line or "synthesize.py" in line
                                                and "--domain target" not in line)
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


def test_a_source_in_another_domain(python):
    """Pairs of Table 4: all random scenes have the target's content, the stand-in its own splits."""
    pair = ["SOURCE_DOMAIN=target-content", "ROWS=sdr look"]
    plan = [line for line in make(python, "-n", *pair)[1].splitlines() if "synthesize.py" in line]
    drawn = [line for line in plan if " --target " not in line]
    assert outs(python, drawn) == ["data/target", "data/sdr", "data/more"]
    assert "--domain target --num " in drawn[0] and "--unsplit" not in drawn[0]
    assert all("--domain target-content --unsplit --num " in line for line in drawn[1:])
    lifts = [line for line in plan if line not in drawn]  # in the source's look anyway
    assert lifts and not any("--domain" in line or "--unsplit" in line for line in lifts)
    assert "--unsplit" not in make(python, "-n", "ROWS=sdr look")[1]
    make(python, *pair)
    assert "SOURCE_DOMAIN=target-content" in (python.parent / "loop/options.txt").read_text()
    assert "choose another OUT" in make(python, "ROWS=sdr look", code=2)[1]


@pytest.mark.parametrize("option, words", [
    ("ITERATIONS=0", "expected a whole number from 1 on"),
    ("ITERATIONS=x", "expected a whole number from 1 on"),
    ("STEPS=x", "expected a whole number from 1 on"),
    ("LIFTED_IMAGES=0", "expected a whole number from 1 on"),
    ("SEED=-1", "expected a whole number"), ("SEEDS=0,x", "expected whole numbers"),
    ("SEEDS=1 2 1", "expected each seed once"),
    ("PROTOCOL=weak", "expected paper or strong"), ("PROTOCOL=", "expected paper or strong"),
    ("AUGMENT=wild", "expected none, color, full or strong"),
    ("NEWEST=3", "expected a fraction between 0 and 1"),
    ("NEWEST=0.0", "expected a fraction between 0 and 1"),
    ("CAMERA=mine", "expected nothing, calib or paper"),
    ("LOOK=random", "expected fitted or mixed"), ("CONTINUE=yes", "expected nothing or 1"),
    ("JOBS=0", "expected a whole number from 1 on"), ("JOBS=", "expected a whole number from 1 on"),
    ("ROWS=sdr oracel", "oracel is not one of sdr appearance label"), ("ROWS=", "not one of sdr"),
    ("DOMAIN=tagret", "expected one of source target target-content crowd"),
    ("SOURCE_DOMAIN=narrow", "expected one of source target target-content crowd"),
    ("TARGET=nowhere", "no such folder, expected one of images"),
    ("ENV=mars", "expected a file of envs/ without its .py"),
    ("PRESET=big", "expected quick or paper")])
def test_wrong_options_are_one_line_before_the_first_stage(python, option, words):
    ran, errors = make(python, option, code=2)
    complaint, from_make = errors.splitlines()
    assert (ran == [] and complaint.startswith("Error: ") and words in complaint
            and "Error 2" in from_make)
    assert f"{option} " in complaint.replace(":", " ") and not (python.parent / "loop").exists()


def test_the_domain_of_a_stand_in_does_not_matter_to_a_target(python, tmp_path):
    assert "tagret" not in make(python, "-n", f"TARGET={tmp_path}", "DOMAIN=tagret")[1]
    assert "SOURCE_DOMAIN=tagret" in make(
        python, "-n", f"TARGET={tmp_path}", "SOURCE_DOMAIN=tagret", code=2)[1]


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
        "STEPS=70000", "ITERATIONS=6", f"WARMUP={preset.warmup}", f"BATCH={preset.batch}",
        "DOMAINS=" + " ".join(envs.find("dining").domains)]
    lines = ask().stdout.splitlines()
    assert (len(lines) == 6
            and lines[0].startswith("clevr quick image_size=160x120 source_images=1500 "))
    wrong = ask("mars", "quick")
    assert wrong.returncode == 3
    assert wrong.stderr.startswith("Error: --env: 'mars' is not one of clevr, dining, drive")
