"""What the survivors would carry if a member, a host, a zone or a site went, and how many members that takes. Pure.

When members go, each of their slots goes to the first of its other members that is left: that is what the takeovers do.
The load that decides is CPU. The sessions of a slot are in the memory of its copies already, and the limit of sessions
goes with the slots, so neither changes when members go.
"""

from collections.abc import Callable, Mapping
from math import ceil, inf

import msgspec

from understudy.statesync.pool.records import Member
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import PoolLoad, SlotMeasure
from understudy.xds.planning.proposal import NO_MEASURE

USABLE = 0.8
"""The part of a member's CPUs that may be used. Above that, answers become slow before anything is full."""
_LEVELS: Mapping[str, Callable[[Member], str]] = {
    "host": lambda member: member.node,
    "zone": lambda member: member.zone,
    "site": lambda member: member.site,
}


class Survivor(msgspec.Struct, frozen=True):
    """A member after the loss: its CPU now and then, the CPUs that it may use, and its session calls a second then."""

    member: str
    cpu_now: float
    cpu_then: float
    cpus: float
    calls_then: float

    @property
    def fits(self) -> bool:
        """Whether it stays within what may be used."""
        return self.cpu_then <= USABLE * self.cpus


class Loss(msgspec.Struct, frozen=True):
    """One loss: what goes, which members these are, and what is left.

    ``slots_without``: slots that no survivor has a copy of. Others read them from etcd.
    """

    level: str
    name: str
    members: tuple[str, ...]
    survivors: tuple[Survivor, ...]
    slots_without: int

    @property
    def fits(self) -> bool:
        """Whether the survivors can carry the load."""
        return bool(self.survivors) and all(one.fits for one in self.survivors)

    @property
    def worst(self) -> float:
        """The busiest survivor's CPU, as a part of its CPUs."""
        return max((one.cpu_then / one.cpus for one in self.survivors if one.cpus), default=0.0)


class Capacity(msgspec.Struct, frozen=True):
    """All losses, the busiest first; how many members the pool has and wants.

    ``application``: the CPU of every member is that of its application too, and not of the sidecar alone.
    """

    losses: tuple[Loss, ...]
    members: int
    wanted: int
    application: bool

    @property
    def fits(self) -> bool:
        """Whether the pool can lose any one member."""
        return all(one.fits for one in self.losses if one.level == "member")


class ScaleIn(msgspec.Struct, frozen=True):
    """The member that costs least to empty, of a pool that has more members than it wants.

    ``slots`` are those that it is active for: each is handed over. ``calls`` a second and ``sessions`` are theirs.
    ``copied_bytes``: the content of all slots that it has a copy of, since another member gets each of these copies.
    """

    member: str
    slots: int
    calls: float
    sessions: int
    copied_bytes: int


class NotKnown(Exception):
    """Why the capacity is not known yet."""


def capacity(cluster: ClusterState, load: PoolLoad) -> Capacity:
    """The capacity of a pool. Raises :class:`NotKnown` while members do not report their load."""
    serving = sorted(name for name in cluster.members if cluster.state(name).may_hold_slots)
    silent = [name for name in serving if name not in load.members]
    if silent or not serving or cluster.table is None:
        raise NotKnown(f"the load of {', '.join(silent) or 'the pool'} is not known yet: wait some 15 s")
    losses = [_loss(cluster, load, serving, "member", name, {name}) for name in serving]
    for level, of in _LEVELS.items():
        places = {name: of(cluster.members[name]) for name in serving}
        for place in sorted({*places.values()} - {""}):
            gone = {name for name in serving if places[name] == place}
            if len({*places.values()}) > 1:
                losses.append(_loss(cluster, load, serving, level, place, gone))
    return Capacity(
        losses=tuple(sorted(losses, key=lambda one: (one.fits, -one.worst, one.level, one.name))),
        members=len(serving),
        wanted=_wanted(load, serving),
        application=all(load.members[name].report.app for name in serving),
    )


