"""What a mirror makes of the changes of its home: transactions of whole revisions. Pure.

A transaction has all changes of a revision, or none. So what the mirror has is what the home had at one revision.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec

from understudy.statesync.etcd.client import Delete, Event, Put
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner

OPERATIONS_MOST = 100
"""Operations in a transaction; etcd takes 128. A home's own transactions have fewer, but for those of a restore."""
BYTES_MOST = 1_000_000
"""A transaction that has reached this size takes no further revision; etcd's limit is 1.5 MiB."""

Change = Put | Delete


class TooManyChanges(Exception):
    """A revision changed more keys than fit into a transaction: everything must be copied anew."""


class Step(msgspec.Struct, frozen=True):
    """What brings a mirror to ``revision``. ``writes`` are those to sessions, ``epoch`` is the highest by then."""

    revision: int
    changes: tuple[Change, ...]
    writes: int
    epoch: int


def copied_ranges(keys: PoolKeys) -> tuple[KeyRange, ...]:
    """What a mirror copies: spec, secret, key id, outcomes of requests, sessions. All else is of one site alone."""
    single = (KeyRange(key, f"{key}\0") for key in (keys.spec, keys.secret, keys.encryption))
    return (*single, prefix_range(keys.requests), prefix_range(keys.sessions))


def is_copied(keys: PoolKeys, key: str) -> bool:
    """Whether a mirror copies a key."""
    return key.startswith((keys.sessions, keys.requests)) or key in (keys.spec, keys.secret, keys.encryption)


def change_of(event: Event) -> Change:
    """The operation that does again what an event says."""
    return Put(event.kv.key, event.kv.value) if event.kind == "put" else Delete(event.kv.key)


def size_of(change: Change) -> int:
    """About how much a change adds to a transaction, in bytes."""
    return 100 + (len(change.value) if isinstance(change, Put) else 0)


def steps_of(keys: PoolKeys, events: Iterable[Event], epoch: int) -> Iterator[Step]:
    """The transactions that carry ``events`` out, which are of whole revisions in order.

    ``epoch``: the highest known before. Raises :class:`TooManyChanges`.
    """
    pending: dict[str, Change] = {}
    revision = writes = size = 0
    for number, group in groupby(events, key=lambda event: event.kv.mod_revision):
        changes, written, epoch_then = _of_revision(keys, group, epoch)
        added = sum(map(size_of, changes.values()))
        if pending and (len(pending | changes) > OPERATIONS_MOST or size + added > BYTES_MOST):
            yield Step(revision, tuple(pending.values()), writes, epoch)
            pending, writes, size = {}, 0, 0
        if len(changes) > OPERATIONS_MOST:
            raise TooManyChanges(f"revision {number} changed {len(changes)} keys")
        pending |= changes
        revision, writes, size, epoch = number, writes + written, size + added, epoch_then
    if revision:
        yield Step(revision, tuple(pending.values()), writes, epoch)


def _of_revision(keys: PoolKeys, events: Iterable[Event], epoch: int) -> tuple[dict[str, Change], int, int]:
    """The changes of one revision by key, the writes to sessions in it, and the highest epoch by then."""
    changes: dict[str, Change] = {}
    writes = 0
    for event in events:
        key = event.kv.key
        if is_copied(keys, key):
            changes[key] = change_of(event)
            writes += key.startswith(keys.sessions)
        elif key.startswith(keys.owners) and event.kind == "put":
            epoch = max(epoch, epoch_in(event.kv.value))
    return changes, writes, epoch


def epoch_in(value: bytes) -> int:
    """The epoch of an owner record; 0 if it cannot be read, since nobody writes under it then."""
    try:
        return Owner.decode(value).epoch
    except ValueError:
        return 0


def differences(theirs: dict[str, bytes], ours: dict[str, bytes]) -> list[Change]:
    """What makes ``ours`` the same as ``theirs``, in the order of keys."""
    wanted: list[Change] = [Put(key, value) for key, value in theirs.items() if ours.get(key) != value]
    wanted += [Delete(key) for key in ours if key not in theirs]
    return sorted(wanted, key=lambda change: str(change.key))


def parts_of(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """``changes`` in parts that fit into a transaction each."""
    part: list[Change] = []
    size = 0
    for change in changes:
        if part and (len(part) == OPERATIONS_MOST or size + size_of(change) > BYTES_MOST):
            yield part
            part, size = [], 0
        part.append(change)
        size += size_of(change)
    if part:
        yield part
