"""The Prometheus metrics of the balance of one pool, at the control server that leads it."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.xds.planning.proposal import Proposal, worth_moving


class BalanceMetrics(Collector):
    """How uneven the load is, and how many moves would even it out; absent while that is not known here."""

    def __init__(self, registry: CollectorRegistry, proposal: Callable[[], Proposal | None]) -> None:
        self._proposal = proposal
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        found = self._proposal()
        if found is None:
            return
        text = "The largest load of a member by balance.by, in shares: 1 is even."
        yield GaugeMetricFamily("understudy_load_imbalance", text, found.worst_before)
        text = "Moves of slots that would bring every member within balance.over of its share; 0 in an idle pool."
        yield GaugeMetricFamily("understudy_rebalance_moves", text, len(found.moves) if worth_moving(found) else 0)
        text = "Slots whose load alone is more than any member may have."
        yield GaugeMetricFamily("understudy_hot_slots", text, len(found.hot))
