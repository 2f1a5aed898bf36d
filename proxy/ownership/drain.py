"""Going down in good order: this member hands its slots over, once, while whoever wants to know waits for it.

Begun by SIGTERM, or over the session API (``POST /v1/drain``, which ``understudy leave`` calls from a preStop hook)
while the application still serves. There is no way back: the process is about to end. What is handed over to whom is
decided by ``understudy.proxy.ownership.slot_reconciler``; this says when that is done, or why it never will be.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.sessions.problems import problem
from understudy.proxy.sessions.session_api import respond

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
LINGER = 1.0
"""Seconds that a member still counts as needed after its last slot: until front Envoys have the routes without it."""
BEGIN_TIMEOUT = 10.0
"""Seconds that whoever waits for the end of a handover waits for its beginning.

An application's preStop hook also runs when the application alone is started again, and then nobody begins one. If
somebody does, it is a command that has yet to be loaded, on a machine that may be busy.
"""
MAX_WAIT = 600.0
HANDED_OVER, APPLICATION_GONE = "handed-over", "application-gone"


class Drain:
    """The end of one member.

    Args:
        context: the member.
        roles: hands its slots over.
        stir: tell the pool that the member's state has changed.
        others: who else could serve, now or soon.
        seconds: how long to try.
    """

    def __init__(
        self,
        context: MemberContext,
        roles: SlotReconciler,
        *,
        stir: Callable[[], None],
        others: Callable[[], list[str]],
        seconds: float,
    ) -> None:
        self._context = context
        self._roles = roles
        self._stir = stir
        self._others = others
        self._seconds = seconds
        self._work: asyncio.Task[None] | None = None
        self._ended_at: float | None = None

    @property
    def begun(self) -> bool:
        """Whether this member is leaving."""
        return self._work is not None

    def outstanding(self, now: float) -> str:
        """Why this member had better not stop yet, '' if it may. ``now`` is monotonic; safe in any thread."""
        if self._work is None:
            return "nobody has asked this member to hand its slots over"
        if self._ended_at is None:
            return f"{len(self._context.owned)} slots are still to be handed over"
        if now < self._ended_at + LINGER:
            return "front Envoys may not know yet"
        return ""

    def begin(self) -> "asyncio.Task[None]":
        """Begin to hand every slot over, unless that is under way; the task ends when it is done or given up."""
        if self._work is None:
            self._roles.going_down = self._context.going_down = True
            self._stir()
            self._work = asyncio.create_task(self._hand_over(), name="drain")
        return self._work

    async def run(self) -> None:
        """Hand every slot over; returns when none is left, nobody can take them, or the time is over."""
        await asyncio.shield(self.begin())

    async def _hand_over(self) -> None:
        holdings, give_up = self._context.owned, time.monotonic() + self._seconds
        while len(holdings) and time.monotonic() < give_up:
            self._roles.wake()
            if not self._others():
                logger.warning("nobody is left to take %d slots over", len(holdings))
                break
            await asyncio.sleep(POLL_INTERVAL)
        if len(holdings):
            logger.warning("%d slots were not handed over", len(holdings))
        self._ended_at = time.monotonic()


class DrainApi:
    """``POST /v1/drain?wait=SECONDS&until=handed-over``: begin, and wait at most so long.

    With ``until=application-gone`` the answer also waits until the application has stopped listening: for a sidecar
    that has to outlive it and is not made to by its orchestrator. ``listening`` tells whether it does.
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
            outstanding = self._outstanding(until)
            if not outstanding or time.monotonic() >= give_up:
                return web.json_response({"done": not outstanding, "reason": outstanding})
            await asyncio.sleep(POLL_INTERVAL)

    def _outstanding(self, until: str) -> str:
        outstanding = self._drain.outstanding(time.monotonic())
        if not outstanding and until == APPLICATION_GONE and self._listening():
            return "the application still listens"
        return outstanding
