"""The audit log of a pool for output: its records in order, and whether its chains are whole. Read only."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec.structs import asdict

from understudy.statesync.audit.chain import ChainReport, number_in, verify
from understudy.statesync.audit.entry import Chain, unseal
from understudy.statesync.audit.log import read_newest
from understudy.statesync.etcd.client import Compacted, EtcdClient, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import AuditKeys


async def read_rows(
    client: EtcdClient, keys: AuditKeys, *, count: int = 0, since_ms: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """The newest ``count`` records since a wall time, oldest first (0: all), and the revision of the reading."""
    kvs: list[Kv] = []
    revision = 0
    for chain in Chain:
        found, revision = await read_newest(client, keys, chain, count, revision)
        kvs += found
    rows = [row for row in rows_of(keys, kvs) if row["time_ms"] >= since_ms or row["fault"]]
    return rows[-count:], revision


def rows_of(keys: AuditKeys, kvs: Iterable[Kv]) -> list[dict[str, Any]]:
    """Records as output, in the order of etcd's revisions."""
    return [_row(keys, kv) for kv in sorted(kvs, key=lambda kv: kv.create_revision) if _chain_of(keys, kv) is not None]


def _chain_of(keys: AuditKeys, kv: Kv) -> Chain | None:
    """The chain of a record; None if the key is not that of a record."""
    for chain in Chain:
        prefix = keys.audit_records(chain)
        if kv.key.startswith(prefix) and number_in(kv.key, prefix) is not None:
            return chain
    return None


def _row(keys: AuditKeys, kv: Kv) -> dict[str, Any]:
    """One record: its fields, the revision of the act, and ``fault`` if it cannot be read or was altered."""
    chain = _chain_of(keys, kv)
    row: dict[str, Any] = {
        "chain": chain,
        "number": number_in(kv.key, keys.audit_records(chain or "")),
        "time_ms": 0,
        **dict.fromkeys(("who", "host", "process", "account", "what", "detail", "why", "undo"), ""),
        "before": 0,
        "revision": kv.create_revision,
        "digest": "",
        "fault": "",
    }
    try:
        sealed = unseal(kv.value)
    except ValueError as error:
        return {**row, "fault": str(error)}
    entry = {name: value for name, value in asdict(sealed.entry).items() if name in row}
    return {**row, **entry, "chain": chain, "number": row["number"], "digest": sealed.digest}


async def follow_rows(client: EtcdClient, keys: AuditKeys, revision: int) -> AsyncIterator[dict[str, Any]]:
    """Every record after ``revision``, as it is written; without end. After a compaction the missed ones are read."""
    while True:
        try:
            async with aclosing(client.watch(prefix_range(keys.audit), revision + 1)) as batches:
                async for batch in batches:
                    for row in rows_of(keys, (event.kv for event in batch.events if event.kind == "put")):
                        yield row
                    revision = max(revision, batch.revision) if batch.events else revision
        except Compacted:
            rows, read_at = await read_rows(client, keys)
            for row in rows:
                if row["revision"] > revision:
                    yield row
            revision = read_at


async def read_reports(client: EtcdClient, keys: AuditKeys) -> tuple[ChainReport, ...]:
    """Both chains, checked as they are at one revision."""
    stored = {kv.key: kv async for page in client.pages(prefix_range(keys.audit)) for kv in page.kvs}
    return tuple(verify(keys, chain, stored) for chain in Chain)


def verify_view(pool: str, reports: Sequence[ChainReport]) -> dict[str, Any]:
    """The output of ``audit --verify``."""
    return {
        "pool": pool,
        "whole": not any(report.faults for report in reports),
        "chains": [
            {
                "chain": report.chain,
                "records": report.newest.number - report.first + 1,
                "first": report.first,
                "newest": report.newest.number,
                "digest": report.newest.digest,
                "faults": list(report.faults),
            }
            for report in reports
        ],
    }
