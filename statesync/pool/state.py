"""The pool as one process sees it: the decoded records, kept up to date by an informer.

Used by control servers and sidecars. Holds the last readable version of every record, with the revision at which it was
written. A record that cannot be read is logged once and named in ``faults``, and the last readable one stays: a bad
write must not stop a running pool. Fields that a newer version added are left out; for the spec, where they may matter,
``faults`` says so. Sessions and commit markers are kept elsewhere.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from enum import Flag, auto
from functools import lru_cache, partial
from typing import Generic, TypeVar

import msgspec

from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.parsing.stored import brief
from understudy.statesync.pool.home import Home
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.practice import Practices
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress
from understudy.statesync.pool.records import (
    ControlServer,
    FailoverRecord,
    Intent,
    Member,
    Owner,
    Record,
    Revival,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.site_records import DependencyDown, SiteTakeOver
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import decode_known_spec

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Record)
REMEMBERED_BYTES = 1000
"""The longest value whose record is remembered: those of owners and sync sets are shorter."""


class Changed(Flag):
    """Which kinds of record a batch changed."""

    NOTHING = 0
    SPEC = auto()
    MEMBERS = auto()
    TABLE = auto()
    OWNERS = auto()
    CONTROLS = auto()
    LEADER = auto()
    FAILOVERS = auto()
    FRONT_SPEC = auto()
    INTENTS = auto()
    SYNC_SETS = auto()
    MOVES = auto()
    HOME = auto()
    TAKE_OVER = auto()


class At(msgspec.Struct, Generic[T], frozen=True):
    """A record and the etcd revision at which it was last written (its ``mod_revision``)."""

    record: T
    revision: int


class PoolState(msgspec.Struct):
    """The records of one pool. Mutable, but every record in it is frozen."""

    keys: PoolKeys
    spec: At[PoolSpec] | None = None
    front_spec: At[PoolSpec] | None = None
    """The newest spec that front Envoys of several pools accepted."""
    table: At[Table] | None = None
    leader: At[str] | None = None
    home: At[Home] | None = None
    beat: int = 0
    """The revision of the home's last beat."""
    take_over: At[SiteTakeOver] | None = None
    practices: At[Practices] | None = None
    move_plan: At[MovePlan] | None = None
    move_progress: At[MoveProgress] | None = None
    members: dict[str, At[Member]] = msgspec.field(default_factory=dict)
    owners: dict[int, At[Owner]] = msgspec.field(default_factory=dict)
    sync_sets: dict[int, At[SyncRecord]] = msgspec.field(default_factory=dict)
    revivals: dict[int, At[Revival]] = msgspec.field(default_factory=dict)
    controls: dict[str, At[ControlServer]] = msgspec.field(default_factory=dict)
    failovers: dict[str, At[FailoverRecord]] = msgspec.field(default_factory=dict)
    intents: dict[str, At[Intent]] = msgspec.field(default_factory=dict)
    sites: dict[str, At[Intent]] = msgspec.field(default_factory=dict)
    dependencies: dict[tuple[str, str], At[DependencyDown]] = msgspec.field(default_factory=dict)
    """What is down of that which sites need, by site and name."""
    faults: dict[str, str] = msgspec.field(default_factory=dict)
    unreadable: dict[str, int] = msgspec.field(default_factory=dict)
    """The revision of each value that could not be read, by its key; who replaces the value compares the revision."""

    def apply(self, batch: InformerBatch) -> Changed:
        """Take in a batch and say what kinds of record it touched."""
        changed = Changed.NOTHING
        if batch.reset:
            self._forget_all()
            changed = ~Changed.NOTHING
        for event in batch.events:
            changed |= self._apply_event(event)
        return changed

    def stored(self) -> list[tuple[str, int, Callable[[], bytes]]]:
        """Every known record: its key in etcd, its revision, and a function that encodes its value."""
        keys = self.keys
        found: list[tuple[str, int, Callable[[], bytes]]] = []
        for key, one in (
            (keys.spec, self.spec),
            (keys.front_spec, self.front_spec),
            (keys.leader, self.leader),
            (keys.table, self.table),
            (keys.take_over, self.take_over),
            (keys.practices, self.practices),
            (keys.move_plan, self.move_plan),
            (keys.move_progress, self.move_progress),
            (keys.home, self.home),
        ):
            if one is not None:
                found.append((key, one.revision, one.record.encode))
        for prefix, records in (
            (keys.members, self.members),
            (keys.controls, self.controls),
            (keys.failovers, self.failovers),
            (keys.admin, self.intents),
            (keys.site_intents, self.sites),
        ):
            found += [(prefix + name, at.revision, at.record.encode) for name, at in records.items()]
        found += [(keys.dependency(*of), at.revision, at.record.encode) for of, at in self.dependencies.items()]
        found += [(keys.owner(slot), at.revision, at.record.encode) for slot, at in self.owners.items()]
        found += [(keys.sync_set(slot), at.revision, at.record.encode) for slot, at in self.sync_sets.items()]
        found += [(keys.revival(slot), at.revision, at.record.encode) for slot, at in self.revivals.items()]
        return found

    def note_owner(self, slot: int, owner: Owner, revision: int) -> bool:
        """Take in an owner record that a transaction wrote or returned, unless a newer one is known.

        Returns whether it is the newest known. The answer to a transaction may arrive after the watch has brought a
        later record: a member may have won a slot and lost it again before it hears that it has won.
        """
        return _note(self.owners, slot, owner, revision)

    def note_sync_set(self, slot: int, record: SyncRecord, revision: int) -> bool:
        """Take in a sync record that a transaction wrote, as :meth:`note_owner` does with an owner record."""
        return _note(self.sync_sets, slot, record, revision)

    def read_owner(self, slot: int, kv: Kv) -> Owner | None:
        """Take in an owner record that a transaction returned, and return it; None if it cannot be read.

        The watch brings the same value, and adds the entry in ``faults``.
        """
        owner = self._read(Owner, kv)
        if owner is not None:
            self.note_owner(slot, owner, kv.mod_revision)
        return owner

    def read_sync_set(self, slot: int, kv: Kv) -> SyncRecord | None:
        """Take in a sync record that a transaction returned, as :meth:`read_owner` does with an owner record."""
        record = self._read(SyncRecord, kv)
        if record is not None:
            self.note_sync_set(slot, record, kv.mod_revision)
        return record

    def _read(self, kind: type[R], kv: Kv) -> R | None:
        try:
            return kind.decode(kv.value)
        except ValueError as error:
            self._log_fault(kv.key, brief(str(error)))
            return None

    def offline(self, now: float) -> frozenset[str]:
        """The sites that an operator wants out of service at ``now`` (wall time in seconds)."""
        return frozenset(site for site, at in self.sites.items() if site and at.record.holds(now))

    def ended_rests(self) -> dict[str, float]:
        """When each site's last intent is over. It ends the rest of a site that returned just then (``Intent``)."""
        return {site: at.record.until for site, at in self.sites.items() if at.record.until}

    def rests_until(self, site: str) -> float:
        """Until when the site rests because it was lost again soon after its return; 0 if it does not."""
        if self.table is None or self.spec is None:
            return 0.0
        return self.table.record.rests_until(site, self.spec.record.site_switch.freeze)

    @property
    def generation(self) -> int:
        """How often a site went on with its part of etcd alone."""
        return self.take_over.record.generation if self.take_over else 0

    @property
    def taken_over_at(self) -> int:
        """The revision of the record of the last such take-over; 0 if there is none."""
        return self.take_over.revision if self.take_over else 0

    def lacking(self) -> dict[str, frozenset[str]]:
        """The names of the dependencies that are down, by site."""
        found: dict[str, set[str]] = defaultdict(set)
        for site, name in self.dependencies:
            found[site].add(name)
        return {site: frozenset(names) for site, names in found.items()}

    def changes(self) -> list[tuple[str, list[FailoverRecord]]]:
        """The changes of active by trace, with the records of all members that took part; the newest comes first.

        The order is that of etcd's revisions, which does not depend on clocks.
        """
        by_trace: dict[str, list[At[FailoverRecord]]] = defaultdict(list)
        for at in self.failovers.values():
            by_trace[at.record.trace].append(at)
        newest = sorted(by_trace.items(), key=lambda item: max(at.revision for at in item[1]), reverse=True)
        return [(trace, [at.record for at in parts]) for trace, parts in newest]

    def _forget_all(self) -> None:
        self.spec = self.front_spec = self.table = self.leader = self.take_over = None
        self.move_plan = self.move_progress = self.practices = None
        self.home, self.beat = None, 0
        named = (self.members, self.controls, self.failovers, self.intents, self.sites, self.dependencies)
        for records in (*named, self.owners, self.sync_sets, self.revivals, self.faults, self.unreadable):
            records.clear()

    def _apply_event(self, event: Event) -> Changed:
        key = event.kv.key
        if key.startswith((self.keys.sessions, self.keys.commits, self.keys.requests, self.keys.mirrored)):
            return Changed.NOTHING
        self.faults.pop(key, None)
        self.unreadable.pop(key, None)
        try:
            return self._decode(key, event)
        except ValueError as error:
            fault = brief(str(error))
            self._log_fault(key, fault)
            self.faults[key] = fault
            self.unreadable[key] = event.kv.mod_revision
            return Changed.NOTHING

    def _log_fault(self, key: str, fault: str) -> None:
        if self.faults.get(key) != fault:
            logger.warning("unreadable record at %s: %s", brief(key), fault)

    def _decode(self, key: str, event: Event) -> Changed:
        keys = self.keys
        kv = event.kv if event.kind == "put" else None
        if key.startswith(keys.spec):
            return self._decode_specs(key, kv)
        if key == keys.table:
            self.table = At(Table.decode(kv.value), kv.mod_revision) if kv else None
            return Changed.TABLE
        if key == keys.leader:
            self.leader = At(kv.value.decode(), kv.mod_revision) if kv else None
            return Changed.LEADER
        if key.startswith(keys.owners):
            _keep(self.owners, _just_slot_in(key, keys.owners), Owner, event)
            return Changed.OWNERS
        if key.startswith(keys.sync_sets):
            _keep(self.sync_sets, _just_slot_in(key, keys.sync_sets), SyncRecord, event)
            return Changed.SYNC_SETS
        if key.startswith(keys.revivals):
            _keep(self.revivals, _just_slot_in(key, keys.revivals), Revival, event)
            return Changed.INTENTS
        if key.startswith(keys.moves):
            return self._decode_moves(key, kv)
        return self._decode_named(key, event)

    def _decode_specs(self, key: str, kv: Kv | None) -> Changed:
        if key == self.keys.spec:
            self.spec = self._decode_spec(kv) if kv else None
            return Changed.SPEC
        if key == self.keys.front_spec:
            self.front_spec = At(decode_known_spec(kv.value)[0], kv.mod_revision) if kv else None
            return Changed.FRONT_SPEC
        return Changed.NOTHING

    def _decode_moves(self, key: str, kv: Kv | None) -> Changed:
        if key == self.keys.move_plan:
            self.move_plan = At(MovePlan.decode(kv.value), kv.mod_revision) if kv else None
        elif key == self.keys.move_progress:
            self.move_progress = At(MoveProgress.decode(kv.value), kv.mod_revision) if kv else None
        else:
            return Changed.NOTHING
        return Changed.MOVES

    def _decode_home(self, key: str, event: Event) -> Changed:
        if key == self.keys.home:
            self.home = At(Home.decode(event.kv.value), event.kv.mod_revision) if event.kind == "put" else None
            return Changed.HOME
        if key == self.keys.home_beat:
            self.beat = event.kv.mod_revision
        return Changed.NOTHING

    def _decode_spec(self, kv: Kv) -> At[PoolSpec]:
        spec, unknown = decode_known_spec(kv.value)
        if unknown:
            fault = f"this version does not know {brief(', '.join(unknown))} and ignores it: upgrade this process"
            logger.warning("spec of pool %s: %s", spec.pool, fault)
            self.faults[kv.key] = fault
        return At(spec, kv.mod_revision)

    def _decode_named(self, key: str, event: Event) -> Changed:
        """Decode a record of a kind that has one record per name under a prefix, or a rare one."""
        if key.startswith(self.keys.home):
            return self._decode_home(key, event)
        if key == self.keys.take_over:
            kv = event.kv
            self.take_over = At(SiteTakeOver.decode(kv.value), kv.mod_revision) if event.kind == "put" else None
            return Changed.TAKE_OVER
        if key == self.keys.practices:
            kv = event.kv
            self.practices = At(Practices.decode(kv.value), kv.mod_revision) if event.kind == "put" else None
            return Changed.NOTHING
        site, of_site, dependency = key.removeprefix(self.keys.site_intents).partition("/")
        if of_site and key.startswith(self.keys.site_intents):
            self._decode_dependency((site, dependency), event)
            return Changed.INTENTS
        for prefix, keep, changed in (
            (self.keys.members, partial(_keep, self.members, kind=Member), Changed.MEMBERS),
            (self.keys.controls, partial(_keep, self.controls, kind=ControlServer), Changed.CONTROLS),
            (self.keys.failovers, partial(_keep, self.failovers, kind=FailoverRecord), Changed.FAILOVERS),
            (self.keys.site_intents, partial(_keep, self.sites, kind=Intent), Changed.INTENTS),
            (self.keys.admin, partial(_keep, self.intents, kind=Intent), Changed.INTENTS),
        ):
            if key.startswith(prefix):
                keep(key.removeprefix(prefix), event=event)
                return changed
        return Changed.NOTHING

    def _decode_dependency(self, of: tuple[str, str], event: Event) -> None:
        if event.kind == "delete":
            self.dependencies.pop(of, None)
        else:
            self.dependencies[of] = At(DependencyDown.decode(event.kv.value), event.kv.mod_revision)


