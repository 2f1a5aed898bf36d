"""Claiming slots: the transaction, sent until its outcome is definite, and catching up before the first answer.

Both happen once for all slots of a claim, however many transactions it takes: with ``takeover: lease`` a wait for each
hundred slots would make one death in a large pool cost many seconds.

After a claim no older owner can write (its compare fails), so what the replica lacks is finite and its end
is known: the revision of the replaced owner's commit marker, read inside the claim. The replica waits for
that revision; if the watch does not bring it soon, the slots are read from etcd instead.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.owned_slots import OwnedSlot
from understudy.proxy.ownership.read_deadline import BOUND
from understudy.proxy.sessions.request_sweep import read_requests
from understudy.statesync.etcd.client import EtcdError, Kv, Put, TxnResult
from understudy.statesync.etcd.txn_retry import definite_txn
from understudy.statesync.pool.ownership import CLAIM_MOST, Claimed, View, claim, claim_transaction, replaced_members
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At
from understudy.statesync.testing.crash_points import CrashPoint, crash_point
from understudy.telemetry.timing.backoff import Backoff
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError
from understudy.telemetry.tracing.setup import Attributes

logger = logging.getLogger(__name__)

WATCH_PATIENCE = 0.25
OUTCOME_PATIENCE = 10.0
RETRY_FIRST = 0.02
RETRY_LONGEST = 0.5
COPIES_AT_ONCE = 8
"""Slots that are read from etcd at once after a claim. Callers wait for these, unlike for those of
``slot_reconciler``."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why slots change their active: words for people, the trace, and who loses them ('' for nobody).

    ``by_request``: a caller who was sent here is the first witness, not the table. ``stop_or_start``: see
    :meth:`understudy.proxy.ownership.context.MemberContext.stop_or_start`.
    """

    text: str
    trace: TraceIds | None = None
    source: str = ""
    by_request: bool = False
    stop_or_start: bool = False


@dataclass(frozen=True, slots=True)
class Won:
    """What a claim has won and not yet opened: the claims of each transaction, and the revision that made them ours.

    ``marker`` is the newest commit marker of a replaced owner, if there is one. ``began`` and ``claimed`` are in ns.
    """

    parts: tuple[tuple[Sequence[Claimed], int], ...]
    owned: tuple[OwnedSlot, ...]
    marker: Kv | None
    cause: Cause
    began: int
    claimed: int

    @property
    def claims(self) -> list[Claimed]:
        """All claims that were won, in order."""
        return [one for claims, _ in self.parts for one in claims]


class Claimer:
    """Claims slots for this process and makes them ready to serve.

    The two steps are apart, so that whoever keeps others from claiming meanwhile need not do so while slots wait.
    """

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._copies = asyncio.Semaphore(COPIES_AT_ONCE)

    async def win(self, view: View, slots: Sequence[int], cause: Cause) -> Won:
        """Try to claim ``slots``: a transaction for each :data:`CLAIM_MOST` of them, all sent together.

        Losing the race for one slot of a transaction loses the whole transaction; the caller looks again and retries
        with what is left. What was won must be given to :meth:`open`. Raises ``EtcdError`` when nothing was won and
        etcd gave no definite answer.
        """
        context, began, now = self._context, self._context.telemetry.now_ns(), time.time()
        traceparent = cause.trace.traceparent if cause.trace else ""
        claims = claim(view, slots, cause=cause.text, traceparent=traceparent, now=now)
        parts = [claims[start : start + CLAIM_MOST] for start in range(0, len(claims), CLAIM_MOST)]
        note = self._note(claims, cause, now)
        crash_point(CrashPoint.CLAIM_DECIDED)
        outcomes = await asyncio.gather(*(self._win(part, note) for part in parts), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        answers = [(part, *found) for part, found in zip(parts, outcomes, strict=True) if isinstance(found, tuple)]
        won = [answer for answer in answers if answer[1]]  # by their revisions
        await self._correct(claims, [one for part, _, _ in won for one in part], cause)
        if errors and not won:
            raise errors[0]
        for error in errors:
            logger.warning("a part of a claim of %d slots: %s", len(claims), error)
        if won:
            crash_point(CrashPoint.CLAIM_WON)
        owned = [one for part, revision, _ in won for c in part if (one := self._gain(c, revision)) is not None]
        marker = _newest(marker for _, _, marker in won)
        replaced = tuple((part, revision) for part, revision, _ in won)
        return Won(replaced, tuple(owned), marker, cause, began, context.telemetry.now_ns())

    async def open(self, won: Won, *, given: bool = False) -> list[int]:
        """Have what was won caught up and served, all of it after one wait; return the slots that are ours by then.

        ``given``: its owner has given it up, so that there are no readers to wait for.
        """
        claims, cause, context = won.claims, won.cause, self._context
        if not claims:
            return []
        told = None
        if cause.trace is not None:
            slots = [c.slot for c in claims]
            told = context.first_answers.claimed(
                cause.trace, slots, won.began, won.claimed, by_request=cause.by_request
            )
        if not given:
            await self._outwait_readers(claims)
        written = won.marker.mod_revision if won.marker else 0
        await self.catch_up(won.owned, max([written, *(c.replaces for c in claims)]))
        if told is not None:
            attributes: Attributes = {
                names.POOL: context.keys.pool,
                names.MEMBER: context.me,
                names.FROM: cause.source,
                names.SLOTS: len(claims),
                names.SESSION_COUNT: context.replica.count([owned.slot for owned in won.owned]),
                names.EPOCH: max(c.owner.epoch for c in claims),
                names.ETCD_REVISION: max(revision for _, revision in won.parts),
                names.CAUSE: cause.text,
                **({names.STOP_OR_START: True} if cause.stop_or_start else {}),
            }
            context.first_answers.opened(told, attributes)
        if cause.source and cause.source != context.me:
            self._count(won)
        logger.info("claimed %d slots at revision %d: %s", len(won.owned), won.parts[-1][1], cause.text)
        return [owned.slot for owned in won.owned]

    def _count(self, won: Won) -> None:
        context, trace = self._context, won.cause.trace
        context.tally.takeovers += 1
        context.tally.taken_over += len(won.owned)
        if trace is not None:
            for claims, revision in won.parts:
                context.writers.claimed(trace, {c.slot: c.owner.epoch for c in claims}, revision)

    def adopted(self, slot: int, at: At[Owner]) -> None:
        """A slot turned out to be ours: count it if it was taken over by a claim whose answer never came.

        The failover record that the claim wrote tells: it names the slot with this epoch.
        """
        context, taken = self._context, (slot, at.record.epoch)
        for found in context.state.failovers.values():
            record = found.record
            theirs = record.to == context.me and record.source not in ("", context.me) and not record.planned
            if theirs and taken in zip(record.slots, record.epochs, strict=True):
                context.tally.takeovers += record.slots[0] == slot
                context.tally.taken_over += 1
                with contextlib.suppress(TraceparentError):
                    trace = TraceIds.from_traceparent(at.record.traceparent)
                    context.writers.claimed(trace, {slot: at.record.epoch}, at.revision)

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
        owned = self._context.holdings.gain(claimed.slot, claimed.owner, revision)
        owned.preparing = True
        return owned

    def _note(self, claims: Sequence[Claimed], cause: Cause, now: float) -> list[Put]:
        """The failover record, with all ``claims``: each transaction writes it, whichever comes last."""
        if cause.trace is None:
            return []
        taken = {c.slot: c.owner.epoch for c in claims}
        log = self._context.failovers
        return [log.add(cause.trace.hex, cause.source, taken, cause=cause.text, planned=False, now=now)]

    async def _correct(self, claims: Sequence[Claimed], won: Sequence[Claimed], cause: Cause) -> None:
        """Take what was not won out of the failover record; it is for people, so that a failure does no harm."""
        lost = {c.slot for c in claims} - {c.slot for c in won}
        if cause.trace is None or not lost:
            return
        put = self._context.failovers.without(cause.trace.hex, cause.source, lost)
        if not won or put is None:
            return
        try:
            await self._context.etcd.put(put.key, put.value)
        except EtcdError as error:
            logger.warning("the record of a takeover names %d slots too many: %s", len(lost), error)

    async def _win(self, claims: Sequence[Claimed], extra: Sequence[Put]) -> tuple[int, Kv | None]:
        """Send the claim until its outcome is definite: its revision (0 if lost), and the newest marker."""
        compares, success, failure = claim_transaction(self._context.keys, claims, extra)
        result, _ = await definite_txn(self._context.etcd, compares, success, failure, patience=OUTCOME_PATIENCE)
        if result.succeeded:
            marker_answers = result.answers[len(claims) + len(extra) :]
            return result.revision, _newest(kv for found in marker_answers for kv in found)
        revision = self._won_before(claims, result)
        return (revision, await self._marker(claims)) if revision else (0, None)

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
            self._context.state.read_owner(c.slot, kv)
        return 0

    async def _marker(self, claims: Sequence[Claimed]) -> Kv | None:
        keys = self._context.keys
        return _newest([await self._context.etcd.get(keys.commit(member)) for member in replaced_members(claims)])

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

        async def make_ready(owned: OwnedSlot) -> None:
            if late or not context.replica.is_synced(owned.slot):
                async with self._copies:
                    await self._copy(owned)
            context.holdings.reopen(owned)

        async with asyncio.TaskGroup() as group:
            for owned in won:
                group.create_task(make_ready(owned))

    async def _read_requests(self) -> None:
        """Read what became of requests: the watch, which brings it usually, lags behind."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                await read_requests(self._context)
            except EtcdError as error:
                logger.warning("the request log cannot be read from etcd yet: %s", error)
                await asyncio.sleep(backoff.next())
            else:
                return

    async def _copy(self, owned: OwnedSlot) -> None:
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while self._context.holdings.get(owned.slot) is owned:
            try:
                await self._context.replica.refresh(owned.slot)
            except EtcdError as error:
                logger.warning("slot %d cannot be read from etcd yet: %s", owned.slot, error)
                await asyncio.sleep(backoff.next())
            else:
                return


def _newest(markers: Iterable[Kv | None]) -> Kv | None:
    return max((kv for kv in markers if kv is not None), key=lambda kv: kv.mod_revision, default=None)
