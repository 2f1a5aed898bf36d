"""Claiming slots: sending the transaction until its outcome is definite, and getting ready for the first answer.

A claim waits once for all of its slots, however many transactions it takes. With ``takeover: lease`` a wait for each
hundred slots would make one death in a large pool cost many seconds.

A process of a slot's sync set has everything in memory: it waits for nothing but the other processes of the set, if it
has writes that they may lack. Another process reads the slot from etcd. After the claim no older owner can write there,
since its compare fails.
"""

import asyncio
import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from understudy.proxy.events.cause import Cause
from understudy.proxy.events.recorder import ClaimRecord, Recorder
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.opening import Gained, SlotOpener
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.ownership.read_deadline import BOUND
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdClient, EtcdError, Put, TxnResult
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.claims import CLAIM_MOST, Claimed, claim, claim_transaction, resignations, unclaimable
from understudy.statesync.pool.owner_records import FailoverLog, records_compared, records_written
from understudy.statesync.pool.ownership import View
from understudy.statesync.pool.records import SyncRecord
from understudy.statesync.replication.sync_set import Process, Source
from understudy.statesync.testing.crash_points import CrashPoint, crash_point

logger = logging.getLogger(__name__)

OUTCOME_TIMEOUT = 10.0
SILENCE_COUNTS_FOR = 60.0
"""Seconds for which a silence of etcd counts after its end: an active that died since may not have saved all."""


@dataclass(frozen=True, slots=True)
class Won:
    """What a claim has won and not yet opened: the claims of each transaction, and the revision that made them ours."""

    parts: tuple[tuple[Sequence[Claimed], int], ...]
    owned: tuple[OwnedSlot, ...]
    cause: Cause
    record: ClaimRecord

    @property
    def claims(self) -> list[Claimed]:
        """All claims that were won, in order."""
        return [one for claims, _ in self.parts for one in claims]


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """A slot that this process may not claim, under an owner record of a revision.

    ``loss_seconds``: if it is claimed with a loss later, how old the missing writes may be.
    """

    revision: int
    loss_seconds: int


