"""One slot with its members, their connections and etcd, on the protocol's real objects and frames, one step at a time.

Members have a store of what readers may see. Sessions are lists of the numbers of writes: what is lost, doubled or
comes back is visible in the value. The outcome of a write's request is its number. Connections keep the order of their
frames; messages are encoded and decoded.
"""

import json
from collections import deque
from dataclasses import dataclass, field

from understudy.statesync.replication import sync_set
from understudy.statesync.replication.history import begun, version_of
from understudy.statesync.replication.messages import (
    At,
    Behind,
    Have,
    Lead,
    LoggedWrite,
    Message,
    Part,
    Refused,
    Stored,
    Unsaved,
    Writes,
    decode_frame,
    encode_frame,
)
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, Source, SyncSet

KEYS = "xyz"
SLOT = 7


@dataclass(frozen=True)
class Record:
    """The owner record, with its revision in etcd."""

    revision: int
    epoch: int
    active: Process
    sync: SyncSet


@dataclass(eq=False)
class Change:
    """A transaction of an active or a claimer: it replaces the record of revision ``compares``."""

    sender: Process
    compares: int
    epoch: int
    active: Process
    sync: SyncSet
    source: Source | None = None
    loss: bool = False
    outcome: bool | None = None
    saves: tuple[Stored, ...] = ()
    outcomes: frozenset[int] = frozenset()


@dataclass(eq=False)
class Member:
    """One process: either it is active (``stream``), or it has a copy. ``store`` is what readers see.

    ``log`` has the outcomes of requests that it knows. ``parts`` is what copies of the slot still lack.
    """

    process: Process
    view: Record
    copy: SlotCopy
    stream: SlotStream | None = None
    store: dict[str, Stored] = field(default_factory=dict)
    log: set[int] = field(default_factory=set)
    alive: bool = True
    open: Change | None = None
    parts: dict[Process, "Unsent"] = field(default_factory=dict)


@dataclass(eq=False)
class Unsent:
    """The sessions and the outcomes that a copy of the slot still lacks."""

    keys: deque[str]
    outcomes: deque[int]


