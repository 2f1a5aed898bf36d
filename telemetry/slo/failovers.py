"""Makes one :class:`~understudy.telemetry.slo.model.Failover` from the spans of each change of active. Pure.

Spans of other programs in the same store are left out. A trace without a usable end becomes a record without a total,
which counts as unmeasured. An attribute of the wrong type counts as missing.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.model import MOST_PICTURED, Bar, Failover, Review
from understudy.telemetry.slo.waterfall import is_measured, root_of
from understudy.telemetry.tracing import names

BETWEEN = "between phases"
"""The time of a failover in which no recorded phase ran."""
MOST_BARS = 60
_WAITED_FOR = (
    names.DETECT,
    names.DECIDE,
    names.MOVE,
    names.FENCE,
    names.FLUSH,
    names.CONFIRM,
    names.CLAIM,
    names.CATCH_UP,
    names.PUSH,
    names.ACK,
    names.FIRST_OK,
)
_MS = 1e6


def failovers_of(spans: Iterable[StoredSpan], pool: str = "") -> list[Failover]:
    """The changes of active in ``spans``, oldest first; only those of ``pool``, if one is named."""
    traces: dict[str, dict[str, StoredSpan]] = defaultdict(dict)
    for span in spans:
        if span.name in names.ROOTS or span.name in names.PHASES:
            traces[span.trace_id].setdefault(span.span_id, span)
    found = [
        _failover(sorted(group.values(), key=_order))
        for group in traces.values()
        # Members that all leave at once ask each other without success: nothing changed, and nobody waited.
        # A process that gets copies changes nothing either.
        if any(span.name not in (names.HELD_UP, names.REJOIN) for span in group.values())
    ]
    return sorted((one for one in found if pool in ("", one.pool)), key=lambda one: (one.began_ns, one.trace))


def costs_of(root: StoredSpan, spans: Sequence[StoredSpan]) -> dict[str, float]:
    """The length of the root in ms, divided among the phases; the parts add up to the whole.

    If the phases that the change waited for are marked, only they count. Otherwise phases overlap. A moment then
    belongs to the first phase, in the order of the protocol, that still runs, because the later phases wait for it.
    Time that no phase covers counts as :data:`BETWEEN`.
    """
    path = [span for span in spans if span.attributes.get(names.CRITICAL)]
    within = [
        (max(span.start_ns, root.start_ns), min(span.end_ns, root.end_ns), _WAITED_FOR.index(span.name), span.name)
        for span in path or spans
        if span.name in _WAITED_FOR
    ]
    edges = sorted({root.start_ns, root.end_ns, *(edge for one in within if one[0] < one[1] for edge in one[:2])})
    costs: dict[str, float] = defaultdict(float)
    for start, end in itertools.pairwise(edges):
        running = [(rank, name) for begin, stop, rank, name in within if begin <= start and stop >= end]
        costs[min(running)[1] if running else BETWEEN] += (end - start) / _MS
    return dict(sorted(costs.items(), key=lambda item: _rank(item[0])))


def _failover(spans: Sequence[StoredSpan]) -> Failover:
    root = root_of(spans)
    first = root or spans[0]
    told = _told(spans)
    measured = root is not None and is_measured(root)
    exposure = next((span for span in spans if span.name == names.RE_PROTECT), None)
    back = [span.attributes for span in spans if span.name == names.RETURNED]
    returned = [bool(attributes.get(names.RETURNED_ALIVE)) for attributes in back]
    planned = told.get(names.PLANNED) is True or first.name == names.HANDOVER or _moves_only(spans)
    fenced = [span for span in spans if span.name == names.FENCED]
    audits = [span for span in spans if span.name == names.AUDIT]
    second = [_whole(span.attributes.get(names.WRITES_BREACHED)) or 0 for span in audits]
    origin = first.start_ns
    source, to = _text(told.get(names.FROM)), _receivers(spans, told)
    return Failover(
        trace=first.trace_id,
        pool=_text(told.get(names.POOL)),
        planned=planned,
        began_ns=origin,
        total_ms=root.duration_ns / _MS if root is not None and measured else None,
        cause=_text(told.get(names.CAUSE)),
        source=source,
        to=to,
        slots=_whole(told.get(names.SLOTS)) or 0,
        drill=_text(told.get(names.DRILL)),
        costs=costs_of(root, spans) if root is not None and measured else {},
        stalls_ms=_stalls(spans) if planned else (),
        propagation_ms=_propagation(spans, planned=planned),
        requests=_whole(told.get(names.DRILL_REQUESTS)),
        failed=_whole(told.get(names.DRILL_FAILED)),
        gap_ms=_number(told.get(names.DRILL_GAP_MS)),
        lost_writes=_whole(told.get(names.DRILL_LOST)),
        lost_async=_lost_async(spans, told),
        lost_replicas=_whole(told.get(names.DRILL_LOST_REPLICAS)),
        losses=_losses(spans, _whole(told.get(names.SLOTS)) or 0),
        loss_seconds=max((_number(span.attributes.get(names.LOSS_SECONDS)) or 0.0 for span in spans), default=0.0),
        fenced=sum(_whole(span.attributes.get(names.WRITES_FENCED)) or 0 for span in fenced),
        second_writes=sum(second) if second else None,
        audited=sum(_whole(span.attributes.get(names.SLOTS)) or 0 for span in audits),
        needless_moves=_whole(told.get(names.DRILL_NEEDLESS)),
        missed=_text(told.get(names.DRILL_MISSED)),
        command=_text(told.get(names.DRILL_COMMAND)),
        exposed_ms=exposure.duration_ns / _MS if exposure else None,
        protected=not (exposure and exposure.attributes.get(names.UNMEASURED)),
        returned=any(returned) if returned else None,
        could_not_serve=next(filter(None, (_text(attributes.get(names.COULD_NOT_SERVE)) for attributes in back)), ""),
        stop_or_start=not measured and _of_a_stop_or_start(spans),
        losers=_listed(source) | {span.instance for span in spans if span.name in (names.FENCE, names.CONFIRM)},
        winners=_listed(to) | {span.instance for span in spans if span.name == names.CLAIM},
    )


def pictured(review: Review, spans: Iterable[StoredSpan]) -> Review:
    """The review with the bars of its worst failovers. Only these are drawn span by span."""
    wanted: dict[str, dict[str, StoredSpan]] = {one.trace: {} for one in review.worst[:MOST_PICTURED]}
    for span in spans:
        if span.trace_id in wanted and (span.name in names.ROOTS or span.name in names.PHASES):
            wanted[span.trace_id].setdefault(span.span_id, span)

    def drawn(one: Failover) -> Failover:
        found = sorted(wanted[one.trace].values(), key=_order) if one.trace in wanted else ()
        bars = (
            Bar(span.instance, span.name, (span.start_ns - one.began_ns) / _MS, span.duration_ns / _MS, span.error)
            for span in found[:MOST_BARS]
        )
        return replace(one, bars=tuple(bars)) if found else one

    return replace(review, failovers=tuple(drawn(one) for one in review.failovers))


def _propagation(spans: Sequence[StoredSpan], *, planned: bool) -> float | None:
    """From the known cause until the last Envoy acknowledged, in ms; None if no Envoy did.

    In planned moves the cause is the new owner of the last slot, where ``ack`` begins. ``push`` covers the moves before
    it, which Envoys need not know.
    """
    begins = [span.start_ns for span in spans if span.name == (names.ACK if planned else names.PUSH)]
    acks = [span.end_ns for span in spans if span.name == names.ACK]
    return max(0.0, (max(acks) - min(begins)) / _MS) if begins and acks else None


def _told(spans: Sequence[StoredSpan]) -> Mapping[str, Any]:
    """What the spans say about the whole change. The root has priority over the phases."""
    told: dict[str, Any] = {}
    aside = (names.FENCED, names.AUDIT, names.REJOIN)  # these have their own counts
    for span in sorted((span for span in spans if span.name not in aside), key=lambda span: span.is_root):
        told.update(span.attributes)
    return told


def _receivers(spans: Sequence[StoredSpan], told: Mapping[str, Any]) -> str:
    """Who took over: as the root says, or otherwise who confirmed."""
    said = told.get(names.TO)
    if isinstance(said, str) and said:
        return said
    return ", ".join(sorted({span.instance for span in spans if span.name == names.CLAIM}))


def _lost_async(spans: Sequence[StoredSpan], told: Mapping[str, Any]) -> int | None:
    """Async writes lost, as counted by clients and by a former owner that still ran; None if neither could count."""
    by_clients = _whole(told.get(names.DRILL_LOST_ASYNC))
    lived = [span for span in spans if span.name == names.RETURNED and span.attributes.get(names.RETURNED_ALIVE)]
    by_owner = [_whole(span.attributes.get(names.WRITES_LOST)) or 0 for span in spans if span.name == names.FENCED]
    if by_clients is not None:
        return max(by_clients, sum(by_owner))
    return sum(by_owner) if by_owner or lived else None


def _losses(spans: Sequence[StoredSpan], slots: int) -> int | None:
    """Slots that were claimed with a loss. None if the new actives of some of the ``slots`` have not told.

    A loss that one of them told counts, whether the others have told or not.
    """
    claims = [span for span in spans if span.name == names.CLAIM]
    told = [span for span in claims if _whole(span.attributes.get(names.LOSSES)) is not None]
    losses = sum(_whole(span.attributes[names.LOSSES]) or 0 for span in told)
    claimed = sum(_whole(span.attributes.get(names.SLOTS)) or 0 for span in told)
    return losses if losses or (told and claimed >= slots) else None


def _of_a_stop_or_start(spans: Sequence[StoredSpan]) -> bool:
    """Whether every member that took slots over was going down itself, or had never met the process it replaced."""
    claims = [span for span in spans if span.name == names.CLAIM]
    return bool(claims) and all(span.attributes.get(names.STOP_OR_START) is True for span in claims)


def _listed(members: str) -> frozenset[str]:
    """The members in an attribute, where commas separate them."""
    return frozenset(name for name in members.split(", ") if name)


def _moves_only(spans: Sequence[StoredSpan]) -> bool:
    """Whether a trace without a root has only the phases of planned moves."""
    return any(span.name in (names.FENCE, names.FLUSH, names.CONFIRM) for span in spans)


def _stalls(spans: Sequence[StoredSpan]) -> tuple[float, ...]:
    """For each slot of a planned move, the ms from its fence until the new owner's report, by the old owner's clock."""
    fenced: dict[object, int] = {}
    confirmed: dict[object, int] = {}
    for span in spans:
        slot = span.attributes.get(names.SLOT)
        if slot is None:
            continue
        if span.name in (names.FLUSH, names.FENCE):
            fenced[slot] = min(span.start_ns, fenced.get(slot, span.start_ns))
        elif span.name == names.CONFIRM:
            confirmed[slot] = max(span.end_ns, confirmed.get(slot, 0))
    both = sorted(((confirmed[slot] - start) / _MS for slot, start in fenced.items() if slot in confirmed))
    return tuple(max(0.0, stall) for stall in both)


def _order(span: StoredSpan) -> tuple[int, bool, int, str]:
    return span.start_ns, not span.is_root, span.end_ns, span.span_id


def _rank(name: str) -> int:
    return _WAITED_FOR.index(name) if name in _WAITED_FOR else len(_WAITED_FOR)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
