"""Whether the pool is at home here, as this process knows it. Pools with one etcd always are.

See :mod:`understudy.statesync.pool.home`.
"""

import math
import time

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.pool.home import Home, Role, absence, is_confirmed


class HomeWatch:
    """What the watch has brought of the home record and of the home's beats."""

    def __init__(self, pool: PoolView, informer: Informer) -> None:
        self._pool = pool
        self._informer = informer
        self._confirmed_at = -math.inf
        self._seen = (0, 0)
        self._was_away = ""

    def apply(self, batch: InformerBatch) -> bool:
        """Take in a batch that the pool's state has taken in; whether :attr:`away` is another one than after the last.

        What a list finds may be as old as etcd's data, so it confirms nothing. What the watch brings is new.
        """
        seen = (self.revision, self._pool.state.beat)
        if seen != self._seen and not batch.reset:
            self._confirmed_at = time.monotonic()
        self._seen = seen
        before, self._was_away = self._was_away, self.away
        return before != self._was_away

    @property
    def home(self) -> Home | None:
        """The home record of this side."""
        at = self._pool.state.home
        return at.record if at is not None else None

    @property
    def revision(self) -> int:
        """The revision of the home record, 0 if there is none."""
        at = self._pool.state.home
        return at.revision if at is not None else 0

    @property
    def closing(self) -> bool:
        """Whether the home moves away, so that nothing may be in memory alone."""
        home = self.home
        return home is not None and home.role is Role.CLOSING

    @property
    def away(self) -> str:
        """Why this process must not serve the pool, '' if it may."""
        home = self.home
        if home is None:  # an unreadable record may be that of a newer release
            unreadable = self._pool.state.keys.home in self._pool.state.faults
            return "its home record in etcd cannot be read: upgrade this process" if unreadable else ""
        return absence(home, confirmed=home.role is Role.HOME and self._confirmed(home))

    def _confirmed(self, home: Home) -> bool:
        return is_confirmed(
            home,
            confirmed_at=self._confirmed_at,
            well_since=self._informer.well_since,
            silent_for=self._informer.silent_for,
            now=time.monotonic(),
        )
