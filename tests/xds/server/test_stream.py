"""The order in which one stream serves its types, on a clock that the test turns."""

import pytest

from tests.xds.server.dialogue import BOTH, CDS, EDS, LDS, RDS, SECOND, Dialogue, a_pool, a_settled_client
from tests.xds.server.made import cluster, listener
from understudy.xds.server.responses import ConfigStatus
from understudy.xds.server.snapshot import Snapshot, TypeSnapshot, encode
from understudy.xds.server.stream import UNNAMED, StreamState
from understudy.xds.server.stream_config import EncodedResponse, RequestRefused, StreamTimeouts, Variant
from understudy.xds.server.wire import (
    RESOURCE_TYPE,
    SCHEMA,
    SOTW_TTL_FEATURE,
    TTL_FEATURE,
    WRAPPER_FEATURE,
    DeltaDiscoveryResponse,
    DiscoveryResponse,
    Node,
    Request,
)


@BOTH
def test_rule_01_a_first_request_without_a_node_is_refused_with_a_reason(variant: Variant):
    with pytest.raises(RequestRefused, match="node"):
        StreamState(variant, prefix="").introduce(Request(CDS))


@BOTH
def test_rule_01_nodes_without_an_id_are_served_and_are_strangers_to_each_other(variant: Variant):
    one, other = StreamState(variant, prefix="a1-0-"), StreamState(variant, prefix="a1-1-")
    for stream_state in (one, other):
        assert stream_state.introduce(Request(CDS, Node(""))).id == ""
    assert one.identity == f"{UNNAMED}a1-0"
    assert other.identity == f"{UNNAMED}a1-1"


@BOTH
def test_rule_01_a_request_without_type_url_is_refused_on_an_aggregated_stream_only(variant: Variant):
    with pytest.raises(RequestRefused, match="type_url"):
        StreamState(variant, prefix="").on_request(Request(""), 0)
    only = StreamState(variant, prefix="", type_url=EDS)
    assert only.on_request(Request("", Node("n")), 0)[0] == EDS
    with pytest.raises(RequestRefused, match=CDS):
        only.on_request(Request(CDS), 0)


@BOTH
def test_rule_16_answers_that_are_empty_bear_the_type_that_was_asked_for(variant: Variant):
    dialogue = Dialogue(variant)
    for type_url in (CDS, LDS):
        dialogue.ask(type_url)
        outgoing = dialogue.stream_state.next(0)
        kind = DeltaDiscoveryResponse if variant is Variant.DELTA else DiscoveryResponse
        assert kind.FromString(outgoing.data).type_url == outgoing.type_url == type_url


@BOTH
def test_rule_11_a_type_that_was_never_asked_for_is_never_sent(variant: Variant):
    dialogue = Dialogue(variant)
    dialogue.content(a_pool("a"))
    dialogue.ask(RDS, "r")
    assert dialogue.said() == ["RDS r"]
    dialogue.content(a_pool("b"))
    dialogue.later(60)
    assert dialogue.said() == ["RDS r"]


@BOTH
def test_rule_18_clusters_then_endpoints_then_listeners_then_routes_whatever_was_asked_first(variant: Variant):
    dialogue = Dialogue(variant)
    dialogue.content(a_pool("a"))
    dialogue.ask(RDS, "r")
    dialogue.ask(LDS)
    dialogue.ask(EDS, "a")
    dialogue.ask(CDS)
    assert dialogue.said() == ["CDS a", "EDS a", "LDS l", "RDS r"]


@BOTH
def test_rule_18_a_route_waits_until_the_new_cluster_it_names_is_acknowledged(variant: Variant):
    dialogue = a_settled_client(variant, "a")
    dialogue.content(a_pool("a", "b", to="b"))
    assert dialogue.said()[0].startswith("CDS")
    assert dialogue.said() == []
    assert dialogue.stream_state.status(next(iter(dialogue.stream_state.subscriptions))) is ConfigStatus.STALE

    dialogue.ask(EDS, "a", "b")
    assert dialogue.said() == ["EDS b"]
    dialogue.acknowledge(EDS)
    assert dialogue.said() == []
    dialogue.acknowledge(CDS)
    assert dialogue.said() == ["RDS r"]


