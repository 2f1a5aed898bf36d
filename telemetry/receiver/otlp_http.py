"""Takes in OTLP/HTTP: ``POST /v1/traces``, ``/v1/logs`` and ``/v1/metrics``, protobuf or JSON, plain or gzip.

As the OTLP specification has it: the answer has the encoding of the request, an error a ``google.rpc.Status`` in it;
400 is final, 429 with ``Retry-After`` asks to come again. What is taken is decided by
:mod:`understudy.telemetry.receiver.otlp_service`; who may connect at all, by the TLS context of the port that this
application is served on.
"""

import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from understudy.telemetry.receiver.otlp_service import ExportRefused, OtlpService, Why

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
OPENED = ("gzip",)
"""The content codings that are opened here, within bounds; whoever serves the application must not open them."""
_STATUS = {Why.UNREADABLE: 400, Why.TOO_LARGE: 413, Why.BUSY: 429}
_RPC_CODES = {400: 3, 413: 8, 415: 3, 429: 14}
"""google.rpc.Code: INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE."""
_STRING_TAG = 0x12
"""Field 2 (``message``) of google.rpc.Status, length-delimited."""


class Take(Protocol):
    """A method of :class:`~understudy.telemetry.receiver.otlp_service.OtlpService`."""

    def __call__(self, payload: bytes, sender: str, *, json: bool = False) -> Awaitable[Message]:
        """Take one request."""


def otlp_application(intake: OtlpService) -> web.Application:
    """An aiohttp application with the three paths."""
    # Compressed content is opened here, within bounds, and not by aiohttp.
    app = web.Application(client_max_size=intake.bounds.request_bytes, handler_args={"auto_decompress": False})
    app.add_routes([web.post("/v1/traces", _handler(intake, intake.traces))])
    app.add_routes([web.post("/v1/logs", _handler(intake, intake.logs))])
    app.add_routes([web.post("/v1/metrics", _handler(intake, intake.metrics))])
    return app


def _handler(intake: OtlpService, take: Take) -> Callable[[web.Request], Awaitable[web.Response]]:
    """What answers one path."""

    async def handle(request: web.Request) -> web.Response:
        encoding = request.content_type
        if encoding not in (PROTOBUF, JSON):
            return _error(415, f"Content-Type {encoding} is not taken; {PROTOBUF} and {JSON} are", JSON)
        compression = request.headers.get("Content-Encoding", "identity").strip().lower()
        if compression not in ("identity", *OPENED):
            return _error(415, f"Content-Encoding {compression} is not taken; gzip is", encoding)
        try:
            payload = _opened(await request.read(), compression, intake)
            answer = await take(payload, request.remote or "", json=encoding == JSON)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"at most {intake.bounds.request_bytes} bytes are taken", encoding)
        except ExportRefused as refused:
            return _error(_STATUS[refused.why], str(refused), encoding)
        body = MessageToJson(answer, indent=None).encode() if encoding == JSON else answer.SerializeToString()
        return web.Response(body=body, headers={"Content-Type": encoding})

    return handle


def _opened(body: bytes, compression: str, intake: OtlpService) -> bytes:
    """The body without compression; a small one that grows past the bound is refused before it does."""
    if compression == "identity":
        return body
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        opened = unzip.decompress(body, intake.bounds.request_bytes + 1)
    except zlib.error as wrong:
        raise ExportRefused(Why.UNREADABLE, f"not gzip: {wrong}") from None
    if len(opened) > intake.bounds.request_bytes:
        raise ExportRefused(Why.TOO_LARGE, f"at most {intake.bounds.request_bytes} bytes are taken, unpacked")
    if not unzip.eof:
        raise ExportRefused(Why.UNREADABLE, "gzip that ends too early")
    return opened


def _error(status: int, text: str, encoding: str) -> web.Response:
    """An error with a ``google.rpc.Status`` in the encoding of the request."""
    raw = text.encode()[:127]
    if encoding == JSON:
        body = json.dumps({"code": _RPC_CODES[status], "message": text}).encode()
    else:
        body = bytes([0x08, _RPC_CODES[status], _STRING_TAG, len(raw)]) + raw
    headers = {"Content-Type": encoding} | ({"Retry-After": "1"} if status == 429 else {})
    return web.Response(status=status, body=body, headers=headers)
