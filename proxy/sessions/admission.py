"""Who may use the session API: a token, and for changes of anything but a session a header.

Both checks come before a request is carried out or its body is read. Whether tokens are demanded at all is decided at
start (``understudy.proxy.sidecar.listen``).
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.http.requests import respond
from understudy.proxy.sessions.request_headers import session_headers
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.tls.followed_file import FollowedFile, bearer_digest

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths for orchestrators, which have no token; they show nothing of sessions."""
TOKEN_LEAST = 16
SESSIONS_ROOT = "/v1/sessions"
"""Below it are the calls that name a session, perhaps by a key that a client sent."""
_READS = frozenset({"GET", "HEAD"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SessionTokens:
    """The tokens in a file, one a line. All are valid, so to change a token have both in the file for a while.

    The file's modification time is checked with each request. While the file cannot be used, the last good tokens stay.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``BadFile``."""
        self._file = FollowedFile(path, _digests, "session tokens")

    def accepts(self, authorization: str) -> bool:
        """Whether the value of an ``Authorization`` header is ``Bearer`` and one of the tokens; in constant time."""
        shown = bearer_digest(authorization)
        matches = [hmac.compare_digest(shown, digest) for digest in self._file.value]
        return any(matches)


def _digests(content: bytes) -> tuple[bytes, ...]:
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError:
        raise ValueError("cannot be read: it is no text") from None
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens or any(len(token) < TOKEN_LEAST for token in tokens):
        raise ValueError(f"holds one token a line, each of {TOKEN_LEAST} characters or more")
    return tuple(hashlib.sha256(token.encode()).digest() for token in tokens)


def token_wanted(tokens: SessionTokens) -> Middleware:
    """Middleware of the session API: 401 without a valid token (RFC 6750, section 3), but for the health paths."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        if request.path in OPEN_PATHS or tokens.accepts(authorization):
            return await handler(request)
        challenge = 'Bearer realm="understudy"' + (', error="invalid_token"' if authorization else "")
        detail = "send 'Authorization: Bearer TOKEN' with a token of the sidecar's --session-token-file"
        reply = problem(401, "unauthorized", detail)
        return respond(Reply(401, {**reply.headers, "WWW-Authenticate": challenge}, reply.body))

    return check


def admin_wanted() -> Middleware:
    """Middleware of the session API: 403 for a change of anything but a session without the header for it.

    An application puts session keys into paths, and its clients may choose the keys. A key like ``../checks/db`` turns
    a call for a session into a call for a check. But no client can make the application send the header. The calls of
    other resources than sessions get their headers checked here too (:mod:`understudy.proxy.sessions.request_headers`).
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is None or _names_a_session(resource.canonical):
            return await handler(request)
        if request.method in _READS or request.headers.get(ADMIN_HEADER) == ADMIN_VALUE:
            headers = session_headers(request.headers)
            return respond(headers) if isinstance(headers, Reply) else await handler(request)
        detail = (
            "nothing was changed: this call needs the header 'Understudy-Admin: true'. If it was meant for a session, "
            "the session key was not quoted in the path"
        )
        return respond(problem(403, "admin-header-missing", detail))

    return check


def _names_a_session(path: str) -> bool:
    return path == SESSIONS_ROOT or path.startswith(f"{SESSIONS_ROOT}/")
