"""Reads tenants from etcd, and the pools that they have."""

import logging
from collections.abc import Mapping

from understudy.statesync.etcd.client import EtcdClient, Rejected
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import ROOT, PoolKeys
from understudy.statesync.pool.pools import names_within
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_reader import decode_known_spec
from understudy.statesync.tenants.keys import TENANTS, TenantKeys, range_of
from understudy.statesync.tenants.tenant import Tenant, decode_tenant

logger = logging.getLogger(__name__)


class TenantUnknown(Exception):
    """A tenant's record cannot be read, or this user may not read what a check needs. The text says what to do."""


async def read_tenant(client: EtcdClient, tenant: str) -> Tenant | None:
    """A tenant's record; None if there is none. Raises :class:`TenantUnknown`, ``EtcdError``."""
    keys = TenantKeys(tenant)
    try:
        found = await client.get(keys.record)
    except Rejected as error:
        raise TenantUnknown(
            f"this etcd user may not read the quota of tenant {tenant} ({error.detail}): grant its role read on the "
            f"prefix {keys.prefix} ('understudy access etcd' prints how)"
        ) from None
    if found is None:
        return None
    try:
        return decode_tenant(found.value)
    except ValueError as error:
        raise TenantUnknown(
            f"the record of tenant {tenant}, at {keys.record} in etcd, cannot be read: {error}; write it again with "
            "'understudy tenants set'"
        ) from None


async def read_tenants(client: EtcdClient) -> dict[str, Tenant]:
    """All tenants by name; records that cannot be read are left out and logged. Raises ``EtcdError``."""
    tenants: dict[str, Tenant] = {}
    async for page in client.pages(prefix_range(TENANTS)):
        for kv in page.kvs:
            name, _, rest = kv.key.removeprefix(TENANTS).partition("/")
            if rest != "record":
                continue
            try:
                tenants[name] = decode_tenant(kv.value)
            except ValueError as error:
                logger.warning("the record of tenant %s cannot be read: %s", name, error)
    return tenants


async def specs_of(client: EtcdClient, tenant: Tenant) -> Mapping[str, tuple[PoolSpec, int]]:
    """The specs of a tenant's pools, each with the revision at which it was created.

    Raises :class:`TenantUnknown` if this user may not list the pools, ``EtcdError``.
    """
    ranges = [range_of(one) for one in tenant.own] or [prefix_range(ROOT)]
    try:
        names = [name for one in ranges for name in await names_within(client, one)]
    except Rejected as error:
        remedy = "let an admin apply the spec" if tenant.own else "name its pools with 'understudy tenants set --own'"
        raise TenantUnknown(
            f"this etcd user may not list the pools of tenant {tenant.tenant} ({error.detail}): {remedy}"
        ) from None
    specs: dict[str, tuple[PoolSpec, int]] = {}
    for name in names:
        found = await client.get(PoolKeys(name).spec)
        try:
            spec = decode_known_spec(found.value)[0] if found is not None else None
        except SpecError:
            continue  # nothing is served by it, and it is refused where it is applied
        if found is not None and spec is not None and (spec.tenant == tenant.tenant or tenant.owns(name)):
            specs[name] = (spec, found.create_revision)
    return specs