@BOTH
def test_rule_18_a_route_does_not_wait_longer_than_the_limit_for_a_cluster_to_warm(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(warm_timeout=3))
    dialogue.content(a_pool("a", "b", to="b"))
    dialogue.said()
    dialogue.later(2.9)
    assert dialogue.said() == []
    assert dialogue.stream_state.wake_ns == 3 * SECOND
    dialogue.later(0.1)
    assert dialogue.said() == ["RDS r"]


@BOTH
def test_rule_18_no_route_goes_while_its_cluster_itself_still_waits(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(ack_wait=1, warm_timeout=0))
    dialogue.content(a_pool("a", mark="x"))
    assert dialogue.said()[0] == "CDS a"
    dialogue.content(a_pool("a", "b", to="b", mark="x"))
    assert [one for one in dialogue.said() if not one.startswith("EDS")] == []
    dialogue.later(1)
    assert [one.split()[0] for one in dialogue.said()] == ["CDS", "RDS"]


@BOTH
def test_rule_18_routes_to_a_refused_cluster_are_kept_back_and_others_go(variant: Variant):
    dialogue = a_settled_client(variant, "a", "c")
    dialogue.content(a_pool("a", "b", "c", to="b"))
    dialogue.said()
    dialogue.acknowledge(CDS, error="cluster b: no good")
    dialogue.later(600)
    assert dialogue.said() == []
    standings = {one.type_url: dialogue.stream_state.status(one) for one in dialogue.stream_state.subscriptions}
    assert (standings[CDS], standings[RDS]) == (ConfigStatus.ERROR, ConfigStatus.STALE)

    dialogue.content(a_pool("a", "b", "c", to="c"))
    assert dialogue.said() == ["RDS r"]


