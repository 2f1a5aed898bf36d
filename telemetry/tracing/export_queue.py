"""Queues finished spans and delivers them, also after failures of the receiver.

OpenTelemetry's own batch processor drops a batch whose export failed. Receivers are often down during a failover, so
this one keeps a bounded number of undelivered spans and sends them again; receivers recognise a span by its ids. An
:class:`ExportQueue` is one destination with its own thread. :class:`Destinations` gives every span to several queues,
and follows the list of control servers. Callers only append to a queue: no I/O, no exception, no wait.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from understudy.telemetry.timing.backoff import Backoff
from understudy.telemetry.tracing.otlp_grpc_exporter import OtlpExporter, RefusedForGoodError

logger = logging.getLogger(__name__)
_LOG_EVERY = 30.0
PREPARE_AFTER = 2.0
"""Seconds without a span after which an exporter loads its modules. The first span may be that of a takeover."""


class QueueLimits(msgspec.Struct, frozen=True):
    """The limits of an export queue; times in seconds.

    ``delay``: spans are collected for this long and sent together. ``queue``: the most spans that are kept; beyond it
    the oldest are dropped. ``batch``: spans per export. ``longest_pause``: the longest pause between two tries.
    """

    delay: float = 0.2
    queue: int = 2048
    batch: int = 512
    longest_pause: float = 2.0


class ExportCounts(msgspec.Struct, frozen=True):
    """Numbers of spans: delivered, dropped for lack of room or time, and waiting."""

    sent: int = 0
    dropped: int = 0
    waiting: int = 0

    def __add__(self, other: "ExportCounts") -> "ExportCounts":
        return ExportCounts(self.sent + other.sent, self.dropped + other.dropped, self.waiting + other.waiting)


class ExportQueue:
    """One destination: a bounded queue, and a daemon thread that exports from it."""

    def __init__(self, name: str, exporter: SpanExporter, limits: QueueLimits) -> None:
        self.name = name
        self._exporter = exporter
        self._limits = limits
        self._changed = threading.Condition()
        self._queue: deque[ReadableSpan] = deque()
        self._in_flight: Sequence[ReadableSpan] = ()
        self._batch = limits.batch
        self._sent = 0
        self._dropped = 0
        self._stopping = False
        self._abandoned = False
        self._logged_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"spans to {name}", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> ExportCounts:
        """The numbers of spans so far."""
        with self._changed:
            return ExportCounts(self._sent, self._dropped, len(self._queue) + len(self._in_flight))

    def offer(self, spans: Iterable[ReadableSpan]) -> None:
        """Queue spans; returns at once. The oldest are dropped when there are too many."""
        with self._changed:
            was_empty = not self._queue
            self._queue.extend(spans)
            self._trim()
            # The first span and a full batch wake the thread; spans in between only collect.
            if was_empty or len(self._queue) >= self._batch:
                self._changed.notify_all()

    def retire(self) -> list[ReadableSpan]:
        """Stop without waiting; returns the spans that may not have been delivered."""
        with self._changed:
            left = [*self._in_flight, *self._queue]
            self._queue.clear()
            self._stopping = self._abandoned = True
            self._changed.notify_all()
        return left

    def begin_stop(self) -> None:
        """Let the thread try once more to deliver its spans, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def end_stop(self, deadline: float) -> None:
        """Wait for the thread until ``deadline`` (``time.monotonic``), then abort its last export."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._exporter.shutdown()
            self._thread.join(0.2)
        with self._changed:
            self._dropped += len(self._queue) + len(self._in_flight)
            self._queue.clear()
            self._in_flight = ()

    def _trim(self) -> None:
        while len(self._queue) > self._limits.queue:
            self._queue.popleft()
            self._dropped += 1

    def _run(self) -> None:
        self._prepare()
        backoff = Backoff(self._limits.delay, self._limits.longest_pause)
        while batch := self._next_batch():
            last_try = self._stopping
            fault, refused = self._export(batch)
            if self._settle(batch, fault, refused):
                backoff.reset()
                continue
            if last_try:
                break
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=backoff.next())
        self._exporter.shutdown()

    def _prepare(self) -> None:
        with self._changed:
            busy = self._changed.wait_for(lambda: self._queue or self._stopping, timeout=PREPARE_AFTER)
        if not busy and isinstance(self._exporter, OtlpExporter):
            self._exporter.prepare()

    def _next_batch(self) -> Sequence[ReadableSpan]:
        """Wait for spans and take a batch; empty when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            self._changed.wait_for(
                lambda: self._stopping or len(self._queue) >= self._batch, timeout=self._limits.delay
            )
            count = min(self._batch, len(self._queue))
            self._in_flight = [self._queue.popleft() for _ in range(count)]
            return self._in_flight

    def _export(self, batch: Sequence[ReadableSpan]) -> tuple[str, int]:
        """Try once; returns the fault (empty: delivered), and how many spans the receiver refuses for good."""
        try:
            result = self._exporter.export(batch)
        except RefusedForGoodError as refused:
            self._complain(f"{refused.count} spans refused by {self.name}, and dropped: {refused}")
            return "", refused.count
        except Exception as broken:  # noqa: BLE001 - a destination's defect must never end the thread
            return f"{type(broken).__name__}: {broken}", 0
        return "" if result is SpanExportResult.SUCCESS else "the exporter reports a failure", 0

    def _settle(self, batch: Sequence[ReadableSpan], fault: str, refused: int) -> bool:
        """Record the result of a try; a failed batch goes to the back of the queue, and the next ones are smaller.

        So a span that the receiver never accepts, without saying so, delays the others only until it is alone in a
        batch.
        """
        with self._changed:
            self._in_flight = ()
            if not fault:
                self._sent += len(batch) - refused
                self._dropped += refused
                self._batch = min(self._batch * 2, self._limits.batch)
                return True
            self._batch = max(1, self._batch // 2)
            if not self._abandoned:
                # At the back; newer spans are kept when there are too many.
                room = max(0, self._limits.queue - len(self._queue))
                self._dropped += max(0, len(batch) - room)
                self._queue.extend(batch[len(batch) - room :] if room < len(batch) else batch)
        self._complain(f"{len(batch)} spans not delivered to {self.name}, kept for later: {fault}", logging.DEBUG)
        return False

    def _complain(self, text: str, level: int = logging.WARNING) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY:
            self._logged_at = now
            logger.log(level, "%s", text)


class Destinations(SpanProcessor):
    """Gives every finished span to all fixed queues and to one queue per control server.

    While no control server is known, spans can wait here. When one goes, the spans that it has not received go to the
    next ones. So a span may reach a store twice, which stores must expect anyway.
    """

    def __init__(
        self,
        fixed: Sequence[ExportQueue],
        open_exporter: Callable[[str], SpanExporter] | None,
        limits: QueueLimits,
        *,
        hold: bool,
    ) -> None:
        """``open_exporter`` makes the exporter for a control server; None means that spans don't go there.

        ``hold`` says whether spans wait for a control server while none is known.
        """
        self._fixed = tuple(fixed)
        self._open_exporter = open_exporter
        self._limits = limits
        self._holds = hold and open_exporter is not None
        self._lock = threading.Lock()
        self._queues: dict[str, ExportQueue] = {}
        self._waiting: deque[ReadableSpan] = deque()
        self._retired = ExportCounts()
        self._closed = False

    @property
    def counts(self) -> ExportCounts:
        """The sum over all destinations."""
        with self._lock:
            queues = (*self._fixed, *self._queues.values())
            return sum((queue.counts for queue in queues), self._retired + ExportCounts(waiting=len(self._waiting)))

    def set_endpoints(self, endpoints: Iterable[str]) -> None:
        """Send to these control servers from now on; returns at once."""
        wanted = dict.fromkeys(endpoints)
        with self._lock:
            if self._open_exporter is None or self._closed:
                return
            left = list(self._waiting)
            self._waiting.clear()
            for endpoint in [known for known in self._queues if known not in wanted]:
                queue = self._queues.pop(endpoint)
                left += queue.retire()
                self._retired += ExportCounts(queue.counts.sent, queue.counts.dropped)
            for endpoint in wanted:
                if endpoint not in self._queues:
                    exporter = self._open_exporter(endpoint)
                    self._queues[endpoint] = ExportQueue(endpoint, exporter, self._limits)
                    self._queues[endpoint].offer(left)
            if not self._queues:
                self._hold(left)

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK for each finished span."""
        with self._lock:
            if self._closed:
                return
            for queue in (*self._fixed, *self._queues.values()):
                queue.offer((span,))
            if not self._queues:
                self._hold((span,))

    def close(self, timeout: float) -> None:
        """Deliver what can be delivered within ``timeout`` seconds, and end all threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            queues = (*self._fixed, *self._queues.values())
        deadline = time.monotonic() + timeout
        for queue in queues:
            queue.begin_stop()
        for queue in queues:
            queue.end_stop(deadline)

    def shutdown(self) -> None:
        """The SDK's name for :meth:`close`, with the usual bound."""
        self.close(2.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until nothing is waiting any more, or for as long as told; says which."""
        deadline = time.monotonic() + timeout_millis / 1000
        pause = threading.Event()
        while self.counts.waiting:
            if time.monotonic() >= deadline:
                return False
            pause.wait(0.01)
        return True

    def _hold(self, spans: Iterable[ReadableSpan]) -> None:
        if not self._holds:
            return
        self._waiting.extend(spans)
        while len(self._waiting) > self._limits.queue:
            self._waiting.popleft()
            self._retired += ExportCounts(dropped=1)
