"""The practice of a planned switch: a site is out of service for a while, and comes back (``drill site-offline``).

It is the act of ``understudy site offline``, with its refusals and an expiry: if this process is killed, the site comes
back by itself. While the site is away, objectives are watched. As soon as one breaks, or a member elsewhere goes, the
site is brought back. How it ended is stored in etcd.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from understudy.deploy.drill.conditions import ClientView, members_of_site, slots_by_member
from understudy.deploy.drill.measure import ClientMeasure
from understudy.deploy.drill.settings import DrillSettings
from understudy.deploy.operate import service
from understudy.deploy.operate.site_offline import checked_site_offline
from understudy.statesync.audit.entry import Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, ModRevision, Put
from understudy.statesync.pool.practice import Outcome, Practice, Practices
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import PoolState

EMPTY_TIMEOUT = 60.0
"""Seconds for the site to hand all its slots over."""
BACK_TIMEOUT = 120.0
POLL_INTERVAL = 0.25
FEW = 3
"""So few failed requests break no objective while the practice runs, however few requests there are."""


def broken(requests: int, failed: int, wanted: Objectives) -> str:
    """Which objective is broken by the requests since the practice began; '' for none."""
    if failed <= FEW or failed <= requests * wanted.failed_requests:
        return ""
    return f"{failed} of {requests} requests failed (objective {wanted.failed_requests:.3%})"


def lost_elsewhere(before: PoolState, now: PoolState, site: str) -> str:
    """Which member outside the site can no longer serve since the practice began; '' for none."""
    for name, at in sorted(before.members.items()):
        if at.record.site == site or not at.record.state.may_hold_slots:
            continue
        found = now.members.get(name)
        if found is None or found.record.boot != at.record.boot or not found.record.state.may_hold_slots:
            return f"{name} on another site can no longer serve"
    return ""


class SitePractice:
    """One practice. ``outcome`` and ``why`` say how it ended, as far as it is known."""

    def __init__(self, settings: DrillSettings, etcd: EtcdClient, actor: Actor) -> None:
        self._settings = settings
        self._etcd = etcd
        self._actor = actor
        self._away = ""
        self._began = 0.0
        self._seconds = 0.0
        self._back_seconds: float | None = None
        self.site = ""
        self.outcome = Outcome.INTERRUPTED
        self.why = "the command was stopped"

    def intent(self, site: str) -> Intent:
        """Out of service, until some time after the practice should be over."""
        now, who = time.time(), self._actor.who or "somebody"
        until = now + self._settings.seconds + EMPTY_TIMEOUT + BACK_TIMEOUT
        return Intent(site=site, until=until, since=now, drill=who)

    async def require_allowed(self, state: PoolState, site: str) -> None:
        """Raise ``NegativeAnswer`` where ``site offline`` refuses."""
        await checked_site_offline(self._etcd, state, self.intent(site))

    async def begin(self, state: PoolState, site: str) -> None:
        """Take the site out of service. Raises ``NegativeAnswer`` where ``site offline`` refuses."""
        change = service.site_offline(state, self.intent(site))
        self.site = self._away = site
        self._began = time.time()
        await service.carry_out(self._log(state), change)

    async def hold(self, before: PoolState, read: Callable[[], Awaitable[PoolState]], measure: ClientMeasure) -> None:
        """Wait until the practice is over: its time has passed, or something is wrong."""
        began, emptied = time.monotonic(), False
        wanted = before.spec.record.objectives if before.spec else Objectives()
        members = members_of_site(before, self.site)
        while (passed := time.monotonic() - began) < self._settings.seconds:
            state = await read()
            owned = sum(slots_by_member(state).get(member, 0) for member in members)
            emptied |= not owned
            if why := broken(*await measure.so_far(), wanted) or lost_elsewhere(before, state, self.site):
                self.outcome, self.why = Outcome.INTERRUPTED, why
                return
            if not emptied and passed > EMPTY_TIMEOUT:
                self.outcome, self.why = Outcome.FAILED, f"site {self.site} still owns {owned} slots"
                return
            await asyncio.sleep(POLL_INTERVAL)
        if emptied:
            self.outcome, self.why = Outcome.SUCCEEDED, ""
        else:
            self.outcome, self.why = Outcome.FAILED, f"site {self.site} did not hand all its slots over in time"

    async def undo(self, state: PoolState) -> None:
        """Bring the site back into service. Safe to repeat."""
        if self._away and self._away in state.sites:
            await service.carry_out(self._log(state), service.site_online(state, self._away, time.time()))
        self._away = ""
        self._seconds = round(time.time() - self._began, 1)

    async def await_return(self, before: PoolState, read: Callable[[], Awaitable[PoolState]]) -> None:
        """Wait until the site serves its share again. A share may be two slots off, before and now."""
        began, members = time.monotonic(), members_of_site(before, self.site)
        wanted = sum(slots_by_member(before).get(member, 0) for member in members) - 2
        while (passed := time.monotonic() - began) < BACK_TIMEOUT:
            owned = slots_by_member(await read())
            if sum(owned.get(member, 0) for member in members) >= wanted:
                self._back_seconds = round(passed, 1)
                return
            await asyncio.sleep(POLL_INTERVAL)
        if self.outcome is Outcome.SUCCEEDED:
            self.outcome, self.why = Outcome.FAILED, f"site {self.site} does not have its slots back"

    def judge(self, missed: Sequence[str]) -> tuple[str, ...]:
        """Take in which objectives were missed by all measured values. Returns them, and how it ended unless well."""
        if missed and self.outcome is Outcome.SUCCEEDED:
            self.outcome, self.why = Outcome.FAILED, f"missed {missed[0]}"
            return tuple(missed)
        return (*missed, *([f"practice {self.outcome}: {self.why}"] if self.outcome is not Outcome.SUCCEEDED else []))

    async def store(self, state: PoolState, seen: ClientView | None) -> None:
        """Add how it ended to the pool's record, whatever other commands add meanwhile."""
        run = Practice(
            self.site,
            self._began,
            self._seconds,
            self.outcome,
            self.why,
            seen.requests if seen else 0,
            seen.failed if seen else 0,
            self._back_seconds,
        )
        key = state.keys.practices
        while True:
            found = await self._etcd.get(key)
            known = _decoded(found.value) if found else Practices()
            put = Put(key, known.with_run(run, self._settings.every).encode())
            if (await self._etcd.txn([ModRevision(key, found.mod_revision if found else 0)], [put])).succeeded:
                return

    def _log(self, state: PoolState) -> OperatorLog:
        return OperatorLog(self._etcd, state.keys, self._actor, self._settings.why)


def _decoded(value: bytes) -> Practices:
    try:
        return Practices.decode(value)
    except ValueError:
        return Practices()
