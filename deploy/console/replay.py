"""The steps of a failover for the slot map: which slots had which active, and when. Pure.

The slots are those of the failover records in etcd. The times are those of the trace, in ms after its beginning: a slot
changes when its span ``claim`` ends. In a takeover these spans name no slots, and a member's slots change when its last
one ends. Without such a span the moment is not known, and the step says so.

A change ends after its claims, and that is the order of the steps. Claims are timed by their members' clocks, the end
by that of the control server that measured it. If the two contradict each other, the last step says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.statesync.pool.records import FailoverRecord
from understudy.telemetry.tracing.names import CLAIM, SLOT

View = dict[str, Any]


def steps_of(parts: Sequence[FailoverRecord], trace: Mapping[str, Any]) -> list[View]:
    """The steps in order. Each has ``ms`` (None: not known), ``text``, and the slots with their active after it."""
    sources = sorted({part.source for part in parts if part.source})
    before = {slot: part.source for part in parts for slot in part.slots}
    first: View = {"ms": 0.0, "text": f"{' and '.join(sources) or 'nobody'} active", "slots": before}
    claims = _claims(trace)
    moved: dict[tuple[float | None, str, str], list[int]] = {}
    for part in parts:
        for slot in part.slots:
            ms = claims.get((part.to, slot), claims.get((part.to, None)))
            moved.setdefault((ms, part.to, part.source), []).append(slot)
    steps = [
        {
            "ms": ms,
            "text": f"{to} is active of {_slots(len(slots))} of {source or 'nobody'}",
            "slots": dict.fromkeys(slots, to),
        }
        for (ms, to, source), slots in moved.items()
    ]
    steps.sort(key=lambda step: (step["ms"] is None, step["ms"] or 0.0, step["text"]))
    return [first, *steps, *_end(trace, max(claims.values(), default=0.0))]


def _claims(trace: Mapping[str, Any]) -> dict[tuple[str, int | None], float]:
    """When the last claim of a member ended, for each slot of which the trace tells, and with None for all of them."""
    ends: dict[tuple[str, int | None], float] = {}
    for span in trace["spans"]:
        if span["name"] == CLAIM:
            for slot in {None, span["attributes"].get(SLOT)}:
                at = span["who"], slot
                ends[at] = max(ends.get(at, 0.0), _end_of(span))
    return ends


def _slots(count: int) -> str:
    return "1 slot" if count == 1 else f"{count} slots"


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
