"""The pool spec: the keys that an operator may set, their bounds and their defaults.

:mod:`understudy.statesync.pool.spec_reader` reads a spec and explains what is wrong with it.
"""

import functools
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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
from understudy.statesync.pool.spec_parts import (
    Balance,
    CheckSpec,
    Durability,
    DurabilityRule,
    HealthChecks,
    Limits,
    Liveness,
    MemberSpec,
    Mesh,
    Name,
    Objectives,
    Outliers,
    Predictive,
    Prefer,
    Replication,
    Retries,
    Seconds,
    SiteSpec,
    SiteSwitching,
    StrictModel,
    Timeouts,
)
from understudy.statesync.pool.spec_tcp import MAX_TCP_SLOTS, Tcp, with_tcp_defaults
from understudy.statesync.pool.spec_versions import Versions


class SpecError(ValueError):
    """A pool spec that cannot be used; the text has one line per fault."""


NEWER_KEYS = (
    "stable_for",
    "durability_rules",
    "predictive",
    "priority",
    "priority_rules",
    "sites",
    "site_switch",
    "prefer",
    "group",
)
"""Keys that release 0.1.0 does not know."""


class PoolSpec(StrictModel):
    """One pool. ``slots`` and :attr:`slot_rule` are fixed for its life; all other keys may be changed at any time."""

    pool: Name
    tenant: Name | None = None
    group: Name | None = None
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
    site_switch: SiteSwitching = SiteSwitching.model_construct()
    prefer: Prefer | None = None
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
        if not self.sites and self.site_switch != SiteSwitching.model_construct():
            raise ValueError("site_switch: it is about sites with weights; add sites, or leave it out")
        if not self.sites and self.group:
            raise ValueError("group: the pools of a group go to another site together; add sites, or leave group out")
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

    @model_validator(mode="after")
    def _prefers_without_contradiction(self) -> "PoolSpec":
        if self.prefer is None:
            return self
        if self.mode == "active_standby" and self.recovery != "prefer_priority":
            raise ValueError(
                "prefer: with recovery: keep_current the active stays active; say recovery: prefer_priority, so that a "
                "preferred member becomes active again, or leave prefer out"
            )
        if self.sites:
            raise ValueError(
                "prefer: the weights in sites say already where slots are; leave prefer out, or write "
                "prefer: {sites: [...]} in place of sites"
            )
        if self.balances_by_load:
            raise ValueError("prefer: a pool that balances by load uses all members; leave prefer or balance out")
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
    def full_group(self) -> str:
        """The group of pools, with the tenant: those of different tenants are never in one. '' if there is none."""
        return f"{self.tenant or '-'}/{self.group}" if self.group else ""

    @property
    def main_site(self) -> str:
        """The only site with a weight above 0, so that the pool is active/standby; '' if there is none, or several."""
        weighted = [site for site, one in self.sites.items() if one.weight]
        return weighted[0] if len(weighted) == 1 else ""

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