class Claimer:
    """Claims slots for this process and makes them ready to serve.

    The two steps are separate, so that a lock that keeps others from claiming is not held while slots wait.
    """

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        etcd: EtcdClient,
        owned: OwnedSlots,
        keeper: CopyKeeper,
        opener: SlotOpener,
        failovers: FailoverLog,
        recorder: Recorder,
        contact: EtcdContact,
        home: HomeWatch,
    ) -> None:
        self._pool = pool
        self._home = home
        self._keys = pool.identity.keys
        self._copies = copies
        self._etcd = etcd
        self._owned = owned
        self._keeper = keeper
        self._opener = opener
        self._failovers = failovers
        self._recorder = recorder
        self._contact = contact
        self._left_out: dict[int, _LeftOut] = {}

    async def win(self, view: View, slots: Sequence[int], cause: Cause, dead: Collection[Process] | None = None) -> Won:
        """Try to claim ``slots``: a transaction for each :data:`CLAIM_MOST` of them, all sent together.

        A transaction is lost as a whole when somebody else has claimed one of its slots; the caller looks again and
        retries with what is left. What was won must be given to :meth:`open`. Raises ``EtcdError`` when nothing was
        won and etcd gave no definite answer.

        ``dead`` are processes that are proven dead; None if nobody has asked yet. A slot that this process
        may not claim is left out. Nothing is claimed where the pool is not at home, or once this process is to end.
        """
        with self._owned.transaction():
            return await self._win(view, slots if self._may_claim else (), cause, dead)

    @property
    def _may_claim(self) -> bool:
        return not (self._home.away or self._owned.closed)

    async def _win(self, view: View, slots: Sequence[int], cause: Cause, dead: Collection[Process] | None) -> Won:
        record, now = self._recorder.claim(cause), time.time()
        traceparent = cause.trace.traceparent if cause.trace else ""
        whole, gone = self._keeper.is_whole, frozenset(dead or ()) | replaced_processes(view, slots)
        claims = claim(
            view,
            slots,
            cause=cause.text,
            traceparent=traceparent,
            now=now,
            whole=whole,
            dead=gone,
            loss_seconds=partial(self._loss_seconds, view),
        )
        if dead is not None:
            left_out = set(slots) - {c.slot for c in claims}
            self._log_left_out(view, left_out, gone)
            idle = [slot for slot in sorted(left_out) if slot not in self._owned]
            await self._resign(view, resignations(view, idle[:CLAIM_MOST], gone))
        parts = [claims[start : start + CLAIM_MOST] for start in range(0, len(claims), CLAIM_MOST)]
        note = self._failover_record(claims, cause, now)
        crash_point(CrashPoint.CLAIM_DECIDED)
        outcomes = await asyncio.gather(*(self._send(part, note) for part in parts), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        won = [(part, found) for part, found in zip(parts, outcomes, strict=True) if isinstance(found, int) and found]
        await self._correct_record(claims, [one for part, _ in won for one in part], cause)
        if errors and not won:
            raise errors[0]
        for error in errors:
            logger.warning("a part of a claim of %d slots: %s", len(claims), error)
        if won:
            crash_point(CrashPoint.CLAIM_WON)
        owned = [one for part, revision in won for c in part if (one := self._gain(c, revision)) is not None]
        record.won()
        return Won(tuple(won), tuple(owned), cause, record)

    async def open(self, won: Won, *, given: bool = False) -> list[int]:
        """Get the sessions of what was won and serve it, all after one wait; returns the slots that are ours by then.

        ``given``: its owner has given it up, so that there are no readers to wait for.
        """
        claims = {c.slot: c for c in won.claims}
        if not claims:
            return []
        won.record.opening(list(claims))
        if not given:
            await self._outwait_readers(won.claims)
        await self._opener.open(
            [
                Gained(owned, claim.sync.sync_set(), copied=claim.source is Source.MEMORY)
                for owned in won.owned
                for claim in (claims[owned.slot],)
            ]
        )
        sessions = self._copies.replica.count([owned.slot for owned in won.owned])
        won.record.opened(won.parts, len(won.owned), sessions)
        logger.info("claimed %d slots at revision %d: %s", len(won.owned), won.parts[-1][1], won.cause.text)
        return [owned.slot for owned in won.owned]

    async def _outwait_readers(self, claims: Sequence[Claimed]) -> None:
        """With ``takeover: lease``, wait until no replaced owner can still answer reads from memory.

        The last read of etcd by which it can have missed this claim was sent before now, so its read deadline ends
        ``BOUND`` seconds from now at the latest. A tenth more covers clocks that run at different rates.
        """
        spec = self._pool.spec
        if spec is not None and spec.takeover == "lease" and any(c.replaced_active for c in claims):
            await asyncio.sleep(BOUND * 1.1)

    def _gain(self, claimed: Claimed, revision: int) -> OwnedSlot | None:
        """The slot as ours, unless somebody has claimed it again by the time that we hear of our claim."""
        if not self._pool.state.note_owner(claimed.slot, claimed.owner, revision):
            return None
        self._pool.state.note_sync_set(claimed.slot, claimed.sync, revision)
        if claimed.loss:
            logger.error(
                "slot %d: all that had its newest 'replicas' writes are gone; it was restored from etcd, "
                "which may lack those of the last %d s before that",
                claimed.slot,
                claimed.sync.loss_seconds,
            )
        self._keeper.heard_of(claimed.slot, claimed.owner.epoch)
        owned = self._owned.gain(claimed.slot, claimed.owner, revision)
        owned.preparing = True
        return owned

    async def _resign(self, view: View, records: Mapping[int, SyncRecord]) -> None:
        """Let another former active claim slots whose whole sync set is gone: all of them, or none in a race."""
        if not records:
            return
        compares = records_compared(
            self._keys,
            {slot: view.owners[slot].revision for slot in records},
            {slot: view.sync_sets[slot].revision for slot in records},
        )
        try:
            result = await self._etcd.txn(compares, records_written(self._keys, {}, records), [])
        except EtcdError as error:
            logger.warning("slots %s cannot be left to other former actives yet: %s", sorted(records), error)
            return
        if result.succeeded:
            logger.warning("slots %s are left to another former active: their sync sets are gone", sorted(records))

    def _log_left_out(self, view: View, slots: Collection[int], dead: Collection[Process]) -> None:
        """Say once for each owner record why this process does not claim a slot."""
        for slot in slots:
            at = view.owners.get(slot)
            why = unclaimable(view, slot, whole=self._keeper.is_whole, dead=dead)
            known = self._left_out.get(slot)
            if why and at is not None and (known is None or known.revision != at.revision):
                self._left_out[slot] = _LeftOut(at.revision, self._loss_seconds(view, slot))
                logger.warning("slot %d cannot be claimed: %s", slot, why)

    def _loss_seconds(self, view: View, slot: int) -> int:
        """How old the writes may be that a claim of a slot now would lose, as far as this process knows.

        What was known when the slot could not be claimed at first counts: an operator may decide about it much later.
        """
        known, at, spec = self._left_out.get(slot), view.owners.get(slot), self._pool.spec
        if known is not None and at is not None and known.revision == at.revision:
            return known.loss_seconds
        checkpoint = spec.replication.checkpoint_ms / 1000 if spec is not None else 1.0
        return math.ceil(checkpoint + self._contact.longest_silence(time.monotonic(), SILENCE_COUNTS_FOR))

    def _failover_record(self, claims: Sequence[Claimed], cause: Cause, now: float) -> list[Put]:
        """The put of the failover record, with all ``claims``: each transaction writes it, whichever comes last."""
        if cause.trace is None:
            return []
        taken = {c.slot: c.owner.epoch for c in claims}
        losses = {c.slot: c.sync.loss_seconds for c in claims if c.loss}
        trace, source = cause.trace.hex, cause.source
        return [self._failovers.add(trace, source, taken, cause=cause.text, planned=False, now=now, losses=losses)]

    async def _correct_record(self, claims: Sequence[Claimed], won: Sequence[Claimed], cause: Cause) -> None:
        """Take what was not won out of the failover record. It is for people, so a failure does no harm."""
        lost = {c.slot for c in claims} - {c.slot for c in won}
        if cause.trace is None or not lost:
            return
        put = self._failovers.without(cause.trace.hex, cause.source, lost)
        if not won or put is None:
            return
        try:
            await self._etcd.put(put.key, put.value)
        except EtcdError as error:
            logger.warning("the record of a takeover names %d slots too many: %s", len(lost), error)

    async def _send(self, claims: Sequence[Claimed], extra: Sequence[Put]) -> int:
        """Send a transaction until its outcome is definite: its revision, 0 if it was lost."""
        compares, success, failure = claim_transaction(
            self._keys, claims, extra, home=self._home.revision, take_over=self._pool.state.taken_over_at
        )
        result, _ = await retry_txn(self._etcd, compares, success, failure, patience=OUTCOME_TIMEOUT)
        return result.revision if result.succeeded else self._won_before(claims, result)

    def _won_before(self, claims: Sequence[Claimed], result: TxnResult) -> int:
        """The revision of an earlier try of the same claim whose answer was lost; 0 if another one won.

        The records that were found are taken into the pool state, so that the next decision is not made from old ones.
        """
        owners, sync_sets = result.answers[: len(claims)], result.answers[len(claims) :]
        found = [(c, answer[0]) for c, answer in zip(claims, owners, strict=True) if answer]
        ours = [kv for c, kv in found if kv.value == c.owner.encode()]
        if len(ours) == len(claims):
            return ours[0].mod_revision
        for c, kv in found:
            self._pool.state.read_owner(c.slot, kv)
        for c, answer in zip(claims, sync_sets, strict=True):
            if answer:
                self._pool.state.read_sync_set(c.slot, answer[0])
        return 0


def replaced_processes(view: View, slots: Iterable[int]) -> frozenset[Process]:
    """The processes of the slots' sync sets that surely are dead, since their members have other ones by now."""
    return frozenset(
        process
        for process in view.holders_of_memory(slots)
        if (at := view.members.get(process.member)) is not None and at.record.boot != process.boot
    )
