"""The Prometheus metrics of a control server about its pool: slots, members, and what front Envoys report.

Computed when Prometheus asks. Members and Envoys are never labels; ``understudy status`` names them.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.separation import together
from understudy.telemetry.receiver.front_tally import FrontTally, Kind
from understudy.xds.control.front_view import cut_off_pairs
from understudy.xds.membership.cluster_state import ClusterState, candidates, orders_for_envoy

_COUNTERS = {
    Kind.REQUESTS: (
        "understudy_front_requests",
        "Requests that front Envoys answered, as they reported to this control server.",
    ),
    Kind.KEYLESS: ("understudy_front_requests_without_key", "Of these, requests without a session key."),
    Kind.FAILED: ("understudy_front_requests_failed", "Of these, requests that were answered with 5xx."),
    Kind.LIMITED: (
        "understudy_front_requests_limited",
        "Of these, requests that were refused with 429 (limits.requests_per_second).",
    ),
    Kind.TIMEOUTS: (
        "understudy_front_timeouts",
        "Requests that a member took and did not answer in their whole time (504).",
    ),
    Kind.CONNECT_FAILURES: (
        "understudy_front_connect_failures",
        "Requests that failed since no connection to a member came about.",
    ),
    Kind.ELSEWHERE: (
        "understudy_front_answered_elsewhere",
        "Requests that another member than the first of their slot answered.",
    ),
}


class PoolMetrics(Collector):
    """The pool as this control server sees it.

    Args:
        registry: where it registers itself.
        current: the pool now; None while it is not known.
        missing: members that were lost and have not come back: why, and for how long.
        fronts: what front Envoys reported.
        hold: which front Envoys of several pools reject the pool's configuration; '' if none does.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        current: Callable[[], ClusterState | None],
        missing: Callable[[], Mapping[str, tuple[str, float]]],
        fronts: FrontTally,
        hold: Callable[[], str] = str,
    ) -> None:
        self._current = current
        self._missing = missing
        self._fronts = fronts
        self._hold = hold
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        cluster = self._current()
        if cluster is not None:
            yield self._slots(cluster)
            yield self._members(cluster)
            yield _together(cluster)
        for kind, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, self._fronts.totals[kind])
        yield self._by_site()
        cut = len(cut_off_pairs(cluster, self._fronts, time.time())) if cluster is not None else 0
        text = "Pairs of a front Envoy and a member that is well, between which health checks fail on the network."
        yield GaugeMetricFamily("understudy_front_unreachable", text, cut)
        text = "1 while a front Envoy of several pools rejects the pool's configuration, so that an older one stays."
        yield GaugeMetricFamily("understudy_front_held", text, int(bool(self._hold())))

    def _by_site(self) -> Metric:
        family = CounterMetricFamily(
            "understudy_front_site_requests",
            "Requests with a session key that front Envoys of a site sent to its own members (at_home), or away.",
            labels=["site", "served"],
        )
        for (site, kind), count in sorted(self._fronts.by_site.items()):
            family.add_metric([site, str(kind)], count)
        return family

    def _slots(self, cluster: ClusterState) -> Metric:
        family = GaugeMetricFamily(
            "understudy_pool_slots", "Slots of the pool, and those that have an active that lives.", labels=["kind"]
        )
        family.add_metric(["total"], 0 if cluster.away else cluster.spec.slots)
        served = sum(1 for slot in range(cluster.spec.slots) if cluster.serving_owner(slot) is not None)
        family.add_metric(["served"], served)
        return family

    def _members(self, cluster: ClusterState) -> Metric:
        family = GaugeMetricFamily(
            "understudy_pool_members",
            "Members by state; LOST for an hour at the most, if nobody starts them again.",
            labels=["state"],
        )
        states = {member: cluster.state(member) for member in cluster.members}
        states |= dict.fromkeys(self._missing(), MemberState.LOST)
        for state in MemberState:
            family.add_metric([str(state)], sum(1 for one in states.values() if one is state))
        return family


def _together(cluster: ClusterState) -> Metric:
    family = GaugeMetricFamily(
        "understudy_slots_together",
        "Slots that have all their copies in one zone, or on one host, although others have members.",
        labels=["level"],
    )
    places = {candidate.member: candidate for candidate in candidates(cluster)}
    able = [candidate.member for candidate in places.values() if candidate.state.may_hold_slots]
    for level, slots in together(orders_for_envoy(cluster), places, able).items():
        family.add_metric([level], len(slots))
    return family
