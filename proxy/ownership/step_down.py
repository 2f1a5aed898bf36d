"""Stepping down: a member that alone is cut off from etcd gives its slots away through members that are not.

It knows that it is alone by their word: a peer says that a look at etcd, sent after the question, was answered, and
that etcd has not paused for it of late (:mod:`understudy.proxy.ownership.etcd_contact`). While etcd is away for
everybody no peer can say so, and nobody steps down. Nor does anybody right after such an outage, when some have found
etcd and others have not.

First the member gives its slots up: it answers nothing in them any more, reads included, and will not do so again under
the same owner records. Then it asks its peers to claim them. What they write in etcd, and the commit marker that they
found there, settles what the member had under way itself
(:meth:`understudy.statesync.sessions.commit.Committer.replaced`), and where it sends its callers from then on. A slot
that nobody takes is taken up again when etcd is back, under a new record.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.slot_reconciler import Roles
from understudy.proxy.peers.peer_client import PeerError, Taken
from understudy.statesync.etcd.client import Kv
from understudy.statesync.heartbeat.adaptive_timeout import adaptive_timeout
from understudy.statesync.pool.ownership import View, heirs_of

logger = logging.getLogger(__name__)

LOOK = 0.05
SUSPECT_AFTER = 0.4
"""Seconds without an answer from etcd after which the peers are asked; usually it answers within milliseconds."""
SLOWER_BY = 2.0
"""Times the slowest of the last answers that etcd may take, where that is longer."""
CONFIRM = 0.3
"""Seconds that etcd has left to answer after a peer has said that it reaches it."""
OTHERS = 0.05
"""Seconds that the other peers have to answer once one of them has said that it reaches etcd."""
ASK_AGAIN = 0.3
GIVE_AGAIN = 0.5


def receivers(view: View, slots: Iterable[int], reaching: Iterable[str]) -> dict[str, list[int]]:
    """Which of the members that reach etcd is to take which slots: the next in line, or else whoever gets fewest."""
    given: dict[str, list[int]] = {member: [] for member in sorted(reaching)}
    for slot in sorted(slots):
        heir = next((member for member in heirs_of(view, slot) if member in given), None)
        chosen = heir or min(given, key=lambda member: len(given[member]), default=None)
        if chosen is not None:
            given[chosen].append(slot)
    return {member: of_it for member, of_it in given.items() if of_it}


class StepDown:
    """Watches this member's contact with etcd, and steps down when it alone has lost it."""

    def __init__(self, context: MemberContext, reads: ReadDeadline, roles: Roles) -> None:
        self._context = context
        self._reads = reads
        self._roles = roles

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            if not self._suspicious() or not self._has_something():
                continue
            reaching = await self._who_reaches_etcd()
            if not reaching:
                await asyncio.sleep(ASK_AGAIN)
            elif self._reads.cut_off or await self._stays_silent():
                self._reads.step_down(reaching)
                await self._give_away(reaching)
                await asyncio.sleep(GIVE_AGAIN)

    def _suspicious(self) -> bool:
        context = self._context
        expected = max(SUSPECT_AFTER, SLOWER_BY * context.contact.slowest)
        usual = adaptive_timeout(expected, context.stall.worst, context.liveness.load_cap_ms / 1000)
        return context.contact.silent_for(time.monotonic()) >= usual

    def _has_something(self) -> bool:
        return bool(len(self._context.holdings) or self._context.holdings.given_up)

    async def _stays_silent(self) -> bool:
        """Whether etcd does not answer this member within :data:`CONFIRM` either."""
        give_up = time.monotonic() + CONFIRM
        while time.monotonic() < give_up:
            await asyncio.sleep(LOOK)
            if not self._suspicious():
                return False
        return True

    async def _who_reaches_etcd(self) -> frozenset[str]:
        """The peers that etcd answers now, and for whom it has not paused of late."""
        context = self._context
        peers = [peer for name in context.state.members if name != context.me and (peer := context.peer(name))]
        asking = {asyncio.create_task(context.peers.reaches_etcd(peer)): peer.member for peer in peers}
        reaching: set[str] = set()
        open_tasks = set(asking)
        try:
            while open_tasks:
                timeout = OTHERS if reaching else None
                done, open_tasks = await asyncio.wait(open_tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                reaching |= {asking[task] for task in done if task.result()}
        finally:
            for task in open_tasks:
                task.cancel()
        return frozenset(reaching)

    async def _give_away(self, reaching: frozenset[str]) -> None:
        context = self._context
        fences = self._roles.give_up()
        if not fences:
            return
        view = context.view()
        logger.warning("etcd is out of reach, but not for %s: giving %d slots away", ", ".join(reaching), len(fences))
        given = receivers(view, fences, reaching)
        await asyncio.gather(
            *(self._give(member, {slot: fences[slot] for slot in slots}) for member, slots in given.items())
        )
        self._roles.wake()

    async def _give(self, member: str, fences: Mapping[int, int]) -> None:
        context = self._context
        peer = context.peer(member)
        if peer is None:
            return
        try:
            taken = await context.peers.take_from(peer, context.me, context.boot, fences)
        except PeerError as error:
            logger.warning("%d slots were not taken: %s", len(fences), error)
            return
        self._learn(taken)

    def _learn(self, taken: Taken) -> None:
        """Take in who owns the slots now, and what that means for writes under way."""
        context = self._context
        lost: dict[int, Kv] = {}
        for slot, at in taken.owners.items():
            context.state.note_owner(slot, at.record, at.revision)
            context.holdings.given_up.pop(slot, None)
            lost[slot] = Kv(context.keys.owner(slot), at.record.encode(), at.revision, 0, 0)
        context.committer.replaced(taken.marker, lost)
        context.lives.taken(time.monotonic())
