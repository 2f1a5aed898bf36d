"""What the leader writes: the next slot table, if there is a reason for one, and when the first is due. Pure.

A table is written only if its orders, its lost or leaving members, its offline or resting sites or its last switch of
sites differ from those of the table in force, or if it asks for a move of a slot whose owner record is newer than the
table in force (members ignore an older table). So equal input never makes a new generation. The first table of a pool
waits a moment for members to register: each slot given to the first of them costs a handover later.
:mod:`understudy.xds.placement.solver` distributes the slots.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import msgspec

from understudy.statesync.pool.ownership import DRAIN, REBALANCE, site_cause, switch_cause
from understudy.statesync.pool.rebalance import Approved
from understudy.statesync.pool.records import Lost, MemberState, Table
from understudy.statesync.pool.site_records import PoolInGroup, SiteSwitch
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.names import KIND_HANDOVER
from understudy.xds.membership.cluster_state import ClusterState, candidates, forgettable, lost_entries
from understudy.xds.membership.member_health import MemberBoot
from understudy.xds.placement.solver import Candidate, Move, decide
from understudy.xds.planning.site_group import away_by_group, own_reasons, sites_to_follow, told
from understudy.xds.planning.site_recovery import resting_sites, site_returns
from understudy.xds.planning.site_switch import next_switch, site_grades, with_grades

NO_TABLE = Table()


class TablePlan(msgspec.Struct, frozen=True):
    """A table to write, its moves of slots, and the members that it is the first to name lost.

    ``why`` names the rebalance that asks for moves, if one does. ``switches``: an active/standby pool goes to another
    site with it.
    """

    table: Table
    moves: tuple[Move, ...]
    newly_lost: tuple[str, ...]
    why: str = ""
    switches: bool = False


def next_plan(
    cluster: ClusterState,
    at: float,
    held: frozenset[int] = frozenset(),
    settled: Collection[str] = (),
    *,
    frozen: bool = True,
    lately_back: Collection[str] = (),
) -> TablePlan | None:
    """The next table, or None when the one in force is right.

    Args:
        cluster: the pool.
        at: wall time in seconds, for new entries of lost members.
        held: slots that must keep the active they have for now (see :mod:`understudy.xds.planning.flap_damping`).
        settled: members that may pre-empt (see :mod:`understudy.xds.planning.recovery`).
        frozen: grades of sites may not cause a switch now (see :mod:`understudy.xds.planning.site_switch`).
        lately_back: sites that rest if they are lost now (see :mod:`understudy.xds.planning.site_recovery`).
    """
    previous = cluster.table or NO_TABLE
    entries = lost_entries(cluster, at)
    field = candidates(cluster)
    orders = previous.orders
    moves: tuple[Move, ...] = ()
    duty = _duty_of_sites(cluster, field, settled, at, frozen=frozen, lately_back=lately_back)
    if any(candidate.state.may_hold_slots for candidate in field):
        found = replace(previous, orders=cluster.orders_as_found())
        current = _current_actives(cluster)
        decision = decide(
            cluster.spec,
            field,
            found,
            current=current,
            approved=cluster.approved,
            settled=settled,
            resting=duty.without_slots,
            on_sites=sites_to_follow(cluster.spec, cluster.group, duty.serving(field)),
        )
        orders = _with_held_slots(cluster, decision.orders, found.orders, held)
        moves = tuple(move for move in decision.moves if move.slot not in held)
    asks_again = any(
        orders[slot][:1] != (cluster.serving_owner(slot),) for slot in _served_since_table(cluster, orders)
    )
    offline = tuple(sorted(cluster.offline))
    known = (previous.orders, _boots(previous.lost), previous.leaving, previous.offline, SiteDuty.of(previous))
    if (orders, _boots(entries), cluster.leaving, offline, duty) == known and not asks_again:
        return None
    for member in forgettable(cluster, entries):
        del entries[member]
    generation = previous.generation + 1
    newly_lost = tuple(m for m, e in sorted(entries.items()) if _boots(previous.lost).get(m) != e.boot)
    traceparent, cause = _planned_moves(cluster, previous, orders, generation, duty)
    table = Table(
        generation, orders, entries, traceparent, cause, offline, cluster.leaving, *msgspec.structs.astuple(duty)
    )
    plan = cluster.approved.why if cluster.approved else ""
    why = plan if any(move.reason == plan for move in moves) else ""
    return TablePlan(table, moves, newly_lost, why, _at(duty.switch) != _at(previous.switch))


class SiteDuty(msgspec.Struct, frozen=True):
    """Which sites get no slots, in the terms of the slot table (:class:`Table`)."""

    resting: Mapping[str, int] = {}
    switch: SiteSwitch | None = None
    group: str = ""
    away: Mapping[str, str] = {}
    with_group: Mapping[str, str] = {}
    returned: Mapping[str, float] = {}

    @classmethod
    def of(cls, table: Table) -> "SiteDuty":
        """What a table says."""
        return cls(table.resting, table.switch, table.group, table.away, table.with_group, table.returned)

    @property
    def without_slots(self) -> frozenset[str]:
        """The sites that get no slots although their members can serve."""
        return frozenset(self.resting.keys() | self.with_group.keys())

    def serving(self, field: Collection[Candidate]) -> set[str]:
        """The sites that get slots."""
        return {one.site for one in field if one.state.may_hold_slots} - self.without_slots


def _duty_of_sites(
    cluster: ClusterState,
    field: Collection[Candidate],
    settled: Collection[str],
    at: float,
    *,
    frozen: bool,
    lately_back: Collection[str],
) -> SiteDuty:
    """The sites that get no slots although they may be back, and the last switch of an active/standby pool."""
    spec, previous = cluster.spec, cluster.table or NO_TABLE
    if not spec.sites:
        return SiteDuty()
    able = {candidate.site for candidate in field if candidate.state.may_hold_slots}
    with_group = away_by_group(cluster.group, able - cluster.offline)
    able -= with_group.offline.keys()
    grade = site_grades(cluster)
    ended = {site for site, when in previous.returned.items() if when and cluster.ended_rests.get(site) == when}
    before = resting = resting_sites(
        spec,
        field,
        previous.resting,
        offline=cluster.offline | with_group.offline.keys(),
        settled=settled,
        first=cluster.table is None,
        grade=grade,
        frozen=frozen,
        lately_back=lately_back,
        ended=ended,
    )
    if not frozen:
        resting = with_grades(spec, before, able, grade)
    why = "" if resting == before else ", ".join(f"{site} has grade {grade[site]}" for site in sorted(able))
    with_group = away_by_group(cluster.group, able - cluster.offline - resting.keys())
    left = {site: pool for site, pool in with_group.sites.items() if site not in resting}
    if not why and left != previous.with_group:
        why = told(spec, left)
    switch = next_switch(spec, previous.switch, able, resting.keys() | left.keys(), why, at)
    away = own_reasons(cluster.offline, resting) if spec.group else {}
    served = {cluster.site(order[0]) for order in previous.orders if order}
    returned = site_returns(spec, previous, resting, able=able, offline=cluster.offline, served=served, at=at)
    return SiteDuty(resting, switch, spec.full_group, away, left, returned)


def _at(switch: SiteSwitch | None) -> float:
    return switch.at if switch else 0.0


def _with_held_slots(
    cluster: ClusterState, orders: tuple[tuple[str, ...], ...], found: tuple[tuple[str, ...], ...], held: frozenset[int]
) -> tuple[tuple[str, ...], ...]:
    """``orders``, but with the present order where a change of active is held back."""
    return tuple(
        _held_order(cluster, slot, order, found[slot]) if slot in held and slot < len(found) else order
        for slot, order in enumerate(orders)
    )


def _held_order(cluster: ClusterState, slot: int, order: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    """The order of a slot that must not move from its owner, which serves it well.

    Usually this is the present order. But a table that was decided before a takeover and written after it is newer than
    the owner record and still names the dead member as active. Such an order is not kept: otherwise the slot would be
    handed over to that member as soon as it beats again, before any Envoy sends it requests.
    """
    owner = cluster.serving_owner(slot)
    if owner is None or order[:1] in (found[:1], (owner,)):
        return order
    if found and cluster.state(found[0]) is not MemberState.LOST:
        return found
    return (owner, *(member for member in found if member != owner))


def _served_since_table(cluster: ClusterState, orders: tuple[tuple[str, ...], ...]) -> list[int]:
    """Slots whose living owner took them after the table was written: a new table must ask for their move."""
    return [slot for slot in cluster.newer if slot < len(orders) and cluster.serving_owner(slot) is not None]


def _current_actives(cluster: ClusterState) -> dict[int, str]:
    """The active of each slot by the owner records, without dead members."""
    owners = ((slot, cluster.serving_owner(slot)) for slot in cluster.owners)
    return {slot: owner for slot, owner in owners if owner is not None}


def _boots(entries: Mapping[str, Lost]) -> dict[str, str]:
    return {member: entry.boot for member, entry in entries.items()}


def _planned_moves(
    cluster: ClusterState,
    previous: Table,
    orders: tuple[tuple[str, ...], ...],
    generation: int,
    duty: SiteDuty,
) -> tuple[str, str]:
    """The trace and the cause of the planned moves with this table; the old ones if no move was added."""
    pending = cluster.pending_moves(orders)
    if not pending:
        return "", ""
    before = cluster.pending_moves(previous.orders)
    if previous.traceparent and pending.items() <= before.items():
        return previous.traceparent, previous.cause
    traceparent = trace_seed(cluster.spec.pool, KIND_HANDOVER, str(generation)).traceparent
    return traceparent, _cause(cluster, previous, pending, duty)


def _cause(cluster: ClusterState, previous: Table, pending: Mapping[int, str], duty: SiteDuty) -> str:
    """Why slots are to move: what happens to a site, members will fail or are drained, or shares are uneven."""
    leaving = {cluster.owners[slot].active for slot in pending}
    left = {cluster.site(member) for member in leaving}
    if left <= cluster.offline:
        return site_cause(left, offline=True)
    to = {cluster.site(member) for member in pending.values()}
    back = to & (set(previous.offline) - cluster.offline)
    if back:
        return site_cause(back, offline=False)
    if left <= duty.with_group.keys() or to & (previous.with_group.keys() - duty.with_group.keys()):
        return switch_cause(to, told(cluster.spec, duty.with_group))
    switch = duty.switch
    if switch and switch.why and left.isdisjoint(switch.to):
        return switch_cause(switch.to, switch.why)
    if leaving <= cluster.leaving.keys():
        return "; ".join(sorted({cluster.leaving[member].why for member in leaving}))
    return DRAIN if all(cluster.state(member) is MemberState.DRAINING for member in leaving) else REBALANCE


class DecisionInputs(msgspec.Struct, frozen=True):
    """The inputs that a decision reacts to at once: spec, rebalance, members and their states, deaths, dependencies.

    Changes of owner are not among them. Most of them carry out what the table says. The others are claims of sidecars
    that come shortly before the death is found here; a decision before that would send slots to the dead member.
    """

    spec: PoolSpec
    approved: Approved | None
    candidates: tuple[Candidate, ...]
    dead: frozenset[MemberBoot]
    beating: frozenset[MemberBoot]
    lacking: Mapping[str, frozenset[str]]
    group: Mapping[str, PoolInGroup]


def decision_inputs(cluster: ClusterState) -> DecisionInputs:
    """The inputs in a state of the pool."""
    dead = frozenset((member, death.boot) for member, death in cluster.deaths.items())
    members = tuple(candidates(cluster))
    return DecisionInputs(
        cluster.spec, cluster.approved, members, dead, cluster.beating, cluster.lacking, cluster.group
    )


class FirstTableTimer(msgspec.Struct, frozen=True):
    """When the first table of a pool is due: at a cold start members arrive one by one. Times in ns.

    Attributes:
        longest: wait this long after the first member that may hold slots.
        quiet: or this long after the last change of any member, if none is still starting (INIT).
    """

    longest: int
    quiet: int
    first: int = 0
    changed: int = 0
    seen: tuple[Candidate, ...] = ()

    def observe(self, cluster: ClusterState, now: int) -> "FirstTableTimer":
        """The timer after a look at the pool."""
        seen = tuple(candidates(cluster))
        ready = any(candidate.state.may_hold_slots for candidate in seen)
        return FirstTableTimer(
            longest=self.longest,
            quiet=self.quiet,
            first=(self.first or now) if ready else 0,
            changed=self.changed if seen == self.seen else now,
            seen=seen,
        )

    def due(self) -> int | None:
        """The time at which to write; None while no member may hold slots."""
        if not self.first:
            return None
        latest = self.first + self.longest
        starting = any(candidate.state == MemberState.INIT for candidate in self.seen)
        return latest if starting else min(latest, self.changed + self.quiet)
