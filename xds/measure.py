"""How long a change of active took, as the leader saw it: phases, push and acknowledgement. Pure.

One :class:`Course` follows one change (a takeover of a dead member's slots, or the planned moves of one
table) from the table that ordered it to the moment when every slot has its new owner and every connected
Envoy has acknowledged what came of it. What the sidecars did meanwhile is in their own spans. A course that
does not end within its bound is closed as unmeasured, so that it is counted and not forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from statesync.pool import Table
from telemetry import names
from telemetry.setup import Attributes
from xds.world import Death, World

TAKEOVER_BOUND_NS = 10_000_000_000
HANDOVER_BOUND_NS = 60_000_000_000
"""Planned moves go slot by slot, and nobody waits for them."""
_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Course:
    """One change of active under way. Times in ns.

    ``moving`` maps its slots to the dead member's boot (a takeover) or to the wanted active (planned moves).
    ``began`` is the last sign of life, and ``found`` when the death was found; both are ``written``, the
    moment the table was written, for planned moves.
    """

    kind: str
    pool: str
    traceparent: str
    subject: str
    cause: str
    moving: Mapping[int, str]
    began: int
    found: int
    written: int
    generation: int

    @property
    def ends_by(self) -> int:
        """When it is given up as unmeasured."""
        return self.written + (HANDOVER_BOUND_NS if self.kind == names.KIND_HANDOVER else TAKEOVER_BOUND_NS)

    def settled(self, world: World) -> bool:
        """Whether every slot has come to its new owner, in a world that knows the table that ordered it."""
        if world.table is None or world.table.generation < self.generation:
            return False
        return all(self._settled_slot(world, slot, mark) for slot, mark in self.moving.items())

    def _settled_slot(self, world: World, slot: int, mark: str) -> bool:
        owner = world.owners.get(slot)
        if self.kind == names.KIND_HANDOVER:
            # A move that a later table took back is no longer this course's business.
            wanted = world.table.active_of(slot) if world.table else None
            return wanted != mark or (owner is not None and owner.active == mark)
        return owner is None or owner.active != self.subject or owner.boot != mark

    @property
    def root_name(self) -> str:
        """The name of its root span."""
        return names.HANDOVER if self.kind == names.KIND_HANDOVER else names.FAILOVER

    def attributes(self) -> dict[str, str | int | float | bool | Sequence[str]]:
        """What its spans have in common."""
        planned = self.kind == names.KIND_HANDOVER
        return {
            names.POOL: self.pool,
            names.KIND: self.kind,
            names.CAUSE: self.cause,
            names.PLANNED: planned,
            names.SLOTS: len(self.moving),
            names.TABLE_GENERATION: self.generation,
            **({} if planned else {names.FROM: self.subject}),
        }


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer of this server to one node that the node acknowledged. Times in ns."""

    node: str
    sent: int
    acked: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A finished phase, ready to be recorded."""

    name: str
    start: int
    end: int
    attributes: Attributes


def leader_phases(course: Course) -> list[Phase]:
    """``detect`` (last sign of life to the death found) and ``decide`` (to the table written) of a takeover."""
    if course.kind != names.KIND_TAKEOVER:
        return []
    return [
        Phase(names.DETECT, course.began, course.found, course.attributes()),
        Phase(names.DECIDE, course.found, course.written, course.attributes()),
    ]


def delivery_phases(course: Course, deliveries: Sequence[Delivery]) -> list[Phase]:
    """``push`` (cause known, to last message sent) and ``ack`` (first sent, to last acknowledged).

    Both are over all nodes; attributes say how many there are, and after how many ms the first and the last
    of them had been served. Of ``deliveries`` only those count that were sent since the cause was known.
    """
    counting = [delivery for delivery in deliveries if delivery.sent >= course.found]
    if not counting:
        return []
    sent, acked = [d.sent for d in counting], [d.acked for d in counting]
    nodes = len({delivery.node for delivery in counting})

    def phase(name: str, start: int, ends: list[int]) -> Phase:
        told = {
            names.NODE_COUNT: nodes,
            names.NODE_FIRST_MS: (min(ends) - start) / _MS,
            names.NODE_LAST_MS: (max(ends) - start) / _MS,
        }
        return Phase(name, start, max(ends), {**course.attributes(), **told})

    return [phase(names.PUSH, course.found, sent), phase(names.ACK, min(sent), acked)]


def takeover_course(
    world: World, table: Table, member: str, *, written: int, death: Death, slots: frozenset[int]
) -> Course:
    """The course of the takeover of a member that ``table`` names lost.

    ``slots`` are those it was active for when it died; some may have been claimed already.
    """
    lost = table.lost[member]
    return Course(
        kind=names.KIND_TAKEOVER,
        pool=world.spec.pool,
        traceparent=lost.traceparent,
        subject=member,
        cause=lost.cause,
        moving=dict.fromkeys(sorted(slots), lost.boot),
        began=death.last_sign,
        found=death.found,
        written=written,
        generation=table.generation,
    )


def handover_course(world: World, table: Table, *, written: int) -> Course | None:
    """The course of the planned moves that ``table`` asks for; None if it asks for none."""
    moving = world.pending_moves(table.orders)
    if not moving or not table.traceparent:
        return None
    return Course(
        kind=names.KIND_HANDOVER,
        pool=world.spec.pool,
        traceparent=table.traceparent,
        subject="",
        cause="table",
        moving=moving,
        began=written,
        found=written,
        written=written,
        generation=table.generation,
    )
