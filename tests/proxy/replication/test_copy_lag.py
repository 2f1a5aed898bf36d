"""How far a copy is behind: one write at a time is followed, and a time without confirmations counts."""

from understudy.proxy.replication.copy_lag import CopyLag
from understudy.statesync.replication.messages import LoggedWrite, Writes


def writes(slot: int, first: int, number: int) -> Writes:
    """A message with so many writes from version ``first`` on."""
    return Writes(slot, 1, first - 1, first, tuple(LoggedWrite(f"k{one}", b"v") for one in range(number)), 0)


def test_nothing_is_behind_where_nothing_was_written() -> None:
    lag = CopyLag()
    lag.sent(Writes(1, 1, 0, 0, (), 5), 100.0)
    lag.confirmed(1, 5, 101.0)
    assert lag.most(102.0) == (0, 0)


def test_a_write_is_behind_until_the_copy_confirms_it_and_all_that_were_sent_meanwhile() -> None:
    lag = CopyLag()
    lag.sent(writes(1, 1, 2), 100.0)
    lag.sent(writes(2, 7, 3), 100.125)
    lag.confirmed(1, 1, 100.25)  # not all of it
    lag.confirmed(2, 9, 100.375)
    lag.confirmed(1, 2, 100.5)
    assert lag.most(100.5) == (500, 5)
    lag.sent(writes(2, 10, 1), 100.625)
    lag.confirmed(2, 10, 100.75)
    assert lag.most(101.0) == (500, 5)
    assert lag.most(121.0) == (0, 0)


def test_a_copy_that_confirms_nothing_is_further_behind_each_moment() -> None:
    lag = CopyLag()
    lag.sent(writes(1, 1, 1), 100.0)
    lag.sent(writes(1, 2, 4), 102.0)
    assert lag.most(103.0) == (3000, 5)


def test_what_will_not_be_confirmed_is_not_waited_for() -> None:
    lag = CopyLag()
    lag.sent(writes(1, 1, 1), 100.0)
    lag.forget(2)
    assert lag.follows
    lag.forget(1)
    assert not lag.follows
    lag.sent(writes(2, 1, 1), 101.0)
    lag.forget()
    assert lag.most(200.0) == (0, 0)
