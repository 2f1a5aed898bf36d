"""The progress of the demo: a live display on a terminal, a line for each step elsewhere."""

import time
from collections import Counter
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from understudy.deploy.load.history_checker import percentile
from understudy.deploy.load.http_load import Load

_WINDOW = 1.0


class Progress:
    """The live display; a context manager around the load."""

    def __init__(self, console: Console, load: Load) -> None:
        self._console = console
        self._load = load
        self._began = 0.0
        self._step = ""
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, step: str) -> None:
        """Show the step that begins."""
        self._step = step
        self._console.print(f"{self._at()}  {step}", style="dim")

    def mark(self, event: str) -> None:
        """Show an event."""
        self._console.print(f"{self._at()}  {event}", style="bold")

    def _at(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"

    def _picture(self) -> RenderableType:
        history = self._load.history
        now = self._load.clock()
        recent = []
        for op in reversed(history):
            if op.ended < now - _WINDOW:
                break
            recent.append((op.ended - op.started) * 1000)
        failed = sum(not op.succeeded for op in history)
        numbers = Text.assemble(
            (f"{self._at()}  {self._step}\n", "bold"),
            f"{len(history)} requests, ",
            (f"{failed} failed", "bold red" if failed else "green"),
            f", {len(recent)}/s",
            f", median {percentile(recent, 0.5):.1f} ms, slowest {max(recent):.1f} ms" if recent else "",
        )
        served = Counter(shopper.served_by for shopper in self._load.shoppers)
        table = Table(box=None, pad_edge=False, show_header=False)
        for member, count in sorted(served.items()):
            width = round(40 * count / max(1, len(self._load.shoppers)))
            table.add_row(member, f"{count} sessions", Text("█" * width, style="cyan"))
        return Group(numbers, table)
