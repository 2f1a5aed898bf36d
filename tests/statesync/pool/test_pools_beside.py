"""Pools are found beside those that are known, in few transactions."""

import pytest

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool import pools
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import pools_with_spec_beside

NAMES = ("a", "a-b", "a.b", "ab", "b", "zz")
"""In etcd ``a-b/`` and ``a.b/`` come before ``a/``."""


@pytest.mark.parametrize("known", [set(), {"a"}, {"a", "zz"}, set(NAMES), {*NAMES, "gone"}])
async def test_the_pools_with_a_spec_are_found_whatever_is_known(etcd_server, known: set[str]) -> None:
    async with etcd_server.client() as client:
        for name in NAMES:
            await client.put(PoolKeys(name).spec, b"{}")
            await client.put(PoolKeys(name).member("m"), b"{}")
        await client.put(PoolKeys("half").member("m"), b"{}")
        assert await pools_with_spec_beside(client, known) == set(NAMES)


async def test_a_look_at_many_known_pools_costs_few_transactions(etcd_server, monkeypatch) -> None:
    names = {f"pool-{number:03}" for number in range(120)}
    async with etcd_server.client() as client:
        for name in names:
            await client.put(PoolKeys(name).spec, b"{}")
        asked = []
        txn = EtcdClient.txn
        monkeypatch.setattr(EtcdClient, "txn", lambda self, *rest: asked.append(1) or txn(self, *rest))
        assert await pools_with_spec_beside(client, names) == names
        assert len(asked) == 4
        monkeypatch.setattr(pools, "_READS", 7)
        assert await pools_with_spec_beside(client, names - {"pool-007", "pool-064"}) == names
