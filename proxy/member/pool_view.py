"""The pool as this member sees it, with what it remembers of members whose records are gone."""

import contextlib
from collections import deque
from dataclasses import dataclass

from understudy.proxy.member.identity import MemberIdentity
from understudy.statesync.pool.ownership import View
from understudy.statesync.pool.records import Member, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness
from understudy.statesync.pool.state import At, PoolState
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError, takeover_seed

_BOOTS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Peer:
    """A member's peer API: ``address`` is ``host:port``."""

    member: str
    address: str


class PoolView:
    """The records of the pool (``state``), and what was in the records of members that have none any more.

    ``addresses`` has the last peer address of each member, ``known`` its last record.
    """

    def __init__(self, identity: MemberIdentity) -> None:
        self.identity = identity
        self.state = PoolState(identity.keys)
        self.addresses: dict[str, str] = {}
        self.known: dict[str, Member] = {}
        self._boots: dict[str, deque[str]] = {}
        self._assigned: tuple[At[Table] | None, frozenset[int]] = (None, frozenset())

    @property
    def spec(self) -> PoolSpec | None:
        """The spec in force; None before it was read."""
        at = self.state.spec
        return at.record if at is not None else None

    @property
    def liveness(self) -> Liveness:
        """After how much silence a member counts as dead, by the spec in force."""
        return self.spec.liveness if self.spec else Liveness()

    def view(self) -> View:
        """What ownership decisions are made from, as of now."""
        at = self.state.table
        table, revision = (at.record, at.revision) if at else (Table(), 0)
        me = self.identity
        spec = self.spec
        return View(
            me.me,
            me.boot,
            table,
            revision,
            self.state.owners,
            self.state.members,
            self.state.sync_sets,
            restores=spec is None or spec.replication.on_total_loss == "restore",
            revivals=self.state.revivals,
        )

    def assigned(self) -> frozenset[int]:
        """The slots that the table wants this member to hold, as active, standby or backup."""
        at = self.state.table
        if at is not self._assigned[0]:
            self._assigned = (at, at.record.slots_held_by(self.identity.me) if at is not None else frozenset())
        return self._assigned[1]

    def others(self) -> dict[str, Member]:
        """The records of the other members."""
        return {name: at.record for name, at in self.state.members.items() if name != self.identity.me}

    def remember(self, member: str) -> None:
        """Keep what the record of ``member`` says, if there is one, for the time after it."""
        at = self.state.members.get(member)
        if at is None:
            return
        self.addresses[member] = at.record.peer
        self.known[member] = at.record
        boots = self._boots.setdefault(member, deque(maxlen=_BOOTS_KEPT))
        if at.record.boot not in boots:
            boots.append(at.record.boot)

    def peer(self, member: str) -> Peer | None:
        """Where a member's peer API is, or last was if its record is gone; None if it was never seen."""
        self.remember(member)
        address = self.addresses.get(member)
        return Peer(member, address) if address else None

    def has_met(self, member: str, boot: str) -> bool:
        """Whether this process of a member was registered during the life of this one."""
        self.remember(member)
        return boot in self._boots.get(member, ())

    def takeover_of(self, member: str, boot: str) -> TraceIds:
        """The trace of the takeover of a member's process: the table's, or else the one that everybody derives."""
        lost = self.view().table.lost.get(member)
        if lost is not None and lost.boot == boot:
            with contextlib.suppress(TraceparentError):
                return TraceIds.from_traceparent(lost.traceparent)
        self.remember(member)
        record = self.known.get(member)
        life = record.life if record and record.boot == boot else 0
        return takeover_seed(self.identity.keys.pool, member, boot, life)
