"""A claim tells whether it belongs to a stop or a start of the pool: the reviewer of failovers leaves those out."""

from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.takeovers import is_stop_or_start
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.state import At


def pool_of(**boots: str) -> PoolView:
    """What member a sees: who is registered."""
    pool = PoolView(MemberIdentity("a", "a1", PoolKeys("cart")))
    register(pool, **boots)
    return pool


def register(pool: PoolView, **boots: str) -> None:
    for name, boot in boots.items():
        pool.state.members[name] = At(Member(name, boot, "127.0.0.1:1", "127.0.0.1:2", MemberState.UP), 1)
        pool.remember(name)


def stop_or_start(pool: PoolView, member: str, boot: str, *, going_down: bool = False) -> bool:
    drain = DrainState(pool)
    drain.going_down = going_down
    return is_stop_or_start(pool, drain, member, boot)


def test_a_process_that_ran_beside_this_one_and_is_gone_is_a_failover() -> None:
    pool = pool_of(a="a1", b="b1")
    del pool.state.members["b"]
    assert not stop_or_start(pool, "b", "b1")


def test_a_process_that_was_replaced_at_once_is_a_failover_too() -> None:
    pool = pool_of(a="a1", b="b1")
    register(pool, b="b2")
    assert not stop_or_start(pool, "b", "b1")


def test_a_process_that_was_gone_before_this_one_began_is_none() -> None:
    pool = pool_of(a="a2", b="b2")
    assert stop_or_start(pool, "b", "b1"), "of another member"
    assert stop_or_start(pool, "a", "a1"), "of this one's own predecessor"


def test_who_is_told_to_end_takes_part_in_no_failover() -> None:
    assert stop_or_start(pool_of(a="a1", b="b1"), "b", "b1", going_down=True)


def test_members_that_crash_for_ever_fill_no_memory() -> None:
    pool = pool_of(a="a1")
    for number in range(1000):
        register(pool, b=f"b{number}")
    assert not stop_or_start(pool, "b", "b999")
    assert len(pool._boots["b"]) < 20
