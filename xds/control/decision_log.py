"""The leader's part of the audit log: a record of each slot table, and the removal of old records.

The record is written in the transaction of the table. Only the leader appends to the chain of decisions, so it knows
where that chain ends: it reads the end once in its term, while the first table is decided. A table therefore costs no
further round trip. Removal runs apart from the decisions.
"""

import asyncio
import logging
import time

from understudy.statesync.audit.chain import Addition, ChainEnd, Mark, addition
from understudy.statesync.audit.entry import Act, Actor, Chain
from understudy.statesync.audit.log import end_in, read_end, trim
from understudy.statesync.etcd.client import EtcdClient, EtcdError, Kv
from understudy.statesync.pool.keys import PoolKeys
from understudy.xds.control.election import Leadership
from understudy.xds.planning.plan import TablePlan

logger = logging.getLogger(__name__)

TRIM_INTERVAL = 600.0
"""Seconds between two looks at whether old records are due for removal."""


class DecisionLog:
    """The audit records of one pool's leader.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        actor: this control server.
        leadership: whether this server leads; the end of the chain is known for one term.
    """

    def __init__(self, client: EtcdClient, keys: PoolKeys, actor: Actor, leadership: Leadership) -> None:
        self._client = client
        self._keys = keys
        self._actor = actor
        self._leadership = leadership
        self._end: ChainEnd | None = None
        self._term = 0

    async def prepare(self) -> None:
        """Read where the chain ends, unless that is known since the term began. Raises ``EtcdError``."""
        term = self._leadership.term
        if self._end is None or self._term != term:
            self._end, self._term = await read_end(self._client, self._keys, Chain.DECISIONS), term

    def next(self, plan: TablePlan, before: int) -> Addition:
        """The record of a table, after :meth:`prepare`; ``before`` is the revision of the table that it replaces."""
        end = self._end or ChainEnd(Mark(), 0)
        now = time.time_ns() // 1_000_000
        return addition(self._keys, Chain.DECISIONS, end, self._actor, act_of(plan), before=before, time_ms=now)

    def written(self, new: Addition, revision: int) -> None:
        """The record ``new`` is in etcd since ``revision``."""
        self._end = new.end(revision)

    def forget(self) -> None:
        """It is unknown whether the last record was written."""
        self._end = None

    def correct(self, new: Addition, found: tuple[Kv, ...]) -> bool:
        """Whether the chain did not end where ``new`` was to be appended, but where ``found``, its mark, says.

        Only a foreign hand at the log makes that happen.
        """
        end = end_in(found[0]) if found else None
        if end is None or end.revision == new.compare.revision:
            self._end = None
            return False
        self._end = end
        return True

    async def run(self) -> None:
        """Remove old records from time to time, while this server leads."""
        while True:
            try:
                more = await self.trim()
            except EtcdError as error:
                logger.warning("audit log of pool %s: old records not removed: %s", self._keys.pool, error)
                more = False
            if not more:
                await asyncio.sleep(TRIM_INTERVAL)

    async def trim(self) -> bool:
        """Remove a batch of old records of each chain, if so many are due and this server leads; False if none were."""
        removed = 0
        for chain in Chain:
            if not self._leadership.is_leader:
                break
            count, fault = await trim(self._client, self._keys, chain, self._leadership.fence)
            removed += count
            if fault:
                logger.warning(
                    "audit log of pool %s: old records are kept because chain %s is broken: %s; "
                    "see 'understudy audit --verify'",
                    self._keys.pool,
                    chain,
                    fault,
                )
        return removed > 0


def act_of(plan: TablePlan) -> Act:
    """The act that a table is."""
    table = plan.table
    active = sum(1 for move in plan.moves if move.role == "active")
    rest = len({move.slot for move in plan.moves if move.role != "active"})
    detail = f"{active} slots get another active, {rest} another standby or backup" if plan.moves else "no slot moves"
    reasons = [f"{member} is lost: {table.lost[member].cause}" for member in plan.newly_lost]
    reasons += [f"{table.cause}: {plan.why}" if plan.why else table.cause] if table.cause else []
    why = "; ".join(reasons) or ("first table" if table.generation == 1 else "members or spec changed")
    return Act(f"table {table.generation}", detail, why)
