"""Takes in OTLP/gRPC spans, log records and counts on a control server and hands them to the store.

The unary methods ``Export`` of ``TraceService``, ``LogsService`` and ``MetricsService``, as the OTLP specification has
them. Input that is not OTLP gets ``INVALID_ARGUMENT``; a request in which only some records are unusable is taken with
a partial success; too much at the moment, for the store or from one sender, is ``UNAVAILABLE``, which tells senders to
come again. What is taken is decided by :mod:`understudy.telemetry.receiver.otlp_service`.
"""

import logging
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import Message

from understudy.telemetry.receiver.otlp_service import ExportRefused, OtlpService, Why

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
LOGS_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
EXPORT = f"/{TRACE_SERVICE}/Export"
EXPORT_LOGS = f"/{LOGS_SERVICE}/Export"
_CODES = {
    Why.UNREADABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Why.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Why.BUSY: grpc.StatusCode.UNAVAILABLE,
}
logger = logging.getLogger(__name__)

Take = Callable[[bytes, str], Awaitable[Message]]


def add_otlp_receiver(server: grpc.aio.Server, intake: OtlpService) -> None:
    """Let ``server`` (not yet started) take OTLP spans, log records and front Envoys' counts.

    The server's own ``grpc.max_receive_message_length`` bounds what is read from the wire at all (4 MiB
    by default).
    """
    takers = ((TRACE_SERVICE, intake.traces), (LOGS_SERVICE, intake.logs), (METRICS_SERVICE, intake.metrics))
    for service, take in takers:
        # No deserializer: bytes that do not parse are then ours to answer, not an INTERNAL error of the library.
        handler = grpc.unary_unary_rpc_method_handler(_export(take))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))


def _export(take: Take) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]:
    """The handler of one ``Export`` method."""

    async def export(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            return (await take(payload, context.peer())).SerializeToString()
        except ExportRefused as refused:
            logger.debug("from %s: %s", context.peer(), refused)
            await context.abort(_CODES[refused.why], str(refused))

    return export
