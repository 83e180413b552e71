"""What a program says and how it ends: no torch, no numpy, so that --help answers at once."""
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines of progress where nobody watches a bar


class InputError(click.ClickException):
    """A fault in what the user gave: printed as one line (what, where, what was expected), exit status 3."""

    exit_code = 3

    def format_message(self) -> str:
        """The message as one line that any terminal can show: it may quote what a file says, however long."""
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in self.message)
        return line if len(line) <= 600 else f"{line[:400]} ... {line[-195:]}"


class FloatRange(click.FloatRange):
    """click's, without NaN and infinity, which it lets pass."""

    def convert(self, value, param, context):
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, context)
        return number


# --- what it says -----------------------------------------------------------------------------------------------------

def output_options(command):
    """Adds -q and --json, which `say`, `conclude` and `progress` heed."""
    def keep(context, option, value):
        context.meta[option.name] = value or context.meta.get(option.name)  # given before or behind the name of a command

    for names, text in ((("-q", "--quiet"), "Say nothing but errors."),
                        (("--json",), "One JSON object on standard output, all else on standard error.")):
        command = click.option(*names, is_flag=True, expose_value=False, callback=keep, help=text)(command)
    return command


def chosen(name: str) -> bool:
    """Whether "quiet" or "json" was asked for; not outside a command."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(name))


def log_info(text: str) -> None:
    """A line for people."""
    if not chosen("quiet"):
        print(text, file=sys.stderr if chosen("json") else sys.stdout, flush=True)


def print_json(summary: dict) -> None:
    """What --json prints."""
    if chosen("json"):
        print(json.dumps(summary, allow_nan=False))


def progress(total: int, title: str, unit: str, leave: bool = True, done: int = 0):
    """A bar on a terminal, else a line every LINE_SECONDS: a context manager with update(n) and set_postfix_str(text).

    done: before this process; it says nothing about how fast this one is.
    """
    if sys.stderr.isatty() or chosen("quiet"):
        return tqdm(total=total, desc=title, unit=unit, leave=leave, disable=chosen("quiet"), dynamic_ncols=True, initial=done)
    return ProgressLines(total, title, unit, done)


class ProgressLines:
    """tqdm's figures as plain lines, for log files."""

    def __init__(self, total: int, title: str, unit: str, done: int) -> None:
        self.total, self.title, self.unit, self.begun, self.done, self.note = total, title, unit, done, done, ""
        self.start = self.last = time.monotonic()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        self.note = f", {text}"

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            print(tqdm.format_meter(self.done, self.total, now - self.start, unit=self.unit, prefix=self.title,
                                    bar_format="{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}",
                                    initial=self.begun, postfix=self.note.removeprefix(", ") or None),
                  file=sys.stderr, flush=True)


# --- how it ends ------------------------------------------------------------------------------------------------------

class Stopped(BaseException):
    """SIGTERM: an end like Ctrl-C's, that no `except Exception` holds up."""


def command_line(main: click.Command) -> None:
    """Run a click command as the program: an error is one line, an interruption ends with 130 (Ctrl-C) or 143 (SIGTERM)."""
    def stop(number, frame):
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        code = main(standalone_mode=False)
        for number in (signal.SIGINT, signal.SIGTERM):  # all is done: what comes while Python takes leave is no interruption
            signal.signal(number, signal.SIG_IGN)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that went away
        print(f"Error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        code = 3
    except (click.Abort, KeyboardInterrupt, Stopped) as end:
        code = 143 if isinstance(end, Stopped) else 130
        print("\nInterrupted; the same command goes on where it stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def stop_request() -> Iterator[list]:
    """A list into which SIGINT and SIGTERM put what to raise once a loop's step is ended; a second one raises at once."""
    asked: list = []

    def ask(number, frame):
        asked.append(KeyboardInterrupt if number == signal.SIGINT else Stopped)
        if len(asked) > 1:
            raise asked[-1]

    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
