"""Checks, slowly and without end, that this member's copies of sessions are as in etcd, and mends those that are not.

One slot after the other is digested in memory and then read from etcd; see ``understudy.statesync.sessions.digests``
for what a difference proves. A wrong copy is forgotten and made anew, of an owned slot as well: calls wait until it is
there, which is what they do after any gap in the watch. What was read also tells whether a former owner's write came
through (``split_brain_audit``), so slots that were taken over have their turn first. Cost: one slot a second at the
most, ten after a takeover, and no more than :data:`BYTES_PER_SECOND` read from etcd, whatever the size of the pool.
"""

import asyncio
import contextlib
import logging

from understudy.proxy.ownership.context import MemberContext
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.sessions.digests import Difference, Entry, Findings, compare, entries_of, read_slot

logger = logging.getLogger(__name__)

INTERVAL = 1.0
AUDIT_INTERVAL = 0.1
BYTES_PER_SECOND = 1 << 20
PROBE_TIMEOUT = 2.0


class NotHeld(Exception):
    """This member holds no complete copy of the slot."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"no complete copy of slot {slot} is held here")
        self.slot = slot


class AntiEntropy:
    """The check of this member's copies. ``interval`` is in seconds per slot."""

    def __init__(self, context: MemberContext, *, interval: float) -> None:
        self._context = context
        self._interval = interval
        self._last = -1

    async def run(self) -> None:
        """Check until cancelled; what etcd cannot answer now is checked in the next round."""
        while True:
            audit = self._audit()
            slot = self._next() if audit is None else audit
            size = 0
            if slot is not None:
                try:
                    size = await self.check(slot)
                except EtcdError as error:
                    logger.debug("slot %d could not be checked: %s", slot, error)
                except NotHeld:
                    pass  # given away since it was chosen: the next one is looked at in its turn
            interval = self._interval if audit is None else min(AUDIT_INTERVAL, self._interval)
            await asyncio.sleep(max(interval, size / BYTES_PER_SECOND))

    async def check(self, slot: int) -> int:
        """Compare one slot with etcd and make it anew if it is wrong; returns the bytes read.

        Raises :class:`NotHeld` and ``EtcdError``.
        """
        held, applied = await self.entries(slot)
        context = self._context
        etcd = await read_slot(context.etcd, context.keys, slot, codec=context.replica.codec)
        findings = compare(held, applied, etcd)
        self._context.counters.checked += 1
        owner = context.state.owners.get(slot)
        if owner is not None:
            context.audit.checked(etcd, slot, owner.record, owner.revision)
        wrong = [*findings.proved, *await self._confirmed(slot, findings)]
        if wrong:
            await self._mend(slot, wrong, len(held))
        return etcd.size

    async def entries(self, slot: int) -> tuple[dict[str, Entry], int]:
        """The slot as it is held here, and the revision up to which it is surely complete. Raises :class:`NotHeld`."""
        replica = self._context.replica
        if not replica.is_synced(slot):
            raise NotHeld(slot)
        applied = self._context.mirror.revision
        return await entries_of(list(replica.sessions_of(slot).items())), applied

    async def resync(self, slot: int) -> int:
        """Forget the slot and copy it from etcd; returns how many sessions it has then.

        Raises :class:`NotHeld` and ``EtcdError`` (then the copy is made as soon as etcd answers).
        """
        context = self._context
        if slot not in context.replica.held:
            raise NotHeld(slot)
        context.counters.resyncs += 1
        await context.replica.recopy(slot)
        return len(context.replica.sessions_of(slot))

    def _audit(self) -> int | None:
        """A slot that was taken over and is here to be checked; those that are gone again need not be."""
        writers, replica = self._context.audit, self._context.replica
        while (slot := writers.next_audit()) is not None and slot not in replica.held:
            writers.left(slot)
        return slot if slot is not None and replica.is_synced(slot) else None

    def _next(self) -> int | None:
        """The next slot in turn, in order of number."""
        synced = self._context.replica.synced
        if not synced:
            return None
        self._last = min((slot for slot in synced if slot > self._last), default=min(synced))
        return self._last

    async def _confirmed(self, slot: int, findings: Findings) -> list[Difference]:
        """Which of the open differences are real: those still held when the etcd read is surely applied."""
        if not findings.open:
            return []
        context = self._context
        probe = context.keys.probe(context.me)
        revision = await context.etcd.put(probe, b"")
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await context.mirror.caught_up(revision)
        except TimeoutError:
            return []  # the watch is late: the next round tells
        finally:
            with contextlib.suppress(EtcdError):
                await context.etcd.delete(probe)
        if not context.replica.is_synced(slot):
            return []
        return [
            one
            for one in findings.open
            if (session := context.replica.session(slot, one.key)) is not None and session.revision == one.held
        ]

    async def _mend(self, slot: int, wrong: list[Difference], held: int) -> None:
        kinds = ", ".join(sorted({str(one.fault) for one in wrong}))
        logger.warning(
            "slot %d: %d of the %d sessions held here are not as in etcd (%s): copying the slot anew",
            slot,
            len(wrong),
            held,
            kinds,
        )
        await self.resync(slot)
