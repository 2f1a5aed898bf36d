"""Draining: this member hands all its slots over before it ends.

SIGTERM begins a drain, or the session API while the application still serves (``POST /v1/drain``, which ``understudy
leave`` calls from a preStop hook). A drain cannot be undone: the process is about to end.
``understudy.proxy.ownership.slot_reconciler`` decides what is handed over to whom. This module says when the drain is
done, or why it will not be.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from understudy.proxy.http.problems import problem
from understudy.proxy.http.requests import respond
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
LINGER = 1.0
"""Seconds for which a member must stay after its last slot: until front Envoys have the routes without it."""
SAVE_SECONDS = 2.0
"""Seconds for which a member that could not hand all slots over, or got some meanwhile, saves what only memory has."""
BEGIN_TIMEOUT = 10.0
"""Seconds for which a caller that waits for the end of a drain waits for its beginning.

An application's preStop hook also runs when the application alone is restarted, and then nobody begins a drain. When
somebody does, it is a command that has to be loaded first, on a machine that may be busy.
"""
MAX_WAIT = 600.0
HANDED_OVER, APPLICATION_GONE = "handed-over", "application-gone"


class Drain:
    """The drain of this member.

    Args:
        state: why this member owns nothing; read by those who hand its slots over.
        owned: its slots.
        updates: wakes those who hand them over.
        on_change: called when the member's state has changed.
        others: who else could serve, now or soon.
        needed: how many slots of others count on this process's copy.
        save: saves what only memory has of the slots that are left, within so many seconds; returns how many slots have
            writes that etcd may lack.
        seconds: how long to try.
    """

    def __init__(
        self,
        state: DrainState,
        owned: OwnedSlots,
        updates: PoolUpdates,
        *,
        on_change: Callable[[], None],
        others: Callable[[], list[str]],
        needed: Callable[[], int],
        save: Callable[[float], Awaitable[int]],
        seconds: float,
    ) -> None:
        self._state = state
        self._owned = owned
        self._updates = updates
        self._on_change = on_change
        self._others = others
        self._needed = needed
        self._save = save
        self._seconds = seconds
        self._work: asyncio.Task[None] | None = None
        self._ended_at: float | None = None
        self._unprotected = ""
        self._saved_for = 0.0

    @property
    def begun(self) -> bool:
        """Whether the drain has begun."""
        return self._work is not None

    def outstanding(self, now: float) -> str:
        """Why it is worth waiting for the end of the drain, '' if it is over. ``now`` is monotonic; any thread may ask.

        The drain is also over when it was given up: see :meth:`result`.
        """
        if self._work is None:
            return "nobody has asked this member to hand its slots over"
        if self._ended_at is None and not len(self._owned):
            return f"{self._needed()} slots of other members still count on a copy here"
        if self._ended_at is None:
            return f"{len(self._owned)} slots are still to be handed over"
        if now < self._ended_at + LINGER:
            return "front Envoys may not know yet"
        return ""

    def result(self) -> tuple[bool, str]:
        """Whether nothing acknowledged needs this process any more, as far as the drain is over; and why not.

        Slots that no other member can take are no reason if etcd has their writes: the last member ends like that.
        """
        slots, needed = len(self._owned), self._needed()
        if self._unprotected and (slots or needed):
            return False, self._unprotected
        return True, f"no other member can take {slots} slots; etcd has their writes" if slots else ""

    def begin(self) -> "asyncio.Task[None]":
        """Begin to hand every slot over, unless that is under way; the task ends when it is done or given up."""
        if self._work is None:
            self._state.going_down = True
            self._on_change()
            self._work = asyncio.create_task(self._hand_over(), name="drain")
        return self._work

    async def run(self) -> None:
        """Hand every slot over, or else save it, before this process ends.

        Another member may not know yet that this one leaves, and hand it a slot when it has just given its last one
        away. So in the end it takes nothing any more, and saves what came until then.
        """
        await asyncio.shield(self.begin())
        self._owned.closed = True
        await self._save_left()

    async def _hand_over(self) -> None:
        give_up = time.monotonic() + self._seconds
        while (len(self._owned) or self._needed()) and time.monotonic() < give_up:
            self._updates.wake()
            if not self._others():
                logger.warning("no other member can take %d slots over", len(self._owned))
                break
            await asyncio.sleep(POLL_INTERVAL)
        slots, needed = len(self._owned), self._needed()
        if slots:
            lacking = await self._save_left()
            if lacking:
                self._unprotected = f"etcd may lack the newest writes of {lacking} of {slots} slots that are left"
            elif self._others():
                self._unprotected = f"{slots} slots were not handed over in time; etcd has their writes"
        elif needed:
            self._unprotected = f"{needed} slots of other members still count on a copy here"
        if self._unprotected:
            logger.warning("the drain has ended: %s", self._unprotected)
        self._ended_at = time.monotonic()

    async def _save_left(self) -> int:
        """Save what is left, for :data:`SAVE_SECONDS` in all. In so many slots etcd may still lack writes."""
        began = time.monotonic()
        lacking = await self._save(max(0.0, SAVE_SECONDS - self._saved_for))
        self._saved_for += time.monotonic() - began
        if lacking:
            logger.error("etcd may lack the newest writes of %d slots, which only memory has", lacking)
        return lacking


class DrainApi:
    """``POST /v1/drain?wait=SECONDS&until=handed-over``: begin a drain, and wait at most so many seconds for its end.

    The answer says whether it is ``done``. It comes at once when the drain is given up, with the ``reason``.

    With ``until=application-gone`` the answer also waits until the application has stopped listening. That is for a
    sidecar that must outlive its application although its orchestrator does not see to it. ``listening`` says whether
    the application listens.
    """

    def __init__(self, drain: Drain, listening: Callable[[], bool]) -> None:
        self._drain = drain
        self._listening = listening

    def add_to(self, app: web.Application) -> None:
        """Add the route to the session API."""
        app.router.add_post("/v1/drain", self._begin)

    async def _begin(self, request: web.Request) -> web.Response:
        until = request.query.get("until", HANDED_OVER)
        try:
            wait = float(request.query.get("wait", "0"))
        except ValueError:
            wait = -1.0
        if not 0 <= wait <= MAX_WAIT or until not in (HANDED_OVER, APPLICATION_GONE):
            detail = f"wait takes 0 to {MAX_WAIT:g} seconds, until takes {HANDED_OVER} or {APPLICATION_GONE}"
            return respond(problem(400, "bad-request", detail))
        self._drain.begin()
        give_up = time.monotonic() + wait
        while True:
            waits_for = self._waits_for(until)
            if not waits_for:
                done, reason = self._drain.result()
                return web.json_response({"done": done, "reason": reason})
            if time.monotonic() >= give_up:
                return web.json_response({"done": False, "reason": waits_for})
            await asyncio.sleep(POLL_INTERVAL)

    def _waits_for(self, until: str) -> str:
        outstanding = self._drain.outstanding(time.monotonic())
        if not outstanding and until == APPLICATION_GONE and self._listening():
            return "the application still listens"
        return outstanding
