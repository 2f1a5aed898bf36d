"""The pool spec: the keys that an operator may set, their bounds and their defaults.

:mod:`understudy.statesync.pool.spec_reader` reads a spec and explains what is wrong with it.
"""

import functools
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from understudy.statesync.pool.priority import CONCURRENT_LOW, Priority, PriorityRule, priority_by_rule
from understudy.statesync.pool.session_key import SessionKey
from understudy.statesync.pool.slots import (
    DEFAULT_SLOTS,
    MAX_SLOTS,
    SlotRule,
    StoreKeys,
    slot_of,
    slot_of_bytes,
    slot_rule,
)
from understudy.statesync.pool.spec_front import Front, FrontUse
from understudy.statesync.pool.spec_tcp import MAX_TCP_SLOTS, Tcp, with_tcp_defaults
from understudy.statesync.pool.spec_versions import Versions
from understudy.telemetry.timing.duration import parse_duration

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
"""Names of pools, members and sites: DNS-like, since they become parts of resource names and keys."""


def _text(pattern: str) -> dict[str, str]:
    return {"type": "string", "pattern": pattern}


def _seconds(value: object) -> object:
    """``250ms``, ``1s`` or ``2m`` as seconds; anything else is left to the field's own check."""
    seconds = parse_duration(value, ("ms", "s", "m")) if isinstance(value, str) else None
    return value if seconds is None else seconds


def _share(value: object) -> object:
    """``0.1%`` as a share of 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value) if isinstance(value, str) else None
    return float(found[1]) / 100 if found else value


_SECONDS_SAID = {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 3600}, _text(r"^\d+(\.\d+)?(ms|s|m)$")]}
_SHARE_SAID = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _text(r"^0*(100(\.0+)?|\d{1,2}(\.\d+)?)\s*%$")]
}
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600), WithJsonSchema(_SECONDS_SAID)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1), WithJsonSchema(_SHARE_SAID)]


class SpecError(ValueError):
    """A pool spec that cannot be used; the text has one line per fault."""


class _Strict(BaseModel):
    # A model's validator is built when it is first used, and a part of PoolSpec needs none of its own. So the defaults
    # here come from model_construct, which uses none.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class MemberSpec(_Strict):
    """Weight and priority of one member; they override the options of its sidecar."""

    weight: Annotated[int, Field(ge=1, le=1000)] | None = None
    priority: Annotated[int, Field(ge=1, le=1000)] | None = None


class SiteSpec(_Strict):
    """A site's part of the slots: its ``weight``, of the sum of the weights of all sites. 0: the site stands by."""

    weight: Annotated[int, Field(ge=0, le=1000)]


class Limits(_Strict):
    """Limits of a pool.

    ``session_bytes`` is the largest session body in bytes; ``queued_writes`` is how many writes may wait at one member.
    ``requests`` is how many outcomes of requests one sidecar keeps, each for ``timeouts.request_seconds`` and 30 s
    more; one takes about 290 bytes. ``unsaved_bytes``: the most that one member acknowledges from memory before etcd
    has it, in bytes of session bodies.

    ``sessions``, ``total_bytes`` (of session bodies) and ``writes_per_second`` are for the whole pool. Each member
    enforces its share, by the slots that it is active for. ``requests_per_second`` is for each front Envoy.
    ``concurrent_requests``: how many requests one front Envoy has under way at one member.
    """

    session_bytes: Annotated[int, Field(ge=1, le=1_000_000)] = 65536
    sessions: Annotated[int, Field(ge=1)] = 100_000
    queued_writes: Annotated[int, Field(ge=1, le=1_000_000)] = 5_000
    requests: Annotated[int, Field(ge=1, le=10_000_000)] = 500_000
    unsaved_bytes: Annotated[int, Field(ge=1_000_000, le=100_000_000_000)] = 64 * 1024 * 1024
    total_bytes: Annotated[int, Field(ge=1, le=10**15)] | None = None
    writes_per_second: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    requests_per_second: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


