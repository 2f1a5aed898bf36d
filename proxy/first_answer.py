"""Watches for the first good answer after a claim: the end of a failover, as the new active sees it."""

from telemetry import names
from telemetry.ids import TraceIds
from telemetry.setup import Attributes, Telemetry


class FirstAnswers:
    """Records one ``first_ok`` phase per trace: from the claim to the first good answer in any of its slots."""

    def __init__(self, telemetry: Telemetry, pool: str, member: str) -> None:
        self._telemetry = telemetry
        self._pool = pool
        self._member = member
        self._awaited: dict[int, tuple[TraceIds, int]] = {}
        self._seen: set[int] = set()

    def expect(self, trace: TraceIds, slots: list[int], claimed_ns: int) -> None:
        """From now on the first answer in one of ``slots`` belongs to ``trace``."""
        if trace.trace_id in self._seen:
            return
        for slot in slots:
            self._awaited[slot] = (trace, claimed_ns)

    def answered(self, slot: int) -> None:
        """A session call in ``slot`` was answered well."""
        if slot not in self._awaited:
            return
        trace, claimed_ns = self._awaited[slot]
        self._seen.add(trace.trace_id)
        self._awaited = {other: entry for other, entry in self._awaited.items() if entry[0] != trace}
        attributes: Attributes = {names.POOL: self._pool, names.MEMBER: self._member, names.SLOT: slot}
        self._telemetry.failover(trace.traceparent).phase(
            names.FIRST_OK, claimed_ns, self._telemetry.now_ns(), attributes
        )
