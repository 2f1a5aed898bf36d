"""The pools of a control server process: one that it is for, or several that know nothing of each other.

A process for one pool ends when a service of that pool fails. A process for several goes on: the streams of that pool
end, its lead goes to another replica, and it is started again after a pause. Until then streams for it are refused as
``UNAVAILABLE``. A process for all pools finds those that are new, and drops those whose spec and members are gone.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.process.log_context import LOG_POOL
from understudy.statesync.process.services import running_services, set_within
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.telemetry.timing.backoff import Backoff
from understudy.xds.control.leader_balance import PoolLead, Sightings, leads_of, standing_delay
from understudy.xds.control.pool_service import PoolService
from understudy.xds.envoy.routing_view import pool_of_mesh_routes
from understudy.xds.membership.heartbeat_server import HeartbeatServer
from understudy.xds.server.ads_router import NotServed
from understudy.xds.server.cache import AckEvent
from understudy.xds.server.wire import Request

logger = logging.getLogger(__name__)

RESTART_FIRST = 1.0
RESTART_LONGEST = 60.0
FIND_INTERVAL = 2.0
STARTING_SECONDS = 30.0
"""Seconds for which this process is not ready because a pool starts; after them the pool's trouble is its own."""
MOST_NAMED = 20
"""Pools that a refusal names at the most."""


class Pools(Protocol):
    """The pools of a process, as its HTTP interface asks for them."""

    @property
    def services(self) -> Iterable[PoolService]:
        """The pools that are served now."""

    @property
    def several(self) -> bool:
        """Whether this process is for several pools, so that a request must name one."""

    def find(self, pool: str) -> PoolService:
        """The service of a pool ('': the only one). Raises :class:`NotServed`."""

    def rows(self) -> list[dict[str, object]]:
        """Every pool of this process, for people: whether it is ready and led from here, and what is wrong."""

    def unready(self) -> str:
        """Why this process should not be given Envoys yet; '' if it should."""


class OnePool:
    """The pool of a process that is for one."""

    several = False

    def __init__(self, service: PoolService) -> None:
        self._service = service

    @property
    def services(self) -> tuple[PoolService]:
        """See :class:`Pools`."""
        return (self._service,)

    def find(self, pool: str) -> PoolService:
        """See :class:`Pools`."""
        if pool not in ("", self._service.pool):
            raise NotServed(not_served(pool, (self._service.pool,)))
        return self._service

    def rows(self) -> list[dict[str, object]]:
        """See :class:`Pools`."""
        return [_row(self._service.pool, self._service)]

    def unready(self) -> str:
        """See :class:`Pools`."""
        return self._service.unready()


Finder = Callable[[set[str]], Awaitable[set[str]]]
"""Finds the pools of an etcd cluster that are to be served, given those that are known."""


class _Run(msgspec.Struct, eq=False):
    """One pool that a process for several serves: its service while that runs, and its fault while it does not.

    ``etcd``: the name of the etcd cluster that it is in.
    """

    pool: str
    etcd: str
    since: float
    stop: asyncio.Event
    task: asyncio.Task[None] | None = None
    service: PoolService | None = None
    fault: str = ""
    failures: int = 0


