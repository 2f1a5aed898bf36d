"""The state of a slot whose members replicate to each other: its two records, the checkpoint, members, messages.

The model of the ownership protocol (docs/ownership.md). A write is a number, which names its request too, and a log is
a tuple of them. All writes change one session, so the checkpoint is the log as of one write, and a later save replaces
it. All of it is named tuples, so that a state is its own key.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.model.explorer import Violation, quickly_replaced
from understudy.statesync.replication.sync_set import Source, SyncSet

NOBODY = -1
Process = tuple[int, int]
"""A member and its boot. The protocol's functions only compare processes, so numbers do for names."""


@quickly_replaced
class Owner(NamedTuple):
    """The owner record. ``to`` is the member that it is on its way to, or nobody.

    What its active alone knows stands here too: ``source`` is where it has the log from, ``plain`` says that it has
    claimed the slot without writing the sync record, as earlier releases did, and ``quiet`` that nobody answers reads
    under the record before.
    """

    revision: int
    epoch: int
    active: Process
    source: Source = Source.MEMORY
    plain: bool = False
    to: int = NOBODY
    quiet: bool = False


@quickly_replaced
class SyncRecord(NamedTuple):
    """The sync record. It is void if its epoch is not that of the owner record."""

    revision: int
    epoch: int
    sync: SyncSet


@quickly_replaced
class Records(NamedTuple):
    """Both records, as they are or as a member has seen them."""

    owner: Owner
    sync: SyncRecord

    @property
    def valid(self) -> bool:
        """Whether the sync record is one of the epoch of the owner record."""
        return self.sync.epoch == self.owner.epoch

    @property
    def revisions(self) -> tuple[int, int]:
        """The revisions that a transaction compares."""
        return self.owner.revision, self.sync.revision


class Change(NamedTuple):
    """A transaction that replaces records. Those that are None stay.

    It compares the revisions ``compares`` of both records, or of the owner record alone (``both`` is false), or nothing
    (they are 0). It saves ``saves``. ``answered``: its sender acts on etcd's answer, and not on what it sees by its
    watch.
    """

    kind: str
    sender: Process
    compares: tuple[int, int]
    owner: Owner | None
    sync: SyncRecord | None
    saves: tuple[int, ...] = ()
    both: bool = True
    answered: bool = False


class Answer(NamedTuple):
    """etcd's answer to a change: whether it has taken effect, and the records right after."""

    to: Process
    change: Change
    done: bool
    records: Records


class Activate(NamedTuple):
    """A word to the member ``to``: the owner record of ``revision`` lets it finish the handover."""

    to: int
    revision: int


class Given(NamedTuple):
    """A word to the member ``to``: an owner without etcd answers nothing more under the record of ``revision``."""

    to: int
    revision: int


class Save(NamedTuple):
    """A transaction that saves the log in etcd. It compares the owner record's revision alone; 0: nothing.

    It compares its sender's commit marker too, which every save raises.
    """

    sender: Process
    compares: int
    epoch: int
    log: tuple[int, ...]
    marker: int = 0


class Saved(NamedTuple):
    """etcd's answer to a save: it has so much of the log of an epoch."""

    to: Process
    epoch: int
    length: int


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


Message = Change | Answer | Activate | Given | Save | Saved | Frame | Confirmation | Refusal | Promise
"""All that can be under way."""


