"""Make before break beyond the first time, and where clients do more than one thing at once."""

import pytest

from tests.xds.server.dialogue import BOTH, CDS, EDS, LDS, RDS, SECOND, Dialogue, a_pool, a_settled_client
from tests.xds.server.made import listener, routes
from understudy.xds.server.order import Ordering
from understudy.xds.server.removal import FOREVER, Dependents, PendingRemoval, follow, kept, never_named
from understudy.xds.server.snapshot import Resource, encode
from understudy.xds.server.stream_config import StreamTimeouts, Variant
from understudy.xds.server.wire import Node, Request


def switched(*clusters: str, route: str, to: str) -> dict[str, dict[str, Resource]]:
    """A pool whose listener takes its routes under another name."""
    content = a_pool(*clusters)
    content[LDS] = {"l": encode(LDS, "l", bytes(listener("l", 80, route)))}
    content[RDS] = {route: encode(RDS, route, bytes(routes(route, to)))}
    return content


def removal(variant: Variant, gone: str, *left: str) -> str:
    return f"CDS -{gone}" if variant is Variant.DELTA else f"CDS {' '.join(left)}"


@BOTH
@pytest.mark.parametrize("limit_passed", [False, True])
def test_rule_19_a_later_removal_waits_as_the_first_one_did(variant: Variant, limit_passed: bool):
    dialogue = a_settled_client(variant, "a", "b", timeouts=StreamTimeouts(removal_timeout=7))
    dialogue.content(a_pool("b"))
    assert dialogue.said() == ["RDS r"]
    if limit_passed:
        dialogue.later(7)
    else:
        dialogue.acknowledge(RDS)
    assert dialogue.said()[0] == removal(variant, "a", "b")
    dialogue.everything_acknowledged()

    dialogue.later(8)
    dialogue.content(a_pool("c"))
    assert dialogue.said()[0] == ("CDS c" if variant is Variant.DELTA else "CDS b c")
    dialogue.ask(EDS, "b", "c")
    assert dialogue.said() == ["EDS c"]
    dialogue.acknowledge(CDS, EDS)
    assert dialogue.said() == ["RDS r"]
    dialogue.later(6.9)
    assert dialogue.said() == []
    dialogue.acknowledge(RDS)
    assert dialogue.said()[0] == removal(variant, "b", "c")


@BOTH
def test_rule_19_a_name_that_came_back_waits_anew_when_it_goes_again(variant: Variant):
    dialogue = a_settled_client(variant, "a", "b", timeouts=StreamTimeouts(removal_timeout=7))
    dialogue.content(a_pool("b"))
    dialogue.said()
    dialogue.later(6)
    dialogue.content(a_pool("a", "b"))
    dialogue.content(a_pool("b", mark="x"))
    dialogue.said()
    dialogue.later(2)
    assert dialogue.said() == []
    dialogue.later(5)
    assert dialogue.said() != []


def test_rule_19_each_name_has_its_own_limit():
    dialogue = a_settled_client(Variant.DELTA, "a", "b", "c", timeouts=StreamTimeouts(removal_timeout=7))
    dialogue.content(a_pool("b", "c"))
    assert dialogue.said() == ["RDS r"]
    dialogue.later(4)
    dialogue.content(a_pool("c"))
    assert dialogue.said() == ["RDS r"]
    dialogue.later(3)
    assert dialogue.said() == ["CDS -a", "EDS -a"]
    dialogue.later(4)
    assert dialogue.said() == ["CDS -b", "EDS -b"]


@BOTH
def test_rule_18_a_listener_that_names_a_new_route_waits_for_the_cluster_behind_it(variant: Variant):
    dialogue = a_settled_client(variant, "a")
    dialogue.content(switched("b", route="r2", to="b"))
    assert dialogue.said() == ["CDS b" if variant is Variant.DELTA else "CDS a b"]
    dialogue.ask(EDS, "a", "b")
    assert dialogue.said() == ["EDS b"]
    dialogue.acknowledge(EDS)
    assert dialogue.said() == []
    dialogue.acknowledge(CDS)
    assert dialogue.said() == ["LDS l"]

    # Envoy acknowledges a listener at once and serves by the old one until it has the new routes.
    dialogue.acknowledge(LDS)
    assert [one for one in dialogue.said() if one.startswith("CDS")] == []
    dialogue.ask(RDS, "r", "r2")
    assert dialogue.said() == ["RDS r2"]
    assert dialogue.said() == []
    dialogue.acknowledge(RDS)
    if variant is Variant.DELTA:
        assert dialogue.said() == ["RDS -r"]
        dialogue.acknowledge(RDS)
    assert dialogue.said()[0] == removal(variant, "a", "b")


