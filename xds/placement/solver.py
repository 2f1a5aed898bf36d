"""The solver: which member is active, standby and backup for each slot.

Pure and deterministic: the same spec, candidates and previous table give the same next table on every control server,
whatever the order of the candidates. It has five properties: the fewest changes of active that the quotas allow;
balance; even load after a failure (the standbys of any member are spread over all others that are far enough from it);
copies in different failure domains (:mod:`understudy.xds.placement.domains`); determinism. ``active_standby`` is the
same function with other weights. The caller decides who is alive, and the sidecars decide when to act on a table.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from understudy.statesync.pool.rebalance import Approved
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.by_plan import ByPlan
from understudy.xds.placement.by_site import actives_on, member_targets, site_weights
from understudy.xds.placement.diff import Move, MoveInputs, Share, explain
from understudy.xds.placement.domains import NOWHERE, Clear, FailureDomains, Role, Sites
from understudy.xds.placement.preferred import active_weights, preferred, priority_in_line
from understudy.xds.placement.quotas import Quota, choose_actives, quota
from understudy.xds.placement.spread import EligibleMembers, Row, column_bounds, spread

__all__ = ["Candidate", "Decision", "Move", "decide", "weight_of"]

Orders = tuple[tuple[str, ...], ...]


class Candidate(msgspec.Struct, frozen=True):
    """A member as the leader sees it: its reported state, or LOST, or the state that an operator wants."""

    member: str
    site: str
    weight: int
    priority: int
    state: MemberState
    zone: str = ""
    host: str = ""


class Decision(msgspec.Struct, frozen=True):
    """The next table's orders, one per slot, and how they differ from the previous ones."""

    orders: Orders
    moves: tuple[Move, ...]


def decide(
    spec: PoolSpec,
    candidates: Sequence[Candidate],
    previous: Table,
    *,
    current: Mapping[int, str] | None = None,
    approved: Approved | None = None,
    settled: Collection[str] = (),
    resting: Collection[str] = (),
    on_sites: Sequence[str] = (),
) -> Decision:
    """The next slot table.

    Members that are READY or UP share the slots by weight, within one slot. A slot keeps its active unless that member
    may not hold slots any more, or has more than its quota, or others have less than theirs. It then goes to its
    standby if the quotas permit, else to a backup, else to a member that has too few. If no member may hold slots, all
    orders stay as they are, without unknown members: the last endpoint is never removed.

    Args:
        spec: the pool; weights and priorities in ``spec.members`` override the candidates' own.
        candidates: all known members, each name once.
        previous: the table in force; without orders for a new pool.
        current: who is active by the owner records. It counts more than ``previous`` where that member may hold
            slots.
        approved: the actives by the plan in force. Where they may hold slots, they count more than all else. Members
            that the plan does not know get their even share of the rest, and others keep what they have.
        settled: the members that may take the active's place if their priority is better and the pool prefers that.
        resting: sites that are back but get no slot yet (see :mod:`understudy.xds.planning.site_recovery`).
        on_sites: the site of each slot's active, if another pool decides it (see
            :mod:`understudy.xds.planning.site_group`).
    """
    before = tuple(previous.orders[slot] if slot < previous.slots else () for slot in range(spec.slots))
    known = sorted(candidates, key=lambda candidate: candidate.member)
    field = [candidate for candidate in known if candidate.state.may_hold_slots]
    if not field:
        names = {candidate.member for candidate in known}
        orders = tuple(tuple(member for member in order if member in names) for order in before)
        return Decision(orders, explain(MoveInputs(known, before, orders)))
    orders = _Assignment(spec, field, before, current or {}, approved, settled, resting).orders(on_sites)
    shares = _shares(spec, field, resting) if spec.mode == "load_sharing" else {}
    actives, plan = (approved.actives, approved.why) if approved else ((), "")
    inputs = MoveInputs(known, before, orders, current or {}, shares, actives, plan, preferred(spec, field))
    return Decision(orders, explain(inputs))


