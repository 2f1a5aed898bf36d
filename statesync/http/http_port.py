"""How every HTTP port of ours is served: the one place that makes an aiohttp server.

A server that is made here never decompresses a request body. aiohttp would do so on the event loop while it parses, for
any path and before any check: 1 MB of gzip becomes 1 GB, and the loop stands still for that long. A body with a
``Content-Encoding`` is refused with 415 instead, before it is read. Refused as well are headers that are not UTF-8
(400), bodies that break off (400), and changes that a browser's page asks for (403): no port here is for pages.

What clients send wrongly never gets into the log with its content, and never as a traceback.
"""

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

logger = logging.getLogger(__name__)

BROKEN_BODY = (HttpProcessingError, web.RequestPayloadError)
"""What reading a body raises when it is not as HTTP has it, or ends too early."""
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

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """Logs what aiohttp has to say without the exception: that quotes the bytes that could not be parsed.

    What is the client's fault is logged at DEBUG: otherwise anybody could fill the log.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401
        error = kwargs.pop("exc_info", None)
        if isinstance(error, BROKEN_BODY):
            level = logging.DEBUG
        super().log(level, f"{msg} ({type(error).__name__})" if isinstance(error, BaseException) else msg, *args)


async def serve(
    stack: contextlib.AsyncExitStack, app: web.Application, *, opens: Collection[str] = ()
) -> web.AppRunner:
    """Set an application up; it ends with the stack.

    Args:
        stack: ends the server.
        app: what to serve; it gets one more middleware, before all others.
        opens: the content codings that the application opens by itself, within bounds of its own. It gets the bytes as
            they were sent.
    """
    app.middlewares.insert(0, _guard(frozenset(opens)))
    discreet: Any = _Discreet(logger, {})
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, logger=discreet, auto_decompress=False
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


def _guard(opens: frozenset[str]) -> Middleware:
    """The middleware before all others: what no application of ours has to look at itself."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_text(request):
            return _problem(400, "bad-request", "the path and the values of headers must be UTF-8")
        codings = codings_of(request)
        if codings - opens:
            return _problem(415, "encoded-body", "send the body as it is, without Content-Encoding")
        if request.method not in _READING and from_a_page(request):
            detail = "the call has an Origin or Sec-Fetch-Site header, so a browser's page sent it"
            return _problem(403, "cross-site", detail)
        try:
            return await handler(request)
        except BROKEN_BODY:
            return _problem(400, "bad-request", "the request's body is not valid HTTP, or broke off")
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            resource = request.match_info.route.resource  # not the path: it may have a session key in it
            logger.exception("%s %s failed", request.method, resource.canonical if resource else "a request")
            return _problem(500, "internal", "the log of the process says why")

    return guard


def codings_of(request: web.Request) -> frozenset[str]:
    """What was done to the request's body, but for ``identity``; in lower case."""
    values = request.headers.getall("Content-Encoding", ())
    return frozenset(one.strip().lower() for value in values for one in value.split(",")) - {"", "identity"}


def from_a_page(request: web.Request) -> bool:
    """Whether a page in a browser sent the request: only browsers send these headers, and a page cannot hide them.

    A page is never one of ours, whatever ``Origin`` says: names can be made to resolve to 127.0.0.1.
    """
    return "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE


def _is_text(request: web.Request) -> bool:
    """Whether all that is text in the request's head is UTF-8; aiohttp lets other bytes through as surrogates."""
    texts = (request.raw_path, *(value for value in request.headers.values()))
    return all(text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text) for text in texts)


def _problem(status: int, kind: str, detail: str) -> web.Response:
    """An answer after which the connection ends, so that nothing more of the request is waited for."""
    body = {"type": _PROBLEM_TYPE + kind, "title": _TITLES[kind], "status": status, "detail": detail}
    headers = {"Accept-Encoding": "identity"} if status == 415 else {}
    response = web.Response(
        status=status, text=json.dumps(body), content_type="application/problem+json", headers=headers
    )
    response.force_close()
    return response
