"""The slots in which this process is active: from a write to its acknowledgement, and on to etcd.

A write is numbered, goes to the copies, and counts when all of the sync set have it. Then readers see it, and its
client is answered; of class ``sync`` when etcd has it too. Sessions are saved in etcd with their newest version, after
``replication.checkpoint_ms`` at the latest, and at once where nothing may be acknowledged from memory.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveSlot, ActiveWrite, NotYet
from understudy.proxy.ownership.exposure import Exposure
from understudy.proxy.ownership.owned_slots import OwnedSlot
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import Kv
from understudy.statesync.process.ticks import tick
from understudy.statesync.replication.history import epoch_of, version_of
from understudy.statesync.replication.messages import LoggedWrite, Unsaved
from understudy.statesync.replication.saves import Save
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.commit import BATCH_MOST, Committer, NotOwner
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import LogEntry, RequestLog, decode_entry, encode_entry
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.shared_timer import SharedTimer

logger = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two looks for what has waited for long enough to be saved."""
TELL_AFTER = 0.02
"""Seconds after which copies are told what became visible, if no frame with other news has told them before."""
WAITING_MOST = 100
"""Writes of one slot that not all of its set have. An heir may have to save all of them in one transaction of etcd."""
SAVE_AGAIN_AFTER = 0.5
"""Seconds before a save that etcd refused is tried again."""


class Streams(Protocol):
    """The connections to copies, as far as actives use them."""

    def begin(self, stream: SlotStream) -> None:
        """Send the stream to the processes that are to have copies."""

    def send(self, slot: int) -> None:
        """There is something new in a slot's stream."""

    def send_along(self, slot: int) -> None:
        """There is something new in a slot's stream that can wait for the next frame."""

    def end(self, slot: int) -> None:
        """This process is not active in the slot any more."""


