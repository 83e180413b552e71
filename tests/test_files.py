"""Interrupted writing of files and folders.

Results are either old or new, never partial; only one process works at a time; and an interrupted
run is resumed only with the same options.
"""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, run as command
from sim2sg_lib import cli
from sim2sg_lib.io import files, folders
from sim2sg_lib.io.files import write_bytes
from sim2sg_lib.io.folders import work_folder
from sim2sg_lib.io.images import output_names
from sim2sg_lib.io.reading import read_json, recorded, resolve_recorded
from sim2sg_lib.training_state import TrainingLog
from sim2sg_lib.cli import InputError

OPTIONS = {"seed": 1, "sizes": (1, 2)}


def grow(out, options=OPTIONS, overwrite=False, resume=True, fail=False):
    """Run one attempt in the work folder and return the files that it found there.

    The attempt adds a second file unless it fails.
    """
    with work_folder(out, options, overwrite, resume) as partial:
        found = {path.name for path in partial.iterdir()} - {folders.STARTED_WITH}
        (partial / "first").write_text("1")
        (partial / "torn.tmp").write_text("0")
        if fail:
            raise RuntimeError
        (partial / "torn.tmp").unlink()
        (partial / "second").write_text("2")
    return found


def interrupt(out, options=OPTIONS):
    with pytest.raises(RuntimeError):
        grow(out, options, fail=True)


def complaint(*arguments, **options):
    with pytest.raises(InputError) as error:
        grow(*arguments, **options)
    assert "\n" not in error.value.format_message()
    return error.value.format_message()


def test_a_folder_is_published_whole_and_an_interrupted_one_goes_on(tmp_path):
    out = tmp_path / "out"
    interrupt(out)
    assert not out.exists()
    assert grow(out) == {"first"}  # the incomplete file has been deleted
    assert ({path.name for path in out.iterdir()} == {"first", "second"}
            and [p.name for p in tmp_path.iterdir()] == ["out"])


def test_other_options_inputs_or_code_do_not_finish_what_was_begun(tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(out)
    assert "seed 1, not 2" in complaint(out, OPTIONS | {"seed": 2})
    assert "extra None, not 5" in complaint(out, OPTIONS | {"extra": 5})
    monkeypatch.setattr(folders, "digest_of_code", lambda: "other")
    assert "started with other code" in complaint(out)
    assert grow(out, OPTIONS, resume=False) == set()


def test_a_refusal_names_all_that_differs_and_overwriting_says_what_it_throws_away(
        tmp_path, capsys):
    out = tmp_path / "out"
    begun = {"schedule": {"steps": 6, "rate": 0.1}, "input": "a", "seed": 1}
    interrupt(out, begun)
    line = complaint(out, {"schedule": {"steps": 7, "rate": 0.1}, "input": "b", "seed": 2})
    assert "was started with schedule.steps 6, not 7, other input, seed 1, not 2; give" in line
    capsys.readouterr()
    interrupt_again = {"out": out, "options": begun | {"seed": 2}, "overwrite": True, "fail": True}
    with pytest.raises(RuntimeError):
        grow(**interrupt_again)
    assert (capsys.readouterr().out
            == f"{tmp_path}/.out.partial: discarded, it was started with seed 1, not 2\n")
    grow(out, begun | {"seed": 2}, resume=False)
    assert "discarded, as --no-resume asks" in capsys.readouterr().out


def end_publishing(monkeypatch, moment, end):
    """Make the `moment`-th rename or deletion in `publish` raise `end`; earlier ones succeed."""
    calls, publish = [], folders.publish

    def spoil(call):
        def spoilt(*arguments, **options):
            calls.append(call)
            if len(calls) == moment:
                raise end
            return call(*arguments, **options)
        return spoilt

    def publish_and_end(*arguments):
        for name in ("rename", "unlink"):
            monkeypatch.setattr(Path, name, spoil(getattr(Path, name)))
        publish(*arguments)

    monkeypatch.setattr(folders, "publish", publish_and_end)


@pytest.mark.parametrize("occupied", [False, True])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(errno.EBUSY, "busy")])
def test_whatever_ends_the_publishing_the_same_command_finishes_it(
        tmp_path, monkeypatch, end, occupied):
    for moment in range(1, 4 if occupied else 3):
        out = tmp_path / str(moment) / "out"
        if occupied:
            out.mkdir(parents=True)
            (out / "config.json").write_text("{}"), (out / "log.jsonl").write_text("")
        with monkeypatch.context() as patch, pytest.raises(type(end)):
            end_publishing(patch, moment, end)
            grow(out, overwrite=occupied)
        assert grow(out, overwrite=occupied) == {"first", "second"}
        assert {path.name for path in out.iterdir()} == {"first", "second"}
        assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_half_swept_folder_is_not_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(out)
    (tmp_path / ".out.partial/folder").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folders.shutil, "rmtree",
                      lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        grow(out, resume=False)
    assert grow(out) == set()


