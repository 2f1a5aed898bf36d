"""Which sessions are as etcd had them when the newest writes of their slot were lost."""

from collections.abc import Mapping

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.sessions.restored import is_restored
from understudy.statesync.sessions.session import Session

RESTORED = "Understudy-Restored"
"""The header of an answer about a session that was restored: writes may be missing that were younger than this many
seconds at the moment of the loss."""
_NOTHING: Mapping[str, str] = {}


class RestoredSessions:
    """Tells for each answer whether its session was restored after a loss and not written since."""

    def __init__(self, pool: PoolView, clock: PoolClock) -> None:
        self._pool = pool
        self._clock = clock

    def header(self, slot: int, session: Session | None) -> Mapping[str, str]:
        """The header :data:`RESTORED` of an answer about a session, which may be absent; empty for most."""
        at = self._pool.state.sync_sets.get(slot)
        if at is None or not at.record.loss_epoch:
            return _NOTHING
        loss = at.record.last_loss
        spec = self._pool.spec
        ttl = spec.session_ttl if spec is not None else 0
        if loss is None or not is_restored(loss, session, self._clock.now_ms() / 1000, ttl):
            return _NOTHING
        return {RESTORED: str(loss.seconds)}
