"""A rebalance that would help, from the pool and its load as a control server knows them. Pure.

:mod:`understudy.xds.placement.rebalance` chooses the moves. The solver then makes the whole table that follows from
them, with its rules for standbys and failure domains. So what the plan will cost is counted in that table.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from understudy.statesync.pool.rebalance import Approved, SlotMove
from understudy.statesync.pool.spec_parts import Balance
from understudy.xds.membership.cluster_state import ClusterState, candidates
from understudy.xds.membership.load_book import PoolLoad, SlotMeasure
from understudy.xds.placement.rebalance import Rebalance, rebalance
from understudy.xds.placement.solver import decide, weight_of

Measure = Literal["count", "requests", "sessions", "bytes", "cpu"]
NO_MEASURE = SlotMeasure()
WORTH: Mapping[Measure, float] = {"count": 0, "requests": 1, "sessions": 10, "bytes": 100_000, "cpu": 0.02}
"""The load of a member, on average, below which a pool is too idle to be balanced by itself."""


class NoProposal(Exception):
    """Why there can be no plan now."""


class MemberShare(msgspec.Struct, frozen=True):
    """The load of a member before and after a plan, its share of the whole, and the most that the bound allows."""

    member: str
    before: float
    after: float
    share: float


class Proposal(msgspec.Struct, frozen=True):
    """A plan with what it brings and costs.

    ``generation`` is that of the table. ``worst_before`` and ``worst_after`` are the largest load of a member, in
    shares: 1.0 is even. ``hot``: slots that no move can help, with their load and active. ``above``: members that stay
    above the bound. ``least``: no plan has fewer moves. ``sessions`` and ``bytes`` are those of the slots that move,
    ``copies`` how many copies of slots members get that they do not have, and ``copied_bytes`` the bytes in them.
    """

    by: Measure
    over: float
    generation: int
    moves: tuple[SlotMove, ...]
    members: tuple[MemberShare, ...]
    worst_before: float
    worst_after: float
    hot: tuple[tuple[int, float, str], ...]
    above: tuple[str, ...]
    least: int
    sessions: int
    bytes: int
    copies: int
    copied_bytes: int
    to_standby: int


def propose(cluster: ClusterState, load: PoolLoad, balance: Balance) -> Proposal:
    """The plan that brings every member within the bound. Raises :class:`NoProposal` with what stands against one."""
    table = cluster.table
    if table is None:
        raise NoProposal("the pool has no slot table yet")
    field = [one for one in candidates(cluster) if one.state.may_hold_slots]
    names = [one.member for one in field]
    number = {name: place for place, name in enumerate(names)}
    _refuse_unsettled(cluster, number, load, balance.by)
    loads = [measured(load.slots.get(slot, NO_MEASURE), balance.by) for slot in range(cluster.spec.slots)]
    orders = [[number[name] for name in order if name in number] for order in table.orders]
    found = rebalance(loads, orders, [weight_of(cluster.spec, one) for one in field], balance.over)
    moves = tuple(SlotMove(step.slot, names[step.source], names[step.target]) for step in found.steps)
    return _proposal(cluster, load, balance, found, names, moves, loads)


def measured(one: SlotMeasure, by: Measure) -> float:
    """The load of a slot by a measure."""
    match by:
        case "requests":
            return one.calls
        case "sessions":
            return float(one.sessions)
        case "bytes":
            return float(one.bytes)
        case "cpu":
            return one.cpu
        case "count":
            return 1.0


def _refuse_unsettled(cluster: ClusterState, number: Mapping[str, int], load: PoolLoad, by: Measure) -> None:
    """Raise :class:`NoProposal` while slots move, or while the load of some is not known."""
    orders = cluster.table.orders if cluster.table else ()
    moving = [slot for slot, order in enumerate(orders) if not order or cluster.serving_owner(slot) != order[0]]
    moving += [slot for slot, order in enumerate(orders) if order and order[0] not in number and slot not in moving]
    if moving:
        raise NoProposal(
            f"{len(moving)} slots are not with the member that the table names: wait until they have moved "
            "('understudy status')"
        )
    if by == "count":
        return
    silent = sorted(set(number) - set(load.members))
    if silent:
        raise NoProposal(
            f"the load of {', '.join(silent)} is not known here yet: a member reports it 15 s after its start, "
            "and members of earlier releases never do"
        )
    unknown = [slot for slot in range(len(orders)) if slot not in load.slots]
    if unknown:
        raise NoProposal(f"the load of {len(unknown)} slots is not known here yet: wait some 15 s")


def _proposal(
    cluster: ClusterState,
    load: PoolLoad,
    balance: Balance,
    found: Rebalance,
    names: list[str],
    moves: tuple[SlotMove, ...],
    loads: list[float],
) -> Proposal:
    table = cluster.table
    before = table.orders if table else ()
    after = orders_after(cluster, moves)
    new = {slot: len(set(order) - set(before[slot])) for slot, order in enumerate(after)}
    moved = [load.slots.get(move.slot, NO_MEASURE) for move in moves]
    return Proposal(
        by=balance.by,
        over=balance.over,
        generation=table.generation if table else 0,
        moves=moves,
        members=tuple(
            MemberShare(name, found.before[place], found.after[place], found.shares[place])
            for place, name in enumerate(names)
        ),
        worst_before=_worst(found.before, found.shares),
        worst_after=_worst(found.after, found.shares),
        hot=tuple((slot, loads[slot], before[slot][0]) for slot in found.hot),
        above=tuple(names[place] for place in found.above),
        least=found.least,
        sessions=sum(one.sessions for one in moved),
        bytes=sum(one.bytes for one in moved),
        copies=sum(new.values()),
        copied_bytes=sum(count * load.slots.get(slot, NO_MEASURE).bytes for slot, count in new.items()),
        to_standby=sum(step.copy == 1 for step in found.steps),
    )


def orders_after(cluster: ClusterState, moves: tuple[SlotMove, ...]) -> tuple[tuple[str, ...], ...]:
    """The orders of the table when the moves are made, by the solver and its rules."""
    if cluster.table is None:
        return ()
    actives = [order[0] if order else "" for order in cluster.table.orders]
    for move in moves:
        actives[move.slot] = move.target
    wanted = Approved(tuple(actives), frozenset(actives))
    current = {slot: order[0] for slot, order in enumerate(cluster.table.orders) if order}
    return decide(cluster.spec, candidates(cluster), cluster.table, current=current, approved=wanted).orders


def _worst(loads: tuple[float, ...], shares: tuple[float, ...]) -> float:
    """The largest load in shares; 1 where there is no load at all."""
    return max((load / share for load, share in zip(loads, shares, strict=True) if share), default=1.0)


def worth_moving(proposal: Proposal) -> bool:
    """Whether the pool has enough load that balancing it by itself makes sense."""
    total = sum(one.before for one in proposal.members)
    return bool(proposal.moves) and total >= WORTH[proposal.by] * len(proposal.members)
