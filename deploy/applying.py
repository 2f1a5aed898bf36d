"""Puts a pool spec into etcd, or refuses it: a contradiction with the running pool changes nothing."""

from typing import Literal

from statesync.etcd import Compare, CreateRevision, EtcdClient, ModRevision, Put
from statesync.keys import PoolKeys
from statesync.spec import PoolSpec, refuse_contradiction

Applied = Literal["created", "changed", "unchanged"]
_ATTEMPTS = 5


async def apply_spec(client: EtcdClient, spec: PoolSpec) -> Applied:
    """Make ``spec`` the pool's spec.

    Raises:
        SpecError: it contradicts the running pool, or what stands in etcd cannot be read by this version.
        Unavailable: etcd did not take it. OutcomeUnknown: it may have; applying it again is safe.
        Conflict: others kept writing the spec at the same time.
    """
    key = PoolKeys(spec.pool).spec
    value = spec.encode()
    for attempt in range(_ATTEMPTS):
        found = await client.get(key)
        compare: Compare = CreateRevision(key, 0)
        if found is not None:
            running = PoolSpec.decode(found.value)
            if running == spec:
                return "unchanged"
            refuse_contradiction(running, spec)
            compare = ModRevision(key, found.mod_revision)
        result = await client.txn([compare], [Put(key, value)])
        if attempt == _ATTEMPTS - 1:
            result.or_conflict("apply")
        if result.succeeded:
            break
    return "created" if found is None else "changed"
