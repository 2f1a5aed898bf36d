"""Which pools a control server begins to serve, by the quotas in a real etcd."""

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.tenants.keys import TenantKeys
from understudy.statesync.tenants.tenant import Tenant, encode_tenant
from understudy.xds.control.tenant_quota import quota_fault


async def test_the_older_pools_of_a_tenant_count_first_and_a_pool_that_was_served_is_never_refused(
    client: EtcdClient, pool_name: str
) -> None:
    tenant = Tenant(pool_name, slots=24, own=(f"{pool_name}.*",))
    await client.put(TenantKeys(pool_name).record, encode_tenant(tenant))
    first, second, third = (f"{pool_name}.{name}" for name in ("z", "y", "x"))
    for pool, slots in ((first, 16), (second, 16), (third, 8)):
        await client.put(PoolKeys(pool).spec, PoolSpec(pool=pool, tenant=pool_name, slots=slots).encode())

    assert await quota_fault(client, first) == ""
    assert "slots: 16 is too much" in await quota_fault(client, second)
    await client.put(PoolKeys(second).table, Table(1).encode())
    assert await quota_fault(client, second) == ""

    await client.put(PoolKeys(third).spec, PoolSpec(pool=third, slots=8).encode())
    assert f"belong to tenant {pool_name}" in await quota_fault(client, third)
    assert await quota_fault(client, f"{pool_name}.none") == ""
    await client.delete(TenantKeys(pool_name).record)
    assert await quota_fault(client, third) == ""
