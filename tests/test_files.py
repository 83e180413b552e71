"""Files and folders under interruption: old or new, never half; one process at a time; on with the same options only."""
import errno
import json
import os
import subprocess
import sys

import pytest

from sim2sg_lib import files
from sim2sg_lib.files import work_folder, write_bytes
from sim2sg_lib.terminal import InputError

OPTIONS = {"seed": 1, "sizes": (1, 2)}


def grow(out, options=OPTIONS, overwrite=False, resume=True, fail=False):
    """Returns what an attempt finds in the folder that grows; it adds a file of its own, unless it fails."""
    with work_folder(out, options, overwrite, resume) as partial:
        found = {path.name for path in partial.iterdir()} - {files.STARTED_WITH, files.LOCK}
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
    assert grow(out) == {"first"}  # what was half written is swept
    assert {path.name for path in out.iterdir()} == {"first", "second"} and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_other_options_inputs_or_code_do_not_finish_what_was_begun(tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(out)
    assert "seed 1, not 2" in complaint(out, OPTIONS | {"seed": 2})
    assert "extra None, not 5" in complaint(out, OPTIONS | {"extra": 5})
    monkeypatch.setattr(files, "digest_of_code", lambda: "other")
    assert "begun with other code" in complaint(out)
    assert grow(out, OPTIONS, resume=False) == set()


def test_overwriting_starts_anew_where_options_differ_and_keeps_the_old_until_the_end(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    assert "is not empty" in complaint(out)
    assert "neither a data set nor a run" in complaint(out, overwrite=True)  # it may be the only copy of something
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
    code = ("import sys; from sim2sg_lib.files import work_folder\n"
            "with work_folder(sys.argv[1], {}, False, True): print('in', flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", code, str(out)]
    first = subprocess.Popen(command, cwd=files.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and len(list(tmp_path.iterdir())) == 1
