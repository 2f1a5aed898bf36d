"""A tenant: what its pools may have together, and which pools are its own. Pure.

A tenant's quota is handed out to its pools when their specs are applied, as in a ResourceQuota of Kubernetes. Each pool
is limited by its own spec, and the specs of a tenant's pools together stay within its quota. So no process has to know
what all pools of a tenant use at a moment, and a pool that uses all of its part takes nothing from another.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from understudy.statesync.audit.entry import read_struct
from understudy.statesync.parsing.stored import compact_json
from understudy.statesync.pool.spec import PoolSpec

QUOTAS = ("pools", "slots", "sessions", "bytes", "writes", "requests")
"""What a quota may be of."""
KEYS_OF_SPEC = {
    "slots": "slots",
    "sessions": "limits.sessions",
    "bytes": "limits.total_bytes",
    "writes": "limits.writes_per_second",
    "requests": "limits.requests_per_second",
}
"""The key of a pool's spec that says the pool's part of a quota."""
QUOTA_MOST = 10**15
OWN_MOST = 200
_OWN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?|[a-z0-9][a-z0-9.-]{0,61}\*")


class Tenant(msgspec.Struct, frozen=True):
    """A tenant's quotas, each None for none, and its pools.

    ``own`` are names of pools, or beginnings of names (``acme-*``). If there are any, the tenant's pools have these
    names, and pools with these names are the tenant's. ``requests`` are those at each front Envoy.
    """

    tenant: str
    pools: int | None = None
    slots: int | None = None
    sessions: int | None = None
    bytes: int | None = None
    writes: int | None = None
    requests: int | None = None
    own: tuple[str, ...] = ()

    @property
    def quotas(self) -> dict[str, int]:
        """The quotas that are set, by what they are of."""
        return {what: limit for what in QUOTAS if (limit := getattr(self, what)) is not None}

    def owns(self, pool: str) -> bool:
        """Whether ``own`` has the name of a pool."""
        return any(pool == one or (one.endswith("*") and pool.startswith(one[:-1])) for one in self.own)


def encode_tenant(tenant: Tenant) -> bytes:
    """A record as compact JSON."""
    return compact_json(tenant)


def decode_tenant(value: bytes) -> Tenant:
    """Read a record. Raises ``ValueError`` on anything that is none."""
    found = read_struct(Tenant, value)
    if fault := fault_of(found):
        raise ValueError(fault)
    return found


def fault_of(tenant: Tenant) -> str:
    """What is wrong with a record; '' if nothing is."""
    for what, limit in tenant.quotas.items():
        if not 0 <= limit <= QUOTA_MOST:
            return f"{what}: 0 to {QUOTA_MOST}"
    if len(tenant.own) > OWN_MOST:
        return f"own: {OWN_MOST} names at the most"
    wrong = next((one for one in tenant.own if not _OWN.fullmatch(one)), None)
    return "" if wrong is None else f"own: {wrong!r} is not the name of a pool, nor the beginning of one (acme-*)"


def overlap(one: Tenant, other: Tenant) -> str:
    """A name that two tenants claim, '' if there is none."""
    for mine in one.own:
        for theirs in other.own:
            a, b = mine.removesuffix("*"), theirs.removesuffix("*")
            mine_open, theirs_open = mine.endswith("*"), theirs.endswith("*")
            if (mine_open and b.startswith(a)) or (theirs_open and a.startswith(b)) or mine == theirs:
                return theirs
    return ""


def parts_of(spec: PoolSpec) -> dict[str, int | None]:
    """A pool's part of each quota by its spec; None where the spec does not limit it."""
    limits = spec.limits
    return {
        "pools": 1,
        "slots": spec.slots,
        "sessions": limits.sessions,
        "bytes": limits.total_bytes,
        "writes": limits.writes_per_second,
        "requests": limits.requests_per_second,
    }


def used(specs: Iterable[PoolSpec]) -> dict[str, int]:
    """What pools have together of each quota; a part that a spec does not limit counts as 0."""
    sums = dict.fromkeys(QUOTAS, 0)
    for spec in specs:
        for what, part in parts_of(spec).items():
            sums[what] += part or 0
    return sums


def faults(tenant: Tenant, spec: PoolSpec, others: Sequence[PoolSpec], running: PoolSpec | None) -> list[str]:
    """Why a pool with ``spec`` does not fit into its tenant's quota beside its ``others``; one line for each reason.

    ``running`` is the pool's present spec. What it has already of a quota it keeps, even if the quota was lowered.
    """
    name, found = tenant.tenant, []
    if tenant.own and not tenant.owns(spec.pool):
        found.append(f"pool: tenant {name} has the pools {', '.join(tenant.own)}, and {spec.pool!r} is none of them")
    had = parts_of(running) if running is not None and running.tenant == name else dict.fromkeys(QUOTAS)
    parts, taken = parts_of(spec), used(others)
    for what, limit in tenant.quotas.items():
        part, before, left = parts[what], had[what], max(limit - taken[what], 0)
        if part is not None and (part <= left or (before is not None and part <= before)):
            continue
        if what == "pools":
            names = ", ".join(sorted(one.pool for one in others))
            found.append(f"tenant: {name} may have {limit} pools, and has {names or 'none'}")
            continue
        state = f"tenant {name} may have {limit} {what}, its other pools have {taken[what]}, so {left} are left"
        wrong = "not set, and has to say the pool's part" if part is None else f"{part} is too much"
        found.append(f"{KEYS_OF_SPEC[what]}: {wrong}: {state}")
    return found


def tenant_of(pool: str, said: str | None, tenants: Mapping[str, Tenant]) -> tuple[str, str]:
    """The tenant of a pool whose spec says ``said``, and what is wrong with that ('' if nothing is).

    A name that a tenant owns decides: a spec cannot give such a pool to another tenant, or to none.
    """
    owner = next((one.tenant for one in tenants.values() if one.owns(pool)), "")
    if owner and said != owner:
        return owner, f"tenant: pools named {pool!r} belong to tenant {owner}; the spec says {said or 'no tenant'}"
    return said or "", ""
