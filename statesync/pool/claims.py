"""Who may claim a slot, where its sessions come from then, and the transaction of the claim. Pure.

The rules of the sync set are in :mod:`understudy.statesync.replication.sync_set`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from understudy.statesync.etcd.client import Compare, ModRevision, Operation, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import records_compared, records_read, records_written
from understudy.statesync.pool.ownership import View, is_valid, process_of
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, Source, SyncSet

CLAIM_MOST = 60
"""Slots per claim transaction: two records of each, the failover record and the marker stay below etcd's 128
operations."""


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
    keys: PoolKeys, claims: Sequence[Claimed], extra: Sequence[Put] = (), *, home: int = 0, take_over: int = 0
) -> tuple[list[Compare], list[Operation], list[Operation]]:
    """Compares, success and failure of a claim.

    ``home`` is the revision of the pool's home record as this process knows it (0: none). Other transactions on owner
    records need not compare it: whoever fences a side replaces these records too, and only a claim takes them back.
    ``take_over`` is that of the record of the last take-over of etcd (0: none). A process that does not know of it
    counts as saved what this etcd may lack.

    Failure answers as :func:`records_read` has it.
    """
    slots = [c.slot for c in claims]
    compares = records_compared(keys, {c.slot: c.replaces for c in claims}, {c.slot: c.replaces_sync for c in claims})
    compares += [ModRevision(keys.home, home), ModRevision(keys.take_over, take_over)]
    success = records_written(keys, {c.slot: c.owner for c in claims}, {c.slot: c.sync for c in claims})
    success.extend(extra)
    return compares, success, records_read(keys, slots)
