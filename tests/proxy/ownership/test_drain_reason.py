"""Why a member is to own nothing: its end, an operator's intent for it, or for its site once the table has it."""

import pytest

from understudy.proxy.ownership.drain_reason import DrainReason, able_to_take, drain_reason
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Intent, Leaving, Member, MemberState, Table
from understudy.statesync.pool.state import At, PoolState

NOW = 1_000.0
DRAINED = DrainReason("drained by an operator", "drain")
OFFLINE = DrainReason("site east is offline", "site east offline")


def pool(*, intent: Intent | None = None, site: Intent | None = None, offline: tuple[str, ...] = ()) -> PoolState:
    state = PoolState(PoolKeys("cart"), table=At(Table(1, offline=offline), 1))
    state.intents = {"a": At(intent, 2)} if intent else {}
    state.sites = {"east": At(site, 2)} if site else {}
    return state


EAST = Intent(site="east")


@pytest.mark.parametrize(
    ("state", "asked", "found"),
    [
        (pool(), {}, None),
        (pool(intent=Intent("a")), {}, DRAINED),
        (pool(intent=Intent("a", NOW)), {}, None),
        (pool(intent=Intent("a", NOW + 0.5)), {}, DrainReason("drained by an operator until 1970-01-01 00:16:40Z")),
        (pool(site=EAST), {}, None),
        (pool(site=EAST), {"overdue": True}, OFFLINE),
        (pool(site=EAST, offline=("east", "north")), {}, OFFLINE),
        (pool(site=EAST, offline=("east",)), {"site": "west"}, None),
        (pool(site=EAST, offline=("east",)), {"site": ""}, None),
        (pool(site=Intent(until=NOW, site="east"), offline=("east",)), {"overdue": True}, None),
        (pool(offline=("east",)), {"overdue": True}, None),
        (pool(intent=Intent("a"), site=EAST, offline=("east",)), {}, DRAINED),
        (pool(site=EAST), {"going_down": True}, DrainReason("going down: handing its slots over", "drain")),
    ],
    ids=[
        "nobody wants it away",
        "drained",
        "drained until now",
        "drained until later",
        "the table does not know of its site yet",
        "no table comes",
        "the table has its site offline",
        "another site is offline",
        "it has no site",
        "its site was offline until now",
        "its site is back and no table has followed yet",
        "drained on a site that is offline",
        "it ends",
    ],
)
def test_a_member_leaves_for_a_reason(state, asked, found):
    rest = {"boot": "1", "site": "east", "going_down": False, "overdue": False, "now": NOW}
    assert drain_reason(state, "a", **(rest | asked)) == found


def test_slots_are_left_to_nobody_who_is_about_to_leave_too():
    state = pool(site=Intent(until=NOW + 1, site="east"))
    for name, site, how in (("a", "east", "UP"), ("b", "west", "READY"), ("c", "", "UP"), ("d", "west", "DOWN")):
        state.members[name] = At(Member(name, "one", "", "", MemberState(how), site=site), 1)
    assert [able_to_take(state, now) for now in (NOW, NOW + 1)] == [{"b", "c"}, {"a", "b", "c"}]


WHY = "predicted: memory 91 % of 512 MiB, full in 20 s"


@pytest.mark.parametrize(
    ("boot", "other", "found"),
    [
        ("1", MemberState.READY, DrainReason(WHY, WHY)),
        ("2", MemberState.READY, None),
        ("1", MemberState.DOWN, None),
    ],
    ids=["the table says that it will fail", "that was another process", "nobody else could serve"],
)
def test_a_member_that_will_fail_leaves_while_another_one_can_serve(boot, other, found):
    table = Table(1, leaving={"a": Leaving("1", WHY)})
    members = {"a": At(Member("a", boot, "x:1", "x:2", MemberState.UP), 1), "b": At(Member("b", "1", "", "", other), 1)}
    state = PoolState(PoolKeys("cart"), table=At(table, 1), members=members)
    rest = {"site": "", "going_down": False, "overdue": False, "now": NOW}
    assert drain_reason(state, "a", boot, **rest) == found
