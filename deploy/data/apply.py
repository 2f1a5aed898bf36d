"""Writes a pool spec to etcd, unless it contradicts the running pool. Also compares it field by field.

A refused spec changes nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from understudy.deploy.common.errors import DeployError
from understudy.deploy.data.tenants import require_quota
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import Compare, CreateRevision, EtcdClient, Kv, ModRevision, Put, Rejected
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.home import Home, Role
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import fronts_beside
from understudy.statesync.pool.records import Table
from understudy.statesync.pool.spec import PoolSpec, SpecError, refuse_contradiction
from understudy.statesync.pool.spec_front import first_conflict
from understudy.statesync.pool.spec_reader import decode_spec

Applied = Literal["created", "changed", "unchanged"]
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Change:
    """A field of a spec, such as ``limits.sessions``, before and after; None where it has no value."""

    field: str
    before: Any
    after: Any


async def apply_spec(client: EtcdClient, spec: PoolSpec, actor: Actor, reason: str = "") -> Applied:
    """Make ``spec`` the pool's spec; ``actor`` does so, and the audit log gets a record of it.

    Raises:
        SpecError: it contradicts the running pool or the front of another pool, does not fit into its tenant's quota,
            or this version cannot read the spec in etcd.
        DeployError: this user of etcd may not read what the check of the quota needs, or the pool is at home elsewhere.
        Unavailable: etcd did not answer. OutcomeUnknown: it may be written; applying it again is safe.
        CompareFailed: other commands wrote the spec at the same time.
    """
    await _refuse_front_conflict(client, spec)
    keys = PoolKeys(spec.pool)
    key, value, log = keys.spec, spec.encode(), OperatorLog(client, keys, actor, reason)
    for attempt in range(_ATTEMPTS):
        found = await client.get(key)
        running = await _running_spec(client, found, spec)
        if running == spec:
            return "unchanged"
        await _refuse_at_mirror(client, keys)
        compares, marks = await require_quota(client, spec, running)
        compare: Compare = ModRevision(key, found.mod_revision) if found else CreateRevision(key, 0)
        before = found.mod_revision if found else 0
        result = await log.txn(
            _act(spec, running, key, before), [compare, *compares], [Put(key, value), *marks], before
        )
        if attempt == _ATTEMPTS - 1:
            result.or_conflict("apply")
        if result.succeeded:
            break
    return "created" if found is None else "changed"


async def _refuse_at_mirror(client: EtcdClient, keys: PoolKeys) -> None:
    """Raise :class:`DeployError` if the mirror on this side copies the spec of its home."""
    found = await client.get(keys.home)
    if found is None:
        return
    try:
        home = Home.decode(found.value)
    except ValueError as error:
        raise DeployError(f"the record at {keys.home} in etcd cannot be read: {error}") from None
    refuse_unless_home(keys.pool, home)


def refuse_unless_home(pool: str, home: Home | None) -> None:
    """Raise :class:`DeployError` unless the pool may be changed in this etcd; ``home``: its home record, if any."""
    if home is not None and home.role is not Role.HOME:
        raise DeployError(
            f"pool {pool!r} is not at home on site {home.site}, which is {home.role}: give the command on the other "
            f"site, {home.peer} ('understudy home status')"
        )


def _act(spec: PoolSpec, running: PoolSpec | None, key: str, before: int) -> Act:
    """The act of applying ``spec`` over the ``running`` one, which was written at revision ``before``; 0: never."""
    if running is None:
        detail = "in place of a record that is no spec" if before else "new pool"
        return Act("apply", detail, undo="" if before else f"understudy pools delete {spec.pool}")
    detail = "; ".join(
        f"{one.field}: {json.dumps(one.before)} -> {json.dumps(one.after)}" for one in changes(running, spec)
    )
    former = f"etcdctl get {key} --rev={before} --print-value-only"
    return Act("apply", detail, undo=f"{former} | understudy apply -f /dev/stdin")


async def compare_spec(client: EtcdClient, spec: PoolSpec) -> tuple[Applied, list[Change]]:
    """What :func:`apply_spec` would do, and the fields that would change. Raises the same errors; changes nothing.

    A new pool is compared with a spec that has only defaults.
    """
    await _refuse_front_conflict(client, spec)
    found = await client.get(PoolKeys(spec.pool).spec)
    running = await _running_spec(client, found, spec)
    if running != spec:
        await require_quota(client, spec, running)
    if running is None and found is not None:
        return "changed", changes(PoolSpec(pool=spec.pool, protocol=spec.protocol), spec)
    if running is None:
        bare = PoolSpec(pool=spec.pool)
        if spec.tcp is None:
            return "created", changes(bare, spec)
        protocol = Change("protocol", bare.protocol, spec.protocol)  # other defaults depend on it
        return "created", [protocol, *changes(PoolSpec(pool=spec.pool, protocol=spec.protocol), spec)]
    return ("unchanged" if running == spec else "changed"), changes(running, spec)


async def _refuse_front_conflict(client: EtcdClient, spec: PoolSpec) -> None:
    """Raise ``SpecError`` if another pool has the place of ``spec`` at the front Envoys.

    A user who may read only its own pool is not refused; the control servers then are the ones to refuse the later of
    the two specs, as they do with specs that are applied at the same time.
    """
    if spec.front_use is None:
        return
    try:
        others = await fronts_beside(client, spec.pool)
    except Rejected:
        return
    if why := first_conflict(spec.front_use, others):
        raise SpecError(f"{why}; choose another port, host or path, or change the other pool first")


async def _running_spec(client: EtcdClient, found: Kv | None, spec: PoolSpec) -> PoolSpec | None:
    """The running spec, checked against ``spec``; None if there is none, or garbage. Raises ``SpecError``."""
    if found is None:
        return None
    if _is_garbage(found, spec.pool):
        await _refuse_other_slots(client, spec)
        return None
    running = decode_spec(found.value)
    refuse_contradiction(running, spec)
    return running


def changes(before: PoolSpec, after: PoolSpec) -> list[Change]:
    """The fields in which two specs differ, in the order of the spec, then removed ones. A list is one field."""
    old, new = (dict(_fields(spec.model_dump(mode="json", exclude_none=True), "")) for spec in (before, after))
    pairs = ((field, old.get(field), new.get(field)) for field in {**new, **old})
    return [Change(field, was, wanted) for field, was, wanted in pairs if was != wanted]


def _fields(group: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{path}{key}.")
        elif value != {} or path:  # a member without settings is still a field
            yield f"{path}{key}", value


def _is_garbage(found: Kv, pool: str) -> bool:
    """Whether the record in place of the spec is not a spec of this pool, of any version."""
    try:
        return read_object(found.value).get("pool") != pool
    except ValueError:
        return True


async def _refuse_other_slots(client: EtcdClient, spec: PoolSpec) -> None:
    """Compare the number of slots with the slot table, when the spec is garbage. Raises :class:`SpecError`."""
    found = await client.get(PoolKeys(spec.pool).table)
    try:
        slots = Table.decode(found.value).slots if found is not None else spec.slots
    except ValueError:
        return  # nothing to compare with
    refuse_contradiction(spec.model_copy(update={"slots": slots}), spec)
