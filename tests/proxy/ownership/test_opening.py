"""Opening slots that have become this process's: from its copy, from etcd, or not at all.

``a`` owns the slots and writes; ``b`` gets them by records that the test writes, and opens them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.harness.waiting import stays, until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.ownership import opening
from understudy.proxy.ownership.opening import Gained, SlotOpener
from understudy.statesync.etcd.client import EtcdClient, Unavailable
from understudy.statesync.pool import pool_clock
from understudy.statesync.pool.pool_clock import wall_ms
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import Have, Lead, Part, Stored
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.session import Session

SLOT = slot_of("k", SLOTS)
B = Process("b", "b1")
ALONE = SyncSet(frozenset({B}))


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        yield pool


def opener_of(member: InProcessMember) -> SlotOpener:
    return member.reconciler._opener


async def gained(
    pool: InProcessPool, *, copied: bool, memory: bool = False, slot: int = SLOT, epoch: int = 2
) -> Gained:
    """A slot that is b's by a record in etcd; its sync set is b alone."""
    b, owner = pool["b"], Owner("b", "b1", epoch)
    revision = await pool.client.put(pool.keys.owner(slot), owner.encode())
    b.pool.state.note_owner(slot, owner, revision)
    b.keeper.heard_of(slot, epoch)
    return Gained(b.owned.gain(slot, owner, revision), ALONE._replace(memory=memory), copied)


async def left_by_a(pool: InProcessPool, *order: str) -> InProcessMember:
    """What a wrote to k, with copies at ``order``, before it died."""
    a = await pool.give("a", *order)
    assert (await a.call("PUT", "k", "kept", Idempotency_Key="once")).status == 201
    pool.network.dead.add("a")
    return pool["b"]


def failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, times: int) -> Callable[[], int]:
    """A call of etcd that fails so often before it succeeds; returns how often it was made."""
    calls, real = [], getattr(owner, name)

    async def call(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) <= times:
            raise Unavailable("range", "127.0.0.1:1", "no leader")
        return await real(*args, **options)

    target = opening.LocalCopies if name == "read_requests" else owner
    replaced = (lambda _self, *args: call(*args)) if name == "read_requests" else call
    monkeypatch.setattr(target, name, replaced)
    return lambda: len(calls)


