"""The leader's work: write the slot table when it should be another one, and follow what comes of it.

Every write is one transaction that compares the `leader` key of this term and the table it replaces, so a
deposed leader, or one that decided on old facts, changes nothing and looks again. An unknown outcome is read
back. What the table should be is decided in :mod:`understudy.xds.planning.plan`; how long things took is put into spans
by :mod:`understudy.xds.tracing.failover_tracer`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from understudy.statesync.etcd.client import CreateRevision, EtcdClient, EtcdError, ModRevision, OutcomeUnknown, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner
from understudy.xds.control.election import Leadership
from understudy.xds.membership.cluster_state import World
from understudy.xds.membership.state_builder import Observer
from understudy.xds.planning.flap_damping import Calm
from understudy.xds.planning.plan import Causes, FirstTable, Plan, causes_in, next_plan
from understudy.xds.tracing.failover_tracer import Courses

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.2


class Leader:
    """Writes tables while its server leads.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: whether this server leads, and the fence of its term.
        observer: what it sees.
        courses: is told of every table written.
        now_ns: the process's clock.
        first: how long the first table of a pool waits for members.
        reached_since: since when etcd has answered this server without an outage, by its clock in ns.
        settle: seconds that changes of owner alone must have rested before the table follows them.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        *,
        leadership: Leadership,
        observer: Observer,
        courses: Courses,
        now_ns: Callable[[], int],
        first: FirstTable,
        reached_since: Callable[[], int],
        settle: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._leadership = leadership
        self._observer = observer
        self._courses = courses
        self._now = now_ns
        self._first = first
        self._reached_since = reached_since
        self._settle = settle
        self._causes: Causes | None = None
        self._owners: Mapping[int, Owner] = {}
        self._seen_owners: Mapping[int, Owner] = {}
        self._owners_changed = 0
        self._awake = asyncio.Event()
        self._written = 0
        self._leads = False
        self.calm = Calm()
        self.trouble = ""

    def wake(self) -> None:
        """The world, or the leadership, may have changed."""
        self._awake.set()

    async def run(self) -> None:
        """Lead until cancelled, whenever this server is the leader."""
        pause: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), pause)
            self._awake.clear()
            try:
                pause = await self._step()
                self.trouble = ""
            except EtcdError as error:
                self.trouble = str(error)
                logger.warning("slot table of pool %s not written: %s", self._keys.pool, error)
                pause = RETRY_SECONDS

    async def _step(self) -> float | None:
        """Write a table if one is due; returns after how many seconds to look again without being woken."""
        world = self._observer.world()
        if world is None or not self._leadership.is_leader:
            self._causes, self._leads = None, False
            return None
        if self._observer.revision < self._written:
            return None
        wait = self._first_wait(world) if world.table is None else self._settle_wait(world)
        if wait is None or wait > 0:
            return wait
        if not await self._decide(world):
            self._leadership.doubt()
            return RETRY_SECONDS
        self._causes, self._owners = causes_in(world), world.owners
        waits = (self.calm.look_again(self._now()), self._observer.look_again())
        return min((wait for wait in waits if wait is not None), default=None)

    async def _decide(self, world: World) -> bool:
        """Bring the table into line with a world; False if it could not be written as things stand now."""
        # The facts are frozen, so a large pool's decision need not hold up heartbeats.
        read_at = self._observer.table_fence
        plan = await asyncio.to_thread(self._tempered_plan, world)
        if plan is None:
            return True
        if not self._leadership.is_leader:
            return False
        revision = await self._write(plan, read_at)
        if not revision:
            return False
        self._written = revision
        logger.info(
            "pool %s: table %d written at revision %d: %d moves, lost: %s",
            self._keys.pool,
            plan.table.generation,
            revision,
            len(plan.moves),
            ", ".join(sorted(plan.table.lost)) or "nobody",
        )
        self._courses.begin(world, plan, self._now())
        return True

    def _tempered_plan(self, world: World) -> Plan | None:
        """The plan that is left when what would flap is held back."""
        now, at = self._now(), time.time()
        if not self._leads:
            self._leads, self.calm = True, replace(self.calm, began=now)
        self.calm = self.calm.found_etcd(self._reached_since())
        world = self.calm.reached(world, now)
        calm = self.calm.look(world, now)
        steadied = calm.steadied(world)
        plan = next_plan(steadied, at, calm.held(world))
        if plan is not None and calm.frozen is None:
            calm = calm.ask(world, plan.table.orders, now)
            if calm.frozen is not None:
                logger.error("planned moves are frozen: %s", calm.frozen.why)
                plan = next_plan(steadied, at, calm.held(world))
        self.calm = calm
        return plan

    def _first_wait(self, world: World) -> float | None:
        """Seconds until the first table of the pool is due; None while nobody could have a slot."""
        now = self._now()
        self._first = self._first.look(world, now)
        due = self._first.due()
        return None if due is None else max(0, due - now) / 1e9

    def _settle_wait(self, world: World) -> float:
        """Seconds until changes of owner may be weighed; 0 if there is another cause, or nothing to weigh."""
        if self._causes != causes_in(world):
            return 0
        now = self._now()
        if world.owners != self._seen_owners:
            self._seen_owners, self._owners_changed = world.owners, now
        if world.owners == self._owners:
            return 0
        return max(0, self._owners_changed - now + int(self._settle * 1e9)) / 1e9

    async def _write(self, plan: Plan, read_at: int) -> int:
        """Write a table in place of the one written at ``read_at`` (0: none); the revision, or 0 if that failed."""
        key, value = self._keys.table, plan.table.encode()
        guard = ModRevision(key, read_at) if read_at else CreateRevision(key, 0)
        try:
            result = await self._client.txn([self._leadership.fence, guard], [Put(key, value)])
        except OutcomeUnknown:
            found = await self._client.get(key)
            if found is not None and found.value == value:
                return found.mod_revision
            raise
        return result.revision if result.succeeded else 0
