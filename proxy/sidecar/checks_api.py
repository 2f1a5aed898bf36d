"""Checks over HTTP, on the session API: an application or an operator's script registers checks and reports."""

import asyncio
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.check_registry import CheckRegistry, CheckState
from understudy.proxy.health.loop_lag import STALLED_AFTER, LoopLag
from understudy.proxy.http.problems import problem
from understudy.proxy.http.requests import as_json, respond
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.session import valid_key

REGISTERED = "registered"
MAX_CHECKS = 100
MAX_REASON = 500
MAX_DEADLINE = 86_400.0


def built_in_checks(
    application: AppHealthCheck, reads: ReadDeadline, replica: Replica, loop_lag: LoopLag
) -> list[Mapping[str, object]]:
    """The sidecar's own checks, as they are listed."""
    copying = len(replica.held) - len(replica.synced)
    late = f"slowest recent turn was {loop_lag.worst * 1000:.0f} ms late"

    def view(name: str, fault: str, note: str = "") -> Mapping[str, object]:
        return {"name": name, "state": "problem" if fault else "ok", "reason": fault or note, "source": "built in"}

    return [
        view("application", application.reason),
        view("etcd", reads.fault),
        view("replica", replica.fault, f"{copying} slots are being copied" if copying else ""),
        view("event-loop", late if loop_lag.worst > STALLED_AFTER else "", late),
    ]


class ChecksApi:
    """The handlers. ``built_in`` lists the sidecar's own checks; ``on_change`` is called at every change."""

    def __init__(
        self, book: CheckRegistry, built_in: Callable[[], list[Mapping[str, object]]], on_change: Callable[[], None]
    ) -> None:
        self._book = book
        self._built_in = built_in
        self._on_change = on_change

    def add_to(self, app: web.Application) -> None:
        """Add the routes to the session API."""
        app.router.add_get("/v1/checks", self._list)
        app.router.add_put("/v1/checks/{name}", self._register)
        app.router.add_post("/v1/checks/{name}", self._report)
        app.router.add_delete("/v1/checks/{name}", self._remove)

    async def _list(self, _: web.Request) -> web.Response:
        now = time.monotonic()
        own = [check.view(now) for _, check in sorted(self._book.checks.items())]
        return web.json_response({"checks": [*self._built_in(), *own]})

    async def _register(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            deadline = float(str(as_json(await request.read())["deadline_seconds"]))
        except (ValueError, KeyError):
            deadline = 0.0
        if not valid_key(name):
            detail = "a check's name has 1 to 256 of the characters A-Z a-z 0-9 - . _ ~ :, and is not . or .."
            return respond(problem(400, "bad-request", detail))
        if not 0 < deadline <= MAX_DEADLINE:
            detail = 'a deadline is above 0 and at most a day: {"deadline_seconds": 10}'
            return respond(problem(400, "bad-request", detail))
        known = self._book.checks.get(name)
        if known is not None and known.source != REGISTERED:
            return self._of_the_sidecar(name, "register another name")
        if known is None and len(self._book.checks) >= MAX_CHECKS:
            return respond(problem(409, "check-taken", f"there are {MAX_CHECKS} checks already: remove one first"))
        self._book.register(name, deadline, REGISTERED, time.monotonic())
        return self._changed(name, 200 if known else 201)

    async def _report(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            said = as_json(await request.read())
            state, reason = CheckState(str(said["state"])), str(said.get("reason", ""))[:MAX_REASON]
        except (ValueError, KeyError):
            return respond(problem(400, "bad-request", 'send {"state": "ok" | "init" | "problem", "reason": "..."}'))
        known = self._book.checks.get(name)
        if known is None:
            return self._unknown(name)
        if known.source != REGISTERED:
            return self._of_the_sidecar(name, "register another name and report for that")
        self._book.report(name, state, reason, time.monotonic())
        return self._changed(name, 200)

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        known = self._book.checks.get(name)
        if known is None:
            return self._unknown(name)
        if known.source != REGISTERED:
            return self._of_the_sidecar(name, "take it out of the pool's spec, or of the sidecar's --checks")
        self._book.remove(name)
        self._on_change()
        return web.Response(status=204)

    def _changed(self, name: str, status: int) -> web.Response:
        check = self._book.checks[name]
        self._on_change()
        # A missed deadline is a change as well, and its time is known now.
        asyncio.get_running_loop().call_later(check.deadline + 0.01, self._on_change)
        return web.json_response(check.view(time.monotonic()), status=status)

    @staticmethod
    def _of_the_sidecar(name: str, remedy: str) -> web.Response:
        detail = f"the sidecar runs check {name} by itself: {remedy}"
        return respond(problem(409, "check-taken", detail))

    @staticmethod
    def _unknown(name: str) -> web.Response:
        detail = f"there is no check {name}: register it first, also after a restart of the sidecar"
        return respond(problem(404, "no-such-check", detail))
