"""New sessions at front Envoys of a site: which members they prefer, and what else stays as it is."""

from dataclasses import replace
from typing import Any

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration

from tests.harness.front import PoolCache
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.near import near_members
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES, build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, VersionsView
from understudy.xds.publishing.listener_groups import FrontGroup, group_named, group_of
from understudy.xds.server.types import LISTENER
from understudy.xds.server.wire import Node

SITES = {"e1": "east", "e2": "east", "w1": "west", "w2": "west"}
PORTS = {name: 9000 + number for number, name in enumerate(SITES)}
ORDERS = (("e1", "w1"), ("e2", "w1"), ("w1", "e1"), ("w2", "e2"))
EQUAL = {"east": {"weight": 50}, "west": {"weight": 50}}
ENVOY = {"listen": "127.0.0.1:80", "telemetry": "xds"}


def view(orders: Any = ORDERS, sites: Any = EQUAL, **spec: Any) -> RoutingView:
    members = {name: Endpoint("127.0.0.1", port) for name, port in PORTS.items()}
    return RoutingView(PoolSpec(pool="cart", slots=len(orders), sites=sites, **spec), members, orders, sites=SITES)


def routes(of: RoutingView, name: str) -> dict[str, Route]:
    configuration = RouteConfiguration.parse(build(of)[ROUTES][name])
    return {route.name: route for route in configuration.virtual_hosts[0].routes}


def levels(of: RoutingView, name: str) -> dict[int, set[int]]:
    """The ports of an assignment by priority."""
    found = ClusterLoadAssignment.parse(build(of)[ENDPOINTS][name])
    return {
        one.priority: {host.endpoint.address.socket_address.port_value for host in one.lb_endpoints}
        for one in found.endpoints
    }


def weights(**of: int) -> dict[str, dict[str, int]]:
    return {site: {"weight": weight} for site, weight in of.items()}


@pytest.mark.parametrize(
    ("orders", "sites", "east"),
    [
        (ORDERS, weights(east=50, west=50), {"e1", "e2"}),
        (ORDERS, weights(east=50, west=50, north=0), {"e1", "e2"}),
        (ORDERS, weights(east=80, west=20), set()),
        (ORDERS, weights(east=0, west=100), set()),
        (ORDERS, weights(east=100, west=0), {"e1", "e2"}),
        (ORDERS, weights(west=100), set()),
        ((("e1", "w1"), ("w1", "e2")), weights(east=50, west=50), {"e1"}),
        ((("w1", "e1"), ("w2", "e2")), weights(east=50, west=50), set()),
        ((), weights(east=50, west=50), set()),
        ((("gone", "e1"), ()), weights(east=50, west=50), set()),
    ],
)
def test_preferred_are_members_with_slots_where_the_weights_leave_the_choice(
    orders: Any, sites: Any, east: set[str]
) -> None:
    of = replace(view(sites=sites), orders=orders)
    assert near_members(of, "east") == east


def test_only_requests_without_a_key_go_to_another_cluster_and_they_cross_at_the_first_retry() -> None:
    usual, east = routes(view(), "cart/routes"), routes(view(), "cart/routes/east")
    assert {name for name in usual if usual[name] != east[name]} == {"keyless-once", "keyless"}
    for name in ("keyless-once", "keyless"):
        changed = east[name].route
        assert changed is not None
        assert changed.cluster == "cart/near/east/any"
        assert changed.retry_policy is not None
        assert changed.retry_policy.retry_priority is not None
        assert changed.retry_policy.retry_host_predicate


def test_a_site_without_slots_has_no_preference() -> None:
    ports = set(PORTS.values())
    assert levels(view(), "cart/near/east/any") == {0: {9000, 9001}, 1: {9002, 9003}}
    assert levels(view((("w1", "e1"),) * 4), "cart/near/east/any") == {0: ports}
    assert levels(replace(view(), orders=()), "cart/near/east/any") == {0: ports}


def test_one_healthy_member_keeps_all_new_sessions_and_members_are_not_checked_once_more() -> None:
    made = build(view())
    policy = ClusterLoadAssignment.parse(made[ENDPOINTS]["cart/near/east/any"]).policy
    assert policy is not None
    assert policy.overprovisioning_factor is not None
    assert policy.overprovisioning_factor >= 100_00
    assert Cluster.parse(made[CLUSTER]["cart/near/east/any"]).health_checks == []


def test_each_version_of_the_application_has_its_own_near_members() -> None:
    versions = VersionsView({"e1": "v1", "e2": "v2", "w1": "v1", "w2": "v2"}, {"v1": 2, "v2": 2})
    of = replace(view(versions={"new_sessions": "v2"}), versions=versions)
    assert levels(of, "cart/near/west/version/v2") == {0: {9003}, 1: {9001}}
    (once, other) = (routes(of, "cart/routes/west")[name].route for name in ("keyless-once", "keyless"))
    assert once is not None
    assert other is not None
    assert {once.cluster, other.cluster} == {"cart/near/west/version/v2"}


def test_a_pool_without_sites_has_nothing_more() -> None:
    made = build(view(sites={}))
    assert list(made[ROUTES]) == ["cart/routes"]
    assert not [name for kind in made.values() for name in kind if "/near/" in name]


@pytest.mark.parametrize(
    ("node", "group"),
    [
        (Node("a", metadata={"understudy": ENVOY}), FrontGroup("127.0.0.1:80", "xds")),
        (Node("a", metadata={"understudy": ENVOY | {"site": "east"}}), FrontGroup("127.0.0.1:80", "xds", site="east")),
        (Node("a", metadata={"understudy": ENVOY}, zone="east"), FrontGroup("127.0.0.1:80", "xds", site="east")),
        (
            Node("a", metadata={"understudy": ENVOY | {"site": "west", "tracing": True}}, zone="east"),
            FrontGroup("127.0.0.1:80", "xds", traced=True, site="west"),
        ),
        (Node("a", metadata={"understudy": ENVOY | {"site": "e st"}}), FrontGroup("127.0.0.1:80", "xds")),
        (Node("a", metadata={"understudy": {"listen": ":80", "site": "east"}}), FrontGroup(":80", site="east")),
        (Node("a", zone="east"), FrontGroup("")),
    ],
)
def test_an_envoy_tells_its_site_by_its_metadata_or_its_zone(node: Node, group: FrontGroup) -> None:
    assert group_named(group_of(node)) == group


async def test_envoys_of_a_site_share_their_routes_and_a_spec_may_drop_its_sites() -> None:
    cache = PoolCache("cart")
    groups = [f"127.0.0.1:{port} xds site={site}" for port, site in ((80, "east"), (81, "east"), (82, "north"))]
    await cache.publish(view(sites={}))
    assert cache.on_group is not None
    for group in groups:
        await cache.on_group(group)

    def asks_for(group: str) -> bytes:
        return bytes(cache.snapshot(group).of(LISTENER).resources["cart/listener"].packed)

    await cache.publish(view())
    assert [b"cart/routes/east" in asks_for(group) for group in groups] == [True, True, False]
    east, also_east = (cache.snapshot(group).of(ROUTES).resources["cart/routes/east"] for group in groups[:2])
    assert east is also_east
    await cache.publish(view(sites={}))
    assert not any(b"cart/routes/east" in asks_for(group) for group in groups)
    assert list(cache.snapshot(groups[0]).of(ROUTES).resources) == ["cart/routes"]
