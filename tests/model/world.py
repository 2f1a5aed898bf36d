"""The state of the modelled pool: one slot, its members, etcd, and everything that is on its way between them.

All of it is nested named tuples, so that a state is its own key. etcd is a history of revisions (owner records,
session writes) with the newest commit markers; what a member knows is a position in that history. So a view can be as
old as one likes and costs one number. Sessions are lists of request ids in the order in which they took effect, which
makes a lost or a doubled write visible in the value itself.
"""

from typing import NamedTuple


class Record(NamedTuple):
    """An owner record; ``stamp`` stands for ``since``, by which two equal claims of one process differ."""

    active: str
    boot: int
    epoch: int
    handover: bool = False
    to: str = ""
    stamp: int = 0


class OwnerPut(NamedTuple):
    """An owner record as it was written at ``revision``."""

    revision: int
    record: Record


class SessionPut(NamedTuple):
    """A session as it was written at ``revision``; ``fence`` is the owner record the write was decided under."""

    revision: int
    session: int
    value: tuple[str, ...]
    fence: int


class Write(NamedTuple):
    """One session write in a batch: the request and the whole new value decided on the writer's memory."""

    session: int
    request: str
    value: tuple[str, ...]


class Txn(NamedTuple):
    """A transaction on its way to etcd.

    ``kind``: ``claim``, ``take``, ``take up``, ``leave``, ``finish``, ``undo`` or ``write``.

    ``copy`` counts how often its sender has sent it before.
    """

    kind: str
    member: int
    boot: int
    fence: int
    record: Record | None = None
    marker: int = 0
    batch: int = 0
    writes: tuple[Write, ...] = ()
    copy: int = 0


class Activate(NamedTuple):
    """An owner's word to the target of a handover: the record is fenced for you at ``revision``."""

    member: int
    revision: int


class Given(NamedTuple):
    """Word to ``member`` of an owner that reaches no etcd: it serves nothing under the record of ``revision`` more."""

    member: int
    revision: int


class Settled(NamedTuple):
    """A word to ``member``, which gave the slot away: it was claimed at ``revision``, by which its marker was this."""

    member: int
    revision: int
    marker: int
    marker_batch: tuple[int, int]


class Answer(NamedTuple):
    """etcd's answer to a transaction, on its way to the member that sent it.

    ``owner`` is the revision of the owner record that stands then; ``marker`` and ``marker_batch`` are a commit marker:
    the replaced owner's for a claim, the sender's for a write.
    """

    txn: Txn
    won: bool
    revision: int
    owner: int
    marker: int
    marker_batch: tuple[int, int]


class Holding(NamedTuple):
    """A slot that a member believes to own.

    ``gate``: ``lease``, ``catch up``, ``open``, ``readable`` (closed to all but reads from memory) or ``closed``.
    """

    fence: int
    record: Record
    gate: str
    needed: int = 0


class Look(NamedTuple):
    """A look at the owner record that was sent at revision ``sent`` and found the record of revision ``found``."""

    sent: int
    found: int


class Member(NamedTuple):
    """One process and its successors of the same name.

    ``view`` is the revision of the newest owner record known, ``watched`` how far the watch has come, ``memory`` the
    revision of each session as held in memory, ``reads_since`` when the look that read deadline counts from was sent.
    ``txn`` and ``batch`` are what is under way: an owner record, a group commit. ``given`` is the revision of the owner
    record under which it has given the slot up.
    """

    boot: int
    view: int
    watched: int
    memory: tuple[int, ...]
    reads_since: int
    marker: int
    holding: Holding | None = None
    txn: Txn | None = None
    batch: Txn | None = None
    look: Look | None = None
    given: int = 0


class Spent(NamedTuple):
    """How much of each bounded kind of event has happened."""

    claims: int = 0
    handovers: int = 0
    restarts: int = 0
    resends: int = 0
    looks: int = 0
    lost_answers: int = 0
    gifts: int = 0


