"""The pool as a control server sees it at one moment, and what follows from that. Pure.

Joins the content of etcd (spec, records, owners, table) with what this server knows about which members are alive.
Derives from it what Envoy gets (:func:`pool_view`), which members may get slots (:func:`candidates`) and which members
the table must name lost (:func:`lost_entries`). :mod:`understudy.xds.placement.solver` distributes the slots, and
:mod:`understudy.xds.envoy.resources` makes Envoy's resources.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.rebalance import Approved
from understudy.statesync.pool.records import Leaving, Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, VersionsView
from understudy.xds.membership.member_health import Death, MemberBoot
from understudy.xds.placement.solver import Candidate


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The pool at one moment.

    Attributes:
        members: the registered members, and those whose record vanished but that still own slots and are not proven
            dead.
        states: as the open streams say, else as the records say; LOST where this server found so.
        registered: the boot of each member that has a record.
        beating: the boots whose beats arrive here now.
        newer: the slots whose stable owner record was written after the table: takeovers that the table does not know
            of, or handovers that were undone. Members act only on a table that is newer than the owner record.
        offline: the sites that an operator wants out of service.
        ended_rests: the rests that operators have ended: each site's time of return
            (:attr:`~understudy.statesync.pool.records.Table.returned`).
        cut_off: the members that are DOWN or ATTENTION only because they cannot reach etcd.
        leaving: the members that are to own nothing because they will fail soon (``predictive: move``).
        late: whether most members that beat here are too busy to answer soon.
        answer_ms: nearly all answers came within this time, as far as Envoys report here.
        approved: who should be active for which slot by the rebalance in force, if there is one.
        lacking: the names of what is down, by the site that needs it.
        away: the pool has a mirror on a distant site, and is not at home in this etcd: nobody here serves it.
        group: what the other pools of the pool's group say of their sites.
    """

    spec: PoolSpec
    members: Mapping[str, Member]
    states: Mapping[str, MemberState]
    registered: Mapping[str, str]
    owners: Mapping[int, Owner]
    table: Table | None
    deaths: Mapping[str, Death]
    beating: frozenset[MemberBoot]
    newer: frozenset[int] = frozenset()
    offline: frozenset[str] = frozenset()
    cut_off: frozenset[str] = frozenset()
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    late: bool = False
    answer_ms: int = 0
    approved: Approved | None = None
    lacking: Mapping[str, frozenset[str]] = field(default_factory=dict)
    away: bool = False
    group: Mapping[str, PoolInGroup] = field(default_factory=dict)
    ended_rests: Mapping[str, float] = field(default_factory=dict)

    def state(self, member: str) -> MemberState:
        """The member's state as it counts for slots.

        On an offline site, and if it will fail soon, it is DRAINING, even before it knows.
        """
        state = self.reported_state(member)
        away = member in self.leaving or (self.offline and self.site(member) in self.offline)
        return MemberState.DRAINING if away and state.may_hold_slots else state

    def reported_state(self, member: str) -> MemberState:
        """The state that a member reported; LOST if the table says so of this boot and its beats do not arrive here."""
        record = self.members.get(member)
        if record is None:
            return MemberState.LOST
        lost = self.table.lost.get(member) if self.table else None
        if lost is not None and lost.boot == record.boot and (member, record.boot) not in self.beating:
            return MemberState.LOST
        return self.states.get(member, record.state)

    def site(self, member: str) -> str:
        """The member's site; '' if it has none, or the member is not known."""
        record = self.members.get(member)
        return record.site if record else ""

    def lacks_needs(self, member: str) -> bool:
        """Whether something is down that the member's site needs by the spec."""
        wanted = self.spec.sites.get(self.site(member)) if self.lacking else None
        return wanted is not None and not self.lacking.get(self.site(member), frozenset()).isdisjoint(wanted.needs)

    def serving_owner(self, slot: int) -> str | None:
        """The slot's owner, unless the process that the owner record names is known to be gone."""
        owner = self.owners.get(slot)
        if owner is None:
            return None
        record = self.members.get(owner.active)
        if record is None or record.boot != owner.boot or self.reported_state(owner.active) is MemberState.LOST:
            return None
        return owner.active

    def owned_by(self, member: str, boot: str) -> frozenset[int]:
        """The slots whose owner record names this boot of the member."""
        return frozenset(s for s, o in self.owners.items() if o.active == member and o.boot == boot)

    def orders_as_found(self) -> tuple[tuple[str, ...], ...]:
        """The table's orders; where the owner record is newer than the table, its owner comes first."""
        orders = list(self.table.orders if self.table else ())
        for slot in self.newer:
            owner = self.serving_owner(slot)
            if slot < len(orders) and owner is not None and orders[slot][:1] != (owner,):
                orders[slot] = (owner, *(member for member in orders[slot] if member != owner))
        return tuple(orders)

    def pending_moves(self, orders: tuple[tuple[str, ...], ...]) -> dict[int, str]:
        """Slots whose living owner is not the active that ``orders`` names, and who that is."""
        moves = {}
        for slot, order in enumerate(orders):
            owner = self.serving_owner(slot)
            if owner is not None and order and order[0] != owner:
                moves[slot] = order[0]
        return moves


