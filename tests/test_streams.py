"""Standard streams that are closed, full or cannot encode some characters do not stop the work.

Runs real processes, without torch.
"""
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

PROGRAM = """
import sys
from pathlib import Path
import click
from sim2sg_lib.cli import InputError, command_line, log_info, output_options, print_json, progress

@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--fail", is_flag=True)
@output_options
def main(path, fail):
    log_info("begin ± größe")
    if fail:
        raise InputError("größe: no such file")
    with progress(3, "größe", "step") as bar:
        for _ in range(3):
            log_info("x" * 100_000)
            bar.update()
    path.write_text("done")
    print_json({"path": str(path)})
    log_info("end ±")

command_line(main)
"""


def shell(tmp_path, line: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Run a bash line in which `program` is replaced by the program above, writing done.txt."""
    (tmp_path / "program.py").write_text(PROGRAM)
    program = f"'{sys.executable}' program.py done.txt {' '.join(arguments)}"
    return subprocess.run(["bash", "-c", "set -o pipefail; " + line.replace("program", program, 1)],
                          cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)} | environment)


@pytest.mark.parametrize("line", [
    "program | head -1", "program | true", "program > /dev/full", "program >&-", "program >&- 2>&-",
    "program 2>&-", "program 2> /dev/full > /dev/full", "(program 2>&1 >/dev/null) | true",
    "(program --json 2>&1) | head -c 10"])
def test_what_cannot_be_printed_stops_nothing(tmp_path, line):
    done = shell(tmp_path, line)
    assert (done.returncode == 0 and done.stderr == ""
            and (tmp_path / "done.txt").read_text() == "done")


def test_characters_that_an_encoding_lacks_are_replaced(tmp_path):
    done = shell(tmp_path, "program", PYTHONIOENCODING="ascii")
    assert (done.returncode == 0 and done.stdout.splitlines()[::4] == ["begin ? gr??e", "end ?"]
            and done.stderr == "")
    failed = shell(tmp_path, "program", "--fail", PYTHONIOENCODING="ascii")
    assert (failed.returncode == 3 and failed.stderr.startswith("Error: gr")
            and failed.stderr.count("\n") == 1)


def test_an_error_keeps_its_status_without_a_reader(tmp_path):
    for line in ("program 2>&-", "program 2> /dev/full", "(program 2>&1) | true"):
        assert shell(tmp_path, line, "--fail").returncode == 3


def test_json_stands_alone_and_the_version_is_said(tmp_path):
    done = shell(tmp_path, "program", "--json")
    assert json.loads(done.stdout) == {"path": "done.txt"} and "begin" in done.stderr
    assert shell(tmp_path, "program", "--version").stdout == "Sim2SG, version 1.0.0\n"
    assert shell(tmp_path, "program", "-q").stdout == ""