@quickly_replaced
class Member(NamedTuple):
    """One process and its successors of the same name.

    ``known`` is the highest epoch that it knows, ``follows`` that of its log, ``serving`` the one it serves in, or 0.
    ``change`` is its own change of the records whose outcome it does not know. ``heard`` is how much others have
    confirmed in this epoch, ``saving`` how much a save under way holds, ``saved`` how much it knows to be in the
    checkpoint, ``began`` how much it had when it began to serve, ``shown`` how much stale readers may see. ``asked`` is
    its last question, ``promises`` who has answered it, ``promised`` the questions it has answered.

    ``reading``: it answers reads from memory. ``look`` is its read of the owner record that is under way: when it was
    sent, and what it found; ``looked`` is when the last one was sent that has come back. ``given`` is the revision of
    the owner record under which it has given the slot up. ``blind``: it has so many writes without the outcomes of
    their requests. ``released``: its active does not count on its copy.
    """

    alive: bool
    boot: int
    view: Records
    known: int
    log: tuple[int, ...] = ()
    follows: int = 0
    serving: int = 0
    change: Change | None = None
    heard: tuple[tuple[Process, int], ...] = ()
    saving: int = 0
    saved: int = 0
    began: int = 0
    shown: int = 0
    asked: int = 0
    promises: frozenset[Process] = frozenset()
    promised: frozenset[int] = frozenset()
    reading: bool = False
    look: tuple[int, Owner] | None = None
    looked: int = 0
    given: int = 0
    blind: int = 0
    released: bool = False


@quickly_replaced
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
    resends: int = 0
    saves_again: int = 0
    lost_answers: int = 0
    gifts: int = 0
    looks: int = 0
    repeats: int = 0
    drops: int = 0
    words: int = 0


@quickly_replaced
class World(NamedTuple):
    """Everything. ``checkpoint`` is the log as of what etcd has.

    ``acknowledged`` are the writes that clients were told of, ``synced`` those of class ``sync`` among them, ``seen``
    those that a reader was shown. ``holders`` tells which processes had a write when it was acknowledged.
    ``resigned``: former actives that have resigned, each in an epoch.
    ``expired`` are the questions that nobody may count on any more; ``askers`` has who asked which. ``markers`` are
    the members' commit markers. ``passed`` is the revision of which all looks sent before it have surely outlived their
    read deadline. ``word`` is the epoch about which an operator has said that everybody who has its writes is gone;
    ``forsaken`` is the last epoch that was replaced on such a word, true or not.
    """

    records: Records
    checkpoint: tuple[int, ...]
    members: tuple[Member, ...]
    transit: frozenset[Message]
    acknowledged: frozenset[int] = frozenset()
    synced: frozenset[int] = frozenset()
    seen: frozenset[int] = frozenset()
    holders: frozenset[tuple[int, Process]] = frozenset()
    resigned: frozenset[tuple[Process, int]] = frozenset()
    askers: tuple[Process, ...] = ()
    expired: frozenset[int] = frozenset()
    markers: tuple[int, ...] = ()
    passed: int = 0
    word: int = 0
    forsaken: int = 0
    spent: Spent = Spent()


