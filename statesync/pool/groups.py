"""Reads what the pools of a group say to each other."""

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import GroupKeys
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec


async def read_group(client: EtcdClient, spec: PoolSpec) -> dict[str, PoolInGroup]:
    """What the other pools of a pool's group say, by their names; empty without a group.

    A record that cannot be read is left out. Raises ``EtcdError``.
    """
    if not spec.group:
        return {}
    keys = GroupKeys(spec.full_group)
    found = {}
    async for page in client.pages(prefix_range(keys.prefix)):
        for kv in page.kvs:
            pool = kv.key.removeprefix(keys.prefix)
            try:
                found[pool] = PoolInGroup.decode(kv.value)
            except ValueError:
                continue
    found.pop(spec.pool, None)
    return found
