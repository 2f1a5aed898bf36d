"""Compares this member's copies of sessions with etcd, slot by slot, without end, and repairs the wrong ones.

Each slot is digested in memory and then read from etcd; ``understudy.statesync.sessions.digests`` says what a
difference proves. A wrong copy is made anew, at a standby from its active, at the active from etcd. The read also shows
whether a former owner's write came through (``split_brain_audit``), so slots that were taken over come first. The cost:
at most one slot a second, ten a second after a takeover, and at most :data:`BYTES_PER_SECOND` read from etcd, whatever
the size of the pool.
"""

import asyncio
import logging
from typing import Protocol

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.site_records import SiteTakeOver
from understudy.statesync.replication.history import History
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.digests import (
    NOTHING,
    CopyProgress,
    Difference,
    Findings,
    Reading,
    Snapshot,
    compare,
    entries_of,
    read_set,
    read_slot,
)
from understudy.statesync.sessions.replica import Replica

logger = logging.getLogger(__name__)

INTERVAL = 1.0
AUDIT_INTERVAL = 0.1
BYTES_PER_SECOND = 1 << 20
COMPARISONS = 6
"""Comparisons of a slot in a row, while it has differences that the next one may prove."""
COMPARISON_INTERVAL = 0.7
"""Seconds between them. A copy is told what is saved every second or two."""


class NotHeld(Exception):
    """This member has no whole copy of the slot."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"no complete copy of slot {slot} is held here")
        self.slot = slot


class RepairRefused(Exception):
    """A copy cannot be made anew now; the text says why, and what to do."""


class CopyStates(Protocol):
    """The whole copies of this process, its own as an active among them, and how they are made anew."""

    @property
    def slots(self) -> frozenset[int]:
        """The slots of which this process has everything."""

    def progress(self, slot: int) -> CopyProgress | None:
        """How far the copy of a slot is; None without a whole one."""

    def history(self, slot: int) -> History:
        """What this process, as the active, has had of the slot; empty if it is not the active."""

    async def make_anew(self, slot: int) -> None:
        """Replace the copy of a slot. Raises :class:`NotHeld`, :class:`RepairRefused` and ``EtcdError``."""


class AntiEntropy:
    """Checks this member's copies. ``interval`` is in seconds per slot."""

    def __init__(
        self,
        pool: PoolView,
        replica: Replica,
        copies: CopyStates,
        etcd: EtcdClient,
        recorder: Recorder,
        *,
        interval: float,
    ) -> None:
        self._pool = pool
        self._me = Process(pool.identity.me, pool.identity.boot)
        self._keys = pool.identity.keys
        self._replica = replica
        self._copies = copies
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
                    logger.debug("slot %d was not checked: it is not held any more", slot)
                except RepairRefused as error:
                    logger.warning("slot %d was not repaired and will be checked again: %s", slot, error)
            interval = self._interval if audit is None else min(AUDIT_INTERVAL, self._interval)
            await asyncio.sleep(max(interval, size / BYTES_PER_SECOND))

    async def check(self, slot: int) -> int:
        """Compare one slot with etcd and make it anew if it is wrong; returns the bytes read.

        Raises :class:`NotHeld`, :class:`RepairRefused` and ``EtcdError``.
        """
        snapshot = await self.snapshot(slot)
        stored = await read_slot(self._etcd, self._keys, slot, codec=self._replica.codec)
        findings, size = compare(snapshot, stored), stored.size
        self._recorder.counters.checked += 1
        self._check_writers(slot, stored)
        for _ in range(COMPARISONS - 1):
            if findings.proved or not findings.open:
                break
            await asyncio.sleep(max(min(COMPARISON_INTERVAL, self._interval), stored.size / BYTES_PER_SECOND))
            findings, stored = await self._compare_again(slot, findings)
            size += stored.size
        if findings.proved and not await self._set_back():
            await self._repair(slot, findings.proved, len(snapshot.entries))
        return size

    async def _set_back(self) -> bool:
        """Whether etcd was taken over (``site take-over``) and the watch has not told yet.

        Then etcd may lack what memory has, which is about to be saved again.
        """
        kv = await self._etcd.get(self._keys.take_over)
        return SiteTakeOver.generation_in(kv.value if kv else None) > self._pool.state.generation

    async def snapshot(self, slot: int) -> Snapshot:
        """The slot as it is held here. Raises :class:`NotHeld`."""
        progress = self._copies.progress(slot)
        if progress is None or not self._replica.is_synced(slot):
            raise NotHeld(slot)
        return Snapshot(await entries_of(list(self._replica.sessions_of(slot).items())), progress)

    async def resync(self, slot: int) -> int:
        """Make the copy of a slot anew; returns how many sessions it has then.

        Raises :class:`NotHeld`, :class:`RepairRefused` and ``EtcdError``.
        """
        if self._copies.progress(slot) is None:
            raise NotHeld(slot)
        self._recorder.counters.resyncs += 1
        await self._copies.make_anew(slot)
        return len(self._replica.sessions_of(slot))

    async def _compare_again(self, slot: int, before: Findings) -> tuple[Findings, Reading]:
        """Compare a slot again, to prove what is open."""
        known = await read_set(self._etcd, self._keys, slot)
        snapshot = await self.snapshot(slot)
        in_set = known.stood(await read_set(self._etcd, self._keys, slot), self._me)
        stored = await read_slot(self._etcd, self._keys, slot, codec=self._replica.codec)
        left = _of_those(compare(Snapshot(snapshot.entries, snapshot.progress, in_set), stored, before), before)
        return left, stored

    def _check_writers(self, slot: int, stored: Reading) -> None:
        """Find writes of former owners in a slot that this process serves: only it knows what it has inherited."""
        at, history = self._pool.state.owners.get(slot), self._copies.history(slot)
        if at is not None and history and self._pool.view().mine(slot):
            self._recorder.audit.checked(stored, slot, at.record, at.revision, history)

    def _audit(self) -> int | None:
        """A slot that was taken over, is still ours and has to be checked; None if there is none."""
        audit, view = self._recorder.audit, self._pool.view()
        while (slot := audit.next_audit()) is not None and not view.mine(slot):
            audit.left(slot)
        return slot if slot is not None and self._copies.history(slot) else None

    def _next(self) -> int | None:
        """The next slot in turn, in order of number."""
        whole = self._copies.slots
        if not whole:
            return None
        self._last = min((slot for slot in whole if slot > self._last), default=min(whole))
        return self._last

    async def _repair(self, slot: int, wrong: tuple[Difference, ...], held: int) -> None:
        kinds = ", ".join(sorted({str(one.fault) for one in wrong}))
        logger.warning(
            "slot %d: %d of %d sessions in memory differ from etcd (%s); making the copy anew",
            slot,
            len(wrong),
            held,
            kinds,
        )
        await self.resync(slot)


def _of_those(findings: Findings, before: Findings) -> Findings:
    """What is proved, and what was open before: differences that are new would never come to an end in a busy slot."""
    open_ = {one: needed for one, needed in findings.open.items() if one in before.open}
    return Findings(findings.proved, open_) if findings.any else NOTHING