class World(NamedTuple):
    """Everything. ``acknowledged`` and ``shown`` are what clients know: requests answered, newest revision seen.

    ``writers`` has (epoch, member, boot) of every acknowledged write. ``passed`` is the revision of which all looks
    sent before it have surely outlived their read deadline.
    """

    revision: int
    owners: tuple[OwnerPut, ...]
    sessions: tuple[SessionPut, ...]
    markers: tuple[tuple[int, tuple[int, int]], ...]
    members: tuple[Member, ...]
    transit: frozenset[Txn | Activate | Given | Settled]
    answers: frozenset[Answer]
    acknowledged: frozenset[str]
    writers: frozenset[tuple[int, int, int]]
    shown: tuple[int, ...]
    passed: int
    spent: Spent


class Bounds(NamedTuple):
    """How much may happen in one history."""

    members: int = 2
    sessions: int = 1
    writes: int = 2
    claims: int = 2
    handovers: int = 0
    restarts: int = 0
    resends: int = 0
    looks: int = 0
    lost_answers: int = 0
    gifts: int = 0


class Rules(NamedTuple):
    """The rules of the protocol; a mutant is the protocol with one of them taken away."""

    lease: bool = False
    write_compares_owner: bool = True
    write_compares_marker: bool = True
    claim_compares_owner: bool = True
    claim_raises_epoch: bool = True
    claim_waits_for_watch: bool = True
    claim_counts_marker: bool = True
    claim_outwaits_readers: bool = True
    adopting_reads_etcd: bool = True
    adopting_outwaits_readers: bool = True
    handover_fences: bool = True
    refusal_teaches: bool = True
    late_answers_yield: bool = True
    target_waits_for_watch: bool = True
    reads_end_before_target_is_told: bool = True
    deadline_counts_from_sending: bool = True
    refusals_keep_the_deadline: bool = True
    repeats_are_recognised: bool = True
    repeats_keep_the_deadline: bool = True
    giving_ends_reads: bool = True
    given_is_taken_up_anew: bool = True
    marker_settles_batch: bool = True


class Violation(Exception):
    """An invariant does not hold; the text says which."""


def start(bounds: Bounds) -> World:
    """The first member owns the slot and serves; everybody knows."""
    record = Record("a", 1, 1)
    memory = (0,) * bounds.sessions
    first = Member(1, 1, 1, memory, 1, 0, Holding(1, record, "open"))
    others = (Member(1, 1, 1, memory, 1, 0),) * (bounds.members - 1)
    none = (0, (0, 0))
    return World(
        1,
        (OwnerPut(1, record),),
        (),
        (none,) * bounds.members,
        (first, *others),
        frozenset(),
        frozenset(),
        frozenset(),
        frozenset(),
        memory,
        0,
        Spent(),
    )


def name_of(member: int) -> str:
    """The member's name as it stands in owner records."""
    return "abc"[member]


def record_at(world: World, revision: int) -> Record:
    """The owner record that was written at ``revision``."""
    return next(put.record for put in reversed(world.owners) if put.revision == revision)


def value_at(world: World, session: int, revision: int) -> tuple[str, ...]:
    """A session's content as written at ``revision``; 0 is before the first write."""
    if not revision:
        return ()
    return next(p.value for p in reversed(world.sessions) if p.revision == revision and p.session == session)


def newest(world: World, session: int, before: int | None = None) -> int:
    """The revision of a session's newest write, or of the newest one before a revision."""
    for put in reversed(world.sessions):
        if put.session == session and (before is None or put.revision < before):
            return put.revision
    return 0


def newest_of_all(world: World, before: int | None = None) -> tuple[int, ...]:
    """The same for every session."""
    return tuple(newest(world, session, before) for session in range(len(world.shown)))


def fresh_batch(world: World) -> int:
    """A batch number that nothing speaks of any more; small, so that a futile try leaves no trace in the state."""
    spoken = {message.batch for message in world.transit if isinstance(message, Txn)}
    spoken.update(message.marker_batch[1] for message in world.transit if isinstance(message, Settled))
    spoken.update(batch for _, (_, batch) in world.markers)
    spoken.update(member.batch.batch for member in world.members if member.batch is not None)
    return next(number for number in range(1, len(spoken) + 2) if number not in spoken)
