"""Ownership of slots: which steps a member should take, and the transactions that carry them out. No I/O.

Fencing is one rule: an owner record is only replaced by a transaction that compares the ``mod_revision`` at which it
was last seen. So one of two claimants wins, a claimant always raises the epoch, and every session write that was
decided under an older record fails its own compare. Leases, heartbeats and the slot table only say *when* to try. A
wrong guess costs a handover, never a session.

Each slot has a sync record beside its owner record. It says which processes have the acknowledged writes in memory, by
the rules of :mod:`understudy.statesync.replication.sync_set`. It is valid only in the epoch of the owner record. Each
transaction that raises the epoch compares both records. So it never succeeds beside a change of the sync set that it
does not know of. Slots of release 0.1.0 have no sync record: there etcd has everything.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from understudy.statesync.etcd.client import Compare, CreateRevision, Get, ModRevision, Operation, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.predicted import PREDICTED
from understudy.statesync.pool.records import FailoverRecord, Member, Owner, Phase, Revival, SyncRecord, Table
from understudy.statesync.pool.state import At
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, Source, SyncSet

CLAIM_MOST = 60
"""Slots per claim transaction: two records of each, the failover record and the marker stay below etcd's 128
operations."""
DRAIN = "drain"
REBALANCE = "rebalance"
CUT_OFF = "it cannot reach etcd"
"""The end of the cause when the owner was alive and said so, but could neither write nor hand the slot over."""
UNFIT = "unfit: "
"""The start of the cause when the owner gave the slot away because it could not serve well; the reason follows."""


_OF_SITE = re.compile(r"site ([^:]+) (?:offline|online)")


def site_cause(sites: Iterable[str], *, offline: bool) -> str:
    """The cause of moves by which whole sites are taken out of service, or brought back."""
    return f"site {', '.join(sorted(sites))} {'offline' if offline else 'online'}"


def sites_in(cause: str) -> str:
    """The sites that a cause is about, joined by commas; '' if it is not about any."""
    found = _OF_SITE.fullmatch(cause)
    return found[1] if found else ""


def is_handover(cause: str) -> bool:
    """Whether this cause is that of a handover; the cause of a takeover says which member was lost, and how."""
    return cause in (DRAIN, REBALANCE) or cause.startswith((UNFIT, PREDICTED)) or sites_in(cause) != ""


@dataclass(frozen=True, slots=True)
class View:
    """What a member knows when it decides; ``table_revision`` is when the table was written (0: never).

    ``restores``: the spec lets a slot go on with what etcd has, when all processes with its newest writes have died.
    """

    me: str
    boot: str
    table: Table
    table_revision: int
    owners: Mapping[int, At[Owner]]
    members: Mapping[str, At[Member]]
    sync_sets: Mapping[int, At[SyncRecord]] = field(default_factory=dict)
    restores: bool = True
    revivals: Mapping[int, At[Revival]] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        """This very process."""
        return Process(self.me, self.boot)

    def owner(self, slot: int) -> Owner | None:
        """The slot's owner record, or None before the first claim."""
        at = self.owners.get(slot)
        return at.record if at else None

    def revival(self, slot: int) -> Revival | None:
        """The operator's word that a slot may go on without its newest writes, if it is about the owner record."""
        owner, at = self.owner(slot), self.revivals.get(slot)
        return at.record if owner is not None and at is not None and at.record.epoch == owner.epoch else None

    def given_up(self, slot: int) -> frozenset[Process]:
        """The processes that an operator has given up for a slot: none that is registered."""
        owner, agreed = self.owner(slot), self.memory_of(slot)
        if owner is None or agreed is None or self.revival(slot) is None:
            return frozenset()
        return frozenset(one for one in holders(owner, agreed) if not self.registered(one))

    def registered(self, process: Process) -> bool:
        """Whether a member's record names this very process."""
        at = self.members.get(process.member)
        return at is not None and at.record.boot == process.boot

    def memory_of(self, slot: int) -> SyncSet | None:
        """The slot's sync set if it says that writes may be in the memory of its processes alone; else None."""
        owner, at = self.owner(slot), self.sync_sets.get(slot)
        agreed = at.record.sync_set() if owner is not None and at is not None and is_valid(owner, at) else None
        return agreed if agreed is not None and agreed.memory else None

    def holders_of_memory(self, slots: Iterable[int]) -> frozenset[Process]:
        """The processes that alone may have the newest writes of one of these slots."""
        sets = [agreed for slot in slots if (agreed := self.memory_of(slot)) is not None]
        return frozenset(process for agreed in sets for process in (*agreed.members, *agreed.former))

    def counts_on(self, slot: int) -> bool:
        """Whether the slot's sync set has this very process, so that its copy must stay."""
        owner = self.owner(slot)
        return owner is not None and self.process in agreed_set(owner, self.sync_sets.get(slot)).members

    def leaves_out(self, slot: int) -> bool:
        """Whether the slot's sync set surely does not have this very process: both records are known, and fit."""
        owner, at = self.owner(slot), self.sync_sets.get(slot)
        return owner is not None and is_valid(owner, at) and not self.counts_on(slot)

    def mine(self, slot: int) -> bool:
        """Whether the owner record names this very process."""
        owner = self.owner(slot)
        return owner is not None and owner.active == self.me and owner.boot == self.boot

    def replaced(self, owner: Owner) -> bool:
        """Whether the owner's process has a successor of the same name, so that it is surely history."""
        member = self.members.get(owner.active)
        return member is not None and member.record.boot != owner.boot

    def named_lost(self, member: str, boot: str) -> bool:
        """Whether the table names this process of a member lost."""
        lost = self.table.lost.get(member)
        return lost is not None and lost.boot == boot

    def suspected(self, slot: int, owner: Owner) -> bool:
        """Whether there is a first witness against the owner.

        That is: the table names it lost, its record is gone from etcd, or a table newer than the owner record has no
        part for it in the slot any more (it is down and may be unable to hand over; if it lives it will).
        """
        if self.named_lost(owner.active, owner.boot) or owner.active not in self.members:
            return True
        return self.table_revision > self.owners[slot].revision and owner.active not in self.table.orders[slot]


