"""What all front Envoys of a pool counted in the last hour, in steps of :data:`STEP_SECONDS`. For charts.

Steps are numbered from 1970 on, so those of several control servers can be added. A step in which no Envoy reported is
left out: nothing is known of it. A pool takes about 30 KB after an hour of reports, and nothing before the first one.
"""

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from understudy.telemetry.tracing.names import COUNT_SECONDS

STEP_SECONDS = 3 * COUNT_SECONDS
"""A multiple of the Envoys' own interval: otherwise a step would have one report more or less than the next."""
STEPS = 240
FIELDS = ("reports", "requests", "failed", "elsewhere", "unanswered")
"""What a step counts: reports of Envoys, requests, those that were answered with 5xx, those that another member
answered after a try at the first one, and tries that found no connection or no answer in time."""


class FrontSeries:
    """The steps of one pool; ``wall`` is the time in seconds since 1970."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._steps: deque[tuple[int, array[int]]] = deque(maxlen=STEPS)

    def add(self, field: str, count: int) -> None:
        """Count something now."""
        step = int(self._wall() // STEP_SECONDS)
        if not self._steps or self._steps[-1][0] < step:
            self._steps.append((step, array("q", [0] * len(FIELDS))))
        self._steps[-1][1][FIELDS.index(field)] += count

    def view(self) -> dict[str, Any]:
        """The answer of ``/v1/traffic``. ``now`` is the step that has not ended; it is left out."""
        now = int(self._wall() // STEP_SECONDS)
        kept = [[step, *counts] for step, counts in self._steps if now - STEPS <= step < now]
        return {"step_seconds": STEP_SECONDS, "now": now, "fields": FIELDS, "steps": kept}
