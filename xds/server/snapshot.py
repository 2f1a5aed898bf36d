"""Immutable snapshots of encoded resources, shared by all streams that see the same content.

A :class:`TypeSnapshot` holds the resources of one type, a :class:`Snapshot` those of all types that one node group
sees. Versions are hashes of content, so any process computes the same ones. Many streams need the same values of a
snapshot: its difference from the one before, the version of a set of names, the bytes of a response. Each is computed
once and kept as long as the snapshots are in use.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any as Anything
from typing import TypeVar

import xxhash
from google.protobuf.any_pb2 import Any

from understudy.xds.server import wire
from understudy.xds.server.references import NONE, References, UnreadableResource, read_references

_SUM_BITS = (1 << 64) - 1
_SHORTEST_TTL = 0.1
_MAX_PAYLOADS = 64
_MAX_VERSIONS = 64
_MAX_RESPONSES = 64

_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One encoded resource. ``packed`` is its Any, ``version`` the hash of its content, ``ttl`` seconds or None.

    ``mark`` is the resource's share in the version of a set of resources.
    """

    name: str
    version: str
    packed: bytes
    mark: int
    points_at: References = NONE
    ttl: float | None = None

    @property
    def value(self) -> bytes:
        """The serialised message that this resource was made of."""
        return Any.FromString(self.packed).value

    def value_equals(self, value: bytes) -> bool:
        """Whether ``value`` is the serialised message that this resource was made of."""
        return self.packed.endswith(value) and _version_of_value(value, self.ttl) == self.version


def _version_of_value(value: bytes, ttl: float | None) -> str:
    hashed = xxhash.xxh64(value)
    if ttl is not None:
        hashed.update(f"\0ttl={ttl}".encode())
    return hashed.hexdigest()


