"""One fortieth of the trials of `make faults`, and error messages for files outside data sets."""
import json
import random

import pytest
import torch

from envs.clevr import ENV
from faults import FAULTS, archive_of, content_of, data_set, trained
from sim2sg_lib import checkpoint
from sim2sg_lib.score.table import read_row
from sim2sg_lib.viz.report import read_curves, read_log
from sim2sg_lib.cli import InputError


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault, trials", [entry[1:] for entry in FAULTS],
                         ids=[entry[1].__name__ for entry in FAULTS])
def test_broken_files_are_read_or_refused_in_one_line(fault, trials):
    assert fault(max(trials // 40, min(trials, 50)), random.Random(0)) == []


@pytest.mark.parametrize("file, field, value", [
    ("metrics.json", "map50", "0.5"), ("metrics.json", "recall", {"20": 0.5}),
    ("metrics.json", "content_gap", [1]), ("metrics.json", "ap50", {"cube": "x"}),
    ("config.json", "seconds", None), ("config.json", "source", [])])
def test_a_table_s_wrong_field_is_named(tmp_path, file, field, value):
    run = data_set(tmp_path / "run")
    assert read_row(run)["seconds"] == 1.5
    (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"run/{file}: {field}: not what"):
        read_row(run)


@pytest.mark.parametrize("row, field", [
    ({"loss_a": 1}, "step"), ({"step": 1e300, "loss_a": 1}, "step"), ({"step": -1}, "step"),
    ({"step": 3, "loss_a": "x"}, "loss_a"), ({"step": 3, "loss_a": [1, 2]}, "loss_a"),
    ({"step": 3, "loss_a": 10 ** 400}, "loss_a"), ({"step": 3, "rate": True}, "rate")])
def test_a_log_s_wrong_field_is_named(tmp_path, row, field):
    run = trained(tmp_path / "loop")
    assert read_log(run)["loss_obj"].tolist() == [[1, 0.5], [2, 0.5]]
    with open(run / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"start/log.jsonl:3: {field}: .*, expected "):
        read_log(run)


@pytest.mark.parametrize("field, value", [
    ("precision_at_recall", {"cube": [1, 2]}), ("precision_at_recall", [1]),
    ("recall_per_image", []), ("recall_curve", "abc"), ("recall_per_image", {"20": ["x"]}),
    ("recall_curve_graph_constraint", [[1]]), ("content", 5), ("content", {"source": {}})])
def test_a_curve_that_cannot_be_drawn_is_named(tmp_path, field, value):
    run = trained(tmp_path / "loop")
    (run / "curves.json").write_text(json.dumps(read_curves(run) | {field: value}))
    with pytest.raises(InputError, match=f"start/curves.json: {field}: not what"):
        read_curves(run)


@pytest.mark.parametrize("fields, words", [
    ({"options": {"source": "data", "target": None}},
     "options.source: not what train.py writes, format 1"),
    ({"format": 2}, "format: not what"),
    ({"model": content_of()["model"] | {"width": "160"}}, "model: width: '160' expected"),
    ({"model": content_of()["model"] | {"categories": 5}},
     "model: 5 categories and 4 predicates, expected as many"),
    ({"weights": {"w": torch.ones(1)}}, "its weights do not fit")])
def test_a_checkpoint_s_wrong_field_is_named(tmp_path, fields, words):
    (tmp_path / "model.pt").write_bytes(archive_of(content_of(**fields)))
    with pytest.raises(InputError, match="model.pt: ") as error:
        checkpoint.load(tmp_path / "model.pt", ENV)
    assert words in error.value.format_message()
