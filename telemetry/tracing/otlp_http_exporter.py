"""OTLP over HTTP (``http/protobuf``) to the receiver that the ``OTEL_EXPORTER_OTLP_*`` variables name.

The variables are those of OpenTelemetry's "Protocol Exporter" page; variables for traces win. Each export is one
bounded attempt, as in :mod:`understudy.telemetry.tracing.otlp_grpc_exporter`: the pump repeats failed ones. Spans that
a receiver refuses for good (any 4xx but 408 and 429, or a partial success) are dropped and counted, as the OTLP page
asks. OpenTelemetry's own exporter only tells success or failure, so it cannot be used for that.
"""

import gzip
import http.client
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

from understudy.telemetry.tracing.otlp_grpc_exporter import NotDeliveredError, RefusedForGoodError

_TIMEOUT = 2.0
_LARGEST_ANSWER = 64 * 1024
_COME_AGAIN = (408, 429)
_TRACES_PATH = "v1/traces"


class HttpReceiver(msgspec.Struct, frozen=True):
    """Where spans are posted, and how. Times in seconds; no ``certificate`` means the system's authorities."""

    url: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""
    timeout: float = _TIMEOUT
    gzip: bool = False

    @property
    def tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.url.startswith("https:")

    def context(self) -> ssl.SSLContext:
        """Made anew for each connection, since certificates are renewed. Raises ``OSError`` for files of no use."""
        context = ssl.create_default_context(cafile=self.certificate or None)
        if self.client_certificate:
            context.load_cert_chain(self.client_certificate, self.client_key or None)
        return context


def receiver_of(environment: Mapping[str, str]) -> HttpReceiver:
    """The receiver of traces that the variables name; raises ``ValueError`` that says which one is of no use.

    A general endpoint is a base, and ``/v1/traces`` follows; one for traces is used as it is.
    """

    def said(name: str) -> str:
        mine, general = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
        return environment.get(mine, "").strip() or environment.get(general, "").strip()

    protocol = said("PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not spoken here (grpc and http/protobuf are)")
    exact = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    url = exact or f"{said('ENDPOINT').rstrip('/')}/{_TRACES_PATH}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {url} is no http:// or https:// address")
    with_port(url)
    compression = said("COMPRESSION").lower()
    if compression not in ("", "none", "gzip"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_COMPRESSION={compression}: known are gzip and none")
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        if said(name) and not Path(said(name)).is_file():
            raise ValueError(f"OTEL_EXPORTER_OTLP_{name}: there is no file {said(name)}")
    return HttpReceiver(
        url,
        headers=parse_env_headers(said("HEADERS"), liberal=True),
        certificate=said("CERTIFICATE"),
        client_certificate=said("CLIENT_CERTIFICATE"),
        client_key=said("CLIENT_KEY"),
        timeout=_seconds(said("TIMEOUT")),
        gzip=compression == "gzip",
    )


def with_port(url: str) -> tuple[str, int]:
    """Host and port of an address, the port of its scheme if it names none. Raises ``ValueError``."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _seconds(text: str) -> float:
    if not text:
        return _TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(f"OTEL_EXPORTER_OTLP_TIMEOUT={text}: not a number of seconds")
    return seconds


class OtlpHttpExporter(SpanExporter):
    """Posts spans to a receiver, over one connection that is kept until something fails."""

    def __init__(self, receiver: HttpReceiver) -> None:
        """Nothing is opened or read before the first export."""
        self._receiver = receiver
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Try once; each step takes as long as the receiver's ``timeout`` at the most.

        Raises:
            NotDeliveredError: the receiver was not reached, or asks to come again.
            RefusedForGoodError: it will never take these spans.
        """
        body = encode_spans(spans).SerializeToString()
        headers = {"Content-Type": "application/x-protobuf", **self._receiver.headers}
        if self._receiver.gzip:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        try:
            status, answer = self._post(body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            raise NotDeliveredError(f"{self._receiver.url}: {error or type(error).__name__}") from error
        if status == 200:
            with suppress(DecodeError):
                told = ExportTraceServiceResponse.FromString(answer).partial_success
                if told.rejected_spans:
                    raise RefusedForGoodError(told.error_message, count=min(told.rejected_spans, len(spans)))
            return SpanExportResult.SUCCESS
        self._drop()
        said = f"{self._receiver.url} answered {status}: {answer[:200].decode('utf-8', 'replace')}"
        if 400 <= status < 500 and status not in _COME_AGAIN:
            raise RefusedForGoodError(said, count=len(spans))
        raise NotDeliveredError(said)

    def shutdown(self) -> None:
        """Close the connection; an export under way fails at once."""
        with self._lock:
            self._closed = True
        self._drop()

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = self._open()
        path = urlsplit(self._receiver.url)
        connection.request("POST", f"{path.path or '/'}{f'?{path.query}' if path.query else ''}", body, dict(headers))
        response = connection.getresponse()
        answer = response.read(_LARGEST_ANSWER)
        if not response.isclosed():
            # More than anybody has to say: the connection cannot be used again.
            self._drop()
        return response.status, answer

    def _open(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._closed:
                raise NotDeliveredError("closed")
            if self._connection is None:
                host, port = with_port(self._receiver.url)
                timeout = self._receiver.timeout
                self._connection = (
                    http.client.HTTPSConnection(host, port, timeout=timeout, context=self._receiver.context())
                    if self._receiver.tls
                    else http.client.HTTPConnection(host, port, timeout=timeout)
                )
            return self._connection

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            if connection.sock is not None:
                with suppress(OSError):
                    # A thread that waits for an answer wakes up by this, and not by a close alone.
                    connection.sock.shutdown(2)
            connection.close()
