"""What front Envoys told, with members by name; and what Prometheus hears of the pool."""

from dataclasses import replace

from prometheus_client import CollectorRegistry

from tests.xds.membership.test_cluster_state import DOWN, member, world
from understudy.statesync.pool.records import MemberState
from understudy.telemetry.otlp.counts import FrontCount
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.xds.control.front_view import fronts_view
from understudy.xds.control.pool_metrics import PoolMetrics
from understudy.xds.membership.cluster_state import ClusterState

NOW = 1.8e9


def told_of(*names: str) -> FrontTally:
    """An Envoy that got no answer from member a, and has failed to reach these members for 10 s."""
    now = [0.0]
    tally = FrontTally(lambda: now[0])
    said = {"http.response.status_code": "504", "understudy.flags": "UT", "understudy.host": member("a").app}
    tally.reported([StoredLog(1, "request", said, {"node_name": "front-1"})] * 3)
    for _ in range(3):
        now[0] += 5.0
        tally.counted([FrontCount("front-1", 100, 73, dict.fromkeys(names, 30), failed=2)])
    return tally


def test_members_are_named_and_those_that_are_down_are_no_trouble_of_the_network():
    fresh = replace(member("d"), since=NOW - 5.0)  # started again: what was told may be of its former self
    pool = world(member("a"), member("b"), member("c", state=DOWN), fresh)
    (front,) = fronts_view(pool, told_of("b", "c", "d", "nobody"), NOW)["fronts"]
    assert (front["node"], front["requests"], front["keyless"], front["failed"]) == ("front-1", 300, 219, 6)
    assert front["members"] == {
        "a": {"timeouts": 3, "connect_failures": 0, "elsewhere": 0, "unreachable_seconds": 0.0},
        "b": {"timeouts": 0, "connect_failures": 0, "elsewhere": 0, "unreachable_seconds": 10.0},
    }


def test_without_a_pool_in_sight_addresses_stand_for_members():
    view = fronts_view(None, told_of("b"), NOW)
    (front,) = view["fronts"]
    assert list(front["members"]) == [member("a").app]
    assert view["totals"] == {"requests": 300, "failed": 6}


def test_prometheus_hears_of_slots_without_an_active_and_of_members_that_are_lost_or_down():
    registry = CollectorRegistry()
    seen: list[ClusterState | None] = [world(member("a"), member("b", state=DOWN), orders=("ab",) * 4, owners="aa-c")]
    missing = {"c": ("connection refused", 60.0)}
    PoolMetrics(registry, lambda: seen[0], lambda: missing, told_of("a"))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"understudy_{name}", labels)

    assert (value("pool_slots", kind="total"), value("pool_slots", kind="served")) == (4, 2)
    states = {state: value("pool_members", state=state) for state in MemberState}
    assert {str(state): count for state, count in states.items() if count} == {"UP": 1, "DOWN": 1, "LOST": 1}
    assert value("front_requests_total") == 300
    assert value("front_requests_without_key_total") == 219
    assert value("front_requests_failed_total") == 6
    assert (value("front_timeouts_total"), value("front_connect_failures_total")) == (3, 0)
    assert value("front_unreachable") == 1
    seen[0] = replace(seen[0], away=True)  # at home on a distant site: nothing is missing here
    assert value("pool_slots", kind="total") == 0
    seen[0] = None  # nothing is known before etcd has been read
    assert value("pool_slots", kind="total") is None
    assert value("front_unreachable") == 0


def test_the_share_at_home_is_told_by_site_to_the_command_and_to_prometheus():
    registry = CollectorRegistry()
    tally = FrontTally(lambda: 0.0, site_of={"a": "east", "b": "west"}.get)
    tally.counted([FrontCount(node, 0, 0, {}, site="east", served={"a": 3, "b": 1}) for node in ("front-1", "front-2")])
    PoolMetrics(registry, lambda: None, dict, tally)
    assert fronts_view(None, tally, NOW)["sites"] == {"east": {"at_home": 6, "away": 2}}
    at_home = {"site": "east", "served": "at_home"}
    assert registry.get_sample_value("understudy_front_site_requests_total", at_home) == 6
