"""Keeps what this member owns and holds in line with the slot table and with who is alive.

It carries out what ``understudy.statesync.pool.ownership`` decides, at every change of the pool and once per
:data:`POLL_INTERVAL`. Claims and handovers run in tasks of their own, so that none waits for another: one claim at a
time, and handovers to :data:`HANDOVERS_AT_ONCE` members. Takeovers from dead members are in
:mod:`understudy.proxy.ownership.takeovers`.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial

from understudy.proxy.events.cause import Cause
from understudy.proxy.events.recorder import Recorder
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.claims import Claimer, Won
from understudy.proxy.ownership.drain_reason import OVERDUE_AFTER, DrainState, able_to_take
from understudy.proxy.ownership.etcd_contact import LATE, EtcdContact
from understudy.proxy.ownership.handover import SLOTS_TOGETHER, Handover, HandoverFailed
from understudy.proxy.ownership.handover_pacing import HandoverPacing
from understudy.proxy.ownership.opening import Gained, SlotOpener
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_deadline import BOUND
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.ownership import (
    REBALANCE,
    UNFIT,
    ClaimFree,
    HandOver,
    TakeOver,
    Undo,
    View,
    agreed_set,
    next_steps,
    sites_in,
    standbys_of,
)
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError, trace_seed

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
HANDOVERS_AT_ONCE = 1
"""Members that slots are on their way to at once."""
HANDOVER_PAUSE = 1.0
KEPT_UNWANTED = 5.0
"""Seconds for which a copy is kept that nobody wants: a change by which its active takes it in may be under way."""
ORPHANED_AFTER = BOUND * 1.1
"""Also how long a replaced owner may answer reads from memory; see ``takeover: lease``."""


class SlotReconciler:
    """Starts what has to be done; one per process.

    ``claiming`` is held while slots are claimed, also by ``takeovers``. ``fault`` says what is wrong with this member,
    '' for nothing.
    """

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        owned: OwnedSlots,
        active: ActiveSlots,
        keeper: CopyKeeper,
        opener: SlotOpener,
        updates: PoolUpdates,
        drain: DrainState,
        contact: EtcdContact,
        claimer: Claimer,
        handover: Handover,
        takeovers: Takeovers,
        claiming: asyncio.Lock,
        recorder: Recorder,
        fault: Callable[[], str],
        pacing: HandoverPacing,
    ) -> None:
        self._pool = pool
        self._copies = copies
        self._owned = owned
        self._active = active
        self._keeper = keeper
        self._opener = opener
        self._updates = updates
        self._drain = drain
        self._contact = contact
        self._claimer = claimer
        self._handover = handover
        self._takeovers = takeovers
        self._claiming = claiming
        self._recorder = recorder
        self._fault = fault
        self._pacing = pacing
        self._handing: set[int] = set()
        self._handover_gate = asyncio.Semaphore(HANDOVERS_AT_ONCE)
        self._handover_pause: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining_since = time.monotonic()
        self._orphaned: dict[int, tuple[int, float]] = {}
        self._unwanted: dict[int, float] = {}
        self.trouble = ""
        """Why the last piece of work failed, '' if it did not."""

    # -- the loop --

    async def run(self) -> None:
        """Reconcile until cancelled."""
        try:
            while True:
                seen = self._updates.changed
                self._reconcile()
                await self._updates.wait(seen, POLL_INTERVAL)
        finally:
            tasks = [*self._tasks.values(), *self._takeovers.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reconcile(self) -> None:
        """Start what has to be done now."""
        if not self._copies.informer.synced.is_set():
            return
        view = self._pool.view()
        self._drop_unwanted(view)
        self._reopen()
        if self._drain.reason is None:
            self._draining_since = time.monotonic()
        receivers = list(self._standbys(view).values())
        for step in next_steps(view, handing_over=self._busy):
            match step:
                case TakeOver(member, boot, slots):
                    self._start(f"takeover/{member}", partial(self._takeovers.of_lost, member, boot, slots))
                case ClaimFree():
                    self._start("claim", self._claim_free)
                case HandOver(slot, to) if slot in self._owned:
                    receivers.append(to)
                case Undo(slot):
                    self._start(f"undo/{slot}", partial(self._handover.undo_stale, slot))
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

    def _drop_unwanted(self, view: View) -> None:
        """Forget copies of slots that neither the table nor a sync set has wanted here for a while."""
        now, wanted = time.monotonic(), self._pool.assigned() | frozenset(self._owned.slots)
        unwanted = [slot for slot in self._copies.replica.held - wanted if view.leaves_out(slot)]
        self._unwanted = {slot: self._unwanted.get(slot, now) for slot in unwanted}
        for slot, since in self._unwanted.items():
            if now - since >= KEPT_UNWANTED and self._keeper.released(slot):
                self._keeper.drop(slot)

    def _reopen(self) -> None:
        """Open gates that a handover which failed has left closed."""
        if self._claiming.locked():
            return
        busy = self._busy
        for slot in self._owned.slots:
            owned = self._owned.get(slot)
            if owned is not None and slot in self._active and slot not in busy:
                self._owned.reopen(owned)

    # -- claims --

    async def _claim_free(self) -> None:
        """Claim slots that nobody can be writing: for those the table alone is reason enough.

        Once more for those that are left, if others that may have their newest writes alone are proven dead.
        """
        left = await self._claim_free_with(None)
        if left:
            await self._claim_free_with(await self._takeovers.proven_dead(left))

    async def _claim_free_with(self, dead: Collection[Process] | None) -> list[int]:
        """Claim what is free, once these processes are known to be dead; returns the slots that are left."""
        won: list[Won] = []
        wanted: list[int] = []
        try:
            async with self._claiming:
                view = self._pool.view()
                wanted = [slot for step in next_steps(view) if isinstance(step, ClaimFree) for slot in step.slots]
                fresh: list[int] = []
                replaced: dict[tuple[str, str], list[int]] = {}
                for slot in wanted:
                    owner = view.owner(slot)
                    if owner is None:
                        fresh.append(slot)
                    else:
                        replaced.setdefault((owner.active, owner.boot), []).append(slot)
                if fresh:
                    won.append(await self._claimer.win(view, fresh, Cause("first owner")))
                for (member, boot), slots in replaced.items():
                    cause = self._takeovers.cause(member, boot, f"{member} was restarted")
                    won.append(await self._claimer.win(view, slots, cause, dead))
        finally:
            await asyncio.gather(*(self._claimer.open(one) for one in won))
        claimed = {c.slot for one in won for c in one.claims}
        if claimed:  # else this would start the next attempt at once, for ever where the pool is not at home
            self._updates.wake()
        return [slot for slot in wanted if slot not in claimed]

    def _lasting_orphaned(self, view: View) -> list[int]:
        """Slots whose record has named this process for :data:`ORPHANED_AFTER` seconds although it does not serve them.

        A claim or an undo whose answer never came leaves them behind. For a moment that is normal: the watch may bring
        the record before the transaction's own answer comes.
        """
        now = time.monotonic()
        orphaned: dict[int, tuple[int, float]] = {}
        for slot, at in view.owners.items():
            owned = self._owned.get(slot)
            if view.mine(slot) and slot not in self._handing and (owned is None or owned.fence < at.revision):
                seen, since = self._orphaned.get(slot, (at.revision, now))
                orphaned[slot] = (at.revision, since if seen == at.revision else now)
        self._orphaned = orphaned
        return [slot for slot, (_, since) in orphaned.items() if now - since >= ORPHANED_AFTER]

    def give_up(self) -> dict[int, int]:
        """Give up every slot that is served here; returns those that nobody else owns yet, with their fences."""
        busy = self._busy
        self._owned.give_up(slot for slot in self._owned.slots if slot not in busy)
        view = self._pool.view()
        fences = self._owned.given_up
        for slot in [
            slot for slot, fence in fences.items() if not view.mine(slot) or view.owners[slot].revision != fence
        ]:
            del fences[slot]
        return dict(fences)

    async def _reclaim(self, slots: Sequence[int]) -> None:
        """Serve slots whose record names this process."""
        if self._contact.silent_for(time.monotonic()) > LATE:
            return
        async with self._claiming:
            with self._owned.transaction():
                gained = [] if self._owned.closed else await self._gain_again(slots)
            await self._opener.open([one for _, one in gained])
        failovers = [found.record for found in self._pool.state.failovers.values()]
        for at, one in gained:
            slot = one.owned.slot
            if self._owned.takes(slot):
                logger.warning("slot %d is ours at revision %d, though no answer said so: reclaimed", slot, at.revision)
                self._recorder.reclaimed(slot, at, failovers)

    async def _gain_again(self, slots: Sequence[int]) -> list[tuple[At[Owner], Gained]]:
        """Those of ``slots`` that are ours by their records, with these records."""
        view = self._pool.view()
        gained = []
        for slot in slots:
            at = view.owners.get(slot)
            if at is None or not view.mine(slot) or slot in self._handing:
                continue
            if self._owned.given_up.get(slot) == at.revision:
                at = await self._handover.take_up_again(slot, at)
            if at is not None and (one := await self._regained(slot, at)) is not None:
                gained.append((at, one))
        return gained

    async def _regained(self, slot: int, at: At[Owner]) -> Gained | None:
        """The slot as ours by its record; None if it is not.

        Both records are read anew, together: what is known here may be an owner record without the sync record that was
        written with it. Without ``memory`` etcd has everything, and a copy that this process did not serve with may
        lack some of it.
        """
        if not await self._handover.read_records(slot) or self._pool.state.owners.get(slot) != at:
            return None
        agreed = agreed_set(at.record, self._pool.state.sync_sets.get(slot))
        copied = agreed.memory or slot in self._active
        return Gained(self._owned.gain(slot, at.record, at.revision), agreed, copied)

    # -- handovers --

    @property
    def _busy(self) -> frozenset[int]:
        """Slots that cannot be handed over now: being handed over already, or claimed and not open yet."""
        return frozenset(self._handing) | self._owned.preparing

    def _standbys(self, view: View) -> dict[int, str]:
        """Which standby gets which slot when this member drains and no table has said so in :data:`OVERDUE_AFTER` s."""
        if self._drain.reason is None or time.monotonic() - self._draining_since < OVERDUE_AFTER:
            return {}
        able, busy, standbys = able_to_take(self._pool.state, time.time()), self._busy, {}
        for slot in self._owned.slots:
            standby = next((member for member in standbys_of(view, slot) if member in able), None)
            if standby is not None and slot not in busy:
                standbys[slot] = standby
        return standbys

    def _handovers(self, view: View) -> list[HandOver]:
        """The handovers that the table asks for, of slots that are served here.

        A slot whose record names this process, and that it does not serve, is reclaimed first.
        """
        steps = next_steps(view, handing_over=self._busy)
        return [step for step in steps if isinstance(step, HandOver) and step.slot in self._owned]

    def _order_for(self, to: str) -> tuple[list[int], TraceIds]:
        """The slots that ``to`` is to get now, and the trace of their handover.

        They are what the newest table asks for. Without such a table they are what a drain leaves to ``to``; its trace
        has no root, so it counts as unmeasured.
        """
        view = self._pool.view()
        wanted = [step.slot for step in self._handovers(view) if step.to == to]
        if wanted:
            with contextlib.suppress(TraceparentError):
                return wanted, TraceIds.from_traceparent(view.table.traceparent)
        subject = f"drain/{view.me}/{view.boot}/{self._draining_since}"
        trace = trace_seed(self._pool.identity.keys.pool, names.KIND_HANDOVER, subject)
        return wanted or [slot for slot, standby in self._standbys(view).items() if standby == to], trace

    def _reason_to_give(self) -> str:
        drain = self._drain.reason
        if drain is not None:
            return drain.cause
        fault = self._fault()
        if fault:
            return f"{UNFIT}{fault}"
        asked = self._pool.view().table.cause
        return asked if sites_in(asked) else REBALANCE

    def _handovers_left(self) -> int:
        """How many handovers are left, if each has as many slots as it may."""
        view = self._pool.view()
        receivers = self._standbys(view) | {step.slot: step.to for step in self._handovers(view)}
        return sum(-(-slots // SLOTS_TOGETHER) for slots in Counter(receivers.values()).values())

    def _begin_handovers(self, receivers: Sequence[str]) -> None:
        for to in dict.fromkeys(receivers):
            if time.monotonic() >= self._handover_pause.get(to, 0.0):
                self._start(f"handover/{to}", partial(self._hand_over, to))

    async def _hand_over(self, to: str) -> None:
        """Hand the next few slots that ``to`` is to get over to it."""
        slots: list[int] = []
        try:
            async with self._handover_gate:
                wanted, trace = self._order_for(to)
                slots = [] if self._owned.closed else wanted[:SLOTS_TOGETHER]
                if slots:
                    self._handing.update(slots)
                    cause = self._reason_to_give()
                    await self._handover.give(slots, to, cause=cause, trace=trace)
                    self._handing.difference_update(slots)
                    if not cause.startswith(UNFIT):
                        await asyncio.sleep(self._pacing.rest(time.monotonic(), self._handovers_left()))
        except HandoverFailed as error:
            self._handover_pause[to] = time.monotonic() + HANDOVER_PAUSE
            logger.warning("handover of %s; trying again in %.0f s", error, HANDOVER_PAUSE)
        finally:
            self._handing.difference_update(slots)
            self._updates.wake()
