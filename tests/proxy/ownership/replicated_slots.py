"""The replicated slots of one member: real streams, replica, group commit and etcd; no connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.proxy.members import view_of
from understudy.proxy.events.incarnation import Incarnation
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveWrite
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdClient, Kv
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Replication
from understudy.statesync.pool.state import At
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import LoggedWrite, Unsaved
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import LogEntry, RequestLog
from understudy.statesync.sessions.session import Session

A, B = Process("a", "a1"), Process("b", "b1")
ALONE = SyncSet(frozenset({A}))
TWO = SyncSet(frozenset({A, B}), memory=True)
SLOT = 0


class Streams:
    """Connections that send nothing: what copies confirm is said by the test."""

    def __init__(self) -> None:
        self.streams: dict[int, SlotStream] = {}
        self.sent = 0
        self.along: list[int] = []

    def begin(self, stream: SlotStream) -> None:
        self.streams[stream.slot] = stream

    def send(self, _slot: int) -> None:
        self.sent += 1

    def send_along(self, slot: int) -> None:
        self.along.append(slot)

    def end(self, slot: int) -> None:
        del self.streams[slot]


class Hand:
    """One member's replicated slots, with the group commit under way only if the test begins it."""

    def __init__(self, client: EtcdClient, pool: PoolView) -> None:
        self.client, self.pool, self.keys = client, pool, pool.identity.keys
        self.replica, self.requests = Replica(client, self.keys), RequestLog(self.keys, A.member, A.boot)
        self.owned, self.streams = OwnedSlots(), Streams()
        self.committer = Committer(client, self.keys, A.member, A.boot, self.requests)
        self.keeper = CopyKeeper(A, pool.identity.keys.pool, self.replica, self.requests)
        self.updates = PoolUpdates(pool, self.owned, DrainState(pool), Incarnation())
        self.active = ActiveSlots(
            pool, self.replica, self.requests, self.committer, self.keeper, self.streams, self.updates
        )
        self.owned.on_lose = self.active.lost
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, part: Callable[[], object]) -> None:
        self._tasks.append(asyncio.create_task(part()))  # type: ignore[arg-type]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def own(self, epoch: int = 1, slot: int = SLOT) -> OwnedSlot:
        """Own a slot, by a record in etcd."""
        owner = Owner(A.member, A.boot, epoch)
        fence = await self.client.put(self.keys.owner(slot), owner.encode())
        self.pool.state.note_owner(slot, owner, fence)
        owned = self.owned.gain(slot, owner, fence)
        self.owned.reopen(owned)
        return owned

    async def begin(
        self, agreed: SyncSet, copy: SlotCopy | None = None, epoch: int = 1, slot: int = SLOT, losses: int = 0
    ) -> OwnedSlot:
        """Own a slot by both records, and begin its stream."""
        owned = await self.own(epoch, slot)
        record = replace(SyncRecord.of_set(epoch, agreed), losses=losses)
        revision = await self.client.put(self.keys.sync_set(slot), record.encode())
        self.pool.state.note_sync_set(slot, record, revision)
        if copy is None:
            await self.replica.load(slot)
        self.active.begin(owned, agreed, copy)
        return owned

    @property
    def stream(self) -> SlotStream:
        return self.streams.streams[SLOT]

    def write(
        self, key: str, body: str = "v", wants: str = "replicas", *, entry: LogEntry | None = None
    ) -> ActiveWrite:
        owned = self.owned.get(SLOT)
        assert owned is not None
        session = session_of(self.active.next_version(SLOT), body) if key else None
        return self.active.submit(owned, key, session, entry, wants)

    def confirm(self, version: int = 0) -> None:
        """b has everything up to a version."""
        self.stream.has(B, version or self.stream.last)
        self.active.progress([SLOT])

    async def stored(self, key: str) -> str | None:
        kv = await self.client.get(self.keys.session(SLOT, key))
        return body_in(self.replica, kv) if kv is not None else None

    def seen(self, key: str) -> bool:
        return key in self.replica.keys(SLOT)


def session_of(version: int, body: str) -> Session:
    return Session("text/plain", body.encode(), 10**15, version >> 40, version=version)


def body_in(replica: Replica, kv: Kv) -> str:
    return replica.codec.decode(kv.key, kv.value, kv.mod_revision).body.decode()


def copy_with(
    hand: Hand,
    unsaved: list[tuple[int, str, str]] | None = None,
    pending: list[tuple[int, str, str]] | None = None,
) -> SlotCopy:
    """A whole copy as of epoch 1: writes that readers saw, and later ones that are not known to be acknowledged."""
    replica = hand.replica
    replica.clear(SLOT)

    def entry(number: int, key: str, body: str) -> Entry:
        version = version_of(1, number)
        value = replica.codec.encode(hand.keys.session(SLOT, key), session_of(version, body))
        return Entry(version, LoggedWrite(key, value))

    shown, hidden = [entry(*one) for one in unsaved or ()], [entry(*one) for one in pending or ()]
    replica.show(SLOT, shown)
    replica.whole(SLOT)
    last = len(shown) + len(hidden)
    return SlotCopy(
        SLOT,
        history=(version_of(1, last),),
        shown=version_of(1, len(shown)),
        pending=hidden,
        known=2,
        whole=True,
        saved=version_of(1, 0),
        unsaved=[Unsaved(one.version, one.write.key) for one in shown],
    )


def committing(hand: Hand) -> None:
    hand.run(hand.committer.run)


@asynccontextmanager
async def hand_of(client: EtcdClient, name: str, checkpoint_ms: int = 60_000) -> AsyncIterator[Hand]:
    pool = view_of("a", name)
    replication = Replication(checkpoint_ms=checkpoint_ms)
    pool.state.spec = At(PoolSpec(pool=name, slots=1, durability="replicas", replication=replication), 1)
    hand = Hand(client, pool)
    try:
        yield hand
    finally:
        await hand.end()
