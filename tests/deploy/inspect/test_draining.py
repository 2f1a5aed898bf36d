"""Drains that cannot succeed, or did not: what the command and the status say."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Self

import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.deploy.inspect.draining import SlotsTakenOver, blocked_drains, obstacle, takers
from understudy.deploy.inspect.query import read_pool
from understudy.proxy.ownership.handover import SLOTS_TOGETHER
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.records import FailoverRecord, Intent, Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.state import At, PoolState

NOW = 100.0
OWNED = 4 * SLOTS_TOGETHER
"""Slots of each member: so many that it hands them over one part after the other."""
A_FIRST = ("a", "b")
B_FIRST = ("b", "a")
UP, READY, DRAINING, DOWN = MemberState.UP, MemberState.READY, MemberState.DRAINING, MemberState.DOWN


def pool_of(owners: str, leaving: str = "", leader: str = "c1", **states: MemberState) -> PoolState:
    """A pool whose slots are owned by the members with these one-letter names; operators want some to leave."""
    state = PoolState(PoolKeys("p"), leader=At(leader, 1) if leader else None)
    state.members = {name: At(Member(name, "1", "", "", of_it), 1) for name, of_it in states.items()}
    state.owners = {slot: At(Owner(name, "1", 1), 1) for slot, name in enumerate(owners)}
    state.table = At(Table(1, tuple((name, "b" if name == "a" else "a") for name in owners)), 1)
    state.intents = {name: At(Intent(name), 1) for name in leaving}
    return state


def test_nothing_is_in_the_way_of_a_member_that_others_can_take_over_from() -> None:
    pool = pool_of("aab", leaving="a", a=DRAINING, b=UP)
    assert obstacle(pool, {"a"}, NOW) == ""
    assert blocked_drains(pool, NOW) == []
    assert takers(pool, NOW) == {"b"}


def test_the_last_two_that_are_drained_at_once_are_told_of_each_other() -> None:
    pool = pool_of("aab", leaving="ab", a=DRAINING, b=UP)
    assert obstacle(pool, {"a"}, NOW) == (
        "no other member can take 2 slots (0-1): b is also going out of service ('understudy undrain b' stops that)"
    )
    assert [line.partition(":")[0] for line in blocked_drains(pool, NOW)] == [
        "a cannot hand over its slots",
        "b cannot hand over its slots",
    ]


def test_who_cannot_take_slots_is_named_with_what_is_wrong() -> None:
    pool = pool_of("a", leaving="a", a=DRAINING, b=DOWN, c=DRAINING)
    pool.members["b"] = At(replace(pool.members["b"].record, reason="application does not answer"), 1)
    assert obstacle(pool, {"a"}, NOW) == (
        "no other member can take slot 0: b is DOWN (application does not answer); c is also going out of service"
    )
    assert "there is no other member" in obstacle(pool_of("a", leaving="a", a=DRAINING), {"a"}, NOW)


def test_a_member_that_ended_is_named_while_its_slots_are_still_its_own() -> None:
    gone = pool_of("aab", leaving="a", b=UP)
    assert obstacle(gone, {"a"}, NOW) == (
        "a ended without handing over 2 slots (0-1): other members must take them over"
    )
    lost = pool_of("aab", leaving="a", a=DRAINING, b=UP)
    assert lost.table is not None
    lost.table = At(replace(lost.table.record, lost={"a": Lost("1", "refused", "", 0.0)}), 1)
    assert obstacle(lost, {"a"}, NOW).startswith("a ended")


def test_without_a_control_server_only_those_in_line_can_take_slots() -> None:
    pool = pool_of("aa", leaving="a", leader="", a=DRAINING, c=UP)
    assert obstacle(pool, {"a"}, NOW) == (
        "there is no leading control server, and no standby or backup of 2 slots (0-1) can take over"
    )
    assert obstacle(pool_of("aa", leaving="a", leader="", a=DRAINING, b=UP), {"a"}, NOW) == ""


def test_slots_that_were_taken_over_are_told_from_those_handed_over_and_from_what_was_before() -> None:
    pool = pool_of("bb", leaving="a", a=DRAINING, b=UP)

    def note(key: str, *slots: int, planned: bool = False) -> None:
        record = FailoverRecord(key, "b", "a", "", planned, slots, tuple(1 for _ in slots), 0.0)
        pool.failovers[key] = At(record, 1)

    note("old", 5)
    before = SlotsTakenOver.of(pool, {"a"})
    note("handed over", 1, 2, planned=True)
    assert before.since(pool, {"a"}) == []
    note("old", 5, 7)
    note("new", 3)
    assert before.since(pool, {"a"}) == [3, 7]


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, f"slots: {2 * OWNED}") as pool:
        await pool.start("a", "b")
        await pool.settle(A_FIRST, B_FIRST)
        yield pool


class Command:
    """``understudy drain MEMBER`` as a process, and what it has said."""

    def __init__(self, pool: SidecarPool, member: str, wait: int = 60) -> None:
        self.pool, self.member, self.wait, self.said = pool, member, wait, ""

    async def __aenter__(self) -> Self:
        place = ("--etcd", self.pool.etcd.endpoint, "--pool", self.pool.keys.pool)
        self.process = await asyncio.create_subprocess_exec(
            *forked(
                [sys.executable, "-m", "understudy.deploy.cli", "drain", self.member, "--wait", str(self.wait), *place]
            ),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said += line.decode()

    async def ended(self) -> int:
        await self._reading
        return await self.process.wait()

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()


async def drained_too(pool: SidecarPool, first: str, second: str) -> None:
    """Have ``second`` drained as soon as ``first`` is to be, and have ``first`` go on only then."""
    await until(lambda: pool.client.get(pool.keys.intent(first)), 40, "the command has told the pool")
    await pool.client.put(pool.keys.intent(second), Intent(second).encode())
    pool.members[first].sidecar.signal(signal.SIGCONT)


async def test_two_last_members_drained_at_once_say_what_is_in_the_way_and_go_on_when_it_is_gone(
    pool: SidecarPool,
) -> None:
    pool.members["a"].sidecar.signal(signal.SIGSTOP)
    async with Command(pool, "a") as drain:
        await drained_too(pool, "a", "b")
        await until(lambda: "its slots: no other member can take" in drain.said, 40, "the command shows the obstacle")
        assert "'understudy undrain b' stops that" in drain.said
        await pool.client.delete(pool.keys.intent("b"))
        await until(lambda: "a owns 0 slots" in drain.said, 40, "b has all slots")
        await until(lambda: "still count on a copy at a" in drain.said, 40, "the command says what it waits for")
        assert "a is drained" not in drain.said
        await pool.write_table((("b",),))
        assert await drain.ended() == 0, drain.said
        assert "a is drained" in drain.said
        assert await copies(pool) == {"b"}


async def test_a_drained_member_may_be_killed_because_others_have_its_copies(pool: SidecarPool) -> None:
    await pool.start("c")
    async with Command(pool, "a") as drain:
        await until(lambda: "a owns 0 slots" in drain.said, 40, "b has all slots")
        await pool.write_table((("b", "c"),))
        assert await drain.ended() == 0, drain.said
    assert await copies(pool) == {"b", "c"}


async def copies(pool: SidecarPool) -> set[str]:
    """The members that any sync set names."""
    state, _ = await read_pool(pool.client, pool.keys.pool)
    sets = [agreed_set(at.record, state.sync_sets.get(slot)).members for slot, at in state.owners.items()]
    return {process.member for processes in sets for process in processes}


async def test_a_drain_without_control_server_says_which_copies_are_missing(pool: SidecarPool) -> None:
    async with Command(pool, "a", wait=5) as drain:
        assert await drain.ended() == 1, drain.said
    (last,) = drain.said.splitlines()[-1:]
    assert last.endswith(
        f"after 5 s {2 * OWNED} slots (0-{2 * OWNED - 1}) still count on a copy at a, so do not stop it yet: "
        "there is no leading control server"
    ), drain.said


async def test_a_drain_that_is_over_in_vain_says_why(pool: SidecarPool) -> None:
    await pool.client.put(pool.keys.intent("b"), Intent("b").encode())
    await until(lambda: _state_is(pool, "b", DRAINING), what="b is drained")
    async with Command(pool, "a") as drain:
        assert await drain.ended() == 1
        assert "a is the last member that can serve" in drain.said


async def _state_is(pool: SidecarPool, name: str, state: MemberState) -> bool:
    record = await pool.record(name)
    return record is not None and record.state is state


async def test_a_member_that_is_killed_in_its_drain_is_not_drained(pool: SidecarPool) -> None:
    boot = (await pool.owners())[0].boot
    sidecar = pool.members["a"].sidecar
    sidecar.signal(signal.SIGSTOP)
    async with Command(pool, "a") as drain:
        await until(lambda: f"a owns {OWNED} slots" in drain.said, 40, "the drain has begun")
        pool.kill("a")
        await pool.write_table((("b",),), lost={"a": boot})
        assert await drain.ended() == 1, drain.said
        assert f"a did not hand over {OWNED} slots" in drain.said
        assert "is drained" not in drain.said


async def test_a_drain_that_takes_too_long_names_what_was_in_the_way(pool: SidecarPool) -> None:
    pool.members["a"].sidecar.signal(signal.SIGSTOP)
    async with Command(pool, "a", wait=4) as drain:
        await drained_too(pool, "a", "b")
        assert await drain.ended() == 1, drain.said
        assert "still owns" in drain.said
        assert "no other member can take" in drain.said.splitlines()[-1]
