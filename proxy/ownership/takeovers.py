"""Takeovers: claiming the slots of a dead member, on the evidence of two witnesses.

The first witness is the table or the missing member record, or a caller who was sent here because the owner does not
answer. The second is this member's own probe of the owner. All callers who miss the same owner wait for one task, which
probes and claims once. It tries again when etcd could not be asked: while etcd has no leader nobody can claim, and many
callers may wait.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from understudy.proxy.events.cause import Cause
from understudy.proxy.events.recorder import Recorder, SuspicionRecord
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.claims import Claimer
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.peer_protocol import NotTaken, ProbeResult, Taken
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.ownership import View, process_of, standbys_of
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process

logger = logging.getLogger(__name__)

ALIVE_PAUSE = 0.5
WATCH_TIMEOUT = 0.25
"""Seconds in which the watch must bring the records of slots that are given to this member."""
TAKEOVER_TIMEOUT = 10.0
"""Seconds for which a takeover that callers wait for is repeated when etcd cannot be asked."""
RETRY_INTERVAL = 0.5
LASTING_AFTER = 3.0
"""Seconds after which it is logged that a member answers although the control servers say that it is lost. A member
that comes back must be heard for a second before it counts again, and then a table has to say so."""


class Contradictions:
    """Since when members have answered here that others count as lost: only what lasts is logged, and only once."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}

    def lasts(self, who: tuple[str, str], now: float) -> bool:
        """Take note of it at ``now`` (monotonic); True once, when it has lasted for :data:`LASTING_AFTER`."""
        self._seen = {other: seen for other, seen in self._seen.items() if now - seen[1] < LASTING_AFTER}
        since, last = self._seen.get(who, (now, now))
        self._seen[who] = (since, now)
        return last - since < LASTING_AFTER <= now - since


LOW_PRIORITY_PAUSE = 0.1
"""Seconds for which a member of a pool of low priority waits before it claims. When a machine with members of many
pools dies, etcd so gets the claims of the others first. Members do not know of other pools."""


