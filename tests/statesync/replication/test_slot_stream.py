"""Streams, copies and sync sets together: members die, connections break, transactions are late, and nothing is lost.

The state machine lets hypothesis choose what happens to a :class:`SimulatedSlot`. Whoever owns the slot must have all
acknowledged writes, in their order, and whatever readers of copies have seen. When all is well again, copies are equal.
"""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.harness.examples import examples
from tests.statesync.replication.simulated_slot import KEYS, Member, SimulatedSlot, numbers_in
from understudy.statesync.replication import slot_stream, sync_set
from understudy.statesync.replication.history import begun, version_of
from understudy.statesync.replication.messages import At, Lead, LoggedWrite, Part, Unsaved, Writes
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, SyncSet

A, B, C = (Process(name, "1") for name in "abc")
MEMBERS = st.sampled_from("abc")
ROUNDS_MOST = 100
NUMBERS = st.integers(0, 2)


class Replication(RuleBasedStateMachine):
    """Any order of steps. A member that is not chosen is paused; a connection that is not chosen is slow."""

    @initialize(members=st.integers(1, 3), memory=st.booleans())
    def begin(self, members: int, memory: bool) -> None:
        self.slot = SimulatedSlot(members=members, memory=memory and members > 1)
        self.kills = 0
        for other in "bc":
            self.slot.connect(self.slot.members["a"], self.slot.members[other])
            talk(self.slot, self.slot.members["a"], self.slot.members[other])

    def active(self, number: int) -> Member:
        """One of those who take themselves for the active."""
        actives = self.slot.actives()
        return actives[number % len(actives)]

    def other(self, active: Member, number: int) -> Member:
        """Another member, dead or alive."""
        others = [member for member in self.slot.members.values() if member is not active]
        return others[number % len(others)]

    @precondition(lambda self: self.slot.actives())
    @rule(number=NUMBERS, key=st.sampled_from(KEYS))
    def write(self, number: int, key: str) -> None:
        self.slot.write(self.active(number), key)

    @precondition(lambda self: self.slot.actives())
    @rule(number=NUMBERS, to=NUMBERS, steps=st.integers(1, 6), back=st.booleans())
    def flow(self, number: int, to: int, steps: int, back: bool) -> None:
        """A part of what an active and a copy have to say arrives."""
        active = self.active(number)
        other = self.other(active, to)
        if not other.alive:
            return
        if (active.process, other.process) not in self.slot.links:
            self.slot.connect(active, other)
        for _ in range(steps):
            self.slot.pump(active, other.process)
            self.slot.deliver((active.process, other.process))
            if back:
                self.slot.deliver((other.process, active.process))

    @precondition(lambda self: self.slot.actives())
    @rule(number=NUMBERS, key=st.sampled_from(KEYS))
    def replicate(self, number: int, key: str) -> None:
        """A client writes, and all that the active and its copies have to say arrives."""
        active = self.active(number)
        self.slot.write(active, key)
        for other in self.slot.members.values():
            if active.stream is not None and other is not active and other.alive:
                if (active.process, other.process) not in self.slot.links:
                    self.slot.connect(active, other)
                talk(self.slot, active, other)

    @precondition(lambda self: self.slot.links)
    @rule(one=MEMBERS, other=MEMBERS)
    def cut(self, one: str, other: str) -> None:
        self.slot.cut(self.slot.members[one].process, self.slot.members[other].process)

    @precondition(lambda self: self.slot.links)
    @rule(one=MEMBERS, other=MEMBERS)
    def deliver_late(self, one: str, other: str) -> None:
        self.slot.deliver((self.slot.members[one].process, self.slot.members[other].process))

    @precondition(lambda self: self.slot.actives())
    @rule(number=NUMBERS)
    def save(self, number: int) -> None:
        self.slot.save(self.active(number))

    @precondition(lambda self: self.slot.actives())
    @rule(number=NUMBERS, to=NUMBERS, kind=st.sampled_from(["shrink", "grow", "announce", "clear", "hand over"]))
    def change(self, number: int, to: int, kind: str) -> None:
        """An active sends a change of the sync set."""
        member = self.active(number)
        stream, other = member.stream, self.other(member, to).process
        assert stream is not None
        agreed, progress = stream.agreed, stream.progress
        if kind == "shrink" and other in agreed.members:
            self.slot.shrink(member, other)
        elif kind == "grow" and other not in agreed.members:
            self.slot.propose(member, sync_set.with_learner(agreed, other, progress))
        elif kind == "announce":
            self.slot.propose(member, sync_set.announced(agreed))
        elif kind == "clear":
            self.slot.propose(member, sync_set.all_saved(agreed, progress))
        elif kind == "hand over":
            after = sync_set.handed_over(agreed, member.process, other)
            self.slot.propose(member, after, epoch=member.view.epoch + 1, active=other)

    @precondition(lambda self: self.slot.changes)
    @rule(number=NUMBERS)
    def carry_out(self, number: int) -> None:
        self.slot.carry_out(self.slot.changes[number % len(self.slot.changes)])

    @rule(name=MEMBERS)
    def look(self, name: str) -> None:
        if self.slot.members[name].alive:
            self.slot.look(self.slot.members[name])

    @rule(name=MEMBERS, at_once=st.booleans())
    def claim(self, name: str, at_once: bool) -> None:
        """A member claims the slot, from what it knows of it."""
        member = self.slot.members[name]
        if not member.alive:
            return
        if at_once:
            self.slot.look(member)
        self.slot.claim(member, self.dead())
        if at_once and member.open in self.slot.changes:
            self.slot.carry_out(member.open)
            self.slot.look(member)

    def dead(self) -> frozenset[sync_set.Process]:
        """The processes of any record that are dead."""
        boots = [
            Process(name, str(boot))
            for name in "abc"
            for boot in range(1, int(self.slot.members[name].process.boot) + 1)
        ]
        return frozenset(process for process in boots if self.slot.member(process) is None)

    @precondition(lambda self: self.kills < 2)
    @rule(name=MEMBERS)
    def kill(self, name: str) -> None:
        if self.slot.members[name].alive:
            self.slot.kill(self.slot.members[name])
            self.kills += 1

    @precondition(lambda self: not all(member.alive for member in self.slot.members.values()))
    @rule()
    def restart(self) -> None:
        self.slot.restart(next(member for member in self.slot.members.values() if not member.alive))

    @invariant()
    def the_owner_has_what_was_acknowledged(self) -> None:
        if self.slot.owner() is None:
            return
        has = contents(self.slot)
        for key, told in self.slot.acknowledged.items():
            assert has[key][: len(told)] == told, f"{key}: {told} was acknowledged, its owner has {has[key]}"

    @invariant()
    def streams_follow_the_rules_of_sync_sets(self) -> None:
        for member in self.slot.members.values():
            stream = member.stream
            if stream is not None:
                assert stream.held == sync_set.held(stream.agreed, stream.change, stream.me, stream.progress)

    @invariant()
    def the_owner_has_what_is_saved(self) -> None:
        if self.slot.owner() is None:
            return
        has = contents(self.slot)
        for key in KEYS:
            saved = numbers_in(self.slot.saved.get(key))
            assert has[key][: len(saved)] == saved, f"{key}: etcd has {saved}, its owner {has[key]}"

    @invariant()
    def readers_of_copies_saw_nothing_that_vanishes(self) -> None:
        if self.slot.owner() is None or self.slot.losses:
            return
        has = contents(self.slot)
        for member in self.slot.members.values():
            if member.alive and member.stream is None and member.copy.whole:
                for key in KEYS:
                    seen = numbers_in(member.store.get(key))
                    assert has[key][: len(seen)] == seen, f"{key}: {member.process} showed {seen}, there is {has[key]}"

    @invariant()
    def a_copy_knows_what_it_would_have_to_save(self) -> None:
        """What readers have seen of a session is in etcd in its newest version, or the copy names it as unsaved."""
        for member in self.slot.members.values():
            copy = member.copy
            if not member.alive or member.stream is not None or not copy.whole or self.slot.losses:
                continue
            versions = [write.version for write in copy.unsaved]
            assert versions == sorted(set(versions))
            assert all(copy.saved < version <= copy.shown for version in versions)
            for key, stored in member.store.items():
                in_etcd = self.slot.saved.get(key)
                saved = in_etcd.version if in_etcd is not None else 0
                assert stored.version <= saved or stored.version in versions, f"{key}: {member.process} would lose it"

    @invariant()
    def a_copy_knows_the_outcome_of_every_write_that_it_has(self) -> None:
        for member in self.slot.members.values():
            if member.alive and (member.stream is not None or member.copy.whole) and not self.slot.losses:
                known = self.slot.requests(member)
                for stored in member.store.values():
                    assert known.issuperset(numbers_in(stored)), f"{member.process} would carry a request out again"

    @invariant()
    def nobody_takes_a_write_that_was_lost_for_done(self) -> None:
        for member in self.slot.members.values():
            if member.alive and (member.stream is not None or member.copy.whole):
                had = {number for stored in member.store.values() for number in numbers_in(stored)}
                if member.stream is not None:  # what it goes on with before its readers may see it
                    had |= {
                        number for entry in member.stream.unseen for number in json.loads(entry.write.value or b"[]")
                    }
                assert self.slot.requests(member) <= had, f"{member.process} would not carry a request out"

    def teardown(self) -> None:
        """All is well again: every member that lives gets everything, and joins the sync set."""
        slot = self.slot
        settle(slot)
        owner = slot.owner()
        if owner is None:
            return
        others = [member for member in slot.members.values() if member.alive and member is not owner]
        for other in others:
            slot.connect(owner, other)
            settle(slot)
            slot.save(owner)
            slot.propose(owner, sync_set.with_learner(owner.stream.agreed, other.process, owner.stream.progress))
            settle(slot)
            if owner.stream.agreed.members <= frozenset(m.process for m in slot.members.values() if m.alive):
                assert other.process in owner.stream.agreed.members, "a copy that has everything does not join"
        slot.save(owner)
        for process in owner.stream.agreed.members:
            if slot.member(process) is None:
                slot.save(owner)
                slot.shrink(owner, process)
                settle(slot)
        slot.save(owner)
        settle(slot)
        assert owner.stream.visible == owner.stream.last, "a write is never acknowledged"
        for other in others:
            assert other.store == owner.store, f"{other.process} differs from its active"


