"""Changes of active that no leader measured: the owner records show them, and they are counted too. Pure.

A change (:mod:`understudy.xds.tracing.failover_timing`) is measured from the table that orders it. Changes without such
a table are found here: a takeover from a member that this server never found dead, moves that a table of an earlier
leader ordered, a drain while there was no leader. After :data:`WAIT_NS` they are to be recorded as unmeasured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from understudy.statesync.pool.ownership import is_handover
from understudy.statesync.pool.records import Owner, Phase
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.names import KIND_HANDOVER, KIND_TAKEOVER
from understudy.xds.membership.cluster_state import ClusterState

WAIT_NS = 10 * 10**9
"""By then the control servers have found every death that they can see."""


@dataclass(frozen=True, slots=True)
class UntracedChange:
    """A change of active that no table ordered. ``at`` is when it was first seen, in ns.

    ``boot`` is that of ``source``, the former active. It may well live: this server did not find it dead.
    """

    traceparent: str
    source: str
    boot: str
    to: frozenset[str]
    cause: str
    planned: bool
    slots: int
    at: int


class UntracedChanges:
    """Compares the owner records with the ones before."""

    def __init__(self) -> None:
        self._owners: Mapping[int, Owner] | None = None
        self._found: dict[str, UntracedChange] = {}

    def observe(self, cluster: ClusterState, now: int) -> None:
        """Note the slots whose active has changed since the last call."""
        before, self._owners = self._owners, cluster.owners
        if before is None or before is cluster.owners:
            return
        for slot, owner in cluster.owners.items():
            was = before.get(slot)
            if was is not None and was.active != owner.active and owner.phase is Phase.STABLE:
                self._note(cluster.spec.pool, slot, was, owner, now)

    def _note(self, pool: str, slot: int, was: Owner, owner: Owner, now: int) -> None:
        planned = is_handover(owner.cause)
        kind = KIND_HANDOVER if planned else KIND_TAKEOVER
        trace = owner.traceparent or trace_seed(pool, kind, f"unseen/{slot}/{owner.epoch}").traceparent
        one = self._found.get(trace) or UntracedChange(
            trace, was.active, was.boot, frozenset(), owner.cause, planned, 0, now
        )
        self._found[trace] = replace(one, slots=one.slots + 1, to=one.to | {owner.active})

    def due(self, now: int, known: Callable[[str], bool]) -> list[UntracedChange]:
        """The changes that have waited long enough, once each; ``known`` says whether a trace was measured."""
        self._found = {trace: one for trace, one in self._found.items() if not known(trace)}
        due = [one for one in self._found.values() if now - one.at >= WAIT_NS]
        for one in due:
            del self._found[one.traceparent]
        return due
