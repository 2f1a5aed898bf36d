"""``backup`` and ``restore`` of a pool: its spec, its sessions, and how far its epochs had come.

A backup is consistent: everything in it stood in etcd at one revision, while the pool went on working.

A restore happens to a pool without members, and it acts as an owner does. First the spec goes, and without a spec no
sidecar answers a session call. Then every owner record is replaced by one that names a process which never was, one
epoch above both the backup's and the present one: from there on no older process can commit anything. Each write
compares these records, so if a member comes up too early and claims a slot, the restore stops instead of writing
behind its back. At the end the records are written once more, so that whoever claims them has seen every restored
session before (see docs/ownership.md, "Catching up"), and then comes the spec.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.deploy.data.backup_file import (
    FORMAT,
    Contents,
    Header,
    OwnerLine,
    SessionLine,
    encoded,
    sessions_in,
    writing,
)
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.etcd.client import (
    Compacted,
    Compare,
    CreateRevision,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    Kv,
    ModRevision,
    Operation,
    Put,
    TxnResult,
)
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec, refuse_contradiction
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.session import valid_key
from understudy.statesync.sessions.session_crypto import outline

PAGE_BYTES = 16_000_000
PAGE_PATIENCE = 15.0
BATCH_MOST = 100
BATCH_BYTES = 1_000_000
OUTCOME_PATIENCE = 20.0
NOBODY = "restored"

Progress = Callable[[int], None]


class RestoreRefusedError(DeployError):
    """The pool is in a state into which nothing may be restored; nothing was changed."""


class RestoreStoppedError(DeployError):
    """Somebody changed the pool in the middle of a restore; the pool serves nothing until one is finished."""

    def __init__(self, pool: str, detail: str) -> None:
        super().__init__(
            f"pool {pool!r}: {detail}; the restore is not finished, and the pool serves no session until one is: "
            "stop all its sidecars, and restore again with --replace"
        )


# -- backup --


async def write_backup(
    client: EtcdClient, pool: str, path: Path, version: str, *, force: bool, progress: Progress
) -> Header:
    """Write everything of ``pool`` that a restore needs to ``path``; returns the header.

    Raises:
        BackupError: the file cannot be written, or is there already and ``force`` is not set.
        DeployError: there is no such pool, or etcd compacted the revision away meanwhile.
        EtcdError: etcd cannot be read.
    """
    state, revision = await read_pool(client, pool)
    if state.spec is None:
        raise DeployError(f"there is no pool {pool!r} in etcd, so there is nothing to back up: check --pool")
    keys = state.keys
    sessions = prefix_range(keys.sessions)
    try:
        spec = (await client.range(_just(keys.spec), revision=revision)).kvs
        secret = (await client.range(_just(keys.secret), revision=revision)).kvs
        encryption = (await client.range(_just(keys.encryption), revision=revision)).kvs
        count = (await client.range(sessions, limit=1, keys_only=True, revision=revision)).count
        header = Header(FORMAT, pool, revision, time.time(), version, len(state.owners), count)
        with writing(path, header, force=force) as append:
            for kv in spec:  # as it stands: a newer version's may have keys that are not known here
                append({"spec": encoded(kv.value)})
            for kv in secret:
                append({"secret": encoded(kv.value)})
            for kv in encryption:
                append({"encryption": encoded(kv.value)})
            for slot, at in sorted(state.owners.items()):
                append({"owner": {"slot": slot, "active": at.record.active, "epoch": at.record.epoch}})
            page = _page(state.spec.record)
            async for part in client.pages(sessions, page=page, revision=revision, timeout=PAGE_PATIENCE):
                for kv in part.kvs:
                    append({"session": _session_line(keys, kv)})
                progress(len(part.kvs))
    except Compacted:
        raise DeployError(
            f"etcd compacted revision {revision} away before all of it was read, and no file was written: "
            "try again, or have etcd keep its history for longer (--auto-compaction-retention)"
        ) from None
    return header


def _just(key: str) -> KeyRange:
    return KeyRange(key, key + "\0")


def _page(spec: PoolSpec) -> int:
    """How many sessions to read at once, so that a page of the largest ones is one reasonable message."""
    return max(1, min(500, PAGE_BYTES // (spec.limits.session_bytes + 1000)))


def _session_line(keys: PoolKeys, kv: Kv) -> dict[str, object]:
    try:
        slot = slot_in(kv.key, keys.sessions)
    except ValueError:
        raise DeployError(f"what stands at {kv.key!r} in etcd is no session: delete it, then back up") from None
    key = kv.key.removeprefix(keys.slot_sessions(slot))
    return {"slot": slot, "key": key, "revision": kv.mod_revision, "value": encoded(kv.value)}


# -- restore --


@dataclass(slots=True)
class Restored:
    """What a restore did: sessions written; those left out because they have expired, or are no sessions."""

    sessions: int = 0
    expired: int = 0
    foreign: int = 0


def owners_after(
    backup: Iterable[OwnerLine], present: Mapping[int, Owner], slots: int, *, boot: str, now: float
) -> dict[int, Owner]:
    """The owner record of every slot after a restore: of a process that never was, and above every epoch known.

    ``boot`` is drawn for this restore. The names are kept, so that slots go back to where they were.
    """
    saved = {line.slot: line for line in backup}
    records = {}
    for slot in range(slots):
        line, owner = saved.get(slot), present.get(slot)
        active = line.active if line else (owner.active if owner else NOBODY)
        epoch = max(line.epoch if line else 0, owner.epoch if owner else 0) + 1
        records[slot] = Owner(active, boot, epoch, cause="restored from a backup", since=now)
    return records


def refuse_unless_idle(state: PoolState, contents: Contents, sessions: int, *, replace: bool) -> None:
    """Raise :class:`RestoreRefusedError` (or ``SpecError``) unless the pool may be restored; pure."""
    pool = state.keys.pool
    if state.members:
        raise RestoreRefusedError(
            f"pool {pool!r} has members: {', '.join(sorted(state.members))}; stop their sidecars first "
            "(the record of a killed one goes after 10 s), then restore"
        )
    if state.spec is not None:
        refuse_contradiction(state.spec.record, contents.spec)
    if sessions and not replace:
        raise RestoreRefusedError(
            f"pool {pool!r} has {sessions} sessions: give --replace to delete them all and have those of the backup"
        )
    beyond = [slot for slot in state.owners if slot >= contents.spec.slots]
    if beyond:
        raise RestoreRefusedError(
            f"pool {pool!r} has an owner record of slot {beyond[0]}, which the backup's spec lacks"
        )


class Restore:
    """One restore of a checked backup."""

    def __init__(self, client: EtcdClient, contents: Contents, *, boot: str, progress: Progress) -> None:
        self._client = client
        self._contents = contents
        self._keys = PoolKeys(contents.header.pool)
        self._boot = boot
        self._progress = progress
        self._fences: dict[int, int] = {}
        self._done = Restored()

    async def run(self, *, replace: bool) -> Restored:
        """Restore. Raises :class:`RestoreRefusedError`, :class:`RestoreStoppedError`, ``SpecError``, ``EtcdError``."""
        keys, contents = self._keys, self._contents
        state, _ = await read_pool(self._client, keys.pool)
        refuse_unless_idle(state, contents, await self._count(), replace=replace)
        try:
            await self._carry_out(state, replace=replace)
        except EtcdError as error:
            raise RestoreStoppedError(keys.pool, str(error)) from None
        return self._done

    async def _count(self) -> int:
        """How many sessions the pool has."""
        return (await self._client.range(prefix_range(self._keys.sessions), limit=1, keys_only=True)).count

    async def _carry_out(self, state: PoolState, *, replace: bool) -> None:
        keys, contents = self._keys, self._contents
        spec = await self._client.get(keys.spec)
        if spec is not None:
            await self._guarded([ModRevision(keys.spec, spec.mod_revision)], [Delete(keys.spec)], "its spec changed")
        known = {slot: at.record for slot, at in state.owners.items()}
        records = owners_after(contents.owners, known, contents.spec.slots, boot=self._boot, now=time.time())
        self._fences = {slot: at.revision for slot, at in state.owners.items()}
        await self._put_owners(records)
        if await self._count():  # asked anew: only now that it is fenced can no forgotten process add to it
            if not replace:
                raise RestoreStoppedError(keys.pool, "a session was written while the restore began")
            await self._clear()
        await self._put_sessions(now_ms=time.time_ns() // 1_000_000)
        if contents.secret:
            await self._client.put(keys.secret, contents.secret)
        if contents.encryption:
            await self._client.put(keys.encryption, contents.encryption)
        await self._put_owners(records)
        await self._guarded(
            [CreateRevision(keys.spec, 0)], [Put(keys.spec, contents.spec.encode())], "a spec was applied"
        )

    async def _put_owners(self, records: Mapping[int, Owner]) -> None:
        """Write owner records over those that are known, and know the new ones."""
        slots = list(records)
        for start in range(0, len(slots), BATCH_MOST):
            part = slots[start : start + BATCH_MOST]
            puts = [Put(self._keys.owner(slot), records[slot].encode()) for slot in part]
            result = await self._guarded(self._compares(part), puts, "a member claimed a slot")
            self._fences |= dict.fromkeys(part, result.revision)

    async def _clear(self) -> None:
        """Delete all sessions that are there."""
        slots = range(self._contents.spec.slots)
        for start in range(0, len(slots), BATCH_MOST):
            part = slots[start : start + BATCH_MOST]
            deletes = [Delete(prefix_range(self._keys.slot_sessions(slot))) for slot in part]
            await self._guarded(self._compares(part), deletes, "a member claimed a slot")

    async def _put_sessions(self, *, now_ms: int) -> None:
        batch: list[SessionLine] = []
        size = 0
        for line in sessions_in(self._contents.path):
            if not self._wanted(line, now_ms):
                self._progress(1)
                continue
            if batch and (len(batch) == BATCH_MOST or size + len(line.value) > BATCH_BYTES):
                await self._put_batch(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line.value)
        if batch:
            await self._put_batch(batch)

    def _wanted(self, line: SessionLine, now_ms: int) -> bool:
        if not valid_key(line.key) or slot_of(line.key, self._contents.spec.slots) != line.slot:
            self._done.foreign += 1
            return False
        if expired(line, now_ms):
            self._done.expired += 1
            return False
        return True

    async def _put_batch(self, batch: Sequence[SessionLine]) -> None:
        slots = list(dict.fromkeys(line.slot for line in batch))
        puts = [Put(self._keys.session(line.slot, line.key), line.value) for line in batch]
        await self._guarded(self._compares(slots), puts, "a member claimed a slot")
        self._done.sessions += len(batch)
        self._progress(len(batch))

    def _compares(self, slots: Iterable[int]) -> list[Compare]:
        return [ModRevision(self._keys.owner(slot), self._fences.get(slot, 0)) for slot in slots]

    async def _guarded(self, compares: list[Compare], success: Sequence[Operation], otherwise: str) -> TxnResult:
        """Do it if all compares hold. Raises :class:`RestoreStoppedError` with ``otherwise`` if not."""
        wanted = {step.key: step.value if isinstance(step, Put) else None for step in success if _of_one_key(step)}
        looks = [Get(key) for key in wanted]
        result, resent = await retry_txn(self._client, compares, success, looks, patience=OUTCOME_PATIENCE)
        if result.succeeded:
            return result
        found = [answer[0] if answer else None for answer in result.answers]
        if resent and [kv.value if kv else None for kv in found] == list(wanted.values()):
            # It was applied by a try whose answer was lost, and so changed what it compares.
            return replace(result, revision=max((kv.mod_revision for kv in found if kv), default=result.revision))
        raise RestoreStoppedError(self._keys.pool, otherwise)


def _of_one_key(step: Operation) -> bool:
    return isinstance(step.key, str)


def expired(line: SessionLine, now_ms: int) -> bool:
    """Whether a session's time is over; what cannot be read is kept, and its owner will see to it."""
    try:
        return now_ms >= outline(line.value, line.revision).expires
    except ValueError:
        return False
