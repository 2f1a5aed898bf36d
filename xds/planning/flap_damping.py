"""Flap damping: what the leader remembers of the last half minute, and the changes that it therefore holds back.

No hold delays a takeover from a dead, failing or draining member. There is one exception: a member that fails only to
reach etcd. The holds are:

* New owner: a slot stays at least :data:`HOLD_TIME` with a new owner before the table asks it to move again.
* Taken over: after a takeover from a member that seems well, nothing moves for :data:`HOLD_TIME`. The members that took
  its slots know more about it, and they must not get other slots instead.
* Absent: after a takeover from a member that stays away, nothing moves for :data:`ABSENCE_TIME`. The shares are right
  within a slot or two, and the member may soon be back.
* Unstable: a member that became unfit :data:`MAX_LOSSES` times within :data:`LOSS_WINDOW` and owns nothing gets no slot
  until the oldest of these is that long ago, while there is a stable member.
* Surge: planned moves freeze for :data:`FREEZE_TIME` if more than :data:`SURGE_SHARE` of the slots are to move within
  :data:`SURGE_WINDOW` without a cause. A cause is a change of members, spec, rebalance or the other pools of the group,
  or a switch of sites. The status says why and for how long. After that the moves may be made once: moves that are
  still wanted then are no surge. Moves from other members to preferred ones do not count: the spec is their cause.
* Etcd outage: for :data:`ETCD_GRACE` after this server began to lead, or found etcd again, no slot moves away from a
  member because it cannot reach etcd. Some members find etcd seconds before others.
* Returning site: a site that is in service again gets no slot until all its members know it and no slot is held, for
  :data:`HOLD_TIME` at most. So one table gives its members their shares.

Pure: times are ns of one monotonic clock and come in as arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from understudy.statesync.pool.rebalance import Approved
from understudy.statesync.pool.records import MemberState, Owner
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import ClusterState, candidates
from understudy.xds.placement.preferred import preferred

SECOND = 1_000_000_000
HOLD_TIME = 3 * SECOND
ABSENCE_TIME = 10 * SECOND
ETCD_GRACE = 5 * SECOND
"""After an outage members wait as long before they treat another as cut off
(``understudy.proxy.ownership.etcd_contact.GRACE``)."""
MAX_LOSSES = 3
LOSS_WINDOW = 30 * SECOND
SURGE_SHARE = 0.3
SURGE_WINDOW = 10 * SECOND
FREEZE_TIME = 30 * SECOND

_Key = TypeVar("_Key")


class Hold(msgspec.Struct, frozen=True):
    """A change that is held back: why, as text for people, and until when (ns)."""

    why: str
    until: int


@dataclass(frozen=True, slots=True)
class FlapDamping:
    """What the leader remembers. Start with an empty one; :meth:`observe` and :meth:`with_plan` return the next.

    Attributes:
        fit: for each member, whether it may hold slots.
        losses: when each member became unfit, within :data:`LOSS_WINDOW`.
        spec: the spec at the last look.
        approved: the rebalance in force at the last look.
        group: what the other pools of the group said at the last look.
        began: since when this server leads and reaches etcd; None before its first look as leader.
        explained: when members, spec, rebalance or group last changed, so that moves have a cause.
        owners: the owner records at the last look.
        new_owners: slots that changed their owner just now, and when.
        taken_over: members that slots were taken over from, and when.
        planned: moves that tables asked for within :data:`SURGE_WINDOW`: when and how many.
        frozen: the freeze after a surge, if there is one.
        returning: sites that come back into service, and since when.
        held_sites: those of them that get no slots yet.
    """

    fit: Mapping[str, bool] = field(default_factory=dict)
    losses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spec: PoolSpec | None = None
    approved: Approved | None = None
    group: Mapping[str, PoolInGroup] = field(default_factory=dict)
    began: int | None = None
    explained: int = 0
    owners: Mapping[int, Owner] = field(default_factory=dict)
    new_owners: Mapping[int, int] = field(default_factory=dict)
    taken_over: Mapping[str, int] = field(default_factory=dict)
    planned: tuple[tuple[int, int], ...] = ()
    frozen: Hold | None = None
    returning: Mapping[str, int] = field(default_factory=dict)
    held_sites: frozenset[str] = frozenset()

    def with_cut_off_kept(self, cluster: ClusterState, now: int) -> ClusterState:
        """The state in which cut-off members count as UP, within :data:`ETCD_GRACE` of this server's own beginning.

        A member that an earlier table has already moved away from does not get its slots back.
        """
        if not cluster.cut_off or cluster.table is None or self.began is None or now - self.began >= ETCD_GRACE:
            return cluster
        placed = {member for order in cluster.table.orders for member in order if member in cluster.cut_off}
        return replace(cluster, states={**cluster.states, **dict.fromkeys(placed, MemberState.UP)})

    def etcd_reached_since(self, at: int) -> "FlapDamping":
        """Etcd has answered this server without an outage since ``at`` (ns)."""
        return self if self.began is None else replace(self, began=max(self.began, at))

    def observe(self, cluster: ClusterState, now: int, *, released: bool = False) -> "FlapDamping":
        """Take in the pool as it is at ``now``; ``released``: a member may pre-empt from now on."""
        fit = {member: cluster.state(member).may_hold_slots for member in cluster.members}
        lost = [member for member, was in self.fit.items() if was and not fit.get(member, False)]
        losses = {
            member: (*self.losses.get(member, ()), *((now,) if member in lost else ()))
            for member in {*self.losses, *lost}
        }
        changed = {
            slot: before
            for slot, owner in cluster.owners.items()
            if (before := self.owners.get(slot)) and (before.active, before.epoch) != (owner.active, owner.epoch)
        }
        taken_over = [
            before.active for slot, before in changed.items() if _was_taken_over(before, cluster.owners[slot])
        ]
        thawed = self.frozen is not None and now >= self.frozen.until
        returning = {site: self.returning.get(site, now) for site in _returning(cluster)}
        after = replace(
            self,
            fit=fit,
            losses={m: recent for m, at in losses.items() if (recent := _since(at, now - LOSS_WINDOW))},
            spec=cluster.spec,
            approved=cluster.approved,
            group=cluster.group,
            owners=dict(cluster.owners),
            new_owners=_recent(self.new_owners, now) | dict.fromkeys(changed, now),
            taken_over={
                member: at
                for member, at in {**self.taken_over, **dict.fromkeys(taken_over, now)}.items()
                if now - at < _hold_after_takeover(fit.get(member, False))
            },
            planned=tuple((at, slots) for at, slots in self.planned if now - at < SURGE_WINDOW),
            frozen=None if thawed else self.frozen,
            returning=returning,
        )
        early = [site for site, at in returning.items() if now - at < HOLD_TIME]
        held_sites = frozenset(s for s in early if _still_leaving(cluster, s) or after.held_slots(cluster))
        after = replace(after, held_sites=held_sites)
        released |= after.unstable().keys() != self.unstable().keys()
        now_ordered = (cluster.spec, cluster.approved, cluster.group)
        ordered = now_ordered != (self.spec, self.approved, self.group)
        explained = fit != self.fit or ordered or released or thawed
        return replace(after, explained=now if explained else self.explained)

    def with_members_held(self, cluster: ClusterState) -> ClusterState:
        """The state in which held sites are still offline, and unstable members that own nothing are still starting.

        Not if no stable member may hold slots: then an unstable member is better than none.
        """
        waiting = replace(cluster, offline=cluster.offline | self.held_sites)
        if any(waiting.state(member).may_hold_slots for member in waiting.members):
            cluster = waiting
        owning = {owner.active for owner in cluster.owners.values()}
        unstable = {member for member in self.unstable() if member not in owning}
        stable = any(cluster.state(member).may_hold_slots and member not in unstable for member in cluster.members)
        if not unstable or not stable:
            return cluster
        states = {member: MemberState.INIT if member in unstable else state for member, state in cluster.states.items()}
        return replace(cluster, states=states)

    def unstable(self) -> dict[str, Hold]:
        """Members that became unfit too often of late."""
        return {
            member: Hold(
                f"{member} failed {len(at)} times within {LOSS_WINDOW // SECOND} s", at[-MAX_LOSSES] + LOSS_WINDOW
            )
            for member, at in self.losses.items()
            if len(at) >= MAX_LOSSES
        }

    def held_slots(self, cluster: ClusterState) -> frozenset[int]:
        """The slots that no table may ask to move from a member that serves them well."""
        all_held = self.taken_over or self.frozen is not None
        slots = cluster.owners.keys() if all_held else self.new_owners.keys()
        return frozenset(slot for slot in slots if _well_served(cluster, slot))

    def with_plan(self, cluster: ClusterState, orders: tuple[tuple[str, ...], ...], now: int) -> "FlapDamping":
        """Take in that a table with ``orders`` is to be written. If the result is frozen, it must not be."""
        before = cluster.table.orders if cluster.table else ()
        chosen = preferred(cluster.spec, candidates(cluster))
        moves = sum(
            slot < len(before)
            and order[:1] != before[slot][:1]
            and _well_served(cluster, slot)
            and not (chosen.intersection(order[:1]) and chosen.isdisjoint(before[slot][:1]))
            for slot, order in enumerate(orders)
        )
        if not moves or now - self.explained < SURGE_WINDOW:
            return self
        planned = (*self.planned, (now, moves))
        total = sum(slots for _, slots in planned)
        if total <= SURGE_SHARE * len(orders):
            return replace(self, planned=planned)
        why = f"{total} of {len(orders)} slots were to move within {SURGE_WINDOW // SECOND} s without a cause"
        return replace(self, frozen=Hold(why, now + FREEZE_TIME))

    def with_cause(self, now: int) -> "FlapDamping":
        """The moves that follow have a cause that is not in the pool's state, such as a switch of sites."""
        return replace(self, explained=now)

    def holds(self) -> list[Hold]:
        """What holds planned moves back now; slots that only have a new owner are not named."""
        frozen = [self.frozen] if self.frozen is not None else []
        return [*frozen, *self.unstable().values()]

    def seconds_until_release(self, now: int) -> float | None:
        """Seconds until the first hold ends; None if there is none."""
        ends = [hold.until for hold in self.holds()]
        ends += [self.returning[site] + HOLD_TIME for site in self.held_sites]
        ends += [self.began + ETCD_GRACE] if self.began is not None and now - self.began < ETCD_GRACE else []
        ends += [at + HOLD_TIME for at in self.new_owners.values()]
        ends += [at + _hold_after_takeover(self.fit.get(member, False)) for member, at in self.taken_over.items()]
        return max(min(ends) - now, 0) / SECOND if ends else None


def _hold_after_takeover(fit: bool) -> int:
    """How long nothing moves after a takeover from a member."""
    return HOLD_TIME if fit else ABSENCE_TIME


def _well_served(cluster: ClusterState, slot: int) -> bool:
    owner = cluster.serving_owner(slot)
    return owner is not None and cluster.state(owner).may_hold_slots


def _returning(cluster: ClusterState) -> frozenset[str]:
    """Sites that are offline in the table and that operators want in service again."""
    return frozenset(cluster.table.offline if cluster.table else ()) - cluster.offline


def _still_leaving(cluster: ClusterState, site: str) -> bool:
    """Whether a member of the site still reports that it drains."""
    return any(
        cluster.site(member) == site and cluster.state(member) is MemberState.DRAINING for member in cluster.members
    )


def _was_taken_over(before: Owner, now: Owner) -> bool:
    """Whether a slot went from one member to another without a handover."""
    return now.active not in (before.active, before.to)


def _recent(changes: Mapping[_Key, int], now: int) -> dict[_Key, int]:
    return {key: at for key, at in changes.items() if now - at < HOLD_TIME}


def _since(times: tuple[int, ...], begin: int) -> tuple[int, ...]:
    return tuple(at for at in times if at >= begin)
