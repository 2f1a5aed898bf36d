"""Changes of active that nobody measures: told by the owner records alone, and counted all the same. Pure.

A course (:mod:`understudy.xds.tracing.failover_timing`) begins with the table that orders a change. What moves without
one is seen here: a takeover of a member that this server never found dead, moves that a table of an earlier leader
ordered, a drain while no leader was there. After :data:`PATIENCE_NS` without a course they are due to be recorded as
unmeasured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from understudy.statesync.pool.ownership import is_handover
from understudy.statesync.pool.records import Owner, Phase
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.names import KIND_HANDOVER, KIND_TAKEOVER
from understudy.xds.membership.cluster_state import World

PATIENCE_NS = 10 * 10**9
"""By then a death that the control servers can see has been found."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A change of active without a course so far. ``at`` is when it was first seen, in ns.

    ``boot`` is that of ``source``, the former active, which may well live: nobody here found it dead.
    """

    traceparent: str
    source: str
    boot: str
    to: frozenset[str]
    cause: str
    planned: bool
    slots: int
    at: int


class Unmeasured:
    """Compares the owner records with what they were."""

    def __init__(self) -> None:
        self._owners: Mapping[int, Owner] | None = None
        self._found: dict[str, Unseen] = {}

    def look(self, world: World, now: int) -> None:
        """Note what has changed its active since the last look."""
        before, self._owners = self._owners, world.owners
        if before is None or before is world.owners:
            return
        for slot, owner in world.owners.items():
            was = before.get(slot)
            if was is not None and was.active != owner.active and owner.phase is Phase.STABLE:
                self._note(world.spec.pool, slot, was, owner, now)

    def _note(self, pool: str, slot: int, was: Owner, owner: Owner, now: int) -> None:
        planned = is_handover(owner.cause)
        kind = KIND_HANDOVER if planned else KIND_TAKEOVER
        trace = owner.traceparent or trace_seed(pool, kind, f"unseen/{slot}/{owner.epoch}").traceparent
        one = self._found.get(trace) or Unseen(trace, was.active, was.boot, frozenset(), owner.cause, planned, 0, now)
        self._found[trace] = replace(one, slots=one.slots + 1, to=one.to | {owner.active})

    def due(self, now: int, known: Callable[[str], bool]) -> list[Unseen]:
        """Those that have waited long enough, once; ``known`` says whether a trace has, or had, a course."""
        self._found = {trace: one for trace, one in self._found.items() if not known(trace)}
        due = [one for one in self._found.values() if now - one.at >= PATIENCE_NS]
        for one in due:
            del self._found[one.traceparent]
        return due
