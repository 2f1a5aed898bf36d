"""Which members answer the sessions of each version of the application."""

from typing import Any

import pytest
from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_versions import Versions
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES, build
from understudy.xds.envoy.routes import VERSION_GONE
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, VersionsView
from understudy.xds.envoy.version_routes import order_for

OF = {"a1": "v1", "a2": "v1", "b1": "v2", "b2": "v2"}
MEMBERS = {name: Endpoint("127.0.0.1", 9000 + place) for place, name in enumerate(OF)}
ORDERS = (("a1", "b1", "a2"), ("b1", "a1", "b2"), ("b1", "b2", "a2"))
BOTH = {"v1": 2, "v2": 2}


def view(serving: dict[str, int], of: dict[str, str] = OF, **versions: Any) -> RoutingView:
    spec = PoolSpec(pool="cart", slots=3, versions=Versions(**{"new_sessions": "v2", **versions}))
    return RoutingView(spec, MEMBERS, ORDERS, versions=VersionsView(of, serving))


def routes(of: RoutingView) -> dict[str, Route]:
    configuration = RouteConfiguration.parse(build(of)[ROUTES]["cart/routes"])
    return {route.name: route for route in configuration.virtual_hosts[0].routes}


def clusters(route: Route) -> list[str]:
    weighted = route.route.weighted_clusters if route.route else None
    return [entry.name.rpartition("/")[2] for entry in weighted.clusters] if weighted else []


def marks(route: Route) -> list[str]:
    return [option.header.value.partition(";")[0] for option in route.response_headers_to_add]


@pytest.mark.parametrize(
    ("serving", "choice", "version", "slot", "order"),
    [
        (BOTH, "refuse", "v1", 0, ("a1", "a2")),
        (BOTH, "refuse", "v1", 1, ("a1", "a2")),
        (BOTH, "refuse", "v1", 2, ("a2", "a1")),
        (BOTH, "move", "v1", 0, ("a1", "a2")),
        (BOTH, "move", "v2", 2, ("b1", "b2")),
        ({"v1": 1, "v2": 2}, "refuse", "v1", 0, ("a1", "a2")),
        ({"v1": 1, "v2": 2}, "move", "v1", 0, ("a1", "a2", "b1", "b2")),
        ({"v1": 1, "v2": 2}, "move", "v1", 2, ("a2", "a1", "b1", "b2")),
        ({"v1": 2, "v2": 1}, "move", "v2", 0, ("b1", "b2")),
    ],
)
def test_a_session_is_answered_by_members_of_its_version(
    serving: dict[str, int], choice: str, version: str, slot: int, order: tuple[str, ...]
):
    assert order_for(view(serving, when_gone=choice), version, slot) == order


def test_new_sessions_go_to_the_new_version_and_are_marked_with_it():
    new = routes(view(BOTH))["keyless"]
    assert new.route.cluster == "cart/version/v2"
    assert marks(new) == ["understudy-version-cart=v2"]
    made = build(view(BOTH))
    assert made[ENDPOINTS]["cart/version/v2"] != made[ENDPOINTS]["cart/any"]
    assert {"cart/version/v1", "cart/version/v2"} <= set(made[CLUSTER])


def test_every_cluster_that_a_route_names_exists():
    for choice in ("refuse", "move"):
        for serving in (BOTH, {"v1": 1}, {"v2": 1}, {"": 2}, {}):
            made = view(serving, when_gone=choice, unmarked="v1")
            known = {name.rpartition("/")[2] for name in build(made)[CLUSTER]}
            for route in routes(made).values():
                one = route.route.cluster.rpartition("/")[2] if route.route and route.route.cluster else ""
                assert {*clusters(route), one} <= {*known, ""}, route.name


@pytest.mark.parametrize(
    ("serving", "choice", "unmarked", "gone", "without_mark"),
    [
        (BOTH, "refuse", None, "refused", "slots"),
        (BOTH, "move", "v1", "v2", "v1"),
        ({"v2": 2}, "refuse", "v1", "refused", "refused"),
        ({"v2": 2}, "move", "v1", "v2", "v2"),
        ({"v2": 2}, "move", None, "v2", "slots"),
        ({"v1": 2}, "move", None, "v1", "slots"),
    ],
)
def test_sessions_of_a_version_that_is_gone_go_by_declared_choice(
    serving: dict[str, int], choice: str, unmarked: str | None, gone: str, without_mark: str
):
    made = view(serving, when_gone=choice, unmarked=unmarked)
    found = routes(made)
    for name, where in (("keyed/gone", gone), ("keyed", without_mark)):
        if where == "refused":
            assert found[name].direct_response.status == 503
            assert found[name].direct_response.body.inline_string == VERSION_GONE
        elif where == "slots":
            assert clusters(found[name]) == ["+".join(order) for order in ORDERS]
        else:
            assert clusters(found[name]) == ["+".join(order_for(made, where, slot)) for slot in range(3)]
    assert marks(found["keyed/gone"]) == ([] if gone == "refused" else [f"understudy-version-cart={gone}"])


def test_no_typing_error_in_the_spec_keeps_new_sessions_out():
    assert routes(view({"v1": 2}))["keyless"].route.cluster == "cart/version/v1"
    unnamed = routes(view({"": 2}, of=dict.fromkeys(MEMBERS, "")))["keyless"]
    assert unnamed.route.cluster == "cart/any"
    assert marks(unnamed) == []


def test_a_pool_without_versions_has_the_routes_that_it_always_had():
    plain = RoutingView(PoolSpec(pool="cart", slots=3), MEMBERS, ORDERS)
    assert set(routes(plain)) == {"keyless-once", "keyless", "keyed-once", "keyed"}
