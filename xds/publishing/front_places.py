"""Which pools of a control server have the place at front Envoys that their specs ask for.

``understudy apply`` refuses a spec whose place another pool has. Two specs that are applied at the same time can pass
it; then the later one is refused here, by every control server alike. Its pool keeps the place that it had.
"""

import logging
from collections.abc import Callable, Iterable

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front, FrontUse, first_conflict, settled_fronts

logger = logging.getLogger(__name__)


class FrontPlaces:
    """The places of the pools. ``on_change`` is called with the names of other pools whose places changed."""

    def __init__(self, on_change: Callable[[Iterable[str]], None]) -> None:
        self._on_change = on_change
        self._specs: dict[str, tuple[PoolSpec, int]] = {}
        self._places: dict[str, FrontUse] = {}
        self.refused: dict[str, str] = {}

    def place(self, spec: PoolSpec, revision: int) -> Front | None:
        """The place of the pool with this spec, which was written at ``revision``; None if it has none."""
        known = self._specs.get(spec.pool)
        if known is None or known[0] is not spec:
            self._specs[spec.pool] = (spec, revision)
            if known is None or known[0].front_use != spec.front_use or known[1] != revision:
                self._settle(spec.pool)
        found = self._places.get(spec.pool)
        return found.front if found else None

    def newest_first(self, pools: Iterable[str]) -> list[str]:
        """These pools, the one whose spec was written last first."""
        return sorted(pools, key=lambda pool: (-self._specs[pool][1] if pool in self._specs else 0, pool))

    def forget(self, pool: str) -> None:
        """The pool is gone."""
        if self._specs.pop(pool, None) is not None:
            self._settle(pool)

    def _settle(self, changed: str) -> None:
        wanted = [(revision, spec.front_use) for spec, revision in self._specs.values()]
        places, refused = settled_fronts((revision, use) for revision, use in wanted if use is not None)
        for pool in refused:
            former = self._places.get(pool)
            if former is not None and not first_conflict(former, places.values()):
                places[pool] = former
        for pool, why in refused.items():
            if self.refused.get(pool) != why:
                logger.warning("pool %s is not served by front Envoys as its spec says: %s", pool, why)
        before, self._places, self.refused = self._places, places, refused
        names = {*before, *places} - {changed}
        others = sorted(pool for pool in names if before.get(pool) != places.get(pool))
        if others:
            self._on_change(others)