def too_busy_without(cluster: ClusterState, load: PoolLoad, member: str) -> str:
    """Why the other members cannot carry the slots of one: who is too busy. '' if they can, or it is not known."""
    serving = sorted(name for name in cluster.members if cluster.state(name).may_hold_slots)
    if cluster.table is None or member not in serving or any(name not in load.members for name in serving):
        return ""
    found = _loss(cluster, load, serving, "member", member, {member})
    full = [one for one in found.survivors if one.cpus and one.cpu_then > one.cpus]
    if not full:
        return ""
    worst = max(full, key=lambda one: one.cpu_then / one.cpus)
    return f"{worst.member} would need {worst.cpu_then:.1f} CPUs with them, and has {worst.cpus:g}"


def _loss(cluster: ClusterState, load: PoolLoad, serving: list[str], level: str, name: str, gone: set[str]) -> Loss:
    left = [member for member in serving if member not in gone]
    moved: dict[str, list[SlotMeasure]] = {member: [] for member in left}
    alone: list[SlotMeasure] = []
    for slot, order in enumerate(cluster.table.orders if cluster.table else ()):
        if cluster.serving_owner(slot) not in gone:
            continue
        heir = next((member for member in order if member in moved), None)
        (alone if heir is None else moved[heir]).append(load.slots.get(slot, NO_MEASURE))
    for measure in alone if left else ():
        moved[min(left, key=lambda member: _part_used(load, member, moved[member]))].append(measure)
    survivors = []
    for member in left:
        known, more = load.members[member], moved[member]
        cpu, cpus = known.report.cpu, known.report.cpus
        calls = known.calls + sum(one.calls for one in more)
        survivors.append(Survivor(member, cpu, cpu + sum(one.cpu for one in more), cpus, calls))
    return Loss(level, name, tuple(sorted(gone)), tuple(survivors), len(alone))


def _part_used(load: PoolLoad, member: str, more: list[SlotMeasure]) -> float:
    """The part of a member's CPUs that it uses with these slots too."""
    report = load.members[member].report
    return (report.cpu + sum(one.cpu for one in more)) / report.cpus if report.cpus else inf


def _wanted(load: PoolLoad, serving: list[str]) -> int:
    """The members that carry the load of now when one of them is gone; two at least."""
    reports = [load.members[name].report for name in serving]
    usable = USABLE * min((one.cpus for one in reports), default=0.0)
    total = sum(one.cpu for one in reports)
    return max(2, ceil(total / usable) + 1) if usable else max(2, len(serving))


def cheapest_to_empty(cluster: ClusterState, load: PoolLoad, found: Capacity) -> ScaleIn | None:
    """Which member to remove; None if the pool has no more than it wants, or if the others could not carry its load.

    A member that is alone in its site or zone is kept if another one can go. Then the fewest bytes to copy count, then
    the fewest calls that wait for a handover.
    """
    if found.members <= found.wanted:
        return None
    able = [one.name for one in found.losses if one.level == "member" and one.fits]
    places = [
        (member.site, member.zone) for name, member in cluster.members.items() if cluster.state(name).may_hold_slots
    ]

    def alone(name: str) -> bool:
        member = cluster.members[name]
        of_site = sum(site == member.site for site, _ in places)
        return of_site == 1 or (bool(member.zone) and places.count((member.site, member.zone)) == 1)

    costs = [(alone(name), _emptying(cluster, load, name)) for name in able]
    ranked = sorted(costs, key=lambda one: (one[0], one[1].copied_bytes, one[1].calls, one[1].slots, one[1].member))
    return ranked[0][1] if ranked else None


def _emptying(cluster: ClusterState, load: PoolLoad, name: str) -> ScaleIn:
    orders = cluster.table.orders if cluster.table else ()
    held = [load.slots.get(slot, NO_MEASURE) for slot, order in enumerate(orders) if name in order]
    own = [load.slots.get(slot, NO_MEASURE) for slot in range(len(orders)) if cluster.serving_owner(slot) == name]
    return ScaleIn(
        name, len(own), sum(one.calls for one in own), sum(one.sessions for one in own), sum(one.bytes for one in held)
    )


def advice(found: Capacity, pool: str) -> list[str]:
    """What to do, as commands; empty if any one member may go."""
    if found.fits:
        return []
    more = max(found.wanted - found.members, 0)
    steps = []
    if more:
        steps.append(f"start {more} more members (understudy sidecar ..., or kubectl scale --replicas={found.wanted})")
    steps.append(f"understudy rebalance plan --by cpu --pool {pool}   # if one member has much more than others")
    return steps
