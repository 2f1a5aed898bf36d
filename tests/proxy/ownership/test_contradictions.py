"""When it is told that a member answers although others hold it for gone: if they do, and if it lasts."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership import takeovers
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.takeovers import LASTING_AFTER, Contradictions, Takeovers
from understudy.proxy.peers.peer_protocol import ProbeResult
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.state import At

ME, OTHER = "b", ("a", "a1")


class Answers:
    """Peers that always answer."""

    async def probe(self, *_: object, **__: object) -> ProbeResult:
        return ProbeResult.ALIVE


def taker(table: Table, *, registered: bool = True) -> Takeovers:
    """A member that is asked to take over from one that lives and answers."""
    pool, nothing = PoolView(MemberIdentity(ME, "b1", PoolKeys("cart"))), cast("Any", None)
    pool.state.table = At(table, 9)
    pool.state.owners = {0: At(Owner(*OTHER, 1), 5)}
    pool.state.members["a"] = At(Member(*OTHER, "h:1", "h:2", MemberState.UP), 3)
    pool.remember("a")
    if not registered:
        del pool.state.members["a"]
    return Takeovers(
        pool,
        nothing,
        nothing,
        cast("Any", Answers()),
        nothing,
        claiming=asyncio.Lock(),
        contact=EtcdContact(),
        drain=DrainState(pool),
        updates=nothing,
        recorder=nothing,
    )


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(takeovers, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


async def told(taker: Takeovers, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture, seconds: float) -> list[str]:
    """What is logged while the takeover is asked for every 0.6 s, for so long."""
    end = clock.seconds + seconds
    with caplog.at_level(logging.WARNING):
        while clock.seconds < end:
            await taker.of_lost(*OTHER, [0])
            clock.seconds += 0.6
    return [record.getMessage() for record in caplog.records]


REBALANCED = Table(2, ((ME, "c"),))
LOST = Table(2, ((ME, "c"),), {"a": Lost("a1", "silent", "", 1.0)})


async def test_an_ordinary_rebalance_is_no_contradiction(clock, caplog):
    assert await told(taker(REBALANCED), clock, caplog, 60) == []


async def test_a_passing_moment_is_not_told(clock, caplog):
    one = taker(LOST)
    assert await told(one, clock, caplog, LASTING_AFTER - 1) == []
    clock.seconds += LASTING_AFTER
    assert await told(one, clock, caplog, LASTING_AFTER - 1) == []


@pytest.mark.parametrize(
    ("taking", "said"),
    [
        (taker(LOST), "the control servers say a is lost"),
        (taker(REBALANCED, registered=False), "the record of a is gone from etcd"),
    ],
)
async def test_what_lasts_is_told_once(clock, caplog, taking, said):
    assert await told(taking, clock, caplog, 30) == [f"{said}, but it has answered for 3 s: no takeover"]


def test_each_process_has_its_own_time():
    one = Contradictions()
    steps = [one.lasts(who, now) for now in (0.0, 1.5, 3.1) for who in (OTHER, ("a", f"a{now}"))]
    assert steps == [False, False, False, False, True, False]