def contents(slot: SimulatedSlot) -> dict[str, list[int]]:
    """What the owner of the slot has of each session, with what readers do not see yet."""
    owner = slot.owner()
    assert owner is not None
    assert owner.stream is not None
    has = {key: numbers_in(owner.store.get(key)) for key in KEYS}
    for entry in owner.stream.unseen:
        has[entry.write.key] = numbers_in(entry.write)
    return has


def talk(slot: SimulatedSlot, one: Member, other: Member) -> bool:
    """Let two members exchange all that they have to say; whether there was anything."""
    ends, said, busy = ((one, other), (other, one)), 0, True
    while busy and one.alive and other.alive:
        busy = False
        for sender, to in ends:
            while slot.pump(sender, to.process) or slot.deliver((sender.process, to.process)):
                busy = True
                said += 1
                assert said < ROUNDS_MOST, "two members never stop talking"
    return said > 0


def settle(slot: SimulatedSlot) -> None:
    """Carry everything out that is under way."""
    everybody = list(slot.members.values())
    for _ in range(ROUNDS_MOST):
        busy = False
        for one in everybody:
            for other in everybody:
                busy |= one is not other and talk(slot, one, other)
        while slot.changes:
            slot.carry_out(slot.changes[0])
            busy = True
        for member in everybody:
            if member.alive and (member.open is not None or member.view != slot.record):
                slot.look(member)
                busy = True
        if not busy:
            return
    raise AssertionError("the members never stop talking")


