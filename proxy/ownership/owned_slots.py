"""The slots that this process owns right now, and the calls going on in each.

Each owned slot has a gate. A call enters when the slot is caught up and not being handed over, and leaves when its
write is resolved. So a handover, which closes the gate, can wait until nothing is under way. A closed gate may still
admit reads that memory answers at once: they are safe while nobody else can have become active. When the slot is lost,
the gate opens for good: every call that waited gets :class:`NotMine` and goes to the new owner.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from understudy.proxy.member.identity import MemberIdentity
from understudy.statesync.pool.records import Owner, Phase


class NotMine(Exception):
    """This process does not own the slot."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"slot {slot}")
        self.slot = slot


@dataclass(eq=False, slots=True)
class OwnedSlot:
    """One owned slot. ``fence`` is the ``mod_revision`` of the owner record that makes it ours.

    ``readable``: its closed gate still admits reads that memory answers at once. ``preparing``: it was claimed and is
    being caught up; only its claim may open its gate. ``version`` is the last one that was given to a write.
    """

    slot: int
    owner: Owner
    fence: int
    open: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    answered: bool = False
    readable: bool = False
    preparing: bool = False
    version: int = 0

    def enter(self) -> None:
        """One call more; only while the gate is open."""
        self.calls += 1
        self.idle.clear()

    def leave(self) -> None:
        """One call less."""
        self.calls -= 1
        if self.calls == 0:
            self.idle.set()


async def still_busy(slots: Sequence[OwnedSlot], patience: float) -> list[OwnedSlot]:
    """Those of ``slots``, whose gates are closed, in which calls are still under way after ``patience`` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            for owned in slots:
                await owned.idle.wait()
    return [owned for owned in slots if owned.calls]


class OwnedSlots:
    """All owned slots of this process."""

    def __init__(self) -> None:
        self._owned: dict[int, OwnedSlot] = {}
        self.closed = False
        """Whether this process is about to end and takes no slot any more."""
        self.taking = 0
        """How many transactions are under way by which slots may become ours."""
        self.given_up: dict[int, int] = {}
        """Slots given up for good, with the revision of their owner records, which may still name this process."""
        self.on_lose: Callable[[int], None] = lambda _slot: None
        """Called once for each slot that is lost or given up, while it still counts as ours."""
        self._versions: dict[int, int] = {}
        """The last version given in each slot that was lost: it may be ours again under a record of the same epoch."""

    def __contains__(self, slot: int) -> bool:
        return slot in self._owned

    def __len__(self) -> int:
        return len(self._owned)

    @property
    def slots(self) -> tuple[int, ...]:
        """The owned slots, in no particular order."""
        return tuple(self._owned)

    def get(self, slot: int) -> OwnedSlot | None:
        """The owned slot, open or not."""
        return self._owned.get(slot)

    def takes(self, slot: int) -> bool:
        """Whether the slot is ours and takes calls now."""
        owned = self._owned.get(slot)
        return owned is not None and owned.open.is_set()

    @property
    def preparing(self) -> frozenset[int]:
        """The owned slots that were claimed and are being caught up."""
        return frozenset(slot for slot, owned in self._owned.items() if owned.preparing)

    def open_slots(self) -> list[int]:
        """The owned slots that take calls now."""
        return [slot for slot, owned in self._owned.items() if owned.open.is_set()]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Slots may become ours by a transaction inside the block; it must not begin once :attr:`closed` is true."""
        self.taking += 1
        try:
            yield
        finally:
            self.taking -= 1

    def gain(self, slot: int, owner: Owner, fence: int) -> OwnedSlot:
        """Note a slot as ours, its gate still closed; replaces what was noted of it before."""
        self.lose(slot)
        owned = OwnedSlot(slot, owner, fence, version=self._versions.get(slot, 0))
        owned.idle.set()
        self._owned[slot] = owned
        return owned

    def lose(self, slot: int) -> None:
        """Note that a slot is not ours; calls that wait at its gate are told so."""
        if slot in self._owned:
            self.on_lose(slot)
            owned = self._owned.pop(slot)
            self._versions[slot] = owned.version
            owned.open.set()

    def drop(self, owned: OwnedSlot) -> None:
        """Note that a slot is not ours, unless it was lost and gained again since ``owned`` was gained."""
        if self._owned.get(owned.slot) is owned:
            self.lose(owned.slot)

    def give_up(self, slots: Iterable[int]) -> None:
        """Answer nothing in ``slots`` any more, and never again under the owner records that make them ours now.

        So a member that replaces such a record need not wait until our reads from memory end.
        """
        for slot in slots:
            owned = self._owned.get(slot)
            if owned is not None:
                self.given_up[slot] = owned.fence
                self.lose(slot)

    def learn(self, slot: int, owner: Owner, revision: int, me: MemberIdentity) -> bool:
        """Compare a slot with its owner record as etcd has it; lose it, and say so, if it is somebody else's."""
        owned = self._owned.get(slot)
        if owned is None or revision <= owned.fence or (owner.active == me.me and owner.boot == me.boot):
            return False
        self.lose(slot)
        return True

    def refuses(self, slot: int, epoch: int) -> int:
        """The epoch in which a slot is ours, if that of another active is no later; else 0, and the slot is lost."""
        owned = self._owned.get(slot)
        if owned is None:
            return 0
        if owned.owner.epoch >= epoch:
            return owned.owner.epoch
        self.lose(slot)
        return 0

    def close(self, slots: Iterable[int], *, readable: bool = False) -> list[OwnedSlot]:
        """Close the gates of ``slots`` for new calls; with ``readable``, reads from memory may still enter."""
        closed = [self._owned[slot] for slot in slots if slot in self._owned]
        for owned in closed:
            owned.open.clear()
            owned.readable = readable
        return closed

    def enter_now(self, slot: int) -> OwnedSlot | None:
        """Begin a call in ``slot`` if its gate is open; it must end with :meth:`OwnedSlot.leave`."""
        owned = self._owned.get(slot)
        if owned is None or not owned.open.is_set():
            return None
        owned.calls += 1
        owned.idle.clear()
        return owned

    def enter_to_read(self, slot: int) -> OwnedSlot | None:
        """Begin a read past a closed gate, if that is allowed; it must end with :meth:`OwnedSlot.leave` at once."""
        owned = self._owned.get(slot)
        if owned is None or not owned.readable:
            return None
        owned.calls += 1
        owned.idle.clear()
        return owned

    def reopen(self, owned: OwnedSlot) -> None:
        """Open a gate again. Does nothing if the slot is lost by now."""
        if self._owned.get(owned.slot) is not owned:
            return
        owned.readable = owned.preparing = False
        if owned.owner.phase is Phase.STABLE:
            owned.open.set()

    async def enter(self, slot: int) -> OwnedSlot:
        """Begin a call in ``slot``; it must end with :meth:`OwnedSlot.leave`. Raises :class:`NotMine`."""
        while True:
            owned = self._owned.get(slot)
            if owned is None:
                raise NotMine(slot)
            if owned.open.is_set():
                owned.calls += 1
                owned.idle.clear()
                return owned
            await owned.open.wait()
