"""How answers look on a terminal, whatever they tell: tables without lines, states in colours, times in words. Pure."""

from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

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
