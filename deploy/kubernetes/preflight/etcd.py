"""Checks a running etcd: version, quorum, alarms, compaction, quota, and whether the account may write the pool's keys.

It asks every endpoint over gRPC. etcd's API does not tell compaction and quota, so they are read over HTTP
(``/metrics``, and the flags in ``/debug/vars``). If that fails, they are reported as unknown.
"""

import asyncio
import json
import re
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from understudy.deploy.kubernetes.preflight.findings import Finding, Level, judged
from understudy.statesync.etcd.client import EndpointStatus, EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys

AREA = "etcd"
YOUNG = 10_000
"""Below this revision, an uncompacted history proves nothing."""
_LEAST_QUOTA = 512 * 1024**2
_PATIENCE = 3.0
_PROBE_TTL = 10
_QUOTA = re.compile(r"^etcd_server_quota_backend_bytes (\S+)$", re.MULTILINE)
_COMPACTED = re.compile(r"^etcd_debugging_mvcc_compact_revision (\S+)$", re.MULTILINE)
_REVISION = re.compile(r"^etcd_debugging_mvcc_current_revision (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class EtcdFacts:
    """Facts about one endpoint; None if unknown. ``flags`` is its command line, ``quota`` is in bytes."""

    status: EndpointStatus
    quota: int | None = None
    compacted: int | None = None
    revision: int | None = None
    flags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class EtcdReport:
    """Facts about all endpoints, and why the pool's keys cannot be written ('' if they can, None: not tried)."""

    facts: tuple[EtcdFacts, ...]
    refusal: str | None = None
    endpoints: tuple[str, ...] = field(default=())


async def look_at_etcd(settings: EtcdSettings, client: EtcdClient, pool: str | None) -> EtcdReport:
    """Collect all facts. A silent etcd raises nothing. With a ``pool``, a probe key is written and deleted."""
    statuses = await client.status()
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        tls = _context(settings)
        facts = await asyncio.gather(*(_more(http, status, tls, settings) for status in statuses))
    return EtcdReport(tuple(facts), await _refusal(client, pool) if pool else None, settings.endpoints)


async def _refusal(client: EtcdClient, pool: str) -> str:
    """Why a probe key of the pool cannot be written. The key is deleted again, and has a lease in case that fails."""
    key = PoolKeys(pool).probe(f"preflight-{secrets.token_hex(4)}")
    try:
        async with client.lease(_PROBE_TTL) as lease:
            await client.put(key, b"", lease=lease.id)
            await client.delete(key)
    except EtcdError as error:
        return str(error)
    return ""


def _context(settings: EtcdSettings) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(cafile=str(settings.tls.ca))
    if settings.tls.cert and settings.tls.key:
        context.load_cert_chain(settings.tls.cert, settings.tls.key)
    return context


async def _more(
    http: aiohttp.ClientSession, status: EndpointStatus, tls: ssl.SSLContext | None, settings: EtcdSettings
) -> EtcdFacts:
    """The facts about an endpoint, with those that it tells over HTTP."""
    facts = EtcdFacts(status)
    if not status.version:
        return facts
    url = f"{'https' if settings.tls else 'http'}://{status.endpoint}"
    metrics = await _text(http, f"{url}/metrics", tls)
    if metrics:
        facts = replace(
            facts,
            quota=_number(_QUOTA, metrics),
            compacted=_number(_COMPACTED, metrics),
            revision=_number(_REVISION, metrics),
        )
    told = await _text(http, f"{url}/debug/vars", tls)
    try:
        flags = json.loads(told).get("cmdline") if told else None
    except (ValueError, AttributeError):
        flags = None
    return replace(facts, flags=tuple(map(str, flags))) if isinstance(flags, list) else facts


async def _text(http: aiohttp.ClientSession, url: str, tls: ssl.SSLContext | None) -> str:
    try:
        async with http.get(url, ssl=tls if tls is not None else True) as reply:
            return await reply.text() if reply.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ""


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(float(found[1])) if found else None


def judge_etcd(report: EtcdReport) -> list[Finding]:
    """All findings."""
    statuses = [one.status for one in report.facts]
    answering = [one for one in report.facts if one.status.version]
    silent = [f"{one.endpoint}: {'; '.join(one.errors)}" for one in statuses if not one.version]
    alarms = [f"{one.endpoint}: {fault}" for one in statuses if one.version for fault in one.errors]
    found = judged(AREA, "every endpoint answers", silent, "start it, or correct --etcd and the --etcd-* options")
    if not answering:
        return found
    return [
        *found,
        *judged(AREA, "the version is safe", _versions(statuses), "upgrade etcd"),
        *judged(AREA, "there is no alarm", alarms, "etcdctl alarm list"),
        *judged(
            AREA,
            "it survives the loss of a member",
            _size(statuses),
            "run 3 or 5 members and name them all",
            Level.WARN,
        ),
        *judged(AREA, "all endpoints belong to one cluster", _clusters(statuses), "name the members of one cluster"),
        *[finding for one in answering for finding in (_compaction(one), _quota(one))],
        *_access(report.refusal),
    ]


def _versions(statuses: Sequence[EndpointStatus]) -> list[str]:
    faults = [one.at_risk for one in statuses if one.at_risk]
    for one in statuses:
        parts = one.version.split(".")
        if one.version and [int(part) if part.isdigit() else 0 for part in parts[:2]] < [3, 4]:
            faults.append(f"etcd {one.version} at {one.endpoint} is older than 3.4")
    return faults


def _size(statuses: Sequence[EndpointStatus]) -> list[str]:
    count = len(statuses)
    if count == 1:
        return ["only one endpoint is named: without it there are no writes"]
    return (
        []
        if count % 2
        else [f"{count} endpoints are named: an even number tolerates no more failures than one member less"]
    )


def _clusters(statuses: Sequence[EndpointStatus]) -> list[str]:
    leaders = [one.endpoint for one in statuses if one.leader]
    return [f"{' and '.join(leaders)} are leaders of different clusters"] if len(leaders) > 1 else []


def _compaction(one: EtcdFacts) -> Finding:
    what, where = "history is compacted", one.status.endpoint
    remedy = "--auto-compaction-mode=periodic --auto-compaction-retention=5m (docs/operations.md)"
    if one.flags and any(re.match(r"--?auto-compaction-retention(=(?!0$)|$)", flag) for flag in one.flags):
        return Finding(Level.OK, AREA, what, f"{where}: by its flags")
    if one.compacted is not None and one.compacted > 0:
        return Finding(Level.OK, AREA, what, f"{where}: up to revision {one.compacted}")
    if one.revision is None or one.compacted is None:
        return Finding(Level.WARN, AREA, what, f"{where}: unknown, since /metrics cannot be read", remedy)
    if one.revision < YOUNG:
        return Finding(
            Level.WARN, AREA, what, f"{where}: no flag is set, and revision {one.revision} is too low to tell", remedy
        )
    return Finding(Level.FAIL, AREA, what, f"{where}: none of {one.revision} revisions has been compacted", remedy)


def _quota(one: EtcdFacts) -> Finding:
    what, where = "the quota is large enough", one.status.endpoint
    remedy = "--quota-backend-bytes=2147483648 or more (docs/operations.md)"
    if one.quota is None:
        return Finding(Level.WARN, AREA, what, f"{where}: unknown, since /metrics cannot be read", remedy)
    told = f"{where}: {one.status.db_size / 2**20:.0f} of {one.quota / 2**20:.0f} MiB are used"
    if one.quota < _LEAST_QUOTA:
        return Finding(Level.WARN, AREA, what, told, remedy)
    full = one.status.db_size > 0.8 * one.quota
    return Finding(
        Level.FAIL if full else Level.OK, AREA, what, told, f"compact and defragment, or {remedy}" if full else ""
    )


def _access(refusal: str | None) -> list[Finding]:
    what = "the pool's keys can be written"
    if refusal is None:
        return [Finding(Level.SKIPPED, AREA, what, "no pool is named", "give --pool, or manifests with a pool spec")]
    return judged(
        AREA, what, [refusal] if refusal else [], "grant the role readwrite on the pool's prefix (docs/security.md)"
    )
