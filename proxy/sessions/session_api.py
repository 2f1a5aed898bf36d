"""The session API: what an application in any language asks its own sidecar, over TCP on loopback or a Unix socket.

Turns HTTP into :class:`Call` and answers back; decides nothing. See ``docs/api.md`` for the calls.
"""

import logging
from collections.abc import Callable, Mapping

from aiohttp import web

from understudy.proxy.sessions.admission import SessionTokens, admin_wanted, token_wanted
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.problems import Reply, problem
from understudy.proxy.sessions.service import SessionService
from understudy.statesync.http.headers import CALLER_HEADER
from understudy.statesync.http.http_port import BROKEN_BODY
from understudy.statesync.parsing.strict_json import read_json
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.sessions.request_log import REQUEST_HEADER

logger = logging.getLogger(__name__)

CARRIED = (
    "content-type",
    "if-match",
    "if-none-match",
    "idempotency-key",
    "understudy-ttl",
    "understudy-consistency",
    "understudy-durability",
    "traceparent",
    CALLER_HEADER,
    REQUEST_HEADER,
)
"""The request headers that mean something to a session call; all others stay behind."""

BODY_MOST = 1_100_000
"""Bytes of a request body that are read at all: above the largest ``session_bytes`` a spec may allow."""

REVISION_MOST = (1 << 63) - 1

Status = Callable[[], tuple[dict[str, object], bool]]
"""The member's view of itself, and whether it is ready."""


def session_app(service: SessionService, status: Status, tokens: SessionTokens | None = None) -> web.Application:
    """The application's side of the sidecar; with ``tokens`` it must show one of them."""
    checks = [token_wanted(tokens, respond)] if tokens else []
    app = web.Application(client_max_size=BODY_MOST, middlewares=[problems, *checks, admin_wanted(respond)])

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


def add_session_routes(app: web.Application, path: str, handler: Callable[[web.Request], object]) -> None:
    """Route the methods of a session call to ``handler``."""
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        app.router.add_route(method, path, handler)  # type: ignore[arg-type]


async def call_of(request: web.Request, *, key: str) -> Call:
    """The session call in an HTTP request. A body that is too large ends in 413 by ``problems``."""
    headers = {name: request.headers[name] for name in CARRIED if name in request.headers}
    return Call(request.method, key, headers, await request.read())


def respond(reply: Reply) -> web.Response:
    """An aiohttp response of a reply."""
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body or None)


@web.middleware
async def problems(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Turn aiohttp's own errors and unforeseen ones into problem documents."""
    try:
        return await handler(request)  # type: ignore[misc, no-any-return]
    except web.HTTPRequestEntityTooLarge:
        return respond(problem(413, "session-too-large", f"the request body is larger than {BODY_MOST} bytes"))
    except web.HTTPNotFound:
        return respond(problem(404, "not-found", "the session API is under /v1/sessions; see docs/api.md"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        reply = problem(405, "method-not-allowed", f"here go {allowed}")
        return respond(Reply(405, {**reply.headers, "Allow": allowed}, reply.body))
    except (web.HTTPException, ConnectionError, *BROKEN_BODY):
        raise
    except Exception:
        resource = request.match_info.route.resource  # not the path: it has the session key in it
        logger.exception("%s %s failed", request.method, resource.canonical if resource else "a request")
        return respond(problem(500, "internal", "the sidecar failed; its log says why"))


def slots_in(asked: Mapping[str, object], most: int) -> list[int]:
    """The ``slots`` that a request is about, each once; raises ``ValueError`` or ``KeyError``."""
    slots = asked["slots"]
    if not isinstance(slots, list) or not 0 < len(slots) <= most:
        raise ValueError(f"expected a list of 1 to {most} slots")
    if not all(type(slot) is int and 0 <= slot < MAX_SLOTS for slot in slots):
        raise ValueError(f"a slot is a whole number below {MAX_SLOTS}")
    return list(dict.fromkeys(slots))


def revision_in(value: object) -> int:
    """A revision of etcd in a request; raises ``ValueError``."""
    if type(value) is not int or not 0 <= value <= REVISION_MOST:
        raise ValueError("a revision is a whole number of 64 bits")
    return value


def as_json(body: bytes) -> dict[str, object]:
    """A JSON object from a request body. Raises ``ValueError``."""
    content = read_json(body or b"{}")
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - bad input, not a programming error
    return content
