"""The records of a pool in etcd: members, slot table, owner records, sync records, failover records.

Frozen data, read from JSON and written as JSON. Unknown fields are ignored, so that a newer writer does not break an
older reader. Every ``decode`` returns a record whose fields have their types, or raises ``ValueError``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

from understudy.statesync.parsing.stored import compact_json, is_text, made_of, read_json, read_object, typed
from understudy.statesync.pool.site_records import SiteSwitch
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.replication.sync_set import Process, SyncSet

SHARE_MOST = 1000
"""The largest weight and the largest priority of a member."""
RESTARTING = 0.0
"""Instead of the time at which a site got slots again (:attr:`Table.returned`): it has none yet."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class MemberState(StrEnum):
    """The state that a member reports of itself, or (LOST) that others report of it."""

    INIT = "INIT"
    READY = "READY"
    UP = "UP"
    DRAINING = "DRAINING"
    DOWN = "DOWN"
    LOST = "LOST"
    ATTENTION = "ATTENTION"

    @property
    def may_hold_slots(self) -> bool:
        """Whether the slot table may give this member any role."""
        return self in (MemberState.READY, MemberState.UP)


class ForecastLevel(StrEnum):
    """How a member is expected to fare, by the resources that it can run out of."""

    OK = "ok"
    WARN = "warn"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for ok; the higher the worse."""
        return _RANKS[self]


_RANKS: Mapping[str, int] = {level: rank for rank, level in enumerate(ForecastLevel)}
NO_ETCD = "etcd does not answer: "
"""How the reason begins of a member that is DOWN because it cannot reach etcd; the last error follows."""
NOBODY_ELSE = "nobody else can serve: "
"""How the reason begins of a member that is ATTENTION; what keeps it from serving well follows."""


class Phase(StrEnum):
    """The phase of an owner record."""

    STABLE = "stable"
    HANDOVER = "handover"


class Record:
    """A frozen dataclass that is stored as JSON."""

    __slots__ = ()

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Read a record; raises ``ValueError`` on anything that is not one."""
        return cls.of(read_json(value))

    @classmethod
    def of(cls, raw: object) -> Self:
        """A record of parsed JSON; raises ``ValueError`` on anything that is not one."""
        record = made_of(cls, raw)
        fault = record.fault()
        if fault:
            raise ValueError(f"{cls.__name__}: {fault}")
        return record

    def fault(self) -> str:
        """Why a record must not be used although its fields have their types; '' if it may be."""
        return ""


@dataclass(frozen=True, slots=True)
class Member(Record):
    """One application instance with its sidecar; lives on the sidecar's lease.

    ``boot`` is drawn anew at each start of the sidecar, so a restarted member is told from its former self. ``app`` and
    ``peer`` are ``host:port``; so is ``health``, which front Envoys ask ('' if there is none). ``node`` is the host
    that it runs on, and ``zone`` that host's zone within the site, if it knows; they are failure domains. ``reason``
    says why the state is not UP. ``stall`` is how late its event loop recently was, in seconds, rounded up to a step:
    probes of the member wait that much longer. ``life`` is how many takeovers this process has survived. ``clock`` says
    what is wrong with its wall clock. ``forecast`` says what the member is going to run out of, and ``forecast_level``
    how sure and how soon that is; both are '' if nothing is expected.
    ``forecast_end`` is when that will be (wall time in seconds; 0: not known). ``version`` is that of the sidecar,
    ``app_version`` that of the application, if the sidecar was told ('' if not).
    """

    member: str
    boot: str
    app: str
    peer: str
    state: MemberState = MemberState.INIT
    site: str = ""
    weight: int = 10
    priority: int = 1
    reason: str = ""
    since: float = 0.0
    version: str = ""
    health: str = ""
    node: str = ""
    stall: float = 0.0
    life: int = 0
    clock: str = ""
    forecast: str = ""
    forecast_level: str = ""
    forecast_end: float = 0.0
    zone: str = ""
    app_version: str = ""

    @property
    def expected(self) -> ForecastLevel:
        """The level of its forecast; one that this version does not know counts as none."""
        return ForecastLevel(self.forecast_level) if self.forecast_level in _RANKS else ForecastLevel.OK

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", MemberState(self.state))

    def fault(self) -> str:
        """See :meth:`Record.fault`. The bounds are those of the sidecar's options."""
        if not _NAME.fullmatch(self.member):
            return "member: not a valid name"
        if not (1 <= self.weight <= SHARE_MOST and 1 <= self.priority <= SHARE_MOST):
            return f"weight and priority are 1 to {SHARE_MOST}"
        return ""


