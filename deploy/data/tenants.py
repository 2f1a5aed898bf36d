"""Writes tenants, lists them with what they use, and checks a spec against its tenant's quota."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import Compare, Delete, EtcdClient, ModRevision, Operation, Put, Rejected
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.tenants.keys import TenantKeys
from understudy.statesync.tenants.read import TenantUnknown, read_tenant, read_tenants, specs_of
from understudy.statesync.tenants.tenant import (
    QUOTAS,
    Tenant,
    encode_tenant,
    fault_of,
    faults,
    overlap,
    tenant_of,
    used,
)

Mark = tuple[tuple[Compare, ...], tuple[Operation, ...]]
"""What the transaction of an apply compares and writes beside the spec."""
NO_MARK: Mark = ((), ())


async def require_quota(client: EtcdClient, spec: PoolSpec, running: PoolSpec | None) -> Mark:
    """The mark of an apply that fits into its tenant's quota; it fails if another pool of it is applied meanwhile.

    Raises:
        SpecError: the pool does not fit, or its name belongs to another tenant.
        DeployError: this user may not read what the check needs.
    """
    try:
        return await _mark_of(client, spec, running)
    except TenantUnknown as error:
        raise DeployError(str(error)) from None


async def _mark_of(client: EtcdClient, spec: PoolSpec, running: PoolSpec | None) -> Mark:
    try:
        tenants = await read_tenants(client)
    except Rejected:  # this user sees at most its own tenant
        found = await read_tenant(client, spec.tenant) if spec.tenant else None
        tenants = {found.tenant: found} if found else {}
    name, fault = tenant_of(spec.pool, spec.tenant, tenants)
    if fault:
        raise SpecError(fault)
    tenant = tenants.get(name)
    if tenant is None:
        return NO_MARK
    key = TenantKeys(name).applied
    before = await client.get(key)
    others = [other for pool, (other, _) in (await specs_of(client, tenant)).items() if pool != spec.pool]
    if wrong := faults(tenant, spec, others, running):
        raise SpecError("\n".join(wrong))
    return (ModRevision(key, before.mod_revision if before else 0),), (Put(key, spec.pool.encode()),)


async def set_tenant(client: EtcdClient, tenant: Tenant, actor: Actor, reason: str, *, force: bool) -> str:
    """Write a tenant's record: ``created``, ``changed`` or ``unchanged``.

    Raises :class:`DeployError` if the record is wrong, if another tenant has one of its names, or if its pools have
    more than its quotas, unless ``force``.
    """
    if fault := fault_of(tenant):
        raise DeployError(fault)
    keys = TenantKeys(tenant.tenant)
    tenants = await read_tenants(client)
    for other in tenants.values():
        if other.tenant != tenant.tenant and (name := overlap(tenant, other)):
            raise DeployError(f"--own: tenant {other.tenant} has {name} already")
    over = exceeded(tenant, [spec for spec, _ in (await _specs(client, tenant)).values()])
    if over and not force:
        raise DeployError(f"{'; '.join(over)}: lower what its pools have first, or give --force")
    found = await client.get(keys.record)
    value = encode_tenant(tenant)
    if found is not None and found.value == value:
        return "unchanged"
    before = tenants.get(tenant.tenant)
    undo = set_command(before) or f"understudy tenants delete {tenant.tenant}"
    act = Act("tenants set", _changes(before, tenant), undo=undo)
    revision = found.mod_revision if found else 0
    steps = [Put(keys.record, value), Put(keys.applied, b"")]  # an apply that is under way is checked again
    log = OperatorLog(client, keys, actor, reason)
    result = await log.txn(act, [ModRevision(keys.record, revision)], steps, revision)
    result.or_conflict("tenants set")
    return "created" if found is None else "changed"


async def delete_tenant(client: EtcdClient, tenant: str, actor: Actor, reason: str) -> None:
    """Delete a tenant's record; its pools stay, and have no quota together. Its audit log stays as well.

    Raises :class:`NegativeAnswer` if there is none.
    """
    keys = TenantKeys(tenant)
    found = await client.get(keys.record)
    if found is None:
        raise NegativeAnswer(f"there is no tenant {tenant!r}: 'understudy tenants' lists them")
    before = (await read_tenants(client)).get(tenant)
    act = Act("tenants delete", undo=set_command(before))
    log = OperatorLog(client, keys, actor, reason)
    revision = found.mod_revision
    steps = [Delete(keys.record), Delete(keys.applied)]
    result = await log.txn(act, [ModRevision(keys.record, revision)], steps, revision)
    result.or_conflict("tenants delete")


def exceeded(tenant: Tenant, specs: Sequence[PoolSpec]) -> list[str]:
    """The quotas of which a tenant's pools have more, each as a text."""
    sums = used(specs)
    return [
        f"tenant {tenant.tenant} has {sums[what]} {what}, and may have {limit}"
        for what, limit in tenant.quotas.items()
        if sums[what] > limit
    ]


async def tenants_view(client: EtcdClient) -> dict[str, Any]:
    """The output of ``tenants``: every tenant with its quotas, and what its pools have of them by their specs."""
    rows = []
    for tenant in sorted((await read_tenants(client)).values(), key=lambda one: one.tenant):
        specs = [spec for spec, _ in (await _specs(client, tenant)).values()]
        rows.append(
            {
                "tenant": tenant.tenant,
                "own": list(tenant.own),
                "pools": sorted(spec.pool for spec in specs),
                "quotas": {what: getattr(tenant, what) for what in QUOTAS},
                "used": used(specs),
                "exceeded": exceeded(tenant, specs),
            }
        )
    return {"tenants": rows}


async def _specs(client: EtcdClient, tenant: Tenant) -> Mapping[str, tuple[PoolSpec, int]]:
    try:
        return await specs_of(client, tenant)
    except TenantUnknown as error:
        raise DeployError(str(error)) from None


def set_command(tenant: Tenant | None) -> str:
    """The command that writes this record; '' for none."""
    if tenant is None:
        return ""
    options = [f" --{what} {limit}" for what, limit in tenant.quotas.items()]
    options += [f" --own '{name}'" for name in tenant.own]
    return f"understudy tenants set {tenant.tenant}{''.join(options)}"


def _changes(before: Tenant | None, after: Tenant) -> str:
    """The fields that change, as text for the audit log."""
    old: dict[str, Any] = asdict(before) if before else {}
    return "; ".join(
        f"{name}: {_said(old.get(name))} -> {_said(value)}"
        for name, value in asdict(after).items()
        if name != "tenant" and old.get(name) != value and not (before is None and value in (None, ()))
    )


def _said(value: object) -> str:
    if value is None or value == ():
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
