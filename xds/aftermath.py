"""What a change of active leaves behind: until when the pool had too few copies, and whether the dead came back alive.

Watched by the leader that follows the change, for :data:`BOUND_NS` at the most, and recorded in the same trace:
``re_protect``, and of a takeover ``returned``. A takeover is watched from its end on, since its slots lack a copy from
the last sign of life; planned moves from their table on, since they may leave slots with too few at any time. The
judgement is pure; it errs on the careful side: a member counts as a copy only while it says that it holds *all* slots
that the table gives it, as of that table.
"""

import asyncio
from collections.abc import Callable, Mapping

from statesync.pool import MemberState
from telemetry import names
from telemetry.setup import Telemetry
from xds.liveness import Identity, Pulse
from xds.measure import Course
from xds.world import World

BOUND_NS = 300 * 10**9
"""Who is not back by then is gone, and a pool that lacks copies by then has missed every sane objective."""
RETURN_NS = 30 * 10**9
"""How long the member that was taken for dead is listened for."""
_LOOK = 0.2


def protected(world: World, pulses: Mapping[Identity, Pulse], table_revision: int) -> bool:
    """Whether every slot has two living members in its order that hold all they should, as of the table in force.

    ``table_revision`` is the etcd revision of that table.
    """
    if world.table is None:
        return False
    whole = {name for name in world.members if _whole(world, pulses, name, table_revision)}
    return all(sum(member in whole for member in order) >= 2 for order in set(world.table.orders))


def returned(world: World, course: Course) -> bool:
    """Whether the very process whose slots were taken over beats again."""
    return any((course.subject, boot) in world.beating for boot in set(course.moving.values()))


async def watch(
    course: Course,
    telemetry: Telemetry,
    look: Callable[[], World | None],
    pulses: Callable[[], Mapping[Identity, Pulse]],
    table_revision: Callable[[], int],
) -> None:
    """Record what follows ``course``; returns when both questions are answered or time is up."""
    trace = telemetry.failover(course.traceparent)
    whole, back = False, course.kind == names.KIND_HANDOVER
    while not (whole and back):
        await asyncio.sleep(_LOOK)
        world, now = look(), telemetry.now_ns()
        if world is None:
            continue
        if not whole:
            safe, late = protected(world, pulses(), table_revision()), now >= course.written + BOUND_NS
            if safe or late:
                whole = True
                mark = {} if safe else {names.UNMEASURED: True}
                trace.phase(names.RE_PROTECT, course.began, now, {**course.attributes(), **mark})
        if not back:
            alive, late = returned(world, course), now >= course.written + RETURN_NS
            if alive or late:
                back = True
                trace.phase(names.RETURNED, course.found, now, {**course.attributes(), names.RETURNED_ALIVE: alive})


def _whole(world: World, pulses: Mapping[Identity, Pulse], name: str, table_revision: int) -> bool:
    if world.state(name) not in (MemberState.UP, MemberState.READY, MemberState.DRAINING, MemberState.ATTENTION):
        return False
    pulse = pulses.get((name, world.members[name].boot))
    return pulse is not None and bool(pulse.streams) and not pulse.lacking and pulse.applied >= table_revision
