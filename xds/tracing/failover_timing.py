"""How long a change of active took, as the leader saw it, and where the time went. Pure.

An :class:`OwnershipChange` is one of two things. It is the takeover of a dead member's slots, from its last sign of
life until the last of them is served again. Or it is the planned moves of one table, from the table until every
connected Envoy has acknowledged their result. :func:`critical_path` divides that time into phases without gap or
overlap, on this server's clock alone. ``push`` and the ``ack`` of a takeover run beside them. A change that does not
end within its bound is recorded as unmeasured, so it still counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from understudy.statesync.pool.ownership import sites_in
from understudy.statesync.pool.records import Table
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes
from understudy.xds.membership.claim_reports import ClaimReports, ReportedClaim
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.member_health import Death

TAKEOVER_BOUND_NS = 10_000_000_000
HANDOVER_BOUND_NS = 60_000_000_000
"""Planned moves go slot by slot, and no request waits for them."""
_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class OwnershipChange:
    """One change of active under way. Times in ns.

    Attributes:
        subject: the dead member, or the members that slots are to leave, separated by commas.
        moving: for each slot the dead member's boot (a takeover) or the wanted active (planned moves).
        began: the last sign of life. For planned moves, like ``found``, the moment the table was written.
        found: when the death was found.
        written: when the table was written.
        doubt: by how much ``began`` may be wrong.
        closed: whether ``began`` is the end of the dead member's connection. A caller may have been refused earlier.
        last_beat: when the dead member sent its last beat.
        last_request: the traceparent of the newest call that the dead member reported as answered.
        site: the dead member's site, or the site that planned moves leave or return to as a whole; '' for none.
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
        """When it is recorded as unmeasured."""
        return self.written + (HANDOVER_BOUND_NS if self.kind == names.KIND_HANDOVER else TAKEOVER_BOUND_NS)

    def settled(self, cluster: ClusterState) -> bool:
        """Whether every slot has its new owner, in a state that includes the table that ordered the change."""
        if cluster.table is None or cluster.table.generation < self.generation:
            return False
        return all(self._settled_slot(cluster, slot, mark) for slot, mark in self.moving.items())

    def _settled_slot(self, cluster: ClusterState, slot: int, mark: str) -> bool:
        owner = cluster.owners.get(slot)
        if self.kind == names.KIND_HANDOVER:
            # A later table may have taken the move back.
            wanted = cluster.table.active_of(slot) if cluster.table else None
            return wanted != mark or (owner is not None and owner.active == mark)
        return owner is None or owner.active != self.subject or owner.boot != mark

    @property
    def root_name(self) -> str:
        """The name of its root span."""
        return names.HANDOVER if self.kind == names.KIND_HANDOVER else names.FAILOVER

    def attributes(self) -> dict[str, str | int | float | bool | Sequence[str]]:
        """The attributes that its spans have in common."""
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

    def attributes_at_end(self, claims: Sequence[ReportedClaim]) -> dict[str, str | int | float | bool | Sequence[str]]:
        """The attributes once it is over: those of a takeover name the members that took over.

        Planned moves name the members of the table. The reports of some of them may come late or not at all.
        """
        members = sorted({claim.member for claim in claims})
        known = members and self.kind == names.KIND_TAKEOVER
        return self.attributes() | ({names.TO: ", ".join(members)} if known else {})

    @property
    def trace(self) -> str:
        """The trace id in hex, '' if the traceparent is not one."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) == 4 else ""

    def corrected(self, claims: Sequence[ReportedClaim]) -> "OwnershipChange":
        """The change with an earlier beginning, if a claim reports one.

        A caller that the dead process refused knew of the death before this server, and if this server is late, it sees
        the end of the connection late.
        """
        refused = [claim.report.began for claim in claims if claim.report.by_request]
        if not self.closed or not refused or min(refused) >= self.began:
            return self
        began = max(self.last_beat, min(refused))
        return replace(self, began=began, doubt=began - self.last_beat)

    def served(self, cluster: ClusterState, claims: Sequence[ReportedClaim]) -> bool:
        """Whether the members that took the slots over have reported that they serve all of them.

        Those that have gone on to other members since, by plan or by a takeover of their own, do not count any more.
        """
        won: dict[str, int] = {}
        for slot in self.moving:
            owner = cluster.owners.get(slot)
            if owner is not None and owner.traceparent == self.traceparent:
                won[owner.active] = won.get(owner.active, 0) + 1
        ready: dict[str, int] = {}
        for claim in claims:
            if not claim.served_at:
                return False
            ready[claim.member] = ready.get(claim.member, 0) + claim.report.slots
        return bool(won or claims) and all(ready.get(member, 0) >= count for member, count in won.items())


class Delivery(msgspec.Struct, frozen=True):
    """One response of this server that a node acknowledged. Times in ns."""

    node: str
    sent: int
    acked: int


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A finished phase, ready to be recorded."""

    name: str
    start: int
    end: int
    attributes: Attributes


def leader_phases(change: OwnershipChange) -> list[PhaseSpan]:
    """``detect`` (last sign of life to the death found) and ``decide`` (to the table written) of a takeover.

    All that can be recorded of a takeover whose end was not seen.
    """
    if change.kind != names.KIND_TAKEOVER:
        return []
    return [
        PhaseSpan(names.DETECT, change.began, change.found, change.attributes()),
        PhaseSpan(names.DECIDE, change.found, change.written, change.attributes()),
    ]