class ActiveSlots:
    """All slots in which this process is active and has their sessions."""

    def __init__(
        self,
        pool: PoolView,
        replica: Replica,
        requests: RequestLog,
        committer: Committer,
        keeper: CopyKeeper,
        streams: Streams,
        updates: PoolUpdates,
    ) -> None:
        identity = pool.identity
        self._pool = pool
        self._keys = identity.keys
        self._me = Process(identity.me, identity.boot)
        self._replica = replica
        self._requests = requests
        self._committer = committer
        self._keeper = keeper
        self._streams = streams
        self._updates = updates
        self._slots: dict[int, ActiveSlot] = {}
        self._unfinished: set[ActiveSlot] = set()
        self._untold: set[ActiveSlot] = set()
        self._some_untold = asyncio.Event()
        self._some = asyncio.Event()
        self._timer = SharedTimer()
        self.begun = 0
        """How many slots have begun so far."""
        self.exposure = Exposure()
        """What etcd does not have yet, as of the last :data:`TICK`."""
        self.on_blocked: Callable[[], None] = lambda: None
        """Called when something waits that a change of a sync set may help."""
        self.on_fenced: Callable[[Kv | None], None] = lambda _found: None
        """Called when etcd refuses a save because of another owner record, with that, or None if there is none."""

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def get(self, slot: int) -> ActiveSlot | None:
        """The slot, if this process is active in it."""
        return self._slots.get(slot)

    def stands(self, active: ActiveSlot) -> bool:
        """Whether this process is still active in the slot, since the same claim."""
        return self._slots.get(active.stream.slot) is active

    async def some(self) -> None:
        """Wait until there is a slot."""
        if not self._slots:
            self._some.clear()
            await self._some.wait()

    @property
    def slots(self) -> list[ActiveSlot]:
        """All of them."""
        return list(self._slots.values())

    @property
    def unfinished(self) -> list[ActiveSlot]:
        """Those with writes that not all of the sync set have, or etcd may not have; and some others."""
        return list(self._unfinished)

    def durability_of(self, slot: int, version: int) -> str:
        """Which class of durability an acknowledged version of a session has by now."""
        active = self._slots.get(slot)
        return "replicas" if active is not None and version > active.stream.saved else "sync"

    async def until_saved(self, slot: int, version: int, timeout: float) -> bool:
        """Wait until etcd has a version that was acknowledged, and all before it; whether it has it in time."""
        active = self._slots.get(slot)
        if active is None:
            return False
        give_up = time.monotonic() + timeout
        while self._slots.get(slot) is active and version > active.stream.saved:
            left = give_up - time.monotonic()
            if left <= 0:
                return False
            self.save_now(slot)
            active.moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await active.moved.wait()
        return self._slots.get(slot) is active

    # -- begin and end --

    def begin(self, owned: OwnedSlot, agreed: SyncSet, copy: SlotCopy | None) -> None:
        """Begin the epoch of the owner record that makes the slot ours.

        ``copy`` is what this process has of it as a copy; None: etcd has everything, and the replica has it from there.
        """
        slot, epoch = owned.slot, owned.owner.epoch
        if copy is None:
            start = owned.version if epoch_of(owned.version) == epoch else version_of(epoch, 0)
            stream = SlotStream(slot, epoch, self._me, agreed, history=(start,), saved=start)
        else:
            inherited = copy.become_active()
            stream = SlotStream(
                slot,
                epoch,
                self._me,
                agreed,
                history=copy.history,
                inherited=inherited,
                saved=copy.saved,
            )
        active = ActiveSlot(owned, stream)
        for one in copy.unsaved if copy is not None else ():
            kept = self._replica.stored(slot, one.key) if one.key else None
            active.saves.add(one.version, LoggedWrite(one.key, kept.value if kept else None, one.outcome))
            active.unsaved.append(one)
        active.due_since = time.monotonic()
        self._slots[slot] = active
        self.begun += 1
        self._some.set()
        self._streams.begin(stream)
        self.advance(slot)

    def begin_from_memory(self, owned: OwnedSlot, agreed: SyncSet) -> bool:
        """Begin with the copy that this process has; False, with nothing done, if it has none that is whole."""
        if not self._keeper.is_whole(owned.slot):
            return False
        self._keeper.heard_of(owned.slot, owned.owner.epoch)
        self.begin(owned, agreed, self._keeper.take_over(owned.slot))
        return True

    def begin_anew(self, owned: OwnedSlot, agreed: SyncSet) -> None:
        """The slot stays with this process under a new owner record, of a later epoch."""
        self.lost(owned.slot)
        self.begin_from_memory(owned, agreed)

    async def settled(self, slot: int) -> bool:
        """Wait until all of the set have what this process has inherited, or etcd has it; False if the slot is lost."""
        active = self._slots.get(slot)
        while active is not None and self._slots.get(slot) is active:
            if active.stream.visible >= active.inherited:
                return True
            active.moved.clear()
            self.on_blocked()
            await active.moved.wait()
        return False

    def lost(self, slot: int) -> None:
        """This process is not active in the slot any more: what it has of it becomes a copy."""
        active = self._slots.pop(slot, None)
        if active is None:
            return
        self._streams.end(slot)
        active.owned.version = max(active.owned.version, active.stream.last)
        self._keeper.give(slot, active.as_copy())
        active.moved.set()
        for write in active.waiting.values():
            write.lost()

    # -- writes --

    def next_version(self, slot: int) -> int:
        """The version of the next write in a slot in which this process is active."""
        return self._slots[slot].stream.next

    def has_room(self, slot: int) -> bool:
        """Whether a slot takes one more write now, as far as this process is active in it."""
        active = self._slots.get(slot)
        return active is None or len(active.waiting) < WAITING_MOST

    async def room(self, slot: int) -> None:
        """Wait until the slot takes one more write, or this process is not active in it any more."""
        while (active := self._slots.get(slot)) is not None and len(active.waiting) >= WAITING_MOST:
            active.moved.clear()
            await active.moved.wait()

    def submit(
        self, owned: OwnedSlot, key: str, session: Session | None, entry: LogEntry | None, wants: str
    ) -> ActiveWrite:
        """Begin a write; the caller has the lock of the session, and has given it :meth:`next_version`.

        ``session`` None removes it. Without a ``key`` only ``entry`` is kept. ``wants`` is a class of durability.
        """
        active = self._slots[owned.slot]
        stream = active.stream
        version = stream.next
        value = None
        if session is not None:
            value = self._replica.codec.encode(self._keys.session(owned.slot, key), session)
        logged = LoggedWrite(key, value, encode_entry(entry) if entry is not None else b"")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        spec = self._pool.spec
        if wants == "replicas" and spec is not None and not spec.from_memory:
            active.asked_at = now
        write = ActiveWrite(owned.slot, key, session, version, wants, entry is not None, done, now)
        active.waiting[version] = active.by_name[key or version] = write
        self._unfinished.add(active)
        stream.append(logged)
        self._streams.send(owned.slot)
        if len(stream.agreed.members) == 1:
            self.advance(owned.slot)  # nobody else has to confirm it
        elif not stream.reaches_all:
            self.on_blocked()
        return write

    async def outcome(self, write: ActiveWrite, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the version that is acknowledged; ``write.done`` still gets it later.

        Raises :class:`SlotLost` or :class:`NotYet`.
        """
        if not write.done.done():
            write.waiter = asyncio.get_running_loop().create_future()
            await self._timer.wait(write.waiter, timeout)
        if write.done.done():
            return write.done.result()
        raise NotYet(write.slot, f"the write was not acknowledged within {timeout:g} s")

    def progress(self, slots: Iterable[int]) -> None:
        """A copy has told something in these slots: what it has, or that it needs the slot anew."""
        for slot in slots:
            self.advance(slot)
            active = self._slots.get(slot)
            if active is not None and active.checked is not None and active.stream.stuck:
                active.checked = None  # no write waits for it, perhaps, but it must leave the set
                self.on_blocked()

    def advance(self, slot: int) -> None:
        """Carry on what a confirmation, a commit or a change of the set has made possible."""
        active = self._slots.get(slot)
        if active is None:
            return
        self._unfinished.add(active)
        stream = active.stream
        held = stream.held
        urgent = not active.from_memory
        if held > active.handed:
            if not active.saves.due:
                active.due_since = time.monotonic()
            for entry in stream.between(active.handed, held):
                active.saves.add(entry.version, entry.write)
                waiting = active.waiting.get(entry.version)
                urgent = urgent or waiting is None or waiting.wants != "replicas"
            active.handed = held
            if held >= active.inherited:
                active.saves.release()
        stream.kept_back = active.saves.kept_back
        if urgent and active.saves.due:
            self._save(active)
        self._show(active)
        active.moved.set()

    def _show(self, active: ActiveSlot) -> None:
        stream = active.stream
        from_memory = active.from_memory
        seen = stream.advance()
        if seen:
            self._untold.add(active)
            self._some_untold.set()
            self._streams.send_along(stream.slot)
        for entry in seen:
            write = active.waiting.get(entry.version)
            self._see(stream.slot, entry, write)
            if entry.version > stream.saved:
                active.unsaved.append(Unsaved(entry.version, entry.write.key, entry.write.outcome))
            if write is not None:
                write.shown = True
                self._answer(active, write, from_memory=from_memory)

    def _see(self, slot: int, entry: Entry, write: ActiveWrite | None) -> None:
        """Readers see a write from now on, and its request is known."""
        if write is None:
            self._replica.show(slot, [entry])
        elif entry.write.key:
            self._replica.put(slot, entry.write.key, write.session)
        if entry.write.outcome:
            self._requests.note(slot, decode_entry(entry.write.outcome), time.monotonic())

    @staticmethod
    def _answer(active: ActiveSlot, write: ActiveWrite, *, from_memory: bool) -> None:
        """Answer a write whose class has been reached."""
        if not write.shown or not (write.saved or (write.wants != "sync" and from_memory)):
            return
        del active.waiting[write.version]
        if active.by_name.get(write.key or write.version) is write:
            del active.by_name[write.key or write.version]
        write.succeed("sync" if write.saved else "replicas")

    # -- saving --

    def _save(self, active: ActiveSlot) -> None:
        """Have everything that is due committed."""
        stream, owned = active.stream, active.owned
        if active.removing:
            return
        for save in active.saves.take():
            name = self._keys.session(stream.slot, save.key) if save.key else ""
            entries = tuple(decode_entry(outcome) for outcome in save.outcomes)
            submission = self._committer.submit(stream.slot, owned.fence, name, save.value, entries)
            stream.sent_to_etcd = max(stream.sent_to_etcd, save.last)
            submission.done.add_done_callback(partial(self._saved, active, save))

    def _saved(self, active: ActiveSlot, save: Save, done: "asyncio.Future[int]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, NotOwner):
            self.on_fenced(error.found)
        if self._slots.get(active.stream.slot) is not active:
            return
        if done.cancelled() or error is not None:
            active.saves.failed(save)
            active.due_since = time.monotonic()
            if isinstance(error, NotOwner) and error.found is not None:
                self._updates.refused_by(active.stream.slot, error.found)
            logger.info("a save in slot %d was not carried out: %s", active.stream.slot, error or "cancelled")
            return
        active.saves.done(save)
        self._note_saved(active)
        write = active.by_name.get(save.name)
        if write is not None and save.first <= write.version <= save.last:
            write.saved = True
            self._answer(active, write, from_memory=active.from_memory)
        if active.from_memory and not active.saves.kept_back:
            active.moved.set()  # nothing else waits for it
        else:
            self.advance(active.stream.slot)

    @staticmethod
    def _note_saved(active: ActiveSlot) -> None:
        active.stream.saved = active.saves.saved(active.handed)
        kept = 0
        while kept < len(active.unsaved) and active.unsaved[kept].version <= active.stream.saved:
            kept += 1
        del active.unsaved[:kept]

    def all_saved(self, slot: int, version: int) -> None:
        """A change of the set has saved everything up to ``version``, and what was kept back."""
        active = self._slots.get(slot)
        if active is None:
            return
        active.saves.settle(version)
        active.saves.release()
        active.handed = max(active.handed, version)
        self._note_saved(active)

    def save_now(self, slot: int) -> None:
        """Save what is due, because a change of the set waits for it."""
        active = self._slots.get(slot)
        if active is not None and active.saves.due:
            self._save(active)

    async def run(self) -> None:
        """Save what has waited for long enough, until cancelled."""
        while True:
            await self.some()
            await tick(TICK)
            now, spec = time.monotonic(), self._pool.spec
            patience = spec.replication.checkpoint_ms / 1000 if spec is not None else 1.0
            self.exposure.look(self._unfinished, self._committer.pressure(now).delay, now)
            self._save_overdue(now, patience)
            for active in list(self._unfinished):
                stands = self._slots.get(active.stream.slot) is active
                if not stands or (not active.saves and active.oldest() is None):
                    self._unfinished.discard(active)

    def _save_overdue(self, now: float, patience: float) -> None:
        """Save what has waited for long enough, and others with it that need no transaction of their own then."""
        due = [one for one in self._unfinished if one.saves.due and self._slots.get(one.stream.slot) is one]
        overdue = [one for one in due if now - one.due_since >= (patience if one.from_memory else SAVE_AGAIN_AFTER)]
        room = BATCH_MOST - sum(len(one.saves) for one in overdue)
        for active in overdue:
            self._save(active)
        if not overdue:
            return
        for active in sorted(due, key=lambda one: one.due_since):
            if active.from_memory and active.saves.due and len(active.saves) <= room:
                room -= len(active.saves)
                self._save(active)

    async def tell(self) -> None:
        """Tell copies what readers may see, until cancelled."""
        while True:
            await self._some_untold.wait()
            await asyncio.sleep(TELL_AFTER)
            untold, self._untold = self._untold, set()
            self._some_untold.clear()
            for active in untold:
                if self._slots.get(active.stream.slot) is active:
                    self._streams.send(active.stream.slot)
