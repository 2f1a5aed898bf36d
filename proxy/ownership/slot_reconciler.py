"""The member's part in the pool: carries out what ``ownership`` decides, and takes over when asked to.

Wakes at every change of the pool and once per :data:`POLL_INTERVAL`. Three kinds of work, each in its own task so
that none waits for another: claims (one at a time), handovers (to :data:`HANDOVERS_AT_ONCE` members), and copying the
slots that the table wants held here. Taking over from the dead is done by :mod:`understudy.proxy.ownership.takeovers`.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

from understudy.proxy.ownership.claims import Cause, Claimer, Won
from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.drain_reason import DrainReason, able_to_take, leaving
from understudy.proxy.ownership.etcd_contact import LATE
from understudy.proxy.ownership.handover import SLOTS_TOGETHER, Handover, HandoverFailed
from understudy.proxy.ownership.handover_pacing import HandoverPacing
from understudy.proxy.ownership.read_deadline import BOUND
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.etcd.informer import MirrorBatch
from understudy.statesync.pool.ownership import (
    REBALANCE,
    UNFIT,
    ClaimFree,
    HandOver,
    TakeOver,
    Undo,
    View,
    is_handover,
    next_steps,
    sites_in,
    standbys_of,
)
from understudy.statesync.pool.state import Changed
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError, takeover_seed, trace_seed

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
HANDOVERS_AT_ONCE = 1
"""Members that slots are on their way to at once."""
COPIES_AT_ONCE = 2
"""Slots that are copied from etcd at once when the table names this member for more, while it serves nothing.

A copy takes time from requests: from this member's and, through etcd and the CPU, from others'. With 8 a full sync of
100,000 sessions took 1.2 s instead of 1.9, but of the owner's writes meanwhile the slowest in a hundred 32 ms instead
of 14, and of the gaps in a rolling restart 62 to 71 ms instead of 39 to 49 (docs/benchmarks.md). Nobody waits for
these copies; for those of a takeover somebody does, see ``claims``. So a member that serves makes one at a time, and
rests after each for as long as it took.
"""
HANDOVER_PAUSE = 1.0
STANDBYS_AFTER = 0.3
"""Seconds in which a table usually comes that says where a draining member's slots go."""
ORPHANED_AFTER = BOUND * 1.1
"""Also as long as a replaced owner may answer reads from memory; see ``takeover: lease``."""


