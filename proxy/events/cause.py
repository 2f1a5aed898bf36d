"""Why slots change their active."""

from dataclasses import dataclass

from understudy.telemetry.tracing.ids import TraceIds


@dataclass(frozen=True, slots=True)
class Cause:
    """``text`` is for people, ``trace`` is the takeover's, ``source`` is the member that loses the slots ('' for none).

    ``by_request``: the first witness was a caller who was sent here, not the table. ``stop_or_start``: the change
    belongs to a stop or a start of the pool or of this member, and so to no failover.
    """

    text: str
    trace: TraceIds | None = None
    source: str = ""
    by_request: bool = False
    stop_or_start: bool = False