def test_a_folder_that_somebody_made_meanwhile_is_not_deleted(tmp_path):
    out = tmp_path / "out"
    with (pytest.raises(InputError, match="is not empty"),
          work_folder(out, {}, False, True) as partial):
        (partial / "new").write_text("new")
        out.mkdir()
        (out / "precious").write_text("only copy")
    assert (out / "precious").exists() and (tmp_path / ".out.partial/new").exists()


def test_a_link_to_a_folder_is_replaced_at_its_target(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk/far")
    for _ in range(2):
        grow(tmp_path / "out", overwrite=True)
        assert ((tmp_path / "out").is_symlink()
                and [p.name for p in (tmp_path / "disk").iterdir()] == ["far"])
        (tmp_path / "out/config.json").write_text("{}"), (tmp_path / "out/log.jsonl").write_text("")


def test_what_no_folder_can_replace_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", tmp_path, "../here"):
        assert "in which this program runs" in complaint(out)
    assert "is a mount point" in complaint("/proc", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_an_end_left_of_the_old_folder_is_swept_by_who_holds_the_lock(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/large").write_text("1")
    out.mkdir()
    with work_folder(out, {}, False, True):
        assert not (tmp_path / ".out.old").exists() and (tmp_path / ".out.lock").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_folder_that_takes_no_file_is_not_said_to_be_in_use():
    assert "cannot be made a folder" in complaint(Path("/proc/x"))


def test_what_a_finished_stage_concludes_with_is_no_difference(tmp_path):
    with pytest.raises(RuntimeError), work_folder(tmp_path / "out", {}, False, True) as partial:
        folders.note_finished(partial, {"loss": 1.0})
        raise RuntimeError
    with work_folder(tmp_path / "out", {}, False, True) as partial:
        assert folders.finished(partial) == {"loss": 1.0}


def test_a_full_disk_names_the_log(tmp_path):
    file = files.open_log("/dev/full")
    with pytest.raises(InputError, match="^/dev/full: cannot be written .No space left"), file:
        files.add_line(file, {"a": 1})


def test_overwriting_starts_anew_where_options_differ_and_keeps_the_old_until_the_end(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    assert "is not empty" in complaint(out)
    # it may be the only copy of the file
    assert "neither a data set nor a run" in complaint(out, overwrite=True)
    (out / "config.json").write_text("{}")  # a name that many programs use
    assert "neither a data set nor a run" in complaint(out, overwrite=True)
    (out / "log.jsonl").write_text("")
    with pytest.raises(RuntimeError):
        grow(out, overwrite=True, fail=True)
    assert (out / "old").read_text() == "old"
    assert grow(out, OPTIONS | {"seed": 2}, overwrite=True) == set()
    assert {path.name for path in out.iterdir()} == {"first", "second"}
    (tmp_path / "file").write_text("a file")
    assert "is a file" in complaint(tmp_path / "file", overwrite=True)


def test_an_end_between_the_two_renames_loses_nothing(tmp_path):
    out = tmp_path / "out"
    interrupt(out)
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/config.json").write_text("old")
    assert "is not empty" in complaint(out)
    assert (out / "config.json").read_text() == "old"


def test_of_two_processes_one_wins_and_the_other_says_so(tmp_path):
    out = tmp_path / "out"
    code = ("import sys; from sim2sg_lib.io.folders import work_folder\n"
            "with work_folder(sys.argv[1], {}, False, True): print('in', flush=True); "
            "sys.stdin.read()")
    command = [sys.executable, "-c", code, str(out)]
    first = subprocess.Popen(command, cwd=folders.ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "in\n"
    assert "another process is at work" in complaint(out, {})
    assert "another process is at work" in complaint(out, {}, resume=False)
    first.kill()  # a dead process holds no lock
    first.wait()
    assert grow(out, {}) == set()


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "metrics.json"
    write_bytes(path, b"old")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files if call == "open" else os, call, full, raising=False)
    with pytest.raises(InputError, match="metrics.json: cannot be written .No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_json_is_whole_and_without_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
            and len(list(tmp_path.iterdir())) == 1)


def test_steps_of_an_earlier_process_do_not_count_for_the_speed(monkeypatch, capsys):
    monkeypatch.setattr(cli, "LOG_SECONDS", 0.0)
    with cli.progress(9000, "train", "step", done=6000) as bar:
        bar.start_t = bar._time() - 10.0
        bar.update(20)
    row = bar.format_dict
    assert ((row["n"], row["initial"], row["total"]) == (6020, 6000, 9000)
            and row["elapsed"] == pytest.approx(10, abs=1))
    assert "6020/9000" in capsys.readouterr().err


def test_a_short_stage_writes_no_progress_into_a_log(capsys):
    with cli.progress(10, "train", "step") as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_log_cut_back_and_put_aside_at_once_is_as_long_as_it_is(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl", 4, 0.0)
    for step in range(12):
        log.add(step, {"loss": 1.0})
    again = TrainingLog(tmp_path / "log.jsonl", 4, 0.0)
    again.restore({"bytes": 0, "rows": [{"loss": 1.0}] * 8, "step": 7,
                   "last_loss": 1.0, "seconds": 1.0})
    assert again.state()["bytes"] == 0


def test_a_digest_knows_contents_and_names_apart(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"")):
        (tmp_path / name).write_bytes(content)
    groups = (("a",), ("b",), ("c",), ("a", "b"), ("b", "a"), ("none",), ())
    assert (len({folders.digest(*(tmp_path / name for name in group)) for group in groups})
            == len(groups))


def test_the_lock_that_a_killed_process_left_beside_its_result_goes_with_the_next_refusal(tmp_path):
    grow(tmp_path / "out")
    (tmp_path / ".out.lock").touch()
    with pytest.raises(InputError, match="is not empty"):
        folders.refuse_early(tmp_path / "out", False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_recorded_paths_are_found_from_their_record(tmp_path, monkeypatch):
    """One experiment, started in tmp_path/here; another folder contains the same relative path."""
    for place in ("here", "elsewhere"):
        (tmp_path / place / "data/sdr").mkdir(parents=True)
    record = tmp_path / "here/runs/0/model.pt"
    for folder in (tmp_path, tmp_path / "here", tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        for spelled in (record, os.path.relpath(record)):
            assert resolve_recorded("data/sdr", Path(spelled)) == tmp_path / "here/data/sdr"
    assert resolve_recorded("data/none", record) == tmp_path / "elsewhere/data/none"
    assert resolve_recorded("/data/x", record) == Path("/data/x")
    # two runs that name one data set, relative to themselves, name one path
    for run in ("start", "full"):
        (tmp_path / "loop" / run).mkdir(parents=True)
    (tmp_path / "loop/data/label1").mkdir(parents=True)
    named = [recorded(tmp_path / "loop/data/label1", tmp_path / "loop" / run)
             for run in ("start", "full")]
    assert named == ["../data/label1"] * 2
    assert {resolve_recorded(named[0], tmp_path / "loop" / run / "config.json")
            for run in ("start", "full")} == {tmp_path / "loop/data/label1"}


def test_records_of_a_folder_whose_name_is_not_utf8_can_be_read(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "graphs.jsonl").write_bytes((ROOT / "docs/tutorial/graphs.jsonl").read_bytes())
    command(tmp_path, "synthesize.py", "--graphs", folder / "graphs.jsonl", "--num", 1, "--out", "lifted")
    record = read_json(tmp_path / "lifted/dataset.json")
    assert record["graphs"] == os.path.realpath(tmp_path) + "/caf?/graphs.jsonl"
    assert "/caf?/graphs.jsonl" in record["command"]


def test_output_names_are_unique_and_fit_the_file_system():
    long = "图" * 83  # 249 bytes
    names = output_names(["a/x.png", "b\\x.png", "caf\udce9.png", "X.jpg", f"a/{long}.png",
                          f"b/{long}.png", "é.png", "e\u0301.png"])
    assert names == ["x.png", "b_x.png", "caf_.png", "X_2.jpg", "图" * 82 + ".png",
                     "图" * 81 + "_2.png", "é.png", "e\u0301_2.png"]
    assert max(len(f"{Path(name).stem}.dot.tmp".encode()) for name in names) <= 255


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_worked_on_and_said(tmp_path, monkeypatch, capsys, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert grow(tmp_path / "out") == set() and (tmp_path / "out/second").exists()
    assert f"out: the file system has no locks ({os.strerror(number)})" in capsys.readouterr().out
    monkeypatch.setattr("fcntl.flock",
                        lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    assert "cannot be locked (broken)" in complaint(tmp_path / "other")


def test_another_spelling_of_a_path_is_no_difference(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    interrupt(tmp_path / "out", {"target": "data", "source": ["data", "other"]})
    for target in (tmp_path / "data", "./data/", "link", "../" + tmp_path.name + "/data"):
        options = {"target": str(target), "source": [str(target), str(tmp_path / "other")]}
        assert folders.differences(tmp_path / ".out.partial", folders.completed(options)) == []
    assert "target 'data', not 'other'" in complaint(
        tmp_path / "out", {"target": "other", "source": ["data", "other"]})
