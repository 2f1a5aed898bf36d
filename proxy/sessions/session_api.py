"""The session API: an application in any language asks its own sidecar, over TCP on loopback or a Unix socket.

It turns HTTP requests into calls and replies into HTTP; it decides nothing. ``docs/api.md`` describes the calls.
"""

from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from understudy.proxy.http.problems import problem
from understudy.proxy.http.requests import MAX_BODY, Status, problems, respond
from understudy.proxy.peers.peer_protocol import COMMANDS_PATH, SESSIONS_PATH
from understudy.proxy.sessions.admission import SessionTokens, admin_wanted, token_wanted
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.service import SessionService
from understudy.statesync.http.headers import SESSION_HEADERS
from understudy.statesync.sessions.command_batch import CommandBatch
from understudy.statesync.sessions.request_log import REQUEST_HEADER

CARRIED = (
    "content-type",
    "if-match",
    "if-none-match",
    "idempotency-key",
    "traceparent",
    *SESSION_HEADERS,
    REQUEST_HEADER,
)
"""The request headers of a session call; all others are dropped."""


def session_app(service: SessionService, status: Status, tokens: SessionTokens | None = None) -> web.Application:
    """The application's side of the sidecar; with ``tokens`` every request must carry one of them."""
    checks = [token_wanted(tokens)] if tokens else []
    app = web.Application(client_max_size=MAX_BODY, middlewares=[problems, *checks, admin_wanted()])

    async def create(request: web.Request) -> web.Response:
        return respond(await service.create(await call_of(request, key="")))

    async def one(request: web.Request) -> web.Response:
        return respond(await service.handle(await call_of(request, key=request.match_info["key"])))

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status()[0])

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        view, is_ready = status()
        return web.Response(text=f"{view['state']}: {view['reason'] or 'ready'}\n", status=200 if is_ready else 503)

    app.router.add_post("/v1/sessions", create)
    add_session_routes(app, "/v1/sessions/{key}", one)
    app.router.add_post("/v1/sessions/{key}/refusal", one)
    app.router.add_get("/v1/status", show_status)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    return app


def add_forwarded_calls(app: web.Application, service: SessionService) -> None:
    """Add the session calls of other sidecars to the peer API."""

    async def one(request: web.Request) -> web.Response:
        call = await call_of(request, key=request.match_info["key"])
        return respond(await service.handle(replace(call, hop=True)))

    async def commands(request: web.Request) -> web.Response:
        try:
            batch = CommandBatch.decode(await request.read())
        except ValueError as error:
            return respond(problem(400, "bad-request", str(error)))
        headers = {name: request.headers[name] for name in CARRIED if name in request.headers}
        return respond(await service.handle(Call.of_commands(batch, headers, hop=True)))

    add_session_routes(app, SESSIONS_PATH + "{key}", one)
    app.router.add_post(COMMANDS_PATH, commands)
    app.router.add_post(SESSIONS_PATH + "{key}", one)  # a refusal


def add_session_routes(app: web.Application, path: str, handler: Callable[[web.Request], object]) -> None:
    """Route the methods of a session call to ``handler``."""
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        app.router.add_route(method, path, handler)  # type: ignore[arg-type]


async def call_of(request: web.Request, *, key: str) -> Call:
    """The session call in an HTTP request. A body that is too large ends in 413 by ``problems``."""
    headers = {name: request.headers[name] for name in CARRIED if name in request.headers}
    return Call(request.method, key, headers, await request.read())
