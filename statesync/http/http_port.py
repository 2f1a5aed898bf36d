"""Serves every HTTP port of ours in one way. Only this module makes aiohttp servers.

A server that is made here never decompresses a request body. aiohttp would do so on the event loop while it parses, for
any path and before any check. Then 1 MB of gzip becomes 1 GB, and stops the loop for that long. A body with a
``Content-Encoding`` is refused with 415 before it is read. Also refused are headers that are not UTF-8 (400), bodies
that end too early (400), and changes that a page in a browser asks for (403), unless the application knows the page
as its own (:data:`OWN_PAGE`).

The log never has the content of an invalid request, and never a traceback for it.
"""

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

logger = logging.getLogger(__name__)

BROKEN_BODY = (HttpProcessingError, web.RequestPayloadError)
"""The errors of reading a body that is not valid HTTP, or ends too early."""
SHUTDOWN_SECONDS = 2.0
_PROBLEM_TYPE = "https://understudy.dev/problems/"
_TITLES = {
    "bad-request": "The request cannot be understood",
    "cross-site": "A browser's page may not change anything here",
    "encoded-body": "Compressed request bodies are not taken",
    "internal": "The request failed",
}
_READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_OWN_SITE = frozenset({"none", "same-origin"})
_NONE: frozenset[str] = frozenset()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Direct(NamedTuple):
    """Requests that ``handler`` answers without the router and the middlewares of their application.

    These two take a tenth of the time of a session write. ``handler`` does what the middlewares would do for a request
    that ``takes`` accepts; only the checks of this module come before it.
    """

    takes: Callable[[web.Request], bool]
    handler: Handler


DIRECT = web.AppKey("direct", Direct)
"""Where an application has its direct requests, if any."""


class OwnPages(NamedTuple):
    """A test whether one of the application's own pages sent a request."""

    sent: Callable[[web.Request], bool]


OWN_PAGE = web.AppKey("own_page", OwnPages)
"""Where an application has its test whether one of its own pages asks for a change. Without it no page may."""


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """Logs the messages of aiohttp without the exception, which quotes the bytes that could not be parsed.

    Faults of clients are logged at DEBUG. Otherwise anybody could fill the log.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401
        error = kwargs.pop("exc_info", None)
        if isinstance(error, BROKEN_BODY):
            level = logging.DEBUG
        super().log(level, f"{msg} ({type(error).__name__})" if isinstance(error, BaseException) else msg, *args)


async def serve(
    stack: contextlib.AsyncExitStack, app: web.Application, *, opens: Collection[str] = ()
) -> web.AppRunner:
    """Start an application's server. It stops when the stack is closed.

    Args:
        stack: ends the server.
        app: the application to serve; it gets one more middleware, before all others.
        opens: the content codings that the application decodes itself, within its own limits. It gets the bytes as they
            were sent.
    """
    app.middlewares.insert(0, _guard(frozenset(opens), app.get(OWN_PAGE, OwnPages(lambda _: False))))
    discreet: Any = _Discreet(logger, {})
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, logger=discreet, auto_decompress=False
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server, direct = runner.server, app.get(DIRECT)
    if server is not None and direct is not None:
        routed, direct_handler = server.request_handler, partial(app.middlewares[0], handler=direct.handler)

        def handle(request: Any) -> Awaitable[web.StreamResponse]:  # noqa: ANN401 - aiohttp's own handler takes less
            return direct_handler(request) if direct.takes(request) else routed(request)

        server.request_handler = handle
    return runner


def _guard(opens: frozenset[str], own: OwnPages) -> Middleware:
    """The first middleware: checks that no application has to make itself."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_text(request):
            return _problem(400, "bad-request", "the path and the values of headers must be UTF-8")
        if codings_of(request) - opens:
            return _problem(415, "encoded-body", "send the body as it is, without Content-Encoding")
        if request.method not in _READING and from_a_page(request) and not own.sent(request):
            detail = "the call has an Origin or Sec-Fetch-Site header, so a browser's page sent it"
            return _problem(403, "cross-site", detail)
        try:
            return await handler(request)
        except BROKEN_BODY:
            return _problem(400, "bad-request", "the request's body is not valid HTTP, or broke off")
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            logger.exception("%s %s failed", request.method, route_of(request))
            return _problem(500, "internal", "the log of the process says why")

    return guard


def route_of(request: web.Request) -> str:
    """The pattern of the request's path, for the log; the path itself may have a session key in it."""
    resource = None
    with contextlib.suppress(AssertionError, AttributeError):  # a direct request was not routed
        resource = request.match_info.route.resource
    return resource.canonical if resource else "a request"


def codings_of(request: web.Request) -> frozenset[str]:
    """The content codings of the request's body, without ``identity``, in lower case."""
    values = request.headers.getall("Content-Encoding", ())
    if not values:
        return _NONE
    return frozenset(one.strip().lower() for value in values for one in value.split(",")) - {"", "identity"}


def from_a_page(request: web.Request) -> bool:
    """Whether a page in a browser sent the request. Only browsers send these headers, and a page cannot hide them.

    An ``Origin`` that equals the ``Host`` proves nothing: any name can be made to resolve to 127.0.0.1.
    """
    return "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE


def _is_text(request: web.Request) -> bool:
    """Whether all text in the request's head is UTF-8. aiohttp passes other bytes on as surrogates."""
    text = request.raw_path + "".join(request.headers.values())
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _problem(status: int, kind: str, detail: str) -> web.Response:
    """An answer that closes the connection, so that the rest of the request is not read."""
    body = {"type": _PROBLEM_TYPE + kind, "title": _TITLES[kind], "status": status, "detail": detail}
    headers = {"Accept-Encoding": "identity"} if status == 415 else {}
    response = web.Response(
        status=status, text=json.dumps(body), content_type="application/problem+json", headers=headers
    )
    response.force_close()
    return response
