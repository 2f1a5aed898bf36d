"""Two distant sites on one machine (``understudy up --distant east,west``): a whole pool each, with its own etcd.

At the first start the first site is the home, and the other one becomes its mirror before any of its members starts,
so that it has no sessions of its own. At later starts each site is what the home record in its etcd says.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import DistantSite, Layout
from understudy.deploy.common.operator import this_operator, user_name
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.programs import mirror_program
from understudy.deploy.mirror.records import Side
from understudy.deploy.mirror.status import home_view, lines_of
from understudy.deploy.mirror.switch import pair
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.home import PeerLost, Role
from understudy.statesync.pool.keys import PoolKeys

JOIN_TIMEOUT = 60.0
"""Seconds for the second site to become the mirror at the first start."""
POLL_INTERVAL = 0.1


class DistantPool(LocalPool):
    """The pool of one of two distant sites. ``layout.distant`` must be set before it starts.

    ``first``: it is the home at the first start.
    """

    def __init__(self, settings: LocalSettings, *, first: bool, say: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(settings, say=say)
        self._first = first

    async def apply_specs(self, client: EtcdClient) -> None:
        """Apply the spec at the home, and only there. Without a home record make this site the home or the mirror."""
        own = self.distant
        side = Side(own.site, client, PoolKeys(self.layout.pool))
        at = await side.home()
        if at is None:
            await (self._pair(side) if self._first else self._join(side))
        elif (at.record.site, at.record.peer) != (own.site, own.peer):
            raise DeployError(
                f"{self.settings.directory} has the data of site {at.record.site}, with a mirror or home on site "
                f"{at.record.peer}: start with these two names, or use another --dir"
            )
        elif at.record.role is Role.HOME:
            await super().apply_specs(client)

    @property
    def distant(self) -> DistantSite:
        """Which site this is, and its peer."""
        if self.layout.distant is None:
            raise RuntimeError("this pool has no peer")
        return self.layout.distant

    async def _pair(self, side: Side) -> None:
        await super().apply_specs(side.client)
        log = OperatorLog(side.client, side.keys, this_operator("up", EtcdSettings(self.layout.etcd)))
        await pair(side, self.distant.peer, PeerLost.CONTINUE, log, user_name())

    async def _join(self, side: Side) -> None:
        """Let ``understudy mirror`` make this site the mirror, and copy the spec."""
        await self.processes.start(mirror_program(self.settings, self.layout))
        give_up = time.monotonic() + JOIN_TIMEOUT
        while not (await side.mirrored()).whole:
            if time.monotonic() > give_up:
                raise DeployError(
                    f"site {side.name} did not become the mirror of site {self.distant.peer} within "
                    f"{JOIN_TIMEOUT:g} s: see {self.settings.directory}/logs/mirror.log"
                )
            await asyncio.sleep(POLL_INTERVAL)


class DistantPools:
    """Both sites. They run while the context is open."""

    def __init__(self, settings: LocalSettings, sites: tuple[str, str], say: Callable[[str], None]) -> None:
        """``settings``: those of each site. ``directory`` gets a directory for each, ``listen`` is the first one's."""
        self.pools = tuple(_pool(settings, site, say, first=site == sites[0]) for site in sites)
        one, other = self.pools
        for pool, peer in ((one, other), (other, one)):
            pool.layout = replace(pool.layout, distant=_distant(pool, peer.settings.sites[0], peer.layout, peer))

    async def __aenter__(self) -> Self:
        starting = [asyncio.create_task(pool.__aenter__()) for pool in self.pools]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            done = await asyncio.gather(*starting, return_exceptions=True)
            started = [pool for pool, one in zip(self.pools, done, strict=True) if not isinstance(one, BaseException)]
            await asyncio.gather(*(pool.__aexit__() for pool in started))
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(pool.__aexit__() for pool in self.pools))


def _pool(settings: LocalSettings, site: str, say: Callable[[str], None], *, first: bool) -> DistantPool:
    listen = settings.listen if first else ""
    own = replace(settings, directory=settings.directory / site, sites=(site,), listen=listen)
    return DistantPool(own, first=first, say=lambda text: say(f"site {site}: {text}"))


def _distant(pool: DistantPool, peer: str, peer_layout: Layout, peer_pool: LocalPool) -> DistantSite:
    return DistantSite(
        site=pool.settings.sites[0],
        metrics=pool.free_address(),
        peer=peer,
        peer_etcd=peer_layout.etcd,
        peer_directory=str(peer_pool.settings.directory.resolve()),
    )


async def home_lines(pools: DistantPools, clients: Sequence[EtcdClient]) -> list[str]:
    """What ``understudy home status`` says; ``clients`` are of etcd of both sites."""
    keys = PoolKeys(pools.pools[0].layout.pool)
    one, other = (Side(pool.distant.site, client, keys) for pool, client in zip(pools.pools, clients, strict=True))
    try:
        return lines_of(await home_view(one, other))
    except (EtcdError, DeployError) as error:
        return [f"site {one.name}: {error}"]