@BOTH
def test_rule_19_a_removal_waits_for_the_routes_to_be_acknowledged(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b")
    dialogue.content(a_pool("b"))
    assert dialogue.said() == ["RDS r"]
    dialogue.later(1)
    assert dialogue.said() == []
    dialogue.acknowledge(RDS)
    sotw, delta = ["CDS b"], ["CDS -a", "EDS -a"]
    assert dialogue.said() == (sotw if variant is Variant.SOTW else delta)


@BOTH
def test_rule_19_a_removal_waits_no_longer_than_the_limit(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b", timeouts=StreamTimeouts(removal_timeout=7))
    dialogue.content(a_pool("b"))
    dialogue.said()
    dialogue.later(6.9)
    assert dialogue.said() == []
    dialogue.later(0.1)
    assert dialogue.said()[0] == ("CDS b" if variant is Variant.SOTW else "CDS -a")


@BOTH
def test_rule_19_a_removal_outlasts_the_requests_that_were_routed_before_the_acknowledgement(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b", timeouts=StreamTimeouts(removal_timeout=60, removal_linger=20))
    dialogue.content(a_pool("b"))
    dialogue.said()
    dialogue.acknowledge(RDS)
    assert dialogue.said() == []
    dialogue.later(19.9)
    assert dialogue.said() == []
    dialogue.later(0.1)
    assert dialogue.said()[0] == ("CDS b" if variant is Variant.SOTW else "CDS -a")


@BOTH
def test_rule_19_a_node_that_refuses_the_new_routes_keeps_what_its_old_ones_use(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b", timeouts=StreamTimeouts(removal_timeout=7))
    dialogue.content(a_pool("b"))
    dialogue.said()
    dialogue.acknowledge(RDS, error="no")
    dialogue.later(600)
    assert dialogue.said() == []


@BOTH
def test_rule_19_what_is_to_be_removed_comes_along_while_other_clusters_change(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b")
    dialogue.content(a_pool("b", mark="x"))
    assert dialogue.said()[0] == ("CDS a b" if variant is Variant.SOTW else "CDS b")
    dialogue.acknowledge(CDS, RDS)
    assert dialogue.said()[0] == ("CDS b" if variant is Variant.SOTW else "CDS -a")


@BOTH
def test_rule_19_an_unused_cluster_is_removed_at_once(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b")
    dialogue.content(a_pool("a"))
    assert dialogue.said()[0] == ("CDS a" if variant is Variant.SOTW else "CDS -b")


def test_rule_19_a_delta_client_that_comes_again_keeps_old_clusters_until_its_routes_are_new():
    old = a_pool("a")
    dialogue = Dialogue(Variant.DELTA)
    dialogue.content(a_pool("b"))
    for kind in (CDS, LDS, RDS):
        held = {name: one.version for name, one in old[kind].items()}
        names = ("r",) if kind == RDS else ()
        dialogue.names[kind] = names
        dialogue.stream_state.on_request(Request(kind, Node("n"), subscribe=names, held=held), 0)
    assert dialogue.said() == ["CDS b"]
    dialogue.acknowledge(CDS)
    assert dialogue.said() == ["RDS r"]
    dialogue.acknowledge(RDS)
    assert dialogue.said() == ["CDS -a"]


def test_rule_19_a_name_kept_only_by_the_client_is_never_sent_without_content():
    dialogue = Dialogue(Variant.DELTA)
    dialogue.content(a_pool("b"))
    dialogue.stream_state.on_request(Request(CDS, Node("n"), held={"a": "old"}), 0)
    dialogue.stream_state.on_request(Request(RDS, Node("n"), subscribe=("r",), held={"r": "old"}), 0)
    dialogue.names[CDS] = ()
    assert dialogue.said() == ["CDS b"]
    dialogue.ask(CDS, "a")
    assert dialogue.said() == ["CDS -a"]


@BOTH
def test_rule_20_endpoints_follow_a_changed_cluster_though_their_bytes_are_equal(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b")
    changed = a_pool("a", "b")
    changed[CDS]["a"] = encode(CDS, "a", bytes(cluster("a", mark="x")))
    dialogue.content(changed)
    assert dialogue.said() == ["CDS a b" if variant is Variant.SOTW else "CDS a", "EDS a"]


@BOTH
def test_rule_20_routes_follow_a_replaced_listener_though_their_bytes_are_equal(variant: Variant):
    dialogue = a_settled_client(variant, "a")
    dialogue.content({LDS: {"l": encode(LDS, "l", bytes(listener("l", 81, "r")))}})
    assert dialogue.said() == ["LDS l", "RDS r"]


@BOTH
def test_rule_20_endpoints_follow_clusters_that_changed_while_the_client_was_away(variant: Variant):
    content = a_pool("a")
    dialogue = Dialogue(variant)
    dialogue.content(content)
    held = {"a": content[EDS]["a"].version}
    version = TypeSnapshot(content[EDS]).version
    dialogue.stream_state.on_request(Request(CDS, Node("n"), version="old", held={"a": "old"}), 0)
    assert dialogue.said() == ["CDS a"]
    sotw = Request(EDS, names=("a",), version=version)
    delta = Request(EDS, subscribe=("a",), held=held)
    dialogue.stream_state.on_request(sotw if variant is Variant.SOTW else delta, 0)
    assert dialogue.said() == ["EDS a"]


@BOTH
def test_rule_22_endpoints_go_at_once_while_everything_else_waits(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(ack_wait=100, warm_timeout=100))
    dialogue.content(a_pool("a", "b", to="b"))
    dialogue.said()
    for port in (2, 3, 4):
        dialogue.content(a_pool("a", "b", to="b", port=port))
        assert dialogue.said() == ["EDS a"]


@BOTH
def test_rule_22_a_single_change_goes_at_once_and_a_burst_becomes_one(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(ack_wait=1))
    dialogue.content(a_pool("a", mark="1"))
    assert dialogue.said()[0] == "CDS a"
    for mark in "2345":
        dialogue.content(a_pool("a", mark=mark))
        assert dialogue.said() == []
    dialogue.acknowledge(CDS, EDS)
    assert dialogue.said() == ["CDS a", "EDS a"]


@BOTH
def test_rule_30_a_server_that_may_be_behind_sends_nothing_to_a_client_with_other_versions(variant: Variant):
    dialogue = Dialogue(variant)
    dialogue.stream_state.fresh = False
    dialogue.content(a_pool("a"))
    dialogue.stream_state.on_request(Request(CDS, Node("n"), version="other", held={"a": "other"}), 0)
    dialogue.ask(RDS, "r")
    assert dialogue.said() == ["RDS r"]
    assert dialogue.stream_state.needs_freshness
    dialogue.content(a_pool("b"))
    assert [one for one in dialogue.said() if one.startswith("CDS")] == []
    dialogue.stream_state.fresh = True
    assert dialogue.said()[0].startswith("CDS b")


@BOTH
def test_limits_on_names_and_types_are_told_as_exhausted(variant: Variant):
    dialogue = Dialogue(variant)
    for number in range(64):
        dialogue.ask(f"type.googleapis.com/t{number}", "a")
    with pytest.raises(RequestRefused, match="types") as refused:
        dialogue.ask("type.googleapis.com/one-more", "a")
    assert refused.value.exhausted


def a_client_with_a_ttl(variant: Variant, *features: str) -> StreamState:
    stream_state = StreamState(variant, prefix="n")
    request = Request(CDS, Node("front", features=frozenset(features)))
    stream_state.introduce(request)
    stream_state.offer(Snapshot({CDS: TypeSnapshot({"a": encode(CDS, "a", bytes(cluster("a")), ttl=4)})}))
    stream_state.on_request(request, 0)
    return stream_state


def wrapped(variant: Variant, outgoing: EncodedResponse):
    if variant is Variant.DELTA:
        (resource,) = DeltaDiscoveryResponse.FromString(outgoing.data).resources
        return resource
    (packed,) = DiscoveryResponse.FromString(outgoing.data).resources
    assert packed.type_url == RESOURCE_TYPE
    return SCHEMA.message("envoy.service.discovery.v3.Resource").FromString(packed.value)


TTL_FEATURES = [
    pytest.param(Variant.DELTA, (TTL_FEATURE,), id="delta"),
    pytest.param(Variant.SOTW, (SOTW_TTL_FEATURE,), id="sotw"),
    pytest.param(Variant.SOTW, (TTL_FEATURE, WRAPPER_FEATURE), id="sotw-both"),
]


@pytest.mark.parametrize(("variant", "features"), TTL_FEATURES)
def test_rule_23_a_client_that_supports_it_gets_the_ttl_and_is_kept_alive_without_content(
    variant: Variant, features: tuple[str, ...]
):
    stream_state = a_client_with_a_ttl(variant, *features)
    first = wrapped(variant, stream_state.next(0))
    assert (first.name, first.ttl.seconds, first.resource.type_url) == ("a", 4, CDS)
    assert stream_state.next(0) is None
    assert stream_state.wake_ns == 2 * SECOND
    for beat in (2, 4, 6):
        again = wrapped(variant, stream_state.next(beat * SECOND))
        assert (again.name, again.ttl.seconds, again.HasField("resource")) == ("a", 4, False)
        assert stream_state.next(beat * SECOND + 1) is None


OTHER_FEATURES = [
    pytest.param(Variant.DELTA, (), id="delta-none"),
    pytest.param(Variant.DELTA, (WRAPPER_FEATURE, SOTW_TTL_FEATURE), id="delta-wrapper"),
    pytest.param(Variant.SOTW, (), id="sotw-none"),
    pytest.param(Variant.SOTW, (TTL_FEATURE,), id="sotw-cannot-unwrap"),
    pytest.param(Variant.SOTW, (WRAPPER_FEATURE,), id="sotw-unwraps-only"),
]


@pytest.mark.parametrize(("variant", "features"), OTHER_FEATURES)
def test_rule_23_other_clients_get_the_bare_resource_and_no_heartbeat(variant: Variant, features: tuple[str, ...]):
    stream_state = a_client_with_a_ttl(variant, *features)
    outgoing = stream_state.next(0)
    if variant is Variant.DELTA:
        assert not wrapped(variant, outgoing).HasField("ttl")
    else:
        assert DiscoveryResponse.FromString(outgoing.data).resources[0].type_url == CDS
    assert stream_state.next(3600 * SECOND) is None
    assert stream_state.wake_ns is None
