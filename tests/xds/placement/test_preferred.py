"""Preferred members are active while they may have slots; slots move between them and the others by handover only."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.xds.placement import table_rules as rules
from tests.xds.placement.table_rules import candidate
from tests.xds.placement.test_solver import actives, pool
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec_parts import MemberSpec
from understudy.xds.placement.solver import Candidate, decide

EIGHT = [candidate(f"m-{n}", zone="a" if n <= 3 else "b", host=f"h-{n}") for n in range(1, 9)]
IN_A = {"m-1", "m-2", "m-3"}


def owners_by(orders):
    return {slot: order[0] for slot, order in enumerate(orders)}


@pytest.mark.parametrize(
    ("prefer", "preferred"),
    [
        ({"zones": ["a"]}, IN_A),
        ({"members": ["m-8", "gone"]}, {"m-8"}),
        ({"hosts": ["h-4"], "members": ["m-1"]}, {"m-1", "m-4"}),
        ({"sites": ["east"], "zones": ["b"]}, {f"m-{n}" for n in range(4, 9)}),
        ({"zones": ["elsewhere"]}, {one.member for one in EIGHT}),
    ],
)
def test_preferred_members_share_the_active_roles_by_weight(prefer, preferred):
    spec = pool(prefer=prefer, members={"m-1": MemberSpec(weight=3)})

    orders = decide(spec, EIGHT, Table()).orders

    counts, weights = actives(orders), rules.weights_of(spec, EIGHT)
    assert set(counts) == preferred
    total = sum(weights[name] for name in preferred)
    for name in preferred:
        assert abs(counts[name] - rules.even_share(256, weights[name], total)) <= 1
    rules.assert_apart(spec, EIGHT, orders)


def test_slots_go_to_members_with_the_sessions_first_and_to_preferred_ones_by_handover():
    spec = pool(prefer={"zones": ["a"]})
    before = decide(spec, EIGHT, Table()).orders
    alive = [msgspec.structs.replace(one, state=MemberState.LOST) if one.member == "m-1" else one for one in EIGHT]
    owners = {slot: name for slot, name in owners_by(before).items() if name != "m-1"}

    taken = decide(spec, alive, Table(1, before), current=owners).orders
    assert all(new[0] in old[1:] for old, new in zip(before, taken, strict=True) if old[0] == "m-1")
    assert decide(spec, alive, Table(2, taken), current=owners).orders == taken, "nobody has claimed them yet"

    moved = decide(spec, alive, Table(3, taken), current=owners_by(taken))
    assert set(actives(moved.orders)) == {"m-2", "m-3"}
    back = decide(spec, EIGHT, Table(4, moved.orders), current=owners_by(moved.orders))
    assert set(actives(back.orders)) == IN_A


def test_without_a_preferred_member_all_others_share_and_a_move_back_says_why():
    spec = pool(prefer={"zones": ["a"]})
    others = [one for one in EIGHT if one.zone == "b"]
    orders = decide(spec, others, Table()).orders
    assert sorted(actives(orders).values()) == [51, 51, 51, 51, 52]
    back = decide(spec, EIGHT, Table(1, orders), current=owners_by(orders))
    assert set(actives(back.orders)) == IN_A
    assert {move.reason for move in back.moves if move.role == "active"} == {
        f"the spec prefers {name}" for name in IN_A
    }


def test_in_a_line_the_preferred_come_first_and_pre_empt_when_they_are_settled():
    spec = pool(slots=4, mode="active_standby", recovery="prefer_priority", prefer={"zones": ["b"]})
    line = [candidate("m-1", zone="a", priority=1), candidate("m-2", zone="b", priority=9)]
    assert set(actives(decide(spec, line, Table()).orders)) == {"m-2"}
    now = Table(1, (("m-1", "m-2"),) * 4)
    assert set(actives(decide(spec, line, now).orders)) == {"m-1"}
    assert set(actives(decide(spec, line, now, settled={"m-2"}).orders)) == {"m-2"}


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"mode": "active_standby"}, "recovery: prefer_priority"),
        ({"sites": {"east": {"weight": 1}}}, "weights in sites"),
        ({"balance": {"by": "requests"}}, "balances by load"),
        ({"prefer": {}}, "name members, zones, hosts or sites"),
    ],
)
def test_what_contradicts_a_preference_is_refused(settings_, said):
    with pytest.raises(ValueError, match=said):
        pool(**{"prefer": {"zones": ["a"]}, **settings_})


FIELD = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", ""]),
        st.integers(1, 30),
        st.sampled_from([MemberState.UP, MemberState.READY, MemberState.UP, MemberState.LOST, MemberState.DRAINING]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=examples(60), deadline=None)
@given(steps=st.lists(FIELD, min_size=1, max_size=4), slots=st.sampled_from([1, 7, 32]), copies=st.integers(2, 4))
def test_whatever_happens_only_preferred_members_are_active_when_all_slots_are_owned(steps, slots, copies):
    spec = pool(slots, copies=copies, prefer={"zones": ["a"], "members": ["m-7"]})
    orders, owners = (), {}
    for field in steps:
        known = [
            Candidate(f"m-{n}", "", weight, 1, state, zone, f"h-{n}") for n, (zone, weight, state) in enumerate(field)
        ]
        able = {one.member: one for one in known if one.state.may_hold_slots}
        if not able:
            continue
        owners = {slot: name for slot, name in owners.items() if name in able}
        for _ in range(2):  # dead members' slots are claimed first, and then handed over
            orders = decide(spec, known, Table(1, orders), current=owners).orders
            owners = owners_by(orders)
        wanted = {name for name, one in able.items() if one.zone == "a" or name == "m-7"} or able.keys()
        assert set(actives(orders)) <= wanted
        total = sum(able[name].weight for name in wanted)
        for name in wanted:
            assert abs(actives(orders)[name] - rules.even_share(slots, able[name].weight, total)) <= 1
        rules.assert_apart(spec, known, orders)
        assert decide(spec, list(reversed(known)), Table(2, orders), current=owners).moves == ()
