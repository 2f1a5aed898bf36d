"""Keeps the pool's time: asks other members for their clocks, and compares them once a second (``pool_clock``).

The control servers' clocks come with their answers to heartbeats (``understudy.proxy.sidecar.registration``).
"""

import asyncio
import logging
import random

from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.statesync.etcd.informer import Informer
from understudy.statesync.pool.pool_clock import PoolClock

logger = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
FIRST_POLL_INTERVAL = 0.1
"""The same until the first other clock is heard, since slots are not opened before."""
ASK_INTERVAL = 10.0
"""Seconds after which the others are asked again; while no time is agreed, they are asked every second."""
MAX_ASKED = 8
"""Members that are asked at once: in a large pool a sample gives the median as well."""


class ClockWatch:
    """Asks for clocks and judges them; one per member."""

    def __init__(self, pool: PoolView, informer: Informer, client: PeerClient, clock: PoolClock) -> None:
        self._pool = pool
        self._informer = informer
        self._client = client
        self._clock = clock
        self._ask_at = 0.0

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            clock = self._clock
            now = clock.passed()
            if now >= self._ask_at or not clock.time.agreed:
                self._ask_at = now + ASK_INTERVAL
                await self._ask_others()
            alone = self._informer.synced.is_set() and not self._pool.state.controls and not self._pool.others()
            before = clock.fault
            clock.look(alone=alone)
            if clock.fault != before:
                logger.warning("%s", clock.fault or "the clocks of the pool agree again")
            await asyncio.sleep(POLL_INTERVAL if clock.is_compared else FIRST_POLL_INTERVAL)

    async def _ask_others(self) -> None:
        others = list(self._pool.others())
        chosen = random.sample(others, min(len(others), MAX_ASKED))
        peers = [peer for member in chosen if (peer := self._pool.peer(member)) is not None]
        await asyncio.gather(*(self._ask(peer) for peer in peers))

    async def _ask(self, peer: Peer) -> None:
        clock = self._clock
        asked = clock.passed()
        wall = await self._client.clock(peer)
        if wall is not None:
            clock.heard(peer.member, wall, asked, clock.passed())


def clock_view(clock: PoolClock) -> dict[str, object]:
    """This member's clock and the clocks that it knows, relative to the pool's time, in seconds."""
    now = clock.time
    return {
        "fault": clock.fault,
        "agreed": now.agreed,
        "deviation": now.deviation / 1000,
        "clocks": now.clocks,
        "agreeing": now.agreeing,
        "others": {who: round(seconds, 3) for who, seconds in clock.distances().items()},
    }
