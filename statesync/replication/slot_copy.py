"""The copy's side of a slot's stream: what it has, what readers may see of it, and what it answers. No I/O.

A copy keeps the writes that are not known to be acknowledged apart (``pending``). So it can drop them when the next
active has not had them, and no reader has seen them.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from understudy.statesync.replication.history import History, common, cut, extended, last_of
from understudy.statesync.replication.messages import (
    At,
    Behind,
    FromCopy,
    Have,
    Lead,
    LoggedWrite,
    Part,
    Refused,
    Unsaved,
    Writes,
)

_version = attrgetter("version")


class Entry(NamedTuple):
    """A write with its version."""

    version: int
    write: LoggedWrite


class SlotCopy:
    """One slot's copy in this process.

    ``known`` is the highest epoch that it has heard of; messages of earlier ones are refused. ``follows`` is the epoch
    whose active it follows. ``history`` is what it has, ``shown`` the last version that readers may see. ``whole``: it
    has everything up to ``history``, and not only parts of a copy.

    etcd has everything up to ``saved``. ``unsaved`` are the later writes that readers may see, in order: who becomes
    active with this copy has to save them. ``set_back``: etcd was set back since the copy was made, and may have
    sessions that were removed.
    """

    def __init__(
        self,
        slot: int,
        *,
        history: History = (),
        shown: int = 0,
        pending: Iterable[Entry] = (),
        known: int = 0,
        whole: bool = False,
        saved: int = 0,
        unsaved: Iterable[Unsaved] = (),
    ) -> None:
        self.slot = slot
        self.history = history
        self.shown = shown
        self.pending = deque(pending)
        self.known = known
        self.follows = 0
        self.whole = whole
        self.saved = saved
        self.unsaved = list(unsaved)
        self.set_back = False

    @property
    def have(self) -> int:
        """The last version that it has."""
        return last_of(self.history)

    def heard_of(self, epoch: int) -> None:
        """An owner record of ``epoch`` was seen."""
        self.known = max(self.known, epoch)

    def lead(self, message: Lead) -> FromCopy:
        """Follow the active of an epoch; what goes beyond its history is dropped."""
        if message.epoch < self.known:
            return Refused(self.slot, message.epoch, self.known)
        self.known = self.follows = message.epoch
        point = common(self.history, message.history)
        if point < self.shown:
            self.whole = False  # only if a record was changed by hand: what readers have seen is not in the history
        self.history = cut(self.history, point)
        while self.pending and self.pending[-1].version > point:
            self.pending.pop()
        return At(self.slot, message.epoch, point, self.whole)

    def writes(self, message: Writes) -> tuple[FromCopy | None, list[Entry]]:
        """Take writes in; the answer, and the writes that readers may see from now on, in order.

        A copy that is not whole yet takes writes in and does not confirm them. A message without writes only tells what
        readers may see and what is saved; it is not confirmed either.
        """
        refused = self._refusal(message.epoch)
        if refused is not None:
            return refused, []
        if message.after != self.have:
            return Behind(self.slot, message.epoch), []
        version = message.first
        for write in message.writes:
            self.pending.append(Entry(version, write))
            version += 1
        if message.writes:
            self.history = extended(self.history, version - 1)
        visible = self._show(message.shown)
        self._note_saved(message.saved)
        return (Have(self.slot, message.epoch, self.have) if self.whole and message.writes else None), visible

    def part(self, message: Part) -> FromCopy | None:
        """Take a part of a copy in.

        The caller stores its sessions and its outcomes of requests, those of the first part into an empty slot.
        """
        refused = self._refusal(message.epoch)
        if refused is not None:
            return refused
        if message.first:
            self.history, self.shown, self.whole = message.history, message.at, False
            self.pending.clear()
            self.saved, self.unsaved, self.set_back = message.saved, list(message.unsaved), False
        if not message.last:
            return None
        self.whole = True
        return Have(self.slot, message.epoch, self.have)

    def accepts(self, epoch: int) -> bool:
        """Whether messages of the active of ``epoch`` are taken in."""
        return self._refusal(epoch) is None

    def nothing_saved(self, sessions: Iterable[tuple[int, str]]) -> None:
        """Etcd may have lost anything: all sessions (version, key) that readers may see have to be saved again."""
        known, self.set_back = {one.version for one in self.unsaved}, True
        self._save_again(Unsaved(*one) for one in sessions if one[0] <= self.shown and one[0] not in known)

    def removed(self, keys: Iterable[str]) -> None:
        """These sessions are in an etcd that was set back, and were removed: that has to be saved again, too."""
        known, self.set_back = {one.key for one in self.unsaved}, False
        self._save_again(Unsaved(self.shown, key) for key in keys if key not in known)

    def _save_again(self, writes: Iterable[Unsaved]) -> None:
        self.unsaved = sorted([*self.unsaved, *writes], key=_version)
        self.saved = self.unsaved[0].version - 1 if self.unsaved else self.shown

    def become_active(self) -> list[Entry]:
        """The writes that are not known to be acknowledged, for the stream of the epoch that this process begins."""
        return list(self.pending)

    def _refusal(self, epoch: int) -> FromCopy | None:
        if epoch < self.known:
            return Refused(self.slot, epoch, self.known)
        return None if epoch == self.follows else Behind(self.slot, epoch)

    def _show(self, version: int) -> list[Entry]:
        self.shown = max(self.shown, min(version, self.have))
        visible = []
        while self.pending and self.pending[0].version <= self.shown:
            entry = self.pending.popleft()
            visible.append(entry)
            self.unsaved.append(Unsaved(entry.version, entry.write.key, entry.write.outcome))
        return visible

    def _note_saved(self, version: int) -> None:
        self.saved = max(self.saved, version)
        if self.unsaved and self.unsaved[0].version <= self.saved:
            del self.unsaved[: bisect_right(self.unsaved, self.saved, key=_version)]
