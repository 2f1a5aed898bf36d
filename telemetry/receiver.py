"""Takes in OTLP/gRPC spans on a control server and hands them to the store.

One unary method, ``opentelemetry.proto.collector.trace.v1.TraceService/Export``, as the OTLP
specification has it. Input that is not OTLP gets ``INVALID_ARGUMENT``; a request in which only some spans
are unusable is taken with a partial success that says how many and why; a store that has too much to do
answers ``UNAVAILABLE``, which tells senders to come again. Nothing that a sender writes ends the server.
"""

import asyncio
import logging

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from telemetry.spans import OtlpBatch, read_otlp
from telemetry.store import SpanStore

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT = f"/{SERVICE}/Export"
MAX_REQUEST_BYTES = 4 * 1024 * 1024
# Reading this many bytes takes about a millisecond; more is read in a thread, so that the event loop goes on.
_INLINE_BYTES = 32 * 1024
_log = logging.getLogger(__name__)


def add_otlp_receiver(server: grpc.aio.Server, store: SpanStore, *, max_bytes: int = MAX_REQUEST_BYTES) -> None:
    """Let ``server`` (not yet started) take OTLP spans for ``store``, in requests of up to ``max_bytes``.

    The server's own ``grpc.max_receive_message_length`` bounds what is read from the wire at all (4 MiB
    by default).
    """
    receiver = _Receiver(store, max_bytes)
    # No deserializer: bytes that do not parse are then ours to answer, not an INTERNAL error of the library.
    handler = grpc.unary_unary_rpc_method_handler(receiver.export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),))


class _Receiver:
    def __init__(self, store: SpanStore, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes

    async def export(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """One ``Export`` call."""
        if len(payload) > self._max_bytes:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"request of {len(payload)} bytes; at most {self._max_bytes} are taken",
            )
        try:
            batch = await self._read(payload)
        except ValueError as wrong:
            _log.debug("from %s: %s", context.peer(), wrong)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(wrong))
        if not self._store.add(batch.spans):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the trace store is busy or closing; try again")
        return _answer(batch).SerializeToString()

    async def _read(self, payload: bytes) -> OtlpBatch:
        if len(payload) <= _INLINE_BYTES:
            return read_otlp(payload)
        return await asyncio.to_thread(read_otlp, payload)


def _answer(batch: OtlpBatch) -> ExportTraceServiceResponse:
    """The response; ``partial_success`` stays unset when all was taken (OTLP: Partial Success)."""
    if not batch.refused:
        return ExportTraceServiceResponse()
    return ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=batch.refused, error_message=batch.reason)
    )