@dataclass(frozen=True, slots=True)
class Owner(Record):
    """Owner record of one slot: who may write its sessions.

    ``epoch`` rises at each change of ``active`` or of its boot. In phase ``handover`` nobody may write; ``to`` names
    who is to become active. ``traceparent`` (W3C Trace Context) ties the change to its failover trace.
    """

    active: str
    boot: str
    epoch: int
    phase: Phase = Phase.STABLE
    to: str = ""
    cause: str = ""
    traceparent: str = ""
    since: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", Phase(self.phase))


class Loss(NamedTuple):
    """The claim of a slot although acknowledged writes of class ``replicas`` may have been missing.

    ``epoch`` is that of the claim. At the moment of the loss, what is missing was younger than ``seconds``, as far as
    the claimer knew. ``at`` is the wall time of the claim in seconds.
    """

    epoch: int
    seconds: int
    at: float


@dataclass(frozen=True, slots=True)
class SyncRecord(Record):
    """The sync set of one slot, beside its owner record: which processes must have a write in memory.

    It is valid only while ``epoch`` is that of the owner record. See :class:`SyncSet` for ``members``, ``memory`` and
    ``former``. ``losses`` counts how often the slot was claimed although acknowledged writes may have been missing.
    The fields ``loss_...`` are those of the last :class:`Loss`. Later records of the slot have them too.
    """

    epoch: int
    members: tuple[Process, ...]
    memory: bool = False
    former: tuple[Process, ...] = ()
    losses: int = 0
    loss_epoch: int = 0
    loss_seconds: int = 0
    loss_at: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _processes("members", self.members))
        object.__setattr__(self, "former", _processes("former", self.former))

    @classmethod
    def of_set(cls, epoch: int, sync: SyncSet, before: "SyncRecord | None" = None) -> "SyncRecord":
        """The record of a sync set in an epoch; equal sets make equal records.

        ``before`` is the record of the slot that it replaces: its losses stay counted.
        """
        made = cls(epoch, tuple(sorted(sync.members)), sync.memory, tuple(sorted(sync.former)))
        if before is None or not before.losses:
            return made
        kept = ("losses", "loss_epoch", "loss_seconds", "loss_at")
        return replace(made, **{name: getattr(before, name) for name in kept})

    def after_loss(self, seconds: int, now: float) -> "SyncRecord":
        """The record of a claim by which writes younger than ``seconds`` may be lost; ``now`` is wall time."""
        counted = self.losses + 1
        return replace(self, losses=counted, loss_epoch=self.epoch, loss_seconds=seconds, loss_at=now)

    @property
    def last_loss(self) -> Loss | None:
        """The last loss; None if there was none, or only one of a release that did not note it."""
        return Loss(self.loss_epoch, self.loss_seconds, self.loss_at) if self.loss_epoch else None

    def sync_set(self) -> SyncSet:
        """The sync set, which counts only in the epoch of the record."""
        return SyncSet(frozenset(self.members), self.memory, frozenset(self.former))

    def fault(self) -> str:
        """See :meth:`Record.fault`."""
        if not self.members:
            return "members: a sync set is never empty"
        if self.former and not self.memory:
            return "former: without memory there are no former actives"
        return "" if min(self.losses, self.loss_epoch, self.loss_seconds) >= 0 else "losses: less than none"