class SlotReconciler:
    """Keeps what this member owns in line with the slot table and with who is alive."""

    def __init__(self, context: MemberContext, fault: Callable[[], str], unhurried: HandoverPacing) -> None:
        """``fault`` says what is wrong with this member, '' for nothing; ``unhurried`` when it rests."""
        self._context = context
        self._fault = fault
        self._claimer = Claimer(context)
        self.handover = Handover(context)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._claim_lock = asyncio.Lock()
        self.takeovers = Takeovers(context, self._claimer, self._claim_lock, self.wake)
        self._handing: set[int] = set()
        self._handover_gate = asyncio.Semaphore(HANDOVERS_AT_ONCE)
        self._handover_pause: dict[str, float] = {}
        self._unhurried = unhurried
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining_since = time.monotonic()
        self._intents_changed = 0.0
        self._orphaned: dict[int, tuple[int, float]] = {}
        self.going_down = False
        self.trouble = ""

    @property
    def leaving(self) -> DrainReason | None:
        """Why this member hands its slots over and takes none, None if it does not."""
        return leaving(
            self._context.state,
            self._context.me,
            self._context.site,
            going_down=self.going_down,
            overdue=time.monotonic() - self._intents_changed >= STANDBYS_AFTER,
            now=time.time(),
        )

    # -- what the mirror tells --

    def on_batch(self, batch: MirrorBatch) -> Changed:
        """Receiver of the member's mirror: pool records first, then sessions. Returns what kinds of record changed."""
        context = self._context
        if batch.reset:
            context.replica.drop_all()
            context.owned.close(context.owned.slots)
        changed = context.state.apply(batch)
        context.replica.apply(batch.events)
        context.requests.apply(batch.events, time.monotonic())
        if changed & Changed.OWNERS:
            for slot in context.owned.slots:
                at = context.state.owners.get(slot)
                if at is not None and context.owned.learn(
                    slot, at.record, at.revision, me=context.me, boot=context.boot
                ):
                    self._taken(not is_handover(at.record.cause))
        if changed & Changed.TABLE:
            self._taken(context.view().named_lost(context.me, context.boot))
        if changed & Changed.FAILOVERS:
            self._taken(self._told_taken(batch))
        if changed & Changed.INTENTS:
            self._intents_changed = time.monotonic()
        for member in context.state.members if changed & Changed.MEMBERS else ():
            context.peer(member)
        if changed:
            self.wake()
        return changed

    def _told_taken(self, batch: MirrorBatch) -> bool:
        """Whether somebody has taken over from this process in its present life: each such claim writes a record.

        Nothing else tells of slots that were not held any more, and the next takeover would count as the same one.
        """
        context = self._context
        life = takeover_seed(context.keys.pool, context.me, context.boot, context.incarnation.count)
        return any(event.kv.key.startswith(context.keys.parts_of_failover(life.hex)) for event in batch.events)

    def _taken(self, so: bool) -> None:
        """Somebody took this process for dead, if ``so``."""
        if so:
            self._context.incarnation.taken(time.monotonic())

    def wake(self) -> None:
        """Look again soon."""
        self._wake.set()
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """An event that the next change of the pool will set: look at it first, then at the pool, then wait."""
        return self._changed

    async def change(self, seen: asyncio.Event, timeout: float) -> None:
        """Wait until the pool has changed since ``seen`` was looked at, ``timeout`` seconds at the most."""
        try:
            async with asyncio.timeout(timeout):
                await seen.wait()
        except TimeoutError:
            return

    # -- the loop --

    async def run(self) -> None:
        """Do what is to be done until cancelled."""
        try:
            while True:
                self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            tasks = [*self._tasks.values(), *self.takeovers.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look(self) -> None:
        if not self._context.mirror.synced.is_set():
            return
        self._start("hold", self._hold)
        view = self._context.view()
        if self.leaving is None:
            self._draining_since = time.monotonic()
        receivers = list(self._standbys(view).values())
        for step in next_steps(view, handing_over=self._busy):
            match step:
                case TakeOver(member, boot, slots):
                    self._start(f"takeover/{member}", partial(self.takeovers.of_lost, member, boot, slots))
                case ClaimFree():
                    self._start("claim", self._claim_free)
                case HandOver(_, to):
                    receivers.append(to)
                case Undo(slot):
                    self._start(f"undo/{slot}", partial(self.handover.undo_stale, slot))
        self._begin_handovers(receivers)
        orphaned = self._lasting_orphaned(view)
        if orphaned:
            self._start("reclaim", partial(self._reclaim, orphaned))

    def _start(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run ``work`` in a task of its own unless one of that name is under way."""
        if name in self._tasks:
            return

        async def carry_out() -> None:
            try:
                await work()
                self.trouble = ""
            except EtcdError as error:
                self.trouble = f"{name}: {error}"
                logger.warning("%s", self.trouble)
            except Exception:
                logger.exception("%s failed", name)
            finally:
                self._tasks.pop(name, None)

        self._tasks[name] = asyncio.create_task(carry_out(), name=name)

    # -- holding --

    async def _hold(self) -> None:
        """Hold the sessions of the slots that the table names us for, and of those we own; drop the others."""
        context = self._context
        wanted = context.view().table.slots_held_by(context.me) | frozenset(context.owned.slots)
        for slot in context.replica.held - wanted:
            context.replica.drop(slot)
        missing = wanted - context.replica.synced
        serving = bool(len(context.owned))
        gate = asyncio.Semaphore(1 if serving else COPIES_AT_ONCE)

        async def copy(slot: int) -> None:
            async with gate:
                began = time.monotonic()
                await context.replica.full_sync(slot)
                if serving:
                    await asyncio.sleep(time.monotonic() - began)

        await asyncio.gather(*(copy(slot) for slot in missing))
        closed = [owned for slot in context.owned.slots if (owned := context.owned.get(slot))]
        for owned in closed:
            busy = owned.preparing or owned.slot in self._handing or self._claim_lock.locked()
            if not owned.open.is_set() and not busy:
                context.owned.reopen(owned)

    # -- claims --

    async def _claim_free(self) -> None:
        """Claim what is free for us; the table's word is enough for slots that nobody can be writing."""
        won: list[Won] = []
        try:
            async with self._claim_lock:
                view = self._context.view()
                free = [step.slots for step in next_steps(view) if isinstance(step, ClaimFree)]
                fresh: list[int] = []
                replaced: dict[tuple[str, str], list[int]] = {}
                for slot in (slot for slots in free for slot in slots):
                    owner = view.owner(slot)
                    if owner is None:
                        fresh.append(slot)
                    else:
                        replaced.setdefault((owner.active, owner.boot), []).append(slot)
                if fresh:
                    won.append(await self._claimer.win(view, fresh, Cause("first owner")))
                for (member, boot), slots in replaced.items():
                    cause = self.takeovers.cause(member, boot, f"{member} was restarted")
                    won.append(await self._claimer.win(view, slots, cause))
        finally:
            await asyncio.gather(*(self._claimer.open(one) for one in won))
        self.wake()

    def _lasting_orphaned(self, view: View) -> list[int]:
        """Slots whose record names this process although it does not hold them so, for :data:`ORPHANED_AFTER` seconds.

        That is what a claim or an undo leaves behind whose answer never came. A moment of it is normal: the watch may
        bring the record before the transaction's own answer does.
        """
        now = time.monotonic()
        orphaned: dict[int, tuple[int, float]] = {}
        for slot, at in view.owners.items():
            owned = self._context.owned.get(slot)
            if view.mine(slot) and slot not in self._handing and (owned is None or owned.fence < at.revision):
                seen, since = self._orphaned.get(slot, (at.revision, now))
                orphaned[slot] = (at.revision, since if seen == at.revision else now)
        self._orphaned = orphaned
        return [slot for slot, (_, since) in orphaned.items() if now - since >= ORPHANED_AFTER]

    def give_up(self) -> dict[int, int]:
        """Give up every slot that is served here; returns those that nobody else owns yet, with their fences."""
        context = self._context
        context.owned.give_up(slot for slot in context.owned.slots if slot not in self._busy)
        view = context.view()
        fences = context.owned.given_up
        for slot in [
            slot for slot, fence in fences.items() if not view.mine(slot) or view.owners[slot].revision != fence
        ]:
            del fences[slot]
        return dict(fences)

    async def _reclaim(self, slots: Sequence[int]) -> None:
        """Take up slots whose record names this process, with a fresh copy of their sessions."""
        if self._context.contact.silent_for(time.monotonic()) > LATE:
            return
        async with self._claim_lock:
            view = self._context.view()
            for slot in slots:
                at = view.owners.get(slot)
                if at is None or not view.mine(slot) or slot in self._handing:
                    continue
                if self._context.owned.given_up.get(slot) == at.revision:
                    at = await self.handover.take_up_again(slot, at)
                    if at is None:
                        continue
                self._context.owned.close([slot])
                await self._context.replica.refresh(slot)
                if self._context.state.owners.get(slot) == at:
                    logger.warning(
                        "slot %d is ours at revision %d, though nobody told us: reclaimed", slot, at.revision
                    )
                    self._context.owned.reopen(self._context.owned.gain(slot, at.record, at.revision))
                    self._claimer.reclaimed(slot, at)

    # -- handovers --

    @property
    def _busy(self) -> frozenset[int]:
        """Slots that cannot be handed over now: they are on their way, or were claimed and are not open yet."""
        return frozenset(self._handing) | self._context.owned.preparing

    def _standbys(self, view: View) -> dict[int, str]:
        """Which standby gets which slot when this member drains and no table has said so in :data:`STANDBYS_AFTER` s."""
        if self.leaving is None or time.monotonic() - self._draining_since < STANDBYS_AFTER:
            return {}
        able, standbys = able_to_take(self._context.state, time.time()), {}
        for slot in self._context.owned.slots:
            standby = next((member for member in standbys_of(view, slot) if member in able), None)
            if standby is not None and slot not in self._busy:
                standbys[slot] = standby
        return standbys

    def _order_for(self, to: str) -> tuple[list[int], TraceIds]:
        """The slots that ``to`` is to get now, and the trace of their handover.

        They are what the newest table asks for; else what a drain that no table has heard of leaves to ``to``, whose
        trace has no root and so counts as unmeasured.
        """
        view = self._context.view()
        steps = next_steps(view, handing_over=self._busy)
        wanted = [step.slot for step in steps if isinstance(step, HandOver) and step.to == to]
        if wanted:
            with contextlib.suppress(TraceparentError):
                return wanted, TraceIds.from_traceparent(view.table.traceparent)
        subject = f"drain/{view.me}/{view.boot}/{self._draining_since}"
        trace = trace_seed(self._context.keys.pool, names.KIND_HANDOVER, subject)
        return wanted or [slot for slot, standby in self._standbys(view).items() if standby == to], trace

    def _reason_to_give(self) -> str:
        leaving = self.leaving
        if leaving is not None:
            return leaving.cause
        fault = self._fault()
        if fault:
            return f"{UNFIT}{fault}"
        asked = self._context.view().table.cause
        return asked if sites_in(asked) else REBALANCE

    def _handovers_left(self) -> int:
        """How many handovers there are still to be, if each has as many slots as it may."""
        view = self._context.view()
        steps = next_steps(view, handing_over=self._busy)
        receivers = self._standbys(view) | {step.slot: step.to for step in steps if isinstance(step, HandOver)}
        return sum(-(-slots // SLOTS_TOGETHER) for slots in Counter(receivers.values()).values())

    def _begin_handovers(self, receivers: Sequence[str]) -> None:
        for to in dict.fromkeys(receivers):
            if time.monotonic() >= self._handover_pause.get(to, 0.0):
                self._start(f"handover/{to}", partial(self._hand_over, to))

    async def _hand_over(self, to: str) -> None:
        """Give ``to`` the next few of the slots that it is to get."""
        slots: list[int] = []
        try:
            async with self._handover_gate:
                wanted, trace = self._order_for(to)
                slots = wanted[:SLOTS_TOGETHER]
                if slots:
                    self._handing.update(slots)
                    cause = self._reason_to_give()
                    await self.handover.give(slots, to, cause=cause, trace=trace)
                    self._handing.difference_update(slots)
                    if not cause.startswith(UNFIT):
                        await asyncio.sleep(self._unhurried.rest(time.monotonic(), self._handovers_left()))
        except HandoverFailed as error:
            self._handover_pause[to] = time.monotonic() + HANDOVER_PAUSE
            logger.warning("handover of %s; trying again in %.0f s", error, HANDOVER_PAUSE)
        finally:
            self._handing.difference_update(slots)
            self.wake()