async def test_a_slot_of_which_there_is_a_whole_copy_is_served_from_it_without_etcd(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await left_by_a(pool, "b")
    one = await gained(pool, copied=True)
    reads = failing(monkeypatch, b.copies.replica, "load", 1000)

    await asyncio.wait_for(opener_of(b).open([one]), 20)

    assert b.owned.open_slots() == [SLOT]
    assert SLOT in b.active
    assert (await b.call("GET", "k")).body == b"kept"
    assert reads() == 0


async def test_a_slot_of_which_there_is_no_copy_is_served_from_etcd_with_the_outcomes_of_requests(
    pool: InProcessPool,
) -> None:
    b = await left_by_a(pool)
    await opener_of(b).open([await gained(pool, copied=False)])

    assert b.owned.open_slots() == [SLOT]
    assert (await b.call("GET", "k")).body == b"kept"
    again = await b.call("PUT", "k", "kept", Idempotency_Key="once")
    assert (again.status, again.headers["Understudy-Repeated"]) == (201, "true")


@pytest.mark.parametrize("what", ["load", "read_requests"])
async def test_while_etcd_does_not_answer_the_gate_of_a_slot_that_needs_it_stays_shut_and_others_open(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    b = await left_by_a(pool, "b")
    other = (SLOT + 1) % SLOTS
    here, absent = await gained(pool, copied=True, slot=other), await gained(pool, copied=False)
    monkeypatch.setattr(opening, "LAST_RETRY", opening.FIRST_RETRY)
    tries = failing(monkeypatch, b.copies.replica if what == "load" else b.copies, what, 1000)
    with monkeypatch.context() as patch:
        opened = asyncio.create_task(opener_of(b).open([here, absent]))
        await until(lambda: tries() > 3, what="etcd is asked again and again")
        assert b.owned.open_slots() == [other]
        assert not opened.done()
        patch.undo()
    opened.cancel()
    await asyncio.gather(opened, return_exceptions=True)


@pytest.mark.parametrize("what", ["load", "read_requests"])
async def test_when_etcd_answers_again_the_slot_is_served_with_all_that_it_has(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    b = await left_by_a(pool)
    one = await gained(pool, copied=False)
    tries = failing(monkeypatch, b.copies.replica if what == "load" else b.copies, what, 2)
    await opener_of(b).open([one])
    assert tries() == 3
    assert (await b.call("GET", "k")).body == b"kept"
    assert (await b.call("PUT", "k", "kept", Idempotency_Key="once")).headers["Understudy-Repeated"] == "true"


async def test_a_slot_that_is_lost_while_it_is_read_stays_shut_and_what_was_read_is_not_kept(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await left_by_a(pool)
    one = await gained(pool, copied=False)
    load, reading, go_on = b.copies.replica.load, asyncio.Event(), asyncio.Event()

    async def slow(*args: object) -> None:
        reading.set()
        await go_on.wait()
        await load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(b.copies.replica, "load", slow)
    opened = asyncio.create_task(opener_of(b).open([one]))
    await reading.wait()
    await stays(lambda: not one.owned.open.is_set(), 0.1, "the gate is shut")
    b.owned.lose(SLOT)
    go_on.set()
    await opened

    assert SLOT not in b.active
    assert b.owned.open_slots() == []
    assert not b.copies.replica.is_synced(SLOT)


async def test_a_slot_that_a_later_active_leads_while_it_is_read_is_lost_and_its_new_copy_stays(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later active's frames may be here before the watch brings its owner record."""
    b = await left_by_a(pool)
    one = await gained(pool, copied=False)
    load, version = b.copies.replica.load, version_of(3, 1)

    async def overtaken(*args: object) -> None:
        session = Session("text/plain", b"later", 2**53, 3, version=version)
        value = b.copies.replica.codec.encode(pool.keys.session(SLOT, "k"), session)
        part = Part(SLOT, 3, version, (version,), (Stored("k", version, value),), first=True, last=True)
        answers = b.keeper.take("c", [Lead(SLOT, 3, (version,)), part], 0.0)
        assert answers[-1] == Have(SLOT, 3, version)
        await load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(b.copies.replica, "load", overtaken)
    await opener_of(b).open([one])

    assert SLOT not in b.owned
    assert b.keeper.is_whole(SLOT)
    assert b.copies.replica.session(SLOT, "k").body == b"later"


@pytest.mark.parametrize("copied", [True, False])
async def test_writes_that_only_memory_has_are_never_replaced_by_what_etcd_has(
    pool: InProcessPool, copied: bool
) -> None:
    b = await left_by_a(pool)
    await opener_of(b).open([await gained(pool, copied=copied, memory=True)])
    assert SLOT not in b.owned
    assert SLOT not in b.active
    assert b.copies.replica.copies == 0


async def test_a_copy_that_is_not_whole_is_not_served_and_etcd_is_read_instead(pool: InProcessPool) -> None:
    b = await left_by_a(pool)
    b.keeper.take("a", [Lead(SLOT, 1, (version_of(1, 0),))], 0.0)
    assert not b.keeper.is_whole(SLOT)
    await opener_of(b).open([await gained(pool, copied=True)])
    assert (await b.call("GET", "k")).body == b"kept"
    assert b.keeper.copies == {}


async def test_a_whole_copy_that_may_lack_writes_is_replaced_by_what_etcd_has(pool: InProcessPool) -> None:
    b = await left_by_a(pool)
    version = version_of(1, 0)
    old = Session("text/plain", b"old", 2**53, 1, version=version)
    value = b.copies.replica.codec.encode(pool.keys.session(SLOT, "k"), old)
    stored = tuple(Stored(key, version, value) for key in ("k", "never acknowledged"))
    b.keeper.take(
        "a", [Lead(SLOT, 1, (version,)), Part(SLOT, 1, version, (version,), stored, first=True, last=True)], 0.0
    )
    assert b.keeper.is_whole(SLOT)

    await opener_of(b).open([await gained(pool, copied=False)])

    assert {key: one.body for key, one in b.copies.replica.sessions_of(SLOT).items()} == {"k": b"kept"}


async def test_a_session_that_was_removed_before_etcd_was_set_back_is_removed_again(pool: InProcessPool) -> None:
    b = await left_by_a(pool)
    version = version_of(1, 99)
    part = Part(SLOT, 1, version, (version,), (), first=True, last=True, saved=version)
    b.keeper.take("a", [Lead(SLOT, 1, (version,)), part], 0.0)
    b.keeper.copies[SLOT].nothing_saved(b.copies.replica.versions(SLOT))

    await opener_of(b).open([await gained(pool, copied=True)])

    async def removed() -> bool:
        return await pool.client.get(pool.keys.session(SLOT, "k")) is None

    await until(removed, what="etcd does not have it any more")
    assert (await b.call("GET", "k")).status == 404


async def test_a_process_whose_clock_is_hours_behind_opens_nothing_before_it_has_heard_another_clock(
    pool: InProcessPool,
) -> None:
    b = await left_by_a(pool, "b")
    b.clock.__init__(lambda: wall_ms() - 3 * 3_600_000)  # it has just started
    forwarded = asyncio.create_task(b.call("PUT", "other", "new"))
    takeover = asyncio.create_task(b.takeovers.of_lost("a", "a1", range(SLOTS)))
    await until(lambda: len(b.owned) == SLOTS, what="b has claimed the slots")
    write = asyncio.create_task(b.call("PUT", "k", "new"))
    await stays(lambda: not write.done() and not forwarded.done(), 0.2, "the writes wait")

    for who in ("control-1", "c"):
        b.clock.heard(who, wall_ms(), b.clock.passed(), b.clock.passed())
    assert ((await write).status, (await forwarded).status) == (200, 201)
    await takeover
    assert b.clock.look(alone=False).agreed
    assert (await b.call("GET", "k")).body == b"new"  # it would have ended at once


async def test_a_process_that_hears_no_clock_serves_by_its_own_in_the_end(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await left_by_a(pool, "b")
    monkeypatch.setattr(pool_clock, "COMPARED_WITHIN", 0.2)
    b.clock.__init__()
    assert (await b.call("PUT", "k", "new")).status == 200
    assert not b.clock.time.agreed
