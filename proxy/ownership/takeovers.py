"""Takeovers: claiming the slots of a member that is dead, on two witnesses.

The first is the control servers' word, or a caller who was sent here because the owner does not answer; the second is
this member's own probe of the owner. All callers who miss the same owner wait for one task, which probes and claims
once, and again when etcd could not be asked: while etcd has no leader nobody can claim, and there may be many of them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from understudy.proxy.ownership.claims import WATCH_TIMEOUT, Cause, Claimer
from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.peers.peer_client import Life, Taken
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.ownership import View, standbys_of
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At
from understudy.telemetry.tracing import names

logger = logging.getLogger(__name__)

ALIVE_PAUSE = 0.5
TAKEOVER_TIMEOUT = 10.0
"""Seconds for which a takeover that callers wait for is tried again when etcd cannot be asked."""
RETRY_INTERVAL = 0.5


LASTING_AFTER = 3.0
"""Seconds for which the word of control servers and a member's own answers contradict each other before it is logged.
A member that comes back is heard for a second before it counts again, and a table has to say so."""


class Contradictions:
    """Since when members have answered here that others hold for gone, so that only what lasts is told, and once."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}

    def lasts(self, who: tuple[str, str], now: float) -> bool:
        """Take note of it at ``now`` (monotonic); True once, when it has lasted for :data:`LASTING_AFTER`."""
        self._seen = {other: seen for other, seen in self._seen.items() if now - seen[1] < LASTING_AFTER}
        since, last = self._seen.get(who, (now, now))
        self._seen[who] = (since, now)
        return last - since < LASTING_AFTER <= now - since


class NotTaken(Exception):
    """Slots that were given away were not claimed; the message says why."""


