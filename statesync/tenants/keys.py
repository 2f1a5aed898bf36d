"""The etcd keys of tenants, ``/understudy/v1-tenants/<tenant>/``.

They are apart from the keys of pools, so that a role for pools includes none of them. A tenant's own role reads its
keys, and writes none of them but the mark of the last apply (docs/security.md).
"""

from functools import cached_property

from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import ROOT, AuditKeys, PoolKeys

TENANTS = "/understudy/v1-tenants/"


class TenantKeys(AuditKeys):
    """Key names of one tenant."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    @property
    def subject(self) -> str:
        """The tenant, in words that cannot be a pool's name."""
        return f"tenant {self.tenant}"

    @cached_property
    def prefix(self) -> str:
        """Everything of the tenant starts with this."""
        return f"{TENANTS}{self.tenant}/"

    @cached_property
    def record(self) -> str:
        """The tenant's quotas, and the names of its pools; written by an admin."""
        return f"{self.prefix}record"

    @cached_property
    def applied(self) -> str:
        """A mark that every apply of a spec with this tenant writes: of two at once, one is done again."""
        return f"{self.prefix}applied"


def range_of(own: str) -> KeyRange:
    """The keys of the pools that an entry of :attr:`Tenant.own` stands for: ``acme-*``, or the name of one pool."""
    return prefix_range(ROOT + own.removesuffix("*")) if own.endswith("*") else PoolKeys(own).everything
