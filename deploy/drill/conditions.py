"""The conditions of a drill: when it may start, when it is over, and which objectives it missed. Pure.

A drill starts only if every slot has a standby that is alive and in sync, no slot is moving and no member is out of
service. ``fault_injectors`` injects faults, ``drill`` controls the sequence.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.member_views import order_of, slots_of
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.site_copies import copies_by_slot
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.tracing import names


class DrillKind(StrEnum):
    """The kinds of drills."""

    KILL = "kill"
    APP = "app"
    SIDECAR = "sidecar"
    FREEZE = "freeze"
    DRAIN = "drain"
    ROLLING = "rolling"
    ETCD_LEADER = "etcd-leader"
    CONTROL = "control"
    WITNESS = "witness"
    SITE = "site"
    ALL_SITES = "all-sites"
    LINK = "link"
    LINK_WITNESS = "link-witness"
    HOME_MOVE = "home-move"
    HOME_LOSS = "home-loss"
    SITE_OFFLINE = "site-offline"
    SITE_TAKE_OVER = "site-take-over"

    @property
    def of_a_home(self) -> bool:
        """Whether it is about the home of a pool on two distant sites."""
        return self in (DrillKind.HOME_MOVE, DrillKind.HOME_LOSS)

    @property
    def of_a_member(self) -> bool:
        """Whether the target is one member."""
        return self in (DrillKind.KILL, DrillKind.APP, DrillKind.SIDECAR, DrillKind.FREEZE, DrillKind.DRAIN)

    @property
    def of_a_part(self) -> bool:
        """Whether the target is one process of a member."""
        return self in (DrillKind.APP, DrillKind.SIDECAR)

    @property
    def of_a_leader(self) -> bool:
        """Whether the target is the leader of the control servers or of etcd. Then no slot has to change its active."""
        return self in (DrillKind.CONTROL, DrillKind.ETCD_LEADER)

    @property
    def of_a_site(self) -> bool:
        """Whether the target is a site with all its members."""
        return self in (DrillKind.SITE, DrillKind.SITE_OFFLINE, DrillKind.SITE_TAKE_OVER)

    @property
    def kills_a_site(self) -> bool:
        """Whether all members of a site are killed at once."""
        return self in (DrillKind.SITE, DrillKind.SITE_TAKE_OVER)

    @property
    def leaves_some_in_place(self) -> bool:
        """Whether sessions that it does not hit stay where they are. Otherwise needless moves look like others."""
        moves_all = (DrillKind.ROLLING, DrillKind.ALL_SITES, DrillKind.SITE_TAKE_OVER)
        return self not in moves_all and not self.of_a_home

    @property
    def of_a_link(self) -> bool:
        """Whether the link between two sites is cut."""
        return self in (DrillKind.LINK, DrillKind.LINK_WITNESS)

    @property
    def of_the_witness(self) -> bool:
        """Whether the member of etcd on no site is kept away."""
        return self in (DrillKind.WITNESS, DrillKind.LINK_WITNESS)

    @property
    def kills_members(self) -> bool:
        """Whether sidecars of members are killed, which a supervisor starts again at once."""
        return self in (DrillKind.KILL, DrillKind.SIDECAR, DrillKind.SITE, DrillKind.ALL_SITES)

    @property
    def kills_etcd(self) -> bool:
        """Whether members of etcd are killed or cut off, and must answer again at the end."""
        others = (DrillKind.ETCD_LEADER, DrillKind.SITE, DrillKind.ALL_SITES, DrillKind.SITE_TAKE_OVER)
        return self.of_a_link or self.of_the_witness or self in others

    @property
    def keeps_slots(self) -> bool:
        """Whether all members live on, so that each takeover is needless."""
        return self.of_a_link or self.of_the_witness

    @property
    def stops_service(self) -> bool:
        """Whether the pool cannot serve while the fault lasts, so that failed requests and times are not judged."""
        return self in names.DRILLS_THAT_STOP_SERVICE

    @property
    def of_the_pool(self) -> bool:
        """Whether the outcome is that of the whole pool, and gets a trace of its own."""
        return self in (DrillKind.WITNESS, DrillKind.LINK_WITNESS, DrillKind.ALL_SITES)


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool before a drill. ``sync`` is the output of ``status --sync``, ``holds`` why slots are held back."""

    state: PoolState
    sync: Mapping[str, Any]
    holds: Sequence[str] = ()
    etcd: Sequence[EndpointStatus] = ()
    now: float = 0.0