class Takeovers:
    """The takeovers of one member. ``lock`` is held while it claims; ``wake`` is called after each claim."""

    def __init__(self, context: MemberContext, claimer: Claimer, lock: asyncio.Lock, wake: Callable[[], None]) -> None:
        self._context = context
        self._claimer = claimer
        self._claim_lock = lock
        self._wake = wake
        self._probed_alive: dict[str, float] = {}
        self._contradictions = Contradictions()
        self._for_callers: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._given: set[asyncio.Task[Taken]] = set()

    @property
    def tasks(self) -> list[asyncio.Task[bool] | asyncio.Task[Taken]]:
        """What is under way for callers, and for members that give slots away."""
        return [*self._for_callers.values(), *self._given]

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
                logger.warning("%s, but it has answered for %g s: not taking over", said, LASTING_AFTER)
            return
        await self._take_over(member, boot, f"{member} lost: {self._said_of(member)}; {witness}", slots)

    async def given(self, member: str, boot: str, fences: Mapping[int, int]) -> Taken:
        """``member`` reaches no etcd and has given up slots, which it owns by records of these revisions: claim them.

        It answers nothing under these records any more, so that nobody has to wait for its reads to end. Raises
        :class:`NotTaken`, and ``EtcdError`` if etcd gives no definite answer.
        """
        work = asyncio.create_task(self._take_given(member, boot, fences))
        self._given.add(work)
        work.add_done_callback(self._given.discard)
        return await asyncio.shield(work)

    async def _take_given(self, member: str, boot: str, fences: Mapping[int, int]) -> Taken:
        context = self._context
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_TIMEOUT):
                await context.mirror.caught_up(max(fences.values(), default=0))
        async with self._claim_lock:
            view = context.view()
            left = [slot for slot, fence in fences.items() if _stands(view, slot, member, boot, fence)]
            if not left:
                raise NotTaken(f"none of the slots belongs to {member} as it says")
            cause = self.cause(member, boot, f"{member} lost: it gave its slots away; {Life.CUT_OFF}", by_request=True)
            won = await self._claimer.win(view, left, cause)
        await self._claimer.open(won, given=True)
        self._wake()
        owners = {c.slot: At(c.owner, revision) for claims, revision in won.parts for c in claims}
        return Taken(owners, won.marker)

    async def for_caller(self, slot: int, owner: Owner, why: str, give_up: float, witness: Life | None = None) -> bool:
        """A caller was sent here for ``slot`` because its owner does not answer (``why``).

        Unless the caller's own call was the reason for a probe just now (``witness``), probes the owner itself. Claims
        every slot of it that we are next in line for, as soon as etcd can be asked: one task does so for all callers.
        Returns whether the owner is dead, so that looking again makes sense; False as well at ``give_up`` (monotonic),
        while the work goes on.
        """
        key = (owner.active, owner.boot)
        if key not in self._for_callers:
            started_ns = self._context.telemetry.now_ns()
            self._for_callers[key] = asyncio.create_task(
                self._witnessed_takeover(slot, owner, why, started_ns, witness)
            )
            self._for_callers[key].add_done_callback(partial(self._forget, key))
        takeover = self._for_callers[key]
        await asyncio.wait((takeover,), timeout=max(give_up - time.monotonic(), 0.0))
        return takeover.done() and takeover.result()

    def _forget(self, key: tuple[str, str], _: asyncio.Task[bool]) -> None:
        self._for_callers.pop(key, None)

    async def _witnessed_takeover(self, slot: int, owner: Owner, why: str, started_ns: int, seen: Life | None) -> bool:
        give_up = time.monotonic() + TAKEOVER_TIMEOUT
        witness = str(seen) if seen and seen.condemns else await self._second_witness(owner.active, owner.boot)
        if witness is None:
            return False
        self._detected(owner, f"{owner.active} lost: {why}; {witness}", started_ns)
        while witness:
            cause = f"{owner.active} lost: {why}; {witness}"
            try:
                await self._take_over(owner.active, owner.boot, cause, self._inherited(slot, owner), by_request=True)
            except EtcdError as error:
                logger.warning("takeover of slot %d: %s", slot, error)
                if time.monotonic() > give_up:
                    return True
                await self._context.etcd.pause(RETRY_INTERVAL)
                # It may be back by now; and who could not ask etcd cannot blame another for the same.
                witness = await self._second_witness(owner.active, owner.boot)
                if witness == Life.CUT_OFF:
                    return False
            else:
                return True
        return False

    def _inherited(self, slot: int, owner: Owner) -> list[int]:
        """The slots of ``owner`` that this member is next in line for, ``slot`` first, whose caller says that it is."""
        view, slots = self._context.view(), [slot]
        for other in range(view.table.slots):
            held = view.owner(other)
            if other == slot or held is None or (held.active, held.boot) != (owner.active, owner.boot):
                continue
            if standbys_of(view, other)[:1] == (self._context.me,):
                slots.append(other)
        return slots

    def _detected(self, owner: Owner, cause: str, started_ns: int) -> None:
        context = self._context
        trace = context.takeover_of(owner.active, owner.boot)
        context.telemetry.failover(trace.traceparent).phase(
            names.DETECT,
            started_ns,
            context.telemetry.now_ns(),
            {
                names.POOL: context.keys.pool,
                names.MEMBER: context.me,
                names.FROM: owner.active,
                names.CAUSE: cause,
                names.WITNESS: "request",
            },
        )

    async def _take_over(
        self, member: str, boot: str, cause: str, slots: Sequence[int], *, by_request: bool = False
    ) -> None:
        """Claim those of ``slots`` that still belong to ``boot`` of ``member``; a lost race is looked at once more."""
        for _ in range(2):
            async with self._claim_lock:
                view = self._context.view()
                left = [slot for slot in slots if _belongs(view, slot, member, boot)]
                if not left:
                    return
                won = await self._claimer.win(view, left, self.cause(member, boot, cause, by_request=by_request))
            await self._claimer.open(won)
            self._wake()

    async def _second_witness(self, member: str, boot: str) -> str | None:
        """What speaks for the death of ``boot`` of ``member``, or None if it lives."""
        at = self._context.state.members.get(member)
        if at is not None and at.record.boot != boot:
            return "another process has its name now"
        peer = self._context.peer(member)
        if peer is None:
            return "its record is gone and its address was never seen"
        life = await self._context.peers.probe(peer, boot, patience=self._context.patience(member))
        if life is Life.CUT_OFF and not self._context.contact.steady(time.monotonic()):
            return None  # etcd was away for us too: it may find it again in a moment, as we just have
        return str(life) if life.condemns else None

    def _said_gone(self, member: str, boot: str) -> str:
        """Who says that this process is gone, in words; '' if the table only wants its slots elsewhere.

        That is so at every rebalance, and then its owner hands them over.
        """
        if self._context.view().named_lost(member, boot):
            return f"the control servers say {member} is lost"
        return "" if member in self._context.state.members else f"the record of {member} is gone from etcd"

    def _said_of(self, member: str) -> str:
        lost = self._context.view().table.lost.get(member)
        if lost is not None:
            return lost.cause
        known = member in self._context.state.members
        return "the table has no part for it" if known else "its record is gone from etcd"

    def cause(self, member: str, boot: str, text: str, *, by_request: bool = False) -> Cause:
        """Why the slots of ``boot`` of ``member`` change their active, as part of the trace of its takeover."""
        return Cause(
            text,
            self._context.takeover_of(member, boot),
            source=member,
            by_request=by_request,
            stop_or_start=self._context.stop_or_start(member, boot),
        )


def _stands(view: View, slot: int, member: str, boot: str, fence: int) -> bool:
    """Whether the record of ``slot`` is still the one of this revision, by which ``boot`` of ``member`` owns it."""
    at = view.owners.get(slot)
    return at is not None and at.revision == fence and _belongs(view, slot, member, boot)


def _belongs(view: View, slot: int, member: str, boot: str) -> bool:
    owner = view.owner(slot)
    return owner is not None and owner.active == member and owner.boot == boot
