"""Whether a session is as it was restored after a loss. Pure."""

from understudy.statesync.pool.records import Loss
from understudy.statesync.replication.history import epoch_of
from understudy.statesync.sessions.session import Session


def is_restored(loss: Loss, session: Session | None, now: float, ttl: int) -> bool:
    """Whether a session is as it was when it was restored after ``loss``.

    A session that is not there may have begun just before the loss. This counts for its usual lifetime of ``ttl``
    seconds. ``now`` is wall time.
    """
    if session is None:
        return now < loss.at + ttl
    return epoch_of(session.value_version) < loss.epoch