def refusals(facts: PoolSnapshot, kind: DrillKind) -> list[str]:
    """The reasons why the drill must not start; empty if it may."""
    state = facts.state
    reasons = [*_absent(state, facts.now), *_unprotected(state)]
    moving = not_converged(state, [])
    if moving:
        reasons.append(f"a failover or handover is under way: {moving}")
    reasons += [f"slots are held back: {why}" for why in facts.holds]
    rows = facts.sync["members"]
    reasons += [f"{row['member']} is not in sync: {row['reason']}" for row in rows if not row["in_sync"]]
    if state.leader is None:
        reasons.append("there is no leading control server")
    if kind is DrillKind.CONTROL and len(state.controls) < 2:
        reasons.append("only one control server is registered: start a second one ('understudy up --controls 2')")
    if kind is DrillKind.ETCD_LEADER or kind.of_the_witness:
        sound = [status for status in facts.etcd if not status.errors]
        if len(sound) < 3:
            reasons.append(
                f"{len(sound)} healthy etcd member(s) answer at the known endpoints, but etcd needs 3 to survive the "
                "loss of one ('understudy up --etcds 3', or give all of them with --etcd)"
            )
    return reasons


def site_refusals(state: PoolState, site: str) -> list[str]:
    """The reasons why the members of a site must not be killed, beside those of :func:`refusals`."""
    able = {at.record.site for at in state.members.values() if at.record.state.may_hold_slots}
    if not able - {site}:
        return [f"no other site than {site} has members: start some with another --site"]
    copies, there = copies_by_slot(state), members_of_site(state, site)
    alone = [slot for slot, at in state.owners.items() if at.record.active in there and not copies[slot] - {site}]
    if not alone:
        return []
    return [f"{len(alone)} slots have no current copy outside site {site} yet: see 'understudy site status'"]


def all_sites(state: PoolState) -> str:
    """The names of all sites, with commas between them. Raises ``NegativeAnswer`` if members have no site."""
    return ",".join(_sites(state))


def site_target(state: PoolState, wanted: str, number: int) -> str:
    """The wanted site, or each site in turn. ``number`` counts drills from 0.

    Raises:
        NegativeAnswer: the site has no member, or members have no site.
    """
    sites = _sites(state)
    if wanted and wanted not in sites:
        raise NegativeAnswer(
            f"pool {state.keys.pool} has no member on site {wanted!r}; its sites are {', '.join(sites)}"
        )
    return wanted or sites[number % len(sites)]


def _sites(state: PoolState) -> list[str]:
    sites = sorted({at.record.site for at in state.members.values()} - {""})
    if not sites:
        raise NegativeAnswer(f"the members of pool {state.keys.pool} have no site: start them with --site")
    return sites


def members_of_site(state: PoolState, site: str) -> list[str]:
    """The members on a site."""
    return sorted(name for name, at in state.members.items() if at.record.site == site)


def _absent(state: PoolState, now: float) -> list[str]:
    """The members that are not in service."""
    reasons = [
        f"{name} is {at.record.state}{f': {at.record.reason}' if at.record.reason else ''}"
        for name, at in sorted(state.members.items())
        if at.record.state is not MemberState.UP
    ]
    reasons += [f"{name} is drained" for name, at in sorted(state.intents.items()) if at.record.holds(now)]
    reasons += [f"site {site} is offline" for site in sorted(state.offline(now))]
    lost = state.table.record.lost if state.table else {}
    reasons += [
        f"{name} is lost: {lost[name].cause}"
        for name in sorted(lost)
        if name not in state.members or state.members[name].record.boot == lost[name].boot
    ]
    return reasons


def _unprotected(state: PoolState) -> list[str]:
    """The slots without a living standby. A drill would stop their service."""
    up = {name for name, at in state.members.items() if at.record.state is MemberState.UP}
    bare = [slot for slot in range(slots_of(state)) if len(up.intersection(order_of(state, slot))) < 2]
    if not bare:
        return []
    return [f"{len(bare)} slots have no living standby: start another member; see 'understudy table'"]


def slots_by_member(state: PoolState) -> dict[str, int]:
    """The number of slots that each member is active for."""
    return dict(Counter(at.record.active for at in state.owners.values()))


def not_recovered(state: PoolState, before: Mapping[str, int], boots: Mapping[str, str]) -> str:
    """Why the pool has not recovered from the drill; empty when it has.

    ``before`` is :func:`slots_by_member` from before the drill. ``boots`` are the boot ids of members that were
    restarted; they must be gone.
    """
    for name in before:
        at = state.members.get(name)
        if at is None or at.record.boot == boots.get(name):
            return f"{name} is not back"
        if at.record.state is not MemberState.UP:
            return f"{name} is {at.record.state}"
    moving = not_converged(state, [])
    if moving:
        return moving
    spec = state.spec.record if state.spec else None
    resting = state.table.record.resting if state.table else {}
    rests = any(time.time() < state.rests_until(site) for site in resting)
    if resting and spec and (rests or spec.recovery != "prefer_site"):
        return ""  # by the pool's recovery, or since the site was lost twice, the site that stood in goes on
    # A share may be one slot off, before and now. What was more than a share before need not come back.
    now = slots_by_member(state)
    short = [name for name, count in before.items() if now.get(name, 0) < min(count, _share(state, name)) - 2]
    return f"{', '.join(short)} without a full share of slots" if short else ""


