"""What tests wait for in a pool that runs on this machine."""

from deploy.layout import Layout
from deploy.reading import read_pool
from deploy.settling import unsettled
from statesync.etcd import EtcdClient
from tests.harness.waiting import until


async def settled(pool: Layout, etcd: EtcdClient) -> None:
    """Wait until every slot is owned as the table wants it, in fair shares."""
    names = [place.name for place in pool.members]

    async def at_rest() -> bool:
        state, _ = await read_pool(etcd, pool.pool)
        return not unsettled(state, names)

    await until(at_rest, 60, "every slot is served, in fair shares")
