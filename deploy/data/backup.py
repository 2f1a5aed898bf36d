"""``backup`` and ``restore`` of a pool: its spec, its sessions and its epochs.

A backup is consistent: all its records are from one etcd revision. The pool may work meanwhile.

A restore needs a pool without members, and it acts like an owner. First it deletes the spec, because without a spec no
sidecar answers session calls. Then it replaces every owner record: the new one names a process that never existed, and
its epoch is above that of the backup and the present one. From then on no older process can commit anything. Each write
compares these records. So if a member starts too early and claims a slot, the restore stops. At the end the restore
writes the owner records again, so that a member that claims them has read every restored session (docs/ownership.md,
"Catching up"). Then it writes the spec.

The beginning and the end of a restore are records of the audit log. A backup has no audit log.

A backup has what etcd has. In a pool with ``durability: replicas`` the newest writes may be in the memory of members
alone, for ``replication.checkpoint_ms``. A backup has no sync sets, and a restore deletes those that there are.

A restored session gets a new version, that of its record in the etcd where it is now. A sealed one keeps its version,
because it cannot be changed without its key. That version does not come back either: its epoch is not above that of
the backup's owner record, and every later write is under a higher one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from understudy.deploy.common.errors import DeployError
from understudy.deploy.data.apply import refuse_unless_home
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
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog, overtaken
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
from understudy.statesync.pool.spec import PoolSpec, refuse_contradiction
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.session import valid_key
from understudy.statesync.sessions.session_crypto import outline
from understudy.statesync.sessions.session_header import without_version

PAGE_BYTES = 16_000_000
PAGE_TIMEOUT = 15.0
BATCH_MOST = 100
BATCH_BYTES = 1_000_000
OUTCOME_TIMEOUT = 20.0
NO_MEMBER = "restored"

Progress = Callable[[int], None]


class RestoreRefusedError(DeployError):
    """The pool is in a state that does not permit a restore. Nothing was changed."""


class RestoreStoppedError(DeployError):
    """Another process changed the pool during a restore. The pool serves nothing until a restore is finished."""

    def __init__(self, pool: str, detail: str) -> None:
        super().__init__(
            f"pool {pool!r}: {detail}; the restore is not finished, and until then the pool serves no sessions: "
            "stop all its sidecars, and restore again with --replace"
        )


# -- backup --


async def write_backup(
    client: EtcdClient, pool: str, path: Path, version: str, *, force: bool, progress: Progress
) -> Header:
    """Write a backup of ``pool`` to ``path``. Returns the header.

    Raises:
        BackupError: the file cannot be written, or it exists and ``force`` is not set.
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
            for kv in spec:  # unchanged: the spec of a newer version may have other keys
                append({"spec": encoded(kv.value)})
            for kv in secret:
                append({"secret": encoded(kv.value)})
            for kv in encryption:
                append({"encryption": encoded(kv.value)})
            for slot, at in sorted(state.owners.items()):
                append({"owner": {"slot": slot, "active": at.record.active, "epoch": at.record.epoch}})
            page = _page(state.spec.record)
            async for part in client.pages(sessions, page=page, revision=revision, timeout=PAGE_TIMEOUT):
                for kv in part.kvs:
                    append({"session": _session_line(keys, kv)})
                progress(len(part.kvs))
    except Compacted:
        raise DeployError(
            f"etcd compacted revision {revision} before all of it was read, and no file was written: "
            "try again, or set a longer --auto-compaction-retention for etcd"
        ) from None
    return header


def _just(key: str) -> KeyRange:
    return KeyRange(key, key + "\0")