def _share(state: PoolState, name: str) -> float:
    """The slots that a member has if all members of its site have as many, and its site those of its weight."""
    places = [at.record.site for at in state.members.values()]
    spec, site = state.spec.record if state.spec else None, state.members[name].record.site
    weights = {one: spec.sites[one].weight for one in {*places} & {*spec.sites}} if spec else {}
    if not sum(weights.values()):
        return slots_of(state) / len(places)
    return slots_of(state) * weights.get(site, 0) / sum(weights.values()) / places.count(site)


def without_successor(before: PoolState, now: PoolState) -> str:
    """Why the killed leader of the control servers has no successor yet; empty when it has.

    The records of the killed one stay until its lease expires, so it still looks like the leader.
    """
    old, new = before.leader, now.leader
    if old is None or (new is not None and new.revision > old.revision):
        return ""
    return f"{old.record} has no successor as leader yet: its lease has not expired"


@dataclass(frozen=True, slots=True)
class ClientView:
    """What clients saw of one drill. None: not measured. Times in ms.

    ``gap`` is the time without an answer of affected sessions, minus their normal pace. ``wait`` is the longest request
    of each session. Both are p50, p99 and max. ``took_ms`` is the duration of the slowest failover, from its trace.
    ``second_writers``: acknowledged writes of an owner that had been replaced before they began. ``judge_waits``:
    whether the waits count where there is no gap.
    """

    requests: int
    failed: int
    gap: tuple[float, float, float] | None = None
    wait: tuple[float, float, float] | None = None
    touched: int | None = None
    lost_writes: int | None = None
    needless_moves: int | None = None
    took_ms: float | None = None
    failures: tuple[str, ...] = field(default=())
    second_writers: int | None = None
    judge_waits: bool = True

    @property
    def worst_ms(self) -> float | None:
        """The value for the objective: the p99 of the gaps, else of the waits, else the duration from the trace."""
        measured = self.gap or (self.wait if self.judge_waits else None)
        return measured[1] if measured else self.took_ms


@dataclass(frozen=True, slots=True)
class HomeFigures:
    """What a drill of the home measured. Times in seconds.

    ``lag``: how late the mirror was before. ``without_home``: for how long no side was the home, at each change.
    Of a loss: ``estimated`` writes would be lost at most, as ``home status`` said just before it; ``counted`` were in
    the tail of the old home.
    """

    lag: float
    without_home: tuple[float, ...]
    estimated: int | None = None
    counted: int | None = None


@dataclass(frozen=True, slots=True)
class TakeOverFigures:
    """What a drill of ``site take-over`` measured. Times in seconds.

    ``without_etcd``: from the loss until etcd was started again. ``by_hand``: the part of it for which the command ran.
    ``accepted``: writes that began after the loss and were acknowledged before etcd was stopped. What the estimate
    said: so many slots go on ``from_memory``, are read ``from_etcd``, or are ``lossy``, and members had seen so many
    revisions that this etcd was ``missing``.
    """

    without_etcd: float
    by_hand: float
    accepted: int
    from_memory: int
    from_etcd: int
    lossy: int
    missing: int


def durability_of(state: PoolState) -> str:
    """The class of the writes of a drill's clients: that of the pool."""
    return state.spec.record.durability if state.spec is not None else "sync"


def missed(seen: ClientView, wanted: Objectives, durability: str = "sync", *, judge_service: bool = True) -> list[str]:
    """The missed objectives, as text; ``durability`` is the class of the writes that clients made.

    ``judge_service``: whether failed requests and times are judged.
    """
    found = []
    share = seen.failed / seen.requests if seen.requests else 0.0
    if judge_service and share > wanted.failed_requests:
        found.append(f"failed_requests: {share:.3%} of {seen.requests} (objective {wanted.failed_requests:.3%})")
    if judge_service and seen.worst_ms is not None and seen.worst_ms > wanted.rto.p99 * 1000:
        found.append(f"rto p99: {seen.worst_ms:.0f} ms (objective {wanted.rto.p99 * 1000:.0f} ms)")
    rpo, allowed = {
        "replicas": ("rpo_replica_writes", wanted.rpo_replica_writes),
        "async": ("rpo_async_writes", wanted.rpo_async_writes),
    }.get(durability, ("rpo_sync_writes", wanted.rpo_sync_writes))
    if allowed is not None and (seen.lost_writes or 0) > allowed:
        found.append(f"{rpo}: {seen.lost_writes} lost (objective {allowed})")
    if (seen.needless_moves or 0) > wanted.needless_moves:
        found.append(f"needless_moves: {seen.needless_moves} (objective {wanted.needless_moves})")
    if seen.second_writers:
        found.append(f"two writers: {seen.second_writers} writes of a replaced owner were acknowledged")
    return found
