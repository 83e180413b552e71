"""Output and exit of the command lines. Neither torch nor numpy is imported: --help stays fast."""
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from tqdm import tqdm

from sim2sg_lib import __version__

LOG_SECONDS = 30.0  # between two updates of a progress bar when stderr is not a terminal


class InputError(click.ClickException):
    """An error in the user's input: one line (what, where, what was expected), exit status 3."""

    exit_code = 3

    def format_message(self) -> str:
        """The message as one printable line of bounded length, since it may quote a file."""
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                       for c in self.message)
        return line if len(line) <= 600 else f"{line[:400]} ... {line[-195:]}"


class FloatRange(click.FloatRange):
    """click.FloatRange that refuses NaN and infinity."""

    def convert(self, value, param, context):
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, context)
        return number


def output_options(command):
    """Adds --version, and --quiet and --json for `log_info`, `print_json` and `progress`."""
    def keep(context, option, value):
        # given before or after a subcommand's name
        context.meta[option.name] = value or context.meta.get(option.name)

    quiet = click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=keep,
                         help="Print errors only.")
    as_json = click.option("--json", is_flag=True, expose_value=False, callback=keep,
                           help="Print one JSON object on standard output, everything else on "
                                "standard error.")
    return click.version_option(__version__, prog_name="Sim2SG")(as_json(quiet(command)))


def chosen(name: str) -> bool:
    """Whether the option "quiet" or "json" was given; False outside a command."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(name))


def log_info(text: str) -> None:
    """Print a line unless --quiet; with --json on standard error."""
    if not chosen("quiet"):
        print(text, file=sys.stderr if chosen("json") else sys.stdout, flush=True)


def print_json(summary: dict) -> None:
    """Print the result of a command if --json."""
    if chosen("json"):
        print(json.dumps(summary, allow_nan=False), flush=True)


def progress(total: int, title: str, unit: str, leave: bool = True, done: int = 0) -> tqdm:
    """A progress bar on standard error; in a log file it is written every LOG_SECONDS.

    done: steps of an earlier, interrupted process; they do not count for the speed.
    """
    intervals = () if sys.stderr.isatty() else ("mininterval", "maxinterval", "delay")
    return tqdm(total=total, desc=title, unit=unit, leave=leave, initial=done,
                disable=chosen("quiet"), dynamic_ncols=True,
                **dict.fromkeys(intervals, LOG_SECONDS))


class TolerantStream:
    """Standard output or error whose reader may be gone: a failed write is not an error.

    After the first failed write the descriptor leads to the null device. Characters that the
    encoding lacks become question marks.
    """

    def __init__(self, stream, descriptor: int) -> None:
        if stream is None:  # closed when the program started
            stream = open(os.devnull, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        self.stream, self.descriptor = stream, descriptor

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.descriptor)
        os.close(null)


def tolerate_closed_streams() -> None:
    """Make standard output and error tolerant, and keep other files off closed descriptors."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        setattr(sys, name, TolerantStream(getattr(sys, name), descriptor))


class Stopped(BaseException):
    """SIGTERM: an end like Ctrl-C, not caught by `except Exception`."""


def command_line(main: click.Command) -> None:
    """Run a click command as the program; errors are one line.

    Exits with 130 after Ctrl-C, 143 after SIGTERM, 2 for options that are wrong in themselves.
    """
    def stop(number, frame):
        raise Stopped

    tolerate_closed_streams()
    signal.signal(signal.SIGTERM, stop)
    try:
        code = main(standalone_mode=False)
        # the work is done: do not interrupt the shutdown of Python
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    except click.ClickException as error:
        print(f"Error: {error.format_message()}", file=sys.stderr)  # without click's lines on usage
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that was removed
        print(f"Error: {error.filename or 'input or output'}: {error.strerror or error}",
              file=sys.stderr)
        code = 3
    except (click.Abort, KeyboardInterrupt, Stopped) as end:
        code = 143 if isinstance(end, Stopped) else 130
        print("\nInterrupted; the same command continues where it stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def stop_request() -> Iterator[list]:
    """A list to which SIGINT and SIGTERM append the exception to raise after the current step.

    A second signal raises at once.
    """
    asked = []

    def ask(number, frame):
        asked.append(KeyboardInterrupt if number == signal.SIGINT else Stopped)
        if len(asked) > 1:
            raise asked[-1]

    handled = [number for number in (signal.SIGINT, signal.SIGTERM)
               if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
