"""Who joins and leaves sync sets, and when: real records in etcd, real streams, and copies by hand."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import view_of
from tests.proxy.ownership.replicated_slots import ALONE, SLOT, TWO, A, B, Hand, committing, copy_with
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.ownership import set_changes
from understudy.proxy.ownership.set_changes import SetChanges
from understudy.proxy.replication.copy_pacing import CopyPacing
from understudy.statesync.etcd.client import EtcdClient, OutcomeUnknown, Unavailable
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.records import Member, MemberState, Owner, SyncRecord, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Replication
from understudy.statesync.pool.state import At
from understudy.statesync.process.ticks import Alarm
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import At as CopyAt
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.request_log import decode_entries

C = Process("c", "c1")
SLOTS = 3
PATIENCE = 10.0
THREE = SyncSet(frozenset({A, B, C}), memory=True)


class Connections:
    """Connections of which only their state is known."""

    def __init__(self) -> None:
        self.refusing: set[Process] = set()
        self.heard: dict[Process, float] = {}
        self.learners: list[tuple[int, Process]] = []

    def refused(self, process: Process) -> bool:
        return process in self.refusing

    def send(self, _slot: int) -> None:
        pass

    def joined(self, slot: int, process: Process) -> None:
        self.learners.append((slot, process))

    def heard_at(self, process: Process) -> float:
        return self.heard.get(process, time.monotonic())

    def state(self, silent_before: float) -> object:
        return frozenset(self.refusing), frozenset(who for who, at in self.heard.items() if at < silent_before)


class Changing(Hand):
    """A member that is active in some slots, with its changes of sets made step by step."""

    def __init__(self, client: EtcdClient, name: str) -> None:
        super().__init__(client, view_of("a", name))
        self.connections = Connections()
        lag = SimpleNamespace(worst=0.0)
        self.changes = SetChanges(
            self.pool,
            client,
            self.owned,
            self.active,
            cast("Any", self.connections),
            self.updates,
            cast("Any", lag),
            HomeWatch(self.pool, cast("Any", None)),
        )
        self.active.on_blocked = self.changes.wake
        self.ask_for("replicas")
        self.order("a", "b")

    def ask_for(self, durability: str, *, spread: Literal["site"] | None = None) -> None:
        """Write the spec."""
        replication = Replication(patience_ms=int(PATIENCE * 1000), checkpoint_ms=60_000, spread=spread)
        spec = PoolSpec(pool=self.keys.pool, slots=SLOTS, durability=cast("Any", durability), replication=replication)
        self.pool.state.spec = At(spec, self._next_revision(self.pool.state.spec))

    def order(self, *members: str) -> None:
        """Write the table."""
        table = Table(1, (members,) * SLOTS)
        self.pool.state.table = At(table, self._next_revision(self.pool.state.table))

    @staticmethod
    def _next_revision(at: At[Any] | None) -> int:
        return at.revision + 1 if at is not None else 1

    async def register(self, *processes: Process, stall: float = 0.0, site: str = "") -> None:
        """Have members registered, here and in etcd."""
        for member, boot in processes:
            record = Member(member, boot, "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, site, stall=stall)
            revision = await self.client.put(self.keys.member(member), record.encode())
            self.pool.state.members[member] = At(record, revision)

    async def step(self) -> None:
        """Look at all slots once, and wait until what is begun has ended."""
        self.changes._begin(self.changes.decisions.proposals())
        await asyncio.gather(*self.changes._tasks)

    def caught_up(self, *processes: Process, slot: int = SLOT) -> None:
        """Processes have everything of a slot."""
        stream = self.streams.streams[slot]
        for process in processes:
            stream.at(process, CopyAt(slot, stream.epoch, stream.last, whole=True))
            stream.has(process, stream.last)
        self.active.progress([slot])

    async def record(self, slot: int = SLOT) -> SyncRecord:
        """The sync record that etcd has."""
        kv = await self.client.get(self.keys.sync_set(slot))
        assert kv is not None
        return SyncRecord.decode(kv.value)

    async def members(self, slot: int = SLOT) -> set[Process]:
        """The set that etcd has; the one here is the same."""
        record = await self.record(slot)
        assert record.sync_set() == self.streams.streams[slot].agreed
        return set(record.members)


@asynccontextmanager
async def changing(client: EtcdClient, name: str) -> AsyncIterator[Changing]:
    hand = Changing(client, name)
    try:
        await hand.register(A, B)
        yield hand
    finally:
        await hand.end()


@pytest_asyncio.fixture
async def hand(client: EtcdClient, pool_name: str) -> AsyncIterator[Changing]:
    async with changing(client, pool_name) as hand:
        yield hand


# -- who joins --


async def test_a_learner_joins_when_it_has_everything_and_not_before(hand: Changing) -> None:
    committing(hand)
    await hand.begin(ALONE)
    hand.caught_up(B)
    write = hand.write("k")
    await write.done

    await hand.step()
    assert await hand.members() == {A}

    hand.confirm()
    await hand.step()
    assert await hand.members() == {A, B}
    assert (await hand.record()).memory


async def test_a_learner_whose_process_has_ended_meanwhile_does_not_join(hand: Changing) -> None:
    await hand.begin(ALONE)
    hand.caught_up(B)
    await hand.client.put(hand.keys.member("b"), Member("b", "b2", "", "", MemberState.UP).encode())
    await hand.step()
    assert await hand.members() == {A}


async def test_a_learner_of_another_boot_than_registered_does_not_join(hand: Changing) -> None:
    await hand.begin(ALONE)
    hand.caught_up(Process("b", "b0"))
    await hand.step()
    assert await hand.members() == {A}


async def test_a_learner_without_a_connection_does_not_join(hand: Changing) -> None:
    await hand.begin(ALONE)
    hand.caught_up(B)
    hand.stream.gone(B)
    await hand.step()
    assert await hand.members() == {A}


# -- who leaves --


def waits_since(hand: Changing, key: str, seconds: float) -> None:
    """A write that b does not confirm, for so long."""
    write = hand.write(key)
    write.at = time.monotonic() - seconds


async def test_who_keeps_a_write_waiting_leaves_after_the_patience(hand: Changing) -> None:
    committing(hand)
    await hand.begin(TWO)
    hand.caught_up(B)
    waits_since(hand, "k", PATIENCE / 2)
    await hand.step()
    assert await hand.members() == {A, B}
    next(iter(hand.active.slots[0].waiting.values())).at -= PATIENCE
    await hand.step()
    assert await hand.members() == {A}
    await until(lambda: not hand.active.slots[0].waiting, 20, "the write is answered")
    assert await hand.stored("k") == "v"


async def test_who_left_for_a_late_write_joins_again_though_nothing_else_changes(hand: Changing) -> None:
    committing(hand)
    await hand.begin(TWO)
    hand.caught_up(B)
    await until(lambda: _looked_at(hand), 20, "the set is as it should be")
    waits_since(hand, "k", 2 * PATIENCE)
    await hand.step()
    assert await hand.members() == {A}
    hand.caught_up(B)
    await until(lambda: _has_joined(hand), 20, "b joins again")


async def _looked_at(hand: Changing) -> bool:
    """Whether the slot has been looked at, and nothing in it has to be changed."""
    await hand.step()
    return hand.active.slots[0].checked is not None


async def _has_joined(hand: Changing) -> bool:
    await hand.step()
    return await hand.members() == {A, B}


async def test_who_is_silent_leaves_though_no_write_waits(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.caught_up(B)
    await hand.step()
    assert await hand.members() == {A, B}
    silent = time.monotonic() - 2 * PATIENCE
    hand.connections.heard[B] = hand.active.slots[0].since = silent
    await hand.step()
    assert await hand.members() == {A}


async def test_who_is_busy_has_more_time(hand: Changing) -> None:
    await hand.register(B, stall=PATIENCE)
    await hand.begin(TWO)
    hand.caught_up(B)
    waits_since(hand, "k", PATIENCE * 1.5)
    await hand.step()
    assert await hand.members() == {A, B}
    next(iter(hand.active.slots[0].waiting.values())).at -= PATIENCE
    await hand.step()
    assert await hand.members() == {A}


async def test_only_who_lacks_the_write_leaves(hand: Changing) -> None:
    await hand.register(C)
    hand.order("a", "b", "c")
    await hand.begin(THREE)
    hand.caught_up(B, C)
    waits_since(hand, "k", 2 * PATIENCE)
    hand.stream.has(C, hand.stream.last)
    await hand.step()
    assert await hand.members() == {A, C}
    assert not hand.active.slots[0].waiting


async def test_who_refuses_connections_leaves_at_once(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.connections.refusing.add(B)
    await hand.step()
    assert await hand.members() == {A}


async def test_who_has_started_again_leaves_at_once(hand: Changing) -> None:
    await hand.begin(TWO)
    await hand.register(Process("b", "b2"))
    await hand.step()
    assert await hand.members() == {A}


async def test_who_needs_a_copy_of_the_slot_leaves_at_once(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.stream.at(B, CopyAt(SLOT, 1, 0, whole=False))
    await hand.step()
    assert await hand.members() == {A}


async def test_who_the_table_does_not_want_leaves_when_another_has_a_copy(hand: Changing) -> None:
    await hand.register(C)
    await hand.begin(TWO)
    hand.caught_up(B)
    hand.order("a", "c")
    await hand.step()
    assert await hand.members() == {A, B}
    hand.caught_up(C)
    await hand.step()
    assert await hand.members() == {A, B, C}
    await hand.step()
    assert await hand.members() == {A, C}


async def test_the_losses_of_a_slot_stay_in_its_record(hand: Changing) -> None:
    await hand.begin(TWO, losses=2)
    hand.connections.refusing.add(B)
    await hand.step()
    assert ((await hand.record()).members, (await hand.record()).losses) == ((A,), 2)


# -- removals that save --


async def test_a_removal_saves_what_was_inherited_and_its_outcomes(hand: Changing) -> None:
    committing(hand)
    copy = copy_with(hand, unsaved=[(1, "k", "old"), (2, "l", "other")], pending=[(3, "k", "new")])
    (new,) = copy.pending
    outcome = b'["request","f",200]'
    copy.pending[0] = new._replace(write=type(new.write)("k", new.write.value, outcome))
    await hand.begin(TWO, copy, epoch=2)
    hand.connections.refusing.add(B)

    async def alone() -> bool:
        await hand.step()
        return await hand.members() == {A}

    await until(alone, 20, "b has left")
    assert (await hand.stored("k"), await hand.stored("l")) == ("new", "other")
    assert hand.stream.saved == version_of(1, 3)
    assert not (await hand.record()).memory
    assert await hand.active.settled(SLOT)
    found = (await hand.client.range(prefix_of(hand))).kvs
    assert [entry.request for kv in found for entry in decode_entries(kv.value)] == ["request"]


def prefix_of(hand: Changing) -> KeyRange:
    return prefix_range(hand.keys.requests)


async def test_what_is_confirmed_while_a_removal_saves_is_saved_afterwards(
    hand: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing(hand)
    await hand.begin(TWO, copy_with(hand, pending=[(1, "k", "inherited")]), epoch=2)
    hand.connections.refusing.add(B)
    sent, go_on = held_up(monkeypatch)
    step = asyncio.create_task(hand.step())
    await sent.wait()
    write = hand.write("k", "newer")
    hand.confirm()
    hand.active.save_now(SLOT)
    assert hand.committer.queued == 0, "the removal is the only save under way"
    assert not write.done.done()
    go_on.set()
    await step
    assert await hand.members() == {A}
    await write.done
    assert (await hand.stored("k"), write.got) == ("newer", "sync")


# -- outcomes --


def held_up(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Changes wait before etcd gets them: an event that one waits, and one that lets it go on."""
    sent, go_on, real = asyncio.Event(), asyncio.Event(), set_changes.retry_txn

    async def retry_txn(*args: Any, **options: Any) -> Any:
        sent.set()
        await go_on.wait()
        return await real(*args, **options)

    monkeypatch.setattr(set_changes, "retry_txn", retry_txn)
    return sent, go_on


