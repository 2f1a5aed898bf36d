"""Looks from time to time whether a rebalance would help, while this server leads (``balance.mode`` in the spec).

In mode ``plan`` it only remembers the plan, for ``understudy status`` and a metric. In mode ``auto`` it approves it,
within ``moves_per_hour``. What was spent of that is in etcd with the progress of the plan, so another leader knows it.
A plan must be wanted in two looks in a row: what passes in half a minute moves no slot.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from understudy.statesync.etcd.client import Compare, CreateRevision, EtcdClient, EtcdError, ModRevision, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState
from understudy.statesync.pool.spec_parts import Balance
from understudy.xds.control.election import Leadership
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import PoolLoad
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.proposal import NoProposal, Proposal, propose, worth_moving

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 30.0
HOUR = 3600.0
RATE = 1.0
"""Moves a second of an automatic plan."""


class Balancer:
    """The automatic part of one pool's rebalance.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: whether this server leads, and the fence of its term.
        state_builder: the pool as this server sees it.
        load: the load of the pool now.
        name: of this control server; it approves automatic plans.

    Attributes:
        proposal: the plan that would help, by the last look; None if there can be none, or if another server leads.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        leadership: Leadership,
        state_builder: StateBuilder,
        load: Callable[[], PoolLoad],
        name: str,
    ) -> None:
        self._client = client
        self._keys = keys
        self._leadership = leadership
        self._state_builder = state_builder
        self._load = load
        self._name = name
        self.proposal: Proposal | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                await self.look(time.time())
            except EtcdError as error:
                logger.warning("rebalance of pool %s: no plan approved: %s", self._keys.pool, error)

    async def look(self, now: float) -> None:
        """Make a proposal, and approve it if the spec says so; ``now`` is wall time in seconds."""
        cluster, before = self._state_builder.current(), self.proposal
        self.proposal = None
        balance = cluster.spec.balance if cluster else None
        if cluster is None or balance is None or not self._leadership.is_leader or not cluster.spec.balances_by_load:
            return
        progress = self._state_builder.state.move_progress
        if balance.mode == "off" or (progress is not None and progress.record.running):
            return
        try:
            found = await asyncio.to_thread(propose, cluster, self._load(), balance)
        except NoProposal:
            return
        self.proposal = found
        if balance.mode == "auto" and worth_moving(found) and before is not None and before.moves:
            await self._approve(cluster, found, balance, now)

    async def _approve(self, cluster: ClusterState, found: Proposal, balance: Balance, now: float) -> None:
        """Write as many of the moves as the budget allows; nothing if the pool has changed meanwhile."""
        state = self._state_builder.state
        known = state.move_progress
        spent = recent(known.record.spent if known else (), now)
        moves = found.moves[: max(balance.moves_per_hour - sum(count for _, count in spent), 0)]
        if not moves or cluster.table is None or state.table is None:
            return
        generation, actives = cluster.table.generation, [order[0] for order in cluster.table.orders]
        name = f"auto-{generation}-{round(now) % 100_000}"
        plan = MovePlan.of_moves(
            name, generation, actives, moves, rate=RATE, by=found.by, who=self._name, at=now, automatic=True
        )
        progress = MoveProgress(name, PlanState.RUNNING, spent=(*spent, (now, len(moves))))
        key = self._keys.move_progress
        compares: list[Compare] = [
            self._leadership.fence,
            ModRevision(self._keys.table, state.table.revision),
            ModRevision(key, known.revision) if known else CreateRevision(key, 0),
        ]
        puts = [Put(self._keys.move_plan, plan.encode()), Put(key, progress.encode())]
        if (await self._client.txn(compares, puts)).succeeded:
            logger.info(
                "pool %s: automatic plan %s moves %d slots: the busiest member has %.2f times its share by %s",
                self._keys.pool,
                name,
                len(moves),
                found.worst_before,
                found.by,
            )


def recent(spent: Sequence[tuple[float, int]], now: float) -> tuple[tuple[float, int], ...]:
    """What was spent within the last hour. What seems to be of the future, by a clock that was wrong, counts."""
    return tuple((at, count) for at, count in spent if now - at < HOUR)
