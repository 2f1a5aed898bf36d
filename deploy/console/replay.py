"""The steps of a failover for the slot map: which slots had which active, and when. Pure.

The slots are those of the failover records in etcd. The times are those of the trace: a member's slots change when its
last span ``claim`` ends, in ms after the beginning of the trace. Without such a span the moment is not known, and the
step says so.

A change ends after its claims, and that is the order of the steps. Claims are timed by their members' clocks, the end
by that of the control server that measured it. If the two contradict each other, the last step says so.
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
    claims: dict[str, float] = {}
    for span in trace["spans"]:
        if span["name"] == CLAIM:
            claims[span["who"]] = max(claims.get(span["who"], 0.0), _end_of(span))
    steps = [
        {
            "ms": claims.get(part.to),
            "text": f"{part.to} is active of {len(part.slots)} slots of {part.source or 'nobody'}",
            "slots": dict.fromkeys(part.slots, part.to),
        }
        for part in parts
    ]
    steps.sort(key=lambda step: (step["ms"] is None, step["ms"] or 0.0, step["text"]))
    return [first, *steps, *_end(trace, max(claims.values(), default=0.0))]


def _end(trace: Mapping[str, Any], last_claim: float) -> list[View]:
    """The end that the root span measured."""
    if trace["total_ms"] is None:
        return []
    root = next(span for span in trace["spans"] if not span["parent_id"])
    end, text = _end_of(root), f"the {trace['name']} has ended"
    if end < last_claim:
        later = last_claim - end
        text += f", by the clock of {root['who']}; by its member's clock the last claim is {later:.1f} ms later"
    return [{"ms": end, "text": text, "slots": {}}]


def _end_of(span: Mapping[str, Any]) -> float:
    return round(float(span["start_ms"] + span["duration_ms"]), 3)