K = TypeVar("K")


def _just_slot_in(key: str, prefix: str) -> int:
    """The slot number with which a key ends. Raises ``ValueError``."""
    if "/" in key.removeprefix(prefix):
        raise ValueError("its key names no slot")
    return slot_in(key, prefix)


@lru_cache(maxsize=1024)
def _decoded(kind: type[R], value: bytes) -> R:
    """A record of a value in etcd. Raises ``ValueError``.

    Records are frozen. A failover writes few different values, each for many slots, so most of them are read once.
    """
    return kind.decode(value)


def _note(records: dict[K, At[R]], name: K, record: R, revision: int) -> bool:
    """Take in a record unless a newer one is known; whether it is the newest."""
    known = records.get(name)
    if known is not None and known.revision > revision:
        return False
    records[name] = At(record, revision)
    return True


def _keep(records: dict[K, At[R]], name: K, kind: type[R], event: Event) -> None:
    """Take in a change unless a newer one is known: this process notes its own writes at once."""
    known = records.get(name)
    if known is not None and known.revision >= event.kv.mod_revision:
        return
    if event.kind == "delete":
        records.pop(name, None)
    else:
        value = event.kv.value
        remembered = len(value) <= REMEMBERED_BYTES
        record = _decoded(kind, value) if remembered else kind.decode(value)  # type: ignore[arg-type] # it is hashable
        named = (
            record.member if isinstance(record, Member) else record.name if isinstance(record, ControlServer) else name
        )
        if named != name:
            raise ValueError("the record is of another name than its key")
        records[name] = At(record, event.kv.mod_revision)
