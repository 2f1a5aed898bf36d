"""Finds the requests that met a change of active, from the reports and counts of front Envoys. Pure.

Envoys send two things: a report of each request that failed or was repeated (:mod:`understudy.telemetry.otlp.logs`),
and the number of all requests (:mod:`understudy.telemetry.otlp.counts`). A request belongs to a change on two
conditions. It was under way at that time, plus or minus :data:`MARGIN_NS` because clocks differ. And the order of its
slot begins with a member that lost or won slots in the change, or it had no session key. So a request that a frozen
member never answered counts, however late it ended. All requests of a change are those of the whole pool in the
counting periods that overlap it, because Envoy counts no finer. If an Envoy that ran did not count, the number is
unknown.
"""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from understudy.telemetry.otlp.counts import FINE_NS, Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.slo.model import Failover, Through, Traffic
from understudy.telemetry.tracing.names import ATTEMPTS, CLUSTER, DURATION_MS, FLAGS, HTTP_STATUS, NODE_NAME

MARGIN_NS = 10**9
"""How far the clocks of an Envoy and a control server may differ, after the correction by the reports' arrival."""
OPEN_ENDED_NS = 10 * 10**9
"""The assumed length of a change whose end was not recorded."""
NEAR_NS = 60 * 10**9
"""An Envoy whose counts end or begin so close to a change was running, and its counts are missing."""
CUT_SHORT = frozenset({"LR", "UR", "UC", "SI", "UMSDR", "UPE"})
"""Envoy's response flags for answers that began without an error and never ended."""


@dataclass(frozen=True, slots=True)
class AffectedRequest:
    """A request that failed or was repeated, as an Envoy reported it: when it began and ended, and its slot's order.

    ``first`` is the member that comes first in the order of its slot; empty without a session key. ``status`` is what
    the client was answered.
    """

    node: str
    began_ns: int
    ended_ns: int
    first: str
    status: int
    failed: bool
    retried: bool


def requests_of(records: Iterable[StoredLog]) -> list[AffectedRequest]:
    """The requests in front Envoys' log records; records of other things are left out."""
    found = []
    for record in records:
        facts = record.attributes
        if HTTP_STATUS not in facts:
            continue
        status = _number(facts[HTTP_STATUS])
        flags = set(str(facts.get(FLAGS, "")).split(","))
        failed = status >= 500 or bool(flags & CUT_SHORT)
        order = str(facts.get(CLUSTER, "")).partition("/order/")[2]
        ended = record.time_ns + _number(facts.get(DURATION_MS)) * 1_000_000
        retried = not failed and _number(facts.get(ATTEMPTS)) > 1
        node = str(record.resource.get(NODE_NAME, ""))
        found.append(AffectedRequest(node, record.time_ns, ended, order.partition("+")[0], status, failed, retried))
    return found


def with_requests(
    failovers: Sequence[Failover],
    requests: Iterable[AffectedRequest],
    periods: Iterable[Period],
    *,
    start_ns: int,
    end_ns: int,
) -> tuple[list[Failover], Traffic]:
    """The failovers with the requests that they met, and all traffic of ``[start_ns, end_ns)``."""
    ordered = sorted(failovers, key=lambda one: (one.began_ns, one.trace))
    counts = _Counts(periods)
    known = [_moved(one, counts.lag(one.node)) for one in requests]
    met = _met(ordered, known)
    taken: set[Period] = set()
    told = [replace(one, through=_through(one, met[number], counts, taken)) for number, one in enumerate(ordered)]
    reported = sum(start_ns <= one.ended_ns < end_ns and one.status >= 500 for one in known)
    return told, counts.traffic(start_ns, end_ns, reported)


def _moved(one: AffectedRequest, lag: int) -> AffectedRequest:
    return replace(one, began_ns=one.began_ns + lag, ended_ns=one.ended_ns + lag)


def _through(one: Failover, met: Sequence[AffectedRequest], counts: "_Counts", taken: set[Period]) -> Through | None:
    failed, retried = sum(each.failed for each in met), sum(each.retried for each in met)
    touching = counts.touching(*_time(one, 0))
    if touching is None:
        return Through(failed, retried) if met else None
    fresh = [period for period in touching if period not in taken]
    taken.update(touching)
    seconds: dict[str, float] = defaultdict(float)
    requests: dict[str, int] = defaultdict(int)
    for period in touching:
        seconds[period.node] += max(period.end_ns - period.start_ns, 1) / 1e9
        requests[period.node] += period.requests
    return Through(
        failed,
        retried,
        total=max(failed, sum(requests.values())),
        uncounted=sum(period.requests for period in fresh),
        rate=sum(requests[node] / seconds[node] for node in requests),
    )


