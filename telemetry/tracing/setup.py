"""OpenTelemetry for one process: its resource, the destinations of its spans, and how it records a failover.

:func:`start_telemetry` builds everything and sets nothing global, so that an application in the same process keeps its
own OpenTelemetry. The standard ``OTEL_*`` variables have priority (docs/telemetry.md lists them); without them spans go
to the control servers. Recording never waits and never raises. Every span is sampled, since failovers are rare.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from grpc import ChannelCredentials
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from understudy import __version__
from understudy.telemetry.tracing.clock import Clock
from understudy.telemetry.tracing.export_queue import Destinations, ExportCounts, ExportQueue, QueueLimits
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError
from understudy.telemetry.tracing.names import (
    ERROR_TYPE,
    FAILOVER,
    LINK,
    SCOPE,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
)
from understudy.telemetry.tracing.otlp_grpc_exporter import OtlpExporter
from understudy.telemetry.tracing.otlp_http_exporter import OtlpHttpExporter, receiver_of

logger = logging.getLogger(__name__)
_SHUTDOWN_BOUND = 2.0

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]
Links = Iterable[tuple[str, str]]
"""Requests that a span has to do with: the W3C traceparent of each ('' for none), and which one it is."""
OnSpan = Callable[[str, TraceIds, float, Attributes], None]


class FailoverTrace:
    """Records the spans of this process in one failover's trace. All methods are cheap, and safe in any thread."""

    def __init__(self, telemetry: "Telemetry", ids: TraceIds | None) -> None:
        """``ids`` None records nothing, for a change whose record has no usable traceparent."""
        self._telemetry = telemetry
        self.ids = ids

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes | None = None, links: Links = ()
    ) -> None:
        """Record a finished phase (a name from :mod:`understudy.telemetry.tracing.names`) as a child of the root span.

        Times are in ns since the epoch, from :meth:`Telemetry.now_ns`; an end before the start counts as
        the start. Each of ``links`` becomes a span link, and an attribute of its name beside it.
        """
        if self.ids is not None:
            self._telemetry.record(name, self.ids, start_ns, end_ns, attributes, root=False, links=links)

    def root(
        self,
        start_ns: int,
        end_ns: int,
        attributes: Attributes | None = None,
        name: str = FAILOVER,
        links: Links = (),
    ) -> None:
        """Record the root span, under the id that all phases name as their parent.

        Exactly one process does this, when the failover has ended. A trace without a root counts as ``unmeasured``.
        """
        if self.ids is not None:
            self._telemetry.record(name, self.ids, start_ns, end_ns, attributes, root=True, links=links)


