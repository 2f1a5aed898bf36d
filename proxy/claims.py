"""Claiming slots: the transaction, sent until its outcome is definite, and catching up before the first answer.

After a claim no older owner can write (its compare fails), so what the replica lacks is finite and its end
is known: the revision of the replaced owner's commit marker, read inside the claim. The replica waits for
that revision; if the watch does not bring it soon, the slots are read from etcd instead.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.context import MemberContext
from proxy.holdings import OwnedSlot
from proxy.read_deadline import BOUND
from proxy.request_sweep import read_requests
from statesync.crash_points import CrashPoint, crash_point
from statesync.definite import definite_txn
from statesync.etcd import EtcdError, Put, TxnResult
from statesync.ownership import CLAIM_MOST, Claimed, View, claim, claim_transaction, replaced_members
from statesync.pool import Owner
from telemetry import names
from telemetry.ids import TraceIds
from telemetry.setup import Attributes

logger = logging.getLogger(__name__)

WATCH_PATIENCE = 0.25
OUTCOME_PATIENCE = 10.0
COPIES_AT_ONCE = 8
"""Slots that are read from etcd at once after a claim. Callers wait for these, unlike for those of ``roles``."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why slots change their active: words for people, the trace, and who loses them ('' for nobody).

    ``by_request``: a caller who was sent here is the first witness, not the table.
    """

    text: str
    trace: TraceIds | None = None
    source: str = ""
    by_request: bool = False


class Claimer:
    """Claims slots for this process and makes them ready to serve."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context

    async def claim(self, view: View, slots: Sequence[int], cause: Cause) -> list[int]:
        """Try to claim ``slots``; return those that were won (already caught up and serving).

        Losing the race for one slot of a transaction loses the whole transaction; the caller looks again
        and retries with what is left. Raises ``EtcdError`` when etcd gives no definite answer.
        """
        won: list[int] = []
        for start in range(0, len(slots), CLAIM_MOST):
            won.extend(await self._claim_some(view, slots[start : start + CLAIM_MOST], cause))
        return won

    async def _claim_some(self, view: View, slots: Sequence[int], cause: Cause) -> list[int]:
        context = self._context
        started_ns = context.telemetry.now_ns()
        now = time.time()
        claims = claim(
            view, slots, cause=cause.text, traceparent=cause.trace.traceparent if cause.trace else "", now=now
        )
        crash_point(CrashPoint.CLAIM_DECIDED)
        revision, markers = await self._win(claims, self._note(claims, cause, now))
        if not revision:
            return []
        crash_point(CrashPoint.CLAIM_WON)
        won = [owned for c in claims if (owned := self._gain(c, revision)) is not None]
        told = None
        if cause.trace is not None:
            slots, claimed_ns = [c.slot for c in claims], context.telemetry.now_ns()
            told = context.first_answers.claimed(
                cause.trace, slots, started_ns, claimed_ns, by_request=cause.by_request
            )
        await self._outwait_readers(claims)
        await self.catch_up(won, max([markers, *(c.replaces for c in claims)]))
        if told is not None:
            attributes: Attributes = {
                names.POOL: context.keys.pool,
                names.MEMBER: context.me,
                names.FROM: cause.source,
                names.SLOTS: len(claims),
                names.SESSION_COUNT: context.replica.count([owned.slot for owned in won]),
                names.EPOCH: max(c.owner.epoch for c in claims),
                names.ETCD_REVISION: revision,
                names.CAUSE: cause.text,
            }
            context.first_answers.opened(told, attributes)
        if cause.source and cause.source != context.me:
            context.tally.takeovers += 1
            context.tally.taken_over += len(won)
            if cause.trace is not None:
                context.writers.claimed(cause.trace, {c.slot: c.owner.epoch for c in claims}, revision)
        logger.info("claimed %d slots at revision %d: %s", len(won), revision, cause.text)
        return [owned.slot for owned in won]

    async def _outwait_readers(self, claims: Sequence[Claimed]) -> None:
        """With ``takeover: lease``, wait until no replaced owner can still answer reads from memory.

        Its last look at etcd that can have missed this claim was sent before now, so its read deadline ends a
        ``BOUND`` from now at the latest; a tenth more covers clocks that run at different rates.
        """
        spec = self._context.state.spec
        if spec is not None and spec.record.takeover == "lease" and replaced_members(claims):
            await asyncio.sleep(BOUND * 1.1)

    def _gain(self, claimed: Claimed, revision: int) -> OwnedSlot | None:
        """The slot as ours, unless somebody has claimed it after us by the time we hear that we had it."""
        if not self._context.state.note_owner(claimed.slot, claimed.owner, revision):
            return None
        return self._context.holdings.gain(claimed.slot, claimed.owner, revision)

    def _note(self, claims: Sequence[Claimed], cause: Cause, now: float) -> list[Put]:
        if cause.trace is None:
            return []
        taken = {c.slot: c.owner.epoch for c in claims}
        log = self._context.failovers
        return [log.add(cause.trace.hex, cause.source, taken, cause=cause.text, planned=False, now=now)]

    async def _win(self, claims: Sequence[Claimed], extra: Sequence[Put]) -> tuple[int, int]:
        """Send the claim until its outcome is definite: (revision, newest marker revision), or (0, 0) if lost."""
        compares, success, failure = claim_transaction(self._context.keys, claims, extra)
        result, _ = await definite_txn(self._context.etcd, compares, success, failure, patience=OUTCOME_PATIENCE)
        if result.succeeded:
            marker_answers = result.answers[len(claims) + len(extra) :]
            return result.revision, max((kv.mod_revision for found in marker_answers for kv in found), default=0)
        revision = self._won_before(claims, result)
        return (revision, await self._markers(claims)) if revision else (0, 0)

    def _won_before(self, claims: Sequence[Claimed], result: TxnResult) -> int:
        """The revision of an earlier try of the same claim whose answer was lost; 0 if another one won.

        Also teaches the pool state the records that were found, so that the next look is not at the same
        old ones.
        """
        found = [(c, answer[0]) for c, answer in zip(claims, result.answers, strict=True) if answer]
        ours = [kv for c, kv in found if kv.value == c.owner.encode()]
        if len(ours) == len(claims):
            return ours[0].mod_revision
        for c, kv in found:
            self._context.state.note_owner(c.slot, Owner.decode(kv.value), kv.mod_revision)
        return 0

    async def _markers(self, claims: Sequence[Claimed]) -> int:
        revisions = [0]
        for member in replaced_members(claims):
            kv = await self._context.etcd.get(self._context.keys.commit(member))
            revisions.append(kv.mod_revision if kv else 0)
        return max(revisions)

    async def catch_up(self, won: Sequence[OwnedSlot], revision: int) -> None:
        """Make slots ready that are fenced for us: in memory up to ``revision`` at least; then open their gates."""
        context = self._context
        late = False
        try:
            async with asyncio.timeout(WATCH_PATIENCE):
                await context.mirror.caught_up(revision)
        except TimeoutError:
            late = True
            logger.warning("the watch lags behind revision %d: reading %d slots from etcd", revision, len(won))
        if late:
            await self._read_requests()
        gate = asyncio.Semaphore(COPIES_AT_ONCE)

        async def make_ready(owned: OwnedSlot) -> None:
            if late or not context.replica.is_synced(owned.slot):
                async with gate:
                    await self._copy(owned)
            context.holdings.reopen(owned)

        async with asyncio.TaskGroup() as group:
            for owned in won:
                group.create_task(make_ready(owned))

    async def _read_requests(self) -> None:
        """Read what became of requests: the watch, which brings it usually, lags behind."""
        pause = 0.02
        while True:
            try:
                await read_requests(self._context)
            except EtcdError as error:
                logger.warning("the request log cannot be read from etcd yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            else:
                return

    async def _copy(self, owned: OwnedSlot) -> None:
        pause = 0.02
        while self._context.holdings.get(owned.slot) is owned:
            try:
                await self._context.replica.refresh(owned.slot)
            except EtcdError as error:
                logger.warning("slot %d cannot be read from etcd yet: %s", owned.slot, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            else:
                return
