"""Drills that operators start at the console: a drain of one member, which needs no right to signal processes.

The drill is that of ``understudy drill drain`` (``understudy.deploy.drill``): the same conditions and records, and the
measurement by what front Envoys report. It runs in the control server that serves the page. If that stops, the drain is
undone; if it is killed, the drain ends by itself.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import PoolLocation, TlsOptions
from understudy.deploy.console.wishes import Wish
from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.client import EtcdError
from understudy.xds.control.etcd_links import EtcdLink

if TYPE_CHECKING:
    from understudy.deploy.drill.drill import Drill
    from understudy.deploy.drill.settings import DrillResult

logger = logging.getLogger(__name__)

DRILL_SECONDS = 5.0
"""Duration of the fault, if the operator gives none; as the command's."""
STOP_TIMEOUT = 5.0
CHECKED_MOST = 200
"""Members of a pool up to which a preview asks each of them whether it is in sync."""
NONE: dict[str, Any] = {"state": "none", "headline": "No drill was started at this control server.", "now": ""}


class _Run(msgspec.Struct):
    """One drill. ``outcome`` is '' while it runs, ``task`` runs it."""

    member: str
    who: str
    at: float
    now: str = "it begins"
    outcome: str = ""
    missed: bool = False
    task: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        """What is going on now."""
        self.now = text.strip()

    def view(self) -> dict[str, Any]:
        """The drill as JSON data for pages: whether it runs, and what is known."""
        what = f"drain of {self.member}, started by {self.who or 'somebody'}"
        if not self.outcome:
            return {"state": "running", "headline": f"A drill is running: {what}.", "now": f"Now: {self.now}."}
        state = "missed" if self.missed else "done"
        return {"state": state, "headline": f"The last drill here, {what}, has ended.", "now": self.outcome}


class DrillRuns:
    """The drills of one control server, at most one at a time for each pool. ``tls`` reaches members and receivers."""

    def __init__(self, tls: TlsOptions | None) -> None:
        self._tls = tls
        self._runs: dict[str, _Run] = {}

    def view(self, pool: str) -> dict[str, Any]:
        """The newest drill of a pool for pages."""
        run = self._runs.get(pool)
        return run.view() if run is not None else NONE

    async def refusals(self, etcd: EtcdLink, pool: str, wish: Wish) -> str:
        """Why the drill must not start now; '' if it may."""
        if self._running(pool):
            return "a drill of this pool is running"
        drill = await self._drill(etcd, pool, wish, Actor("", "", ""), lambda _: None)
        return await drill.refusals()

    async def start(self, etcd: EtcdLink, pool: str, wish: Wish, actor: Actor) -> None:
        """Start the drill. Raises :class:`NegativeAnswer` if its conditions are not met; then nothing was changed."""
        if self._running(pool):
            raise NegativeAnswer("a drill of this pool is running")
        before = self._runs.get(pool)
        run = self._runs[pool] = _Run(wish.target, actor.who, time.time())
        try:
            drill = await self._checked(etcd, pool, wish, actor, run.say)
        except BaseException:
            self._forget(pool, before)
            raise
        run.task = asyncio.create_task(self._follow(run, drill.run), name=f"drill of pool {pool}")

    async def _checked(
        self, etcd: EtcdLink, pool: str, wish: Wish, actor: Actor, say: Callable[[str], None]
    ) -> "Drill":
        """A drill whose conditions are met."""
        drill = await self._drill(etcd, pool, wish, actor, say)
        if reasons := await drill.refusals():
            raise NegativeAnswer(f"the drill is refused, nothing was changed: {'; '.join(reasons.splitlines())}")
        return drill

    def _running(self, pool: str) -> bool:
        run = self._runs.get(pool)
        return run is not None and not run.outcome

    def _forget(self, pool: str, before: _Run | None) -> None:
        if before is None:
            del self._runs[pool]
        else:
            self._runs[pool] = before

    async def _drill(self, etcd: EtcdLink, pool: str, wish: Wish, actor: Actor, say: Callable[[str], None]) -> "Drill":
        """The drill; its modules are imported by the first one, in a thread, since that takes long."""
        await asyncio.to_thread(import_module, "understudy.deploy.drill.drill")
        from understudy.deploy.drill.conditions import DrillKind
        from understudy.deploy.drill.drill import Drill
        from understudy.deploy.drill.settings import DrillSettings

        settings = DrillSettings(
            DrillKind.DRAIN,
            member=wish.target,
            seconds=wish.seconds or DRILL_SECONDS,
            reason=wish.reason.strip(),
            tls=self._tls,
        )
        return Drill(settings, PoolLocation(etcd.settings, pool, Path(), None), etcd.client, say, actor)

    async def _follow(self, run: _Run, drill: Callable[[int], Awaitable["DrillResult"]]) -> None:
        """Run the drill, and note how it ended."""
        try:
            result = await drill(0)
        except (DeployError, NegativeAnswer, EtcdError) as error:
            run.outcome, run.missed = f"It failed: {error}", True
        except asyncio.CancelledError:
            run.outcome, run.missed = "It was interrupted: this control server stops.", True
            raise
        except Exception:
            logger.exception("a drill of %s failed", run.member)
            run.outcome, run.missed = "It failed; the log of this control server says why.", True
        else:
            run.outcome, run.missed = outcome_of(result), bool(result.missed)

    async def aclose(self) -> None:
        """End all drills and undo their drains."""
        tasks = [run.task for run in self._runs.values() if run.task is not None and not run.outcome]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT):
                await asyncio.gather(*tasks, return_exceptions=True)


def outcome_of(result: "DrillResult") -> str:
    """How a drill ended, in sentences."""
    seen = result.seen
    judged = f"Missed: {'; '.join(result.missed)}." if result.missed else "No objective was missed."
    if not seen.requests:
        return f"{judged} Front Envoys reported no request, so no request could fail."
    return f"{judged} {seen.failed} of {seen.requests} requests failed, as front Envoys report."
