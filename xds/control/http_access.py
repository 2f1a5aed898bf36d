"""The check of rights at the control server's HTTP port: one middleware, and what handlers ask it.

Without a rights file every caller may read, as the port's address allows. With one, a caller shows a token or a
certificate (:mod:`understudy.xds.control.rights`); only the health paths are open. Handlers ask :func:`rights_of` and
:func:`understudy.xds.control.rights.may`.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from understudy.statesync.tls.followed_file import FollowedFile, bearer_digest
from understudy.statesync.tls.identity import names_in
from understudy.xds.control.rights import ANYBODY, NOBODY, Rights, RightsTable, rights_table

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths for orchestrators, which have no token."""
RIGHTS = web.RequestKey("rights", Rights)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RightsFile:
    """The rights in a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises ``BadFile``."""
        self._file = FollowedFile(path, _table, "rights")

    def of(self, request: web.Request) -> Rights | None:
        """The rights of a caller; None if it shows nothing that the file knows. A token counts before a certificate."""
        table = self._file.value
        authorization = request.headers.get("Authorization", "")
        if authorization:
            return table.by_token(bearer_digest(authorization))
        transport = request.transport
        return table.by_certificate(names_in(transport.get_extra_info("peercert") if transport else None))


def _table(content: bytes) -> RightsTable:
    from understudy.statesync.parsing.spec_yaml import BadYaml, read_yaml  # most control servers read no YAML

    try:
        return rights_table(read_yaml(content.decode()))
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    except BadYaml as error:
        raise ValueError(str(error)) from None


def rights_of(request: web.Request) -> Rights:
    """The rights of a request that has passed the middleware."""
    found: Rights = request.get(RIGHTS, NOBODY)
    return found


def rights_wanted(file: RightsFile | None, refuse: Callable[[int, str, str, str], web.Response]) -> Middleware:
    """Middleware: 401 for a caller without rights, unless there is no rights file; it notes the rights of others.

    ``refuse`` makes the answer from status, kind, title and detail.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        rights = file.of(request) if file else ANYBODY
        if rights is None and request.path not in OPEN_PATHS:
            shown = "Authorization" in request.headers
            logger.info("%s %s from %s refused: no rights", request.method, request.path, request.remote)
            detail = "send 'Authorization: Bearer TOKEN', or a client certificate, that the rights file knows"
            answer = refuse(401, "unauthorized", "no rights", detail)
            challenge = ', error="invalid_token"' if shown else ""
            answer.headers["WWW-Authenticate"] = f'Bearer realm="understudy control"{challenge}'
            return answer
        request[RIGHTS] = rights or NOBODY
        return await handler(request)

    return check
