"""Carries a rebalance out, while this server leads: puts its moves into force step by step.

The plan and its progress are in etcd. So another leader goes on where this one ended. A step is one transaction that
compares the leader key and the progress before it. The moves themselves are ordinary handovers: the step changes what
:mod:`understudy.xds.planning.plan` decides, and the leader writes the table.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from understudy.statesync.etcd.client import EtcdClient, EtcdError, ModRevision, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.rebalance import MoveProgress
from understudy.statesync.process.services import set_within
from understudy.xds.control.election import Leadership
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.moves import Waiting, next_step, seconds_between_steps

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 0.25
"""Seconds between two looks at a plan that is carried out."""
RETRY_INTERVAL = 1.0


class Rebalancer:
    """The plan of one pool.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: whether this server leads, and the fence of its term.
        state_builder: the pool as this server sees it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        leadership: Leadership,
        state_builder: StateBuilder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._keys = keys
        self._leadership = leadership
        self._state_builder = state_builder
        self._clock = clock
        self._wake = asyncio.Event()
        self._stepped = -1e9
        self.waits_for = ""
        """Why the plan under way does not go on; '' while it does."""

    def wake(self) -> None:
        """The pool, or the leadership, may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Make steps until cancelled, whenever this server leads and a plan is under way."""
        pause: float | None = None
        while True:
            await set_within(self._wake, pause)
            self._wake.clear()
            try:
                pause = await self._look()
            except EtcdError as error:
                self.waits_for = str(error)
                logger.warning("rebalance of pool %s: no step made: %s", self._keys.pool, error)
                pause = RETRY_INTERVAL

    async def _look(self) -> float | None:
        """Make a step if one is due; seconds until the next look, None if there is nothing to do."""
        state, cluster = self._state_builder.state, self._state_builder.current()
        plan, progress = state.move_plan, state.move_progress
        if cluster is None or plan is None or progress is None or not self._leadership.is_leader:
            return None
        if not progress.record.running or plan.record.plan != progress.record.plan:
            self.waits_for = ""
            return None
        wait = self._stepped + seconds_between_steps(plan.record) - self._clock()
        if wait > 0:
            return wait
        step = next_step(cluster, plan.record, progress.record)
        self.waits_for = step.why if isinstance(step, Waiting) else ""
        if isinstance(step, MoveProgress):
            await self._write(step, progress.revision, cluster)
        return LOOK_INTERVAL

    async def _write(self, step: MoveProgress, before: int, cluster: ClusterState) -> None:
        """Write the progress; if another one was written meanwhile, the next look decides again."""
        key = self._keys.move_progress
        result = await self._client.txn(
            [self._leadership.fence, ModRevision(key, before)], [Put(key, step.encode())], []
        )
        if result.succeeded:
            self._stepped = self._clock()
            logger.info(
                "rebalance of pool %s: plan %s %s, %d moves made so far (table %d)",
                self._keys.pool,
                step.plan,
                step.state,
                step.released,
                cluster.table.generation if cluster.table else 0,
            )
