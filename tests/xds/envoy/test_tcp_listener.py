"""The listener and the clusters of a TCP pool: which slot an address is led to, and what a new table changes."""

import math
from typing import Any

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import ProxyProtocolConfigVersion
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.clusters.aggregate.v3 import ClusterConfig
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy
from envoy_data_plane.envoy.extensions.matching.input_matchers.consistent_hashing.v3 import ConsistentHashing
from envoy_data_plane.envoy.extensions.transport_sockets.proxy_protocol.v3 import ProxyProtocolUpstreamTransport
from envoy_data_plane.google.protobuf import StringValue
from envoy_data_plane.xds.type.matcher.v3 import Matcher
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from tests.harness.examples import examples
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.listener import listener_name
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES, build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.envoy.tcp_listener import TcpSettings, tcp_listener, tcp_settings
from understudy.xds.publishing.listener_groups import ListenerGroups
from understudy.xds.server import types
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.references import read_references

MEMBERS = {f"notes-{number}": Endpoint("127.0.0.1", 8000 + number) for number in range(1, 5)}
ORDERS = st.permutations(sorted(MEMBERS)).map(lambda names: tuple(names[:3]))
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


def spec(**more: Any) -> PoolSpec:
    return PoolSpec(pool="notes", protocol="tcp", **more)


def terms(slots: int = 256, **more: Any) -> TcpSettings:
    found = tcp_settings(spec(slots=slots, **more))
    assert found is not None
    return found


def made(slots: int) -> Listener:
    return Listener.parse(tcp_listener("notes", "127.0.0.1", 9000, terms(slots)))


def led_to(found: Listener, address: str) -> tuple[str, int]:
    """The chain that the matcher names for an address, as Envoy reads it, and how many comparisons that took."""
    matcher: Matcher | None = found.filter_chain_matcher
    comparisons = 0
    while True:
        assert matcher is not None
        on_match = matcher.on_no_match
        if matcher.matcher_list:
            (only,) = matcher.matcher_list.matchers
            comparisons += 1
            single = only.predicate.single_predicate
            assert single.input.typed_config.type_url.endswith(".SourceIPInput")
            rule = ConsistentHashing.parse(single.custom_match.typed_config.value)
            assert rule.seed == 0
            if xxh64_intdigest(address.encode()) % rule.modulo >= rule.threshold:
                on_match = only.on_match
        assert on_match is not None
        if on_match.action:
            return StringValue.parse(on_match.action.typed_config.value).value, comparisons
        matcher = on_match.matcher


@settings(max_examples=examples(30))
@given(addresses=st.lists(ADDRESSES, min_size=1), slots=st.integers(1, 70))
def test_an_address_is_led_to_the_slot_that_its_sidecar_computes(addresses: list[str], slots: int):
    found = made(slots)
    for address in addresses:
        chain, comparisons = led_to(found, address)
        assert chain == f"slot/{slot_of(address, slots)}"
        assert comparisons <= math.ceil(math.log2(slots))


@pytest.mark.parametrize("slots", [1, 2, 3, 256])
def test_every_slot_has_a_chain_that_leads_to_its_own_cluster(slots: int):
    chains = made(slots).filter_chains
    led = {chain.name: TcpProxy.parse(chain.filters[0].typed_config.value).cluster for chain in chains}
    assert led == {f"slot/{slot}": f"notes/slot/{slot}" for slot in range(slots)}


@given(before=st.lists(ORDERS, min_size=8, max_size=8), after=ORDERS, slot=st.integers(0, 7))
def test_a_slot_that_moves_changes_its_own_cluster_and_nothing_else(before: list[Any], after: Any, slot: int):
    orders = [*before[:slot], after, *before[slot + 1 :]]
    first, second = (build(RoutingView(spec(slots=8), MEMBERS, one)) for one in (before, orders))
    changed = {name for name, value in second[CLUSTER].items() if first[CLUSTER].get(name) != value}
    assert changed == ({f"notes/slot/{slot}"} if after != before[slot] else set())
    assert first[CLUSTER].keys() == second[CLUSTER].keys()
    assert first[ENDPOINTS] == second[ENDPOINTS]
    assert first[ROUTES] == {}


@given(orders=st.one_of(st.just([]), st.lists(ORDERS, min_size=8, max_size=8)))
def test_whatever_the_listener_points_at_is_there_before_the_first_table_too(orders: list[Any]):
    clusters = build(RoutingView(spec(slots=8), MEMBERS, orders))[CLUSTER]
    found = read_references(types.LISTENER, "notes/listener", tcp_listener("notes", "127.0.0.1", 9000, terms(8)))
    assert found.clusters == {f"notes/slot/{slot}" for slot in range(8)}
    for name in found.clusters:
        assert read_references(CLUSTER, name, clusters[name]).clusters <= clusters.keys()


def test_a_slots_cluster_tries_its_members_in_order_and_without_any_all_of_them():
    orders = [("notes-2", "notes-1", "gone"), ()]
    clusters = build(RoutingView(spec(slots=2), MEMBERS, orders))[CLUSTER]

    def tried(slot: int) -> list[str]:
        one = Cluster.parse(clusters[f"notes/slot/{slot}"])
        assert one.cluster_type is not None
        return ClusterConfig.parse(one.cluster_type.typed_config.value).clusters

    assert tried(0) == ["notes/member/notes-2", "notes/member/notes-1"]
    assert tried(1) == ["notes/any"]


def member_cluster(**tcp: Any) -> Cluster:
    view = RoutingView(spec(slots=1, tcp=tcp), MEMBERS, [])
    return Cluster.parse(build(view)[CLUSTER]["notes/member/notes-1"])


@pytest.mark.parametrize(
    ("said", "version"), [("v1", ProxyProtocolConfigVersion.V1), ("v2", ProxyProtocolConfigVersion.V2)]
)
def test_the_application_is_told_the_clients_address_and_the_health_port_is_not(said: str, version: Any):
    cluster = member_cluster(send_proxy_protocol=said)
    assert cluster.transport_socket is not None
    told = ProxyProtocolUpstreamTransport.parse(cluster.transport_socket.typed_config.value)
    assert told.config.version == version
    (match,) = cluster.transport_socket_matches
    assert match.transport_socket.name == "envoy.transport_sockets.raw_buffer"
    assert [check.transport_socket_match_criteria for check in cluster.health_checks] == [match.match]


def test_without_a_proxy_header_connections_are_as_they_come_and_still_closed_when_checks_fail():
    cluster = member_cluster(send_proxy_protocol="none")
    assert cluster.transport_socket is None
    assert cluster.close_connections_on_host_health_failure


def test_there_are_enough_tries_for_all_members_but_one_to_be_dead():
    assert terms(copies=3, retries={"attempts": 2}, outliers={"failures": 4}).attempts == 1 + 2 + 4 * 2


async def test_a_listener_follows_the_spec_and_rests_while_it_stays():
    cache = ResourceCache()
    fronts = ListenerGroups(cache, "notes")

    async def publish(wanted: PoolSpec) -> bytes:
        await cache.set_all(build(RoutingView(wanted, MEMBERS, [])))
        await fronts.apply_spec(wanted)
        return cache.snapshot("127.0.0.1:9000").of(types.LISTENER).resources[listener_name("notes")].packed

    await fronts.apply_spec(spec())
    await fronts.set_listener("127.0.0.1:9000")
    first = await publish(spec())
    again = await publish(spec(session_ttl=60))
    other = await publish(spec(tcp={"accept_proxy_protocol": True}))
    assert first == again
    assert b"listener.proxy_protocol" not in first
    assert b"listener.proxy_protocol" in other