def _time(one: Failover, margin: int) -> tuple[int, int]:
    length = OPEN_ENDED_NS if one.total_ms is None else round(one.total_ms * 1e6)
    return one.began_ns - margin, one.began_ns + length + margin


def _met(ordered: Sequence[Failover], requests: Iterable[AffectedRequest]) -> dict[int, list[AffectedRequest]]:
    """The requests of each failover, by its position in ``ordered``. A request belongs to one failover at most."""
    begun = [one.began_ns for one in ordered]
    longest = max((end - start for start, end in (_time(one, 0) for one in ordered)), default=0)
    met: dict[int, list[AffectedRequest]] = defaultdict(list)
    for request in requests:
        low = bisect.bisect_left(begun, request.began_ns - longest - MARGIN_NS)
        high = bisect.bisect_right(begun, request.ended_ns + MARGIN_NS)
        fitting = []
        for number in range(low, high):
            one = ordered[number]
            start, end = _time(one, MARGIN_NS)
            nearness = _nearness(one, request)
            if nearness is not None and request.began_ns <= end and start <= request.ended_ns:
                fitting.append((nearness, abs(request.ended_ns - one.began_ns), number))
        if fitting:
            met[min(fitting)[2]].append(request)
    return met


def _nearness(one: Failover, request: AffectedRequest) -> int | None:
    """How well a request fits a change, 0 is best; None if it belongs to other slots."""
    if request.first in one.losers:
        return 0
    if request.first in one.winners:
        return 1
    if not request.first or not one.losers:
        return 2
    return None


class _Counts:
    """Counting periods, by Envoy and in order, with times by the control servers' clock."""

    def __init__(self, periods: Iterable[Period]) -> None:
        given = sorted(set(periods), key=lambda one: (one.node, one.end_ns, one.start_ns))
        self._lags: dict[str, int] = {}
        for one in given:
            if one.arrived_ns:
                self._lags[one.node] = min(one.arrived_ns - one.end_ns, self._lags.get(one.node, 1 << 62))
        self._nodes: dict[str, list[Period]] = {}
        for one in given:
            lag = self.lag(one.node)
            moved = replace(one, start_ns=one.start_ns + lag, end_ns=one.end_ns + lag)
            self._nodes.setdefault(one.node, []).append(moved)
        self._ends = {node: [one.end_ns for one in found] for node, found in self._nodes.items()}

    def lag(self, node: str) -> int:
        """How far an Envoy's clock is behind the control servers', in ns: a count cannot arrive before it is made."""
        return self._lags.get(node, 0)

    def touching(self, start: int, end: int) -> list[Period] | None:
        """The periods that overlap a time; None if some Envoy that ran did not count all of it, or none ran."""
        found: list[Period] = []
        for node, periods in self._nodes.items():
            ends = self._ends[node]
            low, high = bisect.bisect_left(ends, start), bisect.bisect_left(ends, end)
            near = [one for one in periods[max(0, low - 1) : high + 2] if one.end_ns - one.start_ns <= FINE_NS]
            if not any(one.end_ns >= start - NEAR_NS and one.start_ns <= end + NEAR_NS for one in near):
                continue
            mine = [one for one in near if one.end_ns > start and one.start_ns < end]
            if not mine or mine[0].start_ns > start or mine[-1].end_ns < end or not _seamless(mine):
                return None
            found += mine
        return found or None

    def traffic(self, start_ns: int, end_ns: int, reported: int) -> Traffic:
        """What was counted within a window; ``reported`` of its requests were reported one by one as 5xx."""
        within = [one for found in self._nodes.values() for one in found if start_ns < one.end_ns <= end_ns]
        if not within:
            return Traffic()
        covered, until = 0, start_ns
        for one in sorted(within, key=lambda one: one.start_ns):
            covered += max(0, one.end_ns - max(one.start_ns, until))
            until = max(until, one.end_ns)
        return Traffic(
            requests=sum(one.requests for one in within),
            nodes=len({one.node for one in within}),
            since_ns=min(one.start_ns for one in within),
            covered=min(1.0, covered / max(end_ns - start_ns, 1)),
            unreported=max(0, sum(one.failed for one in within) - reported),
        )


def _seamless(periods: Sequence[Period]) -> bool:
    return all(after.start_ns - before.end_ns <= FINE_NS for before, after in itertools.pairwise(periods))


def _number(value: object) -> int:
    """The number in a text of an Envoy's formatter, which writes ``-`` for an unknown value."""
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