class Bounds(NamedTuple):
    """How much may happen in one history; ``sync`` members are in the sync set at first, ``memory`` as in the record.

    ``before`` is a key of :data:`BEGINNINGS`. ``torn``: a member may see a new owner record without the sync record of
    the same transaction, or the other way round. ``plain``: members of an earlier release, which claim a slot without a
    sync record and write none. ``resends`` and ``saves_again``: so many transactions arrive twice. ``answers``: a
    member acts on etcd's answers to its claims and handovers, of which ``lost_answers`` never come. ``lease``: reads
    from memory end with a deadline, and a new active waits for that.
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
    resends: int = 0
    saves_again: int = 0
    lost_answers: int = 0
    gifts: int = 0
    looks: int = 0
    repeats: int = 0
    drops: int = 0
    words: int = 0
    stale_reads: bool = False
    reads: bool = False
    torn: bool = False
    plain: bool = False
    answers: bool = False
    lease: bool = False
    before: str = ""


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
    saves_compare_the_owner: bool = True
    saves_keep_what_is_newer: bool = True
    one_batch_at_a_time: bool = True
    claims_compare_both: bool = True
    plain_claims_compare_both: bool = True
    set_changes_compare_both: bool = True
    void_records_count_for_nothing: bool = True
    actives_begin_with_both_records: bool = True
    readers_see_what_all_have: bool = True
    readers_see_what_is_saved: bool = True
    loss_proves_the_set_dead: bool = True
    loss_proves_former_actives_dead: bool = True
    copies_show_what_is_acknowledged: bool = True
    promises_outlast_the_deadline: bool = True
    every_member_promises: bool = True
    promises_need_memory: bool = True
    claims_compare_the_owner: bool = True
    claims_raise_the_epoch: bool = True
    claims_from_etcd_read_after: bool = True
    saves_compare_the_marker: bool = True
    targets_are_in_the_set: bool = True
    receivers_of_old_slots_read_etcd: bool = True
    refused_undos_end_it: bool = True
    late_answers_yield: bool = True
    reclaims_alone_read_etcd: bool = True
    reclaims_read_both_records: bool = True
    claims_outwait_readers: bool = True
    reclaims_outwait_readers: bool = True
    deadlines_count_from_sending: bool = True
    refusals_keep_the_deadline: bool = True
    reads_end_before_the_target_is_told: bool = True
    giving_ends_reads: bool = True
    given_is_taken_up_anew: bool = True
    outcomes_go_with_writes: bool = True
    copies_bring_outcomes: bool = True
    claims_from_etcd_read_outcomes: bool = True
    inherited_is_settled_first: bool = True
    copies_stay_while_they_count: bool = True
    words_are_about_one_epoch: bool = True


def start(bounds: Bounds) -> World:
    """The first member owns the slot and serves; everybody knows."""
    members = frozenset((number, 1) for number in range(bounds.sync))
    records = Records(Owner(1, 1, (0, 1)), SyncRecord(1, 1, SyncSet(members, bounds.memory)))
    first = Member(True, 1, records, 1, follows=1, serving=1, reading=True)
    other = Member(True, 1, records, 1, follows=1)
    members = (first, *(other,) * (bounds.members - 1))
    world = World(records, (), members, frozenset(), markers=(0,) * bounds.members)
    return BEGINNINGS[bounds.before](world) if bounds.before else world


def _replaced(world: World) -> World:
    agreed, second = world.records.sync.sync, (1, 1)
    after = SyncSet(agreed.members - {(0, 1)}, agreed.memory, frozenset({(0, 1)}))
    return world._replace(records=Records(Owner(2, 2, second), SyncRecord(2, 2, after)))


def _claimed(world: World) -> World:
    first = world.members[0]
    return with_member(_replaced(world), 0, Member(False, 1, first.view, 0))


def _deposed(world: World) -> World:
    replaced = _replaced(world)
    return with_member(replaced, 1, Member(True, 1, replaced.records, 2, follows=2, serving=2))


def _inherited(world: World) -> World:
    claimed = _claimed(world)
    heir = Member(True, 1, claimed.records, 2, log=(1,), follows=2, serving=2, began=1)
    return with_member(claimed, 1, heir)._replace(spent=Spent(writes=1))


def _ahead(world: World) -> World:
    deposed = _deposed(world)
    first, second, *others = deposed.members
    members = (first._replace(log=(1, 2)), second, *(other._replace(log=(1, 2)) for other in others))
    return deposed._replace(members=members, spent=Spent(writes=2))


def _saved(world: World) -> World:
    first, *others = world.members
    heard = tuple(((number, 1), 2) for number in range(1, len(world.members)))
    first = first._replace(log=(1, 2), shown=1, saved=2, heard=heard)
    members = (first, *(other._replace(log=(1, 2), shown=1) for other in others))
    return _all_told(world._replace(checkpoint=(1, 2), members=members))


def _all_told(world: World) -> World:
    """The world in which everything in etcd was acknowledged as ``sync``."""
    told = frozenset(world.checkpoint)
    holders = frozenset(
        (write, (number, 1)) for number, member in enumerate(world.members) for write in told & set(member.log)
    )
    return world._replace(acknowledged=told, synced=told, holders=holders, spent=Spent(writes=len(told)))


def _promised(world: World) -> World:
    first, second, *others = world.members
    members = (first._replace(asked=1, promises=frozenset({(1, 1)})), second._replace(promised=frozenset({1})), *others)
    return world._replace(members=members, askers=((0, 1),))


def _alone(world: World) -> World:
    first, *others = world.members
    return world._replace(members=(first, *(other._replace(follows=0) for other in others)))


def _void(world: World) -> World:
    records = world.records._replace(owner=Owner(2, 2, (0, 1), plain=True))
    first, *others = (member._replace(view=records, known=2) for member in world.members)
    first = first._replace(log=(1,), follows=2, serving=2, saved=1, began=1)
    return _all_told(world._replace(records=records, checkpoint=(1,), members=(first, *others)))


BEGINNINGS: Mapping[str, Callable[[World], World]] = {
    "alone": _alone,
    "claimed": _claimed,
    "deposed": _deposed,
    "inherited": _inherited,
    "ahead": _ahead,
    "saved": _saved,
    "promised": _promised,
    "void": _void,
}
"""What has happened before the first step. Histories that begin later are shorter.

