"""``site take-over``: a site goes on with its member of etcd alone, after the majority of etcd was lost.

The steps: check that the majority does not answer, estimate on a copy of the data what may be lost, then give the lost
members up, and write down that this was done. All of it happens before any process of a pool can reach this etcd again.

What keeps the etcd of before out, when it comes back:

* etcd itself: members that were given up end as soon as they reach this one.
* the record ``take-over`` of each pool: members and control servers that have read it ignore whatever the lost members
  of etcd answer, and sidecars of the lost site that reach a member here do not serve (``TakeOverWatch``).
* revisions: so many are skipped that none of the etcd of before is used twice, and history is compacted, so every
  process reads the pool anew. Owner records are compared by their revisions.
* epochs: as many are skipped in each owner record, as PostgreSQL begins another timeline. A change of owner takes a
  revision, so no epoch is used twice either, and no version of a session (ETag), which begins with one.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.members import MemberError, peer_apis
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.site_reports import read_reports
from understudy.deploy.inspect.sites import sites_view
from understudy.deploy.operate.lone_etcd import EtcdData, EtcdMember, answering
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.parsing.stored import brief
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import after_set_back, records_written
from understudy.statesync.pool.pools import pool_names
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.site_records import SiteTakeOver
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.sync_set import Process

OBSERVED = 6.0
"""Seconds in which this member would find a leader if there were a majority: several of etcd's election timeouts."""
SKIPPED = 1000
"""Revisions and epochs that are skipped beyond those that members of this site have seen."""
EPOCHS_MOST = 100_000
"""Epochs that are skipped at the most: a version has room for 16 million, and no slot moves so often."""
SLOTS_TOGETHER = 60
"""Slots in a transaction: two records of each stay below etcd's 128 operations."""
WRITERS = 50


class Login(msgspec.Struct, frozen=True):
    """The user of etcd, if it wants one."""

    user: str | None = None
    password: str | None = None


class Estimate(msgspec.Struct, frozen=True):
    """What is known before the take-over.

    ``before`` are the members of etcd, ``last_entry`` is wall time in seconds, ``seen`` is the highest revision that
    members of the site have seen. ``pools`` has a view of each pool, and ``living`` the processes of the site that may
    have sessions of it in memory.
    """

    before: tuple[EtcdMember, ...]
    last_entry: float
    revision: int
    seen: int
    pools: tuple[View, ...]
    living: Mapping[str, frozenset[Process]] = {}

    @property
    def missing(self) -> int:
        """How many revisions members of the site have seen, and this etcd has not."""
        return max(self.seen - self.revision, 0)


async def check(data: EtcdData, *, force: bool) -> tuple[EtcdMember, ...]:
    """Return the members of etcd, once it is shown that the majority is lost.

    If a take-over of this data was interrupted, they are those of before.

    Raises:
        NegativeAnswer: the majority answers, or a lost member does and ``force`` is not given.
        DeployError: etcd runs on this data, or cannot be started with it.
    """
    data.require_stopped()
    if begun := data.members_before():
        return begun  # by now etcd is alone, so nothing can be asked any more
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
    views, living = [], {}
    for state, at in states:
        _require_readable(state)
        said = await _ask_site(state, site, tls)
        views.append(await _pool_view(state, at, site, max((seen for seen, _ in said.values()), default=0), tls))
        living[state.keys.pool] = frozenset(process for process, (_, gone) in said.items() if not gone)
    return Estimate(before, last, revision, max((view["seen"] for view in views), default=0), tuple(views), living)


def _require_readable(state: PoolState) -> None:
    """Raise :class:`DeployError` if an epoch could not be raised, since a record is one of a newer release."""
    keys = (state.keys.owners, state.keys.sync_sets)
    if bad := sorted(key for key in state.unreadable if key.startswith(keys)):
        raise DeployError(
            f"pool {state.keys.pool}: {len(bad)} records of slots cannot be read, such as {brief(bad[0])}: use the "
            "'understudy' of the release that its members have"
        )


async def _pool_view(state: PoolState, revision: int, site: str, seen: int, tls: TlsOptions | None) -> View:
    """What the loss of the other sites means for a pool, by what this etcd has of it."""
    reports = await read_reports(state, tls)
    rows = sites_view(state, revision=revision, now=time.time(), reports=reports)["sites"]
    return {
        "pool": state.keys.pool,
        "seen": seen,
        "lost_sites": {row["site"]: row["if_lost"] for row in rows if row["site"] != site},
    }


async def _ask_site(state: PoolState, site: str, tls: TlsOptions | None) -> dict[Process, tuple[int, bool]]:
    """The highest revision that each process of the site has seen (0: no answer), and whether it surely is gone."""
    there = {name: at.record for name, at in state.members.items() if at.record.site == site}
    async with peer_apis({name: one.peer for name, one in there.items()}, tls, state.keys.pool) as members:

        async def ask(member: str) -> tuple[int, bool]:
            try:
                said = await members.get(member, STATUS_PATH)
                return int(said["applied_revision"]), said["boot"] != there[member].boot
            except MemberError as error:
                return 0, error.refused
            except (KeyError, TypeError, ValueError):
                return 0, False

        answers = await asyncio.gather(*map(ask, there))
    return {Process(name, one.boot): said for (name, one), said in zip(there.items(), answers, strict=True)}


async def take_over(
    data: EtcdData, site: str, known: Estimate, actor: Actor, why: str, login: Login
) -> tuple[list[EtcdMember], View]:
    """Give the other members of etcd up. Returns them, and what was written. Cannot be undone.

    If it is interrupted, it can be done again.
    """
    data.require_stopped()
    data.note_begun(known.before)
    async with data.running(alone=True) as etcd, etcd.client(login.user, login.password) as client:
        kept = {member.id for member in await etcd.members()}
        lost = [member for member in known.before if member.id not in kept]
        skipped = known.missing + SKIPPED
        revision = await _skip(client, skipped)
        generations = {}
        for pool in await pool_names(client):
            state, _ = await read_pool(client, pool)
            await _raise_epochs(client, state, known.living.get(pool, frozenset()), min(skipped, EPOCHS_MOST))
            generations[pool] = await _record(client, state, site, lost, actor, why)
    data.begun.unlink()
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


async def _raise_epochs(client: EtcdClient, state: PoolState, living: frozenset[Process], skipped: int) -> None:
    """Begin an epoch of each slot that the etcd of before cannot have had. Nobody else can write meanwhile."""
    now, known = time.time(), set(state.owners)
    slots = sorted(known.union(range(state.spec.record.slots)) if state.spec else known)
    for first in range(0, len(slots), SLOTS_TOGETHER):
        owners: dict[int, Owner] = {}
        syncs: dict[int, SyncRecord] = {}
        for slot in slots[first : first + SLOTS_TOGETHER]:
            at = state.owners.get(slot)
            owner = at.record if at is not None else None
            owners[slot], sync = after_set_back(owner, state.sync_sets.get(slot), living, skipped, now=now)
            if sync is not None:
                syncs[slot] = sync
        await client.txn([], records_written(state.keys, owners, syncs))


async def _record(
    client: EtcdClient, state: PoolState, site: str, lost: Sequence[EtcdMember], actor: Actor, why: str
) -> int:
    """Write the pool's record and its entry in the audit log. Returns the generation."""
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
