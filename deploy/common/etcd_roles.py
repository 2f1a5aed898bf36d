"""etcd's roles for a tenant's people: which keys each right may read and write. Pure.

Commands write to etcd directly, so etcd itself has to refuse what a right does not include. A reader sees the records
of pools and no session. An operator also writes intents (drain, site) and words about lost slots. An admin has all
keys of the tenant's pools, and applies specs. None of them writes the tenant's own record.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import PoolKeys, groups_of
from understudy.statesync.tenants.keys import TenantKeys, range_of
from understudy.statesync.tenants.tenant import Tenant
from understudy.xds.control.rights import Right


class Permission(NamedTuple):
    """A permission of a role: ``read`` or ``readwrite``, for one key or a range of keys."""

    kind: str
    keys: str | KeyRange


def permissions(tenant: Tenant, right: Right, pools: Iterable[str]) -> list[Permission]:
    """What a right includes. ``pools`` are the tenant's pools that exist; an admin also has those to come."""
    keys = TenantKeys(tenant.tenant)
    found = [Permission("read", prefix_range(keys.prefix))]
    if right >= Right.ADMIN:
        found.append(Permission("readwrite", keys.applied))
        found.append(Permission("readwrite", prefix_range(groups_of(tenant.tenant))))
        return [*found, *(Permission("readwrite", range_of(one)) for one in tenant.own)]
    found.append(Permission("read", prefix_range(groups_of(tenant.tenant))))
    for pool in map(PoolKeys, sorted(pools)):
        found += [
            Permission("read", KeyRange(pool.prefix, pool.requests)),
            Permission("read", KeyRange(prefix_range(pool.sessions).end, pool.everything.end)),
        ]
        if right >= Right.OPERATOR:
            found += [Permission("readwrite", prefix_range(one)) for one in (pool.admin, pool.audit, pool.revivals)]
    return found


def role_of(tenant: str, right: Right) -> str:
    """The name of a role."""
    return f"understudy-{tenant}-{right.name.lower()}"


def commands(role: str, wanted: Sequence[Permission], users: Sequence[str]) -> list[str]:
    """The lines for ``etcdctl`` that make a role with these permissions, and give it to users."""
    lines = [f"etcdctl role add {role}"]
    for kind, keys in wanted:
        where = keys if isinstance(keys, str) else f"{keys.start} {keys.end}"
        lines.append(f"etcdctl role grant-permission {role} {kind} {where}")
    return [*lines, *(f"etcdctl user grant-role {user} {role}" for user in users)]
