"""How the sidecar's HTTP APIs read requests and answer: JSON bodies, slots, revisions, problem documents."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.client import responses

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE

from understudy.proxy.http.problems import Reply, problem
from understudy.statesync.http.http_port import BROKEN_BODY, route_of
from understudy.statesync.parsing.strict_json import read_json
from understudy.statesync.pool.slots import MAX_SLOTS

logger = logging.getLogger(__name__)

MAX_BODY = 1_100_000
"""Bytes of a request body that are read at all: above the largest ``session_bytes`` a spec may allow."""
MAX_REVISION = (1 << 63) - 1

READY_MOST = 16_384
"""Bytes of a body that is copied, so that it is sent together with the headers."""
_EMPTY = (204, 304)
_TYPE = "Content-Type"

Status = Callable[[], tuple[dict[str, object], bool]]
"""The member's view of itself, and whether it is ready."""
Expose = Callable[[str], tuple[bytes, str]]
"""Text for Prometheus and its type, for what an ``Accept`` header asks for."""


def respond(reply: Reply) -> web.Response:
    """An aiohttp response of a reply."""
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body or None)


class ReadyResponse(web.StreamResponse):
    """A response whose bytes are ready, to a client that keeps its connection; see :func:`respond_to`."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(status=status)
        self._content = content

    @property
    def keep_alive(self) -> bool:
        """The connection goes on."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send it."""
        await request.writer.write(self._content)
        await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""


def respond_to(request: web.Request, reply: Reply) -> web.StreamResponse:
    """The same response as :func:`respond`, made in a fraction of the time if it is as simple as most.

    That is: an answer with headers of one line each, on a connection that goes on.
    """
    if reply.status < 200 or reply.status in _EMPTY or len(reply.body) > READY_MOST or request.method == "HEAD":
        return respond(reply)
    if request.version != HttpVersion11 or not request.keep_alive or (reply.body and _TYPE not in reply.headers):
        return respond(reply)
    fields = [f"{name}: {value}" for name, value in reply.headers.items()]
    lines = (_status_line(reply.status), *fields, f"Content-Length: {len(reply.body)}", _date(int(time.time())))
    head = "\r\n".join(lines)
    one_line_each = head.count("\n") == head.count("\r") == len(lines)  # the date has two
    if not one_line_each or not head.isascii():
        return respond(reply)
    return ReadyResponse(reply.status, f"{head}\r\n\r\n".encode() + reply.body)


@functools.cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {responses.get(status, '')}"


@functools.lru_cache(maxsize=1)
def _date(now: int) -> str:
    """The last headers of every response, at this second of Unix time."""
    return f"Date: {formatdate(now, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}"


@web.middleware
async def problems(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Turn aiohttp's own errors and unforeseen ones into problem documents."""
    try:
        return await handler(request)  # type: ignore[misc, no-any-return]
    except web.HTTPRequestEntityTooLarge:
        return respond(problem(413, "session-too-large", f"the request body is larger than {MAX_BODY} bytes"))
    except web.HTTPNotFound:
        return respond(problem(404, "not-found", "the session API is under /v1/sessions; see docs/api.md"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        reply = problem(405, "method-not-allowed", f"allowed here: {allowed}")
        return respond(Reply(405, {**reply.headers, "Allow": allowed}, reply.body))
    except (web.HTTPException, ConnectionError, *BROKEN_BODY):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, route_of(request))
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
    if type(value) is not int or not 0 <= value <= MAX_REVISION:
        raise ValueError("a revision is a whole number of 64 bits")
    return value


def as_json(body: bytes) -> dict[str, object]:
    """A JSON object from a request body. Raises ``ValueError``."""
    content = read_json(body or b"{}")
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - bad input, not a programming error
    return content
