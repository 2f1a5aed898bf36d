"""A claim tells whether it belongs to a stop or a start of the pool: the reviewer of failovers leaves those out."""

from types import SimpleNamespace
from typing import Any, cast

from understudy.proxy.ownership.context import MemberContext
from understudy.statesync.pool.records import Member, MemberState

NOTHING = cast("Any", None)


def context(**boots: str) -> MemberContext:
    """A member's context that knows nothing but who is registered."""
    made = MemberContext(*[NOTHING] * 17)
    made.state = cast("Any", SimpleNamespace(members={}))
    register(made, **boots)
    return made


def register(made: MemberContext, **boots: str) -> None:
    for name, boot in boots.items():
        record = Member(name, boot, "127.0.0.1:1", "127.0.0.1:2", MemberState.UP)
        cast("Any", made.state.members)[name] = SimpleNamespace(record=record)
        made.peer(name)


def test_a_process_that_ran_beside_this_one_and_is_gone_is_a_failover() -> None:
    pool = context(a="a1", b="b1")
    del cast("Any", pool.state.members)["b"]
    assert not pool.stop_or_start("b", "b1")


def test_a_process_that_was_replaced_at_once_is_a_failover_too() -> None:
    pool = context(a="a1", b="b1")
    register(pool, b="b2")
    assert not pool.stop_or_start("b", "b1")


def test_a_process_that_was_gone_before_this_one_began_is_none() -> None:
    pool = context(a="a2", b="b2")
    assert pool.stop_or_start("b", "b1"), "of another member"
    assert pool.stop_or_start("a", "a1"), "of this one's own predecessor"


def test_who_is_told_to_end_takes_part_in_no_failover() -> None:
    pool = context(a="a1", b="b1")
    pool.going_down = True
    assert pool.stop_or_start("b", "b1")


def test_members_that_crash_for_ever_fill_no_memory() -> None:
    pool = context(a="a1")
    for number in range(1000):
        register(pool, b=f"b{number}")
    assert not pool.stop_or_start("b", "b999")
    assert len(pool.met["b"]) < 20
