"""Group commit: writes a member's sessions to etcd.

Writes that arrive while a transaction is under way go into the next one together, at most :data:`BATCH_MOST` of them.
Each transaction compares the ``mod_revision`` of the owner record of every slot that it writes to, so it succeeds only
while this process owns all of them. It also compares and rewrites the member's *commit marker* (``commits/<member>``).
A transaction whose outcome is unknown is sent again unchanged until the outcome is known. If the first one was applied,
the marker has changed and holds this batch's id, which proves it. So a batch is applied once or not at all, and no
answer is a guess.

When the compare of an owner record fails, only the writes to that slot fail; the others go into the next batch.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from understudy.statesync.etcd.client import (
    Delete,
    EtcdClient,
    Get,
    Kv,
    ModRevision,
    OutcomeUnknown,
    Put,
    Rejected,
    TxnResult,
    Unavailable,
)
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner
from understudy.statesync.sessions.backpressure import Backpressure
from understudy.statesync.sessions.request_log import LogEntry, RequestLog, encode_entries
from understudy.statesync.testing.crash_points import CrashPoint, crash_point
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

BATCH_MOST = 100
BATCH_BYTES = 1_000_000
"""A transaction that has reached this size takes no further write; etcd's default limit is 1.5 MiB per request."""
ENTRY_BYTES = 200
"""About the size of the largest outcome of a request in the request log; most have half of it."""
ENTRIES_MOST = 2000
"""Outcomes in one submission; with more, etcd might refuse the transaction."""
RETRY_FIRST = 0.02
RETRY_LONGEST = 0.5
STALLED_AFTER = 0.3
"""Seconds after which a commit that etcd has not answered counts as stalled. Usually it takes milliseconds."""


class CommitError(Exception):
    """A write that was not committed."""

    def __init__(self, slot: int, detail: str) -> None:
        super().__init__(f"slot {slot}: {detail}")
        self.slot = slot
        self.detail = detail


class NotOwner(CommitError):
    """The slot has another owner record than when the write was made; the write had no effect.

    ``found`` is the owner record in etcd, None if there is none.
    """

    def __init__(self, slot: int, found: Kv | None) -> None:
        super().__init__(slot, f"the owner record now names {_owner_in(found.value) if found else 'nobody'}")
        self.found = found


class NotCommitted(CommitError):
    """etcd refuses the write."""


class Submission(msgspec.Struct, eq=False):
    """One write on its way since ``at`` (monotonic).

    Without a ``key`` it changes no session: only ``entries`` are written, the outcomes of requests.
    """

    slot: int
    fence: int
    key: str
    value: bytes | None
    done: asyncio.Future[int]
    at: float
    entries: tuple[LogEntry, ...] = ()

    def succeed(self, result: int) -> None:
        """The write has been carried out."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: CommitError) -> None:
        """The write was not carried out."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks it as retrieved: its caller may have gone


@dataclass(slots=True)
class CommitStats:
    """Counters since the start: writes committed, transactions, and repeats after an unknown outcome."""

    writes: int = 0
    transactions: int = 0
    resent: int = 0


@dataclass(slots=True)
class _Batch:
    id: bytes
    number: int
    pending: list[Submission] = field(default_factory=list)

    def entries(self) -> list[LogEntry]:
        return [entry for write in self.pending for entry in write.entries]

    def fences(self) -> dict[int, int]:
        return {write.slot: write.fence for write in self.pending}