class Telemetry:
    """This process's telemetry; made by :func:`start_telemetry`."""

    def __init__(self, resource: Resource, destinations: Destinations, clock: Clock, *, enabled: bool) -> None:
        """``enabled`` False means that ``OTEL_SDK_DISABLED`` is set: nothing is recorded."""
        self._resource = resource
        self._destinations = destinations
        self._clock = clock
        self._ids = PlannedIds()
        self._tracer: Tracer | None = None
        self.on_span: OnSpan = lambda *_: None
        """Called for every span, recorded or not, with its name, trace, seconds and attributes."""
        if enabled:
            provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=resource,
                shutdown_on_exit=False,
                id_generator=self._ids,
                span_limits=SpanLimits(),
            )
            provider.add_span_processor(destinations)
            self._tracer = provider.get_tracer(SCOPE, service_version())

    def with_attributes(self, attributes: Mapping[str, str]) -> "Telemetry":
        """The same destinations and clock for a part of this process: its spans have these resource attributes too.

        The part has its own ``on_span``. Only the whole is shut down.
        """
        resource = self._resource.merge(Resource(attributes))
        return Telemetry(resource, self._destinations, self._clock, enabled=self.enabled)

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded at all."""
        return self._tracer is not None

    @property
    def clock(self) -> Clock:
        """The process's clock for spans."""
        return self._clock

    @property
    def counts(self) -> ExportCounts:
        """How many spans were sent, dropped and are waiting, over all destinations."""
        return self._destinations.counts

    def now_ns(self) -> int:
        """Now, in ns since the epoch, from a clock that never jumps."""
        return self._clock.now_ns()

    def failover(self, traceparent: str) -> FailoverTrace:
        """The failover that a W3C ``traceparent`` names; an unusable one gives a trace of nothing."""
        try:
            return FailoverTrace(self, TraceIds.from_traceparent(traceparent))
        except TraceparentError as wrong:
            logger.debug("the failover is not traced: %s", wrong)
            return FailoverTrace(self, None)

    def set_endpoints(self, endpoints: Iterable[str]) -> None:
        """Send all spans to each of these control servers (``host:port``) from now on.

        So each can show a whole trace when another one is gone. Returns at once. It has no effect if the ``OTEL_*``
        variables name the destination. While the list is empty, a bounded number of spans is kept.
        """
        self._destinations.set_endpoints(endpoints)

    def record(
        self,
        name: str,
        ids: TraceIds,
        start_ns: int,
        end_ns: int,
        attributes: Attributes | None,
        *,
        root: bool,
        links: Links = (),
    ) -> None:
        """Record one finished span; callers use :class:`FailoverTrace`."""
        start = max(0, start_ns)
        requests = tuple(_requests(links))
        self.on_span(name, ids, max(0, end_ns - start) / 1e9, attributes or {})
        if self._tracer is None:
            return
        with self._ids.planned(ids if root else None):
            span = self._tracer.start_span(
                name,
                # Always an explicit context: a span that is current in the caller is not our parent.
                context=Context() if root else _under(ids),
                attributes={**(attributes or {}), **{which: text for text, which, _ in requests}},
                links=[Link(context, {LINK: which}) for _, which, context in requests],
                start_time=start,
            )
        if attributes and attributes.get(ERROR_TYPE):
            span.set_status(Status(StatusCode.ERROR, str(attributes[ERROR_TYPE])))
        span.end(end_time=max(start, end_ns))

    def shutdown(self, timeout: float = _SHUTDOWN_BOUND) -> None:
        """Deliver what is left, within ``timeout`` seconds, and stop. Later spans are ignored."""
        self._destinations.close(timeout)

    async def aclose(self, timeout: float = _SHUTDOWN_BOUND) -> None:
        """:meth:`shutdown` without holding up the event loop."""
        await asyncio.to_thread(self.shutdown, timeout)


class PlannedIds(IdGenerator):
    """Random ids, unless a thread has set the ids of its next root span."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._plan = threading.local()

    @contextmanager
    def planned(self, ids: TraceIds | None) -> Iterator[None]:
        """In this block, a span that this thread starts gets these ids; None: random ones."""
        self._plan.ids = ids
        try:
            yield
        finally:
            self._plan.ids = None

    def generate_span_id(self) -> int:
        """The SDK asks for a span's id."""
        ids: TraceIds | None = getattr(self._plan, "ids", None)
        return self._random.generate_span_id() if ids is None else ids.root_span_id

    def generate_trace_id(self) -> int:
        """The SDK asks for the trace id of a span without parent."""
        ids: TraceIds | None = getattr(self._plan, "ids", None)
        return self._random.generate_trace_id() if ids is None else ids.trace_id