``alone``: the other members have never had a copy. ``claimed``: the first member has died, the second has taken over,
and nobody has heard of it. ``inherited``: the second serves then, with a write that others of the set may lack.
``deposed``: the second has taken over and serves, and the first lives and has not heard of it. ``ahead``: so it is, and
others have two writes that the second lacks. ``saved``: etcd and everybody have two writes, but the copies have not
heard that the second one is acknowledged. ``promised``: the second member has promised the first not to serve.
``void``: the first member has claimed the slot from etcd, where a write is, and has written no sync record; that of the
epoch before still stands.
"""


def name_of(number: int) -> str:
    """The name of a member."""
    return "abc"[number]


def with_member(world: World, number: int, member: Member) -> World:
    """The world with another state of one member."""
    members = world.members
    return world._replace(members=(*members[:number], member, *members[number + 1 :]))


def runs(world: World, process: Process) -> bool:
    """Whether this very process is alive."""
    member = world.members[process[0]]
    return member.alive and member.boot == process[1]


def agreed(view: Records, rules: Rules) -> SyncSet:
    """The sync set of the slot. If its record is void, etcd has everything, and the active is alone."""
    if view.valid or not rules.void_records_count_for_nothing:
        return view.sync.sync
    return SyncSet(frozenset({view.owner.active}))


def check(world: World, *, strict: bool) -> None:
    """Raise :class:`Violation` if an invariant does not hold.

    Without ``strict`` a member of the sync set may lack what is acknowledged, until somebody serves without it.
    """
    owner = world.records.owner
    active, boot = owner.active
    member = world.members[active]
    for process in world.records.sync.sync.members if strict and world.records.valid else ():
        if process != owner.active and runs(world, process):
            lost = world.acknowledged.difference(world.members[process[0]].log)
            if lost:
                raise Violation(f"the set has what is acknowledged: {name_of(process[0])} lacks {sorted(lost)}")
    if len(set(world.checkpoint)) < len(world.checkpoint):
        raise Violation(f"no write is applied twice: etcd has {world.checkpoint}")
    gone = world.synced.difference(world.checkpoint)
    if gone:
        raise Violation(f"no sync write is lost: etcd has no longer {sorted(gone)}")
    if member.alive and member.boot == boot and member.serving == owner.epoch:
        lost = world.acknowledged.difference(member.log)
        if lost:
            raise Violation(f"no acknowledged write is lost: {name_of(active)} serves without {sorted(lost)}")
        back = frozenset(world.checkpoint).difference(member.log)
        if back:
            raise Violation(f"nothing comes back: {name_of(active)} serves without {sorted(back)}, which etcd has")
        gone = world.seen.difference(member.log)
        if gone:
            raise Violation(f"nothing that was shown vanishes: {name_of(active)} serves without {sorted(gone)}")