def pool(members: int = 2, *, memory: bool = True) -> tuple[SimulatedSlot, Member, Member, Member]:
    """A slot of a, with as many in its sync set; b and c follow it."""
    slot = SimulatedSlot(members=members, memory=memory)
    a, b, c = slot.members.values()
    for other in (b, c):
        slot.connect(a, other)
        talk(slot, a, other)
    return slot, a, b, c


def take_over(slot: SimulatedSlot, member: Member) -> None:
    slot.look(member)
    slot.claim(member, frozenset())
    slot.carry_out(slot.changes[-1])
    slot.look(member)
    assert slot.owner() is member


def test_a_write_is_told_when_the_last_of_the_set_has_it() -> None:
    slot, a, b, c = pool(3)
    slot.write(a, "x")
    talk(slot, a, b)
    assert slot.acknowledged["x"] == []
    talk(slot, a, c)
    assert slot.acknowledged["x"] == [1]


def test_a_learner_is_not_waited_for() -> None:
    slot, a, b, _ = pool(2)
    slot.write(a, "x")
    talk(slot, a, b)
    assert slot.acknowledged["x"] == [1]


def test_who_may_be_in_the_set_already_is_waited_for() -> None:
    slot, a, b, c = pool(2)
    slot.propose(a, sync_set.with_learner(a.stream.agreed, C, a.stream.progress))
    slot.write(a, "x")
    talk(slot, a, b)
    assert slot.acknowledged["x"] == []
    talk(slot, a, c)
    assert slot.acknowledged["x"] == [1]


