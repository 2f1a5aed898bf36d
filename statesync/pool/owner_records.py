"""How owner and sync records change together in claims and handovers, and the record of a failover for people. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from understudy.statesync.etcd.client import Compare, CreateRevision, Get, ModRevision, Operation, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.ownership import is_valid, process_of
from understudy.statesync.pool.records import FailoverRecord, Owner, Phase, SyncRecord
from understudy.statesync.pool.state import At
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, SyncSet

NO_MEMBER = "nobody"
"""The active, and its boot, in the record of a slot that nobody has owned as far as etcd knows."""
SET_BACK = "etcd was taken over"


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


def after_set_back(
    owner: Owner | None, at: At[SyncRecord] | None, living: Collection[Process], skipped: int, *, now: float
) -> tuple[Owner, SyncRecord | None]:
    """Both records of a slot in an etcd that may lack what the one before had (``site take-over``).

    The epoch is above all that the etcd before may have had. So no epoch is used twice, and no version of a session.
    Fences are the revisions of owner records, so whoever owned the slot must begin it again.

    Args:
        owner: the owner record; None: this etcd knows of no owner.
        at: the sync record beside it.
        living: processes that may still have what they had in memory. If one of them is in the sync set, it may have
            acknowledged writes that this etcd lacks: ``memory``, whatever class the writes had.
        skipped: how many changes of owner this etcd may lack.
        now: wall time in seconds.
    """
    if owner is None:
        return Owner(NO_MEMBER, NO_MEMBER, skipped, cause=SET_BACK, since=now), None
    epoch = owner.epoch + skipped
    after = replace(owner, epoch=epoch, phase=Phase.STABLE, to="", cause=SET_BACK, traceparent="", since=now)
    sync = sync_beside(owner, at, after)
    return after, replace(sync, memory=sync.memory or not frozenset(living).isdisjoint(sync.members))


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
