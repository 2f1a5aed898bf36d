"""``site take-over``: a site goes on with its member of etcd alone, after the majority of etcd was lost.

The steps: check that the majority does not answer, estimate on a copy of the data what may be lost, then give the lost
members up, and write down that this was done. All of it happens before any process of a pool can reach this etcd again.

What keeps the etcd of before out, when it comes back:

* etcd itself: members that were given up end as soon as they reach this one.
* the record ``take-over`` of each pool: members and control servers that have read it ignore whatever the lost members
  of etcd answer, and sidecars of the lost site that reach a member here do not serve (``TakeOverWatch``).
* revisions: so many are skipped that none of the etcd of before is used twice, and history is compacted, so every
  process reads the pool anew. Owner records are compared by their revisions.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.members import MemberError, peer_apis
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.sites import read_reports, sites_view
from understudy.deploy.operate.lone_etcd import EtcdData, EtcdMember, answering
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import pool_names
from understudy.statesync.pool.site_records import SiteTakeOver
from understudy.statesync.pool.state import PoolState

OBSERVED = 6.0
"""Seconds in which this member would find a leader if there were a majority: several of etcd's election timeouts."""
SKIPPED = 1000
"""Revisions that are skipped beyond those that members of this site have seen."""
WRITERS = 50


class Login(msgspec.Struct, frozen=True):
    """The user of etcd, if it wants one."""

    user: str | None = None
    password: str | None = None


class Estimate(msgspec.Struct, frozen=True):
    """What is known before the take-over.

    ``before`` are the members of etcd, ``last_entry`` is wall time in seconds, ``seen`` is the highest revision that
    members of the site have seen. ``pools`` has a view of each pool.
    """

    before: tuple[EtcdMember, ...]
    last_entry: float
    revision: int
    seen: int
    pools: tuple[View, ...]

    @property
    def missing(self) -> int:
        """How many revisions members of the site have seen, and this etcd has not."""
        return max(self.seen - self.revision, 0)


async def check(data: EtcdData, *, force: bool) -> tuple[EtcdMember, ...]:
    """Return the members of etcd, once it is shown that the majority is lost.

    Raises:
        NegativeAnswer: the majority answers, or a lost member does and ``force`` is not given.
        DeployError: etcd runs on this data, or cannot be started with it.
    """
    data.require_stopped()
    async with data.running(alone=False) as etcd:
        if await etcd.has_leader(OBSERVED):
            raise NegativeAnswer(
                "more than half of etcd's members answer, so there is nothing to take over: start this member of etcd "
                "again, as usual"
            )
        members = await etcd.members()  # not before: it learns of them while it reads its log
    alive = await answering(members)
    if alive and not force:
        names = ", ".join(f"{one.name} ({', '.join(one.peer_urls)})" for one in alive)
        raise NegativeAnswer(
            f"these members of etcd accept connections: {names}. Their site is not lost, or something else listens "
            "there: stop them, or give --force --reason WHY if they must be given up"
        )
    return members


async def estimate(
    data: EtcdData, site: str, before: tuple[EtcdMember, ...], login: Login, tls: TlsOptions | None
) -> Estimate:
    """Read, in a copy of the data, what the site would go on with; the data itself is not touched."""
    last = data.last_entry
    with tempfile.TemporaryDirectory(prefix="take-over-", dir=data.directory.resolve().parent) as scratch:
        copy = Path(scratch) / "data"
        try:
            await asyncio.to_thread(shutil.copytree, data.directory, copy)
        except OSError as error:
            raise DeployError(f"{scratch}: the data of etcd cannot be copied there: {error}") from None
        async with (
            msgspec.structs.replace(data, directory=copy).running(alone=True) as etcd,
            etcd.client(login.user, login.password) as client,
        ):
            states = [await read_pool(client, pool) for pool in await pool_names(client)]
            revision = max((revision for _, revision in states), default=0)
    views, seen = [], 0
    for state, at in states:
        views.append(await _pool_view(state, at, site, tls))
        seen = max(seen, views[-1]["seen"])
    return Estimate(before, last, revision, seen, tuple(views))


async def _pool_view(state: PoolState, revision: int, site: str, tls: TlsOptions | None) -> View:
    """What the loss of the other sites means for a pool, by what this etcd has of it."""
    reports = await read_reports(state, tls)
    rows = sites_view(state, revision=revision, now=time.time(), reports=reports)["sites"]
    return {
        "pool": state.keys.pool,
        "seen": await _seen(state, site, tls),
        "lost_sites": {row["site"]: row["if_lost"] for row in rows if row["site"] != site},
    }


async def _seen(state: PoolState, site: str, tls: TlsOptions | None) -> int:
    """The highest revision that members of the site have seen, as far as they answer."""
    addresses = {name: at.record.peer for name, at in state.members.items() if at.record.site == site}
    async with peer_apis(addresses, tls, state.keys.pool) as members:

        async def ask(member: str) -> int:
            try:
                return int((await members.get(member, STATUS_PATH))["applied_revision"])
            except (MemberError, KeyError, TypeError, ValueError):
                return 0

        return max(await asyncio.gather(*map(ask, addresses)), default=0)


async def take_over(
    data: EtcdData, site: str, known: Estimate, actor: Actor, why: str, login: Login
) -> tuple[list[EtcdMember], View]:
    """Give the other members of etcd up. Returns them, and what was written. Cannot be undone."""
    data.require_stopped()
    async with data.running(alone=True) as etcd, etcd.client(login.user, login.password) as client:
        kept = {member.id for member in await etcd.members()}
        lost = [member for member in known.before if member.id not in kept]
        revision = await _skip(client, known.missing + SKIPPED)
        pools = await pool_names(client)
        generations = {pool: await _record(client, pool, site, lost, actor, why) for pool in pools}
    return lost, {"revision": revision, "generations": generations}


async def _skip(client: EtcdClient, count: int) -> int:
    """Use up revisions, and drop the history before. Returns the revision that etcd then has."""
    key = PoolKeys("take-over").probe("take-over")

    async def write(times: int) -> int:
        return max([await client.put(key, b"") for _ in range(times)])

    revision = max(await asyncio.gather(*(write(-(-count // WRITERS)) for _ in range(WRITERS))))
    await client.compact(revision)
    await client.delete(key)
    return revision


async def _record(client: EtcdClient, pool: str, site: str, lost: Sequence[EtcdMember], actor: Actor, why: str) -> int:
    """Write the pool's record and its entry in the audit log. Returns the generation."""
    state, _ = await read_pool(client, pool)
    earlier = state.take_over.record.removed if state.take_over else ()
    removed = tuple(dict.fromkeys((*earlier, *(member.id for member in lost))))
    record = SiteTakeOver(state.generation + 1, site, removed, time.time(), why)
    names = ", ".join(member.name for member in lost)
    act = Act(f"site take-over {site}", detail=f"take-over {record.generation}; members of etcd given up: {names}")
    await OperatorLog(client, state.keys, actor, why).put(act, state.keys.take_over, record.encode())
    return record.generation


def estimate_view(site: str, known: Estimate, now: float) -> dict[str, Any]:
    """The estimate as ``-o json`` has it."""
    return {
        "site": site,
        "etcd_members": [
            {"id": f"{one.id:x}", "name": one.name, "peer_urls": list(one.peer_urls)} for one in known.before
        ],
        "revision": known.revision,
        "last_entry_age": round(max(now - known.last_entry, 0.0), 1) if known.last_entry else None,
        "missing_revisions": known.missing,
        "pools": list(known.pools),
    }
