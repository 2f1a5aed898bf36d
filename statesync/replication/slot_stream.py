"""The active's side of a slot's stream: numbers its writes, sends them to copies, and counts who has them. No I/O.

Each copy is asked first how much of the history it has. If the log still has what it lacks, it gets that. Otherwise it
gets a copy of the whole slot, and new writes between the parts. Memory is bounded: a copy that is slower than the log
is long starts again with a copy of the slot.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

from understudy.statesync.replication import sync_set
from understudy.statesync.replication.history import History, cut, epoch_of, extended, last_of, version_of
from understudy.statesync.replication.messages import At, Lead, LoggedWrite, Part, Unsaved, Writes
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.sync_set import Process, Progress, SyncSet

LOG_MOST = 1000
LOG_BYTES = 2_000_000
"""Acknowledged writes, and their bytes, that are kept for copies that come back after a short break."""
WRITES_MOST = 100
BYTES_MOST = 500_000
"""Writes in one message, and their bytes; a longer write goes alone."""

_version = attrgetter("version")


@dataclass(slots=True)
class _Reader:
    """A copy that gets the writes: the last version that was sent to it.

    ``shown`` and ``saved``: up to where it was told that readers may see the writes, and that etcd has them.
    """

    sent: int
    shown: int
    saved: int = 0


class SlotStream:
    """The stream of one slot in one epoch, by its active ``me``.

    ``agreed`` is the sync set as etcd last confirmed it. ``change`` is that of a transaction whose outcome is not known
    yet, if there is one.

    ``kept_back`` is set by the caller (:class:`~understudy.statesync.replication.sync_set.Progress`).

    Two more attributes are set by the caller, and copies are told them. ``saved`` is the last version up to which etcd
    has everything. ``unsaved`` has the later writes that readers may see, in order; earlier ones in it do no harm.
    """

    def __init__(
        self,
        slot: int,
        epoch: int,
        me: Process,
        agreed: SyncSet,
        *,
        history: History = (),
        inherited: Iterable[Entry] = (),
        saved: int = 0,
        unsaved: Collection[Unsaved] = (),
    ) -> None:
        """Begin an epoch.

        Args:
            slot: the slot.
            epoch: of the owner record that names this process.
            me: this process.
            agreed: the sync set of that record.
            history: what this process has of the slot.
            inherited: the end of the history: the writes that it does not know to be acknowledged.
            saved: the last version up to which etcd is known to have everything.
            unsaved: the writes after ``saved`` that readers may see.
        """
        self.slot = slot
        self.epoch = epoch
        self.me = me
        self.agreed = agreed
        self.change: SyncSet | None = None
        self.history = history
        self.saved = self.sent_to_etcd = saved
        self.unsaved = unsaved
        self.kept_back = 0
        self.acknowledged = last_of(history)
        self._log = list(inherited)
        self._bytes = sum(map(_bytes_of, self._log))
        self._visible = self._floor = _before(history, self._log)
        self._confirmed = dict.fromkeys(agreed.members, self._floor)  # readers saw it, so all of the set have it
        self._readers: dict[Process, _Reader] = {}

    @property
    def last(self) -> int:
        """The last version of the history."""
        return last_of(self.history)

    @property
    def next(self) -> int:
        """The version that the next write will get."""
        last = self.last
        return last + 1 if epoch_of(last) == self.epoch else version_of(self.epoch, 1)

    @property
    def progress(self) -> Progress:
        """How far the writes are."""
        return Progress(self.last, self._confirmed, self.sent_to_etcd, self.saved, self.acknowledged, self.kept_back)

    @property
    def held(self) -> int:
        """The last version that all have that must have it, so that it may be saved in etcd: :func:`sync_set.held`."""
        held, confirmed = self.last, self._confirmed
        for other in self._needed:
            if other != self.me:
                held = min(held, confirmed.get(other, 0))
        return held

    @property
    def visible(self) -> int:
        """The last version that readers may see. It never goes back."""
        return self._visible

    @property
    def unseen(self) -> list[Entry]:
        """The writes that readers may not see yet, in order."""
        return self._log[self._place_after(self._visible) :]

    def append(self, write: LoggedWrite) -> int:
        """Number a write; returns its version."""
        version = self.next
        entry = Entry(version, write)
        self._log.append(entry)
        self._bytes += _bytes_of(entry)
        self.history = extended(self.history, version)
        return version

    def between(self, after: int, upto: int) -> list[Entry]:
        """The writes after one version and up to another, as far as they are still kept."""
        return self._log[self._place_after(after) : self._place_after(upto)]

    def advance(self) -> list[Entry]:
        """The writes that readers may see from now on, in order: their clients may be told, unless they wait for etcd.

        To be called after anything that can bring them forward: a confirmation, a commit, a change of the sync set.
        """
        before, now = self._visible, self.held
        if not sync_set.acknowledges_from_memory(self.agreed, self.change):
            now = min(now, self.saved)
        if now <= before:
            return []
        self._visible = now
        self.acknowledged = max(self.acknowledged, now)
        seen = self._log[self._place_after(before) : self._place_after(now)]
        self._forget()
        return seen

    def decided(self, agreed: SyncSet) -> None:
        """The outcome of a change of the sync set is known: etcd now has ``agreed``."""
        self.agreed, self.change = agreed, None

    def lead(self) -> Lead:
        """What to say first on every new connection."""
        return Lead(self.slot, self.epoch, self.history)

    def at(self, copy: Process, answer: At) -> None:
        """A copy has told what it has: from now on it is sent what it lacks."""
        if answer.whole and answer.version >= self._floor:
            self._readers[copy] = _Reader(answer.version, -1)
            self.has(copy, answer.version)
        else:
            self._readers[copy] = _Reader(-1, -1)
            self._confirmed.pop(copy, None)  # it may be about to forget what it has

    def follows(self, copy: Process) -> bool:
        """Whether a copy has told what it has, on the connection that there is."""
        return copy in self._readers

    @property
    def reaches_all(self) -> bool:
        """Whether there is a connection to every process of the sync set that follows the stream."""
        return all(copy in self._readers for copy in self.agreed.members if copy != self.me)

    def has(self, copy: Process, version: int) -> None:
        """A copy has confirmed everything up to ``version``."""
        self._confirmed[copy] = max(self._confirmed.get(copy, 0), version)

    def gone(self, copy: Process) -> None:
        """The connection to a copy has ended. What it has confirmed, it still has, unless its process has ended."""
        self._readers.pop(copy, None)

    @property
    def stuck(self) -> frozenset[Process]:
        """The processes that need a copy of the slot and get none, because they must have every write (see below)."""
        behind = [copy for copy, reader in self._readers.items() if reader.sent < self._floor]
        return self._needed.intersection(behind) if behind else frozenset()

    def outgoing(self, copy: Process) -> Writes | Part | None:
        """The next message to a copy; None if it has been sent everything, or is not being sent anything.

        A part is the first of a copy of the slot, without sessions and outcomes: the caller sends those in more parts,
        as they are when they are sent, and marks the last one.

        A process that is in the sync set, or may be in it, is never sent a part: the part would empty what the process
        may have to claim the slot with. It must be taken out of the set first.
        """
        reader = self._readers.get(copy)
        if reader is None:
            return None
        if reader.sent < self._floor:
            return None if copy in self._needed else self._first_part(copy, reader)
        first, writes = self._run_after(reader.sent)
        if not writes and reader.shown >= self._visible:
            return None
        message = Writes(self.slot, self.epoch, reader.sent, first, tuple(writes), self._visible, self.saved)
        if writes:
            reader.sent = first + len(writes) - 1
        reader.shown, reader.saved = self._visible, self.saved
        return message

    def tell_saved(self, copy: Process) -> bool:
        """Let the next message to a copy tell what is saved, even without a write; whether the copy does not know it.

        Otherwise a copy is told only with the next write, or when readers may see more.
        """
        reader = self._readers.get(copy)
        if reader is None or reader.saved >= self.saved:
            return False
        reader.shown = -1
        return True

    def as_copy(self) -> SlotCopy:
        """What this process has, as a copy of the slot: it is not active any more."""
        return SlotCopy(
            self.slot,
            history=self.history,
            shown=self._visible,
            pending=self.unseen,
            known=self.epoch,
            whole=True,
            saved=self.saved,
            unsaved=self._unsaved(),
        )

    @property
    def _needed(self) -> frozenset[Process]:
        return sync_set.needed(self.agreed, self.change)

    def _first_part(self, copy: Process, reader: _Reader) -> Part:
        at = reader.sent = reader.shown = self._visible
        reader.saved = self.saved
        self._confirmed.pop(copy, None)  # the part empties it
        return Part(
            self.slot,
            self.epoch,
            at,
            cut(self.history, at),
            (),
            first=True,
            last=False,
            saved=self.saved,
            unsaved=tuple(self._unsaved()),
        )

    def _unsaved(self) -> list[Unsaved]:
        return [write for write in self.unsaved if write.version > self.saved]

    def _run_after(self, version: int) -> tuple[int, list[LoggedWrite]]:
        """The version of the first write after ``version``, and as many writes from there as go into one message."""
        writes: list[LoggedWrite] = []
        start, size = self._place_after(version), 0
        for entry in self._log[start : start + WRITES_MOST]:
            size += _bytes_of(entry)
            if writes and (size > BYTES_MOST or epoch_of(entry.version) != epoch_of(self._log[start].version)):
                break
            writes.append(entry.write)
        return (self._log[start].version if writes else 0), writes

    def _place_after(self, version: int) -> int:
        """Where in the log the first write after ``version`` is.

        The versions of an epoch have no gaps, so the place is mostly known from the first one.
        """
        log = self._log
        place = version - log[0].version + 1 if log else 0
        if 0 < place <= len(log) and log[place - 1].version == version:
            return place
        return bisect_right(log, version, key=_version)

    def _forget(self) -> None:
        """Drop what is longest acknowledged, when the log is twice as long as what is kept."""
        known = self._place_after(self._visible)
        if known <= 2 * LOG_MOST and self._bytes <= 2 * LOG_BYTES:
            return
        dropped = 0
        while dropped < known and (known - dropped > LOG_MOST or self._bytes > LOG_BYTES):
            self._bytes -= _bytes_of(self._log[dropped])
            dropped += 1
        if dropped:
            self._floor = self._log[dropped - 1].version
            del self._log[:dropped]


def _bytes_of(entry: Entry) -> int:
    return len(entry.write.value or b"")


def _before(history: History, log: list[Entry]) -> int:
    """The version before the first write of a log, which is the end of a history."""
    if not log:
        return last_of(history)
    first = log[0].version
    if first > version_of(epoch_of(first), 1):
        return first - 1
    return max((end for end in history if epoch_of(end) < epoch_of(first)), default=0)
