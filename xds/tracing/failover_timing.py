"""How long a change of active took, as the leader saw it, and where the time went. Pure.

One :class:`Course` follows one change: a takeover of a dead member's slots, from its last sign of life until the last
of them is served again, or the planned moves of one table, from the table until every connected Envoy has acknowledged
what came of them. :func:`critical_path` cuts that time into phases without gap or overlap, on this server's clock
alone; ``push`` and the ``ack`` of a takeover run beside them. A course that does not end within its bound is closed as
unmeasured, so that it is counted and not forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from understudy.statesync.pool.ownership import sites_in
from understudy.statesync.pool.records import Table
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes
from understudy.xds.membership.claim_reports import Claimed, Told
from understudy.xds.membership.cluster_state import Death, World

TAKEOVER_BOUND_NS = 10_000_000_000
HANDOVER_BOUND_NS = 60_000_000_000
"""Planned moves go slot by slot, and nobody waits for them."""
_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Course:
    """One change of active under way. Times in ns.

    ``subject`` is the dead member, or those that slots are to leave, joined by commas. ``moving`` maps its slots to the
    dead member's boot (a takeover) or to the wanted active (planned moves).
    ``began`` is the last sign of life, and ``found`` when the death was found; both are ``written``, the
    moment the table was written, for planned moves. Of one whose connection closed (``closed``) the last sign is that
    it closed, if nobody was refused by it earlier; the one before was its beat at ``last_beat``. ``doubt`` is by how
    much ``began`` may be wrong, and ``last_request`` the traceparent of the newest call that it told to have answered.
    ``site`` is the dead member's, or the one that planned moves leave or come back to as a whole; '' for none.
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
    doubt: int = 0
    closed: bool = False
    last_beat: int = 0
    last_request: str = ""
    site: str = ""

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
            names.FROM: self.subject,
            **({names.SITE: self.site} if self.site else {}),
            **(
                {names.TO: ", ".join(sorted(set(self.moving.values())))}
                if planned
                else {names.BOOT: next(iter(self.moving.values()), "")}
            ),
        }

    @property
    def trace(self) -> str:
        """The trace id in hex, '' if the traceparent is not one."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) == 4 else ""

    def corrected(self, claims: Sequence[Claimed]) -> "Course":
        """The course with its beginning as the claims tell: who was refused by a dead process knew it before us.

        What a socket's end tells is late when this server is: then a caller's witness is the better one.
        """
        refused = [claim.told.began for claim in claims if claim.told.by_request]
        if not self.closed or not refused or min(refused) >= self.began:
            return self
        began = max(self.last_beat, min(refused))
        return replace(self, began=began, doubt=began - self.last_beat)

    def served(self, world: World, claims: Sequence[Claimed]) -> bool:
        """Whether the members that took the slots over have told that all they won is served."""
        won: dict[str, int] = {}
        for slot in self.moving:
            owner = world.owners.get(slot)
            if owner is not None and owner.traceparent == self.traceparent:
                won[owner.active] = won.get(owner.active, 0) + 1
        ready: dict[str, int] = {}
        for claim in claims:
            if not claim.ready:
                return False
            ready[claim.member] = ready.get(claim.member, 0) + claim.told.slots
        return bool(won) and all(ready.get(member, 0) >= count for member, count in won.items())


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
    """``detect`` (last sign of life to the death found) and ``decide`` (to the table written) of a takeover.

    Recorded at once, so that a takeover whose end is never seen tells at least this much.
    """
    if course.kind != names.KIND_TAKEOVER:
        return []
    return [
        Phase(names.DETECT, course.began, course.found, course.attributes()),
        Phase(names.DECIDE, course.found, course.written, course.attributes()),
    ]


def critical_path(course: Course, claims: Sequence[Claimed], settled: int, acked: int) -> list[Phase]:
    """The phases that the change waited for, one after the other; together they are as long as the whole.

    A takeover ends when the last claim's slots are served, so its path is that of this claim: found out (``detect``),
    by a caller or by this server; if by this server, the table written (``decide``); then ``claim``, ``catch_up``, and
    ``first_ok`` if a call was waiting. Planned moves are ``move`` until the last slot has its new owner (``settled``),
    then ``ack``, until ``acked``.
    """
    if course.kind == names.KIND_HANDOVER:
        return _chain(course, [(names.MOVE, settled), (names.ACK, acked)])
    last = max(claims, key=lambda claim: (claim.ready, claim.member))
    told = last.told
    by_table = [] if told.by_request else [(names.DETECT, course.found), (names.DECIDE, course.written)]
    by_request = [(names.DETECT, told.began)] if told.by_request else []
    ends = [*by_request, *by_table, (names.CLAIM, told.claimed), (names.CATCH_UP, told.opened)]
    return _chain(course, [*ends, (names.FIRST_OK, last.ready)], {names.MEMBER: last.member})


def _chain(course: Course, ends: Sequence[tuple[str, int]], more: Attributes | None = None) -> list[Phase]:
    """Phases that end at these times, each beginning where the one before ended; one that took no time is left out."""
    phases, at = [], course.began
    attributes = {**course.attributes(), **(more or {}), names.CRITICAL: True}
    for name, end in ends:
        if end > at:
            phases.append(Phase(name, at, end, attributes))
            at = end
    return phases


def delivery_phases(course: Course, deliveries: Sequence[Delivery]) -> list[Phase]:
    """``push`` (cause known, to last message sent) and, of a takeover, ``ack`` (first sent, to last acknowledged).

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

    push = phase(names.PUSH, course.found, sent)
    return [push] if course.kind == names.KIND_HANDOVER else [push, phase(names.ACK, min(sent), acked)]


