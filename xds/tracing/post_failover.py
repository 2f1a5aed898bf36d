"""What a change of active leaves behind: until when the pool had too few copies, and whether the dead came back alive.

Watched by the leader that follows the change, for :data:`BOUND_NS` at the most, and recorded in the same trace:
``re_protect``, and of a takeover ``returned``. A takeover is watched from its end on, since its slots lack a copy from
the last sign of life; planned moves from their table on, since they may leave slots with too few at any time. The
judgement is pure; it errs on the careful side: a member counts as a copy only while it says that it holds *all* slots
that the table gives it, as of that table.
"""

import asyncio
from collections.abc import Callable, Mapping

from understudy.statesync.pool.records import MemberState
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes, Telemetry
from understudy.xds.membership.claim_reports import Told
from understudy.xds.membership.cluster_state import World
from understudy.xds.membership.failure_detector import SECOND, Identity, Pulse
from understudy.xds.tracing.failover_timing import Course

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


def could_not_serve(told: Told, who: Identity, start: int, end: int) -> str:
    """Why a process that lives could not serve between these times (ns), in words; '' if it could, as far as is known.

    A process that was only slow could: it is to be given more CPU, and not to be taken over from.
    """
    stood = told.stood_still(who, start, end)
    return f"it stood still for {stood / SECOND:.1f} s" if stood else ""


async def watch(
    course: Course,
    telemetry: Telemetry,
    look: Callable[[], World | None],
    pulses: Callable[[], Mapping[Identity, Pulse]],
    table_revision: Callable[[], int],
    told: Told,
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
                told_of = {**course.attributes(), **_back(course, told, alive=alive)}
                trace.phase(names.RETURNED, course.found, now, told_of)


def _back(course: Course, told: Told, *, alive: bool) -> Attributes:
    """What is recorded of the member that was taken for dead: whether it lives, and why it could not serve then."""
    if not alive:
        return {names.RETURNED_ALIVE: False}
    boots = set(course.moving.values())
    whys = (could_not_serve(told, (course.subject, boot), course.last_beat, course.found) for boot in boots)
    return returned_alive(next(filter(None, whys), ""))


def returned_alive(why: str) -> Attributes:
    """The attributes of ``returned`` for a process that lives; ``why`` it could not serve, '' if it could."""
    return {names.RETURNED_ALIVE: True, **({names.COULD_NOT_SERVE: why} if why else {})}


def _whole(world: World, pulses: Mapping[Identity, Pulse], name: str, table_revision: int) -> bool:
    if world.state(name) not in (MemberState.UP, MemberState.READY, MemberState.DRAINING, MemberState.ATTENTION):
        return False
    pulse = pulses.get((name, world.members[name].boot))
    return pulse is not None and bool(pulse.streams) and not pulse.lacking and pulse.applied >= table_revision
