"""Whether this process may answer reads from memory: etcd or the other processes of the slot's sync set say so.

etcd says it by the read deadline (:mod:`understudy.proxy.ownership.read_deadline`). The others are asked when etcd is
silent. Where a slot's newest writes may be in memory alone, only a process of its sync set can have claimed it. Each of
these that answers knew no later owner record when it was asked, so it did not serve. So all of them together prove as
much as etcd does, for as long: :data:`BOUND` seconds from the moment at which the first question was sent. With
``takeover: lease`` who claims waits for longer than that after its claim.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine

from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.read_deadline import BOUND, ReadDeadline
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.statesync.replication import sync_set

LOOK_AGAIN = 0.02


class ReadProof:
    """What allows reads from memory, by slot."""

    def __init__(self, deadline: ReadDeadline, active: ActiveSlots, connections: CopyConnections) -> None:
        self._deadline = deadline
        self._active = active
        self._connections = connections

    def holds(self, slot: int) -> bool:
        """Whether reads of a slot may be answered from memory now."""
        return self._deadline.holds() or time.monotonic() < self._told_at(slot) + BOUND

    async def renewed(self, slot: int, patience: float) -> bool:
        """Wait up to ``patience`` seconds until reads may be answered from memory; whether they may."""
        return await self._either(lambda: self.holds(slot), self._deadline.renewed, patience)

    async def confirmed(self, slot: int, since: float, patience: float) -> bool:
        """Wait up to ``patience`` seconds for proof that was asked for at ``since`` (monotonic) or later.

        A slot that is held then was owned at some moment after ``since``.
        """

        async def by_etcd(patience: float) -> bool:
            return await self._deadline.confirmed(since, patience)

        return await self._either(lambda: self._told_at(slot) >= since, by_etcd, patience)

    @staticmethod
    async def _either(
        by_peers: Callable[[], bool], by_etcd: Callable[[float], Coroutine[object, object, bool]], patience: float
    ) -> bool:
        if by_peers():
            return True
        look = asyncio.create_task(by_etcd(patience))
        try:
            while not by_peers():
                done, _ = await asyncio.wait((look,), timeout=LOOK_AGAIN)
                if done:
                    return look.result() or by_peers()
            return True
        finally:
            look.cancel()

    def _told_at(self, slot: int) -> float:
        """When the first of the last questions was sent that all others of the set have answered; else before time."""
        active = self._active.get(slot)
        if active is None or not active.from_memory:
            return -math.inf
        stream = active.stream
        others = sync_set.needed(stream.agreed, stream.change) - {stream.me}
        if not all(map(stream.follows, others)):
            return -math.inf
        return min(map(self._connections.told_at, others))
