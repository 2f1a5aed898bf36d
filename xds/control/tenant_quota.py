"""Whether a control server for several pools may begin to serve a pool: its tenant's quota has room for it.

``understudy apply`` refuses a spec that does not fit. This is for specs that came into etcd in another way. Of a
tenant's pools the older ones count first. A pool that has a slot table has been served before, and is never refused:
no quota may take a running pool out of service.
"""

import logging

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_reader import decode_known_spec
from understudy.statesync.tenants.read import TenantUnknown, read_tenants, specs_of
from understudy.statesync.tenants.tenant import faults, tenant_of

logger = logging.getLogger(__name__)


async def quota_fault(client: EtcdClient, pool: str) -> str:
    """Why a pool is beyond its tenant's quota; '' if it is not, or if that cannot be known."""
    try:
        return await _fault(client, pool)
    except (EtcdError, TenantUnknown) as error:
        logger.warning("cannot check pool %s against the quota of its tenant: %s", pool, error)
        return ""


async def _fault(client: EtcdClient, pool: str) -> str:
    keys = PoolKeys(pool)
    found = await client.get(keys.spec)
    if found is None or await client.get(keys.table) is not None:
        return ""
    try:
        spec = decode_known_spec(found.value)[0]
    except SpecError:
        return ""  # the pool says so itself
    tenants = await read_tenants(client)
    name, fault = tenant_of(pool, spec.tenant, tenants)
    if fault or name not in tenants:
        return fault
    specs = await specs_of(client, tenants[name])
    older = [one for other, (one, created) in specs.items() if other != pool and created < found.create_revision]
    return "; ".join(faults(tenants[name], spec, older, None))