def _shares(spec: PoolSpec, field: Sequence[Candidate], resting: Collection[str]) -> dict[str, Share]:
    own_weights = [weight_of(spec, candidate) for candidate in field]
    shared = zip(field, active_weights(spec, field, own_weights), strict=True)
    weights = {candidate.member: weight for candidate, weight in shared}
    if spec.sites:
        sites = [candidate.site for candidate in field]
        own = list(weights.values())
        targets = member_targets(spec.slots, site_weights(spec, field, own, resting), sites, own, ())
        return {member: Share(target, target + 1) for member, target in zip(weights, targets, strict=True)}
    total = sum(weights.values())
    return {
        member: Share((2 * spec.slots * weight + total) // (2 * total), quota(spec.slots, weight, total).most)
        for member, weight in weights.items()
    }


def weight_of(spec: PoolSpec, candidate: Candidate) -> int:
    """The weight of a member: that of the spec, else its own."""
    override = spec.members.get(candidate.member)
    return candidate.weight if override is None or override.weight is None else override.weight


def priority_of(spec: PoolSpec, candidate: Candidate) -> int:
    """The candidate's place in the line: its priority, where the spec counts more than its own option.

    Members that the spec prefers come before all others.
    """
    override = spec.members.get(candidate.member)
    own = candidate.priority if override is None or override.priority is None else override.priority
    return priority_in_line(spec, candidate, own)


class _Assignment:
    """One decision under way, with members as numbers in the order of their names."""

    def __init__(
        self,
        spec: PoolSpec,
        field: Sequence[Candidate],
        before: Orders,
        current: Mapping[int, str],
        approved: Approved | None = None,
        settled: Collection[str] = (),
        resting: Collection[str] = (),
    ) -> None:
        self.names = [candidate.member for candidate in field]
        self.slots = spec.slots
        self.copies = min(spec.copies, len(field))
        number = {member: position for position, member in enumerate(self.names)}
        self.before = [tuple(number.get(member, -1) for member in order) for order in before]
        self.present = [
            number.get(current.get(slot, ""), order[0] if order else -1) for slot, order in enumerate(self.before)
        ]
        self.owned = {slot for slot, member in current.items() if member in number}
        self.holders = [self._holders(slot) for slot in range(self.slots)]
        self.weights = [weight_of(spec, candidate) for candidate in field]
        self.active_weights = active_weights(spec, field, self.weights)
        self.by_plan: ByPlan | None = None
        if approved is not None and spec.mode == "load_sharing" and not spec.sites:
            self.by_plan = ByPlan(approved, number, self.weights)
            self.present = self.by_plan.actives(self.present)
        self.domains = FailureDomains(field, self.weights)
        self.spread_sites = spec.replication.spread == "site"
        self.local_standby = bool(spec.sites) and self.copies > 2
        self.site_weights = site_weights(spec, field, self.weights, resting) if spec.sites else {}
        self.preempting = frozenset(number[member] for member in settled if member in number)
        self.prefers_priority = spec.recovery == "prefer_priority"
        self.rank: list[int] | None = None
        if spec.mode == "active_standby":
            self.rank = self._ranks([priority_of(spec, candidate) for candidate in field])
        self._eligible: dict[tuple[Sites, frozenset[int]], EligibleMembers] = {}

    def orders(self, on_sites: Sequence[str] = ()) -> Orders:
        """Fill the roles one after the other."""
        asked = [order[0] if order else -1 for order in self.before]
        if on_sites:
            sites = self.domains.sites
            actives = actives_on(on_sites, sites, self.active_weights, self.present, self.holders, asked)
        else:
            actives = self._actives(asked)
        if self.active_weights != self.weights:
            actives = self._where_sessions_are(actives)
        orders = [[active] for active in actives]
        if self.copies > 1:
            self._add_standbys(orders)
        for role in range(self.copies - 1, 1, -1):
            self._add_backups(orders, role)
        return tuple(tuple(self.names[member] for member in (*order[:2], *reversed(order[2:]))) for order in orders)

    def _actives(self, asked: Sequence[int]) -> list[int]:
        weights, quotas = self._shares()
        return choose_actives(
            weights,
            self.present,
            [[member for member in self.holders[slot] if member != self.present[slot]] for slot in range(self.slots)],
            [member >= 0 and member != self.present[slot] for slot, member in enumerate(asked)],
            quotas,
        )

    def _where_sessions_are(self, actives: Sequence[int]) -> list[int]:
        """``actives``, but a slot that no living member owns goes to one that has its sessions, preferred or not.

        Once that member owns the slot, it goes to a preferred one by handover.
        """
        found = list(actives)
        for slot, holders in enumerate(self.holders):
            asked = bool(self.before[slot]) and self.before[slot][0] >= 0  # the table asks that member to claim it
            if holders and slot not in self.owned and (asked or found[slot] not in holders):
                found[slot] = holders[0]
        return found

    def _shares(self) -> tuple[Sequence[int], list[Quota] | None]:
        """The members' weights, and their quotas if these do not follow from the weights."""
        if self.by_plan is not None:
            return self.by_plan.weights, self.by_plan.quotas(self.slots)
        if self.site_weights:
            targets = member_targets(self.slots, self.site_weights, self.domains.sites, self.weights, self.present)
            return targets, [Quota(target, target) for target in targets]
        if self.rank is None:
            return self.active_weights, None
        weights = self._eligible_members(range(len(self.names))).weights
        return [weights.get(member, 0) for member in range(len(self.names))], None

    def _holders(self, slot: int) -> tuple[int, ...]:
        """The members that may hold slots and have this slot's sessions, in the order of the previous table."""
        return tuple(dict.fromkeys(member for member in (*self.before[slot], self.present[slot]) if member >= 0))

    def _ranks(self, priorities: list[int]) -> list[int]:
        """For active_standby: the rank of each member.

        First is the member that is active for most slots or, if no active is left, standby for most: it has the
        sessions. Then priority counts, then the distance from the first, and last the name. If the pool prefers
        priority, the member of the best priority is first when it may pre-empt, and while its moves are under way.
        """
        members = range(len(self.names))
        active, standby = [0] * len(self.names), [0] * len(self.names)
        for slot, order in enumerate(self.before):
            if self.present[slot] >= 0:
                active[self.present[slot]] += 1
            if len(order) > 1 and order[1] >= 0:
                standby[order[1]] += 1
        first = min(members, key=lambda m: (-active[m], -standby[m] if not any(active) else 0, priorities[m], m))
        moving_to = {order[0] for order in self.before if order}
        best = min(members, key=lambda m: (priorities[m], m not in moving_to, m not in self.preempting, m))
        if self.prefers_priority and priorities[best] < priorities[first] and best in moving_to | self.preempting:
            first = best
        ranks = [0] * len(self.names)
        near = [self.domains.closeness(member, first) for member in members]
        for rank, member in enumerate(sorted(members, key=lambda m: (m != first, priorities[m], near[m], m))):
            ranks[member] = rank
        return ranks

    def _eligible_members(self, members: Sequence[int] | range) -> EligibleMembers:
        """The weights of ``members`` in a role that only they may have.

        In active_standby all weight is on the first in line.
        """
        if self.rank is not None:
            return EligibleMembers({min(members, key=self.rank.__getitem__): 1})
        return EligibleMembers({member: self.weights[member] for member in members})

    def _add_standbys(self, orders: list[list[int]]) -> None:
        counts = [0] * len(self.names)
        for (active,) in orders:
            counts[active] += 1
        rows = self._rows(orders, 1)
        actives = [orders[row.slots[0]][0] for row in rows]
        total = sum(self.weights)

        def strain(row: int, member: int, count: int) -> int:
            left = total - self.weights[actives[row]]
            limits = quota(self.slots, self.weights[member], left)
            after = counts[member] + count
            return max(0, after - limits.most, limits.fewest - after)

        equal = self.rank is None and len(set(self.active_weights)) == 1 and not any(map(_restricted, rows))
        share = quota(self.slots, 1, len(self.names)) if equal else None

        bounds = column_bounds(rows, len(self.names), (share.fewest, share.most) if share else (0, self.slots))
        uneven = self.by_plan is not None or self.active_weights != self.weights  # members have other numbers of slots
        strained = self.rank is None and not uneven
        for slot, member in spread(rows, bounds, strain if strained else None).items():
            orders[slot].append(member)

    def _add_backups(self, orders: list[list[int]], role: int) -> None:
        """Add the backup at place ``role``; the last is added first, since it must be as far away as possible."""
        rows = self._rows(orders, role)
        bounds = column_bounds(rows, len(self.names), (0, self.slots))
        for slot, member in spread(rows, bounds).items():
            orders[slot].append(member)

    def _rows(self, orders: list[list[int]], role: int) -> list[Row]:
        """The slots of each active in one row, or in several if not all of them may go to the same members.

        So a member's copies in each role are spread over all other members that may have it.
        """
        groups: dict[tuple[int, EligibleMembers, frozenset[int], frozenset[int]], list[int]] = {}
        barred: dict[int, frozenset[int]] = {}
        for slot, order in enumerate(orders):
            eligible, clear = self._eligible_for(order, role)
            barred[slot] = clear.others
            mates = clear.others.difference(order)
            groups.setdefault((order[0], eligible, clear.zones, mates), []).append(slot)
        rows = []
        for (_, eligible, zones, _), slots in groups.items():
            row = Row(eligible, slots, [barred[slot] for slot in slots], [-1] * len(slots), zones)
            row.present = [self._present(row, place, role, orders[slot]) for place, slot in enumerate(slots)]
            rows.append(row)
        return rows

    def _present(self, row: Row, place: int, role: int, order: Sequence[int]) -> int:
        """The member that should have the role: its holder, else another with the sessions, else -1."""
        slot = row.slots[place]
        before = self.before[slot]
        wanted = (before[role], *self.holders[slot]) if role < len(before) else self.holders[slot]
        free = (member for member in wanted if row.admits(member) and member not in row.barred[place])
        return next((member for member in free if member not in order), -1)

    def _eligible_for(self, order: Sequence[int], role: int) -> tuple[EligibleMembers, Clear]:
        """The members that may have a slot's next role, and those of them that must not because of where they are."""
        last = role == self.copies - 1 and role > 1
        sites = self._sites_to_avoid(order, role, last=last)
        if self.rank is None:
            name: Role = "standby" if role == 1 else ("last" if last else "between")
            clear = self.domains.clear(order, name, only_copy=self.copies == 2, sites=sites)
            return self._eligible_members_of(sites, frozenset()), clear
        taken = frozenset(order)
        if last:
            found = self.domains.clear_in_line(order, sites)
            taken = found.zones | found.others
        return self._eligible_members_of(sites, taken), Clear(frozenset(), frozenset(order))

    def _sites_to_avoid(self, order: Sequence[int], role: int, *, last: bool) -> Sites:
        """The sites on which a slot's next copy must not be."""
        if self.spread_sites and (used := self.domains.sites_used(order, self.copies)):
            return used
        if last:
            return self.domains.sites_to_avoid(order)
        return self.domains.other_sites(order) if role == 1 and self.local_standby else NOWHERE

    def _eligible_members_of(self, sites: Sites, taken: frozenset[int]) -> EligibleMembers:
        """The members that are neither on ``sites`` nor ``taken``."""
        if (sites, taken) not in self._eligible:
            allowed = [member for member in self.domains.away_from(sites) if member not in taken]
            self._eligible[sites, taken] = self._eligible_members(allowed)
        return self._eligible[sites, taken]


def _restricted(row: Row) -> bool:
    """Whether more members than the holders of other copies are kept from a row of standbys."""
    return bool(row.excluded) or any(len(barred) > 1 for barred in row.barred)
