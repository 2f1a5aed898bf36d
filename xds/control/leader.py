"""The leader's work: write the slot table when another one is due, and have its results traced.

Every write is one transaction. It compares the `leader` key of this term and the table that it replaces. So a leader
that was deposed, or that decided on old facts, changes nothing and decides again. After an unknown outcome the table is
read back. The transaction also writes the table's record of the audit log (:mod:`understudy.xds.control.decision_log`).
The content of the table is decided in :mod:`understudy.xds.planning.plan`, and
:mod:`understudy.xds.tracing.failover_tracer` records how long the changes took.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from understudy.statesync.etcd.client import (
    CreateRevision,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    ModRevision,
    OutcomeUnknown,
    Put,
    Rejected,
)
from understudy.statesync.pool.keys import GroupKeys, PoolKeys
from understudy.statesync.pool.records import Owner, Table
from understudy.statesync.process.services import set_within
from understudy.xds.control.decision_log import DecisionLog
from understudy.xds.control.election import Leadership
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.flap_damping import FlapDamping, Hold
from understudy.xds.planning.plan import DecisionInputs, FirstTableTimer, TablePlan, decision_inputs, next_plan
from understudy.xds.planning.recovery import Recovery
from understudy.xds.planning.site_group import told_to_group
from understudy.xds.planning.site_switch import SiteFreeze

logger = logging.getLogger(__name__)

RETRY_INTERVAL = 0.2
ATTEMPTS = 3
"""Another attempt is made at once if only the audit log was changed by somebody else, or etcd keeps the group off."""
TableWritten = Callable[[ClusterState, TablePlan, int], None]
"""Called with the pool before the table, the plan that was written, and the time (ns)."""


class Leader:
    """Writes tables while its server leads.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: whether this server leads, and the fence of its term.
        state_builder: the pool as this server sees it.
        log: the audit log, which gets a record of every table.
        on_table: called with every table written.
        now_ns: the process's clock.
        first_table: how long the first table of a pool waits for members.
        etcd_well_since: since when etcd has answered this server without an outage, by its clock in ns.
        settle: seconds without further changes of owner before the table follows changes that nothing else explains.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        *,
        leadership: Leadership,
        state_builder: StateBuilder,
        log: DecisionLog,
        on_table: TableWritten,
        now_ns: Callable[[], int],
        first_table: FirstTableTimer,
        etcd_well_since: Callable[[], int],
        settle: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._leadership = leadership
        self._state_builder = state_builder
        self._log = log
        self._on_table = on_table
        self._now = now_ns
        self._first_table = first_table
        self._etcd_well_since = etcd_well_since
        self._settle = settle
        self._inputs: DecisionInputs | None = None
        self._owners: Mapping[int, Owner] = {}
        self._seen_owners: Mapping[int, Owner] = {}
        self._owners_changed = 0
        self._wake = asyncio.Event()
        self._written = 0
        self._leads = False
        self.damping = FlapDamping()
        self.recovery = Recovery()
        self.site_freeze = SiteFreeze()
        self.trouble = ""

    def wake(self) -> None:
        """The pool, or the leadership, may have changed."""
        self._wake.set()

    def holds(self, cluster: ClusterState, now: int) -> list[Hold]:
        """What holds planned moves back now."""
        return [*self.damping.holds(), *self.site_freeze.rests(cluster, now)]

    async def run(self) -> None:
        """Write tables until cancelled, whenever this server leads."""
        pause: float | None = None
        while True:
            await set_within(self._wake, pause)
            self._wake.clear()
            try:
                pause = await self._step()
                self.trouble = ""
            except EtcdError as error:
                self.trouble = str(error)
                logger.warning("slot table of pool %s not written: %s", self._keys.pool, error)
                pause = RETRY_INTERVAL

    async def _step(self) -> float | None:
        """Write a table if one is due; returns the seconds until the next step is due without a wake-up."""
        cluster = self._state_builder.current()
        if cluster is None or not self._leadership.is_leader:
            self._inputs, self._leads = None, False
            return None
        if self._state_builder.revision < self._written or not self._state_builder.group_known:
            return None
        wait = self._first_wait(cluster) if cluster.table is None else self._settle_wait(cluster)
        if wait is None or wait > 0:
            return wait
        if not await self._decide(cluster):
            self._leadership.check_again()
            return RETRY_INTERVAL
        self._inputs, self._owners = decision_inputs(cluster), cluster.owners
        now = self._now()
        waits = (
            self.damping.seconds_until_release(now),
            self.recovery.seconds_until_due(cluster, now),
            self._state_builder.seconds_until_site_returns(),
            self.site_freeze.seconds_until_end(now),
        )
        return min((wait for wait in waits if wait is not None), default=None)

    async def _decide(self, cluster: ClusterState) -> bool:
        """Write the table that the pool needs; False if it could not be written."""
        # The state is frozen. A thread can decide on it, so that a large pool's decision does not delay heartbeats.
        read_at = self._state_builder.table_fence
        prepared = asyncio.create_task(self._log.prepare())  # meanwhile, so that it delays no table
        try:
            plan = await asyncio.to_thread(self._damped_plan, cluster)
            await prepared
        finally:
            prepared.cancel()
        if plan is None:
            return True
        if not self._leadership.is_leader:
            return False
        revision = await self._write(plan, read_at, group_puts(cluster, plan.table))
        if not revision:
            return False
        self._written = revision
        logger.info(
            "pool %s: table %d written at revision %d: %d moves, lost: %s",
            self._keys.pool,
            plan.table.generation,
            revision,
            len(plan.moves),
            ", ".join(sorted(plan.table.lost)) or "none",
        )
        self._on_table(cluster, plan, self._now())
        return True

    def _damped_plan(self, cluster: ClusterState) -> TablePlan | None:
        """The next table without the moves that flap damping holds back."""
        now, at = self._now(), time.time()
        if not self._leads:
            self._leads, self.damping, self.recovery = True, replace(self.damping, began=now), Recovery()
        self.damping = self.damping.etcd_reached_since(self._etcd_well_since())
        cluster = self.damping.with_cut_off_kept(cluster, now)
        recovery = self.recovery.observe(cluster, self._state_builder.complete(), now)
        released = not recovery.settled <= self.recovery.settled
        damping, self.recovery = self.damping.observe(cluster, now, released=released), recovery
        settled = recovery.members() - damping.unstable().keys()
        considered = damping.with_members_held(cluster)
        self.site_freeze = self.site_freeze.observe(cluster, at, now)
        frozen, lately_back = self.site_freeze.holds(now), self.site_freeze.lately_back(now)
        held = damping.held_slots(cluster)
        plan = next_plan(considered, at, held, settled, frozen=frozen, lately_back=lately_back)
        if plan is not None and plan.switches:
            damping = damping.with_cause(now)
        if plan is not None and damping.frozen is None:
            damping = damping.with_plan(cluster, plan.table.orders, now)
            if damping.frozen is not None:
                logger.error("planned moves are frozen: %s", damping.frozen.why)
                held = damping.held_slots(cluster)
                plan = next_plan(considered, at, held, settled, frozen=frozen, lately_back=lately_back)
        self.damping = damping
        return plan

    def _first_wait(self, cluster: ClusterState) -> float | None:
        """Seconds until the first table of the pool is due; None while no member may have a slot."""
        now = self._now()
        self._first_table = self._first_table.observe(cluster, now)
        due = self._first_table.due()
        return None if due is None else max(0, due - now) / 1e9

    def _settle_wait(self, cluster: ClusterState) -> float:
        """Seconds until a decision may follow changes of owner; 0 if there is another cause, or no change."""
        if self._inputs != decision_inputs(cluster):
            return 0
        now = self._now()
        if cluster.owners != self._seen_owners:
            self._seen_owners, self._owners_changed = cluster.owners, now
        if cluster.owners == self._owners:
            return 0
        return max(0, self._owners_changed - now + int(self._settle * 1e9)) / 1e9

    async def _write(self, plan: TablePlan, read_at: int, for_group: Sequence[Put | Delete]) -> int:
        """Replace the table written at ``read_at`` (0: there is none); returns the revision, or 0 if that failed.

        The same transaction tells the group. If etcd refuses that to this server, the table is written without it.
        """
        key, value = self._keys.table, plan.table.encode()
        guard = ModRevision(key, read_at) if read_at else CreateRevision(key, 0)
        for _ in range(ATTEMPTS):
            record = self._log.next(plan, read_at)
            compares = [self._leadership.fence, guard, record.compare]
            try:
                puts = [Put(key, value), *record.puts, *for_group]
                result = await self._client.txn(compares, puts, [Get(record.compare.key)])
            except Rejected as error:
                if not for_group:
                    raise
                logger.warning("pool %s cannot tell its group where it serves: %s", self._keys.pool, error)
                for_group = ()
                continue
            except OutcomeUnknown:
                self._log.forget()
                found = await self._client.get(key)
                if found is not None and found.value == value:
                    return found.mod_revision
                raise
            if result.succeeded:
                self._log.written(record, result.revision)
                return result.revision
            if not self._log.correct(record, result.answers[0]):
                break
        return 0


def group_puts(cluster: ClusterState, table: Table) -> list[Put | Delete]:
    """What a new table changes in what the pool tells its group, and in the one that it was in before."""
    pool, before = cluster.spec.pool, cluster.table.group if cluster.table else ""
    left = [Delete(GroupKeys(before).pool(pool))] if before and before != table.group else []
    if not table.group:
        return [*left]
    sites = {name: member.site for name, member in cluster.members.items()}
    record = told_to_group(cluster.spec, table.away, table.orders, sites)
    return [*left, Put(GroupKeys(table.group).pool(pool), record.encode())]