class Committer:
    """Commits the session writes of one member; one instance per process, run by :meth:`run`.

    ``on_commit`` is called for every committed batch, with the number of writes and the seconds that it took.

    Writes of one session are carried out in the order in which they were submitted, each in a transaction of its own.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        member: str,
        boot: str,
        requests: RequestLog | None = None,
        on_commit: Callable[[int, float], None] = lambda _writes, _seconds: None,
    ) -> None:
        """``requests`` gets the keys of the records with outcomes that were committed."""
        self._client = client
        self._keys = keys
        self._boot = boot
        self._requests = requests if requests is not None else RequestLog(keys, member, boot)
        self._marker_key = keys.commit(member)
        self._marker_revision = 0
        self._batches = 0
        self._backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        self._one_by_one = 0
        self._queue: deque[Submission] = deque()
        self._sending: list[Submission] = []
        self._stuck_since: float | None = None
        self._moved = asyncio.Event()
        self._wake = asyncio.Event()
        self.stats = CommitStats()
        self._on_commit = on_commit

    @property
    def queued(self) -> int:
        """How many writes wait for a transaction."""
        return len(self._queue)

    def pressure(self, now: float) -> Backpressure:
        """How late commits are at ``now`` (monotonic)."""
        oldest = self._sending[0] if self._sending else self._queue[0] if self._queue else None
        return Backpressure(len(self._queue) + len(self._sending), max(now - oldest.at, 0.0) if oldest else 0.0)

    def submit(
        self,
        slot: int,
        fence: int,
        key: str,
        value: bytes | None,
        entries: tuple[LogEntry, ...] = (),
    ) -> Submission:
        """Queue a put of ``value`` at the full etcd key ``key`` (or its removal, for None).

        Args:
            slot: the slot of the session.
            fence: ``mod_revision`` of the slot's owner record under which the write was decided.
            key: full etcd key; "" to write ``entries`` alone.
            value: encoded session, or None to remove a dead one.
            entries: the outcomes of requests, for the request log: one, or those of all the writes that this one saves.
                They go into one transaction, so the caller bounds them (:data:`ENTRIES_MOST`).

        Returns:
            The submission; its ``done`` future gets the revision, or :class:`NotOwner`, or :class:`NotCommitted`.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        write = Submission(slot, fence, key, value, done, time.monotonic(), entries)
        self._queue.append(write)
        self._wake.set()
        return write

    async def flowing(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until etcd takes commits without much delay; whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.stalled(time.monotonic()):
                    await self._moved.wait()
        return not self.stalled(time.monotonic())

    def stalled(self, now: float) -> bool:
        """Whether no commit has succeeded for so long at ``now`` (monotonic) that etcd may be away."""
        return self._stuck_since is not None and now - self._stuck_since > STALLED_AFTER

    async def run(self) -> None:
        """Commit what is queued until cancelled."""
        await self._read_marker()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._commit_next()
                self._sending = []
                self._moved.set()
                self._moved = asyncio.Event()

    async def _read_marker(self) -> None:
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                kv = await self._client.get(self._marker_key)
            except (Unavailable, OutcomeUnknown):
                await self._client.pause(backoff.next())
            else:
                self._marker_revision = kv.mod_revision if kv else 0
                return

    def _next_batch(self) -> _Batch:
        self._batches += 1
        batch = _Batch(f"{self._boot}:{self._batches}".encode(), self._batches)
        fences: dict[int, int] = {}
        names: set[str] = set()
        most, size = (1 if self._one_by_one else BATCH_MOST), 0
        self._one_by_one = max(self._one_by_one - 1, 0)
        while self._queue and len(batch.pending) < most:
            write = self._queue[0]
            size += len(write.value or b"") + len(write.entries) * ENTRY_BYTES
            if batch.pending and (size > BATCH_BYTES or write.key in names):
                break  # etcd refuses a transaction that writes a key twice
            if fences.setdefault(write.slot, write.fence) != write.fence:
                break  # the slot was lost and won again in between: the two fences cannot share a transaction
            if write.key:
                names.add(write.key)
            batch.pending.append(self._queue.popleft())
        self._sending = batch.pending
        return batch

    async def _commit_next(self) -> None:
        batch = self._next_batch()
        began = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = began
        try:
            result = await self._send_until_known(batch)
        except Rejected as error:
            self._stuck_since = None
            self._rejected(batch, error)
            return
        except Unavailable as error:
            logger.info("etcd did not take a batch of %d writes: %s", len(batch.pending), error)
            await self._client.pause(self._backoff.next())
            self._put_back(batch.pending)
            return
        self._stuck_since = None
        self._backoff.reset()
        marker = result.answers[-1][0] if not result.succeeded and result.answers[-1] else None
        if result.succeeded:
            self._marker_revision = result.revision
            self._succeed(batch, result.revision, time.monotonic() - began)
        elif marker is not None and marker.value == batch.id:
            self._marker_revision = marker.mod_revision
            self._succeed(batch, marker.mod_revision, time.monotonic() - began)
        else:
            self._marker_revision = marker.mod_revision if marker else 0
            self._sort_out(batch, result)

    def _rejected(self, batch: _Batch, error: Rejected) -> None:
        """Etcd will never accept this transaction: find the write that it refuses, so that the others are committed."""
        if len(batch.pending) > 1:
            self._one_by_one = len(batch.pending)
            self._put_back(batch.pending)
            return
        write = batch.pending[0]
        logger.warning("etcd refuses a write in slot %d: %s", write.slot, error)
        write.fail(NotCommitted(write.slot, f"etcd refuses it: {error.detail}"))

    def _succeed(self, batch: _Batch, revision: int, seconds: float) -> None:
        self.stats.writes += len(batch.pending)
        if any(write.entries for write in batch.pending):
            self._requests.committed(self._requests.record_key(batch.number), time.monotonic())
        self._on_commit(len(batch.pending), seconds)
        # In the loop's next turn, so that the following transaction is sent before a hundred callers continue.
        asyncio.get_running_loop().call_soon(_resolve, batch.pending, revision)

    def _sort_out(self, batch: _Batch, result: TxnResult) -> None:
        """Fail the writes whose slot is lost, and put the others back at the front of the queue."""
        lost: dict[int, Kv | None] = {}
        for (slot, fence), answer in zip(batch.fences().items(), result.answers[:-1], strict=True):
            if not answer or answer[0].mod_revision != fence:
                lost[slot] = answer[0] if answer else None
        for write in batch.pending:
            if write.slot in lost:
                write.fail(NotOwner(write.slot, lost[write.slot]))
        self._put_back([write for write in batch.pending if write.slot not in lost])

    def _put_back(self, writes: list[Submission]) -> None:
        self._queue.extendleft(reversed(writes))

    async def _send_until_known(self, batch: _Batch) -> TxnResult:
        """The transaction's known outcome. Raises ``Unavailable`` only if no try can have been applied."""
        compares = [ModRevision(self._keys.owner(slot), fence) for slot, fence in batch.fences().items()]
        compares.append(ModRevision(self._marker_key, self._marker_revision))
        success: list[Put | Delete] = [
            Delete(write.key) if write.value is None else Put(write.key, write.value)
            for write in batch.pending
            if write.key
        ]
        if entries := batch.entries():
            success.append(Put(self._requests.record_key(batch.number), encode_entries(entries)))
        success.append(Put(self._marker_key, batch.id))
        failure = [Get(self._keys.owner(slot)) for slot in batch.fences()]
        failure.append(Get(self._marker_key))
        self.stats.transactions += 1
        crash_point(CrashPoint.WRITE_DECIDED)
        result, resent = await retry_txn(self._client, compares, success, failure)
        crash_point(CrashPoint.WRITE_COMMITTED)
        self.stats.resent += resent
        return result


def _owner_in(value: bytes) -> str:
    try:
        owner = Owner.decode(value)
    except ValueError:
        return "somebody unreadable"
    return f"{owner.active} at epoch {owner.epoch}"


def _resolve(writes: list[Submission], revision: int) -> None:
    for write in writes:
        write.succeed(revision)
