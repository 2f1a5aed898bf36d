"""Writes that were answered before their commit (``durability: async``)."""

import asyncio
import logging

from understudy.proxy.events.recorder import Recorder
from understudy.statesync.sessions.commit import NotOwner, Submission

ASYNC_TIMEOUT = 1.0
logger = logging.getLogger(__name__)


class AsyncWrites:
    """The ``async`` writes that are not committed yet; ``lost`` counts those that never were."""

    def __init__(self, recorder: Recorder) -> None:
        self.lost = 0
        self._recorder = recorder
        self._waiting: dict[tuple[int, str], asyncio.Future[int]] = {}

    def waiting(self, slot: int, key: str) -> bool:
        """Whether a write to this session was answered and is not committed yet."""
        return (slot, key) in self._waiting

    async def settled(self, slot: int, key: str) -> None:
        """Wait until such a write is committed or lost, for :data:`ASYNC_TIMEOUT` at the most."""
        pending = self._waiting.get((slot, key))
        if pending is not None:
            await asyncio.wait((pending,), timeout=ASYNC_TIMEOUT)

    def follow(self, slot: int, key: str, submission: Submission) -> None:
        """A write is answered before it is committed: reads wait for it, and its loss is counted."""
        self._waiting[slot, key] = submission.done

        def settled(done: "asyncio.Future[int]") -> None:
            self._waiting.pop((slot, key), None)
            if done.cancelled() or done.exception() is not None:
                self.lost += 1
                error = None if done.cancelled() else done.exception()
                if isinstance(error, NotOwner):
                    self._recorder.audit.refused(error.found, lost=True)
                logger.warning("an async write in slot %d was lost: %s", slot, error or "it was cancelled")

        submission.done.add_done_callback(settled)