def test_a_deposed_active_cannot_lead_who_follows_its_successor() -> None:
    """A command of an old term arrives late (KIP-570)."""
    slot, a, b, c = pool(3)
    take_over(slot, b)
    slot.write(b, "x")
    slot.connect(b, c)
    talk(slot, b, c)
    assert slot.acknowledged["x"] == [1]
    slot.connect(a, c)
    talk(slot, a, c)
    assert a.stream is None
    assert numbers_in(b.store["x"]) == [1]
    assert c.copy.have == b.stream.last


def test_a_new_active_waits_for_the_others_with_what_may_not_be_acknowledged() -> None:
    slot, a, b, c = pool(3)
    slot.write(a, "x")
    talk(slot, a, b)
    take_over(slot, b)
    assert "x" not in b.store
    assert [entry.write.key for entry in b.stream.unseen] == ["x"]
    slot.connect(b, c)
    talk(slot, b, c)
    assert numbers_in(b.store["x"]) == [1]


def test_a_new_active_may_not_save_what_the_others_lack() -> None:
    slot, a, b, _ = pool(3)
    slot.write(a, "x")
    talk(slot, a, b)
    take_over(slot, b)
    slot.save(b)
    assert slot.saved == {}
    slot.shrink(b, C)
    settle(slot)
    assert numbers_in(slot.saved["x"]) == [1]
    assert slot.record.sync == SyncSet(frozenset({B}))


def test_an_announcement_that_its_active_did_not_survive_ends_with_its_heir() -> None:
    """A transient state is frozen by a crash (patroni 3662): nobody else could claim the slot for ever."""
    slot, a, b, _ = pool(2, memory=False)
    slot.propose(a, sync_set.announced(a.stream.agreed))
    slot.carry_out(slot.changes[0])
    slot.kill(a)
    assert slot.record.sync.memory
    take_over(slot, b)
    slot.shrink(b, A)
    slot.save(b)
    slot.propose(b, sync_set.all_saved(b.stream.agreed, b.stream.progress))
    settle(slot)
    assert slot.record.sync == SyncSet(frozenset({B}))


def test_a_planned_handover_takes_every_acknowledged_write_along() -> None:
    """A planned failover rolls back (redis 6062): the old active has acknowledged more than the new one has."""
    slot, a, b, _ = pool(2)
    slot.write(a, "x")
    talk(slot, a, b)
    slot.propose(a, sync_set.handed_over(a.stream.agreed, A, B), epoch=2, active=B)
    slot.write(a, "y")
    slot.write(a, "z")
    for _ in range(3):
        slot.pump(a, B)
        slot.deliver((A, B))
    slot.carry_out(slot.changes[0])
    slot.look(b)
    talk(slot, a, b)
    slot.look(a)
    assert slot.owner() is b
    has = contents(slot)
    assert all(has[key][: len(told)] == told for key, told in slot.acknowledged.items())
    assert slot.acknowledged["x"] == [1]


def test_a_learner_needs_what_etcd_may_have() -> None:
    slot, a, _, c = pool(1, memory=False)
    slot.write(a, "x")
    a.stream.sent_to_etcd = a.stream.held  # its transaction is under way
    assert sync_set.with_learner(a.stream.agreed, C, a.stream.progress) is None
    talk(slot, a, c)
    assert sync_set.with_learner(a.stream.agreed, C, a.stream.progress) is not None


def test_a_copy_that_missed_little_gets_only_that() -> None:
    slot, a, b, _ = pool(1, memory=False)
    slot.cut(A, B)
    slot.write(a, "x")
    slot.save(a)
    slot.connect(a, b)
    slot.deliver((A, B))
    slot.deliver((B, A))
    assert isinstance(a.stream.outgoing(B), Writes)


def test_a_copy_that_was_cut_off_before_its_last_part_is_made_anew() -> None:
    stream = stream_of(3)
    stream.at(B, At(7, 1, version_of(1, 3), whole=False))
    part = stream.outgoing(B)
    assert isinstance(part, Part)
    assert part.first


