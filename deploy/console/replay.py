"""The steps of a failover for the slot map: which slots had which active, and when. Pure.

The slots are those of the failover records in etcd. The times are those of the trace: a member's slots change when its
last span ``claim`` ends, in ms after the beginning of the trace. Without such a span the moment is not known, and the
step says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.statesync.pool.records import FailoverRecord
from understudy.telemetry.tracing.names import CLAIM

View = dict[str, Any]


def steps_of(parts: Sequence[FailoverRecord], trace: Mapping[str, Any]) -> list[View]:
    """The steps in order. Each has ``ms`` (None: not known), ``text``, and the slots with their active after it."""
    sources = sorted({part.source for part in parts if part.source})
    before = {slot: part.source for part in parts for slot in part.slots}
    first: View = {"ms": 0.0, "text": f"{' and '.join(sources) or 'nobody'} active", "slots": before}
    claims = {
        span["who"]: round(span["start_ms"] + span["duration_ms"], 3)
        for span in trace["spans"]
        if span["name"] == CLAIM
    }
    steps = [
        {
            "ms": claims.get(part.to),
            "text": f"{part.to} is active of {len(part.slots)} slots of {part.source or 'nobody'}",
            "slots": dict.fromkeys(part.slots, part.to),
        }
        for part in parts
    ]
    steps.sort(key=lambda step: (step["ms"] is None, step["ms"] or 0.0, step["text"]))
    return [first, *steps, *_end(trace)]


def _end(trace: Mapping[str, Any]) -> list[View]:
    """The end that the root span measured."""
    if trace["total_ms"] is None:
        return []
    return [{"ms": trace["total_ms"], "text": f"the {trace['name']} has ended", "slots": {}}]