@BOTH
def test_rule_18_a_listener_does_not_wait_longer_than_the_limit_for_a_cluster_to_warm(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(warm_timeout=3))
    dialogue.content(switched("a", "b", route="r2", to="b"))
    dialogue.said()
    dialogue.later(2.9)
    assert dialogue.said() == []
    dialogue.later(0.1)
    assert dialogue.said() == ["LDS l"]


@BOTH
def test_rule_18_a_route_that_is_asked_for_waits_for_a_cluster_that_changed_meanwhile(variant: Variant):
    dialogue = a_settled_client(variant, "a")
    dialogue.content(switched("a", route="r2", to="a"))
    assert dialogue.said() == ["LDS l"]
    dialogue.content(switched("a", "b", route="r2", to="b"))
    assert dialogue.said() == ["CDS b" if variant is Variant.DELTA else "CDS a b"]
    dialogue.ask(RDS, "r", "r2")
    assert dialogue.said() == []
    dialogue.acknowledge(CDS)
    assert dialogue.said() == ["RDS r2"]


@BOTH
def test_rule_18_a_cluster_that_came_and_went_before_it_was_named_is_removed_at_once(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(removal_timeout=60, removal_linger=60))
    dialogue.content(a_pool("a", "b", to="b"))
    assert dialogue.said() == ["CDS b" if variant is Variant.DELTA else "CDS a b"]
    dialogue.content(a_pool("a", "c", to="c"))
    dialogue.later(0.25)
    # A client that waits for the endpoints of b acknowledges nothing as long as it has b.
    assert dialogue.said() == ["CDS c -b" if variant is Variant.DELTA else "CDS a c"]
    dialogue.acknowledge(CDS)
    assert not dialogue.stream_state.unnamed
    assert dialogue.said() == ["RDS r"]


@BOTH
def test_rule_20_a_cluster_that_has_to_stay_keeps_its_endpoints_for_a_client_that_asks_later(variant: Variant):
    dialogue = a_settled_client(variant, "a", timeouts=StreamTimeouts(warm_timeout=3, removal_timeout=60))
    dialogue.content(a_pool("a", "b", to="b"))
    dialogue.said()
    dialogue.later(3)
    assert dialogue.said() == ["RDS r"]
    dialogue.before |= {one.packed: "b" for kind in (CDS, EDS) for one in a_pool("b")[kind].values()}
    dialogue.content(a_pool("a", "c", to="c"))
    dialogue.later(0.25)
    assert dialogue.said() == ["CDS c" if variant is Variant.DELTA else "CDS a b c"]
    dialogue.ask(EDS, "a", "b")
    assert dialogue.said() == ["EDS b"]


def two_streams_of_one_id(timeouts: StreamTimeouts) -> tuple[Dialogue, Dialogue]:
    one, other = Dialogue(Variant.DELTA, timeouts), Dialogue(Variant.DELTA, timeouts)
    everybody = (one.stream_state, other.stream_state)
    for dialogue in (one, other):
        dialogue.stream_state._siblings = lambda me: tuple(each for each in everybody if each is not me)
        dialogue.content(a_pool("a", "b"))
    return one, other


def test_a_client_that_does_not_read_holds_another_one_of_its_id_up_for_a_limited_time():
    one, other = two_streams_of_one_id(StreamTimeouts(sibling_timeout=30))
    other.ask(CDS)
    one.ask(RDS, "r")
    for dialogue in (other, one):
        dialogue.said()
        dialogue.everything_acknowledged()
    for dialogue in (one, other):
        dialogue.content(a_pool("a", "b", "c", to="c"))
    assert one.said() == []
    assert one.stream_state.wake_ns == 30 * SECOND
    one.later(29.9)
    assert one.said() == []
    one.later(0.1)
    assert one.said() == ["RDS r"]


