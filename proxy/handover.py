"""Handing a slot over: both sides of a planned change of active, in which nothing is lost and nobody is refused.

The owner's side: the target gets the slot's sessions into memory; the gate closes for new calls; those
under way end; the owner record goes to phase ``handover``, which fences every late write; the target
commits itself as active with the next epoch; the gate opens, and who waited at it goes to the target. A
target that fails or stays silent for :data:`CONFIRM_PATIENCE` is given up, and the slot is taken back under
a new epoch.
"""

import asyncio
import json
import logging
import time

from proxy.context import MemberContext
from proxy.holdings import OwnedSlot
from proxy.peers import Peer, PeerError
from statesync.crash_points import CrashPoint, crash_point
from statesync.definite import definite_txn
from statesync.etcd import Get, ModRevision, Put
from statesync.ownership import finish_handover, start_handover, undo_handover
from statesync.pool import Owner, Phase
from statesync.state import At
from telemetry import names
from telemetry.ids import TraceIds
from telemetry.setup import Attributes

logger = logging.getLogger(__name__)

DRAIN_PATIENCE = 0.25
CONFIRM_PATIENCE = 1.0
OUTCOME_PATIENCE = 10.0


class HandoverFailed(Exception):
    """A handover that did not happen; the slot stays with its owner. ``why`` is for the log and the next try."""

    def __init__(self, slot: int, to: str, why: str) -> None:
        super().__init__(f"slot {slot} to {to}: {why}")
        self.slot = slot
        self.to = to
        self.why = why


