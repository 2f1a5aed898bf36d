"""What the leader writes: the next slot table, if there is a reason for one, and when the first is due. Pure.

A table is written only when its orders, its set of lost members or the sites that are offline differ from those of the
one in force, or when it asks for a move of a slot whose owner record is newer than the one in force (members ignore an
older table), so that equal input never makes a generation. The first table of a pool waits a moment for members to
register, since every slot given to an early bird costs a handover later. How slots are shared out is left to
:mod:`understudy.xds.placement.solver`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from understudy.statesync.pool.ownership import DRAIN, REBALANCE, site_cause
from understudy.statesync.pool.records import Lost, MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.names import KIND_HANDOVER
from understudy.xds.membership.cluster_state import World, candidates, forgettable, lost_entries
from understudy.xds.membership.failure_detector import Identity
from understudy.xds.placement.solver import Candidate, Move, decide

NO_TABLE = Table()


@dataclass(frozen=True, slots=True)
class Plan:
    """A table to write, how it moves slots, and which members it is the first to name lost."""

    table: Table
    moves: tuple[Move, ...]
    newly_lost: tuple[str, ...]


def next_plan(world: World, at: float, held: frozenset[int] = frozenset()) -> Plan | None:
    """The next table, or None when the one in force is right.

    Args:
        world: the pool.
        at: wall time in seconds, for new entries of lost members.
        held: slots that must keep the active they have for now (see :mod:`understudy.xds.planning.flap_damping`).
    """
    previous = world.table or NO_TABLE
    entries = lost_entries(world, at)
    field = candidates(world)
    orders = previous.orders
    moves: tuple[Move, ...] = ()
    if any(candidate.state.may_hold_slots for candidate in field):
        found = replace(previous, orders=world.orders_as_found())
        decision = decide(world.spec, field, found, current=_current(world))
        orders = _holding(world, decision.orders, found.orders, held)
        moves = tuple(move for move in decision.moves if move.slot not in held)
    unheard = any(orders[slot][:1] != (world.serving_owner(slot),) for slot in _served_newer(world, orders))
    offline = tuple(sorted(world.offline))
    known = (previous.orders, _boots(previous.lost), previous.offline)
    if (orders, _boots(entries), offline) == known and not unheard:
        return None
    for member in forgettable(world, entries):
        del entries[member]
    generation = previous.generation + 1
    newly = tuple(m for m, e in sorted(entries.items()) if _boots(previous.lost).get(m) != e.boot)
    traceparent, cause = _planned(world, previous, orders, generation)
    table = Table(generation, orders, entries, traceparent, cause, offline)
    return Plan(table, moves, newly)


def _holding(
    world: World, orders: tuple[tuple[str, ...], ...], found: tuple[tuple[str, ...], ...], held: frozenset[int]
) -> tuple[tuple[str, ...], ...]:
    """``orders``, but with the order that was found where a change of active is held back."""
    return tuple(
        _held(world, slot, order, found[slot]) if slot in held and slot < len(found) else order
        for slot, order in enumerate(orders)
    )


def _held(world: World, slot: int, order: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    """The order of a slot that nothing may ask to move from its owner, who serves it well.

    That is the one that was found, as a rule. But a table that was decided on before a takeover, and written after it,
    is newer than the owner record and still names the dead as active. Who is lost has no move to wait for: held on to,
    such an order had the slot handed over to it in the moment it was heard again, when no Envoy sent it anything yet.
    """
    owner = world.serving_owner(slot)
    if owner is None or order[:1] in (found[:1], (owner,)):
        return order
    if found and world.state(found[0]) is not MemberState.LOST:
        return found
    return (owner, *(member for member in found if member != owner))


def _served_newer(world: World, orders: tuple[tuple[str, ...], ...]) -> list[int]:
    """Slots whose living owner took them after the table was written: a move of them must be asked for anew."""
    return [slot for slot in world.newer if slot < len(orders) and world.serving_owner(slot) is not None]


def _current(world: World) -> dict[int, str]:
    """Who is active by the owner records, which are the truth; the dead are no reason to keep a slot anywhere."""
    owners = ((slot, world.serving_owner(slot)) for slot in world.owners)
    return {slot: owner for slot, owner in owners if owner is not None}


def _boots(entries: Mapping[str, Lost]) -> dict[str, str]:
    return {member: entry.boot for member, entry in entries.items()}


def _planned(world: World, previous: Table, orders: tuple[tuple[str, ...], ...], generation: int) -> tuple[str, str]:
    """The trace and the cause of the planned moves under way with this table; the old ones while nothing was added."""
    pending = world.pending_moves(orders)
    if not pending:
        return "", ""
    before = world.pending_moves(previous.orders)
    if previous.traceparent and pending.items() <= before.items():
        return previous.traceparent, previous.cause
    traceparent = trace_seed(world.spec.pool, KIND_HANDOVER, str(generation)).traceparent
    return traceparent, _cause(world, previous, pending)


def _cause(world: World, previous: Table, pending: Mapping[int, str]) -> str:
    """Why slots are to move: their members' sites go, a site is back, their members are drained, or for the balance."""
    leaving = {world.owners[slot].active for slot in pending}
    left = {world.site(member) for member in leaving}
    if left <= world.offline:
        return site_cause(left, offline=True)
    back = {world.site(member) for member in pending.values()} & (set(previous.offline) - world.offline)
    if back:
        return site_cause(back, offline=False)
    return DRAIN if all(world.state(member) is MemberState.DRAINING for member in leaving) else REBALANCE


@dataclass(frozen=True, slots=True)
class Causes:
    """What a decision answers at once: the spec, who is there in which state, and who is dead.

    Changes of owner are not among them. Most carry out what the table says; the others, claims that a sidecar made by
    itself, come with a death that is about to be found, and weighing them before it is would send slots to the dead.
    """

    spec: PoolSpec
    field: tuple[Candidate, ...]
    dead: frozenset[Identity]
    beating: frozenset[Identity]


def causes_in(world: World) -> Causes:
    """The causes for a decision that a world holds."""
    dead = frozenset((member, death.boot) for member, death in world.deaths.items())
    return Causes(world.spec, tuple(candidates(world)), dead, world.beating)


@dataclass(frozen=True, slots=True)
class FirstTable:
    """When the first table of a pool is due: members arrive one by one at a cold start. Times in ns.

    ``most``: how long after the first member that may hold slots. ``quiet``: or so long after the last
    change of any member, if none is still on its way (INIT).
    """

    most: int
    quiet: int
    first: int = 0
    changed: int = 0
    seen: tuple[Candidate, ...] = ()

    def look(self, world: World, now: int) -> "FirstTable":
        """What is known after a look at the pool."""
        seen = tuple(candidates(world))
        ready = any(candidate.state.may_hold_slots for candidate in seen)
        return FirstTable(
            most=self.most,
            quiet=self.quiet,
            first=(self.first or now) if ready else 0,
            changed=self.changed if seen == self.seen else now,
            seen=seen,
        )

    def due(self) -> int | None:
        """The time at which to write; None while no member could hold slots."""
        if not self.first:
            return None
        latest = self.first + self.most
        starting = any(candidate.state == "INIT" for candidate in self.seen)
        return latest if starting else min(latest, self.changed + self.quiet)