def _processes(name: str, listed: Iterable[object]) -> tuple[Process, ...]:
    """Members and their boots in a record's JSON, each once. Raises ``ValueError``."""
    processes = []
    for item in listed:
        if not isinstance(item, list | tuple) or [is_text(part) for part in item] != [True, True]:
            raise ValueError(f"{name}: expected a member and its boot")
        processes.append(Process(*item))
    if len(set(processes)) < len(processes):
        raise ValueError(f"{name}: a process stands there twice")
    return tuple(processes)


@dataclass(frozen=True, slots=True)
class Intent(Record):
    """An operator wants a member, or all members of a site, out of service; the other of the two names is ''.

    ``until`` is wall time in seconds; 0: until an operator ends it. ``drill`` is who runs the drill that it is part of;
    '' if it is none. An intent whose ``until`` is the time of a site's return in the slot table (``returned``) has
    always been over. It says that the site need not rest after that return.
    """

    member: str = ""
    until: float = 0.0
    since: float = 0.0
    site: str = ""
    drill: str = ""

    def holds(self, now: float) -> bool:
        """Whether it applies at ``now`` (wall time in seconds)."""
        return not self.until or now < self.until


@dataclass(frozen=True, slots=True)
class Revival(Record):
    """An operator's word about a slot: the processes with its newest writes are gone, and it may go on without them.

    It holds for the owner record of ``epoch`` alone, and for processes that are not registered. ``by`` is who said so,
    and ``at`` when (wall time in seconds).
    """

    epoch: int
    by: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Lost(Record):
    """A member that the control servers found dead: its boot id, why, and the trace of its failover."""

    boot: str
    cause: str
    traceparent: str
    at: float


@dataclass(frozen=True, slots=True)
class Leaving(Record):
    """A member that is to own nothing because it will fail soon: its boot id, and why."""

    boot: str
    why: str


