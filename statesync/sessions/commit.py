"""Group commit: writes a member's sessions to etcd.

Writes that arrive while a transaction is under way go into the next one together, at most :data:`BATCH_MOST` of them.
Each transaction compares the ``mod_revision`` of the owner record of every slot that it writes to, so it succeeds only
while this process owns all of them. It also compares and rewrites the member's *commit marker* (``commits/<member>``),
for two purposes:

* A transaction whose outcome is unknown is sent again unchanged until the outcome is known. If the first one was
  applied, the marker has changed and holds this batch's id, which proves it. So a batch is applied once or not at all,
  and no answer is a guess.
* The marker's revision shows a member that takes slots over where this member's writes end (see ``ownership``).

When the compare of an owner record fails, only the writes to that slot fail; the others go into the next batch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
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
from understudy.statesync.sessions.shared_timer import SharedTimer
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


class CommitError(Exception):
    """A write that was not acknowledged; ``applied`` is False if it had no effect, None if that is unknown."""

    applied: bool | None = False

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
    """etcd could not be reached in time; the write had no effect."""


class CommitUnknown(CommitError):
    """The deadline passed before the outcome was known; the write may still take effect."""

    applied = None


class Submission(msgspec.Struct, eq=False):
    """One write on its way since ``at`` (monotonic); ``sent`` while a transaction that holds it is under way.

    Without a ``key`` it changes no session: only ``entries`` are written, the outcomes of requests. One that is
    ``firm`` is never withdrawn.
    """

    slot: int
    fence: int
    key: str
    value: bytes | None
    done: asyncio.Future[int]
    at: float
    entries: tuple[LogEntry, ...] = ()
    firm: bool = False
    sent: bool = False
    waiter: asyncio.Future[None] | None = None

    def succeed(self, result: int) -> None:
        """The write has been carried out."""
        if not self.done.done():
            self.done.set_result(result)
            self._wake()

    def fail(self, error: CommitError) -> None:
        """The write was not carried out, or that is not known."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks it as retrieved: its caller may have gone
            self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


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
        self._batch: _Batch | None = None
        self._runner: asyncio.Task[None] | None = None
        self._verdict: list[TxnResult] = []
        self._timer = SharedTimer()
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
        *,
        firm: bool = False,
    ) -> "Submission":
        """Queue a put of ``value`` at the full etcd key ``key`` (or its removal, for None).

        Args:
            slot: the slot of the session.
            fence: ``mod_revision`` of the slot's owner record under which the write was decided.
            key: full etcd key; "" to write ``entries`` alone.
            value: encoded session, or None to remove a dead one.
            entries: the outcomes of requests, for the request log: one, or those of all the writes that this one saves.
                They go into one transaction, so the caller bounds them (:data:`ENTRIES_MOST`).
            firm: the write has taken effect already, in the memory of copies: :meth:`outcome` does not withdraw it.

        Returns:
            The submission; its ``done`` future gets the revision, or :class:`NotOwner`, or :class:`NotCommitted`.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        write = Submission(slot, fence, key, value, done, time.monotonic(), entries, firm)
        self._queue.append(write)
        self._wake.set()
        return write

    async def outcome(self, write: "Submission", timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the write's revision.

        Raises:
            NotOwner: the owner record has changed; no effect.
            NotCommitted: not taken in time and withdrawn; no effect.
            CommitUnknown: sent, or firm, and no definite answer yet; ``write.done`` still gets one later.
        """
        if not write.done.done():
            write.waiter = asyncio.get_running_loop().create_future()
            await self._timer.wait(write.waiter, timeout)
        if write.done.done():
            return write.done.result()
        if write.sent:
            raise CommitUnknown(write.slot, f"etcd gave no definite answer within {timeout:g} s")
        if write.firm:
            raise CommitUnknown(write.slot, f"etcd did not take the write within {timeout:g} s; it stays queued")
        self._queue.remove(write)
        error = NotCommitted(write.slot, f"etcd did not take the write within {timeout:g} s")
        write.fail(error)
        raise error

    def replaced(self, marker: Kv | None, lost: Mapping[int, Kv]) -> None:
        """Other members have claimed slots of ours and report it, while etcd does not answer: end the writes under way.

        Their claims have read our commit marker, and no write of ours to these slots can be applied after them. So the
        batch under way was applied if the marker holds its id, and never will be if it writes to one of these slots.

        Args:
            marker: our commit marker as a claim found it, None if there was none.
            lost: the new owner records, by slot.
        """
        for write in [write for write in self._queue if write.slot in lost]:
            self._queue.remove(write)
            write.fail(NotOwner(write.slot, lost[write.slot]))
        batch, runner = self._batch, self._runner
        if batch is None or runner is None or self._verdict:
            return
        fences = batch.fences()
        applied = marker is not None and marker.value == batch.id
        if not applied and not any(slot in lost and lost[slot].mod_revision > fence for slot, fence in fences.items()):
            return
        owners = tuple((lost.get(slot) or self._standing(slot, fence),) for slot, fence in fences.items())
        self._verdict.append(TxnResult(False, 0, (*owners, (marker,) if marker else ())))
        runner.cancel()  # only from its wait for etcd, and it goes on; a task of its own would cost turns of the loop

    def _standing(self, slot: int, fence: int) -> Kv:
        """An owner record of ours that, as far as is known, is still at revision ``fence``, without its content."""
        return Kv(self._keys.owner(slot), b"", fence, 0, 0)

    async def run(self) -> None:
        """Commit what is queued until cancelled."""
        await self._read_marker()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._commit_next()
                self._sending = []

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
            write.sent = True
            batch.pending.append(self._queue.popleft())
        self._sending = batch.pending
        return batch

    async def _commit_next(self) -> None:
        batch = self._next_batch()
        began = time.monotonic()
        try:
            result = await self._send_until_known(batch)
        except Rejected as error:
            self._rejected(batch, error)
            return
        except Unavailable as error:
            logger.info("etcd did not take a batch of %d writes: %s", len(batch.pending), error)
            self._put_back(batch.pending)
            self._sending = []
            await self._client.pause(self._backoff.next())
            return
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
        for write in reversed(writes):
            write.sent = False
            self._queue.appendleft(write)

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
        runner = asyncio.current_task()
        self._batch, self._runner, self._verdict = batch, runner, []
        try:
            result, resent = await retry_txn(self._client, compares, success, failure)
        except asyncio.CancelledError:
            if not self._verdict or runner is None or runner.uncancel():
                raise
            return self._verdict[0]
        finally:
            self._batch = self._runner = None
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
