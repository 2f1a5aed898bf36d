"""Puts a pool spec into etcd, or refuses it: a contradiction with the running pool changes nothing."""

from typing import Literal

from statesync.etcd import Compare, CreateRevision, EtcdClient, Kv, ModRevision, Put
from statesync.keys import PoolKeys
from statesync.pool import Table
from statesync.spec import PoolSpec, refuse_contradiction
from statesync.stored import read_object

Applied = Literal["created", "changed", "unchanged"]
_ATTEMPTS = 5


async def apply_spec(client: EtcdClient, spec: PoolSpec) -> Applied:
    """Make ``spec`` the pool's spec.

    Raises:
        SpecError: it contradicts the running pool, or what stands in etcd is a spec that this version cannot read.
        Unavailable: etcd did not take it. OutcomeUnknown: it may have; applying it again is safe.
        Conflict: others kept writing the spec at the same time.
    """
    key = PoolKeys(spec.pool).spec
    value = spec.encode()
    for attempt in range(_ATTEMPTS):
        found = await client.get(key)
        compare: Compare = CreateRevision(key, 0)
        if found is not None:
            if _is_garbage(found, spec.pool):
                await _refuse_other_slots(client, spec)
            else:
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


def _is_garbage(found: Kv, pool: str) -> bool:
    """Whether what stands in the place of the spec was never one of this pool, in whatever version."""
    try:
        return read_object(found.value).get("pool") != pool
    except ValueError:
        return True


async def _refuse_other_slots(client: EtcdClient, spec: PoolSpec) -> None:
    """The slot table tells how many slots the pool has while its spec does not. Raises :class:`SpecError`."""
    found = await client.get(PoolKeys(spec.pool).table)
    try:
        slots = Table.decode(found.value).slots if found is not None else spec.slots
    except ValueError:
        return  # there is nothing to compare with
    refuse_contradiction(spec.model_copy(update={"slots": slots}), spec)
