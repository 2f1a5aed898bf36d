"""The audit log in etcd: appends a record in the transaction of its act, reads the log, and removes old records."""

import contextlib
import time
from collections.abc import Sequence

from understudy.statesync.audit.chain import Addition, ChainEnd, Mark, addition, number_in, verify
from understudy.statesync.audit.entry import Act, Actor, Chain, Sealed, unseal
from understudy.statesync.etcd.client import (
    Compare,
    CompareFailed,
    Delete,
    EtcdClient,
    Get,
    Kv,
    ModRevision,
    Operation,
    Put,
    TxnResult,
)
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import AuditKeys
from understudy.telemetry.timing.backoff import Backoff

KEPT = 5_000
"""The newest records of each chain that retention keeps: about 3 MB in etcd for a pool."""
TRIM_BATCH = 500
"""Retention removes so many records at a time, and leaves fewer than that above :data:`KEPT`."""
ATTEMPTS = 40
"""Attempts to append an operator's record while others append theirs."""
RETRY_FIRST = 0.01
RETRY_LONGEST = 0.25


def end_in(kv: Kv | None) -> ChainEnd | None:
    """The end of a chain by its mark; None if there is no mark, or if it cannot be read."""
    if kv is None:
        return None
    try:
        return ChainEnd(Mark.decode(kv.value), kv.mod_revision)
    except ValueError:
        return None


async def read_end(client: EtcdClient, keys: AuditKeys, chain: Chain) -> ChainEnd:
    """Where ``chain`` ends. Without a readable mark it is where its records end, so that acts do not stop."""
    kv = await client.get(keys.audit_end(chain))
    found = end_in(kv)
    if found is not None:
        return found
    mark = Mark()
    anchor = await client.get(keys.audit_anchor(chain))
    if anchor is not None:
        with contextlib.suppress(ValueError):
            mark = Mark.decode(anchor.value)
    prefix = keys.audit_records(chain)
    numbers = [
        number
        async for page in client.pages(prefix_range(prefix))
        for one in page.kvs
        if (number := number_in(one.key, prefix)) is not None
    ]
    if numbers:
        newest = await client.get(keys.audit_record(chain, max(numbers)))
        mark = Mark(max(numbers), _digest(newest))
    return ChainEnd(mark, kv.mod_revision if kv else 0)


def _digest(kv: Kv | None) -> str:
    sealed = _unsealed(kv) if kv else None
    return sealed.digest if sealed else ""


def _unsealed(kv: Kv) -> Sealed | None:
    try:
        return unseal(kv.value)
    except ValueError:
        return None


class OperatorLog:
    """Appends the acts of one command to the operators' chain of a pool.

    ``why`` is the operator's reason, '' if none was given.
    """

    def __init__(self, client: EtcdClient, keys: AuditKeys, actor: Actor, why: str = "") -> None:
        self._client = client
        self._keys = keys
        self._actor = actor
        self._why = why

    async def next(self, act: Act, before: int) -> Addition:
        """The record of ``act``, to be written in its transaction. See :class:`Entry` for ``before``."""
        end = await read_end(self._client, self._keys, Chain.OPERATORS)
        act = Act(act.what, act.detail, act.why or self._why, act.undo)
        now = time.time_ns() // 1_000_000
        return addition(self._keys, Chain.OPERATORS, end, self._actor, act, before=before, time_ms=now)

    async def txn(self, act: Act, compares: Sequence[Compare], success: Sequence[Operation], before: int) -> TxnResult:
        """Do ``success`` if all ``compares`` hold, with the record of ``act`` in the same transaction.

        Tries again while other commands append their records. Raises ``CompareFailed`` if they do so at every attempt.
        """
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        for _ in range(ATTEMPTS):
            new = await self.next(act, before)
            result = await self._client.txn([*compares, new.compare], [*success, *new.puts], [Get(new.compare.key)])
            if result.succeeded or not overtaken(new, result.answers[-1]):
                return result
            await self._client.pause(backoff.next())
        raise CompareFailed("txn", "", f"{act.what}: other commands wrote the audit log at the same time, try again")

    async def put(self, act: Act, key: str, value: bytes) -> None:
        """Set a key."""
        while True:
            found = await self._client.get(key)
            if await self._change(act, key, found, Put(key, value)):
                return

    async def delete(self, act: Act, key: str) -> bool:
        """Delete a key; False, and nothing is written, if there is none."""
        while True:
            found = await self._client.get(key)
            if found is None:
                return False
            if await self._change(act, key, found, Delete(key)):
                return True

    async def _change(self, act: Act, key: str, found: Kv | None, step: Put | Delete) -> bool:
        """Change a key that was as ``found``; False if it has changed since."""
        before = found.mod_revision if found else 0
        return (await self.txn(act, [ModRevision(key, before)], [step], before)).succeeded


def overtaken(new: Addition, found: Sequence[Kv]) -> bool:
    """Whether the end of the chain is no longer where ``new`` was to be appended; ``found``: its mark in etcd."""
    return (found[0].mod_revision if found else 0) != new.compare.revision


async def read_newest(
    client: EtcdClient, keys: AuditKeys, chain: Chain, count: int, revision: int = 0
) -> tuple[list[Kv], int]:
    """The newest ``count`` records of a chain in order, as they were at ``revision``, and that revision.

    ``count`` 0: all that are kept. ``revision`` 0: now.
    """
    records = prefix_range(keys.audit_records(chain))
    if count:
        end = await read_end(client, keys, chain)
        first = max(end.mark.number - count + 1, 0)
        records = KeyRange(keys.audit_record(chain, first), records.end)
    kvs: list[Kv] = []
    async for page in client.pages(records, revision=revision):
        revision = page.revision
        kvs += page.kvs
    return kvs, revision


async def trim(
    client: EtcdClient,
    keys: AuditKeys,
    chain: Chain,
    fence: Compare,
    *,
    kept: int = KEPT,
    batch: int = TRIM_BATCH,
) -> tuple[int, str]:
    """Remove one batch of the oldest records, if at least so many are above ``kept``.

    ``fence`` must hold. Returns how many records were removed, and why records that are due were not: a chain that is
    broken there is kept as it is, as evidence.
    """
    found = await client.get(keys.audit_anchor(chain))
    try:
        anchor = Mark.decode(found.value) if found else Mark()
    except ValueError as error:
        return 0, f"the anchor cannot be read: {error}"
    end = end_in(await client.get(keys.audit_end(chain)))
    if end is None or end.mark.number - anchor.number < kept + batch:
        return 0, ""
    last = anchor.number + batch
    oldest = KeyRange(keys.audit_records(chain), keys.audit_record(chain, last + 1))
    records = {kv.key: kv async for page in client.pages(oldest) for kv in page.kvs}
    mark = Mark(last, _digest(records.get(keys.audit_record(chain, last))))
    whole = {**records, keys.audit_end(chain): _as_kv(keys.audit_end(chain), mark)}
    if found:
        whole[keys.audit_anchor(chain)] = found
    faults = verify(keys, chain, whole).faults
    if faults:
        return 0, faults[0]
    compare = ModRevision(keys.audit_anchor(chain), found.mod_revision if found else 0)
    result = await client.txn([fence, compare], [Delete(oldest), Put(compare.key, mark.encode())])
    return (batch if result.succeeded else 0), ""


def _as_kv(key: str, mark: Mark) -> Kv:
    return Kv(key, mark.encode(), 0, 0, 0)
