"""Stepping down: a member that alone is cut off from etcd gives its slots away through members that are not.

The peers tell it that it is alone: a peer says that etcd answered a read that was sent after the question, and that
etcd has not paused for that peer recently (:mod:`understudy.proxy.ownership.etcd_contact`). While etcd is away for
everybody no peer can say so, and nobody steps down. Nobody steps down right after such an outage either, when some
members have found etcd again and others have not.

First the member gives its slots up: it answers nothing in them any more, reads included, and never will under the same
owner records. Then it asks its peers to claim them. Their new owner records tell where it sends its callers. A slot
that nobody takes is owned again when etcd is back, under a new record.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_protocol import PeerError, Taken
from understudy.statesync.heartbeat.adaptive_timeout import adaptive_timeout
from understudy.statesync.pool.ownership import View, standbys_of
from understudy.statesync.process.ticks import tick

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
SUSPECT_AFTER = 0.4
"""Seconds without an answer from etcd after which the peers are asked. Usually etcd answers within milliseconds."""
SLOWER_BY = 2.0
"""The limit is this many times the slowest recent answer, where that is longer."""
CONFIRM_TIMEOUT = 0.3
"""Seconds in which etcd may still answer after a peer has said that it reaches etcd."""
OTHER_PEERS_TIMEOUT = 0.05
"""Seconds in which the other peers may still answer once one of them has said that it reaches etcd."""
ASK_AGAIN_AFTER = 0.3
GIVE_AGAIN_AFTER = 0.5


def receivers(view: View, slots: Iterable[int], reaching: Iterable[str]) -> dict[str, list[int]]:
    """Which of the members that reach etcd is to take which slots: the first standby, or else the one with fewest."""
    given: dict[str, list[int]] = {member: [] for member in sorted(reaching)}
    for slot in sorted(slots):
        standby = next((member for member in standbys_of(view, slot) if member in given), None)
        chosen = standby or min(given, key=lambda member: len(given[member]), default=None)
        if chosen is not None:
            given[chosen].append(slot)
    return {member: of_it for member, of_it in given.items() if of_it}


class StepDown:
    """Watches this member's contact with etcd, and steps down when it alone has lost it."""

    def __init__(
        self,
        pool: PoolView,
        owned: OwnedSlots,
        client: PeerClient,
        updates: PoolUpdates,
        contact: EtcdContact,
        loop_lag: LoopLag,
        reads: ReadDeadline,
        reconciler: SlotReconciler,
    ) -> None:
        self._pool = pool
        self._owned = owned
        self._client = client
        self._updates = updates
        self._contact = contact
        self._loop_lag = loop_lag
        self._reads = reads
        self._reconciler = reconciler

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await tick(POLL_INTERVAL)
            if not self._suspicious() or not self._has_something():
                continue
            reaching = await self._who_reaches_etcd()
            if not reaching:
                await asyncio.sleep(ASK_AGAIN_AFTER)
            elif self._reads.cut_off or await self._stays_silent():
                self._reads.step_down(reaching)
                await self._give_away(reaching)
                await asyncio.sleep(GIVE_AGAIN_AFTER)

    def _suspicious(self) -> bool:
        expected = max(SUSPECT_AFTER, SLOWER_BY * self._contact.slowest)
        limit = adaptive_timeout(expected, self._loop_lag.worst, self._pool.liveness.load_cap_ms / 1000)
        return self._contact.silent_for(time.monotonic()) >= limit

    def _has_something(self) -> bool:
        return bool(len(self._owned) or self._owned.given_up)

    async def _stays_silent(self) -> bool:
        """Whether etcd does not answer this member within :data:`CONFIRM_TIMEOUT` either."""
        give_up = time.monotonic() + CONFIRM_TIMEOUT
        while time.monotonic() < give_up:
            await asyncio.sleep(POLL_INTERVAL)
            if not self._suspicious():
                return False
        return True

    async def _who_reaches_etcd(self) -> frozenset[str]:
        """The peers that etcd answers now, and for whom it has not paused recently."""
        peers = [peer for name in self._pool.others() if (peer := self._pool.peer(name))]
        asking = {asyncio.create_task(self._client.reaches_etcd(peer)): peer.member for peer in peers}
        reaching: set[str] = set()
        open_tasks = set(asking)
        try:
            while open_tasks:
                timeout = OTHER_PEERS_TIMEOUT if reaching else None
                done, open_tasks = await asyncio.wait(open_tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                reaching |= {asking[task] for task in done if task.result()}
        finally:
            for task in open_tasks:
                task.cancel()
        return frozenset(reaching)

    async def _give_away(self, reaching: frozenset[str]) -> None:
        fences = self._reconciler.give_up()
        if not fences:
            return
        view = self._pool.view()
        logger.warning(
            "%s can reach etcd and this member cannot: giving %d slots away", ", ".join(reaching), len(fences)
        )
        given = receivers(view, fences, reaching)
        await asyncio.gather(
            *(self._give(member, {slot: fences[slot] for slot in slots}) for member, slots in given.items())
        )
        self._updates.wake()

    async def _give(self, member: str, fences: Mapping[int, int]) -> None:
        peer, me = self._pool.peer(member), self._pool.identity
        if peer is None:
            return
        try:
            taken = await self._client.take_from(peer, me.me, me.boot, fences)
        except PeerError as error:
            logger.warning("%d slots were not taken: %s", len(fences), error)
            return
        self._learn(taken)

    def _learn(self, taken: Taken) -> None:
        """Take in who owns the slots now."""
        for slot, at in taken.owners.items():
            self._pool.state.note_owner(slot, at.record, at.revision)
            self._owned.given_up.pop(slot, None)
        self._updates.taken_for_dead()
