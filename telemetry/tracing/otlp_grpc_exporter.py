"""Exports spans by OTLP over gRPC to one receiver: one bounded try per call, without log messages.

OpenTelemetry's exporter repeats failed calls by itself for as long as its timeout allows and logs each failure as a
warning or error. Here the export queue repeats (:mod:`understudy.telemetry.tracing.export_queue`), and an unreachable
receiver is normal for a sidecar. So every call is one try, its log messages become the exception for the export queue,
and after a failure a new connection is made, which finds a receiver that was restarted.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grpc import ChannelCredentials, StatusCode
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

if TYPE_CHECKING:  # brings all of OpenTelemetry's metrics and logs along: imported in the thread that exports
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

_EXPORTER_LOGGER = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
_TIMEOUT = 2.0
_TIMEOUT_VARIABLES = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
# The exporter takes the codes to repeat at as a non-empty collection; no failure has the code OK.
_NEVER = (StatusCode.OK,)


class NotDeliveredError(ConnectionError):
    """An export that failed; the text is that of OpenTelemetry's exporter."""


class RefusedForGoodError(Exception):
    """The receiver refuses ``count`` spans for good; they must not be sent again."""

    def __init__(self, text: str, *, count: int) -> None:
        super().__init__(text)
        self.count = count


class OtlpExporter(SpanExporter):
    """Exports to ``endpoint`` (``host:port``) or to where ``OTEL_EXPORTER_OTLP_*`` says."""

    def __init__(
        self, endpoint: str | None = None, *, credentials: Callable[[], ChannelCredentials] | None = None
    ) -> None:
        """Nothing is opened or read before the first export, and nothing imported before :meth:`prepare`.

        ``credentials`` is asked for what to show to ``endpoint`` at each new connection; without it, plain text.
        """
        self._endpoint = endpoint
        self._credentials = credentials
        self._lock = threading.Lock()
        self._inner: OTLPSpanExporter | None = None
        self._closed = False

    def prepare(self) -> None:
        """Import what :meth:`export` needs. That takes 0.03 s of CPU, which a takeover has no time for."""
        _exporter_class()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Try once, for 2 s or ``OTEL_EXPORTER_OTLP_TIMEOUT`` at the most.

        Raises:
            NotDeliveredError: the receiver was not reached, or refused.
        """
        with self._lock:
            if self._closed:
                raise NotDeliveredError("closed")
            try:
                inner = self._inner = self._inner or self._open()
            except OSError as error:
                raise NotDeliveredError(f"no credentials: {error}") from error
        with _listening() as heard:
            result = inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            return result
        with self._lock:
            if not self._closed:
                self._inner = None
                inner.shutdown()
        raise NotDeliveredError(heard[-1] if heard else "no reason given")

    def shutdown(self) -> None:
        """Close the connection; an export under way fails at once."""
        with self._lock:
            self._closed = True
            inner, self._inner = self._inner, None
        if inner is not None:
            inner.shutdown()

    def _open(self) -> "OTLPSpanExporter":
        timeout = None if any(os.environ.get(name) for name in _TIMEOUT_VARIABLES) else _TIMEOUT
        exporter = _exporter_class()
        if self._endpoint is None:
            return exporter(timeout=timeout, retryable_error_codes=_NEVER)
        return exporter(
            endpoint=self._endpoint,
            insecure=self._credentials is None,
            credentials=self._credentials() if self._credentials else None,
            timeout=timeout,
            retryable_error_codes=_NEVER,
        )


def _exporter_class() -> "type[OTLPSpanExporter]":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter


class _Listener(logging.Filter):
    """Collects the log records of one thread; those of other threads pass."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        self._heard.append(record.getMessage())
        return False


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what OpenTelemetry's exporter logs in this thread, instead of logging it."""
    heard: list[str] = []
    listener = _Listener(heard)
    _EXPORTER_LOGGER.addFilter(listener)
    try:
        yield heard
    finally:
        _EXPORTER_LOGGER.removeFilter(listener)
