"""``understudy demo``: kills a member of a pool under load and reports what its clients saw.

This module has the scenario. The pool comes from ``local_pool``, the clients from ``http_load``, the check from
``history_checker`` and the output from ``report``. Everything that was started is always stopped, also after Ctrl-C.
"""

import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from understudy.deploy.common.console_style import Terminal
from understudy.deploy.common.errors import DeployError
from understudy.deploy.demo.report import DemoOutcome, Rejoin, print_outcome, write_report
from understudy.deploy.demo.view import Progress
from understudy.deploy.inspect.converged import actives, not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.traces import read_trace
from understudy.deploy.load.history_checker import MemberKill, check_history
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.up import Interrupted, stop_signal, unless
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.waterfall import phases
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.names import KIND_TAKEOVER

# All processes share this machine with whatever else it does. A member that gets no CPU for some seconds must not be
# taken for dead: its sessions would move without need. A killed member is noticed by its refused connections.
LIVENESS = Liveness(missed_beats=50, unanswered_ms=5000)
CONVERGE_TIMEOUT = 120.0
TRACE_TIMEOUT = 5.0
POLL_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The options of the demo. Times in seconds."""

    sessions: int = 200
    rate: float = 300.0
    members: int = 3
    report: Path = Path("demo-report.json")
    keep: bool = False
    kill_after: float = 5.0
    down_for: float = 5.0
    back_for: float = 5.0
    console: Console = field(default_factory=Terminal)


async def run_demo(settings: DemoSettings) -> int:
    """Run the demo; returns the exit code: 0 if nothing was lost or failed, 1 if it was, 130 when interrupted."""
    directory = Path(tempfile.mkdtemp(prefix="understudy-demo-"))
    try:
        async with stop_signal() as stopping:
            outcome = await unless(stopping, _Demo(settings, directory).run())
    except Interrupted:
        _clean_up(settings, directory)
        settings.console.print("interrupted; everything is stopped")
        return 130
    except (DeployError, EtcdError):
        settings.console.print(f"the logs are kept in {directory / 'logs'}")
        raise
    _clean_up(settings, directory, keep=not outcome.flawless)
    return 0 if outcome.flawless else 1


def _clean_up(settings: DemoSettings, directory: Path, *, keep: bool = False) -> None:
    if settings.keep or keep:
        settings.console.print(f"logs and data are kept in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


class _Demo:
    """One run. The steps are methods in the order in which they happen."""

    def __init__(self, settings: DemoSettings, directory: Path) -> None:
        self._settings = settings
        self._console = settings.console
        self._pool = LocalPool(
            LocalSettings(directory=directory, spec=PoolSpec(pool="cart", liveness=LIVENESS), members=settings.members),
            say=self._console.print,
        )
        self._load = Load(self._pool.layout.front_url, settings.sessions, settings.rate)
        self._progress = Progress(self._console, self._load)

    async def run(self) -> DemoOutcome:
        began = time.monotonic()
        async with self._pool, EtcdClient(self._pool.etcd_endpoints) as etcd:
            try:
                return await self._play(etcd, began)
            finally:
                await self._load.close()
                self._console.print("stopping everything ...")

    async def _play(self, etcd: EtcdClient, began: float) -> DemoOutcome:
        settings = self._settings
        await self._wait_converged(etcd)
        self._console.print(f"the pool is up after {time.monotonic() - began:.1f} s: {self._pool.layout.front_url}")
        await self._load.open_sessions()
        victim = self._pool.layout.members[0].name
        with self._progress:
            self._load.start()
            await self._pass(settings.kill_after, "steady load")
            boot = await self._boot_of(etcd, victim)
            killed_at = self._load.clock()
            self._pool.processes.kill(*self._pool.member_processes(victim))
            self._progress.mark(f"kill -9 of {victim}: application and sidecar")
            await self._pass(settings.down_for, f"{victim} is dead")
            killing, rejoin_seconds, handed_back = await self._bring_back(etcd, victim, killed_at)
            await self._pass(settings.back_for, f"{victim} is back")
            await self._load.stop()
        final = await self._load.final_contents()
        result = check_history(self._load.history, final, killing, pacing=self._load.pacing)
        trace_id = trace_seed(self._pool.layout.pool, KIND_TAKEOVER, f"{victim}/{boot}").hex
        spans = await self._trace(trace_id)
        outcome = DemoOutcome(
            members=settings.members,
            killed=victim,
            result=result,
            rejoin=Rejoin(handed_back, result.rejoin_sessions_moved, result.rejoin_failed_requests, rejoin_seconds),
            trace_id=trace_id,
            spans=tuple(spans),
            etcd_version=(await etcd.status())[0].version,
            late=self._load.late,
            seconds=time.monotonic() - began,
        )
        write_report(outcome, settings.report)
        print_outcome(outcome, self._console, settings.report)
        return outcome

    async def _bring_back(self, etcd: EtcdClient, victim: str, killed_at: float) -> tuple[MemberKill, float, int]:
        """Start the killed member again and wait until it has its share. Returns the kill, seconds and slots."""
        rejoined_at = self._load.clock()
        self._progress.mark(f"{victim} is started again")
        await self._pool.processes.start_again(*self._pool.member_processes(victim))
        await self._wait_converged(etcd)
        state, _ = await read_pool(etcd, self._pool.layout.pool)
        share = actives(state).get(victim, 0)
        took = self._load.clock() - rejoined_at
        self._progress.mark(f"{victim} has taken back {share} slots")
        return MemberKill(victim, killed_at, rejoined_at), took, share

    async def _pass(self, seconds: float, what: str) -> None:
        self._progress.say(what)
        await asyncio.sleep(seconds)

    async def _wait_converged(self, etcd: EtcdClient) -> None:
        """Wait until the pool has converged (``understudy.deploy.inspect.converged``)."""
        names = [place.name for place in self._pool.layout.members]
        reason = ""
        try:
            async with asyncio.timeout(CONVERGE_TIMEOUT):
                while True:
                    try:
                        state, _ = await read_pool(etcd, self._pool.layout.pool)
                        reason = not_converged(state, names)
                    except EtcdError as error:
                        reason = str(error)
                    if not reason:
                        return
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise DeployError(f"the pool did not converge within {CONVERGE_TIMEOUT:.0f} s: {reason}") from None

    async def _boot_of(self, etcd: EtcdClient, member: str) -> str:
        state, _ = await read_pool(etcd, self._pool.layout.pool)
        return state.members[member].record.boot

    async def _trace(self, trace_id: str) -> list[StoredSpan]:
        """The failover's spans, once all its phases have arrived or after a timeout."""
        addresses = [place.http for place in self._pool.layout.controls]
        expected = {"detect", "claim", "push", "ack", "first_ok"}
        deadline = time.monotonic() + TRACE_TIMEOUT
        while True:
            spans = await read_trace(addresses, trace_id)
            if expected <= phases(spans).keys() or time.monotonic() > deadline:
                return spans
            await asyncio.sleep(POLL_INTERVAL)
