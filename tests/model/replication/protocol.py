"""The owner records of planned changes, from the protocol's own pure functions: the model cannot drift from them.

Answers are cached, since the explorer asks the same few questions a million times.
"""

from functools import cache

from tests.model.replication.world import NOBODY, Owner, Process, Records, SyncRecord, name_of
from understudy.statesync.pool import owner_records, records
from understudy.statesync.pool.ownership import is_valid
from understudy.statesync.pool.records import Phase
from understudy.statesync.pool.state import At
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Source, SyncSet

Written = tuple[Owner, SyncRecord]
NAMES = {name_of(number): number for number in range(3)}


@cache
def leaving(owner: Owner, to: int) -> Owner:
    """The record by which an owner stops writing in favour of the member ``to``."""
    left = owner_records.start_handover(_real(owner), name_of(to), cause="", traceparent="", now=0.0)
    return owner._replace(revision=0, to=NAMES[left.to])


@cache
def finished(at: Records, boot: int) -> Written | None:
    """The records by which the target of a handover commits itself; None if it is not in the sync set.

    A slot without a valid sync record is one of an earlier release: etcd has all of it, and it gets a record.
    """
    before = _real(at.owner)
    after = owner_records.finish_handover(before, str(boot), now=0.0)
    try:
        beside = owner_records.sync_beside(before, _real_sync(at), after)
    except owner_records.NotInSet:
        return None
    return _beside(at, after, beside)


@cache
def undone(at: Records) -> Written:
    """The records by which the owner undoes a handover."""
    return _kept(at, owner_records.undo_handover(_real(at.owner), now=0.0))


@cache
def taken_up(at: Records) -> Written:
    """The records by which an owner serves a slot again that it has given up."""
    return _kept(at, owner_records.take_up(_real(at.owner), now=0.0))


def _kept(at: Records, after: records.Owner) -> Written:
    return _beside(at, after, owner_records.sync_beside(_real(at.owner), _real_sync(at), after))


def _beside(at: Records, after: records.Owner, beside: records.SyncRecord) -> Written:
    owner = _modelled(after)
    if not is_valid(_real(at.owner), _real_sync(at)):
        owner = owner._replace(source=Source.ETCD)
    return owner, _modelled_sync(beside)


def _real(owner: Owner) -> records.Owner:
    (number, boot), leaves = owner.active, owner.to != NOBODY
    phase, to = (Phase.HANDOVER, name_of(owner.to)) if leaves else (Phase.STABLE, "")
    return records.Owner(name_of(number), str(boot), owner.epoch, phase, to)


def _modelled(owner: records.Owner) -> Owner:
    """The record, after which its sender knows that nobody answers reads under the one before."""
    return Owner(0, owner.epoch, (NAMES[owner.active], int(owner.boot)), quiet=True)


def _real_sync(at: Records) -> At[records.SyncRecord]:
    real = SyncSet(_named(at.sync.sync.members), at.sync.sync.memory, _named(at.sync.sync.former))
    return At(records.SyncRecord.of_set(at.sync.epoch, real), at.sync.revision)


def _named(processes: frozenset[Process]) -> frozenset[sync_set.Process]:
    return frozenset(sync_set.Process(name_of(number), str(boot)) for number, boot in processes)


def _modelled_sync(record: records.SyncRecord) -> SyncRecord:
    sync = record.sync_set()
    numbered = SyncSet(_numbered(sync.members), sync.memory, _numbered(sync.former))
    return SyncRecord(0, record.epoch, numbered)


def _numbered(processes: frozenset[sync_set.Process]) -> frozenset[Process]:
    return frozenset((NAMES[process.member], int(process.boot)) for process in processes)
