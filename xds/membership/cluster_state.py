"""The pool as a control server sees it at one moment, and what follows from that. Pure.

Joins what stands in etcd (spec, records, owners, table) with what this server itself knows of life and
death, and derives from it what Envoy is told (:func:`pool_view`), who may get slots (:func:`candidates`) and
which members the table must name lost (:func:`lost_entries`). How slots are shared out is left to
:mod:`understudy.xds.placement.solver`, what Envoy's resources look like to :mod:`understudy.xds.envoy.resources`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.xds.envoy.pool_view import Endpoint, PoolView
from understudy.xds.membership.failure_detector import Identity
from understudy.xds.placement.solver import Candidate


@dataclass(frozen=True, slots=True)
class Death:
    """A boot of a member that this server found dead, why, and when (ns): its last sign of life, the finding.

    ``closed`` is when its connection ended while it was in good standing, 0 if that is not how it was noticed.
    ``doubt`` is for how many ns after the last sign it may have lived, if it was not. ``site`` is the
    member's, if known.
    """

    boot: str
    cause: str
    last_sign: int
    found: int
    closed: int = 0
    doubt: int = 0
    site: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """Everything at one moment.

    ``members`` are the registered ones and those whose record vanished but who still own slots and are not
    proven dead. ``states`` are as told by open streams, else by records; LOST where this server found so.
    ``beating`` are the boots whose beats arrive here now. ``registered`` maps the members that have a record
    to its boot. ``newer`` are the slots whose stable owner record was written after the table: takeovers that the
    table does not know of, or handovers that were undone. Members act only on a table newer than the owner record.
    ``offline`` are the sites that an operator wants out of service. ``cut_off`` are the members that are DOWN for no
    other reason than that they cannot reach etcd. ``late``: most members that beat here are too busy to answer soon.
    """

    spec: PoolSpec
    members: Mapping[str, Member]
    states: Mapping[str, MemberState]
    registered: Mapping[str, str]
    owners: Mapping[int, Owner]
    table: Table | None
    deaths: Mapping[str, Death]
    beating: frozenset[Identity]
    newer: frozenset[int] = frozenset()
    offline: frozenset[str] = frozenset()
    cut_off: frozenset[str] = frozenset()
    late: bool = False

    def state(self, member: str) -> MemberState:
        """The member's state as it counts for slots: whose site is offline is DRAINING, whether it has heard or not."""
        state = self.told(member)
        away = self.offline and state.may_hold_slots and self.site(member) in self.offline
        return MemberState.DRAINING if away else state

    def told(self, member: str) -> MemberState:
        """The state that a member told; LOST if the table says so of this boot and it is not heard beating here."""
        record = self.members.get(member)
        if record is None:
            return MemberState.LOST
        lost = self.table.lost.get(member) if self.table else None
        if lost is not None and lost.boot == record.boot and (member, record.boot) not in self.beating:
            return MemberState.LOST
        return self.states.get(member, record.state)

    def site(self, member: str) -> str:
        """The member's site; '' if it has none, or nothing is known of it."""
        record = self.members.get(member)
        return record.site if record else ""

    def serving_owner(self, slot: int) -> str | None:
        """The slot's owner, if the very process that the owner record names is not known to be gone."""
        owner = self.owners.get(slot)
        if owner is None:
            return None
        record = self.members.get(owner.active)
        if record is None or record.boot != owner.boot or self.told(owner.active) is MemberState.LOST:
            return None
        return owner.active

    def owned_by(self, member: str, boot: str) -> frozenset[int]:
        """The slots whose owner record names this boot of the member."""
        return frozenset(s for s, o in self.owners.items() if o.active == member and o.boot == boot)

    def orders_as_found(self) -> tuple[tuple[str, ...], ...]:
        """The table's orders, with what has happened since: where the owner record is newer, its owner comes first."""
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


def orders_for_envoy(world: World) -> tuple[tuple[str, ...], ...]:
    """For each slot the members in the order in which Envoy tries them; empty while there is no table.

    The owner comes first, since it serves until somebody else holds the record; then the table's order. A
    dead owner is left to the table, so that the claims that follow a death change nothing for Envoy any
    more.
    """
    orders = world.table.orders if world.table else ()
    effective = []
    for slot, order in enumerate(orders):
        owner = world.serving_owner(slot)
        if owner is not None and (not order or order[0] != owner):
            order = (owner, *(member for member in order if member != owner))  # noqa: PLW2901 - corrected
        effective.append(order)
    return tuple(effective)


def endpoints(world: World) -> dict[str, Endpoint]:
    """The members' endpoints and whether Envoy should send to them.

    Healthy is who is READY or UP and has a part in some slot, and who is DRAINING and still owns slots. If
    nobody is, everybody who is not lost stays in (ATTENTION): a member that fails its checks serves better
    than none. A member whose address Envoy cannot use is left out. That a site is offline makes no difference here: its
    members soon have neither slots nor a place in the table, and servers' clocks need not agree on when that ends.
    """
    placed = {member for order in (world.table.orders if world.table else ()) for member in order}
    owning = {owner.active for owner in world.owners.values()}
    healthy = {name for name in world.members if _serves(world.told(name), name in placed, name in owning)}
    if not healthy:
        healthy = {member for member in world.members if world.told(member) is not MemberState.LOST}
    found = {}
    for name, member in world.members.items():
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


def pool_view(world: World) -> PoolView:
    """What Envoy is told."""
    return PoolView(world.spec, endpoints(world), orders_for_envoy(world), late=world.late)


def candidates(world: World) -> list[Candidate]:
    """The members as the decision function takes them."""
    return [
        Candidate(name, member.site, member.weight, member.priority, world.state(name))
        for name, member in sorted(world.members.items())
    ]


def lost_entries(world: World, at: float) -> dict[str, Lost]:
    """Whom the next table must name lost.

    New deaths are added. An entry stays until the member beats again, or is registered with another boot
    while no owner record names the dead one any more; so claims that are still to come find their witness
    and their trace.

    Args:
        world: the pool.
        at: wall time in seconds, for new entries.
    """
    entries = {
        member: lost
        for member, lost in (world.table.lost if world.table else {}).items()
        if _still_lost(world, member, lost)
    }
    for member, death in sorted(world.deaths.items()):
        known = entries.get(member)
        if known is None or known.boot != death.boot:
            record = world.members.get(member)
            life = record.life if record and record.boot == death.boot else 0
            ids = takeover_seed(world.spec.pool, member, death.boot, life)
            entries[member] = Lost(death.boot, death.cause, ids.traceparent, at)
    return entries


def _still_lost(world: World, member: str, lost: Lost) -> bool:
    if (member, lost.boot) in world.beating:
        return False
    boot = world.registered.get(member)
    return boot is None or boot == lost.boot or bool(world.owned_by(member, lost.boot))


def forgettable(world: World, lost: Mapping[str, Lost]) -> frozenset[str]:
    """Entries that no longer matter: gone from etcd and owner of nothing. Left out when a table is written anyway."""
    return frozenset(
        member
        for member, entry in lost.items()
        if member not in world.registered and not world.owned_by(member, entry.boot)
    )
