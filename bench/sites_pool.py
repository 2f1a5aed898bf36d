"""The pool of bench/sites.py: a local pool whose sites each have a network of their own.

Two members, a control server, a member of etcd and a front Envoy are on each of two sites. A third member of etcd is
on a site of its own: the witness.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from tests.harness.netns import Network
from understudy.deploy.common.operator import this_operator
from understudy.deploy.data.apply import apply_spec
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.linked_pool import WITNESS, LinkedPool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.operate import service
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState

SITES = ("east", "west")
PARTIES = (*SITES, WITNESS)
MEMBERS = 4


class SitePool(LinkedPool):
    """A local pool on two sites and a witness, with Debian's etcd."""

    def __init__(self, directory: Path, spec: PoolSpec, net: Network) -> None:
        environment = {**os.environ, "UNDERSTUDY_ETCD_BINARY": "/usr/bin/etcd"}
        settings = LocalSettings(
            directory,
            spec,
            members=MEMBERS,
            controls=2,
            etcds=3,
            etcd_election_ms=1000,
            sites=SITES,
            log_level="warning",
            environment=environment,
        )
        super().__init__(settings, net)

    @property
    def members(self) -> dict[str, str]:
        """The site of each member."""
        return {place.name: place.site for place in self.layout.members}

    @property
    def fronts(self) -> dict[str, str]:
        """The URL of each site's front Envoy."""
        return {one.site: f"http://{one.listen}" for one in (self.layout.front, *self.layout.site_fronts)}

    def of_site(self, site: str) -> list[str]:
        """The processes that are gone when a site is lost: all but its front Envoy, which is the clients' way in."""
        fronts = {one.name for one in (self.layout.front, *self.layout.site_fronts)}
        names = [process.name for process in self.processes.all]
        return [name for name in names if name not in fronts and self.site_of(name) == site]


class Operator:
    """What an operator does with the pool, and what can be read of it."""

    def __init__(self, pool: SitePool, etcd: EtcdClient) -> None:
        self._pool, self.etcd = pool, etcd
        self._name = pool.layout.pool

    async def state(self) -> PoolState:
        """The pool's records."""
        return (await read_pool(self.etcd, self._name))[0]

    async def apply(self, spec: PoolSpec) -> None:
        """Apply another spec."""
        await apply_spec(self.etcd, spec, this_operator("apply", EtcdSettings(self._pool.layout.etcd)))

    async def offline(self, site: str, now: float) -> None:
        """As ``understudy site offline``, without waiting. ``now``: seconds since the epoch."""
        state = await self.state()
        change = service.site_offline(state, Intent(site=site, until=now + service.OFFLINE_SECONDS, since=now))
        await service.carry_out(self._log(state, "site offline"), change)

    async def online(self, site: str) -> None:
        """As ``understudy site online``."""
        state = await self.state()
        change = service.site_online(state, site, time.time())
        await service.carry_out(self._log(state, "site online"), change)

    def _log(self, state: PoolState, command: str) -> OperatorLog:
        who = this_operator(command, EtcdSettings(self._pool.layout.etcd))
        return OperatorLog(self.etcd, state.keys, who, "bench")

    async def leader(self) -> str:
        """The site of etcd's leader; '' while there is none."""
        for status, site in zip(await self.etcd.status(), self._pool.layout.etcd_sites, strict=True):
            if status.leader:
                return site or WITNESS
        return ""

    async def lead_from(self, site: str) -> None:
        """Make the member of etcd on a site its leader. Raises ``aiohttp.ClientError`` if etcd refuses."""
        async with aiohttp.ClientSession(raise_for_status=True) as http:
            ids: dict[str, str] = {}
            for place, url in zip(self._pool.layout.etcd_sites, self._pool.layout.etcd, strict=True):
                async with http.post(f"{url}/v3/maintenance/status", json={}) as answer:
                    status = await answer.json()
                ids[place or WITNESS] = status["header"]["member_id"]
                if status["leader"] == ids[place or WITNESS]:
                    leader, where = url, place or WITNESS
            if where != site:
                target = {"targetID": ids[site]}
                async with http.post(f"{leader}/v3/maintenance/transfer-leadership", json=target) as answer:
                    await answer.read()


@contextlib.asynccontextmanager
async def site_pool(directory: Path, spec: PoolSpec, net: Network) -> AsyncIterator[tuple[SitePool, Operator]]:
    """A pool that runs, and its operator."""
    async with SitePool(directory, spec, net) as pool, EtcdClient(pool.etcd_endpoints) as etcd:
        yield pool, Operator(pool, etcd)
