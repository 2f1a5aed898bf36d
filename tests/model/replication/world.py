"""The state of a slot whose members replicate to each other: the owner record, the checkpoint, members, messages.

The model of the contract for replication between members (docs/ownership.md). A write is a number, and a log is a tuple
of them. All of it is named tuples, so that a state is its own key.
"""

from typing import NamedTuple

from tests.model.world import Violation, name_of
from understudy.statesync.replication.sync_set import Source, SyncSet

Process = tuple[int, int]
"""A member and its boot. The protocol's functions only compare processes, so numbers do for names."""


class Record(NamedTuple):
    """The owner record; ``source`` is where its active has the log from."""

    revision: int
    epoch: int
    active: Process
    sync: SyncSet
    source: Source = Source.MEMORY


class Change(NamedTuple):
    """A transaction that replaces the owner record of revision ``compares``, and saves ``saves``."""

    kind: str
    sender: Process
    compares: int
    record: Record
    saves: tuple[int, ...] = ()


class Frame(NamedTuple):
    """The log as the active had it; ``shown`` is how much of it is acknowledged."""

    sender: Process
    to: Process
    epoch: int
    log: tuple[int, ...]
    shown: int


class Confirmation(NamedTuple):
    """``sender`` has so much of the log of an epoch."""

    sender: Process
    to: Process
    epoch: int
    length: int


class Refusal(NamedTuple):
    """A word to an active that its epoch is over."""

    to: Process
    epoch: int


class Promise(NamedTuple):
    """``sender`` does not serve while the question may still be counted on."""

    sender: Process
    to: Process
    question: int


class Member(NamedTuple):
    """One process and its successors of the same name.

    ``known`` is the highest epoch that it knows, ``follows`` that of its log, ``serving`` the one it serves in, or 0.
    ``change`` is its own change of the record whose outcome it does not know. ``heard`` is how much others have
    confirmed in this epoch, ``saved`` how much it knows to be in the checkpoint, ``began`` how much it had when it
    began to serve, ``shown`` how much stale readers may see. ``asked`` is its last question, ``promises`` who has
    answered it, ``promised`` the questions it has answered.
    """

    alive: bool
    boot: int
    view: Record
    known: int
    log: tuple[int, ...] = ()
    follows: int = 0
    serving: int = 0
    change: Change | None = None
    heard: tuple[tuple[Process, int], ...] = ()
    saved: int = 0
    began: int = 0
    shown: int = 0
    asked: int = 0
    promises: frozenset[Process] = frozenset()
    promised: frozenset[int] = frozenset()


class Spent(NamedTuple):
    """How much of each bounded kind of event has happened."""

    writes: int = 0
    claims: int = 0
    deaths: int = 0
    restarts: int = 0
    shrinks: int = 0
    growths: int = 0
    memory_changes: int = 0
    handovers: int = 0
    questions: int = 0
    saves: int = 0
    delayed: int = 0


class World(NamedTuple):
    """Everything. ``checkpoint`` is what etcd has of the log.

    ``acknowledged`` are the writes that clients were told of, ``synced`` those of class ``sync`` among them, ``seen``
    those that a reader was shown. ``holders`` tells which processes had a write when it was acknowledged.
    ``expired`` are the questions that nobody may count on any more; ``askers`` has who asked which.
    """

    record: Record
    checkpoint: tuple[int, ...]
    members: tuple[Member, ...]
    transit: frozenset[Change | Frame | Confirmation | Refusal | Promise]
    acknowledged: frozenset[int] = frozenset()
    synced: frozenset[int] = frozenset()
    seen: frozenset[int] = frozenset()
    holders: frozenset[tuple[int, Process]] = frozenset()
    askers: tuple[Process, ...] = ()
    expired: frozenset[int] = frozenset()
    spent: Spent = Spent()


class Bounds(NamedTuple):
    """How much may happen in one history; ``sync`` members are in the sync set at first, ``memory`` as in the record.

    ``deposed``: the second member has just taken the slot over, and the first has not heard of it.
    """

    members: int = 2
    sync: int = 2
    memory: bool = True
    writes: int = 1
    claims: int = 1
    deaths: int = 0
    restarts: int = 0
    shrinks: int = 0
    growths: int = 0
    memory_changes: int = 0
    handovers: int = 0
    questions: int = 0
    saves: int = 0
    delayed: int = 0
    stale_reads: bool = False
    reads: bool = False
    deposed: bool = False


class Rules(NamedTuple):
    """The rules of the contract; a mutant is the contract with one of them taken away."""

    all_of_the_set_confirm: bool = True
    open_change_counts: bool = True
    open_forgetting_stops: bool = True
    memory_is_announced: bool = True
    two_have_it: bool = True
    old_epochs_are_refused: bool = True
    logs_follow_epochs: bool = True
    boots_are_identities: bool = True
    only_the_set_claims: bool = True
    claim_keeps_the_others: bool = True
    shrink_saves_first: bool = True
    forgetting_saves_first: bool = True
    learner_has_what_is_acknowledged: bool = True
    learner_has_what_is_saved: bool = True
    saved_is_what_all_have: bool = True
    readers_see_what_all_have: bool = True
    readers_see_what_is_saved: bool = True
    former_actives_bring_what_they_have: bool = True
    loss_proves_the_set_dead: bool = True
    loss_proves_former_actives_dead: bool = True
    copies_show_what_is_acknowledged: bool = True
    promises_outlast_the_deadline: bool = True
    every_member_promises: bool = True
    promises_need_memory: bool = True


def start(bounds: Bounds) -> World:
    """The first member owns the slot and serves; everybody knows."""
    members = frozenset((number, 1) for number in range(bounds.sync))
    record = Record(1, 1, (0, 1), SyncSet(members, bounds.memory))
    first = Member(True, 1, record, 1, follows=1, serving=1)
    other = Member(True, 1, record, 1, follows=1)
    world = World(record, (), (first, *(other,) * (bounds.members - 1)), frozenset())
    if not bounds.deposed:
        return world
    claimed = Record(2, 2, (1, 1), SyncSet(members - {(0, 1)}, bounds.memory, frozenset({(0, 1)})))
    heir = Member(True, 1, claimed, 2, follows=2, serving=2)
    return with_member(world, 1, heir)._replace(record=claimed)


def with_member(world: World, number: int, member: Member) -> World:
    """The world with another state of one member."""
    members = world.members
    return world._replace(members=(*members[:number], member, *members[number + 1 :]))


def runs(world: World, process: Process) -> bool:
    """Whether this very process is alive."""
    member = world.members[process[0]]
    return member.alive and member.boot == process[1]


def checked(world: World) -> World:
    """The world, if its invariants hold; raises :class:`Violation`."""
    active, boot = world.record.active
    member = world.members[active]
    if member.alive and member.boot == boot and member.serving == world.record.epoch:
        lost = world.acknowledged - frozenset(member.log)
        if lost:
            raise Violation(f"no acknowledged write is lost: {name_of(active)} serves without {sorted(lost)}")
        back = frozenset(world.checkpoint) - frozenset(member.log)
        if back:
            raise Violation(f"nothing comes back: {name_of(active)} serves without {sorted(back)}, which etcd has")
        gone = world.seen - frozenset(member.log)
        if gone:
            raise Violation(f"nothing that was shown vanishes: {name_of(active)} serves without {sorted(gone)}")
    return world
