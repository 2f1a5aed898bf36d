"""One slot in which this process is active: its stream, the writes under way in it, and what etcd lacks.

:mod:`understudy.proxy.ownership.active_slots` takes the writes from their submission to their acknowledgement.
"""

import asyncio
import time

import msgspec

from understudy.proxy.ownership.owned_slots import OwnedSlot
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.messages import Unsaved
from understudy.statesync.replication.saves import Saves
from understudy.statesync.replication.slot_copy import SlotCopy
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.sessions.commit import CommitError
from understudy.statesync.sessions.session import Session


class SlotLost(CommitError):
    """The slot was lost while the write was under way; the next active may have it.

    ``identified``: the next active knows the request then, so that it can be sent there again.
    """

    def __init__(self, slot: int, *, identified: bool) -> None:
        super().__init__(slot, "the slot was lost while the write was under way")
        self.identified = identified


class NotYet(CommitError):
    """The write has not been acknowledged in time; it may still take effect."""


class ActiveWrite(msgspec.Struct, eq=False):
    """A write under way since ``at`` (monotonic). Without a ``key`` it changes no session.

    ``done`` gets the version, or :class:`SlotLost`. ``wants`` is the class of durability that was asked for, ``got``
    the one that its answer may name. ``identified``: the outcome of its request goes with it. ``shown``: all of the
    sync set have it, and readers see it. ``saved``: etcd has it.
    """

    slot: int
    key: str
    session: Session | None
    version: int
    wants: str
    identified: bool
    done: asyncio.Future[int]
    at: float
    got: str = ""
    shown: bool = False
    saved: bool = False
    waiter: asyncio.Future[None] | None = None

    def succeed(self, got: str) -> None:
        """The write is acknowledged, of this class of durability."""
        if not self.done.done():
            self.got = got
            self.done.set_result(self.version)
            self._wake()

    def lost(self) -> None:
        """The slot was lost under the write."""
        if not self.done.done():
            self.done.set_exception(SlotLost(self.slot, identified=self.identified))
            self.done.exception()  # marks it as retrieved: its caller may have gone
            self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class ActiveSlot:
    """One slot of this process.

    ``since`` is when its stream began (monotonic). ``inherited`` is the last version that this process had as a copy;
    ``handed`` the last one that was handed on to be saved. ``unsaved`` are the writes that readers see and etcd may
    not have. ``checked`` is what :class:`SetChanges` saw when the set was as it should be.
    ``asked_at`` is when a write asked for class ``replicas``, which is not the pool's (monotonic); None: never.
    ``removing``: a change of the set is under way that saves, and nothing else may be saved meanwhile. ``clearing``:
    the change that takes ``memory`` back is wanted, and is sent when all is saved.
    """

    def __init__(self, owned: OwnedSlot, stream: SlotStream) -> None:
        self.owned = owned
        self.stream = stream
        self.since = time.monotonic()
        self.inherited = stream.last
        self.handed = stream.visible
        self.saves = Saves(entry.write.key for entry in stream.unseen)
        self.removing = False
        self.clearing = False
        self.waiting: dict[int, ActiveWrite] = {}
        self.by_name: dict[str | int, ActiveWrite] = {}
        self.unsaved: list[Unsaved] = []
        stream.unsaved = self.unsaved
        self.due_since = 0.0
        self.asked_at: float | None = None
        self.moved = asyncio.Event()
        self.checked: object = None

    @property
    def from_memory(self) -> bool:
        """Whether a write may be acknowledged before etcd has it."""
        return sync_set.acknowledges_from_memory(self.stream.agreed, self.stream.change)

    def oldest(self) -> tuple[int, float] | None:
        """The first version that not all of the set have, and since when it waits; None if there is none."""
        if self.waiting:
            write = next((one for one in self.waiting.values() if one.version > self.handed), None)
            if write is not None:
                return write.version, write.at
        return (self.inherited, self.since) if self.inherited > self.handed else None

    def as_copy(self) -> SlotCopy:
        """What this process has of the slot once it is not active any more."""
        return self.stream.as_copy()