Durability = Literal["sync", "async", "replicas"]
"""A class of durability: what an acknowledged write survives (docs/durability.md)."""


class Replication(_Strict):
    """Replication between members, for pools with ``durability: replicas``.

    ``patience_ms``: a member that has not confirmed a write after this time is taken out of the slot's sync set.
    ``checkpoint_ms``: how old a write gets at the most before etcd has it too. ``on_total_loss``: when all members that
    have a slot's newest writes have died, ``restore`` goes on with what etcd has, and ``wait`` waits for an operator.
    ``spread``: with ``site`` the copies of a slot are on as many sites as possible, and a write is acknowledged before
    etcd has it only while members of two sites must have it in memory.
    """

    patience_ms: Annotated[int, Field(ge=20, le=60_000)] = 300
    checkpoint_ms: Annotated[int, Field(ge=20, le=60_000)] = 1000
    on_total_loss: Literal["restore", "wait"] = "restore"
    spread: Literal["site"] | None = None


class Rto(_Strict):
    """How long a client may wait when its session's active changes: the 99th percentile, in seconds."""

    p99: Seconds = 1.0


class Stall(_Strict):
    """How long a slot may not be writable in a planned move: the 99th percentile, in seconds."""

    p99: Seconds = 0.5


class Propagation(_Strict):
    """From the time a change is known until the last Envoy has acknowledged it: the 99th percentile, in seconds."""

    p99: Seconds = 1.0


class Protection(_Strict):
    """How long some slot may have fewer than two current copies after a takeover: the 99th percentile, in seconds."""

    p99: Seconds = 30.0


class Objectives(_Strict):
    """What a failover may cost. Shares are between 0 and 1, counts are those of the review's window.

    ``rpo_sync_writes`` are acknowledged sync writes that were lost. ``rpo_replica_writes`` are those of class
    ``replicas``, where each slot that was restored after the death of its whole sync set counts as one at least.
    ``rpo_async_writes`` are async ones, judged only if given. ``failed_requests`` is the share of the requests during
    changes of active that failed, ``unavailability`` the share of all requests that met a takeover (of slot time, where
    requests are not counted), ``exposure`` the share of time with fewer than two current copies of some slot,
    ``unmeasured`` the share of changes without a measured end.
    """

    rto: Rto = Rto.model_construct()
    planned_stall: Stall = Stall.model_construct()
    propagation: Propagation = Propagation.model_construct()
    re_protection: Protection = Protection.model_construct()
    rpo_sync_writes: Annotated[int, Field(ge=0)] = 0
    rpo_replica_writes: Annotated[int, Field(ge=0)] = 0
    rpo_async_writes: Annotated[int, Field(ge=0)] | None = None
    failed_requests: Share = 0.001
    unavailability: Share = 0.0001
    exposure: Share = 0.01
    unmeasured: Share = 0.05
    needless_moves: Annotated[int, Field(ge=0)] = 0
    false_failovers: Annotated[int, Field(ge=0)] = 0


class Timeouts(_Strict):
    """How long Envoy waits. ``request_seconds`` is for a whole request with its retries; it does not apply to streams.

    ``keep_alive_ms``: Envoy closes a connection to an application that is idle for this long, before the application
    does. ``ping_ms``: interval of pings on HTTP/2 connections to applications, and the time after which an unanswered
    ping closes the connection; 0: no pings. gRPC servers must permit pings, else they close the connection.
    """

    connect_ms: Annotated[int, Field(ge=10, le=10_000)] = 250
    request_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    idle_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    keep_alive_ms: Annotated[int, Field(ge=100, le=3_600_000)] = 4000
    ping_ms: Annotated[int, Field(ge=0, le=600_000)] = 0