def test_a_client_that_refuses_routes_holds_another_one_of_its_id_up_for_a_limited_time():
    one, other = two_streams_of_one_id(StreamTimeouts(removal_timeout=7, sibling_timeout=30))
    one.ask(CDS)
    other.ask(RDS, "r")
    for dialogue in (one, other):
        dialogue.said()
        dialogue.everything_acknowledged()
    for dialogue in (one, other):
        dialogue.content(a_pool("b"))
    assert one.said() == []
    assert other.said() == ["RDS r"]
    other.acknowledge(RDS, error="no")
    one.later(29.9)
    assert one.said() == []
    one.later(0.1)
    assert one.said() == ["CDS -a"]


def test_what_held_a_stream_up_once_does_not_count_the_next_time():
    one, other = two_streams_of_one_id(StreamTimeouts(sibling_timeout=30))
    other.ask(CDS)
    one.ask(RDS, "r")
    for dialogue in (other, one):
        dialogue.said()
        dialogue.everything_acknowledged()
    for to in ("c", "d"):
        for dialogue in (one, other):
            dialogue.content(a_pool("a", "b", to, to=to))
        assert one.said() == []
        one.later(29)
        assert one.said() == []
        for dialogue in (one, other):
            dialogue.content(a_pool("a", "b"))
        assert one.said() == []


# The pure part

NOT_YET, DONE = Dependents(current=False), Dependents(current=True)


def test_a_removal_counts_from_when_the_name_was_to_go_and_lingers_from_when_nothing_uses_it():
    timeouts = StreamTimeouts(removal_timeout=10, removal_linger=5)
    going = follow({}, ["a"], NOT_YET, 100)
    assert going == {"a": PendingRemoval(100)}
    assert kept(going, NOT_YET, timeouts, 100) == ({"a"}, 100 + 15 * SECOND)

    going = follow(going, ["a", "b"], DONE, 200)
    assert going == {"a": PendingRemoval(100, 200), "b": PendingRemoval(200, 200)}
    assert kept(going, NOT_YET, timeouts, 200) == ({"a", "b"}, 200 + 5 * SECOND)
    assert kept(going, NOT_YET, timeouts, 200 + 5 * SECOND) == (frozenset(), FOREVER)


def test_a_name_that_no_longer_has_to_go_is_forgotten():
    assert follow({"a": PendingRemoval(1), "b": PendingRemoval(1)}, ["b"], NOT_YET, 2) == {"b": PendingRemoval(1)}


def test_what_a_client_refuses_keeps_the_names_for_good_and_what_another_stream_refuses_for_a_time():
    going, timeouts = {"a": PendingRemoval(0)}, StreamTimeouts(removal_timeout=10, sibling_timeout=30)
    assert kept(going, Dependents(current=True, refused=True), timeouts, 1000 * SECOND) == ({"a"}, FOREVER)
    assert kept(going, Dependents(current=True, refused_beside=True), timeouts, 0) == ({"a"}, 30 * SECOND)


def test_clusters_are_in_use_when_a_route_names_them_also_by_way_of_others():
    def named(name: str, *clusters: str) -> Resource:
        one = encode("type.googleapis.com/example.Plain", name, name.encode())
        points_at = type(one.points_at)(clusters=frozenset(clusters))
        return Resource(one.name, one.version, one.packed, one.mark, points_at)

    clusters = {"order": named("order", "a", "b"), "a": named("a"), "b": named("b"), "c": named("c")}
    new = frozenset(clusters)
    assert never_named(new, (), clusters) == new
    assert never_named(new, ("order",), clusters) == {"c"}
    assert never_named(frozenset({"b", "c"}), ("order",), clusters) == {"c"}


def test_a_first_answer_is_not_held_back_by_clusters_of_the_same_moment():
    dialogue = Dialogue(Variant.DELTA)
    dialogue.content(a_pool("a"))
    for kind in (RDS, CDS):
        dialogue.stream_state.on_request(Request(kind, Node("n"), subscribe=("r",) if kind == RDS else ()), 0)
    assert dialogue.said() == ["CDS a", "RDS r"]
    assert isinstance(dialogue.stream_state, Ordering)
