"""The option ``--watch`` of the reading commands: the output again and again until Ctrl-C, as ``watch(1)`` does."""

import contextlib
import functools
import io
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from understudy.deploy.cli.failures import INTERRUPTED_EXIT_CODE, Failure, translating_errors
from understudy.deploy.common.printable import one_line

F = TypeVar("F", bound=Callable[..., Any])
INTERVAL = 2.0
"""Seconds between two outputs, unless the option says otherwise."""
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
"""Control sequences of a terminal (ECMA-48: CUP, EL, ED). Overwriting flickers less than clearing the screen."""
_CLEAR_SCREEN = "\x1b[2J"


def watch_option(command: F) -> F:
    """Add ``--watch``. The command is run every so many seconds; what it prints replaces what it printed before."""

    @functools.wraps(command)
    def collect(watch: float | None, **given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
        if watch is None:
            return command(**given)
        return _watch(lambda: command(**given), watch, given.get("output", "table"))

    return click.option(
        "--watch",
        "-w",
        is_flag=False,
        flag_value=INTERVAL,
        type=click.FloatRange(0.2, 3600),
        metavar="[SECONDS]",
        help=f"Repeat every SECONDS, {INTERVAL:g} if not given, until Ctrl-C. Default: print once.",
    )(collect)  # type: ignore[return-value] # click returns what it was given


class Page(msgspec.Struct):
    """What a watch shows: the last output, when it was made (seconds since 1970), and the error since then."""

    text: str
    made: float
    error: str = ""

    def heading(self, command: str, every: float, now: float) -> str:
        """The line above the output. It says how old an output is that could not be replaced."""
        from understudy.deploy.common.console_style import utc_time  # it imports rich, which --help does not need

        line = f"{command}, every {every:g} s: {utc_time(self.made)}"
        return f"{line}\n! {now - self.made:.0f} s old: {self.error}" if self.error else line


class _Captured(io.StringIO):
    """Collects what a command prints; like the real output it is a terminal, or is none."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        """Whether colours and the width of the terminal are used."""
        return self._terminal


def _watch(run: Callable[[], Any], every: float, output: str) -> None:
    """Run and show until interrupted. The first failure ends the command; after a later one the last output stays."""
    command = click.get_current_context().command_path
    terminal = sys.stdout.isatty()
    redraw = terminal and output == "table"
    page = Page(_output_of(run, terminal=terminal), time.time())
    if redraw:
        click.echo(_CLEAR_SCREEN, nl=False)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            _show(page, command, every, output, redraw=redraw)
            time.sleep(every)
            page = _next(page, run, terminal=terminal)


def _next(page: Page, run: Callable[[], Any], *, terminal: bool) -> Page:
    try:
        return Page(_output_of(run, terminal=terminal), time.time())
    except Failure as failure:
        return Page(page.text, page.made, one_line(failure.message))


def _output_of(run: Callable[[], Any], *, terminal: bool) -> str:
    """What the command prints. Its exit code is about its answer, which is shown, so it is ignored."""
    out = _Captured(terminal=terminal)
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            translating_errors(run)
    except Failure as failure:
        if failure.exit_code == INTERRUPTED_EXIT_CODE:
            raise KeyboardInterrupt from None
        raise
    return out.getvalue()


def _show(page: Page, command: str, every: float, output: str, *, redraw: bool) -> None:
    """Print a page. Programs that read JSON get one document after the other, and errors on stderr."""
    if output != "table":
        if page.error:
            click.echo(f"understudy: {page.error}", err=True)
        else:
            click.echo(page.text, nl=False)
        return
    text = f"{page.heading(command, every, time.time())}\n\n{page.text}"
    click.echo(_over(text.rstrip("\n").split("\n")) if redraw else text)


def _over(lines: list[str]) -> str:
    """The lines that fit the terminal, written over what it shows."""
    shown = lines[: shutil.get_terminal_size().lines - 1]
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in shown) + _CLEAR_BELOW