class Retries(_Strict):
    """How often Envoy repeats requests that may be repeated, and how many repeats may run at once per order of members.

    ``hedge_ms``: a request that may be repeated and has no answer after this time is sent to the next member as well,
    and the first answer counts; 0: never. ``hedge``: with ``measured`` Envoy waits at least as long as 99 % of the
    pool's answers took in the last minute (1 s until that is known), with ``fixed`` always ``hedge_ms``.
    """

    attempts: Annotated[int, Field(ge=0, le=10)] = 3
    at_once: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    hedge_ms: Annotated[int, Field(ge=0, le=60_000)] = 300
    hedge: Literal["measured", "fixed"] = "measured"


class HealthChecks(_Strict):
    """Envoy's own health checks of the members' health ports; ``docs/operations.md`` explains the numbers."""

    enabled: bool = True
    interval_ms: Annotated[int, Field(ge=20, le=60_000)] = 150
    timeout_ms: Annotated[int, Field(ge=20, le=60_000)] = 450
    failures: Annotated[int, Field(ge=1, le=10)] = 1
    successes: Annotated[int, Field(ge=1, le=10)] = 2


class Outliers(_Strict):
    """When Envoy avoids a member because connections to it fail or break; ``failures`` 0: never."""

    failures: Annotated[int, Field(ge=0, le=1000)] = 0
    base_ms: Annotated[int, Field(ge=100, le=60_000)] = 1000
    longest_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000


class Liveness(_Strict):
    """When a silent member is suspected.

    ``missed_beats`` is for heartbeats and pulses, each sent every 100 ms; ``unanswered_ms`` for probes where there are
    no pulses. ``application_ms``: how long an application may leave its sidecar's question unanswered, and how long a
    member that answers its pulse may leave its peers waiting. ``load_cap_ms``: the most that is added to these times
    for a member under CPU load.
    """

    missed_beats: Annotated[int, Field(ge=2, le=100)] = 3
    unanswered_ms: Annotated[int, Field(ge=100, le=60_000)] = 500
    application_ms: Annotated[int, Field(ge=100, le=60_000)] = 2000
    load_cap_ms: Annotated[int, Field(ge=0, le=60_000)] = 2000


class Mesh(_Strict):
    """The Service through which the proxies of an Istio mesh reach the members; see ``docs/istio.md``.

    ``host`` is its full name, such as ``cart-slots.shop.svc.cluster.local``; ``port`` is the Service's own.
    """

    host: Annotated[
        str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$", max_length=253)
    ]
    port: Annotated[int, Field(ge=1, le=65535)] = 7680


class CheckSpec(_Strict):
    """A check that every sidecar runs: an HTTP request, or a command if the sidecar allows command checks.

    It runs every ``every_seconds`` and fails after ``failures`` bad results in a row. No result within
    ``timeout_seconds`` is a bad result.
    """

    name: Name
    http: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    command: tuple[str, ...] = ()
    every_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    timeout_seconds: Annotated[float, Field(ge=0.05, le=600)] = 1.0
    failures: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="after")
    def _one_kind(self) -> "CheckSpec":
        if bool(self.http) == bool(self.command):
            raise ValueError("name either http or a command")
        return self


class DurabilityRule(_Strict):
    """The class of durability of writes to sessions whose keys begin with ``prefix``."""

    prefix: Annotated[str, Field(min_length=1, max_length=200)]
    durability: Durability


def _off(value: object) -> object:
    """``off`` as text: without quotes YAML 1.1 reads it as false."""
    return "off" if value is False else value


_PREDICTIVE_SAID = {"enum": ["off", "warn", "move", False]}
Predictive = Annotated[Literal["off", "warn", "move"], BeforeValidator(_off), WithJsonSchema(_PREDICTIVE_SAID)]
"""What is done about a member that will fail soon by the trend of what it uses (docs/operations.md#forecasts)."""

_OFF_SAID = {"enum": ["off", "plan", "auto", False]}


