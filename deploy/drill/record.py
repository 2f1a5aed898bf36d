"""Records that a failover was a drill, and what its clients saw, in the failover records in etcd and in the trace.

So a review can distinguish drills from real failovers, and has the same figures for both.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.drill.conditions import ClientView, DrillKind, durability_of
from understudy.deploy.inspect.traces import read_trace
from understudy.statesync.etcd.client import EtcdClient, ModRevision, Put
from understudy.statesync.pool.records import FailoverRecord
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.waterfall import root_of, total_ms
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, trace_seed
from understudy.telemetry.tracing.setup import start_telemetry

TRACE_TIMEOUT = 3.0
EXPORT_TIMEOUT = 10.0
"""Seconds to send the clients' view to control servers. Without it a review takes the drill for a real failover."""
POLL_INTERVAL = 0.1


def lost_attributes(durability: str, lost: int) -> dict[str, int]:
    """The attributes for the lost writes of clients, by the class of the pool.

    Clients do not see which class each write got. In a pool of class ``replicas`` some are answered as ``sync``, while
    a sync set is small. If nothing was lost, none of these was.
    """
    if durability == "async":
        return {names.DRILL_LOST_ASYNC: lost}
    if durability == "replicas":
        return {names.DRILL_LOST_REPLICAS: lost, **({} if lost else {names.DRILL_LOST: 0})}
    return {names.DRILL_LOST: lost}


class DrillRecorder:
    """Writes the records of one drill of ``kind``; ``state`` is the pool after it."""

    def __init__(self, etcd: EtcdClient, state: PoolState, kind: DrillKind, tls: TlsOptions | None) -> None:
        self._etcd = etcd
        self._state = state
        self._kind = kind
        self._tls = tls
        self._spans: dict[str, list[StoredSpan]] = {}

    def caused(self, before: PoolState, names: Collection[str]) -> list[FailoverRecord]:
        """The failover records that are newer than ``before`` and about ``names``, oldest first."""
        known = {at.record.trace for at in before.failovers.values()}
        new = [at.record for at in self._state.failovers.values() if at.record.trace not in known]
        every = self._kind is DrillKind.ROLLING or self._kind.of_a_home
        mine = [part for part in new if every or part.source in names or part.to in names]
        return sorted(mine, key=lambda part: part.started)

    def change_of_leader(self, name: str, successor: str, at: float) -> FailoverRecord:
        """The record of a drill that moved no slot: the leader ``name`` was hit at the wall time ``at``."""
        ids = trace_seed(self._state.keys.pool, names.KIND_TAKEOVER, f"drill/{self._kind}/{name}/{at}")
        return FailoverRecord(ids.hex, successor or "-", name, f"drill: {self._kind}", False, (), (), at)

    async def slowest_ms(self, caused: Sequence[FailoverRecord]) -> float | None:
        """The duration of the slowest takeover in ms, from its trace; None if none was measured."""
        lengths = [total_ms(await self._trace(trace)) for trace in {part.trace for part in caused if not part.planned}]
        return max((ms for ms in lengths if ms is not None), default=None)

    async def mark(self, caused: Sequence[FailoverRecord]) -> None:
        """Mark failover records as a drill. A record that has changed meanwhile stays unchanged."""
        keys = self._state.keys
        for part in caused:
            key = keys.failover(part.trace, part.to, part.source)
            at = self._state.failovers.get(key.removeprefix(keys.failovers))
            put = Put(key, replace(part, drill=str(self._kind)).encode())
            await self._etcd.txn([ModRevision(key, at.revision if at else 0)], [put])

    async def record(
        self, caused: Sequence[FailoverRecord], seen: ClientView, missed: Sequence[str], again: str, at: float
    ) -> None:
        """Add the clients' view to the trace of the first failover. A drill that moved no slot gets its own trace.

        ``again`` is the command that repeats the drill.
        """
        if not caused:
            return
        first, attributes = caused[0], {**self._attributes(seen, missed), names.DRILL_COMMAND: again}
        begin = round(at * 1e9)
        end = begin + round((seen.worst_ms or 0.0) * 1e6)
        credentials = self._tls.channel_credentials if self._tls else None
        telemetry = start_telemetry(names.SERVICE_CLIENT, "drill", credentials=credentials)
        try:
            telemetry.set_endpoints(at.record.grpc for at in self._state.controls.values())
            trace = telemetry.failover(await self._traceparent(first))
            # If no slot moved, the clients' view is the only critical span.
            whole = {} if first.slots else {names.CRITICAL: True}
            trace.phase(names.DRILL_SEEN, begin, end, {**attributes, **whole})
            if not first.slots:
                about = {names.CAUSE: first.cause, names.FROM: first.source, names.TO: first.to}
                trace.root(begin, end, {**attributes, **about, names.PLANNED: False})
        finally:
            await telemetry.aclose(EXPORT_TIMEOUT)

    def _attributes(self, seen: ClientView, missed: Sequence[str]) -> dict[str, str | int | float | bool]:
        attributes: dict[str, str | int | float | bool] = {
            names.POOL: self._state.keys.pool,
            names.DRILL: str(self._kind),
            names.DRILL_REQUESTS: seen.requests,
            names.DRILL_FAILED: seen.failed,
        }
        if seen.worst_ms is not None:
            attributes[names.DRILL_GAP_MS] = round(seen.worst_ms, 3)
        if seen.lost_writes is not None:
            attributes |= lost_attributes(durability_of(self._state), seen.lost_writes)
        if seen.needless_moves is not None:
            attributes[names.DRILL_NEEDLESS] = seen.needless_moves
        if missed:
            attributes[names.DRILL_MISSED] = ", ".join(text.partition(":")[0] for text in missed)
        return attributes

    async def _traceparent(self, failover: FailoverRecord) -> str:
        """The trace context of ``failover``: its trace, and as parent the root span."""
        spans = await self._trace(failover.trace) if failover.slots else []
        root = root_of(spans)
        parent = root.span_id if root else next((span.parent_id for span in spans), "")
        if parent:
            return f"00-{failover.trace}-{parent}-01"
        # There are no spans of this trace yet, so the parent may be any root.
        trace = int(failover.trace, 16)
        return TraceIds(trace, trace & 0xFFFF_FFFF_FFFF_FFFF or 1).traceparent

    async def _trace(self, trace: str) -> list[StoredSpan]:
        """The spans of a trace, once its root is there or after a timeout; empty if no control server answers."""
        if trace in self._spans:
            return self._spans[trace]
        addresses = [at.record.http for at in self._state.controls.values()]
        deadline = time.monotonic() + TRACE_TIMEOUT
        while True:
            try:
                spans = await read_trace(addresses, trace)
            except DeployError:
                spans = []
            if root_of(spans) is not None or time.monotonic() > deadline:
                self._spans[trace] = spans
                return spans
            await asyncio.sleep(POLL_INTERVAL)
