"""Compares this member's copies of sessions with etcd, slot by slot, without end, and repairs the wrong ones.

Each slot is digested in memory and then read from etcd; ``understudy.statesync.sessions.digests`` says what a
difference proves. A wrong copy is dropped and copied again, also that of an owned slot: calls wait for it, as
after any gap in the watch. The read also shows whether a former owner's write came through (``split_brain_audit``), so
slots that were taken over come first. The cost: at most one slot a second, ten a second after a takeover, and at most
:data:`BYTES_PER_SECOND` read from etcd, whatever the size of the pool.

Slots that replicate between members are left out: etcd has a checkpoint of them, which may be older than the copies.
"""

import asyncio
import contextlib
import logging

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.sessions.digests import Difference, DigestEntry, Findings, compare, entries_of, read_slot

logger = logging.getLogger(__name__)

INTERVAL = 1.0
AUDIT_INTERVAL = 0.1
BYTES_PER_SECOND = 1 << 20
PROBE_TIMEOUT = 2.0


class NotHeld(Exception):
    """This member holds no complete copy of the slot."""

    def __init__(self, slot: int) -> None:
        super().__init__(self.why(slot))
        self.slot = slot

    @staticmethod
    def why(slot: int) -> str:
        """What is said about the slot."""
        return f"no complete copy of slot {slot} is held here"


class Replicated(NotHeld):
    """The slot replicates between members, so its copy is neither compared with etcd nor made from it."""

    @staticmethod
    def why(slot: int) -> str:
        """What is said about the slot."""
        return f"slot {slot} replicates between members, and its copies are not compared with etcd"


class AntiEntropy:
    """Checks this member's copies. ``interval`` is in seconds per slot."""

    def __init__(
        self, pool: PoolView, copies: LocalCopies, etcd: EtcdClient, recorder: Recorder, *, interval: float
    ) -> None:
        self._pool = pool
        self._copies = copies
        self._replica = copies.replica
        self._etcd = etcd
        self._recorder = recorder
        self._interval = interval
        self._last = -1

    async def run(self) -> None:
        """Check until cancelled. What etcd cannot answer now is checked in the next round."""
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
                    logger.debug("slot %d was not checked: it is not held or not fed by the watch any more", slot)
            interval = self._interval if audit is None else min(AUDIT_INTERVAL, self._interval)
            await asyncio.sleep(max(interval, size / BYTES_PER_SECOND))

    async def check(self, slot: int) -> int:
        """Compare one slot with etcd and copy it again if it is wrong; returns the bytes read.

        Raises :class:`NotHeld`, also of the kind :class:`Replicated`, and ``EtcdError``.
        """
        held, applied = await self.entries(slot)
        stored = await read_slot(self._etcd, self._pool.identity.keys, slot, codec=self._replica.codec)
        findings = compare(held, applied, stored)
        self._recorder.counters.checked += 1
        owner = self._pool.state.owners.get(slot)
        if owner is not None:
            self._recorder.audit.checked(stored, slot, owner.record, owner.revision)
        wrong = [*findings.proved, *await self._confirmed(slot, findings)]
        if wrong:
            await self._repair(slot, wrong, len(held))
        return stored.size

    async def entries(self, slot: int) -> tuple[dict[str, DigestEntry], int]:
        """The slot as it is held here, and the revision up to which it is complete. Raises :class:`NotHeld`."""
        replica = self._replica
        if replica.is_synced(slot):
            raise Replicated(slot)
        if not replica.is_synced(slot):
            raise NotHeld(slot)
        applied = self._copies.informer.revision
        return await entries_of(list(replica.sessions_of(slot).items())), applied

    async def resync(self, slot: int) -> int:
        """Forget the slot and copy it from etcd; returns how many sessions it has then.

        Raises :class:`NotHeld` and ``EtcdError`` (then the copy is made as soon as etcd answers).
        """
        if self._replica.is_synced(slot):
            raise Replicated(slot)
        if slot not in self._replica.held:
            raise NotHeld(slot)
        self._recorder.counters.resyncs += 1
        return len(self._replica.sessions_of(slot))

    def _audit(self) -> int | None:
        """A slot that was taken over, is still held and has to be checked; None if there is none."""
        audit = self._recorder.audit
        fed_by_watch = frozenset[int]()
        while (slot := audit.next_audit()) is not None and slot not in fed_by_watch:
            audit.left(slot)
        return slot if slot is not None and self._replica.is_synced(slot) else None

    def _next(self) -> int | None:
        """The next slot in turn, in order of number."""
        synced = frozenset[int]()
        if not synced:
            return None
        self._last = min((slot for slot in synced if slot > self._last), default=min(synced))
        return self._last

    async def _confirmed(self, slot: int, findings: Findings) -> list[Difference]:
        """Which of the open differences are real: those that are left once all that was read is applied here."""
        if not findings.open:
            return []
        identity = self._pool.identity
        probe = identity.keys.probe(identity.me)
        revision = await self._etcd.put(probe, b"")
        try:
            caught_up = await self._copies.caught_up(revision, PROBE_TIMEOUT)
        finally:
            with contextlib.suppress(EtcdError):
                await self._etcd.delete(probe)
        if not caught_up or not self._replica.is_synced(slot):
            return []  # if the watch is late, the next round decides
        return [
            one
            for one in findings.open
            if (session := self._replica.session(slot, one.key)) is not None and session.version == one.held
        ]

    async def _repair(self, slot: int, wrong: list[Difference], held: int) -> None:
        kinds = ", ".join(sorted({str(one.fault) for one in wrong}))
        logger.warning(
            "slot %d: %d of %d sessions in memory differ from etcd (%s); copying the slot again",
            slot,
            len(wrong),
            held,
            kinds,
        )
        await self.resync(slot)
