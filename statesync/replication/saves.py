"""What etcd does not have yet of a slot's writes: the newest version of each session, and outcomes of requests. No I/O.

A session that is written often is saved once in a while, with its newest version. So ``saved`` is found by the first
version of each session that etcd lacks, and not by the last one that it has.

A new active may have a later write to a session that not all of the sync set have. The active before may have saved it.
So an earlier one is *kept back* until all have the later one: it would replace what is newer in etcd.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from understudy.statesync.replication.messages import LoggedWrite

OUTCOMES_MOST = 1000
"""Outcomes of requests in one save; a session with more of them is saved in several."""


@dataclass(slots=True, eq=False)
class Save:
    """A put of a session, or its removal if ``value`` is None; without a ``key`` only outcomes are kept.

    It covers the session's versions from ``first`` to ``last``, which are so many ``writes``. ``sent``: a transaction
    with it is under way. ``name`` is the session's key, the version of a write without one, or below zero for outcomes
    that go apart from their session.
    """

    name: str | int
    key: str
    value: bytes | None
    first: int
    last: int
    outcomes: list[bytes] = field(default_factory=list)
    sent: bool = False
    writes: int = 0


class Saves:
    """The saves of one slot that are due, and those under way. ``bytes``: the size of all of them.

    ``writes`` is how many writes etcd lacks at the most: of a session that is saved in part it counts all.
    ``kept_back`` are the sessions that must not be saved yet.
    """

    def __init__(self, kept_back: Iterable[str] = ()) -> None:
        self._due: dict[str | int, Save] = {}
        self._sent: list[Save] = []
        self._kept_back: frozenset[str | int] = frozenset(kept_back)
        self._apart = 0
        self.bytes = self.writes = 0

    def __len__(self) -> int:
        return len(self._due) + len(self._sent)

    @property
    def due(self) -> bool:
        """Whether something may be saved that is not under way yet."""
        return not self._due.keys() <= self._kept_back if self._kept_back else bool(self._due)

    @property
    def under_way(self) -> bool:
        """Whether a transaction may still arrive."""
        return bool(self._sent)

    @property
    def kept_back(self) -> int:
        """The first version that is kept back; 0 if there is none."""
        if not self._kept_back:
            return 0
        return min((save.first for save in self._due.values() if save.name in self._kept_back), default=0)

    def saved(self, last: int) -> int:
        """The last version up to which etcd has everything, if ``last`` was the last one that was added."""
        lacking = [save.first for save in self._due.values()]
        lacking += [save.first for save in self._sent]
        return min(lacking) - 1 if lacking else last

    def add(self, version: int, write: LoggedWrite) -> None:
        """A write is to be saved; versions rise."""
        name = write.key or version
        save = self._due.get(name)
        if save is None:
            save = self._due[name] = Save(name, write.key, write.value, version, version)
        else:
            self.bytes -= len(save.value or b"")
            save.value, save.last = write.value, version
        self.bytes += len(write.value or b"")
        self.writes += 1
        save.writes += 1
        if write.outcome:
            if len(save.outcomes) >= OUTCOMES_MOST:
                self._put_apart(save, save.outcomes)
                save.outcomes = []
            save.outcomes.append(write.outcome)

    def release(self) -> None:
        """All of the sync set have the later writes: nothing is kept back any more."""
        self._kept_back = frozenset()

    @property
    def outcomes(self) -> list[bytes]:
        """The outcomes of requests that are not under way yet."""
        return [outcome for save in self._due.values() for outcome in save.outcomes]

    def settle(self, version: int) -> None:
        """What is due up to ``version`` was saved in another way."""
        for save in list(self._due.values()):
            if save.last <= version:
                del self._due[save.name]
                self.bytes -= len(save.value or b"")
                self.writes -= save.writes
            else:
                save.first = max(save.first, version + 1)

    def take(self) -> list[Save]:
        """Everything that is due, in the order in which it became due; it is under way from now on."""
        taken = [save for name, save in self._due.items() if name not in self._kept_back]
        for save in taken:
            del self._due[save.name]
        for save in taken:
            save.sent = True
        self._sent += taken
        return taken

    def done(self, save: Save) -> None:
        """A save has been committed."""
        self._sent.remove(save)
        self.bytes -= len(save.value or b"")
        self.writes -= save.writes

    def failed(self, save: Save) -> None:
        """A save was not carried out: it is due again, unless a newer version of its session is on its way."""
        self._sent.remove(save)
        newer = self._due.get(save.name) or next((one for one in self._sent if one.name == save.name), None)
        if newer is None:
            save.sent = False
            self._due[save.name] = save
            return
        self.bytes -= len(save.value or b"")
        newer.first = min(newer.first, save.first)
        newer.writes += save.writes
        if newer.sent or len(newer.outcomes) + len(save.outcomes) > OUTCOMES_MOST:
            self._put_apart(save, save.outcomes)
        else:
            newer.outcomes[:0] = save.outcomes

    def _put_apart(self, save: Save, outcomes: list[bytes]) -> None:
        """Have outcomes of a session's writes saved without the session."""
        if outcomes:
            self._apart += 1
            self._due[-self._apart] = Save(-self._apart, "", None, save.first, save.last, outcomes)
