"""The table of a loop: gap closed, paired test, Holm's correction, rows of old and new loops."""
import json
import math

import pytest
from conftest import ROOT, run

from sim2sg_lib.score.paired import Comparison, compare, gap_closed, holm, t_test
from sim2sg_lib.score.table import (
    ROWS, comparisons, gaps_closed, loop_table, read_loop, row_order, row_title, shown_row)


P_321 = 0.5 - math.sqrt(3 / 14)  # of differences 0.1, 0.2, 0.3


# --- statistics -----------------------------------------------------------------------------------

def test_paired_t_test_by_hand():
    # mean 0.2, sample standard deviation 0.1: t = 0.2 / (0.1 / sqrt(3)); with 2 degrees of freedom
    # the upper tail is 1/2 - t / (2 sqrt(2 + t^2))
    t, p = t_test([0.1, 0.2, 0.3])
    assert t == pytest.approx(2 * math.sqrt(3))
    assert p == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t))) == pytest.approx(P_321)
    # losses are no evidence of a gain: the test is one-sided
    assert t_test([-0.1, -0.2, -0.3])[1] == pytest.approx(1 - P_321)
    # two loops, one degree of freedom: the upper tail is 1/2 - atan(t) / pi
    t, p = t_test([0.1, 0.3])
    assert t == pytest.approx(2) and p == pytest.approx(0.5 - math.atan(2) / math.pi)


def test_there_is_no_test_without_spread():
    assert t_test([0.3]) is t_test([0.2, 0.2, 0.2]) is None
    assert compare({"a": [0.5]}, [0.2]) == {"a": Comparison([pytest.approx(0.3)])}
    assert not compare({"a": [0.5]}, [0.2])["a"].better


def test_holm_by_hand():
    # sorted .01 .02 .03 .4 times 4, 3, 2, 1, none below the one before, none above 1
    assert holm([0.03, 0.4, 0.01, 0.02]) == pytest.approx([0.06, 0.4, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1, 1] and holm([0.04]) == [0.04] and holm([]) == []


def test_a_row_is_better_only_after_correction():
    sdr = [0.5, 0.5, 0.5]
    alone = compare({"a": [0.6, 0.7, 0.8]}, sdr)
    assert alone["a"].better and alone["a"].p_holm == alone["a"].p == pytest.approx(P_321)
    # a row without spread is not tested, and does not count
    beside = compare({"a": [0.6, 0.7, 0.8], "b": [0.5, 0.4, 0.6], "c": [0.6] * 3}, sdr)
    assert beside["a"].p_holm == pytest.approx(2 * P_321) and not beside["a"].better
    assert beside["b"].p == pytest.approx(0.5) and beside["c"].p is None
    assert beside["b"].differences == pytest.approx([0, -0.1, 0.1])


def test_gap_closed_by_hand():
    # the gap is .8 - .4; of means, so that a loop with a small gap does not decide
    assert gap_closed([0.6, 0.8], [0.3, 0.5], [0.7, 0.9]) == pytest.approx(0.75)
    assert gap_closed([0.2], [0.4], [0.8]) == pytest.approx(-0.5)
    assert gap_closed([0.5], [0.4], [0.4]) is gap_closed([0.5], [0.4], [0.3]) is None


# --- tables ---------------------------------------------------------------------------------------

def write_loop(folder, seed, rows, **more):
    """A loop's records; rows: name -> mAP@0.5, which is R@50, too, and twice R@20."""
    for name, score in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(
            {"env": "clevr", "seconds": 9, "source": ["data/sdr", "data/x"], "seed": seed}))
        gap = {"objects_per_image": 0.25, "categories": 0.5, "predicates": 0}
        (folder / name / "metrics.json").write_text(json.dumps({
            "map50": score, "recall": {"20": score / 2, "50": score}, "content_gap": gap,
            "recall_ceiling": {"20": 0.625, "50": 1}} | more))
    return folder


def test_titles_and_order_of_rows_old_and_new():
    folders = ["oracle", "look-appearance", "look2", "look10", "look1", "full", "appearance2",
               "label-appearance1", "label1", "appearance", "sdr", "start"]
    assert sorted(folders, key=row_order) == [
        "start", "sdr", "appearance", "label1", "label-appearance1", "appearance2", "full", "look1",
        "look2", "look10", "look-appearance", "oracle"]
    assert row_title("appearance") == "+ appearance"
    assert row_title("appearance2") == row_title("label-appearance2") == (
        "+ label + appearance, iteration 2")
    assert row_title("look3") == "+ label + look, iteration 3"
    no_rows = ["data", "label", "look", "label-appearance", "full2", "sdr1", "oracle1"]
    assert [row_title(name) for name in no_rows] == [None] * len(no_rows)
    assert shown_row(["start", "look1", "oracle"]) == "look1" and shown_row(["oracle"]) == "oracle"
    assert set(ROWS) == {"start", "sdr", "appearance", "label", "label-appearance", "full", "look",
                         "look-appearance", "oracle"}


