"""How answers look on a terminal, whatever they tell: tables without lines, states in colours, times in words.

All of it is printed by a :class:`Terminal`, which shows control characters instead of obeying them, and which wraps
lines only for a terminal: in a pipe or a file a line is as long as what it says, so that ``grep`` finds it.
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
"""The size of what is no terminal. ``COLUMNS`` says nothing about a pipe, so it is not asked."""


class Terminal(Console):
    """A console for text of any origin: no markup in it is obeyed, and no control character reaches the terminal.

    What is printed to anything but a terminal is not wrapped, unless ``width`` is given.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - rich's
        out = options.get("file") or (sys.stderr if options.get("stderr") else sys.stdout)
        self._wraps = "width" in options or out.isatty()
        size = {} if self._wraps else _UNBOUNDED
        super().__init__(markup=False, emoji=False, highlight=False, **{**size, **options})

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - rich's
        """Print; lines that are not wrapped lose the spaces that fill up the last column of a table."""
        if self._wraps:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))
        self.file.flush()

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's
        """A text, without control characters."""
        return super().render_str(block(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed for ``renderable``; everything that a table or a group holds comes by here as well."""
        shown = _shown(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(shown, options):
            yield segment if segment.control else segment._replace(text=block(segment.text))


def _shown(text: Text) -> Text:
    """A text without control characters; one that had any loses the styles within it."""
    plain = block(text.plain)
    if plain == text.plain:
        return text
    return Text(plain, text.style, justify=text.justify, overflow=text.overflow, no_wrap=text.no_wrap, end=text.end)


def plain_table(*columns: str) -> Table:
    """A table of these columns without lines; what does not fit into one is folded."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def coloured(state: str) -> Text:
    """The state of a member, a process or an Envoy, in the colour of how well that is."""
    return Text(state, style=_COLOURS.get(state, ""))


def when(seconds: float | None) -> str:
    """A wall time in seconds, as people read it."""
    if not seconds:
        return "unknown"
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
