"""The resources of a pool as data: names, order of slots, health, and what stays the same when something changes."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import HealthStatus
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration
from envoy_data_plane.envoy.extensions.clusters.aggregate.v3 import ClusterConfig
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions as UpstreamHttpOptions
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.pool.spec import PoolSpec, SessionKey
from understudy.xds.envoy.listener import listener
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES, build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView

MEMBERS = {f"cart-{number}": Endpoint("127.0.0.1", 9000 + number) for number in (1, 2, 3)}
ORDERS = (("cart-1", "cart-2", "cart-3"), ("cart-2", "cart-1", "cart-3"), ("cart-3", "cart-1", "cart-2"))


def view(orders: Any = ORDERS, members: Any = MEMBERS, **spec: Any) -> RoutingView:
    return RoutingView(PoolSpec(pool="cart", **{"slots": 3, **spec}), members, orders)


def routes(of: RoutingView) -> dict[str, Route]:
    configuration = RouteConfiguration.parse(build(of)[ROUTES]["cart/routes"])
    return {route.name: route for route in configuration.virtual_hosts[0].routes}


def slot_clusters(route: Route) -> list[str]:
    return [entry.name for entry in route.route.weighted_clusters.clusters]


def health(of: RoutingView, name: str) -> dict[int, HealthStatus]:
    assignment = ClusterLoadAssignment.parse(build(of)[ENDPOINTS][name])
    hosts = [host for locality in assignment.endpoints for host in locality.lb_endpoints]
    return {host.endpoint.address.socket_address.port_value: host.health_status for host in hosts}


def test_every_member_and_every_distinct_order_has_a_cluster():
    assert set(build(view((*ORDERS, *ORDERS), slots=6))[CLUSTER]) == {
        "cart/member/cart-1",
        "cart/member/cart-2",
        "cart/member/cart-3",
        "cart/order/cart-1+cart-2+cart-3",
        "cart/order/cart-2+cart-1+cart-3",
        "cart/order/cart-3+cart-1+cart-2",
        "cart/any",
    }


def test_members_whose_names_hold_dashes_make_different_orders():
    members = {name: Endpoint("127.0.0.1", 9000) for name in ("a", "a-b", "b-c", "c")}
    clusters = build(view((("a-b", "c"), ("a", "b-c"), ())[:3], members))[CLUSTER]
    assert {"cart/order/a-b+c", "cart/order/a+b-c"} <= set(clusters)


def test_an_order_cluster_holds_its_members_clusters_in_order():
    cluster = Cluster.parse(build(view())[CLUSTER]["cart/order/cart-3+cart-1+cart-2"])
    inner = ClusterConfig.parse(cluster.cluster_type.typed_config.value)
    assert inner.clusters == ["cart/member/cart-3", "cart/member/cart-1", "cart/member/cart-2"]


@pytest.mark.parametrize("name", ["cart/any", "cart/member/cart-1", "cart/order/cart-1+cart-2+cart-3"])
def test_no_cluster_panics_while_anybody_is_healthy_or_runs_out_of_retries(name: str):
    cluster = Cluster.parse(build(view())[CLUSTER][name])
    assert 0 < cluster.common_lb_config.healthy_panic_threshold.value <= 1
    assert cluster.common_lb_config.update_merge_window.total_seconds() == 0
    assert cluster.circuit_breakers.thresholds[0].max_retries == PoolSpec(pool="cart").retries.at_once


def test_a_member_is_checked_at_its_health_port_as_often_without_traffic_as_with_it():
    members = {**MEMBERS, "cart-2": Endpoint("127.0.0.1", 9002, check=("127.0.0.1", 7602))}
    resources = build(view(members=members))
    for name in ("cart/member/cart-2", "cart/any"):
        check = Cluster.parse(resources[CLUSTER][name]).health_checks[0]
        assert check.no_traffic_healthy_interval == check.interval
        assert check.no_traffic_interval == check.unhealthy_interval <= check.interval
    where = {
        host.endpoint.address.socket_address.port_value: host.endpoint.health_check_config
        for host in ClusterLoadAssignment.parse(resources[ENDPOINTS]["cart/any"]).endpoints[0].lb_endpoints
    }
    assert where[9002].address.socket_address.port_value == 7602
    assert where[9001].disable_active_health_check


def test_the_spec_may_do_without_checks_outliers_and_hedging():
    without = view(health_checks={"enabled": False}, outliers={"failures": 0}, retries={"hedge_ms": 0})
    cluster = Cluster.parse(build(without)[CLUSTER]["cart/member/cart-1"])
    assert (cluster.health_checks, cluster.outlier_detection) == ([], None)
    assert all(route.route.hedge_policy is None for route in routes(without).values())


@pytest.mark.parametrize("protocol", ["http1", "http2", "as_client"])
def test_connections_to_applications_end_and_are_pinged_as_the_spec_says(protocol: str):
    def options(**timeouts: int) -> UpstreamHttpOptions:
        cluster = Cluster.parse(build(view(protocol=protocol, timeouts=timeouts))[CLUSTER]["cart/member/cart-1"])
        (packed,) = cluster.typed_extension_protocol_options.values()
        return UpstreamHttpOptions.parse(packed.value)

    usual = options()
    assert usual.common_http_protocol_options.idle_timeout < timedelta(seconds=5), "when common servers end them"
    for way in (usual.explicit_http_config, usual.use_downstream_protocol_config):
        pinged = way is not None and way.http2_protocol_options and way.http2_protocol_options.connection_keepalive
        assert not pinged, "gRPC servers permit it only when they are told to"
    told = options(keep_alive_ms=1500, ping_ms=2500)
    assert told.common_http_protocol_options.idle_timeout == timedelta(seconds=1.5)
    for way in (told.explicit_http_config, told.use_downstream_protocol_config):
        if way is not None and way.http2_protocol_options is not None:
            ping = way.http2_protocol_options.connection_keepalive
            assert (ping.interval, ping.timeout) == (timedelta(seconds=2.5), timedelta(seconds=2.5))
            return
    assert protocol == "http1"


def test_slots_are_entries_of_weight_one_in_slot_order():
    for name in ("keyed", "keyed-once"):
        route = routes(view())[name]
        assert slot_clusters(route) == [f"cart/order/{'+'.join(order)}" for order in ORDERS]
        assert {entry.weight for entry in route.route.weighted_clusters.clusters} == {1}
        assert route.route.weighted_clusters.use_hash_policy


def test_requests_without_a_key_are_matched_first():
    assert list(routes(view())) == ["keyless-once", "keyless", "keyed-once", "keyed"]
    assert routes(view())["keyless"].route.cluster == "cart/any"


def test_only_what_is_repeatable_is_repeated_after_a_reset():
    policies = {name: route.route.retry_policy.retry_on.split(",") for name, route in routes(view()).items()}
    assert [name for name, conditions in policies.items() if "reset" in conditions] == ["keyless", "keyed"]
    assert all("connect-failure" in conditions for conditions in policies.values())


def test_only_what_is_repeatable_is_hedged():
    hedged = {name for name, route in routes(view(protocol="http2")).items() if route.route.hedge_policy}
    assert hedged == {"keyless-grpc", "keyless", "keyed-grpc", "keyed"}


@pytest.mark.parametrize(("hedge_ms", "usual", "late"), [(300, 0.3, 2.3), (0, None, None)])
def test_a_hedge_waits_longer_where_most_members_are_late_and_no_cluster_changes_for_it(hedge_ms, usual, late):
    calm = view(retries={"hedge_ms": hedge_ms})
    busy = replace(calm, late=True)

    def waits(of: RoutingView) -> float | None:
        wait = routes(of)["keyed"].route.retry_policy.per_try_timeout
        return wait.total_seconds() if wait else None

    assert (waits(calm), waits(busy)) == (usual, late)
    assert build(calm)[CLUSTER] == build(busy)[CLUSTER]


@pytest.mark.parametrize(
    ("retries", "answer_ms", "late", "wait"),
    [
        ({}, 0, False, 0.3),
        ({}, 250, False, 0.3),
        ({}, 1000, False, 1.0),
        ({}, 1000, True, 3.0),
        ({"hedge_ms": 2000}, 1000, False, 2.0),
        ({"hedge": "fixed"}, 1000, False, 0.3),
        ({"hedge": "fixed"}, 1000, True, 2.3),
        ({"hedge_ms": 0}, 1000, True, None),
    ],
)
def test_a_hedge_waits_longer_than_answers_take_unless_the_spec_fixes_it(retries, answer_ms, late, wait):
    seen = replace(view(retries=retries), answer_ms=answer_ms, late=late)
    waits = {route.route.retry_policy.per_try_timeout for name, route in routes(seen).items() if "once" not in name}
    assert waits == {timedelta(seconds=wait) if wait else None}
    assert build(seen)[CLUSTER] == build(replace(seen, answer_ms=0))[CLUSTER]


def test_grpc_is_routed_apart_where_members_speak_http2_and_has_no_time_limit_but_the_clients():
    found = routes(view(protocol="as_client"))
    assert list(found)[:2] == ["keyless-grpc-once", "keyless-grpc"]
    assert {name for name, route in found.items() if not route.route.timeout.total_seconds()} == {
        name for name in found if "grpc" in name
    }
    assert slot_clusters(found["keyed-grpc-once"]) == slot_clusters(found["keyed"])


def test_the_first_session_key_that_is_present_decides_alone():
    sources = (SessionKey(cookie="sid"), SessionKey(header="X-Session-ID"), SessionKey(cookie="old"))
    hashing = routes(view(session_key=sources))["keyed"].route.hash_policy
    found = [policy.cookie.name if policy.cookie else policy.header.header_name for policy in hashing]
    assert found == ["sid", "x-session-id", "old"]
    assert all(policy.terminal for policy in hashing)


def test_a_cookie_with_a_pattern_is_hashed_only_where_it_matches_and_behind_what_comes_first():
    sources = (
        SessionKey(header="x-id"),
        SessionKey(preset="express"),
        SessionKey(cookie="sid"),
        SessionKey(cookie="old", pattern="v1-(.+)"),
        SessionKey(preset="rails"),
    )
    found = routes(view(session_key=sources))
    assert list(found) == [
        f"{source}{suffix}"
        for source in ("keyed/connect.sid", "keyed/old", "keyless", "keyed")
        for suffix in ("-once", "")
    ]
    for cookie, before in (("connect.sid", ["x-id"]), ("old", ["x-id", "sid"])):
        for route in (found[f"keyed/{cookie}"], found[f"keyed/{cookie}-once"]):
            *others, own = route.route.hash_policy
            assert [policy.cookie.name if policy.cookie else policy.header.header_name for policy in others] == before
            matched = route.match.headers[0]
            assert matched.name == own.header.header_name == "cookie"
            assert matched.string_match.safe_regex == own.header.regex_rewrite.pattern
            assert slot_clusters(route) == slot_clusters(found["keyed"])
    assert len(found["keyed"].route.hash_policy) == 3
    assert [matcher.name for matcher in found["keyless"].match.cookies] == ["sid", "understudy-route"]
    sets = {name for name, route in found.items() if route.response_headers_to_add}
    assert sets == {"keyless", "keyless-once"}


def test_a_pool_that_knows_only_patterns_has_no_further_keyed_routes():
    found = routes(view(session_key=(SessionKey(preset="express"),)))
    assert list(found) == ["keyed/connect.sid-once", "keyed/connect.sid", "keyless-once", "keyless"]
    assert not found["keyless"].match.cookies


def test_an_unhealthy_member_is_marked_in_its_own_cluster_and_among_all():
    seen = view(members={**MEMBERS, "cart-2": Endpoint("127.0.0.1", 9002, healthy=False)})
    assert health(seen, "cart/member/cart-2") == {9002: HealthStatus.UNHEALTHY}
    assert health(seen, "cart/any") == {
        9001: HealthStatus.HEALTHY,
        9002: HealthStatus.UNHEALTHY,
        9003: HealthStatus.HEALTHY,
    }


def test_a_change_of_health_changes_nothing_but_endpoints():
    before = build(view())
    after = build(view(members={**MEMBERS, "cart-2": Endpoint("127.0.0.1", 9002, healthy=False)}))
    assert after[CLUSTER] == before[CLUSTER]
    assert after[ROUTES] == before[ROUTES]
    changed = {name for name in before[ENDPOINTS] if before[ENDPOINTS][name] != after[ENDPOINTS][name]}
    assert changed == {"cart/member/cart-2", "cart/any"}


def test_a_member_that_is_not_known_is_left_out_of_the_orders():
    route = routes(view((("gone", "cart-1"), ("gone",), ORDERS[2])))["keyed"]
    assert slot_clusters(route) == ["cart/order/cart-1", "cart/any", "cart/order/cart-3+cart-1+cart-2"]


def test_without_a_table_every_slot_goes_to_any_member():
    assert slot_clusters(routes(view(()))["keyed"]) == ["cart/any"] * 3


def test_a_pool_without_members_is_complete_too():
    built = build(view((), {}))
    assert set(built[CLUSTER]) == set(built[ENDPOINTS]) == {"cart/any"}


def test_orders_for_another_number_of_slots_are_refused():
    with pytest.raises(ValueError, match="3 slots"):
        build(view(ORDERS[:2]))


@pytest.mark.parametrize(("address", "port"), [("localhost", 80), ("", 80), ("127.0.0.1", 0), ("::1", 65536)])
def test_an_address_that_envoy_would_refuse_is_refused_here(address: str, port: int):
    with pytest.raises(ValueError):  # noqa: PT011 - the text is ipaddress's own
        Endpoint(address, port)


@given(st.lists(st.lists(st.sampled_from([*MEMBERS, "gone"]), unique=True).map(tuple), min_size=9, max_size=9))
def test_every_cluster_that_is_named_exists_and_equal_views_give_equal_bytes(orders: list[tuple[str, ...]]):
    seen = view(orders, slots=9)
    built = build(seen)
    for route in routes(seen).values():
        assert set(slot_clusters(route)) <= set(built[CLUSTER]) if route.route.weighted_clusters else True
    for name, encoded in built[CLUSTER].items():
        if "/order/" in name:
            inner = ClusterConfig.parse(Cluster.parse(encoded).cluster_type.typed_config.value)
            assert set(inner.clusters) <= set(built[CLUSTER])
    assert build(view(tuple(orders), dict(reversed(MEMBERS.items())), slots=9)) == built


def test_what_is_put_together_from_bytes_is_what_the_library_encodes():
    encoded = build(view((*ORDERS, ()) * 64, slots=256))[ROUTES]["cart/routes"]
    configuration = RouteConfiguration.parse(encoded)
    again = RouteConfiguration.parse(bytes(configuration))
    assert again == configuration
    assert len(slot_clusters(configuration.virtual_hosts[0].routes[3])) == 256


def test_the_listener_asks_for_the_pools_routes_and_trusts_nobody():
    found = Listener.parse(listener("cart", "127.0.0.1", 10000))
    manager = HttpConnectionManager.parse(found.filter_chains[0].filters[0].typed_config.value)
    assert (found.name, found.address.socket_address.port_value) == ("cart/listener", 10000)
    assert (manager.rds.route_config_name, manager.stat_prefix) == ("cart/routes", "cart")
    assert manager.rds.config_source.ads is not None
    assert [nobody.address_prefix for nobody in manager.internal_address_config.cidr_ranges] == ["192.0.2.0"]
    assert manager.path_with_escaped_slashes_action.name == "UNESCAPE_AND_REDIRECT"
    assert manager.common_http_protocol_options is not None
    assert manager.common_http_protocol_options.headers_with_underscores_action.name == "REJECT_REQUEST"
