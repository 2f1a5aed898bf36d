"""The operator's part of the peer API: status, digests of a member's copies, and making one copy again.

``understudy status --sync`` and ``understudy verify`` ask here, and Prometheus reads ``/metrics``. Only ``resync``
changes anything: it replaces a copy by what the active has, and that of the active by what etcd has. Only ``entries``
shows session keys; nothing shows contents.
"""

from aiohttp import web

from understudy.proxy.http.problems import problem
from understudy.proxy.http.requests import MAX_REVISION, Expose, Status, as_json, respond, slots_in
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.peers.anti_entropy import AntiEntropy, NotHeld, RepairRefused
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.sessions.digests import digest_of

DIGEST_PATH = "/peer/v1/slots/digest"
METRICS_PATH = "/metrics"
MAX_SLOTS_ASKED = 256
APPLY_TIMEOUT = 1.0


def metrics_app(expose: Expose) -> web.Application:
    """Only ``/metrics``, for a port without certificates: numbers of the whole member, nothing of sessions."""
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

    def __init__(
        self, me: str, copies: LocalCopies, status: Status, anti_entropy: AntiEntropy, metrics: Expose
    ) -> None:
        self._me = me
        self._copies = copies
        self._status = status
        self._anti_entropy = anti_entropy
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
        await self._copies.caught_up(revision or 0, APPLY_TIMEOUT)
        return web.json_response(self._status()[0])

    async def _digest(self, request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            slots = slots_in(asked, MAX_SLOTS_ASKED)
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"a digest needs slots: {error}"))
        if "revision" in asked:  # 0.1.0
            return respond(problem(400, "bad-request", "this member is of a later release: use its verify"))
        found: dict[str, object] = {}
        for slot in slots:
            try:
                one = digest_of((await self._anti_entropy.snapshot(slot)).entries)
            except NotHeld:
                found[str(slot)] = None
            else:
                found[str(slot)] = {"count": one.count, "digest": f"{one.digest:032x}"}
        return web.json_response({"member": self._me, "slots": found})

    async def _entries(self, request: web.Request) -> web.Response:
        try:
            copy = await self._anti_entropy.snapshot(int(request.match_info["slot"]))
        except NotHeld as error:
            return _not_held(error)
        listed = [[key, entry.version, f"{entry.digest:032x}"] for key, entry in copy.entries.items()]
        return web.json_response({"member": self._me, **copy.progress._asdict(), "entries": listed})

    async def _resync(self, request: web.Request) -> web.Response:
        slot = int(request.match_info["slot"])
        try:
            count = await self._anti_entropy.resync(slot)
        except NotHeld as error:
            return _not_held(error)
        except RepairRefused as error:
            return respond(problem(503, "not-ready", str(error), retry_after=1))
        except EtcdError as error:
            return respond(problem(503, "not-ready", f"slot {slot} cannot be read: {error}", retry_after=1))
        return web.json_response({"slot": slot, "sessions": count})


def _not_held(error: NotHeld) -> web.Response:
    return respond(problem(409, "not-held", str(error)))


def _number(text: str) -> int | None:
    return whole_number(text, MAX_REVISION)