@dataclass(frozen=True, slots=True)
class Table:
    """The slot table: for each slot the members in order (active, standby, backups), as the leader wants them.

    ``lost`` names members that are dead although their record may still stand: the first witness for a takeover.
    ``traceparent`` is the trace of the planned moves that this generation asks for, and ``cause`` why it does.
    ``offline`` names the sites that were out of service when it was written, ``leaving`` members that will fail soon.
    ``resting`` names sites that get no slots although they may be back, with the weight that they had in the spec.
    ``switch`` is the last switch of an active/standby pool between its sites.
    ``group`` is the group that the pool is in, and ``away`` what it tells that group (:class:`PoolInGroup`).
    ``with_group`` names sites that get no slots because another pool of the group has none there, and that pool.
    ``returned`` says when each site last got slots again after it had lost all its members (wall time in seconds);
    :data:`RESTARTING` while that is still to come and the site does not rest.
    """

    generation: int = 0
    orders: tuple[tuple[str, ...], ...] = ()
    lost: Mapping[str, Lost] = field(default_factory=dict)
    traceparent: str = ""
    cause: str = ""
    offline: tuple[str, ...] = ()
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    resting: Mapping[str, int] = field(default_factory=dict)
    switch: SiteSwitch | None = None
    group: str = ""
    away: Mapping[str, str] = field(default_factory=dict)
    with_group: Mapping[str, str] = field(default_factory=dict)
    returned: Mapping[str, float] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many slots the table has."""
        return len(self.orders)

    def active_of(self, slot: int) -> str | None:
        """The member that should be active for ``slot``; None if there is none."""
        order = self.orders[slot] if slot < len(self.orders) else ()
        return order[0] if order else None

    def rests_until(self, site: str, freeze: float) -> float:
        """When a site that was lost again within ``freeze`` after its return may have slots again; 0 if it is none."""
        returned = self.returned.get(site, RESTARTING) if site in self.resting else RESTARTING
        return returned + freeze if returned else 0.0

    def slots_held_by(self, member: str) -> frozenset[int]:
        """The slots in which ``member`` has any role."""
        return frozenset(slot for slot, order in enumerate(self.orders) if member in order)

    def encode(self) -> bytes:
        """Compact JSON: each distinct order once, and an index into them per slot."""
        distinct = list(dict.fromkeys(self.orders))
        index = {order: position for position, order in enumerate(distinct)}
        return compact_json(
            {
                "generation": self.generation,
                "orders": distinct,
                "slots": [index[order] for order in self.orders],
                "lost": self.lost,
                "traceparent": self.traceparent,
                "cause": self.cause,
                "offline": self.offline,
                **({"leaving": self.leaving} if self.leaving else {}),
                **({"resting": self.resting} if self.resting else {}),
                **({"switch": self.switch} if self.switch else {}),
                **({"group": self.group, "away": self.away} if self.group else {}),
                **({"with_group": self.with_group} if self.with_group else {}),
                **({"returned": self.returned} if self.returned else {}),
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> "Table":
        """Read a table; raises ``ValueError`` on anything that is not one."""
        raw = read_object(value)
        return cls(
            generation=typed("generation", int, raw.get("generation")),
            orders=_orders_in(raw),
            lost={member: Lost.of(lost) for member, lost in _by_name(raw, "lost").items()},
            traceparent=typed("traceparent", str, raw.get("traceparent", "")),
            cause=typed("cause", str, raw.get("cause", "")),
            offline=typed("offline", tuple[str, ...], raw.get("offline", ())),
            leaving={member: Leaving.of(one) for member, one in _by_name(raw, "leaving").items()},
            resting={site: typed("resting", int, weight) for site, weight in _by_name(raw, "resting").items()},
            switch=SiteSwitch.of(_by_name(raw, "switch")) if raw.get("switch") is not None else None,
            group=typed("group", str, raw.get("group", "")),
            away={site: typed("away", str, why) for site, why in _by_name(raw, "away").items()},
            with_group={site: typed("with_group", str, pool) for site, pool in _by_name(raw, "with_group").items()},
            returned={site: typed("returned", float, at) for site, at in _by_name(raw, "returned").items()},
        )


def _orders_in(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The order of each slot in a table's JSON."""
    listed = raw.get("orders")
    if not isinstance(listed, list):
        raise ValueError("Table: orders is not a list")  # noqa: TRY004 - one error for all
    distinct = [typed("orders", tuple[str, ...], order) for order in listed]
    if any(len(set(order)) < len(order) for order in distinct):
        raise ValueError("Table: an order names a member twice")
    slots = typed("slots", tuple[int, ...], raw.get("slots"))
    if len(slots) > MAX_SLOTS or not all(0 <= position < len(distinct) for position in slots):
        raise ValueError(f"Table: slots has up to {MAX_SLOTS} positions in orders")
    return tuple(distinct[position] for position in slots)


def _by_name(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, dict) or not all(is_text(key) for key in found):
        raise ValueError(f"Table: {name} is not an object with names as its keys")
    return found


@dataclass(frozen=True, slots=True)
class ControlServer(Record):
    """Where a control server listens; lives on its lease. ``grpc`` and ``http`` are ``host:port``.

    ``every_pool``: it serves every pool that etcd has, and leaves one whose spec is deleted.
    """

    name: str
    grpc: str
    http: str
    version: str = ""
    every_pool: bool = False


@dataclass(frozen=True, slots=True)
class FailoverRecord(Record):
    """What one member took over in one change of active; several records with one ``trace`` make one failover.

    ``slots`` and ``epochs`` run in parallel. ``started`` is wall time in seconds; durations are in the trace.
    ``drill`` is the kind of drill that caused it on purpose, empty for the real thing. ``restored`` are the slots that
    were claimed with a loss, of what was younger than ``loss_seconds`` (:class:`Loss`).
    """

    trace: str
    to: str
    source: str
    cause: str
    planned: bool
    slots: tuple[int, ...]
    epochs: tuple[int, ...]
    started: float
    revision: int = 0
    drill: str = ""
    restored: tuple[int, ...] = ()
    loss_seconds: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        object.__setattr__(self, "epochs", tuple(self.epochs))

    def fault(self) -> str:
        """See :meth:`Record.fault`."""
        return "" if len(self.slots) == len(self.epochs) else "slots and epochs differ in length"