def encode(
    type_url: str, name: str, value: bytes, ttl: float | None = None, points_at: References | None = None
) -> Resource:
    """Make a resource of a serialised message.

    ``points_at``: what the message points at, if the caller knows it; it is not read from the message then.

    Raises ``understudy.xds.server.references.UnreadableResource`` if the bytes are no such message, if the message has
    another name, or if ``ttl`` is below 0.1 s.
    """
    if ttl is not None and ttl < _SHORTEST_TTL:
        raise UnreadableResource(f"a time to live of {ttl} s is too short")
    points_at = read_references(type_url, name, value) if points_at is None else points_at
    version = _version_of_value(value, ttl)
    mark = xxhash.xxh3_64_intdigest(f"{name}\0{version}".encode())
    return Resource(name, version, wire.any_of(type_url, value), mark, points_at, ttl)


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """The difference of two snapshots: names added or changed, and names removed; both sorted."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


class TypeSnapshot:
    """The resources of one type at one moment; ``renewed`` are those with a TTL. Immutable; equal only to itself."""

    __slots__ = (
        "__weakref__",
        "_differences",
        "_keeping",
        "_payloads",
        "_responses",
        "_versions",
        "renewed",
        "resources",
        "version",
    )

    def __init__(self, resources: Mapping[str, Resource]) -> None:
        self.resources = MappingProxyType(dict(resources))
        self.version = _version(self.resources.values())
        self.renewed = tuple(resource for resource in self.resources.values() if resource.ttl is not None)
        self._differences: weakref.WeakKeyDictionary[TypeSnapshot, SnapshotDiff] = weakref.WeakKeyDictionary()
        self._keeping: weakref.WeakKeyDictionary[TypeSnapshot, dict[frozenset[str], TypeSnapshot]] = (
            weakref.WeakKeyDictionary()
        )
        self._responses: weakref.WeakKeyDictionary[TypeSnapshot, dict[Hashable, Anything]] = weakref.WeakKeyDictionary()
        self._versions: dict[frozenset[str], str] = {}
        self._payloads: dict[Hashable, bytes] = {}

    def since(self, older: "TypeSnapshot") -> SnapshotDiff:
        """What changed from ``older`` to this snapshot."""
        if older is self:
            return _SAME
        known = self._differences.get(older)
        if known is None:
            known = self._differences[older] = _difference(older.resources, self.resources)
        return known

    def keeping(self, older: "TypeSnapshot", names: frozenset[str]) -> "TypeSnapshot":
        """This snapshot with those of ``names`` that ``older`` has and this one no longer has."""
        if not names:
            return self
        known = self._keeping.setdefault(older, {})
        found = known.get(names)
        if found is None:
            if len(known) >= _MAX_VERSIONS:
                known.clear()
            gone = {name: older.resources[name] for name in self.since(older).removed if name in names}
            found = known[names] = TypeSnapshot({**self.resources, **gone}) if gone else self
        return found

    def version_of(self, names: frozenset[str]) -> str:
        """The version of a part of the snapshot; that of the whole if ``names`` covers it."""
        version = self._versions.get(names)
        if version is None:
            if len(self._versions) >= _MAX_VERSIONS:
                self._versions.clear()
            found = (self.resources[name] for name in names if name in self.resources)
            version = self._versions[names] = _version(found)
        return version

    def response(self, older: "TypeSnapshot", key: Hashable, build: Callable[[], _Response]) -> _Response:
        """The response to clients of one kind (``key``) that have ``older``; built for the first of them."""
        responses = self._responses.get(older)
        if responses is None:
            responses = self._responses[older] = {}
        try:
            found: _Response = responses[key]
        except KeyError:
            if len(responses) >= _MAX_RESPONSES:
                responses.clear()
            found = responses[key] = build()
        return found

    def payload(self, key: Hashable, build: Callable[[], bytes]) -> bytes:
        """The bytes of a response from this snapshot, built by the first stream that needs them."""
        payload = self._payloads.get(key)
        if payload is None:
            if len(self._payloads) >= _MAX_PAYLOADS:
                self._payloads.clear()
            payload = self._payloads[key] = build()
        return payload


_SAME = SnapshotDiff()


def _version(resources: Iterable[Resource]) -> str:
    """A hash of a set of resources. It does not depend on their order, so they need not be sorted."""
    return f"{sum(resource.mark for resource in resources) & _SUM_BITS:016x}"


def _difference(older: Mapping[str, Resource], newer: Mapping[str, Resource]) -> SnapshotDiff:
    changed = []
    for name, resource in newer.items():
        before = older.get(name)
        if before is not resource and (before is None or before.version != resource.version):
            changed.append(name)
    removed = [name for name in older if name not in newer]
    return SnapshotDiff(tuple(sorted(changed)), tuple(sorted(removed)))


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All that the nodes of one group see. ``changed_ns`` is the monotonic time of the change that made it."""

    types: Mapping[str, TypeSnapshot] = field(default_factory=dict)
    changed_ns: int = 0

    def of(self, type_url: str) -> TypeSnapshot:
        """The snapshot of one type; an empty one where nothing was ever set."""
        found = self.types.get(type_url)
        return EMPTY if found is None else found


EMPTY = TypeSnapshot({})


def merge_groups(
    base: Mapping[str, TypeSnapshot], own: Mapping[str, TypeSnapshot], before: Snapshot, now_ns: int
) -> Snapshot:
    """What a group sees: ``base`` and over it ``own``. Types without a change stay the same, shared object."""
    seen: dict[str, TypeSnapshot] = {}
    for kind in {**base, **own}:
        under, over = base.get(kind, EMPTY), own.get(kind, EMPTY)
        if over is under or not over.resources:
            seen[kind] = under
        elif not under.resources:
            seen[kind] = over
        else:
            both = TypeSnapshot({**under.resources, **over.resources})
            seen[kind] = before.of(kind) if not both.since(before.of(kind)) else both
    return Snapshot(seen, now_ns)