def test_a_copy_gets_what_is_not_acknowledged_as_writes_after_it() -> None:
    stream = stream_of(3)
    stream.append(LoggedWrite("x", b"not saved yet"))
    stream.at(B, At(7, 1, 0, whole=False))
    part = stream.outgoing(B)
    assert isinstance(part, Part)
    assert (part.at, part.history) == (version_of(1, 3), (version_of(1, 3),))
    message = stream.outgoing(B)
    assert isinstance(message, Writes)
    assert (message.after, message.shown, len(message.writes)) == (version_of(1, 3), version_of(1, 3), 1)


def stream_of(writes: int) -> SlotStream:
    """A stream of a alone, which has so many writes, all of them saved."""
    stream = SlotStream(7, 1, A, SyncSet(frozenset({A})), history=begun(1))
    for number in range(writes):
        stream.saved = stream.append(LoggedWrite("x", b"%d" % number))
        stream.advance()
    return stream


def test_a_copy_that_missed_more_than_the_log_has_is_made_anew() -> None:
    stream = stream_of(3 * slot_stream.LOG_MOST)
    stream.at(B, At(7, 1, version_of(1, 100), whole=True))
    assert isinstance(stream.outgoing(B), Part)
    stream.at(B, At(7, 1, version_of(1, 2 * slot_stream.LOG_MOST), whole=True))
    assert isinstance(stream.outgoing(B), Writes)


def test_a_copy_that_is_slower_than_the_log_is_long_starts_again() -> None:
    stream = stream_of(10)
    stream.at(B, At(7, 1, version_of(1, 10), whole=True))
    assert isinstance(stream.outgoing(B), Writes)
    for number in range(3 * slot_stream.LOG_MOST):
        stream.saved = stream.append(LoggedWrite("x", b"%d" % number))
        stream.advance()
    part = stream.outgoing(B)
    assert isinstance(part, Part)
    assert part.at == stream.visible


