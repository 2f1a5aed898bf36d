"""The protocol's own pure functions, on the model's small records: the model cannot drift from what they decide.

Every record that changes an owner comes from ``understudy.statesync.pool.ownership``, every write from
``understudy.statesync.sessions.session``. Answers are cached, since the explorer asks the same few questions a million
times.
"""

from functools import cache

from msgspec.structs import replace

from tests.model.world import Record
from understudy.statesync.etcd.client import CreateRevision, ModRevision
from understudy.statesync.pool import ownership
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner, Phase, Table
from understudy.statesync.pool.state import At
from understudy.statesync.sessions.session import Method, Repeated, Session, Stored, WriteContext, decide_write
from understudy.statesync.sessions.session import Write as SessionWrite

KEYS = PoolKeys("model")
TERMS = WriteContext(epoch=1, now_ms=0, session_bytes=1000, default_ttl=1000)


def _owner(record: Record) -> Owner:
    phase = Phase.HANDOVER if record.handover else Phase.STABLE
    return Owner(record.active, str(record.boot), record.epoch, phase, record.to, since=float(record.stamp))


def _record(owner: Owner) -> Record:
    handover = owner.phase is Phase.HANDOVER
    return Record(owner.active, int(owner.boot), owner.epoch, handover, owner.to, int(owner.since))


def _view(me: str, boot: int, seen: Record, revision: int) -> ownership.View:
    return ownership.View(me, str(boot), Table(), 0, {0: At(_owner(seen), revision)}, {})


@cache
def mine(me: str, boot: int, seen: Record) -> bool:
    """Whether the record names this very process."""
    return _view(me, boot, seen, 1).mine(0)


@cache
def claimed(me: str, boot: int, seen: Record, revision: int, stamp: int) -> tuple[int, Record]:
    """What a claim compares the owner record's revision with, and the record that it writes."""
    view = _view(me, boot, seen, revision)
    (claim,) = ownership.claim(view, [0], cause="", traceparent="", now=float(stamp))
    compares, _, _ = ownership.claim_transaction(KEYS, [claim])
    compare, not_replicated = compares
    assert isinstance(compare, ModRevision)
    assert compare.key == KEYS.owner(0)
    assert not_replicated == CreateRevision(KEYS.sync_set(0), 0)
    return compare.revision, _record(claim.owner)


@cache
def leaving(record: Record, to: str, stamp: int) -> Record:
    """The record by which an owner stops writing in favour of ``to``."""
    return _record(ownership.start_handover(_owner(record), to, cause="", traceparent="", now=float(stamp)))


@cache
def arrived(record: Record, boot: int, stamp: int) -> Record:
    """The record by which the target commits itself."""
    return _record(ownership.finish_handover(_owner(record), str(boot), now=float(stamp)))


@cache
def taken_back(record: Record, stamp: int) -> Record:
    """The record by which the owner undoes a handover."""
    return _record(ownership.undo_handover(_owner(record), now=float(stamp)))


@cache
def taken_up(record: Record, stamp: int) -> Record:
    """The record by which an owner serves a slot again that it has given up."""
    return _record(ownership.take_up(_owner(record), now=float(stamp)))


@cache
def repeats(memory: tuple[str, ...], request: str, *, keep_answers: bool) -> bool:
    """Whether ``request`` took effect before, going by a session to which the requests in ``memory`` were put."""
    current: Session | None = None
    for revision, earlier in enumerate(memory, 1):
        outcome = decide_write(current, _write(earlier), TERMS)
        if isinstance(outcome, Stored):
            current = replace(outcome.session, revision=revision)
    if current is not None and not keep_answers:
        current = replace(current, answers=())
    return isinstance(decide_write(current, _write(request), TERMS), Repeated)


def _write(request: str) -> SessionWrite:
    return SessionWrite(Method.PUT, request.encode(), idempotency_key=request)
