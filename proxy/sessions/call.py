"""One session call of the application or of another sidecar, and the write that it asks for. Pure.

A call is an HTTP request or commands of the Redis port. docs/api.md lists the headers of a call.
:mod:`understudy.proxy.sessions.service` answers it.
"""

import functools
from collections.abc import Mapping
from typing import Final

import msgspec

from understudy.proxy.http.problems import Reply, problem
from understudy.statesync.http.headers import DURABILITIES, DURABILITY_HEADER, TTL_HEADER
from understudy.statesync.parsing.strict_json import json_fault, whole_number
from understudy.statesync.sessions.command_batch import CommandBatch
from understudy.statesync.sessions.request_log import REQUEST_HEADER, parse_stamp
from understudy.statesync.sessions.session import Method, Session, Write

TTL_MOST = 31_536_000
"""Seconds: a year."""
_COMMANDS: Final = Method.COMMANDS


class Call(msgspec.Struct, frozen=True, gc=False):
    """One session call. ``headers`` are those that matter, by lower-case name; ``hop`` marks a forwarded call.

    ``batch`` are commands of the Redis port; then the method is ``COMMANDS``, and there is no body. ``seen`` is the
    version of the value that the author of a write has read, if that matters
    (:mod:`understudy.statesync.sessions.overwrites`). ``app`` is the version of the application that
    made a forwarded call.
    """

    method: str
    key: str
    headers: Mapping[str, str]
    body: bytes = b""
    hop: bool = False
    batch: CommandBatch | None = None
    seen: int | None = None
    app: str = ""

    @classmethod
    def of_commands(
        cls,
        batch: CommandBatch,
        headers: Mapping[str, str],
        *,
        hop: bool = False,
        seen: int | None = None,
        app: str = "",
    ) -> "Call":
        """The call of commands on one key."""
        return cls(_COMMANDS, key_text(batch.key), headers, b"", hop, batch, seen, app)

    @property
    def reads(self) -> bool:
        """Whether it can change nothing."""
        return self.method == "GET" if self.batch is None else self.batch.reads


def writing_app(call: Call, own: str, current: Session | None, now_ms: int) -> str:
    """The version of the application behind a write; ``own`` is that of this member's.

    A forwarded call that does not say it leaves the session (``current``) at the version that it has.
    """
    app = call.app if call.hop else own
    return app or (current.app if current is not None and current.alive(now_ms) else "")


def key_text(key: bytes) -> str:
    """A Redis key as the key of a session; bytes that are not UTF-8 are kept as surrogate escapes."""
    return key.decode("utf-8", "surrogateescape")


def claim_fault(headers: Mapping[str, str], body: bytes) -> Reply | None:
    """The refusal of a body whose ``Content-Type`` claims JSON and which is not; None if there is no such fault.

    Otherwise the fault would be found when the session is read, perhaps by another application. An empty body is no
    JSON either.
    """
    if not _claims_json(headers.get("content-type", "")):
        return None
    fault = json_fault(body)
    return problem(400, "not-json", f"the Content-Type says JSON, and the body is not: {fault}") if fault else None


@functools.lru_cache(maxsize=256)
def _claims_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def write_of(call: Call) -> Write | Reply:
    """The write that a call asks for, or the problem with it."""
    headers = call.headers
    ttl: int | None = None
    if TTL_HEADER in headers:
        ttl = whole_number(headers[TTL_HEADER], TTL_MOST)
        if not ttl:
            return problem(400, "bad-request", f"Understudy-TTL takes whole seconds from 1 to {TTL_MOST}")
    idempotency_key = headers.get("idempotency-key")
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= 255:
        return problem(400, "bad-request", "Idempotency-Key takes 1 to 255 characters")
    if headers.get(DURABILITY_HEADER, "sync") not in DURABILITIES:
        return problem(400, "bad-request", "Understudy-Durability takes sync, async or replicas")
    request, began = (f"key:{idempotency_key}" if idempotency_key is not None else None), None
    if REQUEST_HEADER in headers:
        try:
            stamp = parse_stamp(headers[REQUEST_HEADER])
        except ValueError:
            return problem(
                400,
                "bad-request",
                "Understudy-Request takes SECONDS;ID, as the front Envoy sends it: pass it on unchanged",
            )
        request, began = request or f"request:{stamp.id}", stamp.began
    if call.method == Method.REFUSE and request is None:
        return problem(
            400, "bad-request", "a refusal needs the Understudy-Request or the Idempotency-Key of its request"
        )
    return Write(
        Method(call.method),
        call.body if call.batch is None or request is None else call.batch.encode(),
        headers.get("content-type", "application/octet-stream"),
        headers.get("if-match"),
        headers.get("if-none-match"),
        ttl,
        idempotency_key,
        request,
        began,
    )