def test_the_table_of_several_seeds(tmp_path):
    scores = {0: (0.4, 0.5, 0.8), 1: (0.5, 0.7, 0.9), 2: (0.3, 0.6, 0.7)}  # sdr, look, oracle
    loops = [write_loop(tmp_path / str(seed), seed, {"start": 0.1, "sdr": sdr, "look1": 0.1,
                                                     "look2": look, "oracle": oracle})
             for seed, (sdr, look, oracle) in scores.items()]
    tables = [read_loop(loop) for loop in loops]
    names = list(tables[0])
    # look less sdr: .1, .2, .3
    assert list(comparisons(tables, names)["mAP@0.5"]) == ["look2"]
    row = comparisons(tables, names)["mAP@0.5"]["look2"]
    assert row.differences == pytest.approx([0.1, 0.2, 0.3]) and row.p == pytest.approx(P_321)
    closed = gaps_closed(tables, names, "mAP@0.5")
    assert closed["look2"] == pytest.approx(0.5) and closed["start"] == pytest.approx(-0.75)
    assert (closed["sdr"], closed["oracle"]) == (0, 1)

    lines = loop_table(tables, names, [0, 1, 2]).splitlines()
    assert "gap closed" in lines[0] and "content gap (total" in lines[0]
    assert lines[1].split() == ["mAP@0.5", "R@20", "R@50", "of", "mAP", "of", "R@20", "objects",
                                "categories", "predicates", "train", "s"]
    look = next(line for line in lines if line.startswith("+ label + look, iteration 2"))
    assert look[36:].split()[:3] == ["0.600", "±", "0.100"] and look.count("50 %") == 2
    assert "Highest recall that is possible: R@20 0.625, R@50 1.000" in lines
    assert any("paired by seed (0, 1, 2)" in line for line in lines)
    verdict = [line for line in lines if "corrected 0.03" in line]
    assert len(verdict) == 3 and verdict[0].endswith(
        "mAP@0.5  +0.200  (+0.100 +0.200 +0.300)  p 0.0371  corrected 0.0371  better")

    arguments = [f"--summary={loop}" for loop in loops]
    told = json.loads(run(tmp_path, "evaluate.py", *arguments, "--json"))
    assert told["seeds"] == [0, 1, 2] and told["ceilings"] == {"R@20": 0.625, "R@50": 1}
    assert told["gap_closed"]["R@20"]["look2"] == pytest.approx(0.5)
    assert told["compared"]["mAP@0.5"]["look2"]["better"] is True
    assert told["compared"]["mAP@0.5"]["look2"]["p_holm"] == row.p_holm


def test_one_seed_has_differences_and_no_verdict(tmp_path):
    loop = write_loop(tmp_path / "loop", 3, {"sdr": 0.4, "look1": 0.9})
    printed = run(tmp_path, "evaluate.py", "--summary", loop)
    assert "One seed: no verdict" in printed and "better" not in printed
    assert "mAP@0.5  +0.500   R@20     +0.250   R@50     +0.500" in printed
    assert "gap closed" not in printed  # there is no oracle


def test_a_seed_is_not_counted_twice(tmp_path):
    loops = [write_loop(tmp_path / name, 3, {"sdr": 0.4, "look1": 0.9}) for name in "ab"]
    line = run(tmp_path, "evaluate.py", *(f"--summary={loop}" for loop in loops), code=3)
    assert "b are both of seed 3, expected loops of different seeds" in line
    write_loop(loops[0], 4, {"oracle": 0.9})
    line = run(tmp_path, "evaluate.py", "--summary", loops[0], code=3)
    assert "rows of seeds 3 and 4, expected one seed" in line


def test_columns_of_the_probe_the_mix_and_kitti_s_levels(tmp_path):
    mix = {"objects_per_image": 0.125, "categories": 0, "predicates": 0}
    levels = {name: {"map50": value} for name, value in
              (("easy", 0.3), ("moderate", 0.2), ("hard", 0.1))}
    loop = write_loop(tmp_path / "loop", 0, {"sdr": 0.4, "look1": 0.9}, probe=0.75,
                      content_gap_mix=mix, levels=levels)
    lines = run(tmp_path, "evaluate.py", "--summary", loop).splitlines()
    assert "mAP@0.5 at KITTI's levels" in lines[0] and "content gap of the mix" in lines[0]
    assert lines[1].split() == ["mAP@0.5", "R@20", "R@50", "easy", "moderate", "hard", "probe",
                                "objects", "categories", "predicates", "train", "s"]
    assert lines[2].split() == ["SDR", "0.400", "0.200", "0.400", "0.300", "0.200", "0.100",
                                "0.750", "0.125", "0.000", "0.000", "9"]
    assert any(line.endswith("hard     +0.000") for line in lines)


def test_old_loops_are_printed_under_their_old_titles():
    folders = [ROOT / f"tests/data/old_loop-{seed}" for seed in (0, 1, 2)]
    printed = run(ROOT, "evaluate.py", *(f"--summary={folder}" for folder in folders))
    rows = [line[:36].strip() for line in printed.splitlines() if "±" in line]
    assert rows == ["SDR, start of the loop", "SDR", "+ label, iteration 1", "+ label, iteration 2",
                    "+ label + appearance, iteration 1", "+ label + appearance, iteration 2",
                    "+ label + appearance + prediction"]
    assert "content gap (total variation)" in printed
    assert "+0.131  (+0.085 +0.163 +0.144)  p 0.0151  corrected 0.0454  better" in printed