class Balance(_Strict):
    """By what the slots are shared among the members; ``docs/placement.md`` explains it.

    ``by``: so that members have even numbers of slots (``count``), or an even load. ``over``: how far a member's load
    may be above its share. ``mode``: ``auto`` moves slots by itself, up to ``moves_per_hour``; ``plan`` only says that
    a plan would help; ``off`` does neither. An operator's plans are carried out in all modes.
    """

    by: Literal["count", "requests", "sessions", "bytes", "cpu"] = "count"
    over: Annotated[Share, Field(ge=0.01)] = 0.2
    mode: Annotated[Literal["off", "plan", "auto"], BeforeValidator(_off), WithJsonSchema(_OFF_SAID)] = "plan"
    moves_per_hour: Annotated[int, Field(ge=1, le=100_000)] = 60


NEWER_KEYS = ("stable_for", "durability_rules", "predictive", "priority", "priority_rules", "sites")
"""Keys that release 0.1.0 does not know."""


class PoolSpec(_Strict):
    """One pool. ``slots`` and :attr:`slot_rule` are fixed for its life; all other keys may be changed at any time."""

    pool: Name
    tenant: Name | None = None
    mode: Literal["load_sharing", "active_standby"] = "load_sharing"
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = DEFAULT_SLOTS
    copies: Annotated[int, Field(ge=2, le=8)] = 3
    session_key: Annotated[tuple[SessionKey, ...], Field(min_length=1, max_length=8)] = (
        SessionKey.model_construct(header="x-session-id"),
        SessionKey.model_construct(cookie="sid"),
    )
    recovery: Literal["keep_current", "prefer_priority", "prefer_site"] = "keep_current"
    stable_for: Seconds = 30.0
    takeover: Literal["fast", "lease"] = "fast"
    durability: Durability = "sync"
    durability_rules: Annotated[tuple[DurabilityRule, ...], Field(max_length=50)] = ()
    replication: Replication = Replication.model_construct()
    concurrency: Literal["ignore", "count", "refuse"] = "count"
    predictive: Predictive = "warn"
    priority: Priority = "normal"
    priority_rules: Annotated[tuple[PriorityRule, ...], Field(max_length=50)] = ()
    members: dict[Name, MemberSpec] = Field(default_factory=dict)
    sites: dict[Name, SiteSpec] = Field(default_factory=dict)
    limits: Limits = Limits.model_construct()
    objectives: Objectives = Objectives.model_construct()
    session_ttl: Annotated[int, Field(ge=1, le=31_536_000)] = 3600
    protocol: Literal["http1", "http2", "as_client", "tcp"] = "http1"
    tcp: Tcp | None = None
    timeouts: Timeouts = Timeouts.model_construct()
    retries: Retries = Retries.model_construct()
    health_checks: HealthChecks = HealthChecks.model_construct()
    outliers: Outliers = Outliers.model_construct()
    liveness: Liveness = Liveness.model_construct()
    checks: Annotated[tuple[CheckSpec, ...], Field(max_length=20)] = ()
    mesh: Mesh | None = None
    front: Front | None = None
    balance: Balance | None = None
    versions: Versions | None = None

    @model_validator(mode="before")
    @classmethod
    def _tcp_defaults(cls, raw: Any) -> Any:  # noqa: ANN401 - pydantic's
        return with_tcp_defaults(raw)

    @model_validator(mode="after")
    def _fits_protocol(self) -> "PoolSpec":
        by_address = any(key.source_address for key in self.session_key)
        if self.protocol != "tcp":
            if self.tcp is not None:
                raise ValueError(f"tcp: only a pool with protocol: tcp has it, and this one has {self.protocol}")
            if by_address:
                raise ValueError("session_key: source_address is for pools with protocol: tcp; name headers or cookies")
            return self
        if len(self.session_key) > 1 or not by_address:
            raise ValueError(
                "session_key: a tcp pool sees neither headers nor cookies, its session key is the client's address; "
                "leave session_key out, or say [{source_address: true}]"
            )
        if self.limits.requests_per_second is not None:
            raise ValueError("limits.requests_per_second: front Envoys see no requests of a tcp pool; leave it out")
        if self.mesh is not None:
            raise ValueError("mesh: a tcp pool is reached through front Envoys; leave mesh out")
        if self.front is not None:
            self.front.refuse_for_tcp()
        if self.slots > MAX_TCP_SLOTS:
            raise ValueError(f"slots: a tcp pool has {MAX_TCP_SLOTS} at the most (got {self.slots})")
        return self

    @model_validator(mode="after")
    def _one_rule_for_each_key(self) -> "PoolSpec":
        seen: dict[str, StoreKeys] = {}
        for store in (store for key in self.session_key for store in key.stores()):
            if seen.setdefault(store.prefix, store) != store:
                raise ValueError(
                    f"session_key: two entries have the prefix {store.prefix!r}, with different suffixes or transforms"
                )
        if sum(bool(key.generated) for key in self.session_key) > 1:
            raise ValueError("session_key: one generated cookie is enough; rails, laravel, aspnet and gorilla share it")
        return self

    @model_validator(mode="after")
    def _distinct_rules(self) -> "PoolSpec":
        prefixes = [rule.prefix for rule in self.durability_rules]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError("durability_rules: every rule needs a prefix of its own")
        prefixes = [rule.prefix for rule in self.priority_rules]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError("priority_rules: every rule needs a prefix of its own")
        return self

    @model_validator(mode="after")
    def _shares_what_it_balances(self) -> "PoolSpec":
        if self.mode == "active_standby" and self.balances_by_load:
            raise ValueError("balance: in mode active_standby one member has all slots; leave balance out")
        return self

    @model_validator(mode="after")
    def _versions_have_cookies(self) -> "PoolSpec":
        if self.versions is None:
            return self
        if self.tcp is not None or self.protocol == "tcp":
            raise ValueError("versions: front Envoys see no cookies of a tcp pool; leave versions out")
        if self.mesh is not None:
            raise ValueError("versions: the proxies of a mesh do not follow versions yet; leave versions or mesh out")
        return self

    @model_validator(mode="after")
    def _distinct_checks(self) -> "PoolSpec":
        names = [check.name for check in self.checks]
        if len(set(names)) < len(names):
            raise ValueError("checks: every check needs a name of its own")
        return self

    @model_validator(mode="after")
    def _priorities_have_a_line(self) -> "PoolSpec":
        if self.recovery == "prefer_priority" and self.mode != "active_standby":
            raise ValueError(
                "recovery: prefer_priority is for mode: active_standby; in load_sharing priorities mean nothing, and a "
                "member that returns gets its share back (leave recovery out)"
            )
        return self

    @model_validator(mode="after")
    def _sites_share_slots(self) -> "PoolSpec":
        if self.recovery == "prefer_site" and not self.sites:
            raise ValueError("recovery: prefer_site needs sites, with their weights")
        if not self.sites:
            return self
        if self.mode == "active_standby":
            raise ValueError(
                "sites: in mode active_standby one member has all slots; leave sites out, and give the members of the "
                "other site a worse priority (a higher number)"
            )
        if self.balances_by_load:
            raise ValueError("sites: they share the slots by number; leave balance out, or say {by: count}")
        if not any(site.weight for site in self.sites.values()):
            raise ValueError("sites: at least one site needs a weight above 0")
        return self

    @functools.cached_property
    def slot_rule(self) -> SlotRule | None:
        """Which part of a stored key is hashed; None: every key is hashed as it is."""
        if all(key.redis_prefixes is None for key in self.session_key):
            return None
        return slot_rule({store for key in self.session_key for store in key.stores()})

    @property
    def front_use(self) -> FrontUse | None:
        """What this pool wants of front Envoys that serve several pools; None if they do not serve it."""
        return FrontUse(self.pool, self.front, self.tcp is not None) if self.front else None

    @property
    def balances_by_load(self) -> bool:
        """Whether slots are shared by load, and not by their number."""
        return self.balance is not None and self.balance.by != "count"

    @property
    def from_memory(self) -> bool:
        """Whether a write may be acknowledged when two members have it in memory, before etcd has it."""
        return self.durability == "replicas"

    def durability_of(self, key: str) -> str:
        """The class of a write to this session that asks for none itself: that of the longest prefix that fits."""
        if not self.durability_rules:
            return self.durability
        fitting = [rule for rule in self.durability_rules if key.startswith(rule.prefix)]
        return max(fitting, key=lambda rule: len(rule.prefix)).durability if fitting else self.durability

    def priority_of(self, key: str) -> Priority:
        """The priority of a call to this session that says none itself."""
        return priority_by_rule(self.priority_rules, key, self.priority) if self.priority_rules else self.priority

    @property
    def concurrent_requests(self) -> int | None:
        """How many requests one front Envoy has under way at one member at the most; None: any number."""
        given = self.limits.concurrent_requests
        return CONCURRENT_LOW if given is None and self.priority == "low" else given

    @functools.cached_property
    def has_critical(self) -> bool:
        """Whether the pool or some of its sessions are critical, so that normal ones are refused before them."""
        return "critical" in (self.priority, *(rule.priority for rule in self.priority_rules))

    def slot_of_key(self, key: str) -> int:
        """The slot of a stored session key, by the session API or by Redis's protocol."""
        rule = self.slot_rule
        return slot_of(key if rule is None else rule.hashed_text(key), self.slots)

    def slot_of_bytes(self, key: bytes) -> int:
        """The slot of a session key as Redis's clients write it: :meth:`slot_of_key` of the same key."""
        if self.slot_rule is None:
            return slot_of_bytes(key, self.slots)
        return self.slot_of_key(key.decode("utf-8", "surrogateescape"))

    def encode(self) -> bytes:
        """The spec as it is stored in etcd: JSON with every default.

        Earlier releases refuse a spec with a key that they do not know, so it has a newer key only if that is used.
        """
        fields = type(self).model_fields
        unused = {
            name for name in NEWER_KEYS if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }
        return json.dumps(
            self.model_dump(mode="json", exclude_none=True, exclude=unused), separators=(",", ":")
        ).encode()