class Handover:
    """Carries handovers out, as their owner and as their target."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context

    async def give(self, slot: int, to: str, *, cause: str, trace: TraceIds | None) -> None:
        """Hand ``slot`` over to ``to``. Raises :class:`HandoverFailed`; the slot is then ours as before."""
        try:
            await self._give(slot, to, cause, trace)
        except HandoverFailed:
            self._context.tally.refused += 1
            raise

    async def _give(self, slot: int, to: str, cause: str, trace: TraceIds | None) -> None:
        context = self._context
        peer = context.peer(to)
        owned = context.holdings.get(slot)
        if peer is None or owned is None:
            raise HandoverFailed(slot, to, "its address is unknown" if peer is None else "the slot is not ours")
        try:
            await context.peers.prepare(peer, slot)
        except PeerError as error:
            raise HandoverFailed(slot, to, str(error)) from None
        context.holdings.close([slot])
        try:
            await self._give_closed(owned, peer, cause, trace)
        finally:
            context.holdings.reopen(owned)

    async def _give_closed(self, owned: OwnedSlot, peer: Peer, cause: str, trace: TraceIds | None) -> None:
        context = self._context
        started_ns = context.telemetry.now_ns()
        try:
            async with asyncio.timeout(DRAIN_PATIENCE):
                await owned.idle.wait()
        except TimeoutError:
            raise HandoverFailed(owned.slot, peer.member, "calls under way did not end in time") from None
        idle_ns = context.telemetry.now_ns()
        leaving = start_handover(
            owned.owner,
            peer.member,
            cause=cause,
            traceparent=trace.traceparent if trace else "",
            now=time.time(),
        )
        crash_point(CrashPoint.HANDOVER_CLOSED)
        fenced = await self._replace_record(owned.slot, owned.fence, leaving)
        if not fenced:
            context.holdings.lose(owned.slot)
            raise HandoverFailed(owned.slot, peer.member, "somebody else has claimed the slot")
        owned.owner, owned.fence = leaving, fenced
        crash_point(CrashPoint.HANDOVER_FENCED)
        fenced_ns = context.telemetry.now_ns()
        try:
            async with asyncio.timeout(CONFIRM_PATIENCE):
                answer = await context.peers.activate(peer, owned.slot, fenced)
            successor = Owner.decode(json.dumps(answer["owner"]).encode())
            revision = int(str(answer["revision"]))
        except (PeerError, TimeoutError, ValueError, KeyError, TypeError) as error:
            await self._take_back(owned)
            raise HandoverFailed(owned.slot, peer.member, str(error) or "no answer in time") from None
        crash_point(CrashPoint.HANDOVER_CONFIRMED)
        context.state.note_owner(owned.slot, successor, revision)
        context.holdings.lose(owned.slot)
        context.tally.given += 1
        if trace is not None:
            attributes: Attributes = {
                names.POOL: context.keys.pool,
                names.MEMBER: context.me,
                names.SLOT: owned.slot,
                names.TO: peer.member,
                names.ETCD_REVISION: revision,
            }
            phases = context.telemetry.failover(trace.traceparent)
            answered = context.first_answers.last_in(owned.slot)
            phases.phase(names.FLUSH, started_ns, idle_ns, attributes)
            phases.phase(names.FENCE, idle_ns, fenced_ns, attributes, ((answered, names.LAST_REQUEST),))
            phases.phase(names.CONFIRM, fenced_ns, context.telemetry.now_ns(), attributes)

    async def _take_back(self, owned: OwnedSlot) -> None:
        """Undo a fence. If the compare fails, the target became active after all."""
        crash_point(CrashPoint.UNDO_DECIDED)
        mine = undo_handover(owned.owner, now=time.time())
        revision = await self._replace_record(owned.slot, owned.fence, mine)
        if revision and self._context.state.note_owner(owned.slot, mine, revision):
            owned.owner, owned.fence = mine, revision
        else:
            self._context.holdings.lose(owned.slot)

    async def undo_stale(self, slot: int) -> None:
        """Take back a handover whose record still names us as its owner although nobody carries it out."""
        owned = self._context.holdings.get(slot)
        at = self._context.state.owners.get(slot)
        if owned is None or at is None or at.record.phase is not Phase.HANDOVER:
            return
        owned.owner, owned.fence = at.record, at.revision
        await self._take_back(owned)
        self._context.holdings.reopen(owned)

    async def take(self, slot: int, revision: int) -> At[Owner]:
        """Become active for a slot that its owner fenced at ``revision``, and return the new owner record.

        Raises:
            HandoverFailed: the record at ``revision`` does not name us, or somebody changed it since.
            EtcdError: etcd gave no definite answer.
        """
        context = self._context
        started_ns = context.telemetry.now_ns()
        await self._see(slot, revision)
        at = context.state.owners.get(slot)
        if at is None or at.revision != revision or at.record.to != context.me:
            raise HandoverFailed(slot, context.me, f"no handover to this member stands at revision {revision}")
        leaving = at.record
        mine = finish_handover(leaving, context.boot, now=time.time())
        trace = TraceIds.from_traceparent(mine.traceparent) if mine.traceparent else None
        note = []
        if trace is not None:
            taken = {slot: mine.epoch}
            note = [
                context.failovers.add(trace.hex, leaving.active, taken, cause=mine.cause, planned=True, now=time.time())
            ]
        crash_point(CrashPoint.TARGET_ASKED)
        won = await self._replace_record(slot, revision, mine, note)
        if not won:
            raise HandoverFailed(slot, context.me, "its owner took the slot back")
        crash_point(CrashPoint.TARGET_ACTIVE)
        at = At(mine, won)
        if context.state.note_owner(slot, mine, won):
            context.holdings.reopen(context.holdings.gain(slot, mine, won))
        context.tally.received += 1
        if trace is not None:
            now_ns = context.telemetry.now_ns()
            attributes: Attributes = {names.POOL: context.keys.pool, names.MEMBER: context.me, names.SLOT: slot}
            context.telemetry.failover(trace.traceparent).phase(names.CLAIM, started_ns, now_ns, attributes)
            context.first_answers.handed_over(trace, slot, started_ns)
        return at

    async def _see(self, slot: int, revision: int) -> None:
        """Have the handover record and every write before it here: by the watch, or else by reading etcd."""
        context = self._context
        try:
            async with asyncio.timeout(CONFIRM_PATIENCE / 4):
                await context.mirror.caught_up(revision)
        except TimeoutError:
            await context.replica.refresh(slot)
            kv = await context.etcd.get(context.keys.owner(slot))
            if kv is not None:
                context.state.note_owner(slot, Owner.decode(kv.value), kv.mod_revision)
        await context.replica.full_sync(slot)

    async def _replace_record(self, slot: int, fence: int, record: Owner, extra: list[Put] | None = None) -> int:
        """Replace the owner record written at ``fence``; 0 if it is another one by now, else the new revision."""
        key = self._context.keys.owner(slot)
        value = record.encode()
        result, _ = await definite_txn(
            self._context.etcd,
            [ModRevision(key, fence)],
            [Put(key, value), *(extra or [])],
            [Get(key)],
            patience=OUTCOME_PATIENCE,
        )
        if result.succeeded:
            return result.revision
        found = result.answers[0]
        if found and found[0].value == value:
            return found[0].mod_revision
        if found:
            self._context.state.note_owner(slot, Owner.decode(found[0].value), found[0].mod_revision)
        return 0
