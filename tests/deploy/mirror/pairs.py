"""Two sides of a pool for tests: two real etcds, without processes of the pool; sessions are written by the test."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.deploy.mirror.copier import Copier
from understudy.deploy.mirror.records import Side
from understudy.statesync.audit.entry import Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.home import Home, Role
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At

SLOTS = 4


class Pair:
    """East, the home, and west, the mirror."""

    def __init__(self, east: EtcdClient, west: EtcdClient, pool: str) -> None:
        self.keys = PoolKeys(pool)
        self.east, self.west = Side("east", east, self.keys), Side("west", west, self.keys)

    async def set_up(self) -> None:
        await self.east.client.put(self.keys.spec, PoolSpec(pool=self.keys.pool, slots=SLOTS).encode())
        await self.east.client.put(self.keys.home, Home("east", Role.HOME, "west").encode())
        await self.west.client.put(self.keys.home, Home("west", Role.MIRROR, "east").encode())

    def log(self, side: Side) -> OperatorLog:
        return OperatorLog(side.client, self.keys, Actor("anna", "here", "test"), "a test")

    async def write(self, number: int, value: str = "", *, slot: int = 0) -> int:
        """One write to a session at the home; returns its revision."""
        return await self.east.client.put(self.keys.session(slot, f"k{number:04d}"), value.encode())

    async def write_together(self, values: dict[int, str]) -> int:
        """Writes to several sessions in one transaction."""
        puts = [Put(self.keys.session(0, f"k{number:04d}"), value.encode()) for number, value in values.items()]
        return (await self.east.client.txn([], puts)).revision

    async def sessions(self, side: Side) -> dict[str, bytes]:
        """All sessions of a side, by their keys in etcd."""
        pages = [page async for page in side.client.pages(prefix_range(self.keys.sessions))]
        return {kv.key: kv.value for page in pages for kv in page.kvs}

    async def same(self, revision: int) -> None:
        """Wait until the mirror has what the home had at ``revision``."""

        async def so() -> bool:
            found = await self.west.mirrored()
            return found.whole and found.revision >= revision

        await until(so, 40, f"revision {revision} is applied")
        assert await self.sessions(self.west) == await self.sessions(self.east)

    async def at(self, side: Side) -> At[Home]:
        found = await side.home()
        assert found is not None
        return found

    async def copier(self) -> Copier:
        return Copier(self.west.client, self.east.client, self.keys, await self.at(self.west))

    @contextlib.asynccontextmanager
    async def copying(self) -> AsyncIterator[Copier]:
        """The mirror copies meanwhile, and ends as if it was killed."""
        copier = await self.copier()
        task = asyncio.create_task(copier.run())
        try:
            yield copier
        finally:
            task.cancel()
            await asyncio.wait({task})


@contextlib.asynccontextmanager
async def paired(east: EtcdServer, west: EtcdServer) -> AsyncIterator[Pair]:
    async with east.client() as one, west.client() as other:
        pair = Pair(one, other, f"pool-{secrets.token_hex(6)}")
        await pair.set_up()
        yield pair
