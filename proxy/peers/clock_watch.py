"""Keeps the pool's time: asks the other members for their clocks, and judges once a second (``pool_clock``).

The control servers' clocks come with their answers to heartbeats (``understudy.proxy.sidecar.registration``).
"""

import asyncio
import logging
import random

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.peers.peer_client import Peer
from understudy.statesync.pool.pool_clock import PoolClock

logger = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
ASK_INTERVAL = 10.0
"""Seconds after which the others are asked again; while no time is agreed they are asked at each look."""
MAX_ASKED = 8
"""Members that are asked at a time: in a large pool a sample tells the median as well."""


class ClockWatch:
    """Asks and judges; one per member."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._ask_at = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            clock, state = self._context.clock, self._context.state
            now = clock.passed()
            if now >= self._ask_at or not clock.time.agreed:
                self._ask_at = now + ASK_INTERVAL
                await self._ask_others()
            alone = self._context.mirror.synced.is_set() and not state.controls and not self._others()
            before = clock.fault
            clock.look(alone=alone)
            if clock.fault != before:
                logger.warning("%s", clock.fault or "the clocks of the pool agree again")
            await asyncio.sleep(POLL_INTERVAL)

    def _others(self) -> list[str]:
        return [member for member in self._context.state.members if member != self._context.me]

    async def _ask_others(self) -> None:
        others = self._others()
        chosen = random.sample(others, min(len(others), MAX_ASKED))
        peers = [peer for member in chosen if (peer := self._context.peer(member)) is not None]
        await asyncio.gather(*(self._ask(peer) for peer in peers))

    async def _ask(self, peer: Peer) -> None:
        clock = self._context.clock
        asked = clock.passed()
        wall = await self._context.peers.clock(peer)
        if wall is not None:
            clock.heard(peer.member, wall, asked, clock.passed())


def clock_view(clock: PoolClock) -> dict[str, object]:
    """This member's clock and those that it knows, beside the pool's time, in seconds."""
    now = clock.time
    return {
        "fault": clock.fault,
        "agreed": now.agreed,
        "deviation": now.deviation / 1000,
        "clocks": now.clocks,
        "agreeing": now.agreeing,
        "others": {who: round(seconds, 3) for who, seconds in clock.distances().items()},
    }