async def test_while_the_outcome_of_a_change_is_unknown_a_write_needs_both_sets(
    hand: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hand.register(C)
    hand.order("a", "b", "c")
    await hand.begin(TWO)
    hand.caught_up(B, C)
    sent, go_on = held_up(monkeypatch)
    step = asyncio.create_task(hand.step())
    await sent.wait()
    write = hand.write("k")
    hand.stream.has(B, write.version)
    hand.active.progress([SLOT])
    assert not write.done.done()
    hand.stream.has(C, write.version)
    hand.active.progress([SLOT])
    assert write.got == "replicas"
    go_on.set()
    await step
    assert await hand.members() == {A, B, C}


@pytest.mark.parametrize("applied", [True, False])
async def test_a_change_is_sent_until_its_outcome_is_known(
    hand: Changing, monkeypatch: pytest.MonkeyPatch, *, applied: bool
) -> None:
    """Its outcome is unknown for longer than one try; then etcd is away for a moment."""
    monkeypatch.setattr(set_changes, "OUTCOME_TIMEOUT", 0.0)
    monkeypatch.setattr(set_changes, "RETRY_INTERVAL", 0.0)
    await hand.begin(ALONE)
    hand.caught_up(B)
    calls, real = 0, hand.client.txn
    undecided: list[object] = []

    async def txn(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            if applied:
                await real(*args)
            raise OutcomeUnknown("PUT", "etcd", "no answer")
        undecided.append(hand.stream.change)
        if calls == 2:
            raise Unavailable("GET", "etcd", "away")
        return await real(*args)

    monkeypatch.setattr(hand.client, "txn", txn)
    await hand.step()
    assert await hand.members() == {A, B}
    assert None not in undecided
    assert hand.stream.change is None


async def test_a_change_that_etcd_did_not_get_is_made_later(hand: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_changes, "RETRY_INTERVAL", 0.0)
    await hand.begin(ALONE)
    hand.caught_up(B)

    async def away(*_: object) -> None:
        raise Unavailable("GET", "etcd", "away")

    with monkeypatch.context() as patch:
        patch.setattr(hand.client, "txn", away)
        await hand.step()
    assert (await hand.members(), hand.stream.change) == ({A}, None)
    await hand.step()
    assert await hand.members() == {A, B}


# -- many slots --


async def counted(hand: Changing, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Awaitable[None]]) -> int:
    calls, real = 0, hand.client.txn

    async def txn(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(hand.client, "txn", txn)
        await work()
    return calls


async def test_the_changes_of_many_slots_go_in_one_transaction(hand: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in range(SLOTS):
        await hand.begin(TWO, slot=slot)
    hand.connections.refusing.add(B)
    assert await counted(hand, monkeypatch, hand.step) == 1
    assert [await hand.members(slot) for slot in range(SLOTS)] == [{A}] * SLOTS


async def test_a_slot_that_is_lost_does_not_stop_the_changes_of_others(hand: Changing) -> None:
    for slot in range(SLOTS):
        await hand.begin(TWO, slot=slot)
    await hand.client.put(hand.keys.owner(1), Owner("b", "b1", 2).encode())
    hand.connections.refusing.add(B)
    await hand.step()
    await hand.step()
    assert [await hand.members(slot) for slot in (0, 2)] == [{A}] * 2
    assert hand.owned.slots == (0, 2)
    assert set((await hand.record(1)).members) == {A, B}


async def test_a_frozen_set_stays_as_it_is(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.connections.refusing.add(B)
    hand.changes.frozen.add(SLOT)
    await hand.step()
    assert await hand.members() == {A, B}
    hand.changes.frozen.clear()
    await hand.step()
    assert await hand.members() == {A}


async def test_who_waits_for_a_process_in_sets_is_told_in_which_it_is(hand: Changing) -> None:
    await hand.begin(ALONE)
    await hand.begin(ALONE, slot=1)
    hand.caught_up(B)
    assert await hand.changes.until_in([0, 1], B, 0.0) == set()
    hand.run(hand.changes.run)
    assert await hand.changes.until_in([0], B, 20) == {0}
    assert await hand.changes.until_in([0, 1], B, 0.0) == {0}


# -- memory --


async def test_memory_is_announced_and_taken_back_with_the_spec(hand: Changing) -> None:
    committing(hand)
    await hand.begin(TWO._replace(memory=False))
    hand.caught_up(B)
    await hand.step()
    assert (await hand.record()).memory
    write = hand.write("k")
    hand.confirm()
    assert write.got == "replicas"

    hand.ask_for("sync")
    await hand.step()
    assert (await hand.record()).memory, "etcd lacks an acknowledged write"
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved == write.version, 20, "it is saved")
    await hand.step()
    assert (await hand.record()).sync_set() == SyncSet(frozenset({A, B}))


async def test_with_spread_only_what_two_sites_have_is_acknowledged_from_memory(hand: Changing) -> None:
    hand.ask_for("replicas", spread="site")
    hand.order("a", "b", "c")
    await hand.register(A, B, site="east")
    await hand.register(C, site="west")
    await hand.begin(SyncSet(frozenset({A, B})))
    hand.caught_up(B)
    await hand.step()
    assert not (await hand.record()).memory
    hand.caught_up(C)
    await hand.step()
    assert (await hand.record()).sync_set() == THREE

    hand.connections.refusing.add(C)
    hand.write("k")
    hand.confirm()
    await hand.step()
    assert await hand.members() == {A, B}
    await hand.step()
    committing(hand)
    await until(lambda: hand.stream.saved == hand.stream.last, 20, "what was acknowledged from memory is saved")
    await hand.step()
    assert (await hand.record()).sync_set() == SyncSet(frozenset({A, B}))
    assert hand.write("k", "w").got != "replicas"


async def test_what_a_handover_under_way_brings_is_saved_before_the_end(hand: Changing) -> None:
    committing(hand)
    running = asyncio.create_task(hand.changes.run())
    try:
        with hand.owned.transaction():
            saving = asyncio.create_task(hand.changes.save_all(20.0))
            await asyncio.sleep(0)
            assert not saving.done()
            await hand.begin(TWO)
            hand.caught_up(B)
            write = hand.write("k")
            hand.confirm()
        assert await saving == 0
    finally:
        running.cancel()
    assert await write.done
    assert not (await hand.record()).memory
    assert hand.stream.saved == hand.stream.last


async def test_memory_is_taken_back_while_writes_go_on(hand: Changing) -> None:
    """Whenever the set is looked at, some write is acknowledged that etcd does not have yet."""
    committing(hand)
    await hand.begin(TWO)
    hand.caught_up(B)
    hand.ask_for("sync")
    writes = []
    for number in range(10):
        writes.append(hand.write(f"k{number}", wants="sync"))
        hand.confirm()
        step = asyncio.create_task(hand.step())
        if number:
            await writes[number - 1].done
        await step
    hand.active.save_now(SLOT)

    await until(lambda: hand.stream.saved == hand.stream.last, 20, "all is saved")
    await asyncio.gather(*(write.done for write in writes))
    assert not (await hand.record()).memory


async def test_a_spec_that_changes_its_mind_leaves_writes_in_memory(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.caught_up(B)
    hand.write("k")
    hand.confirm()
    hand.ask_for("sync")
    await hand.step()
    write = hand.write("l")
    hand.confirm()
    assert not write.done.done()
    hand.ask_for("replicas")
    await hand.step()
    assert write.got == "replicas"


# -- how many at a time --


@pytest.fixture
def nothing_unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no change that nothing waits for."""
    monkeypatch.setattr(CopyPacing, "allowed", lambda *_: 0)


@pytest.mark.usefixtures("nothing_unhurried")
async def test_a_dead_process_leaves_at_once_where_a_write_waits_and_later_elsewhere(hand: Changing) -> None:
    committing(hand)
    await hand.begin(TWO)
    await hand.begin(TWO, slot=SLOT + 1)
    hand.connections.refusing.add(B)
    hand.write("k")
    await hand.step()
    assert await hand.members() == {A}
    assert await hand.members(SLOT + 1) == {A, B}


@pytest.mark.usefixtures("nothing_unhurried")
async def test_a_write_in_a_slot_with_a_lost_copy_wakes_the_changes(hand: Changing) -> None:
    await hand.begin(TWO)
    hand.caught_up(B)
    hand.changes._wake = Alarm()
    hand.write("k")
    assert not hand.changes._wake.is_set()
    hand.stream.gone(B)
    hand.write("l")
    assert hand.changes._wake.is_set()


@pytest.mark.usefixtures("nothing_unhurried")
async def test_the_second_copy_joins_at_once_and_the_third_later(hand: Changing) -> None:
    await hand.register(C)
    hand.order("a", "b", "c")
    await hand.begin(ALONE)
    hand.caught_up(B, C)
    await hand.step()
    assert len(await hand.members()) == 2
    await hand.step()
    assert len(await hand.members()) == 2


@pytest.mark.usefixtures("nothing_unhurried")
async def test_a_copy_that_a_handover_waits_for_joins_at_once(hand: Changing) -> None:
    await hand.register(C)
    hand.order("a", "b", "c")
    await hand.begin(TWO)
    hand.caught_up(B, C)
    waiting = asyncio.create_task(hand.changes.until_in([SLOT], C, 20))
    await asyncio.sleep(0)
    await hand.step()
    assert await waiting == {SLOT}
