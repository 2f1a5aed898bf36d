"""Reports of front Envoys in a process with several pools: each goes to the tally of the pool that it names."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from understudy.telemetry.otlp.counts import FrontCount
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.telemetry.tracing.names import POOL


class FrontReportsByPool:
    """Hands reports to the tally of their pool; ``tally_of`` is None for a pool that is not served here."""

    def __init__(self, tally_of: Callable[[str], FrontTally | None]) -> None:
        self._tally_of = tally_of

    def counted(self, fronts: Iterable[FrontCount]) -> None:
        """Envoys told their counts."""
        for front in fronts:
            tally = self._tally_of(front.pool)
            if tally is not None:
                tally.counted((front,))

    def reported(self, records: Iterable[StoredLog]) -> None:
        """Envoys reported requests that failed or were repeated."""
        by_pool: dict[str, list[StoredLog]] = defaultdict(list)
        for record in records:
            by_pool[str(record.attributes.get(POOL, ""))].append(record)
        for pool, of_pool in by_pool.items():
            tally = self._tally_of(pool)
            if tally is not None:
                tally.reported(of_pool)