def last_ack(course: Course, deliveries: Sequence[Delivery]) -> int:
    """When the last node acknowledged what was sent since the cause was known; 0 if nothing was."""
    return max((delivery.acked for delivery in deliveries if delivery.sent >= course.found), default=0)


def slots_of(world: World, previous: Table, table: Table, member: str) -> frozenset[int]:
    """The slots that the takeover of a member is about, which ``table`` is the first to name lost.

    Those that it was active for or owns, and those that others have claimed from it: they may have done so long before
    this server found the death, and ``previous`` may have followed them.
    """
    lost = table.lost[member]
    active = {slot for slot in range(previous.slots) if previous.active_of(slot) == member}
    taken = {slot for slot, owner in world.owners.items() if owner.traceparent == lost.traceparent}
    return frozenset(active | taken | world.owned_by(member, lost.boot))


def takeover_course(
    world: World,
    table: Table,
    member: str,
    *,
    written: int,
    death: Death,
    slots: frozenset[int],
    told: Told,
) -> Course:
    """The course of the takeover of a member that ``table`` names lost.

    ``slots`` are those it was active for when it died; some may have been claimed already.
    """
    lost = table.lost[member]
    who = (member, lost.boot)
    beat = min(told.last_beat(who) or death.last_sign, death.last_sign)
    began = death.closed or beat
    return Course(
        kind=names.KIND_TAKEOVER,
        pool=world.spec.pool,
        traceparent=lost.traceparent,
        subject=member,
        cause=lost.cause,
        moving=dict.fromkeys(sorted(slots), lost.boot),
        began=began,
        found=death.found,
        written=written,
        generation=table.generation,
        doubt=began - beat if death.closed else death.doubt,
        closed=bool(death.closed),
        last_beat=beat,
        last_request=told.last_request(who),
        site=death.site,
    )


def handover_course(world: World, table: Table, *, written: int) -> Course | None:
    """The course of the planned moves that ``table`` asks for; None if it asks for none."""
    moving = world.pending_moves(table.orders)
    if not moving or not table.traceparent:
        return None
    leaving = {world.owners[slot].active for slot in moving}
    return Course(
        kind=names.KIND_HANDOVER,
        pool=world.spec.pool,
        traceparent=table.traceparent,
        subject=", ".join(sorted(leaving)),
        cause=table.cause,
        moving=moving,
        began=written,
        found=written,
        written=written,
        generation=table.generation,
        site=sites_in(table.cause),
    )
