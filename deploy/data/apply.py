"""Puts a pool spec into etcd, or refuses it: a contradiction with the running pool changes nothing.

What would change can be told beforehand, field by field.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from understudy.statesync.etcd.client import Compare, CreateRevision, EtcdClient, Kv, ModRevision, Put
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Table
from understudy.statesync.pool.spec import PoolSpec, refuse_contradiction
from understudy.statesync.pool.spec_reader import decode_spec

Applied = Literal["created", "changed", "unchanged"]
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Change:
    """A field of a spec, such as ``limits.sessions``, before and after; None where it has no value."""

    field: str
    before: Any
    after: Any


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
        if await _followed(client, found, spec) == spec:
            return "unchanged"
        compare: Compare = ModRevision(key, found.mod_revision) if found else CreateRevision(key, 0)
        result = await client.txn([compare], [Put(key, value)])
        if attempt == _ATTEMPTS - 1:
            result.or_conflict("apply")
        if result.succeeded:
            break
    return "created" if found is None else "changed"


async def compare_spec(client: EtcdClient, spec: PoolSpec) -> tuple[Applied, list[Change]]:
    """What :func:`apply_spec` would do, and to which fields; etcd stays as it is. Raises as it does.

    A pool that is to be made is compared with one that has nothing but defaults.
    """
    found = await client.get(PoolKeys(spec.pool).spec)
    running = await _followed(client, found, spec)
    if running is None and found is not None:
        return "changed", changes(PoolSpec(pool=spec.pool, protocol=spec.protocol), spec)
    if running is None:
        bare = PoolSpec(pool=spec.pool)
        if spec.tcp is None:
            return "created", changes(bare, spec)
        protocol = Change("protocol", bare.protocol, spec.protocol)  # it changes what the other defaults are
        return "created", [protocol, *changes(PoolSpec(pool=spec.pool, protocol=spec.protocol), spec)]
    return ("unchanged" if running == spec else "changed"), changes(running, spec)


async def _followed(client: EtcdClient, found: Kv | None, spec: PoolSpec) -> PoolSpec | None:
    """The running spec, which ``spec`` may follow; None if there is none yet, or garbage. Raises ``SpecError``."""
    if found is None:
        return None
    if _is_garbage(found, spec.pool):
        await _refuse_other_slots(client, spec)
        return None
    running = decode_spec(found.value)
    refuse_contradiction(running, spec)
    return running


def changes(before: PoolSpec, after: PoolSpec) -> list[Change]:
    """The fields in which two specs differ, in the order of the spec, and then what is gone. Lists count as one."""
    old, new = (dict(_fields(spec.model_dump(mode="json", exclude_none=True), "")) for spec in (before, after))
    pairs = ((field, old.get(field), new.get(field)) for field in {**new, **old})
    return [Change(field, was, wanted) for field, was, wanted in pairs if was != wanted]


def _fields(group: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{path}{key}.")
        elif value != {} or path:  # a member without a word on it is still named
            yield f"{path}{key}", value


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
