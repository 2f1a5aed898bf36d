"""The routes of a mesh: which members are tried for a slot, in what order, and who is left out."""

from dataclasses import replace

import pytest
from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration

from understudy.statesync.http.headers import APPLICATION_HEADERS
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Mesh, Retries
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.xds.envoy.mesh import build_all, clusters_from_elsewhere, mesh_routes
from understudy.xds.envoy.resources import ROUTES
from understudy.xds.envoy.routes import ORDER_HEADER
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, mesh_routes_name
from understudy.xds.server.cache import InvalidResources, ResourceCache

MESH = Mesh(host="cart-slots.cart.svc.cluster.local", port=7680)
SPEC = PoolSpec(pool="cart", slots=4, mesh=MESH)
MEMBERS = {name: Endpoint(f"10.0.0.{number}", 8080) for number, name in enumerate("abcd", 1)}
ORDERS = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"), ())


def view(ill: str = "", spec: PoolSpec = SPEC) -> RoutingView:
    members = {name: replace(one, healthy=name not in ill) for name, one in MEMBERS.items()}
    return RoutingView(spec, members, ORDERS)


def routes(of: RoutingView) -> list[Route]:
    config = RouteConfiguration.parse(mesh_routes(of, MESH))
    assert config.name == mesh_routes_name("cart")
    (host,) = config.virtual_hosts
    return host.routes


def lists(route: Route) -> list[str]:
    """The members in each entry's header, as letters."""
    assert route.route is not None
    assert route.route.weighted_clusters is not None
    entries = route.route.weighted_clusters.clusters
    assert {(entry.name, entry.weight) for entry in entries} == {(f"outbound|7680||{MESH.host}", 1)}
    letters = {f"{one.address}:{one.port}": name for name, one in MEMBERS.items()}
    found = []
    for entry in entries:
        (option,) = entry.request_headers_to_add
        assert option.header is not None
        assert option.header.key == ORDER_HEADER
        assert option.append_action.name == "OVERWRITE_IF_EXISTS_OR_ADD"
        found.append("".join(letters[host] for host in option.header.value.split(",")))
    return found


def keyed(of: RoutingView) -> list[str]:
    found = {tuple(lists(route)) for route in routes(of) if route.name.startswith("keyed")}
    assert len(found) == 1
    return list(found.pop())


def keyless(of: RoutingView) -> list[str]:
    return lists(next(route for route in routes(of) if route.name == "keyless"))


def test_each_slot_has_its_members_in_order_and_a_slot_of_nobody_has_anybody():
    assert keyed(view()) == ["abc", "bca", "cab", "dabc"]


def test_whoever_is_ill_is_left_out_unless_everybody_in_an_order_is():
    assert keyed(view(ill="b")) == ["ac", "ca", "ca", "acd"]
    assert keyed(view(ill="abc")) == ["abc", "bca", "cab", "d"]
    assert keyed(view(ill="abcd")) == keyed(view())


def test_requests_without_a_key_begin_at_each_healthy_member_alike():
    assert keyless(view(ill="b")) == ["acd", "cda", "dac"]
    many = view(spec=SPEC.model_copy(update={"retries": Retries(attempts=1)}))
    assert keyless(many) == ["ab", "bc", "cd", "da"]


def test_slots_are_picked_by_hash_and_requests_without_a_key_by_chance():
    for route in routes(view()):
        assert route.route is not None
        assert route.route.weighted_clusters is not None
        hashed = route.route.weighted_clusters.use_hash_policy
        assert hashed is route.name.startswith("keyed")
        assert bool(route.route.hash_policy) is hashed


def test_without_members_clients_still_cannot_choose_a_host():
    config = RouteConfiguration.parse(mesh_routes(RoutingView(SPEC, {}, ()), MESH))
    (host,) = config.virtual_hosts
    assert ORDER_HEADER in host.request_headers_to_remove
    assert set(APPLICATION_HEADERS) <= set(host.request_headers_to_remove)
    assert {route.route.cluster for route in host.routes if route.route} == {f"outbound|7680||{MESH.host}"}


def test_ipv6_addresses_are_written_as_envoy_writes_them():
    one = RoutingView(SPEC, {"a": Endpoint("fd00::1", 8080)}, ORDERS)
    assert b"[fd00::1]:8080" in mesh_routes(one, MESH)


def test_what_does_not_change_but_health_repeats_like_the_front_envoys_routes():
    here = {route.name: route.route.retry_policy for route in routes(view()) if route.route}
    front = RouteConfiguration.parse(build_all(view())[ROUTES]["cart/routes"]).virtual_hosts[0].routes
    for route in front:
        assert route.route is not None
        assert route.route.retry_policy is not None
        assert here[route.name].retry_on == route.route.retry_policy.retry_on
        assert here[route.name].per_try_timeout == route.route.retry_policy.per_try_timeout


def test_a_pool_outside_a_mesh_has_no_such_routes():
    alone = RoutingView(PoolSpec(pool="cart", slots=4), MEMBERS, ORDERS)
    assert list(build_all(alone)[ROUTES]) == ["cart/routes"]


async def test_the_cache_takes_the_cluster_from_elsewhere_and_no_other():
    cache = ResourceCache()
    with pytest.raises(InvalidResources, match=r"outbound\|7680"):
        await cache.set_all(build_all(view()))
    assert await cache.set_all(build_all(view()), known=clusters_from_elsewhere(SPEC))
    other = SPEC.model_copy(update={"mesh": Mesh(host="other.cart.svc.cluster.local")})
    with pytest.raises(InvalidResources, match="other"):
        await cache.set_all(build_all(view(spec=other)))


@pytest.mark.parametrize("host", ["cart", "cart..svc", "Cart.shop", "a b.c", "-a.b"])
def test_a_mesh_host_that_is_no_full_name_is_refused(host: str):
    with pytest.raises(ValueError, match=r"mesh\.host"):
        parse_spec(f"pool: cart\nmesh: {{host: '{host}'}}", where="pool.yaml")