class SimulatedSlot:
    """The whole of it. ``acknowledged`` has the numbers of acknowledged writes, by key, ``saved`` etcd's sessions."""

    def __init__(self, names: str = "abc", members: int = 2, *, memory: bool = True) -> None:
        first = [Process(name, "1") for name in names]
        self.record = Record(1, 1, first[0], SyncSet(frozenset(first[:members]), memory))
        self.members = {
            p.member: Member(p, self.record, SlotCopy(SLOT, history=begun(1), whole=True, known=1)) for p in first
        }
        self.links: dict[tuple[Process, Process], deque[bytes]] = {}
        self.changes: list[Change] = []
        self.saved: dict[str, Stored] = {}
        self.outcomes: list[frozenset[int]] = []  # the request log in etcd
        self.acknowledged: dict[str, list[int]] = {key: [] for key in KEYS}
        self.numbers = 0
        self.losses = 0
        self._serve(self.members[names[0]], Source.MEMORY)

    # -- what is going on --

    def member(self, process: Process) -> Member | None:
        """This very process, if it is alive."""
        member = self.members[process.member]
        return member if member.alive and member.process == process else None

    def actives(self) -> list[Member]:
        """Everybody who takes itself for the active."""
        return [m for m in self.members.values() if m.alive and m.stream is not None]

    def owner(self) -> Member | None:
        """Who serves under the record that is in etcd."""
        member = self.member(self.record.active)
        serves = member is not None and member.stream is not None and member.stream.epoch == self.record.epoch
        return member if serves else None

    # -- clients --

    def write(self, member: Member, key: str) -> None:
        """Decide a write on what readers see, unless one to this session is under way."""
        stream = member.stream
        assert stream is not None
        if any(entry.write.key == key for entry in stream.unseen):
            return
        self.numbers += 1
        value = [*numbers_in(member.store.get(key)), self.numbers]
        version = stream.next
        assert stream.append(LoggedWrite(key, json.dumps(value).encode(), b"%d" % self.numbers)) == version
        self._advance(member)

    def _advance(self, member: Member) -> None:
        """Show readers what they may see, and tell the clients."""
        stream = member.stream
        assert stream is not None
        for entry in stream.advance():
            _store(member, entry)
            stream.unsaved = [*stream.unsaved, Unsaved(entry.version, entry.write.key, entry.write.outcome)]
            self.acknowledged[entry.write.key] = numbers_in(member.store[entry.write.key])

    # -- connections --

    def connect(self, active: Member, other: Member) -> None:
        """A new connection from an active to a copy; what was under way on the one before is lost."""
        assert active.stream is not None
        self._disconnect(active.process, other.process)
        self.links[active.process, other.process] = deque([encode_frame([active.stream.lead()])])
        self.links[other.process, active.process] = deque()

    def cut(self, one: Process, other: Process) -> None:
        """End the connection between two processes, if there is one."""
        self._disconnect(one, other)

    def _disconnect(self, one: Process, other: Process) -> None:
        for ends in ((one, other), (other, one)):
            self.links.pop(ends, None)
            member = self.member(ends[0])
            if member is not None and member.stream is not None:
                member.stream.gone(ends[1])
                member.parts.pop(ends[1], None)

    def pump(self, active: Member, to: Process) -> bool:
        """Send the next message to a copy, writes before parts; whether there was one."""
        stream, link = active.stream, self.links.get((active.process, to))
        if stream is None or link is None:
            return False
        message: Message | None = stream.outgoing(to)
        if isinstance(message, Part):
            active.parts[to] = Unsent(deque(sorted(active.store)), deque(sorted(active.log)))
        elif message is None and to in active.parts:
            message = self._part(active, to)
        if message is None:
            return False
        link.append(encode_frame([message]))
        return True

    def _part(self, active: Member, to: Process) -> Part:
        stream, unsent = active.stream, active.parts[to]
        assert stream is not None
        sessions = tuple(active.store[unsent.keys.popleft()] for _ in range(min(1, len(unsent.keys))))
        outcomes = tuple(b"%d" % unsent.outcomes.popleft() for _ in range(min(2, len(unsent.outcomes))))
        last = not unsent.keys and not unsent.outcomes
        if last:
            del active.parts[to]
        return Part(SLOT, stream.epoch, stream.visible, (), sessions, first=False, last=last, outcomes=outcomes)

    def deliver(self, link: tuple[Process, Process]) -> bool:
        """Let the next frame of a connection arrive; whether there was one."""
        sender, to = link
        queue, member = self.links.get(link), self.member(to)
        if not queue or member is None:
            return False
        for message in decode_frame(queue.popleft()):
            if isinstance(message, Lead | Writes | Part):
                self._to_copy(member, sender, message)
            else:
                self._to_active(member, sender, message)
        return True

    def _to_copy(self, member: Member, sender: Process, message: Lead | Writes | Part) -> None:
        if member.stream is not None:
            if message.epoch <= member.stream.epoch:
                return self._answer(member, sender, Refused(SLOT, message.epoch, member.stream.epoch))
            self._step_down(member)
        copy, answer = member.copy, None
        if isinstance(message, Lead):
            answer = copy.lead(message)
        elif isinstance(message, Writes):
            answer, visible = copy.writes(message)
            for entry in visible:
                _store(member, entry)
        else:
            answer = copy.part(message)
            if not isinstance(answer, Refused | Behind):
                if message.first:
                    member.store.clear()
                    member.log.clear()
                member.log.update(map(int, message.outcomes))
                for stored in message.sessions:
                    _keep(member, stored)
        if answer is not None:
            self._answer(member, sender, answer)
        return None

    def _answer(self, member: Member, to: Process, answer: Message) -> None:
        link = self.links.get((member.process, to))
        if link is not None:
            link.append(encode_frame([answer]))

    def _to_active(self, member: Member, sender: Process, message: Message) -> None:
        stream = member.stream
        if stream is None or message.epoch != stream.epoch:  # type: ignore[union-attr]
            return
        match message:
            case At():
                stream.at(sender, message)
                member.parts.pop(sender, None)
            case Have():
                stream.has(sender, message.version)
            case Behind():
                self.links[member.process, sender].append(encode_frame([stream.lead()]))
            case Refused():
                self._step_down(member)
                return
        self._advance(member)

    # -- etcd --

    def save(self, active: Member) -> None:
        """Save everything that all have, if etcd still has the record that the active knows."""
        stream = active.stream
        assert stream is not None
        if self.record.revision != active.view.revision:
            return
        upto = stream.held
        stream.sent_to_etcd = max(stream.sent_to_etcd, upto)
        for stored in _sessions(active, upto):
            self._put(stored)
        self.outcomes.append(_outcomes(active, upto))
        self._note_saved(active, upto)
        self._advance(active)

    def _note_saved(self, active: Member, upto: int) -> None:
        stream = active.stream
        assert stream is not None
        stream.saved = max(stream.saved, upto)
        stream.unsaved = [write for write in stream.unsaved if write.version > stream.saved]

    def requests(self, member: Member) -> set[int]:
        """The numbers of the writes whose outcomes a member knows."""
        return member.log

    def shrink(self, active: Member, lost: Process) -> None:
        """Take a process out of the sync set."""
        stream = active.stream
        assert stream is not None
        removal = sync_set.without(stream.agreed, {lost}, active.process, stream.progress)
        if removal is not None:
            self.propose(active, removal.sync)
            if removal.saves and active.open is not None and active.open.outcome is None:
                active.open.saves = _sessions(active, stream.acknowledged)
                active.open.outcomes = _outcomes(active, stream.acknowledged)

    def _put(self, stored: Stored) -> None:
        if stored.key not in self.saved or self.saved[stored.key].version < stored.version:
            self.saved[stored.key] = stored

    def propose(self, member: Member, agreed: SyncSet | None, *, epoch: int = 0, active: Process | None = None) -> None:
        """Send a change of the sync set; with another active it is a handover."""
        stream = member.stream
        assert stream is not None
        if agreed is None or member.open is not None or member.view.epoch != stream.epoch:
            return
        view = member.view
        member.open = Change(member.process, view.revision, epoch or view.epoch, active or view.active, agreed)
        stream.change = agreed
        self.changes.append(member.open)

    def claim(self, member: Member, dead: frozenset[Process]) -> None:
        """Claim the slot, if the sync set lets this member."""
        view = member.view
        if member.stream is not None or member.open is not None or view.active == member.process:
            return
        found = sync_set.claim(view.sync, view.active, member.process, dead)
        if found is not None:
            member.open = Change(
                member.process, view.revision, view.epoch + 1, member.process, found.sync, found.source, found.loss
            )
            self.changes.append(member.open)

    def carry_out(self, change: Change) -> None:
        """A transaction arrives at etcd."""
        self.changes.remove(change)
        change.outcome = self.record.revision == change.compares
        if change.outcome:
            if change.loss:
                self._lose()
            self.record = Record(self.record.revision + 1, change.epoch, change.active, change.sync)
            for stored in change.saves:
                self._put(stored)
            if change.outcomes:
                self.outcomes.append(change.outcomes)

    def _lose(self) -> None:
        """A loss: what etcd does not have is gone. Everybody else who had it has died."""
        self.losses += 1
        for key in KEYS:
            left = numbers_in(self.saved.get(key))
            self.acknowledged[key] = [number for number in self.acknowledged[key] if number in left]

    def look(self, member: Member) -> None:
        """The watch of a member brings the newest record, and with it the outcome of its own change."""
        change, source = member.open, Source.MEMORY
        if change is not None and change.outcome is None and self.record.revision == change.compares:
            return  # on its way; nothing is known
        member.open = None  # it was carried out, or its compare will fail
        if change is not None and change.outcome and change.source and change.epoch == self.record.epoch:
            source = change.source
        member.view, before = self.record, member.view
        member.copy.heard_of(self.record.epoch)
        stream = member.stream
        if stream is not None and (self.record.active != member.process or self.record.epoch != stream.epoch):
            self._step_down(member)
        elif stream is not None:
            if change is not None and change.outcome and change.saves:
                self._note_saved(member, max(stored.version for stored in change.saves))
            stream.decided(self.record.sync)
            self._advance(member)
        elif self.record.active == member.process and before.epoch < self.record.epoch >= member.copy.known:
            self._serve(member, source)

    # -- beginnings and ends --

    def _serve(self, member: Member, source: Source) -> None:
        copy, record = member.copy, member.view
        if source is Source.MEMORY:
            member.stream = SlotStream(
                SLOT,
                record.epoch,
                member.process,
                record.sync,
                history=copy.history,
                inherited=copy.become_active(),
                saved=copy.saved,
                unsaved=copy.unsaved,
            )
            return self._advance(member)
        member.store = dict(self.saved)
        member.log = set().union(*self.outcomes)
        member.stream = SlotStream(
            SLOT,
            record.epoch,
            member.process,
            record.sync,
            history=begun(record.epoch),
            saved=version_of(record.epoch, 0),
        )
        return None

    def _step_down(self, member: Member) -> None:
        stream = member.stream
        assert stream is not None
        known, member.copy = member.copy.known, stream.as_copy()
        member.copy.heard_of(known)
        member.stream = None
        member.parts.clear()

    def kill(self, member: Member) -> None:
        """End a process with its memory and its connections."""
        member.alive = False
        for ends in [ends for ends in self.links if member.process in ends]:
            self._disconnect(*ends)

    def restart(self, member: Member) -> None:
        """Start a member again: another process, which has forgotten everything."""
        process = Process(member.process.member, str(int(member.process.boot) + 1))
        self.members[process.member] = Member(process, self.record, SlotCopy(SLOT, known=self.record.epoch))


