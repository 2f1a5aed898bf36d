"""What tests wait for in a pool that runs on this machine."""

from tests.harness.waiting import until
from understudy.deploy.common.layout import Layout
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.etcd.client import EtcdClient


async def settled(pool: Layout, etcd: EtcdClient) -> None:
    """Wait until every slot is owned as the table wants it, in fair shares."""
    names = [place.name for place in pool.members]

    async def at_rest() -> bool:
        state, _ = await read_pool(etcd, pool.pool)
        return not not_converged(state, names)

    await until(at_rest, 90, "every slot is served, in fair shares")
