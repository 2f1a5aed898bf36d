"""What a trace tells of a change of active: how long it took, where the time went, whether it was needless. Pure."""

from collections.abc import Iterable

import msgspec

from understudy.deploy.inspect.envoys import View
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.failovers import failovers_of
from understudy.telemetry.slo.waterfall import root_of
from understudy.telemetry.timing.duration import length
from understudy.telemetry.tracing import names

PARTS_NAMED = 3
"""The longest phases are named in the text."""
_GROUPS = {
    **dict.fromkeys((names.DETECT, names.DECIDE), "detect"),
    **dict.fromkeys((names.PUSH, names.ACK, names.FIRST_OK), "route"),
}
"""Phases by who is waited for: failure detection, or Envoys. All others are waits for members and etcd: ``claim``."""
FALSE = "false: the member could serve all the time"


class Measured(msgspec.Struct, frozen=True):
    """What is known of one change.

    Attributes:
        ms: its length; None if its end was not recorded.
        error_ms: by how much that may be wrong; None if the trace does not say.
        parts: the length in ms by phase; they add up to the whole.
        false: a process was taken for dead that could serve all the time.
    """

    ms: float | None = None
    error_ms: float | None = None
    parts: dict[str, float] = msgspec.field(default_factory=dict)
    false: bool = False

    def view(self) -> View:
        """For pages: the length as text, the phases as text and as a bar of 100 units, and the verdict."""
        longest = sorted(self.parts, key=lambda phase: -self.parts[phase])[:PARTS_NAMED]
        return {
            "took_ms": self.ms,
            "took": "not known" if self.ms is None else length(self.ms),
            "error": "" if self.error_ms is None else f"± {length(self.error_ms)}",
            "parts": self._bar(),
            "went": ", ".join(f"{phase} {length(self.parts[phase])}" for phase in self.parts if phase in longest),
            "verdict": FALSE if self.false else "",
        }

    def _bar(self) -> list[View]:
        bar, at = [], 0.0
        for phase, ms in self.parts.items():
            width = 100 * ms / self.ms if self.ms else 0.0
            bar.append({"group": _GROUPS.get(phase, "claim"), "x": round(at, 1), "width": round(width, 1)})
            at += width
        return bar


NOT_MEASURED = Measured()


def measured(spans: Iterable[StoredSpan], pool: str) -> Measured:
    """What the spans of one trace tell of the change of ``pool``."""
    found = list(spans)
    one = next(iter(failovers_of(found, pool)), None)
    if one is None:
        return NOT_MEASURED
    root = root_of(found)
    error = root.attributes.get(names.ERROR_MS) if root else None
    wanted = one.planned or one.drill == "freeze"
    return Measured(
        one.total_ms,
        float(error) if isinstance(error, int | float) and one.total_ms is not None else None,
        {phase: round(ms, 1) for phase, ms in one.costs.items() if ms >= 0.05},
        false=bool(one.returned) and not one.could_not_serve and not wanted,
    )