def orders_for_envoy(cluster: ClusterState) -> tuple[tuple[str, ...], ...]:
    """For each slot the members in the order in which Envoy tries them; empty while there is no table.

    The owner comes first, since it serves until another member holds the record. Then follows the table's order. A dead
    owner keeps the place that the table gives it, so the claims that follow a death change nothing for Envoy.
    """
    orders = cluster.table.orders if cluster.table else ()
    effective = []
    for slot, order in enumerate(orders):
        owner = cluster.serving_owner(slot)
        if owner is not None and (not order or order[0] != owner):
            order = (owner, *(member for member in order if member != owner))  # noqa: PLW2901 - corrected
        effective.append(order)
    return tuple(effective)


def endpoints(cluster: ClusterState) -> dict[str, Endpoint]:
    """The members' endpoints and whether Envoy should send to them.

    Healthy is a member that is READY or UP and has a place in some slot's order, or that is DRAINING and still owns
    slots. If there is none, every member that is not lost counts as healthy: a member that fails its checks is better
    than none. A member whose address Envoy cannot use is left out. An offline site makes no difference here: its
    members soon have neither slots nor a place in the table, and the clocks of control servers may differ on its end.
    """
    placed = {member for order in (cluster.table.orders if cluster.table else ()) for member in order}
    owning = {owner.active for owner in cluster.owners.values()}
    healthy = {
        name for name in cluster.members if _serves(cluster.reported_state(name), name in placed, name in owning)
    }
    if not healthy:
        healthy = {member for member in cluster.members if cluster.reported_state(member) is not MemberState.LOST}
    found = {}
    for name, member in cluster.members.items():
        try:
            host, port = split_address(member.app)
            check = split_address(member.health) if member.health else None
            found[name] = Endpoint(host, port, healthy=name in healthy, check=check)
        except ValueError:
            continue
    return found


def _serves(state: MemberState, placed: bool, owning: bool) -> bool:
    if state in (MemberState.DRAINING, MemberState.ATTENTION):
        return owning
    return state.may_hold_slots and (placed or owning)


def pool_view(cluster: ClusterState) -> RoutingView:
    """What Envoy gets."""
    members = endpoints(cluster)
    return RoutingView(
        cluster.spec,
        members,
        orders_for_envoy(cluster),
        late=cluster.late,
        answer_ms=cluster.answer_ms,
        versions=_versions(cluster, members) if cluster.spec.versions else None,
        sites={name: cluster.members[name].site for name in members} if cluster.spec.sites else {},
    )


def _versions(cluster: ClusterState, members: Mapping[str, Endpoint]) -> VersionsView:
    """Which version of the application each member runs, and how many members can serve each."""
    of = {name: cluster.members[name].app_version for name in members}
    serving = Counter(of[name] for name, member in members.items() if member.healthy)
    return VersionsView(of, {version: min(count, 2) for version, count in sorted(serving.items())})


def candidates(cluster: ClusterState) -> list[Candidate]:
    """The members as the solver takes them."""
    return [
        Candidate(
            name,
            member.site,
            member.weight,
            member.priority,
            cluster.state(name),
            zone=member.zone,
            host=member.node,
        )
        for name, member in sorted(cluster.members.items())
    ]


def lost_entries(cluster: ClusterState, at: float) -> dict[str, Lost]:
    """The members that the next table must name lost.

    New deaths are added. An entry stays until the member beats again, or is registered with another boot and no owner
    record names the dead boot any more. Until then claims find in it their proof and their trace.

    Args:
        cluster: the pool.
        at: wall time in seconds, for new entries.
    """
    entries = {
        member: lost
        for member, lost in (cluster.table.lost if cluster.table else {}).items()
        if _still_lost(cluster, member, lost)
    }
    for member, death in sorted(cluster.deaths.items()):
        known = entries.get(member)
        if known is None or known.boot != death.boot:
            record = cluster.members.get(member)
            life = record.life if record and record.boot == death.boot else 0
            ids = takeover_seed(cluster.spec.pool, member, death.boot, life)
            entries[member] = Lost(death.boot, death.cause, ids.traceparent, at)
    return entries


def _still_lost(cluster: ClusterState, member: str, lost: Lost) -> bool:
    if (member, lost.boot) in cluster.beating:
        return False
    boot = cluster.registered.get(member)
    return boot is None or boot == lost.boot or bool(cluster.owned_by(member, lost.boot))


def forgettable(cluster: ClusterState, lost: Mapping[str, Lost]) -> frozenset[str]:
    """Entries of members without a record and without slots. The next table that is written leaves them out."""
    return frozenset(
        member
        for member, entry in lost.items()
        if member not in cluster.registered and not cluster.owned_by(member, entry.boot)
    )