def test_the_log_does_not_grow_without_end() -> None:
    assert len(stream_of(10 * slot_stream.LOG_MOST)._log) <= 2 * slot_stream.LOG_MOST
    stream = stream_of(0)
    for _ in range(100):
        stream.saved = stream.append(LoggedWrite("x", b"v" * (slot_stream.LOG_BYTES // 10)))
        stream.advance()
    assert sum(len(entry.write.value) for entry in stream._log) <= 2 * slot_stream.LOG_BYTES
    assert stream._bytes == sum(len(entry.write.value) for entry in stream._log)


def test_what_is_not_acknowledged_stays_in_the_log_however_large_it_is() -> None:
    stream = stream_of(10)
    written = [stream.append(LoggedWrite("x", b"v" * slot_stream.LOG_BYTES)) for _ in range(4)]
    stream.saved = written[0]
    stream.advance()
    assert [entry.version for entry in stream.unseen] == written[1:]


def test_who_gets_a_copy_of_the_slot_has_confirmed_nothing() -> None:
    stream = stream_of(3)
    stream.has(B, version_of(1, 3))
    stream.at(B, At(7, 1, 0, whole=False))
    assert isinstance(stream.outgoing(B), Part)
    assert sync_set.with_learner(stream.agreed, B, stream.progress) is None


def test_a_message_has_writes_of_one_epoch_and_a_bounded_size() -> None:
    inherited = [Entry(version_of(1, number), LoggedWrite("x", b"")) for number in (4, 5)]
    stream = SlotStream(7, 2, A, SyncSet(frozenset({A, B})), history=(version_of(1, 5),), inherited=inherited)
    for _ in range(3):
        stream.append(LoggedWrite("y", b"v" * slot_stream.BYTES_MOST))
    stream.at(B, At(7, 2, version_of(1, 3), whole=True))
    sent = []
    while message := stream.outgoing(B):
        sent.append((message.after, message.first, len(message.writes)))
    assert sent == [
        (version_of(1, 3), version_of(1, 4), 2),
        (version_of(1, 5), version_of(2, 1), 1),
        (version_of(2, 1), version_of(2, 2), 1),
        (version_of(2, 2), version_of(2, 3), 1),
    ]


def test_the_next_version_is_told_before_the_write() -> None:
    inherited = [Entry(version_of(1, 5), LoggedWrite("x", b""))]
    stream = SlotStream(7, 2, A, SyncSet(frozenset({A})), history=(version_of(1, 5),), inherited=inherited)
    for expected in (version_of(2, 1), version_of(2, 2)):
        assert stream.next == expected
        assert stream.append(LoggedWrite("x", b"")) == expected


def stuck_stream() -> SlotStream:
    """A stream of a and b, in which b has lost its copy."""
    stream = SlotStream(7, 1, A, SyncSet(frozenset({A, B}), memory=True), history=(version_of(1, 3),))
    stream.at(B, At(7, 1, 0, whole=False))
    return stream


def test_a_process_of_the_set_is_never_sent_a_part_of_a_copy() -> None:
    """The part would empty what it may have to claim the slot with."""
    stream = stuck_stream()
    stream.append(LoggedWrite("x", b""))
    assert stream.outgoing(B) is None
    assert stream.stuck == {B}
    stream.decided(SyncSet(frozenset({A})))
    assert stream.stuck == frozenset()
    assert isinstance(stream.outgoing(B), Part)


def test_who_may_be_in_the_set_already_is_sent_no_part() -> None:
    stream = stuck_stream()
    stream.decided(SyncSet(frozenset({A})))
    stream.change = SyncSet(frozenset({A, B}))
    assert (stream.outgoing(B), stream.stuck) == (None, {B})
    stream.change = None
    assert isinstance(stream.outgoing(B), Part)


def test_who_gets_writes_or_has_no_connection_is_not_stuck() -> None:
    stream = stuck_stream()
    stream.at(B, At(7, 1, version_of(1, 3), whole=True))
    assert stream.stuck == frozenset()
    stream.at(B, At(7, 1, 0, whole=False))
    stream.gone(B)
    assert stream.stuck == frozenset()


def test_what_is_saved_is_told_with_the_next_message_or_when_it_is_asked_for() -> None:
    stream = stream_of(3)
    stream.at(B, At(7, 1, version_of(1, 3), whole=True))
    told = stream.outgoing(B)
    assert isinstance(told, Writes)
    assert told.saved == version_of(1, 3)
    assert not stream.tell_saved(B)
    assert not stream.tell_saved(C), "it has no connection"
    stream.append(LoggedWrite("x", b""))
    assert stream.outgoing(B).saved == version_of(1, 3)
    stream.saved = version_of(1, 4)
    assert stream.outgoing(B) is None
    assert stream.tell_saved(B)
    told = stream.outgoing(B)
    assert (told.writes, told.after, told.saved) == ((), version_of(1, 4), version_of(1, 4))
    assert not stream.tell_saved(B)
    assert stream.outgoing(B) is None


def test_the_first_part_of_a_copy_tells_what_etcd_lacks() -> None:
    stream = stream_of(3)
    stream.saved = version_of(1, 2)
    stream.unsaved = [Unsaved(version_of(1, number), "x", b"%d" % number) for number in (2, 3)]
    stream.at(B, At(7, 1, 0, whole=False))
    part = stream.outgoing(B)
    assert (part.saved, part.unsaved) == (version_of(1, 2), (Unsaved(version_of(1, 3), "x", b"3"),))
    assert not stream.tell_saved(B)


def test_what_a_former_active_has_is_a_copy_that_the_next_one_can_lead() -> None:
    stream = SlotStream(7, 3, A, SyncSet(frozenset({A, B})), history=begun(3), saved=version_of(3, 0))
    for number in (1, 2, 3):
        stream.append(LoggedWrite("x", b"%d" % number, b"outcome"))
    stream.has(B, version_of(3, 2))
    stream.saved = version_of(3, 2)
    stream.unsaved = [Unsaved(entry.version, "x", entry.write.outcome) for entry in stream.advance()]
    stream.saved = version_of(3, 1)
    copy = stream.as_copy()
    assert (copy.history, copy.shown, copy.saved) == ((version_of(3, 3),), version_of(3, 2), version_of(3, 1))
    assert (copy.known, copy.whole) == (3, True)
    assert copy.unsaved == [Unsaved(version_of(3, 2), "x", b"outcome")]
    assert [entry.version for entry in copy.become_active()] == [version_of(3, 3)]
    assert copy.lead(Lead(7, 4, (version_of(3, 2), version_of(4, 1)))) == At(7, 4, version_of(3, 2), whole=True)
    assert copy.become_active() == []


Replication.TestCase.settings = settings(max_examples=examples(300), stateful_step_count=60, deadline=None)
TestReplication = Replication.TestCase
