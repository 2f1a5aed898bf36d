"""Acts at the console: the command that does the same, what it would do, and why it is refused."""

import pytest

from tests.deploy.console.pools import NOW, a_pool, drained, offline
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.acts import Wish, change_of, preview
from understudy.statesync.pool.records import MemberState, Owner, Table
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.statesync.pool.state import At
from understudy.xds.membership.cluster_state import ClusterState


def cluster(state) -> ClusterState:
    """The pool as a control server has it."""
    return ClusterState(
        spec=state.spec.record,
        members={name: at.record for name, at in state.members.items()},
        states=dict.fromkeys(state.members, MemberState.UP),
        registered={name: at.record.boot for name, at in state.members.items()},
        owners={slot: at.record for slot, at in state.owners.items()},
        table=state.table.record,
        deaths={},
        beating=frozenset((name, at.record.boot) for name, at in state.members.items()),
        offline=state.offline(NOW),
    )


def test_a_drain_names_its_command_its_undo_and_where_the_slots_go():
    state = a_pool(slots=9)
    told = preview(state, cluster(state), Wish("drain", "cart-1", "10m", "new 'disk'"), NOW)
    assert told["command"] == "understudy drain cart-1 --for 10m --reason 'new '\"'\"'disk'\"'\"'' --pool cart"
    assert told["undo"] == "understudy undrain cart-1 --pool cart"
    assert told["until"] == NOW + 600
    assert told["effect"][0] == "cart-1 would hand over 3 slots (0, 3, 6). No request fails."
    assert told["effect"][1] == "The next slot table would move 3 slots: 1 to cart-10, 2 to cart-2."


def test_a_site_goes_with_all_its_members():
    state = a_pool(slots=9)
    told = preview(state, cluster(state), Wish("site offline", "east"), NOW)
    assert told["effect"] == [
        "cart-1, cart-10 would hand over 6 slots (0, 2-3, 5-6, 8). No request fails.",
        "The next slot table would move 6 slots: 6 to cart-2.",
    ]


def test_what_a_large_site_would_hand_over_is_said_in_short():
    state = a_pool(slots=256, names=tuple(f"cart-{number}" for number in range(256)))
    told = preview(state, cluster(state), Wish("site offline", "east"), NOW)
    assert told["effect"][0].startswith("cart-0, cart-10, cart-100, ")
    assert "and 108 more members would hand over 128 slots (0, 2, 4, " in told["effect"][0]
    assert told["effect"][0].endswith(", and 108 more ranges of slots). No request fails.")
    assert told["effect"][1].startswith("The next slot table would move 128 slots: 1 to cart-1, 1 to cart-101, ")
    assert all(len(line) < 500 for line in told["effect"])


def test_the_way_back_is_the_other_command():
    state = a_pool()
    drained(state, "cart-1")
    offline(state, "east")
    assert change_of(state, Wish("undrain", "cart-1"), NOW).act.undo == "understudy drain cart-1 --pool cart"
    assert change_of(state, Wish("site online", "east"), NOW).act.what == "site online east"


def test_a_site_that_rests_after_two_losses_can_be_brought_back():
    state = a_pool(slots=8)
    sites = {"east": SiteSpec(weight=50), "west": SiteSpec(weight=50)}
    state.spec = At(state.spec.record.model_copy(update={"sites": sites}), 1)
    orders = (("cart-2", "cart-1"),) * 8
    state.table = At(Table(1, orders, resting={"east": 50}, returned={"east": NOW - 100}), 1)
    for slot in range(8):
        state.owners[slot] = At(Owner("cart-2", state.members["cart-2"].record.boot, 1), 1)
    told = preview(state, cluster(state), Wish("site online", "east"), NOW)
    assert (told["undo"], told["until"]) == ("", 0.0)
    assert told["effect"][-1] == "The next slot table would move 3 slots: 2 to cart-1, 1 to cart-10."
    other = preview(state, cluster(state), Wish("drain", "cart-1"), NOW)
    assert other["effect"][-1] == "The slot table would move no slot."


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish("drain", "cart-9"), "pool cart has no member 'cart-9'; its members are cart-1, cart-10, cart-2"),
        (Wish("undrain", "cart-1"), "cart-1 is not drained"),
        (Wish("undrain", "cart-9"), "pool cart has no member 'cart-9'"),
        (Wish("site offline", "north"), "no member on a site 'north'"),
        (Wish("site online", "east"), "site east is not offline"),
        (Wish("site online", "north"), "no member on a site 'north'"),
    ],
)
def test_a_refusal_says_why(wish, why):
    with pytest.raises(NegativeAnswer, match=why):
        preview(a_pool(), None, wish, NOW)


def test_the_last_that_can_serve_stays():
    state = a_pool(names=("cart-1", "cart-2"))
    drained(state, "cart-2")
    with pytest.raises(NegativeAnswer, match="cart-1 is the last member"):
        change_of(state, Wish("drain", "cart-1"), NOW)
    offline(state, "west")
    with pytest.raises(NegativeAnswer, match="east is the last site"):
        change_of(state, Wish("site offline", "east"), NOW)


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        (Wish("delete", "cart"), "act: one of"),
        (Wish("drain", "cart-1", "soon"), "'soon' is not a duration"),
        (Wish("undrain", "cart-1", "10m"), "is not a duration"),
        (Wish("drain", "cart-1", "0s"), "is not a duration"),
        (Wish("drain", "cart-1", reason="x" * 501), "reason: longer than 500"),
        (Wish("drain", "cart-1", who="x" * 61), "who: longer than 60"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_refused_by_name(wish, fault):
    assert fault in wish.fault()
