"""The session API: an application in any language asks its own sidecar, over TCP on loopback or a Unix socket.

It turns HTTP requests into calls and replies into HTTP; it decides nothing. ``docs/api.md`` and
``openapi.json`` describe the calls.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Middleware

from understudy import __version__
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.http.requests import MAX_BODY, Status, problems, respond, respond_to
from understudy.proxy.peers.peer_protocol import COMMANDS_PATH, SESSIONS_PATH
from understudy.proxy.sessions.admission import SessionTokens, admin_wanted, token_wanted
from understudy.proxy.sessions.call import Call, claim_fault
from understudy.proxy.sessions.request_headers import carried_headers, session_headers
from understudy.proxy.sessions.service import SessionService
from understudy.statesync.http.headers import APP_VERSION_HEADER
from understudy.statesync.http.http_port import DIRECT, Direct, Handler
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.pool.spec_versions import VERSION_PATTERN
from understudy.statesync.sessions.command_batch import CommandBatch
from understudy.statesync.sessions.overwrites import SEEN_HEADER, VERSION_MOST
from understudy.statesync.sessions.session import valid_key

_is_version = re.compile(VERSION_PATTERN).match
_METHODS = ("GET", "PUT", "PATCH", "DELETE")
_SESSION_PATH = "/v1/sessions/"


def session_app(
    service: SessionService,
    status: Status,
    tokens: SessionTokens | None = None,
    session_bytes: Callable[[], int] = lambda: MAX_BODY,
) -> web.Application:
    """The application's side of the sidecar; with ``tokens`` every request must carry one of them.

    ``session_bytes``: the most that a session may have. A larger body is refused, so its content is not checked.
    """
    checks = [token_wanted(tokens)] if tokens else []
    app = web.Application(client_max_size=MAX_BODY, middlewares=[problems, *checks, admin_wanted()])

    async def create(request: web.Request) -> web.Response:
        call = await _call_of(request, "", session_bytes)
        return respond(call if isinstance(call, Reply) else await service.create(call))

    async def one(request: web.Request) -> web.StreamResponse:
        return await answer(request, request.match_info["key"])

    async def direct(request: web.Request) -> web.StreamResponse:
        return await answer(request, request.raw_path[len(_SESSION_PATH) :])

    async def answer(request: web.Request, key: str) -> web.StreamResponse:
        call = await _call_of(request, key, session_bytes)
        if isinstance(call, Reply):
            return respond(call)
        reply = service.get_now(call) if call.method == "GET" else None
        return respond_to(request, reply or await service.handle(call))

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status()[0])

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        view, is_ready = status()
        return web.Response(text=f"{view['state']}: {view['reason'] or 'ready'}\n", status=200 if is_ready else 503)

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=description(), content_type="application/json")

    add_session_routes(app, "/v1/sessions/{key}", one)  # first: aiohttp tries the routes in this order
    app.router.add_post("/v1/sessions", create)
    app.router.add_post("/v1/sessions/{key}/refusal", one)
    app.router.add_get("/v1/status", show_status)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/openapi.json", describe)
    app[DIRECT] = Direct(_is_plain, _inside((problems, *checks), direct))
    return app


def _inside(middlewares: Sequence[Middleware], handler: Handler) -> Handler:
    """``handler`` with these around it, the first one outermost."""
    for middleware in reversed(middlewares):
        handler = functools.partial(middleware, handler=handler)
    return handler


def _is_plain(request: web.Request) -> bool:
    """Whether a request names a session in a path that nothing has to be decoded in, with a method of session calls.

    ``admin_wanted`` has no say in these.
    """
    path = request.raw_path
    return (
        path.startswith(_SESSION_PATH)
        and request.method in _METHODS
        and valid_key(path[len(_SESSION_PATH) :])
        and "Expect" not in request.headers
    )


@functools.cache
def description() -> bytes:
    """The OpenAPI document that describes this API, with the version of this package."""
    document = json.loads(files(__package__).joinpath("openapi.json").read_text())
    document["info"]["version"] = __version__
    return json.dumps(document).encode()


def add_forwarded_calls(app: web.Application, service: SessionService) -> None:
    """Add the session calls of other sidecars to the peer API."""

    async def one(request: web.Request) -> web.Response:
        headers, body = carried_headers(request.headers), await request.read()
        key, app = request.match_info["key"], _app_of(request)
        return respond(await service.handle(Call(request.method, key, headers, body, hop=True, app=app)))

    async def commands(request: web.Request) -> web.Response:
        try:
            batch = CommandBatch.decode(await request.read())
        except ValueError as error:
            return respond(problem(400, "bad-request", str(error)))
        headers = carried_headers(request.headers)
        seen = whole_number(request.headers.get(SEEN_HEADER, ""), VERSION_MOST)
        return respond(
            await service.handle(Call.of_commands(batch, headers, hop=True, seen=seen, app=_app_of(request)))
        )

    add_session_routes(app, SESSIONS_PATH + "{key}", one)
    app.router.add_post(COMMANDS_PATH, commands)
    app.router.add_post(SESSIONS_PATH + "{key}", one)  # a refusal


def _app_of(request: web.Request) -> str:
    """The version of the application behind a forwarded call; '' if its sidecar does not say one that is valid."""
    app = request.headers.get(APP_VERSION_HEADER, "")
    return app if _is_version(app) else ""


def add_session_routes(app: web.Application, path: str, handler: Callable[[web.Request], object]) -> None:
    """Route the methods of a session call to ``handler``."""
    for method in _METHODS:
        app.router.add_route(method, path, handler)  # type: ignore[arg-type]


async def _call_of(request: web.Request, key: str, session_bytes: Callable[[], int]) -> Call | Reply:
    """An application's session call, or its refusal. A body that is too large ends in 413 by ``problems``."""
    headers = session_headers(request.headers)
    if isinstance(headers, Reply):
        return headers
    body = await _body_of(request) if request.can_read_body else b""
    is_content = request.method == "PUT" or not key
    refused = claim_fault(headers, body) if is_content and len(body) <= session_bytes() else None
    return refused or Call(request.method, key, headers, body)


async def _body_of(request: web.Request) -> bytes:
    """The body of a request, without waiting if all of it is here, as it is for most."""
    if request.content.is_eof() and request.content.total_bytes <= MAX_BODY:
        return request.content.read_nowait()
    return await request.read()
