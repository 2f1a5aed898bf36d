"""Reads and changes the home record of a side. Replaces its owner records, so that no process of before can commit."""

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.deploy.common.errors import DeployError
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import Compare, Delete, EtcdClient, Get, Kv, ModRevision, Operation, Put
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.home import Home, Mirrored
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.spec_reader import decode_known_spec
from understudy.statesync.pool.state import At

SLOTS_TOGETHER = 40
"""Slots in a transaction that replaces owner records: two operations of each stay below etcd's 128."""
NO_MEMBER = "moved"
"""The active in the owner record of a slot that no member of this side has owned yet."""
OUTCOME_TIMEOUT = 20.0


class HomeChanged(DeployError):
    """Another process has changed the home record meanwhile. The text says of which pool, and what to do."""

    def __init__(self, pool: str) -> None:
        super().__init__(f"the home record of pool {pool!r} has changed meanwhile: look at 'understudy home status'")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pool with its etcd; ``name`` is that of the site."""

    name: str
    client: EtcdClient
    keys: PoolKeys

    async def home(self, *, timeout: float | None = None) -> At[Home] | None:
        """The home record; None if there is none. Raises ``EtcdError``, :class:`DeployError` if it cannot be read."""
        kv = await self.client.get(self.keys.home, timeout=timeout)
        if kv is None:
            return None
        try:
            return At(Home.decode(kv.value), kv.mod_revision)
        except ValueError as error:
            raise DeployError(f"the record at {self.keys.home} in etcd of site {self.name}: {error}") from None

    async def mirrored(self, *, timeout: float | None = None) -> Mirrored:
        """How far the mirror on this side has come; revision 0 if there is none."""
        kv = await self.client.get(self.keys.mirrored, timeout=timeout)
        try:
            return Mirrored.decode(kv.value) if kv else Mirrored(0)
        except ValueError:
            return Mirrored(0)

    async def slots(self) -> int:
        """How many slots the pool has. Raises :class:`DeployError` if this side has no spec."""
        kv = await self.client.get(self.keys.spec)
        if kv is None:
            raise DeployError(f"etcd of site {self.name} has no spec of pool {self.keys.pool!r}")
        return decode_known_spec(kv.value)[0].slots


async def set_home(
    side: Side, before: At[Home] | None, home: Home, log: OperatorLog, act: Act, *more: Operation
) -> At[Home]:
    """Replace the home record, with a record of the audit log. Raises :class:`HomeChanged`, ``EtcdError``."""
    revision = before.revision if before else 0
    key = side.keys.home
    result = await log.txn(act, [ModRevision(key, revision)], [Put(key, home.encode()), *more], revision)
    if not result.succeeded:
        raise HomeChanged(side.keys.pool)
    return At(home, result.revision)


async def take_slots(side: Side, home: At[Home], slots: int, *, boot: str, epoch: int, now: float) -> int:
    """Replace the owner records of all slots by those of a process that never existed, and delete their sync records.

    From then on no process can commit under the records of before; claims compare the home record, which the caller
    has replaced. Each epoch is above that of the record before, and at least ``epoch``. Returns the last revision.
    Raises :class:`HomeChanged`, ``EtcdError``. After an interruption it can be called again.
    """
    last = 0
    for first in range(0, slots, SLOTS_TOGETHER):
        part = range(first, min(first + SLOTS_TOGETHER, slots))
        revision = 0
        while not revision:
            revision = await _take(side, home, part, boot, epoch, now)
        last = max(last, revision)
    return last


async def _take(side: Side, home: At[Home], slots: range, boot: str, epoch: int, now: float) -> int:
    """One transaction; 0 if a member has changed a record meanwhile."""
    keys = side.keys
    found = {kv.key: kv for kv in (await side.client.range(_owners(keys, slots))).kvs}
    compares: list[Compare] = [ModRevision(keys.home, home.revision)]
    steps: list[Operation] = []
    for slot in slots:
        kv = found.get(keys.owner(slot))
        compares.append(ModRevision(keys.owner(slot), kv.mod_revision if kv else 0))
        steps += [Put(keys.owner(slot), _replaced(kv, boot, epoch, now).encode()), Delete(keys.sync_set(slot))]
    looks = [Get(keys.home), Get(keys.owner(slots[0]))]
    result, _ = await retry_txn(side.client, compares, steps, looks, patience=OUTCOME_TIMEOUT)
    if result.succeeded:
        return result.revision
    now_home, now_owner = result.answers
    if not now_home or now_home[0].mod_revision != home.revision:
        raise HomeChanged(keys.pool)
    # An earlier try whose answer was lost may have been applied; else a member was quicker, and it is tried again.
    applied = now_owner and isinstance(steps[0], Put) and now_owner[0].value == steps[0].value
    return now_owner[0].mod_revision if applied else 0


def _owners(keys: PoolKeys, slots: range) -> KeyRange:
    return KeyRange(keys.owner(slots[0]), f"{keys.owner(slots[-1])}\0")


def _replaced(kv: Kv | None, boot: str, epoch: int, now: float) -> Owner:
    try:
        before = Owner.decode(kv.value) if kv else None
    except ValueError:
        before = None
    active = before.active if before else NO_MEMBER
    return Owner(active, boot, max(before.epoch + 1 if before else 1, epoch), cause="its home moved", since=now)


async def highest_epoch(side: Side) -> int:
    """The highest epoch of any owner record of a side."""
    epochs = [0]
    async for page in side.client.pages(prefix_range(side.keys.owners)):
        for kv in page.kvs:
            try:
                epochs.append(Owner.decode(kv.value).epoch)
            except ValueError:
                continue
    return max(epochs)


async def unsaved_slots(side: Side) -> list[int]:
    """The slots whose newest acknowledged writes may be in memory alone, by their sync records.

    A record of another epoch than the owner record's is void. See "Two records" in docs/ownership.md.
    """
    keys = side.keys
    epochs: dict[int, int] = {}
    async for page in side.client.pages(prefix_range(keys.owners)):
        for kv in page.kvs:
            epochs[slot_in(kv.key, keys.owners)] = Owner.decode(kv.value).epoch
    found: list[int] = []
    async for page in side.client.pages(prefix_range(keys.sync_sets)):
        found += _with_memory(keys, page.kvs, epochs)
    return found


def _with_memory(keys: PoolKeys, kvs: Sequence[Kv], epochs: dict[int, int]) -> list[int]:
    found = []
    for kv in kvs:
        slot, record = slot_in(kv.key, keys.sync_sets), SyncRecord.decode(kv.value)
        if record.memory and record.epoch == epochs.get(slot):
            found.append(slot)
    return found
