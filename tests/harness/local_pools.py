"""What tests of pools on this machine share."""

import contextlib
from collections.abc import AsyncIterator

from tests.harness.waiting import until
from understudy.deploy.common.layout import Layout
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient


async def settled(pool: Layout, etcd: EtcdClient) -> None:
    """Wait until every slot is owned as the table wants it, in fair shares."""
    names = [place.name for place in pool.members]

    async def at_rest() -> bool:
        state, _ = await read_pool(etcd, pool.pool)
        return not not_converged(state, names)

    await until(at_rest, 120, "every slot is served, in fair shares")


@contextlib.asynccontextmanager
async def killed_at_the_end(pool: LocalPool) -> AsyncIterator[None]:
    """The pool ends at once: its members need not hand over to each other until none is left."""
    try:
        yield
    finally:
        pool.processes.kill(*(process.name for process in pool.running()))