def process_of(owner: Owner) -> Process:
    """The process that an owner record makes active."""
    return Process(owner.active, owner.boot)


def holders(owner: Owner, agreed: SyncSet) -> frozenset[Process]:
    """The processes that may have acknowledged writes of a slot in memory."""
    return agreed.members | agreed.former | {process_of(owner)}


def is_valid(owner: Owner, at: At[SyncRecord] | None) -> bool:
    """Whether a sync record is there and holds: it is of the epoch of the owner record."""
    return at is not None and at.record.epoch == owner.epoch


def agreed_set(owner: Owner, at: At[SyncRecord] | None) -> SyncSet:
    """The sync set that etcd has agreed to; without a valid record the active alone, and etcd has everything."""
    if at is None or not is_valid(owner, at):
        return SyncSet(frozenset({process_of(owner)}))
    return at.record.sync_set()


@dataclass(frozen=True, slots=True)
class ClaimFree:
    """Claim slots that need no second witness: never owned, or owned by a process that has a successor."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Claim slots of an owner against whom there is one witness, once a second one agrees."""

    member: str
    boot: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give a slot of ours to the member that the table names."""

    slot: int
    to: str


class Undo(msgspec.Struct, frozen=True, gc=False):
    """Take back a handover that this process no longer carries out."""

    slot: int


Step = ClaimFree | TakeOver | HandOver | Undo


def next_steps(view: View, *, handing_over: frozenset[int] = frozenset()) -> list[Step]:
    """What ``view.me`` should do now, in the order in which it matters: take over, claim, hand over."""
    free: list[int] = []
    suspects: dict[tuple[str, str], list[int]] = {}
    handovers: list[Step] = []
    for slot in range(view.table.slots):
        wanted = view.table.active_of(slot)
        owner = view.owner(slot)
        if owner is None or view.replaced(owner):
            if is_heir(view, slot):
                free.append(slot)
        elif view.mine(slot):
            handovers.extend(_own_slot(view, slot, owner, wanted, handing_over))
        elif view.suspected(slot, owner) and is_heir(view, slot):
            suspects.setdefault((owner.active, owner.boot), []).append(slot)
    steps: list[Step] = [TakeOver(member, boot, tuple(slots)) for (member, boot), slots in suspects.items()]
    if free:
        steps.append(ClaimFree(tuple(free)))
    return steps + handovers


def _own_slot(view: View, slot: int, owner: Owner, wanted: str | None, handing_over: frozenset[int]) -> Sequence[Step]:
    if slot in handing_over:
        return ()
    if owner.phase is Phase.HANDOVER:
        return (Undo(slot),)
    if wanted is None or wanted == view.me or view.owners[slot].revision > view.table_revision:
        return ()  # a table older than the owner record does not know of the last change: no reason to undo it
    target = view.members.get(wanted)
    if target is None or not target.record.state.may_hold_slots:
        return ()
    if view.named_lost(wanted, target.record.boot):
        return ()  # Envoy sends it nothing either; the table that has heard of its return says what it gets
    return (HandOver(slot, wanted),)


def heir_of(view: View, slot: int) -> str | None:
    """Who is to claim a slot whose owner is gone: the member that the table names.

    If the newest writes may be in memory alone, it is one that has them. When nobody has them any more, the member that
    the table names may restore the slot.
    """
    return next(iter(_holders_of_memory(view, slot)), None) or view.table.active_of(slot)


def is_heir(view: View, slot: int) -> bool:
    """Whether this process is to claim a slot whose owner is gone, or must help another one to.

    If the whole sync set is gone, that is each former active: all but one resign (:func:`resignations`).
    """
    agreed = view.memory_of(slot)
    former = agreed is not None and view.process in agreed.former and view.me in _holders_of_memory(view, slot)
    return former or heir_of(view, slot) == view.me


def standbys_of(view: View, slot: int) -> tuple[str, ...]:
    """Who may serve ``slot`` if its owner does not, best first: the table's order without the owner.

    If the newest writes may be in memory alone, those who have them come first: nobody else may claim the slot.
    """
    owner = view.owner(slot)
    order = (*_holders_of_memory(view, slot), *_order(view, slot))
    return tuple(member for member in dict.fromkeys(order) if owner is None or member != owner.active)


def _holders_of_memory(view: View, slot: int) -> list[str]:
    """The living members, in the table's order, that have writes of a slot which may be in memory alone.

    Former actives only if no process of the sync set lives: then one of them may claim.
    """
    agreed, owner = view.memory_of(slot), view.owner(slot)
    if agreed is None or owner is None:
        return []
    for group in (agreed.members, agreed.former):
        living = {
            process.member
            for process in group - {process_of(owner)}
            if view.registered(process) and not view.named_lost(*process)
        }
        if living:
            return [member for member in dict.fromkeys((*_order(view, slot), *sorted(living))) if member in living]
    return []


def _order(view: View, slot: int) -> tuple[str, ...]:
    return view.table.orders[slot] if slot < view.table.slots else ()


@dataclass(frozen=True, slots=True)
class Claimed:
    """One slot in a claim: the record to write, and the revision (0: none) of the one it replaces.

    ``sync`` is the sync record to write. ``replaces_sync`` is the revision of the one that stands, valid or not (0:
    none). ``source``: where the sessions come from. ``loss``: acknowledged writes may be missing.
    """

    slot: int
    owner: Owner
    replaces: int
    replaced_active: str
    sync: SyncRecord
    replaces_sync: int = 0
    source: Source = Source.ETCD
    loss: bool = False


def claim(
    view: View,
    slots: Sequence[int],
    *,
    cause: str,
    traceparent: str,
    now: float,
    whole: Callable[[int], bool] = lambda _slot: False,
    dead: Collection[Process] = (),
    loss_seconds: Callable[[int], int] = lambda _slot: 0,
) -> list[Claimed]:
    """The records by which ``view.me`` claims ``slots``, each one epoch above the record that it replaces.

    Slots that this process may not claim are left out; :func:`unclaimable` says why.

    Args:
        view: what this process knows.
        slots: the slots to claim.
        cause: why, for people.
        traceparent: of the failover's trace.
        now: wall time in seconds.
        whole: whether this process has everything of a slot in memory, as a copy of it.
        dead: processes that are proven dead. Silence proves nothing; an operator's word counts as proof.
        loss_seconds: if a slot is claimed with a loss, how old the missing writes may be, in seconds.
    """
    claims = []
    for slot in slots:
        decided = _claim_of_set(view, slot, whole, dead)
        if isinstance(decided, str):
            continue
        at, standing = view.owners.get(slot), view.sync_sets.get(slot)
        epoch = at.record.epoch + 1 if at else 1
        sync = SyncRecord.of_set(epoch, decided.sync, standing.record if standing else None)
        word = view.revival(slot) if decided.loss else None
        why = f"{cause}; revived by {word.by}" if word is not None else cause
        claims.append(
            Claimed(
                slot,
                Owner(view.me, view.boot, epoch, cause=why, traceparent=traceparent, since=now),
                at.revision if at else 0,
                at.record.active if at else "",
                sync.after_loss(loss_seconds(slot), now) if decided.loss else sync,
                standing.revision if standing else 0,
                decided.source,
                decided.loss,
            )
        )
    return claims


def unclaimable(view: View, slot: int, *, whole: Callable[[int], bool], dead: Collection[Process]) -> str:
    """Why this process may not claim a slot, '' if it may; see :func:`claim`."""
    decided = _claim_of_set(view, slot, whole, dead)
    return decided if isinstance(decided, str) else ""


def resignations(view: View, slots: Iterable[int], dead: Collection[Process]) -> dict[int, SyncRecord]:
    """The sync records by which this process resigns as a former active of ``slots``; see :func:`sync_set.resigned`.

    Where nobody may claim before an operator has decided about the loss, it does not resign before either.
    """
    found = {}
    for slot in slots:
        owner, agreed = view.owner(slot), view.memory_of(slot)
        if owner is None or agreed is None or not (view.restores or view.revival(slot)):
            continue
        gone = view.given_up(slot).union(dead)
        if (left := sync_set.resigned(agreed, process_of(owner), view.process, gone)) is not None:
            found[slot] = SyncRecord.of_set(owner.epoch, left, view.sync_sets[slot].record)
    return found


def _claim_of_set(
    view: View, slot: int, whole: Callable[[int], bool], dead: Collection[Process]
) -> sync_set.Claim | str:
    """How the sync set of a slot lets this process claim it; a text: why it may not."""
    me, owner, at = view.process, view.owner(slot), view.sync_sets.get(slot)
    if owner is None or at is None or not is_valid(owner, at):
        return sync_set.Claim(SyncSet(frozenset({me})), Source.ETCD)
    agreed = at.record.sync_set()
    found = sync_set.claim(agreed, process_of(owner), me, view.given_up(slot).union(dead))
    if found is None:
        having = ", ".join(sorted(process.member for process in (agreed.members | agreed.former) - {me}))
        return f"its newest writes may be in memory alone, at {having}, and not all of these are proven dead"
    if found.source is Source.MEMORY:
        if whole(slot):
            return found
        if agreed.memory:
            return "this process belongs to the sync set, and its copy is not whole"
        return sync_set.Claim(SyncSet(frozenset({me})), Source.ETCD)
    if found.loss and not view.restores and view.revival(slot) is None:
        return (
            "all processes with its newest writes are gone, and the spec says on_total_loss: wait; "
            f"'understudy slots revive {slot}' lets it go on with what etcd has"
        )
    return sync_set.Claim(SyncSet(frozenset({me})), Source.ETCD, found.loss)


def claim_transaction(
    keys: PoolKeys, claims: Sequence[Claimed], extra: Sequence[Put] = ()
) -> tuple[list[Compare], list[Operation], list[Operation]]:
    """Compares, success and failure of a claim.

    Failure answers as :func:`records_read` has it.
    """
    slots = [c.slot for c in claims]
    compares = records_compared(keys, {c.slot: c.replaces for c in claims}, {c.slot: c.replaces_sync for c in claims})
    success = records_written(keys, {c.slot: c.owner for c in claims}, {c.slot: c.sync for c in claims})
    success.extend(extra)
    return compares, success, records_read(keys, slots)


def records_compared(keys: PoolKeys, owners: Mapping[int, int], sync_sets: Mapping[int, int]) -> list[Compare]:
    """The compares of a change of owner and sync records that were last written at these revisions (0: are none)."""
    wanted = {keys.owner(slot): revision for slot, revision in owners.items()}
    wanted |= {keys.sync_set(slot): revision for slot, revision in sync_sets.items()}
    return [ModRevision(key, revision) if revision else CreateRevision(key, 0) for key, revision in wanted.items()]


def records_written(
    keys: PoolKeys, owners: Mapping[int, Owner], sync_sets: Mapping[int, SyncRecord]
) -> list[Operation]:
    """The puts of owner and sync records."""
    puts: list[Operation] = [Put(keys.owner(slot), owner.encode()) for slot, owner in owners.items()]
    puts.extend(Put(keys.sync_set(slot), record.encode()) for slot, record in sync_sets.items())
    return puts


def records_read(keys: PoolKeys, slots: Sequence[int]) -> list[Operation]:
    """The reads of the owner records of ``slots``, and then of their sync records."""
    return [*(Get(keys.owner(slot)) for slot in slots), *(Get(keys.sync_set(slot)) for slot in slots)]


class FailoverLog:
    """The failover records of this member: one per failover and source. A record grows as slots are taken."""

    def __init__(self, keys: PoolKeys, me: str) -> None:
        self._keys = keys
        self._me = me
        self._records: dict[str, FailoverRecord] = {}

    def add(
        self,
        trace: str,
        source: str,
        taken: Mapping[int, int],
        *,
        cause: str,
        planned: bool,
        now: float,
        losses: Mapping[int, int] | None = None,
    ) -> Put:
        """The put that notes slots (mapped to their new epochs) as taken, with all noted before in this failover.

        ``losses`` are those of the slots that are claimed with a loss, with the seconds of each.
        """
        key, losses = self._keys.failover(trace, self._me, source), losses or {}
        before = self._records.get(key) or FailoverRecord(trace, self._me, source, cause, planned, (), (), now)
        epochs = {**dict(zip(before.slots, before.epochs, strict=True)), **taken}
        record = replace(
            before,
            slots=tuple(epochs),
            epochs=tuple(epochs.values()),
            restored=tuple(dict.fromkeys((*before.restored, *losses))),
            loss_seconds=max(before.loss_seconds, *losses.values(), 0),
        )
        self._records[key] = record
        return Put(key, record.encode())

    def without(self, trace: str, source: str, slots: Collection[int]) -> Put | None:
        """The put that records that ``slots`` were not taken over; None if nothing else was."""
        key = self._keys.failover(trace, self._me, source)
        before = self._records.pop(key, None)
        if before is None:
            return None
        kept = {slot: epoch for slot, epoch in zip(before.slots, before.epochs, strict=True) if slot not in slots}
        if not kept:
            return None
        restored = tuple(slot for slot in before.restored if slot in kept)
        self._records[key] = replace(before, slots=tuple(kept), epochs=tuple(kept.values()), restored=restored)
        return Put(key, self._records[key].encode())


def start_handover(owner: Owner, to: str, *, cause: str, traceparent: str, now: float) -> Owner:
    """The record by which the owner stops writing in favour of ``to``; the epoch stays until ``to`` commits itself."""
    return replace(owner, phase=Phase.HANDOVER, to=to, cause=cause, traceparent=traceparent, since=now)


def finish_handover(owner: Owner, boot: str, *, now: float) -> Owner:
    """The record by which the target of a handover commits itself as active."""
    return replace(owner, active=owner.to, boot=boot, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", since=now)


def take_up(owner: Owner, *, now: float) -> Owner:
    """The record by which an owner serves a slot again that it had given up, which the old record does not allow."""
    return replace(owner, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", cause="etcd reached again", since=now)


def begin_anew(owner: Owner, *, now: float) -> Owner:
    """The record by which an owner reads a slot again from etcd; copies of the epoch before do not count any more."""
    return replace(owner, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", cause="read again from etcd", since=now)


def undo_handover(owner: Owner, *, now: float) -> Owner:
    """The record by which the owner takes a handover back; with a new epoch, since others saw the old one end."""
    return replace(owner, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", cause="handover undone", since=now)


class NotInSet(ValueError):
    """A slot cannot go to a process that is not in its sync set."""


def sync_beside(before: Owner, at: At[SyncRecord] | None, after: Owner) -> SyncRecord:
    """The sync record to write beside the owner record ``after``, which replaces ``before`` and is no claim.

    Raises :class:`NotInSet` if ``after`` names another process that is not in the sync set: it may lack writes that
    were acknowledged.
    """
    me, to = process_of(before), process_of(after)
    if at is None or not is_valid(before, at):  # a slot of release 0.1.0
        return SyncRecord.of_set(after.epoch, SyncSet(frozenset({to})), at.record if at is not None else None)
    agreed = at.record.sync_set()
    kept = agreed if to == me else sync_set.handed_over(agreed, me, to)
    if kept is None:
        raise NotInSet(f"{to.member} is not in the sync set")
    return SyncRecord.of_set(after.epoch, kept, at.record)