def critical_path(
    change: OwnershipChange, claims: Sequence[ReportedClaim], settled: int, acked: int
) -> list[PhaseSpan]:
    """The phases that the change waited for, one after the other; together they are as long as the whole.

    A takeover ends when the last claim's slots are served, so its path is that of this claim: ``detect`` (by a caller
    or by this server); ``decide``, if this server detected the death and wrote the table; ``claim``; ``catch_up``; and
    ``first_ok``, if a call was waiting. The path of planned moves is ``move``, until the last slot has its new owner
    (``settled``), and ``ack``, until ``acked``.
    """
    if change.kind == names.KIND_HANDOVER:
        return _chain(change, [(names.MOVE, settled), (names.ACK, acked)])
    last = max(claims, key=lambda claim: (claim.served_at, claim.member))
    report = last.report
    by_table = [] if report.by_request else [(names.DETECT, change.found), (names.DECIDE, change.written)]
    by_request = [(names.DETECT, report.began)] if report.by_request else []
    ends = [*by_request, *by_table, (names.CLAIM, report.claimed), (names.CATCH_UP, report.opened)]
    return _chain(change, [*ends, (names.FIRST_OK, last.served_at)], {names.MEMBER: last.member})


def _chain(change: OwnershipChange, ends: Sequence[tuple[str, int]], more: Attributes | None = None) -> list[PhaseSpan]:
    """Phases that end at these times, each beginning where the one before ended; phases without length are left out."""
    phases, at = [], change.began
    attributes = {**change.attributes(), **(more or {}), names.CRITICAL: True}
    for name, end in ends:
        if end > at:
            phases.append(PhaseSpan(name, at, end, attributes))
            at = end
    return phases


def delivery_phases(change: OwnershipChange, deliveries: Sequence[Delivery]) -> list[PhaseSpan]:
    """``push`` (from the cause known to the last response sent) and, of a takeover, ``ack`` (first sent to last acked).

    Both cover all nodes. Attributes give their number, and after how many ms the first and the last of them were
    served. Only ``deliveries`` that were sent since the cause was known count.
    """
    counting = [delivery for delivery in deliveries if delivery.sent >= change.found]
    if not counting:
        return []
    sent, acked = [d.sent for d in counting], [d.acked for d in counting]
    nodes = len({delivery.node for delivery in counting})

    def phase(name: str, start: int, ends: list[int]) -> PhaseSpan:
        by_node = {
            names.NODE_COUNT: nodes,
            names.NODE_FIRST_MS: (min(ends) - start) / _MS,
            names.NODE_LAST_MS: (max(ends) - start) / _MS,
        }
        return PhaseSpan(name, start, max(ends), {**change.attributes(), **by_node})

    push = phase(names.PUSH, change.found, sent)
    return [push] if change.kind == names.KIND_HANDOVER else [push, phase(names.ACK, min(sent), acked)]


def last_ack(change: OwnershipChange, deliveries: Sequence[Delivery]) -> int:
    """When the last node acknowledged what was sent since the cause was known; 0 if nothing was."""
    return max((delivery.acked for delivery in deliveries if delivery.sent >= change.found), default=0)


def slots_of(cluster: ClusterState, previous: Table, table: Table, member: str) -> frozenset[int]:
    """The slots of a takeover from a member that ``table`` is the first to name lost.

    These are the slots that it was active for or owns, and those that others have claimed from it. A claim may be much
    older than the death that this server found, and then ``previous`` may already have the new owner.
    """
    lost = table.lost[member]
    active = {slot for slot in range(previous.slots) if previous.active_of(slot) == member}
    taken = {slot for slot, owner in cluster.owners.items() if owner.traceparent == lost.traceparent}
    return frozenset(active | taken | cluster.owned_by(member, lost.boot))


def takeover_change(
    cluster: ClusterState,
    table: Table,
    member: str,
    *,
    written: int,
    death: Death,
    slots: frozenset[int],
    reports: ClaimReports,
) -> OwnershipChange:
    """The takeover from a member that ``table`` names lost.

    ``slots`` are those it was active for when it died; some may have been claimed already. If nobody ever heard of that
    process, as of those in owner records that a change of home has made, the takeover begins when it was found.
    """
    lost = table.lost[member]
    who = (member, lost.boot)
    beat = min(reports.last_beat(who) or death.last_sign, death.last_sign) or death.found
    began = death.closed or beat
    return OwnershipChange(
        kind=names.KIND_TAKEOVER,
        pool=cluster.spec.pool,
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
        last_request=reports.last_request(who),
        site=death.site,
    )


def handover_change(cluster: ClusterState, table: Table, *, written: int) -> OwnershipChange | None:
    """The planned moves that ``table`` asks for; None if it asks for none."""
    moving = cluster.pending_moves(table.orders)
    if not moving or not table.traceparent:
        return None
    leaving = {cluster.owners[slot].active for slot in moving}
    return OwnershipChange(
        kind=names.KIND_HANDOVER,
        pool=cluster.spec.pool,
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