class ServedPools:
    """The pools of a process that is for several.

    Args:
        make: makes the service of a pool, given its name, the name of its etcd cluster, and its standing delay.
        check: awaited with these names before a pool starts, and raises why it must not.
        me: the name of this control server.
        on_gone: called with the name of a pool that is not served any more.
    """

    several = True

    def __init__(
        self,
        make: Callable[[str, str, Callable[[str], float]], PoolService],
        check: Callable[[str, str], Awaitable[None]],
        me: str,
        on_gone: Callable[[str], None],
    ) -> None:
        self._make = make
        self._check = check
        self._me = me
        self._on_gone = on_gone
        self._runs: dict[str, _Run] = {}
        self._group: asyncio.TaskGroup | None = None
        self._sightings = Sightings()
        self._began: float | None = None
        self._unread: set[str] = set()
        self._read_any = False
        self._twice: dict[tuple[str, str], str] = {}

    # What runs

    async def run(self, first: Sequence[str], finders: Mapping[str, Finder]) -> None:
        """Serve the pools ``first``, and those that are found in each etcd cluster, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group, self._began, self._unread = group, _now(), set(finders)
            for pool in first:
                self.serve(pool)
            for etcd, find in finders.items():
                group.create_task(self._follow(etcd, find), name=f"pools of etcd {etcd}")
            await asyncio.Event().wait()

    async def _follow(self, etcd: str, find: Finder) -> None:
        where = f"etcd cluster {etcd}" if etcd else "etcd"
        while True:
            known = {pool for pool, run in self._runs.items() if run.etcd == etcd}
            try:
                found = await find(known)
            except EtcdError as error:
                logger.warning("cannot look for pools in %s: %s", where, error)
            else:
                self._note_twice(etcd, found)
                for pool in sorted(found - self._runs.keys()):
                    logger.info("pool %s is in %s: it is served now", pool, where)
                    self.serve(pool, etcd)
                for pool in known & self._runs.keys() - found:
                    self._drop_if_empty(self._runs[pool])
                self._unread.discard(etcd)
                self._read_any = True
            await asyncio.sleep(FIND_INTERVAL)

    def _note_twice(self, etcd: str, found: set[str]) -> None:
        """A name stands for one pool: another one of the name, in a second cluster, is not served."""
        twice = {pool: run.etcd for pool in found if (run := self._runs.get(pool)) is not None and run.etcd != etcd}
        for pool, other in twice.items():
            if (etcd, pool) not in self._twice:
                logger.error(
                    "pool %s of etcd cluster %s is not served: cluster %s has a pool of this name; rename one",
                    *(pool, etcd, other),
                )
        self._twice = {key: other for key, other in self._twice.items() if key[0] != etcd}
        self._twice |= {(etcd, pool): other for pool, other in twice.items()}

    def serve(self, pool: str, etcd: str = "") -> None:
        """Begin to serve a pool of an etcd cluster."""
        if self._group is None:
            raise RuntimeError("the pools are not running")
        run = self._runs[pool] = _Run(pool, etcd, _now(), asyncio.Event())
        run.task = self._group.create_task(self._keep(run), name=f"pool {pool}")

    def _drop_if_empty(self, run: _Run) -> None:
        """The pool has no spec any more. While it has members, it is served with its last spec."""
        service = run.service
        if service is not None and service.controller.state_builder.members:
            return
        if not run.stop.is_set():
            logger.info(
                "the spec of pool %s is gone from etcd, and it has no members: it is not served any more", run.pool
            )
            run.stop.set()

    async def _keep(self, run: _Run) -> None:
        """Run a pool's service until it is to stop, and again after every failure."""
        LOG_POOL.set(run.pool)
        backoff = Backoff(RESTART_FIRST, RESTART_LONGEST)
        while not run.stop.is_set():
            began = _now()
            try:
                await self._run_once(run)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this pool alone
                run.failures += 1
                run.fault = str(error)
                if _now() - began > RESTART_LONGEST:
                    backoff.reset()
                pause = backoff.next()
                logger.error(  # noqa: TRY400 - the traceback of a service is logged where it failed
                    "pool %s: %s; it is started again in %.0f s", run.pool, error, pause
                )
                await set_within(run.stop, pause)
        self._runs.pop(run.pool, None)
        self._sightings.forget(run.pool)
        self._on_gone(run.pool)

    async def _run_once(self, run: _Run) -> None:
        await self._check(run.pool, run.etcd)
        service = self._make(run.pool, run.etcd, lambda gone: self._standing_delay(run.pool, gone))
        async with running_services(service.services(), run.stop, f"pool {run.pool}") as running:
            run.service, run.fault = service, ""
            try:
                await running.until_stop_or_failure()
            finally:
                run.service, run.fault = None, str(running.failure or "")
            await service.withdraw()
            if running.failure:
                raise running.failure

    # Who leads

    def leads(self) -> list[PoolLead]:
        """Who leads each pool and who could, as this process knows it."""
        now = _now()
        return [self._lead_of(service, now) for service in self.services]

    def _lead_of(self, service: PoolService, now: float) -> PoolLead:
        state, cluster = service.controller.state_builder.state, service.controller.state_builder.current()
        moving = cluster is not None and cluster.table is not None and bool(cluster.pending_moves(cluster.table.orders))
        leader = self._me if service.leadership.is_leader else state.leader.record if state.leader else ""
        records = {name: at.revision for name, at in state.controls.items()}
        return PoolLead(service.pool, leader, self._sightings.update(service.pool, records, now), not moving)

    def hand_over(self, pool: str) -> None:
        """Let another replica lead a pool."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            run.service.leadership.hand_over()

    def _standing_delay(self, pool: str, gone: str) -> float:
        run = self._runs.get(pool)
        if run is None or run.service is None:
            return 0.0
        leads: Counter[str] = leads_of(self.leads())
        replicas = run.service.controller.state_builder.state.controls
        return standing_delay(self._me, pool, gone, replicas.keys(), leads)

    # What is asked for

    @property
    def services(self) -> list[PoolService]:
        """See :class:`Pools`."""
        return [run.service for run in self._runs.values() if run.service is not None]

    def rows(self) -> list[dict[str, object]]:
        """See :class:`Pools`."""
        return [
            {**_row(run.pool, run.service, run.fault, run.failures), **self._etcd_of(run)}
            for _, run in sorted(self._runs.items())
        ]

    def _etcd_of(self, run: _Run) -> dict[str, object]:
        """The etcd cluster of a pool, and those where another pool has its name; nothing if there is one cluster."""
        if not run.etcd:
            return {}
        return {"etcd": run.etcd, "not_served_of": sorted(etcd for etcd, pool in self._twice if pool == run.pool)}

    def find(self, pool: str) -> PoolService:
        """See :class:`Pools`."""
        run = self._runs.get(pool)
        if run is None:
            raise NotServed(not_served(pool, self._runs))
        if run.service is None:
            raise NotServed(f"pool {pool!r} is starting on this control server: {run.fault or 'not yet'}", later=True)
        return run.service

    def for_heartbeats(self, pool: str) -> HeartbeatServer:
        """The server of a pool's heartbeats. Raises :class:`NotServed`."""
        return self.find(pool).heartbeat

    def tally_of(self, pool: str) -> FrontTally | None:
        """Where the reports of the pool's front Envoys are counted, if it is served here."""
        run = self._runs.get(pool)
        return run.service.fronts if run is not None and run.service is not None else None

    def unready(self) -> str:
        """See :class:`Pools`. A pool that is faulty holds nothing up, and one that hangs does so for a while only."""
        if not self.were_read() and not self.waited_long():
            return f"the pools in etcd {', '.join(sorted(self._unread))} have not been read yet".replace("  ", " ")
        starting = next(self.starting(), "")
        return f"pool {starting} starts" if starting else ""

    # For front Envoys of several pools

    def names(self) -> set[str]:
        """The names of all pools that this process serves, or tries to."""
        return set(self._runs)

    def were_read(self) -> bool:
        """Whether it is known which pools there are."""
        return self._began is not None and not self._unread

    def waited_long(self) -> bool:
        """Whether an etcd cluster has not been read for so long that the pools of the others go on without it."""
        return self._read_any and self._began is not None and _now() - self._began >= STARTING_SECONDS

    def starting(self) -> Iterator[str]:
        """The pools that are expected to publish soon, and have not yet."""
        for run in self._runs.values():
            young = _now() - run.since < STARTING_SECONDS and not run.fault
            if young and (run.service is None or (run.service.unready() and not run.service.fault)):
                yield run.pool

    async def confirm_fresh(self, pool: str) -> None:
        """Return when the pool is published as it was in etcd at the call, or is not running."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            await run.service.controller.confirm_fresh()

    def acknowledged(self, pool: str, event: AckEvent) -> None:
        """A front Envoy of the pool acknowledged a response."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            run.service.on_delivery(event)

    def proven(self, pool: str, spec: PoolSpec) -> None:
        """Front Envoys of the pool have accepted what this spec makes."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            run.service.controller.front_records.accepted(spec)

    def held(self, pool: str) -> None:
        """What front Envoys get of the pool is held, or for another reason, or not any more."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            run.service.controller.front_records.held(run.service.front_hold)

    def wake(self, pool: str) -> None:
        """The pool's place at front Envoys has changed."""
        run = self._runs.get(pool)
        if run is not None and run.service is not None:
            run.service.controller.publisher.wake()

    @property
    def pushes(self) -> int:
        """Responses written to Envoys, of all pools."""
        return sum(service.cache.counters.pushes for service in self.services)


def _row(pool: str, service: PoolService | None, fault: str = "", failures: int = 0) -> dict[str, object]:
    reason = service.unready() if service is not None else fault or "it is starting"
    leads = service is not None and service.leadership.is_leader
    return {"pool": pool, "ready": not reason, "leads": leads, "reason": reason, "failures": failures}


def pool_of(request: Request) -> str:
    """The pool of a stream by its first request.

    A proxy of a mesh names the routes of the pool; its node is the mesh's. Every other client names the pool as the
    cluster of its node.
    """
    for name in (*request.subscribe, *request.names, *request.held):
        if pool := pool_of_mesh_routes(name):
            return pool
    return request.node.cluster if request.node is not None else ""


def not_served(pool: str, served: Iterable[str]) -> str:
    """The refusal of a pool, which names those that are served."""
    names = sorted(served)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    what = f"pool {pool!r} is not served here" if pool else "no pool is named"
    return f"{what}; this control server serves {', '.join(names[:MOST_NAMED]) or 'no pool yet'}{more}"


def _now() -> float:
    return asyncio.get_running_loop().time()
