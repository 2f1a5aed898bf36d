"""Handles OTLP requests for both receivers: reads them, limits their size and rate, stores and answers them.

The gRPC and HTTP receivers (:mod:`understudy.telemetry.receiver.otlp_grpc`,
:mod:`understudy.telemetry.receiver.otlp_http`) only translate :class:`ExportRefused` into their codes. Input
that is not OTLP, too large or too frequent is refused, with a text that says why. If some records of a request are
unusable, the others are stored, and the answer says how many were not and why (OTLP: Partial Success). No input ends
the server, and the rate limit is per sender.
"""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import msgspec
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from understudy.telemetry.otlp.counts import FrontCount, PeriodBatch, read_otlp_metrics, read_otlp_metrics_json
from understudy.telemetry.otlp.logs import LogBatch, StoredLog, read_otlp_logs, read_otlp_logs_json
from understudy.telemetry.otlp.otlp_json import read_otlp_json
from understudy.telemetry.otlp.spans import OtlpBatch, read_otlp
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.telemetry.store.store import SpanStore

MAX_REQUEST_BYTES = 4 * 1024 * 1024
# Reading this many bytes takes about a millisecond; more is read in a thread, so that the event loop goes on.
_INLINE_BYTES = 32 * 1024
_MOST_SENDERS = 10_000
B = TypeVar("B")


class Why(enum.Enum):
    """Why a request was refused."""

    UNREADABLE = enum.auto()
    TOO_LARGE = enum.auto()
    BUSY = enum.auto()
    """Too much from this sender, or for the store, at the moment; the sender should try again later."""


class ExportRefused(Exception):
    """A request that was refused; ``why`` and the text say what the sender should do."""

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


class Bounds(msgspec.Struct, frozen=True):
    """What is taken at the most: bytes a request, and of one sender records (or KiB) a second and at once."""

    request_bytes: int = MAX_REQUEST_BYTES
    records_per_second: float = 2_000.0
    burst: float = 20_000.0


class FrontReports(Protocol):
    """Takes what front Envoys tell of themselves: a ``FrontTally``, or one for each pool."""

    def counted(self, fronts: Iterable[FrontCount]) -> None:
        """Envoys told their counts."""

    def reported(self, records: Iterable[StoredLog]) -> None:
        """Envoys reported requests that failed or were repeated."""


class OtlpService:
    """Takes OTLP requests for a store."""

    def __init__(
        self,
        store: SpanStore,
        now: Callable[[], float],
        bounds: Bounds | None = None,
        fronts: FrontReports | None = None,
    ) -> None:
        """``now`` returns monotonic time in seconds; ``fronts`` counts what front Envoys report."""
        self.bounds = bounds or Bounds()
        self._fronts: FrontReports = fronts or FrontTally(now)
        self._store = store
        self._now = now
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def traces(self, payload: bytes, sender: str, *, json: bool = False) -> Message:
        """Take an ``ExportTraceServiceRequest``; returns the response. Raises :class:`ExportRefused`."""
        batch: OtlpBatch = await self._read(read_otlp_json if json else read_otlp, payload, sender)
        self._charge(sender, len(batch.spans) + batch.refused, payload)
        if not self._store.add(batch.spans):
            raise _full()
        if not batch.refused:
            return ExportTraceServiceResponse()
        told = ExportTracePartialSuccess(rejected_spans=batch.refused, error_message=batch.reason)
        return ExportTraceServiceResponse(partial_success=told)

    async def logs(self, payload: bytes, sender: str, *, json: bool = False) -> Message:
        """Take an ``ExportLogsServiceRequest``; returns the response. Raises :class:`ExportRefused`."""
        batch: LogBatch = await self._read(read_otlp_logs_json if json else read_otlp_logs, payload, sender)
        self._charge(sender, len(batch.records) + batch.refused, payload)
        if not self._store.add_logs(batch.records):
            raise _full()
        self._fronts.reported(batch.records)
        if not batch.refused:
            return ExportLogsServiceResponse()
        told = ExportLogsPartialSuccess(rejected_log_records=batch.refused, error_message=batch.reason)
        return ExportLogsServiceResponse(partial_success=told)

    async def metrics(self, payload: bytes, sender: str, *, json: bool = False) -> Message:
        """Take an ``ExportMetricsServiceRequest``; keep front Envoys' counts. Raises :class:`ExportRefused`."""
        batch: PeriodBatch = await self._read(read_otlp_metrics_json if json else read_otlp_metrics, payload, sender)
        self._charge(sender, len(batch.periods) + batch.refused, payload)
        if not self._store.add_counts(batch.periods):
            raise _full()
        self._fronts.counted(batch.fronts)
        if not batch.refused:
            return ExportMetricsServiceResponse()
        told = ExportMetricsPartialSuccess(rejected_data_points=batch.refused, error_message=batch.reason)
        return ExportMetricsServiceResponse(partial_success=told)

    async def _read(self, read: Callable[[bytes], B], payload: bytes, sender: str) -> B:
        if len(payload) > self.bounds.request_bytes:
            raise ExportRefused(
                Why.TOO_LARGE, f"request of {len(payload)} bytes; at most {self.bounds.request_bytes} are taken"
            )
        if self._left(sender) < 1:
            raise self._too_much(sender)  # unread: reading is what costs
        try:
            return read(payload) if len(payload) <= _INLINE_BYTES else await asyncio.to_thread(read, payload)
        except ValueError as wrong:
            self._spend(sender, _kibibytes(payload))
            raise ExportRefused(Why.UNREADABLE, str(wrong)) from None

    def _charge(self, sender: str, records: int, payload: bytes) -> None:
        """Take a request from what the sender may send now (a token bucket); refuse it when that is used up.

        Unusable records count as well, and a request counts by its size if it has fewer records than KiB: otherwise
        useless requests would not be limited. A refused request counts only by its size, so that a sender that repeats
        it is accepted some time.
        """
        left, size = self._left(sender), _kibibytes(payload)
        cost = max(records, size)
        # A full bucket lets even a larger request pass, or it could never be sent.
        enough = cost <= left or left >= self.bounds.burst
        self._spend(sender, cost if enough else size)
        if not enough:
            raise self._too_much(sender)

    def _left(self, sender: str) -> float:
        """How many records the sender may send now."""
        left, at = self._spent.get(sender, (self.bounds.burst, 0.0))
        return min(self.bounds.burst, left + (self._now() - at) * self.bounds.records_per_second)

    def _spend(self, sender: str, records: int) -> None:
        left = max(0.0, self._left(sender) - records)
        self._spent[sender] = (left, self._now())
        self._spent.move_to_end(sender)
        if len(self._spent) > _MOST_SENDERS:
            self._spent.popitem(last=False)

    def _too_much(self, sender: str) -> ExportRefused:
        return ExportRefused(
            Why.BUSY, f"more than {self.bounds.records_per_second:.0f} records a second from {sender}; try again"
        )


def _kibibytes(payload: bytes) -> int:
    return max(1, len(payload) // 1024)


def _full() -> ExportRefused:
    return ExportRefused(Why.BUSY, "the trace store is busy or closing; try again")
