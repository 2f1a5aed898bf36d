"""The parts of a pool spec that have keys of their own, and the types that they share."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from understudy.statesync.pool.separation import Place
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


class StrictModel(BaseModel):
    """A part of a spec: unknown keys are refused, and nothing changes after it is read."""

    # A model's validator is built when it is first used, and a part of PoolSpec needs none of its own. So the defaults
    # here come from model_construct, which uses none.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class MemberSpec(StrictModel):
    """Weight and priority of one member; they override the options of its sidecar."""

    weight: Annotated[int, Field(ge=1, le=1000)] | None = None
    priority: Annotated[int, Field(ge=1, le=1000)] | None = None


class SiteSpec(StrictModel):
    """A site's part of the slots: its ``weight``, of the sum of the weights of all sites. 0: the site stands by.

    ``members``: how many members the site should have, for its grade; without it those that are registered. ``needs``:
    names of what the site cannot serve without. ``understudy site dependency`` says when one of them is down.
    """

    weight: Annotated[int, Field(ge=0, le=1000)]
    members: Annotated[int, Field(ge=1, le=1000)] | None = None
    needs: Annotated[tuple[Name, ...], Field(max_length=20)] = ()

    @model_validator(mode="after")
    def _distinct_needs(self) -> "SiteSpec":
        if len(set(self.needs)) < len(self.needs):
            raise ValueError("needs: name every dependency once")
        return self


class SiteSwitching(StrictModel):
    """When an active/standby pool (one site with a weight above 0) moves from a site that still has members.

    ``gap``: by how much the grade of the site that stands by must be the better one. ``freeze``: how long after a
    switch no other one follows because of grades. In every pool with sites a site that is lost within this time after
    its return rests until the time is over.
    """

    gap: Annotated[int, Field(ge=1, le=100)] = 60
    freeze: Seconds = 300.0


Where = Annotated[str, Field(min_length=1, max_length=253)]
"""A zone, host or site as members name theirs."""


class Prefer(StrictModel):
    """The members that are active while they may have slots. A member is preferred if any of the lists names it.

    The lists name members, or the zones, hosts or sites that members run in.
    """

    members: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    zones: Annotated[tuple[Where, ...], Field(max_length=100)] = ()
    hosts: Annotated[tuple[Where, ...], Field(max_length=100)] = ()
    sites: Annotated[tuple[Where, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _names_somebody(self) -> "Prefer":
        if not (self.members or self.zones or self.hosts or self.sites):
            raise ValueError("name members, zones, hosts or sites, such as {zones: [a]}; or leave prefer out")
        return self

    def why(self, member: str, place: Place) -> str:
        """Which entry names a member that runs at ``place``; '' if none does."""
        if member in self.members:
            return f"member {member}"
        for level, found, wanted in (
            ("zone", place.zone, self.zones),
            ("host", place.host, self.hosts),
            ("site", place.site, self.sites),
        ):
            if found in wanted:
                return f"{level} {found}"
        return ""


class Limits(StrictModel):
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


class Replication(StrictModel):
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


class Rto(StrictModel):
    """How long a client may wait when its session's active changes: the 99th percentile, in seconds."""

    p99: Seconds = 1.0


class Stall(StrictModel):
    """How long a slot may not be writable in a planned move: the 99th percentile, in seconds."""

    p99: Seconds = 0.5


class Propagation(StrictModel):
    """From the time a change is known until the last Envoy has acknowledged it: the 99th percentile, in seconds."""

    p99: Seconds = 1.0


class Protection(StrictModel):
    """How long some slot may have fewer than two current copies after a takeover: the 99th percentile, in seconds."""

    p99: Seconds = 30.0


class Objectives(StrictModel):
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


class Timeouts(StrictModel):
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


class Retries(StrictModel):
    """How often Envoy repeats requests that may be repeated, and how many repeats may run at once per order of members.

    ``hedge_ms``: a request that may be repeated and has no answer after this time is sent to the next member as well,
    and the first answer counts; 0: never. ``hedge``: with ``measured`` Envoy waits at least as long as 99 % of the
    pool's answers took in the last minute (1 s until that is known), with ``fixed`` always ``hedge_ms``.
    """

    attempts: Annotated[int, Field(ge=0, le=10)] = 3
    at_once: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    hedge_ms: Annotated[int, Field(ge=0, le=60_000)] = 300
    hedge: Literal["measured", "fixed"] = "measured"


class HealthChecks(StrictModel):
    """Envoy's own health checks of the members' health ports; ``docs/operations.md`` explains the numbers."""

    enabled: bool = True
    interval_ms: Annotated[int, Field(ge=20, le=60_000)] = 150
    timeout_ms: Annotated[int, Field(ge=20, le=60_000)] = 450
    failures: Annotated[int, Field(ge=1, le=10)] = 1
    successes: Annotated[int, Field(ge=1, le=10)] = 2


class Outliers(StrictModel):
    """When Envoy avoids a member because connections to it fail or break; ``failures`` 0: never."""

    failures: Annotated[int, Field(ge=0, le=1000)] = 0
    base_ms: Annotated[int, Field(ge=100, le=60_000)] = 1000
    longest_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000


class Liveness(StrictModel):
    """When a silent member is suspected.

    ``missed_beats`` is for heartbeats and pulses, each sent every 100 ms; ``unanswered_ms`` for probes where there are
    no pulses. ``application_ms``: how long an application may leave its sidecar's question unanswered, and how long a
    member that answers its pulse may leave its peers waiting. ``site_patience_ms``: how long a member of another site
    that is silent must be silent through etcd too. ``load_cap_ms``: the most that is added to these times for a member
    under CPU load.
    """

    missed_beats: Annotated[int, Field(ge=2, le=100)] = 3
    unanswered_ms: Annotated[int, Field(ge=100, le=60_000)] = 500
    application_ms: Annotated[int, Field(ge=100, le=60_000)] = 2000
    site_patience_ms: Annotated[int, Field(ge=100, le=600_000)] = 600
    load_cap_ms: Annotated[int, Field(ge=0, le=60_000)] = 2000


class Mesh(StrictModel):
    """The Service through which the proxies of an Istio mesh reach the members; see ``docs/istio.md``.

    ``host`` is its full name, such as ``cart-slots.shop.svc.cluster.local``; ``port`` is the Service's own.
    """

    host: Annotated[
        str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$", max_length=253)
    ]
    port: Annotated[int, Field(ge=1, le=65535)] = 7680


class CheckSpec(StrictModel):
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


class DurabilityRule(StrictModel):
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


class Balance(StrictModel):
    """By what the slots are shared among the members; ``docs/placement.md`` explains it.

    ``by``: so that members have even numbers of slots (``count``), or an even load. ``over``: how far a member's load
    may be above its share. ``mode``: ``auto`` moves slots by itself, up to ``moves_per_hour``; ``plan`` only says that
    a plan would help; ``off`` does neither. An operator's plans are carried out in all modes.
    """

    by: Literal["count", "requests", "sessions", "bytes", "cpu"] = "count"
    over: Annotated[Share, Field(ge=0.01)] = 0.2
    mode: Annotated[Literal["off", "plan", "auto"], BeforeValidator(_off), WithJsonSchema(_OFF_SAID)] = "plan"
    moves_per_hour: Annotated[int, Field(ge=1, le=100_000)] = 60
