"""Counts of front Envoys: requests without a session key, and members that did not answer or were not reached.

:mod:`understudy.telemetry.receiver.otlp_service` passes on what Envoys report and count. The counts of the last
:data:`WINDOW_SECONDS` are kept in memory; Prometheus reads the counters since the start. Reports that an Envoy could
not send are missing, so every number is a lower bound.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import msgspec

from understudy.telemetry.otlp.counts import FrontCount
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.receiver.front_series import FrontSeries
from understudy.telemetry.tracing.names import ATTEMPTS, CLUSTER, COUNT_SECONDS, FLAGS, HOST, HTTP_STATUS, NODE_NAME

WINDOW_SECONDS = 300.0
LASTING_SECONDS = 2 * COUNT_SECONDS
"""A member that an Envoy has not reached for this time is unreachable: a restart is quicker."""
GAP_SECONDS = 3 * COUNT_SECONDS
"""Reports of failed checks that are no further apart belong together."""
_MOST = 20_000
"""The most different Envoys, members and kinds that are counted; others only count in the totals."""
_MOST_NAME = 256


class Kind(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    KEYLESS = "keyless"
    """Requests without a session key."""
    FAILED = "failed"
    """Requests that were answered with 5xx."""
    LIMITED = "limited"
    """Requests that the Envoy refused with 429, since the pool had its requests of this second."""
    TIMEOUTS = "timeouts"
    """Requests that the member accepted but did not answer in time: the client got 504."""
    CONNECT_FAILURES = "connect_failures"
    """Requests that failed because no connection to the member could be made."""
    AT_HOME = "at_home"
    """Requests with a session key that an Envoy of a site sent to a member of this site."""
    AWAY = "away"
    """Those that it sent to a member of another site."""
    ELSEWHERE = "elsewhere"
    """Requests that were answered by another member than the first of their slot, after a try there."""


OF_MEMBERS = (Kind.TIMEOUTS, Kind.CONNECT_FAILURES, Kind.ELSEWHERE)
_IN_SERIES = {
    Kind.REQUESTS: "requests",
    Kind.FAILED: "failed",
    Kind.ELSEWHERE: "elsewhere",
    Kind.TIMEOUTS: "unanswered",
    Kind.CONNECT_FAILURES: "unanswered",
}


class _Run(msgspec.Struct):
    """An unbroken time of failed checks: its first and its last report."""

    first: float
    last: float


class FrontTally:
    """The counts of all front Envoys that report here.

    Args:
        now: monotonic time in seconds.
        on_durations: called with what an Envoy reported of how long its answers took.
        site_of: the site of a member; None while the member is not known.
        wall: the time in seconds since 1970.

    ``totals`` has the counts since the start, and ``by_site`` those of Envoys that have a site. ``series`` has those of
    the last hour, step by step.
    """

    def __init__(
        self,
        now: Callable[[], float],
        on_durations: Callable[[Mapping[float, int]], None] = lambda _: None,
        site_of: Callable[[str], str | None] = lambda _: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.series = FrontSeries(wall)
        self.totals: Counter[Kind] = Counter()
        self.by_site: Counter[tuple[str, Kind]] = Counter()
        self._site_of = site_of
        self._on_durations = on_durations
        self._now = now
        self._counts: dict[tuple[str, str, Kind], deque[tuple[float, int]]] = {}
        self._unreached: dict[tuple[str, str], _Run] = {}

    def counted(self, fronts: Iterable[FrontCount]) -> None:
        """Envoys told their counts."""
        now = self._now()
        for front in fronts:
            node = front.node[:_MOST_NAME]
            self.series.add("reports", 1)
            self._add(node, "", Kind.REQUESTS, front.requests, now)
            self._add(node, "", Kind.KEYLESS, front.keyless, now)
            self._add(node, "", Kind.FAILED, front.failed, now)
            self._add(node, "", Kind.LIMITED, front.limited, now)
            for member in front.unreached:
                self._note_unreached(node, member[:_MOST_NAME], now)
            if front.site:
                self._count_sites(front, now)
            if front.durations:
                self._on_durations(front.durations)

    def _count_sites(self, front: FrontCount, now: float) -> None:
        """Count the requests that an Envoy sent to members of its own site and of others."""
        site = front.site[:_MOST_NAME]
        for member, count in front.served.items():
            served_on = self._site_of(member)
            if served_on is None:
                continue
            kind = Kind.AT_HOME if served_on == site else Kind.AWAY
            self._add(front.node[:_MOST_NAME], site, kind, count, now)
            if (site, kind) in self.by_site or len(self.by_site) < _MOST:
                self.by_site[site, kind] += count

    def reported(self, records: Iterable[StoredLog]) -> None:
        """Envoys reported requests that failed or were repeated; records of other things are left out."""
        now = self._now()
        for record in records:
            if HTTP_STATUS not in record.attributes:
                continue
            kind, where = _trouble(record.attributes)
            if kind is not None:
                self._add(str(record.resource.get(NODE_NAME, ""))[:_MOST_NAME], where[:_MOST_NAME], kind, 1, now)

    def _add(self, node: str, where: str, kind: Kind, count: int, now: float) -> None:
        if not count:
            return
        self.totals[kind] += count
        if kind in _IN_SERIES:
            self.series.add(_IN_SERIES[kind], count)
        key = (node, where, kind)
        if key not in self._counts and len(self._counts) >= _MOST:
            self._forget(now)
            if len(self._counts) >= _MOST:
                return
        recent = self._counts.setdefault(key, deque())
        if recent and now - recent[-1][0] < 1.0:
            recent[-1] = (recent[-1][0], recent[-1][1] + count)
        else:
            recent.append((now, count))
        while recent[0][0] < now - WINDOW_SECONDS:
            recent.popleft()

    def _forget(self, now: float) -> None:
        old = [key for key, recent in self._counts.items() if recent[-1][0] < now - WINDOW_SECONDS]
        for key in old:
            del self._counts[key]

    def _note_unreached(self, node: str, member: str, now: float) -> None:
        known = self._unreached.get((node, member))
        if known is not None and now - known.last <= GAP_SECONDS:
            known.last = now
            return
        self._unreached = {pair: run for pair, run in self._unreached.items() if now - run.last <= GAP_SECONDS}
        if len(self._unreached) < _MOST:
            self._unreached[node, member] = _Run(now, now)

    def unreachable(self, lasting: float = LASTING_SECONDS) -> dict[tuple[str, str], float]:
        """The Envoys and members between which checks have failed for ``lasting`` seconds or more, and for how long."""
        now = self._now()
        return {
            pair: run.last - run.first
            for pair, run in self._unreached.items()
            if now - run.last <= GAP_SECONDS and run.last - run.first >= lasting
        }

    def recent(self) -> dict[tuple[str, str, Kind], int]:
        """What each Envoy told within :data:`WINDOW_SECONDS`: by Envoy, where it happened, and what.

        Where: the ``address:port`` of a member, or the name of one; '' for all requests of the Envoy.
        """
        begin = self._now() - WINDOW_SECONDS
        sums = {key: sum(n for at, n in recent if at >= begin) for key, recent in self._counts.items()}
        return {key: count for key, count in sums.items() if count}


def _trouble(said: Mapping[str, object]) -> tuple[Kind | None, str]:
    """What a report tells of a member, and of which: by its address, or by its name."""
    flags = set(str(said.get(FLAGS, "")).split(","))
    host = str(said.get(HOST, "-"))
    if host != "-" and "UT" in flags:
        return Kind.TIMEOUTS, host
    if host != "-" and "UF" in flags:
        return Kind.CONNECT_FAILURES, host
    first = str(said.get(CLUSTER, "")).partition("/order/")[2].partition("+")[0]
    if first and str(said.get(HTTP_STATUS)) < "500" and str(said.get(ATTEMPTS)) > "1":
        return Kind.ELSEWHERE, first
    return None, ""
