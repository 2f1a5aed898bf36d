"""Immutable snapshots of encoded resources, shared by all streams that see the same content.

A :class:`TypeSnapshot` holds the resources of one type, a :class:`Snapshot` those of all types that one node group
sees. Versions are hashes of content, so any process computes the same ones. What many streams ask of the same
snapshot (its difference from the one before, the version of a set of names, the bytes of an answer) is computed
once and remembered beside it, for as long as somebody holds it.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import xxhash

from understudy.xds.server import types, wire
from understudy.xds.server.references import NONE, References, Unreadable, read_references

_SUM_BITS = (1 << 64) - 1
_SHORTEST_TTL = 0.1
_PAYLOADS_KEPT = 64
_VERSIONS_KEPT = 64
_ANSWERS_KEPT = 64

_Answer = TypeVar("_Answer")


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

    def value_equals(self, value: bytes) -> bool:
        """Whether ``value`` is the serialised message that this resource was made of."""
        return self.packed.endswith(value) and _version_of_value(value, self.ttl) == self.version


def _version_of_value(value: bytes, ttl: float | None) -> str:
    hashed = xxhash.xxh64(value)
    if ttl is not None:
        hashed.update(f"\0ttl={ttl}".encode())
    return hashed.hexdigest()


def encode(type_url: str, name: str, value: bytes, ttl: float | None = None) -> Resource:
    """Make a resource of a serialised message.

    Raises ``understudy.xds.server.references.Unreadable`` when the bytes are no such message or when it bears another
    name, or when ``ttl`` is not at least 0.1 s.
    """
    if ttl is not None and ttl < _SHORTEST_TTL:
        raise Unreadable(f"a time to live of {ttl} s is too short")
    points_at = read_references(type_url, name, value)
    version = _version_of_value(value, ttl)
    mark = xxhash.xxh3_64_intdigest(f"{name}\0{version}".encode())
    return Resource(name, version, wire.any_of(type_url, value), mark, points_at, ttl)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a newer snapshot has beyond an older one: names added or changed, and names gone; both sorted."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


class TypeSnapshot:
    """The resources of one type at one moment; ``renewed`` are those with a TTL. Never changed; equal if identical."""

    __slots__ = (
        "__weakref__",
        "_answers",
        "_differences",
        "_keeping",
        "_payloads",
        "_versions",
        "renewed",
        "resources",
        "version",
    )

    def __init__(self, resources: Mapping[str, Resource]) -> None:
        self.resources = MappingProxyType(dict(resources))
        self.version = _version(self.resources.values())
        self.renewed = tuple(resource for resource in self.resources.values() if resource.ttl is not None)
        self._differences: weakref.WeakKeyDictionary[TypeSnapshot, Difference] = weakref.WeakKeyDictionary()
        self._keeping: weakref.WeakKeyDictionary[TypeSnapshot, dict[frozenset[str], TypeSnapshot]] = (
            weakref.WeakKeyDictionary()
        )
        self._answers: weakref.WeakKeyDictionary[TypeSnapshot, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
        self._versions: dict[frozenset[str], str] = {}
        self._payloads: dict[Hashable, bytes] = {}

    def since(self, older: "TypeSnapshot") -> Difference:
        """What changed from ``older`` to this snapshot."""
        if older is self:
            return _SAME
        known = self._differences.get(older)
        if known is None:
            known = self._differences[older] = _difference(older.resources, self.resources)
        return known

    def keeping(self, older: "TypeSnapshot", names: frozenset[str]) -> "TypeSnapshot":
        """This snapshot and, beside it, those of ``names`` that ``older`` has and this one no longer has."""
        if not names:
            return self
        known = self._keeping.setdefault(older, {})
        found = known.get(names)
        if found is None:
            if len(known) >= _VERSIONS_KEPT:
                known.clear()
            gone = {name: older.resources[name] for name in self.since(older).removed if name in names}
            found = known[names] = TypeSnapshot({**self.resources, **gone}) if gone else self
        return found

    def version_of(self, names: frozenset[str]) -> str:
        """The version of a part of the snapshot; that of the whole when ``names`` covers it."""
        version = self._versions.get(names)
        if version is None:
            if len(self._versions) >= _VERSIONS_KEPT:
                self._versions.clear()
            found = (self.resources[name] for name in names if name in self.resources)
            version = self._versions[names] = _version(found)
        return version

    def answer(self, older: "TypeSnapshot", key: Hashable, build: Callable[[], _Answer]) -> _Answer:
        """What clients of one kind (``key``) that were offered ``older`` are to be sent; built for the first."""
        answers = self._answers.get(older)
        if answers is None:
            answers = self._answers[older] = {}
        try:
            found: _Answer = answers[key]
        except KeyError:
            if len(answers) >= _ANSWERS_KEPT:
                answers.clear()
            found = answers[key] = build()
        return found

    def payload(self, key: Hashable, build: Callable[[], bytes]) -> bytes:
        """The bytes of an answer from this snapshot, built by the first stream that needs them."""
        payload = self._payloads.get(key)
        if payload is None:
            if len(self._payloads) >= _PAYLOADS_KEPT:
                self._payloads.clear()
            payload = self._payloads[key] = build()
        return payload


_SAME = Difference()


def _version(resources: Iterable[Resource]) -> str:
    """A hash over a set of resources that does not depend on their order, and so needs no sorting."""
    return f"{sum(resource.mark for resource in resources) & _SUM_BITS:016x}"


def _difference(older: Mapping[str, Resource], newer: Mapping[str, Resource]) -> Difference:
    changed = []
    for name, resource in newer.items():
        before = older.get(name)
        if before is not resource and (before is None or before.version != resource.version):
            changed.append(name)
    removed = [name for name in older if name not in newer]
    return Difference(tuple(sorted(changed)), tuple(sorted(removed)))


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


def dangling(snapshot: Snapshot, known: frozenset[str]) -> dict[tuple[str, str], str]:
    """The names in a snapshot that lead nowhere: (type, resource) -> what it points at in vain.

    ``known`` are names that the nodes have from elsewhere, such as static clusters of their bootstrap. A type of
    which nothing was ever set is not looked into, since its resources may come from elsewhere too.
    """
    found = {}
    for type_url, one in snapshot.types.items():
        for target in (types.CLUSTER, types.ROUTES, types.ENDPOINTS):
            held = snapshot.types.get(target)
            if held is None:
                continue
            for name, resource in one.resources.items():
                # One by one: what is taken off a set as another one's keys is looked up in a loop over all those keys.
                missing = {aim for aim in resource.points_at.of_type(target) if aim not in held.resources} - known
                if missing:
                    what = ", ".join(sorted(missing)[:5])
                    found[type_url, name] = f"points at {types.short_name(target)} resource {what}, which is not there"
    return found