def refuse_contradiction(running: PoolSpec, wanted: PoolSpec) -> None:
    """Raise :class:`SpecError` if ``wanted`` cannot follow ``running`` in a live pool."""
    if running.slots != wanted.slots:
        raise SpecError(
            f"slots: the running pool {running.pool!r} has {running.slots} slots and the new spec says {wanted.slots}; "
            "the number is fixed for the life of a pool (keep it, or make a new pool)"
        )
    if running.slot_rule != wanted.slot_rule:
        raise SpecError(
            "session_key: redis_prefixes, redis_suffixes and transform (presets have them too) decide the slots of "
            f"stored sessions. The running pool {running.pool!r} has {_rule_said(running)}, and the new spec says "
            f"{_rule_said(wanted)}; they are fixed for the life of a pool (keep them, or make a new pool); headers, "
            "cookies and patterns may change"
        )
    if (running.tcp is None) != (wanted.tcp is None):
        raise SpecError(
            f"protocol: the running pool {running.pool!r} has {running.protocol} and the new spec says "
            f"{wanted.protocol}; a pool stays with tcp, or without, for life (keep it, or make a new pool)"
        )


def _rule_said(spec: PoolSpec) -> str:
    """The slot rule in the words of a spec."""
    rule = spec.slot_rule
    if rule is None:
        return "none"
    stores = [
        f"{store.prefix!r}{f' to {list(store.suffixes)}' if store.suffixes else ''}"
        f"{f' in {store.transform}' if store.transform else ''}"
        for store in rule.stores
    ]
    return ", ".join(stores) or "redis_prefixes: []"
