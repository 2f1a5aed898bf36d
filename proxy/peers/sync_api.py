"""The operator's part of the peer API: how far a member's copies are, their digests, and copying one anew.

``understudy status --sync`` and ``understudy verify`` ask here, and Prometheus reads ``/metrics``. Read only but for
``resync``, which replaces a copy by what etcd holds. Session keys appear in ``entries`` alone, contents nowhere.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.peers.anti_entropy import AntiEntropy, NotHeld
from understudy.proxy.sessions.problems import problem
from understudy.proxy.sessions.session_api import REVISION_MOST, Status, as_json, respond, revision_in, slots_in
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.sessions.digests import digest_of

STATUS_PATH = "/peer/v1/status"
DIGEST_PATH = "/peer/v1/slots/digest"
METRICS_PATH = "/metrics"
SLOTS_MOST = 256
NAMED_MOST = 20
APPLY_TIMEOUT = 1.0


def sync_view(context: MemberContext) -> dict[str, object]:
    """How far this member's copies are. ``lag_ms`` is how long ago etcd last confirmed that they are current."""
    replica, mirror = context.replica, context.mirror
    wanted = context.view().table.slots_held_by(context.me) | frozenset(context.owned.slots)
    missing = sorted(wanted - replica.synced)
    return {
        "wanted": len(wanted),
        "in_sync": len(wanted) - len(missing),
        "missing": missing[:NAMED_MOST],
        "lag_ms": round(mirror.silent_for * 1000),
        "full_syncs": replica.copies,
        "last_full_sync": replica.copied_at,
        "gaps": max(mirror.resets - 1, 0),
        "checked_slots": context.counters.checked,
        "resyncs": context.counters.resyncs,
    }


Expose = Callable[[str], tuple[bytes, str]]
"""Text for Prometheus and its type, for what an ``Accept`` header asks for."""


def metrics_app(expose: Expose) -> web.Application:
    """``/metrics`` alone, for a port that asks for no certificate: numbers of the whole member, no session in them."""
    app = web.Application()

    _add_metrics(app, expose)
    return app


def _add_metrics(app: web.Application, expose: Expose) -> None:
    async def show(request: web.Request) -> web.Response:
        content, content_type = expose(request.headers.get("Accept", ""))
        return web.Response(body=content, headers={"Content-Type": content_type})

    app.router.add_get(METRICS_PATH, show)


class SyncApi:
    """The handlers of the operator's routes."""

    def __init__(self, context: MemberContext, status: Status, scrub: AntiEntropy, metrics: Expose) -> None:
        self._context = context
        self._status = status
        self._scrub = scrub
        self._metrics = metrics

    def add_to(self, app: web.Application) -> None:
        """Add the routes to the peer API."""
        app.router.add_get(STATUS_PATH, self._show_status)
        app.router.add_post(DIGEST_PATH, self._digest)
        app.router.add_get(r"/peer/v1/slots/{slot:\d{1,5}}/entries", self._entries)
        app.router.add_post(r"/peer/v1/slots/{slot:\d{1,5}}/resync", self._resync)
        _add_metrics(app, self._metrics)

    async def _show_status(self, request: web.Request) -> web.Response:
        revision = _number(request.query.get("revision", "0"))
        await _applied(self._context, revision or 0)
        return web.json_response(self._status()[0])

    async def _digest(self, request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            slots, revision = slots_in(asked, SLOTS_MOST), revision_in(asked["revision"])
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"a digest is asked for with slots and a revision: {error}"))
        if not await _applied(self._context, revision):
            return _behind(self._context, revision)
        found: dict[str, object] = {}
        for slot in slots:
            try:
                entries, _ = await self._scrub.entries(slot)
            except NotHeld:
                found[str(slot)] = None
            else:
                one = digest_of(entries, revision)
                found[str(slot)] = {"count": one.count, "digest": f"{one.digest:032x}"}
        return web.json_response({"member": self._context.me, "slots": found})

    async def _entries(self, request: web.Request) -> web.Response:
        revision = _number(request.query.get("revision", ""))
        if revision is None:
            return respond(problem(400, "bad-request", "entries are asked for with ?revision=NUMBER"))
        if not await _applied(self._context, revision):
            return _behind(self._context, revision)
        try:
            held, applied = await self._scrub.entries(int(request.match_info["slot"]))
        except NotHeld as error:
            return respond(problem(409, "not-held", str(error)))
        listed = [[key, entry.revision, f"{entry.digest:032x}"] for key, entry in held.items()]
        return web.json_response({"member": self._context.me, "applied": applied, "entries": listed})

    async def _resync(self, request: web.Request) -> web.Response:
        slot = int(request.match_info["slot"])
        try:
            count = await self._scrub.resync(slot)
        except NotHeld as error:
            return respond(problem(409, "not-held", str(error)))
        except EtcdError as error:
            return respond(problem(503, "not-ready", f"slot {slot} cannot be read: {error}", retry_after=1))
        return web.json_response({"slot": slot, "sessions": count})


async def _applied(context: MemberContext, revision: int) -> bool:
    """Wait, within bounds, until every change up to ``revision`` is in memory; whether it is."""
    try:
        async with asyncio.timeout(APPLY_TIMEOUT):
            await context.mirror.caught_up(revision)
    except TimeoutError:
        return False
    return True


def _behind(context: MemberContext, revision: int) -> web.Response:
    detail = f"this member has applied revision {context.mirror.revision}, and not {revision} yet"
    return respond(problem(503, "not-ready", detail, retry_after=1))


def _number(text: str) -> int | None:
    return whole_number(text, REVISION_MOST)
