"""How output looks on a terminal: tables without lines, states in colours, times as text.

A :class:`Terminal` prints everything. It escapes control characters. It wraps lines on a terminal only: in a pipe or a
file every row is one line, so that ``grep`` finds it.
"""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from understudy.deploy.common.printable import block

_COLOURS = {
    "UP": "green",
    "READY": "green",
    "SYNCED": "green",
    "running": "green",
    "INIT": "yellow",
    "DRAINING": "yellow",
    "STALE": "yellow",
    "NOT SENT": "yellow",
    "starting": "yellow",
    "restarting": "yellow",
    "DOWN": "red",
    "LOST": "red",
    "ATTENTION": "red",
    "ERROR": "red",
    "killed": "red",
}


_UNBOUNDED = {"width": 100_000, "height": 1000}
"""The size when the output is no terminal. ``COLUMNS`` is ignored then: it does not describe a pipe."""


class Terminal(Console):
    """A console for text from any source: it ignores markup and escapes control characters.

    It wraps lines only on a terminal, or if ``width`` is given.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - rich's
        out = options.get("file") or (sys.stderr if options.get("stderr") else sys.stdout)
        self._wraps = "width" in options or out.isatty()
        size = {} if self._wraps else _UNBOUNDED
        super().__init__(markup=False, emoji=False, highlight=False, **{**size, **options})

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - rich's
        """Print. Without wrapping, the spaces that pad the last column of a table are removed."""
        if self._wraps:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))
        self.file.flush()

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's
        """Render a text without control characters."""
        return super().render_str(block(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render ``renderable``. The parts of a table or a group are rendered here too."""
        shown = _escaped(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(shown, options):
            yield segment if segment.control else segment._replace(text=block(segment.text))


def _escaped(text: Text) -> Text:
    """A text without control characters. A text that had any loses the styles inside it."""
    plain = block(text.plain)
    if plain == text.plain:
        return text
    return Text(plain, text.style, justify=text.justify, overflow=text.overflow, no_wrap=text.no_wrap, end=text.end)


def plain_table(*columns: str) -> Table:
    """A table of these columns without lines; a cell that is too wide is folded."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def coloured(state: str) -> Text:
    """The state of a member, a process or an Envoy, in its colour."""
    return Text(state, style=_COLOURS.get(state, ""))


def utc_time(seconds: float | None) -> str:
    """A wall time in seconds as text, in UTC."""
    if not seconds:
        return "unknown"
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