class Takeovers:
    """The takeovers by one member. ``claiming`` is held while it claims; ``updates`` are woken after each claim."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        etcd: EtcdClient,
        probe: PeerProbe,
        claimer: Claimer,
        claiming: asyncio.Lock,
        contact: EtcdContact,
        drain: DrainState,
        updates: PoolUpdates,
        recorder: Recorder,
    ) -> None:
        self._pool = pool
        self._copies = copies
        self._etcd = etcd
        self._probe = probe
        self._claimer = claimer
        self._claiming = claiming
        self._contact = contact
        self._drain = drain
        self._updates = updates
        self._recorder = recorder
        self._probed_alive: dict[str, float] = {}
        self._contradictions = Contradictions()
        self._witnessed: dict[Process, asyncio.Task[bool]] = {}
        self._asked: dict[Process, set[int]] = {}
        self._given: set[asyncio.Task[Taken]] = set()

    @property
    def tasks(self) -> list[asyncio.Task[bool] | asyncio.Task[Taken]]:
        """What is under way for callers, after refused connections, and for members that give slots away."""
        return [*self._witnessed.values(), *self._given]

    async def of_lost(self, member: str, boot: str, slots: Sequence[int]) -> None:
        """There is a first witness against ``member``: claim its slots if our own probe agrees."""
        now = time.monotonic()
        if now - self._probed_alive.get(member, 0.0) < ALIVE_PAUSE:
            return
        witness = await self._second_witness(member, boot)
        if witness is None:
            self._probed_alive[member] = now
            said = self._said_gone(member, boot)
            if said and self._contradictions.lasts((member, boot), now):
                logger.warning("%s, but it has answered for %g s: no takeover", said, LASTING_AFTER)
            return
        await self._take_over(member, boot, f"{member} lost: {self._said_of(member)}; {witness}", slots)

    async def given(self, member: str, boot: str, fences: Mapping[int, int]) -> Taken:
        """``member`` cannot reach etcd and has given up slots that it owns by records of these revisions: claim them.

        It answers nothing under these records any more, so nobody has to wait until its reads end. Those taken include
        slots that others own by now: without etcd the member learns of it only here, for example when the answer to an
        earlier request was lost. Raises ``NotTaken``, and ``EtcdError`` if etcd gives no definite answer.
        """
        work = asyncio.create_task(self._take_given(member, boot, fences))
        self._given.add(work)
        work.add_done_callback(self._given.discard)
        return await asyncio.shield(work)

    async def _take_given(self, member: str, boot: str, fences: Mapping[int, int]) -> Taken:
        owners = self._pool.identity.keys.owners
        await self._copies.caught_up(max(fences.values(), default=0), WATCH_TIMEOUT, owners)
        async with self._claiming:
            view = self._pool.view()
            left = [slot for slot, fence in fences.items() if _stands(view, slot, member, boot, fence)]
            taken = _of_others(view, member, fences)
            if not left:
                if not taken:
                    raise NotTaken(f"none of the slots belongs to {member} as it says")
                return Taken(taken, await self._etcd.get(self._pool.identity.keys.commit(member)))
            cause = self.cause(
                member, boot, f"{member} lost: it gave its slots away; {ProbeResult.CUT_OFF}", by_request=True
            )
            won = await self._claimer.win(view, left, cause)
        await self._claimer.open(won, given=True)
        self._updates.wake()
        taken |= {c.slot: At(c.owner, revision) for claims, revision in won.parts for c in claims}
        return Taken(taken, await self._etcd.get(self._pool.identity.keys.commit(member)))

    async def for_caller(
        self, slot: int, owner: Owner, why: str, give_up: float, witness: ProbeResult | None = None
    ) -> bool:
        """A caller was sent here for ``slot`` because its owner does not answer (``why``).

        Probes the owner, unless a probe was made for the caller just now (``witness``). Claims every slot of it whose
        first standby we are, as soon as etcd can be asked; one task does so for all callers. Returns whether the owner
        is dead, so that the caller should look again. Returns False also at ``give_up`` (monotonic), while the work
        goes on.
        """
        process = process_of(owner)
        takeover = self._witnessed.get(process) or self._begin(process, "request", why, witness)
        self._asked[process].add(slot)
        await asyncio.wait((takeover,), timeout=max(give_up - time.monotonic(), 0.0))
        return takeover.done() and takeover.result()

    def of_refused(self, process: Process) -> None:
        """The host of a process refuses connections to it: claim what this member inherits from it.

        As :meth:`for_caller` does, so that the first callers find the slots claimed. It needs a probe of our own too.
        """
        if process not in self._witnessed:
            self._begin(process, "replication", "no replication connection")

    def _begin(self, process: Process, first: str, why: str, seen: ProbeResult | None = None) -> asyncio.Task[bool]:
        suspicion, self._asked[process] = self._recorder.suspicion(first), set()
        work = asyncio.create_task(self._witnessed_takeover(process, why, suspicion, seen))
        self._witnessed[process] = work
        work.add_done_callback(lambda _: self._forget(process))
        return work

    def _forget(self, process: Process) -> None:
        del self._witnessed[process], self._asked[process]

    async def _witnessed_takeover(
        self, process: Process, why: str, suspicion: SuspicionRecord, seen: ProbeResult | None
    ) -> bool:
        member, boot = process
        give_up = time.monotonic() + TAKEOVER_TIMEOUT
        witness = str(seen) if seen and seen.condemns else await self._second_witness(member, boot)
        if witness is None:
            return False
        slots = self._inherited(process)
        if not slots:
            return False
        suspicion.confirmed(member, f"{member} lost: {why}; {witness}", self._pool.takeover_of(member, boot))
        while witness:
            try:
                await self._take_over(member, boot, f"{member} lost: {why}; {witness}", slots, by_request=True)
            except EtcdError as error:
                logger.warning("takeover from %s: %s", member, error)
                if time.monotonic() > give_up:
                    return True
                await self._etcd.pause(RETRY_INTERVAL)
                # The owner may be back by now; and a member that cannot ask etcd must not condemn another for that.
                witness = await self._second_witness(member, boot)
                slots = self._inherited(process)
                if witness == ProbeResult.CUT_OFF:
                    return False
            else:
                return True
        return False

    def _inherited(self, process: Process) -> list[int]:
        """The slots of a process whose first standby this member is, and those for which callers were sent here."""
        view, me, asked = self._pool.view(), self._pool.identity.me, self._asked[process]
        owned = [slot for slot, at in view.owners.items() if process_of(at.record) == process and slot not in asked]
        first = [slot for slot in owned if slot < view.table.slots and standbys_of(view, slot)[:1] == (me,)]
        return [*asked, *first]

    async def _take_over(
        self, member: str, boot: str, cause: str, slots: Sequence[int], *, by_request: bool = False
    ) -> None:
        """Claim those of ``slots`` that still belong to ``boot`` of ``member``; a pool of low priority waits first.

        Once more for those that are left: after a lost race, or because others may have their newest writes alone.
        """
        spec = self._pool.spec
        dead: frozenset[Process] | None = None
        if spec is not None and spec.priority == "low":
            await asyncio.sleep(LOW_PRIORITY_PAUSE)
        for _ in range(2):
            async with self._claiming:
                view = self._pool.view()
                left = [slot for slot in slots if _belongs(view, slot, member, boot)]
                if not left:
                    return
                why = self.cause(member, boot, cause, by_request=by_request)
                won = await self._claimer.win(view, left, why, dead)
            await self._claimer.open(won)
            self._updates.wake()
            dead = await self.proven_dead(left)

    async def proven_dead(self, slots: Iterable[int]) -> frozenset[Process]:
        """The processes that are proven dead, of those that alone may have the newest writes of ``slots``.

        Only they are asked whose slots this member may not claim while they may live. It takes as long as it takes to
        probe a silent process.
        """
        view = self._pool.view()
        barred = [slot for slot in slots if not view.counts_on(slot)]
        asked = view.holders_of_memory(barred) - {view.process}
        peers = {process: peer for process in asked if (peer := self._pool.peer(process.member)) is not None}
        found = await asyncio.gather(*(self._probe.probe(peer, process.boot) for process, peer in peers.items()))
        return frozenset(process for process, result in zip(peers, found, strict=True) if result.proves_death)

    async def _second_witness(self, member: str, boot: str) -> str | None:
        """What speaks for the death of ``boot`` of ``member``, or None if it lives."""
        at = self._pool.state.members.get(member)
        if at is not None and at.record.boot != boot:
            return "another process has its name now"
        peer = self._pool.peer(member)
        if peer is None:
            return "its record is gone and its address was never seen"
        found = await self._probe.probe(peer, boot)
        if found is ProbeResult.CUT_OFF and not self._contact.steady(time.monotonic()):
            return None  # etcd was away for us too: the peer may reach it again in a moment, as we do
        return str(found) if found.condemns else None

    def _said_gone(self, member: str, boot: str) -> str:
        """Who says that this process is gone, in words; '' if the table only assigns its slots to others.

        So it does at every rebalance, and then their owner hands them over.
        """
        if self._pool.view().named_lost(member, boot):
            return f"the control servers say {member} is lost"
        return "" if member in self._pool.state.members else f"the record of {member} is gone from etcd"

    def _said_of(self, member: str) -> str:
        lost = self._pool.view().table.lost.get(member)
        if lost is not None:
            return lost.cause
        known = member in self._pool.state.members
        return "the table has no part for it" if known else "its record is gone from etcd"

    def cause(self, member: str, boot: str, text: str, *, by_request: bool = False) -> Cause:
        """Why the slots of ``boot`` of ``member`` change their active, with the trace of its takeover."""
        return Cause(
            text,
            self._pool.takeover_of(member, boot),
            source=member,
            by_request=by_request,
            stop_or_start=is_stop_or_start(self._pool, self._drain, member, boot),
        )


def is_stop_or_start(pool: PoolView, drain: DrainState, member: str, boot: str) -> bool:
    """Whether a takeover from ``boot`` of ``member`` belongs to a stop or a start of the pool, or of this member.

    It does when this process is about to end itself, or never met the process that it replaces.
    """
    has_met = pool.has_met(member, boot)
    return drain.going_down or not has_met


def _stands(view: View, slot: int, member: str, boot: str, fence: int) -> bool:
    """Whether the record of ``slot`` is still the one of this revision, by which ``boot`` of ``member`` owns it."""
    at = view.owners.get(slot)
    return at is not None and at.revision == fence and _belongs(view, slot, member, boot)


def _of_others(view: View, member: str, fences: Mapping[int, int]) -> dict[int, At[Owner]]:
    """The records of those slots that others than ``member`` own by records newer than these revisions."""
    return {
        slot: at
        for slot, fence in fences.items()
        if (at := view.owners.get(slot)) is not None and at.revision > fence and at.record.active != member
    }


def _belongs(view: View, slot: int, member: str, boot: str) -> bool:
    owner = view.owner(slot)
    return owner is not None and owner.active == member and owner.boot == boot