def _page(spec: PoolSpec) -> int:
    """The number of sessions per page, so that a page of the largest ones is not too large for a message."""
    return max(1, min(500, PAGE_BYTES // (spec.limits.session_bytes + 1000)))


def _session_line(keys: PoolKeys, kv: Kv) -> dict[str, object]:
    try:
        slot = slot_in(kv.key, keys.sessions)
    except ValueError:
        raise DeployError(f"the record at {kv.key!r} in etcd is not a session: delete it, then back up") from None
    key = kv.key.removeprefix(keys.slot_sessions(slot))
    return {"slot": slot, "key": key, "revision": kv.mod_revision, "value": encoded(kv.value)}


# -- restore --


@dataclass(slots=True)
class Restored:
    """The numbers of a restore: written sessions, expired ones, and records that are not sessions."""

    sessions: int = 0
    expired: int = 0
    foreign: int = 0


def owners_after(
    backup: Iterable[OwnerLine], present: Mapping[int, Owner], slots: int, *, boot: str, now: float
) -> dict[int, Owner]:
    """The owner record of every slot after a restore: of a process that never existed, above every known epoch.

    ``boot`` is new for this restore. The names of members stay, so that slots return to the same members.
    """
    saved = {line.slot: line for line in backup}
    records = {}
    for slot in range(slots):
        line, owner = saved.get(slot), present.get(slot)
        active = line.active if line else (owner.active if owner else NO_MEMBER)
        epoch = max(line.epoch if line else 0, owner.epoch if owner else 0) + 1
        records[slot] = Owner(active, boot, epoch, cause="restored from a backup", since=now)
    return records


def refuse_unless_idle(state: PoolState, contents: Contents, sessions: int, *, replace: bool) -> None:
    """Raise :class:`DeployError` (or ``SpecError``) unless the pool may be restored; pure."""
    pool = state.keys.pool
    refuse_unless_home(pool, state.home.record if state.home is not None else None)
    if state.members:
        raise RestoreRefusedError(
            f"pool {pool!r} has members: {', '.join(sorted(state.members))}; stop their sidecars first "
            "(the record of a killed one expires after 10 s), then restore"
        )
    if state.spec is not None:
        refuse_contradiction(state.spec.record, contents.spec)
    if sessions and not replace:
        raise RestoreRefusedError(
            f"pool {pool!r} has {sessions} sessions: give --replace to delete them and restore those of the backup"
        )
    beyond = [slot for slot in state.owners if slot >= contents.spec.slots]
    if beyond:
        raise RestoreRefusedError(
            f"pool {pool!r} has an owner record of slot {beyond[0]}, which is not in the backup's spec"
        )


class Restore:
    """One restore of a checked backup. See :class:`OperatorLog` for ``actor`` and ``reason``."""

    def __init__(
        self,
        client: EtcdClient,
        contents: Contents,
        *,
        boot: str,
        progress: Progress,
        actor: Actor,
        reason: str = "",
    ) -> None:
        self._client = client
        self._contents = contents
        self._keys = PoolKeys(contents.header.pool)
        self._boot = boot
        self._progress = progress
        self._log = OperatorLog(client, self._keys, actor, reason)
        self._fences: dict[int, int] = {}
        self._done = Restored()

    async def run(self, *, replace: bool) -> Restored:
        """Restore. Raises :class:`RestoreRefusedError`, :class:`RestoreStoppedError`, ``SpecError``, ``EtcdError``."""
        keys, contents = self._keys, self._contents
        state, _ = await read_pool(self._client, keys.pool)
        refuse_unless_idle(state, contents, await self._count(), replace=replace)
        try:
            await self._restore(state, replace=replace)
        except EtcdError as error:
            raise RestoreStoppedError(keys.pool, str(error)) from None
        return self._done

    async def _count(self) -> int:
        """The number of sessions of the pool."""
        return (await self._client.range(prefix_range(self._keys.sessions), limit=1, keys_only=True)).count

    async def _restore(self, state: PoolState, *, replace: bool) -> None:
        keys, contents = self._keys, self._contents
        spec = await self._client.get(keys.spec)
        before, name = spec.mod_revision if spec else 0, contents.path.name
        await self._recorded(
            Act(f"restore {name}", "begun: the pool has no spec until the end"),
            before,
            [ModRevision(keys.spec, before)],
            [Delete(keys.spec)],
            "its spec changed",
        )
        known = {slot: at.record for slot, at in state.owners.items()}
        records = owners_after(contents.owners, known, contents.spec.slots, boot=self._boot, now=time.time())
        self._fences = {slot: at.revision for slot, at in state.owners.items()}
        await self._put_owners(records)
        if await self._count():  # counted again: only now, after fencing, no old process can add sessions
            if not replace:
                raise RestoreStoppedError(keys.pool, "a session was written while the restore began")
            await self._clear()
        await self._put_sessions(now_ms=time.time_ns() // 1_000_000)
        if contents.secret:
            await self._client.put(keys.secret, contents.secret)
        if contents.encryption:
            await self._client.put(keys.encryption, contents.encryption)
        await self._put_owners(records)
        await self._recorded(
            Act(f"restore {name}", f"ended: {self._done.sessions} sessions as of revision {contents.header.revision}"),
            before,
            [CreateRevision(keys.spec, 0)],
            [Put(keys.spec, contents.spec.encode())],
            "a spec was applied",
        )

    async def _put_owners(self, records: Mapping[int, Owner]) -> None:
        """Replace the known owner records, and remember the new revisions.

        No process has a restored session in memory, so there is no sync set any more.
        """
        slots = list(records)
        for start in range(0, len(slots), BATCH_MOST):
            part = slots[start : start + BATCH_MOST]
            steps: list[Operation] = [Put(self._keys.owner(slot), records[slot].encode()) for slot in part]
            steps.append(Delete(prefix_range(self._keys.sync_sets)))
            result = await self._guarded(self._compares(part), steps, "a member claimed a slot")
            self._fences |= dict.fromkeys(part, result.revision)

    async def _clear(self) -> None:
        """Delete all sessions."""
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
        if not valid_key(line.key) or self._contents.spec.slot_of_key(line.key) != line.slot:
            self._done.foreign += 1
            return False
        if expired(line, now_ms):
            self._done.expired += 1
            return False
        return True

    async def _put_batch(self, batch: Sequence[SessionLine]) -> None:
        slots = list(dict.fromkeys(line.slot for line in batch))
        puts = [Put(self._keys.session(line.slot, line.key), without_version(line.value)) for line in batch]
        await self._guarded(self._compares(slots), puts, "a member claimed a slot")
        self._done.sessions += len(batch)
        self._progress(len(batch))

    def _compares(self, slots: Iterable[int]) -> list[Compare]:
        return [ModRevision(self._keys.owner(slot), self._fences.get(slot, 0)) for slot in slots]

    async def _recorded(
        self, act: Act, before: int, compares: list[Compare], success: Sequence[Operation], otherwise: str
    ) -> None:
        """Like :meth:`_guarded`, with the audit record of ``act``; again when another command appends its own."""
        while True:
            new = await self._log.next(act, before)
            try:
                await self._guarded([*compares, new.compare], [*success, *new.puts], otherwise)
            except RestoreStoppedError:
                end = await self._client.get(new.compare.key)
                if not overtaken(new, (end,) if end else ()):
                    raise
            else:
                return

    async def _guarded(self, compares: list[Compare], success: Sequence[Operation], otherwise: str) -> TxnResult:
        """Commit if all compares hold. Otherwise raise :class:`RestoreStoppedError` with ``otherwise``."""
        wanted = {step.key: step.value if isinstance(step, Put) else None for step in success if _of_one_key(step)}
        looks = [Get(key) for key in wanted]
        result, resent = await retry_txn(self._client, compares, success, looks, patience=OUTCOME_TIMEOUT)
        if result.succeeded:
            return result
        found = [answer[0] if answer else None for answer in result.answers]
        if resent and [kv.value if kv else None for kv in found] == list(wanted.values()):
            # An earlier attempt was applied and its answer was lost, so the compares do not hold any more.
            return replace(result, revision=max((kv.mod_revision for kv in found if kv), default=result.revision))
        raise RestoreStoppedError(self._keys.pool, otherwise)


def _of_one_key(step: Operation) -> bool:
    return isinstance(step.key, str)


def expired(line: SessionLine, now_ms: int) -> bool:
    """Whether a session has expired. One that cannot be read is kept for its owner to handle."""
    try:
        return now_ms >= outline(line.value, line.revision).expires
    except ValueError:
        return False