def numbers_in(stored: Stored | None) -> list[int]:
    """The numbers of the writes that a session has had."""
    return json.loads(stored.value) if stored is not None else []


def _sessions(active: Member, upto: int) -> tuple[Stored, ...]:
    """The sessions of an active as of a version, those included that readers may not see yet."""
    assert active.stream is not None
    sessions = dict(active.store)
    for entry in active.stream.unseen:
        if entry.version <= upto and entry.write.value is not None:
            sessions[entry.write.key] = Stored(entry.write.key, entry.version, entry.write.value)
    return tuple(sessions.values())


def _outcomes(active: Member, upto: int) -> frozenset[int]:
    """The outcomes that an active has to save with everything up to a version."""
    assert active.stream is not None
    told = [write.outcome for write in active.stream.unsaved if write.version <= upto]
    told += [entry.write.outcome for entry in active.stream.unseen if entry.version <= upto]
    return frozenset(int(outcome) for outcome in told if outcome)


def _store(member: Member, entry: Entry) -> None:
    if entry.write.outcome:
        member.log.add(int(entry.write.outcome))
    assert entry.write.value is not None
    _keep(member, Stored(entry.write.key, entry.version, entry.write.value))


def _keep(member: Member, stored: Stored) -> None:
    known = member.store.get(stored.key)
    if known is None or known.version < stored.version:
        member.store[stored.key] = stored
