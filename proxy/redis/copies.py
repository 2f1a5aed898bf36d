"""``WAIT``: how many other members have what a connection has written.

Those are the others of the slot's sync set: they have every acknowledged write.
"""

import asyncio
import time
from collections.abc import Sequence

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.redis.command import NOT_AN_INTEGER
from understudy.statesync.redis.reply import RedisError

WAIT_MOST = 60.0
"""Seconds; ``WAIT n 0`` would wait for ever in Redis."""
LOOK_AGAIN = 0.05


class CopyCount:
    """Counts the copies of slots; one per port."""

    def __init__(self, pool: PoolView) -> None:
        self._pool = pool

    async def wait(self, args: Sequence[bytes], written: str | None) -> object:
        """The answer to ``WAIT``; ``written`` is the key that the connection wrote last."""
        if not all(arg.removeprefix(b"-").isdigit() for arg in args):
            return NOT_AN_INTEGER
        wanted, timeout = (int(arg) for arg in args)
        if timeout < 0:
            return RedisError("ERR timeout is negative")
        spec = self._pool.spec
        if spec is None or written is None:
            return len(self._pool.others())
        slot = spec.slot_of_key(written)
        until = time.monotonic() + (min(timeout / 1000, WAIT_MOST) or WAIT_MOST)
        while (having := self._others_having(slot)) < min(wanted, len(self._pool.others())):
            if time.monotonic() >= until:
                break
            await asyncio.sleep(LOOK_AGAIN)
        return having

    def _others_having(self, slot: int) -> int:
        view = self._pool.view()
        owner = view.owner(slot)
        return len(agreed_set(owner, view.sync_sets.get(slot)).members) - 1 if owner is not None else 0