def start_telemetry(
    service: str,
    instance: str,
    *,
    endpoint: str | None = None,
    attributes: Mapping[str, str] | None = None,
    direct: SpanExporter | None = None,
    clock: Clock | None = None,
    credentials: Callable[[], ChannelCredentials] | None = None,
) -> Telemetry:
    """Telemetry for this process, configured by the ``OTEL_*`` variables of its environment.

    ``service`` and ``instance`` become ``service.name`` and ``service.instance.id``, ``attributes``
    further resource attributes; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win over them.
    ``endpoint`` (``host:port``) is the control server that spans go to where no variable names another
    receiver; it may be given later. ``credentials`` is asked at each connection for what to show to control
    servers; without it they are spoken to in plain text. ``direct`` is an exporter that gets all spans at once and
    always (a control server's own store), unless export is off.

    A wrong variable is logged and ignored; it never prevents the start.
    """
    limits = _limits()
    kinds = _exporter_kinds()
    fixed = []
    if "console" in kinds:
        fixed.append(ExportQueue("console", ConsoleSpanExporter(out=sys.stdout), limits))
    if direct is not None and kinds:
        fixed.append(ExportQueue("own store", direct, limits))
    to_controls = "otlp" in kinds
    if to_controls and (receiver := _receiver()) is not None:
        fixed.append(ExportQueue("OTLP receiver", receiver, limits))
        to_controls = False
    # A process with a store of its own does not have to keep spans for others.
    to_control = partial(OtlpExporter, credentials=credentials) if to_controls else None
    destinations = Destinations(fixed, to_control, limits, hold=direct is None)
    if endpoint:
        destinations.set_endpoints((endpoint,))
    resource = resource_of(service, instance, attributes or {})
    return Telemetry(resource, destinations, clock or Clock(), enabled=not _disabled())


def resource_of(service: str, instance: str, attributes: Mapping[str, str]) -> Resource:
    """The OpenTelemetry resource of this process; the environment's own attributes win."""
    ours = {
        **attributes,
        SERVICE_NAME: service,
        SERVICE_INSTANCE_ID: instance,
        SERVICE_VERSION: service_version(),
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def service_version() -> str:
    """The version of this project."""
    return __version__


def _requests(links: Links) -> Iterator[tuple[str, str, SpanContext]]:
    """The usable links: traceparent, which request it is, and its span. Unusable ones are left out."""
    for text, which in links:
        try:
            ids = TraceIds.from_traceparent(text) if text else None
        except TraceparentError:
            continue
        if ids is not None:
            flags = TraceFlags(int(text[53:55], 16))
            yield text, which, SpanContext(ids.trace_id, ids.root_span_id, is_remote=True, trace_flags=flags)


def _under(ids: TraceIds) -> Context:
    """The context whose current span is the root of the trace, recorded elsewhere or later."""
    parent = SpanContext(ids.trace_id, ids.root_span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _exporter_kinds() -> frozenset[str]:
    """What ``OTEL_TRACES_EXPORTER`` asks for: of ``otlp`` and ``console``; empty for ``none``."""
    if _disabled():
        return frozenset()
    asked = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    kinds = {kind.strip().lower() for kind in asked.split(",")}
    unknown = kinds - {"otlp", "console", "none"}
    if unknown:
        logger.warning("OTEL_TRACES_EXPORTER: %s ignored; known are otlp, console, none", ", ".join(sorted(unknown)))
    return frozenset(kinds & {"otlp", "console"}) or frozenset({"otlp"} if unknown else ())


def _receiver() -> SpanExporter | None:
    """The exporter to the OTLP receiver that the environment names; None if it names no usable one."""
    receiver = _first_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = _first_set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if not receiver:
        return None
    if protocol == "grpc":
        return OtlpExporter()
    try:
        return OtlpHttpExporter(receiver_of(os.environ))
    except ValueError as wrong:
        logger.warning("%s: spans go to the control servers instead of %s", wrong, receiver)
        return None


def _first_set(*names: str) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _limits() -> QueueLimits:
    """The limits of export queues, with those that the ``OTEL_BSP_*`` variables (milliseconds, counts) set."""
    usual = QueueLimits()
    return QueueLimits(
        delay=_positive("OTEL_BSP_SCHEDULE_DELAY", round(usual.delay * 1000)) / 1000,
        queue=_positive("OTEL_BSP_MAX_QUEUE_SIZE", usual.queue),
        batch=_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", usual.batch),
    )


def _positive(name: str, usual: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return usual
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    logger.warning("%s=%s ignored: not a positive number; using %d", name, text, usual)
    return usual
