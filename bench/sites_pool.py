"""The pool of bench/sites.py: a local pool whose sites each have a network of their own.

Two members, a control server, a member of etcd and a front Envoy are on each of two sites. A third member of etcd is
on a site of its own: the witness.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness.netns import Network
from understudy.deploy.common.layout import Layout
from understudy.deploy.common.operator import this_operator
from understudy.deploy.data.apply import apply_spec
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.processes import Processes, Program
from understudy.deploy.operate import service
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState

SITES = ("east", "west")
WITNESS = "witness"
PARTIES = (*SITES, WITNESS)
MEMBERS = 4
_LOOPBACK = "127.0.0.1"
_PLAIN = ("control", "sidecar")
"""Commands that listen outside loopback only if they are told that nothing is protected."""


def moved(layout: Layout, addresses: dict[str, str]) -> Layout:
    """The layout with each process at the address of its site."""

    def at(place: Any, site: str = "") -> Any:
        host = addresses[site or place.site]
        named = {field.name: getattr(place, field.name) for field in fields(place)}
        return replace(place, **{name: str(value).replace(_LOOPBACK, host) for name, value in named.items()})

    def urls(found: Sequence[str]) -> tuple[str, ...]:
        sites = [site or WITNESS for site in layout.etcd_sites]
        return tuple(url.replace(_LOOPBACK, addresses[site]) for url, site in zip(found, sites, strict=True))

    return replace(
        layout,
        etcd=urls(layout.etcd),
        etcd_peers=urls(layout.etcd_peers),
        controls=tuple(map(at, layout.controls)),
        members=tuple(map(at, layout.members)),
        front=at(layout.front),
        site_fronts=tuple(map(at, layout.site_fronts)),
    )


class _SiteProcesses(Processes):
    """Processes that run in the network of their site."""

    def __init__(self, pool: "SitePool") -> None:
        super().__init__(pool._write_processes)
        self._pool = pool

    def launch(self, *programs: Program) -> None:
        super().launch(*map(self._pool.on_site, programs))


class SitePool(LocalPool):
    """A local pool on two sites and a witness. Whoever uses it is in a network that reaches all of them."""

    def __init__(self, directory: Path, spec: PoolSpec, net: Network) -> None:
        environment = {**os.environ, "UNDERSTUDY_ETCD_BINARY": "/usr/bin/etcd"}
        settings = LocalSettings(
            directory,
            spec,
            members=MEMBERS,
            controls=2,
            etcds=3,
            sites=SITES,
            log_level="warning",
            environment=environment,
        )
        super().__init__(settings)
        self.layout = moved(self.layout, net.addresses)
        self.processes = _SiteProcesses(self)
        self._net = net

    @property
    def members(self) -> dict[str, str]:
        """The site of each member."""
        return {place.name: place.site for place in self.layout.members}

    @property
    def fronts(self) -> dict[str, str]:
        """The URL of each site's front Envoy."""
        return {one.site: f"http://{one.listen}" for one in (self.layout.front, *self.layout.site_fronts)}

    def on_site(self, program: Program) -> Program:
        """A program as it is started in the network of its site."""
        inside = self._net.inside(self._site_of(program.name))
        if program.command[: len(inside)] == tuple(inside):
            return program
        plain = ("--insecure",) if any(word in program.command for word in _PLAIN) else ()
        return replace(program, command=(*inside, *program.command, *plain))

    def _site_of(self, name: str) -> str:
        layout = self.layout
        sites = {control.name: control.site for control in layout.controls}
        sites |= {front.name: front.site for front in (layout.front, *layout.site_fronts)}
        sites |= {etcd: site or WITNESS for etcd, site in zip(layout.etcd_names, layout.etcd_sites, strict=True)}
        return {**sites, **self.members}[name.partition("/")[0]]

    def of_site(self, site: str) -> list[str]:
        """The processes that are gone when a site is lost: all but its front Envoy, which is the clients' way in."""
        fronts = {one.name for one in (self.layout.front, *self.layout.site_fronts)}
        names = [process.name for process in self.processes.all]
        return [name for name in names if name not in fronts and self._site_of(name) == site]


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
        await service.carry_out(self._log(state, "site online"), service.site_online(state, site))

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
