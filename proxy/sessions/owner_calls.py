"""Session calls at the owner of their slot: reads from memory, writes by group commit.

Writes to one session run one after the other. Each is decided on the committed state, and the next begins only when
the outcome of the one before is known, even if its client has gone. So nothing is decided on a guess, and for a
handover the slot counts as busy until every write in it is resolved.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.http.problems import RESP_TYPE, Reply, problem
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.sessions.call import Call, write_of
from understudy.proxy.sessions.session_locks import SessionLocks
from understudy.proxy.sessions.write_limits import RETRY_AFTER, WriteLimits
from understudy.statesync.etcd.client import EtcdClient, EtcdError, Get, Kv, ModRevision
from understudy.statesync.http.headers import CONSISTENCY_HEADER, DURABILITY_HEADER
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.sessions.command_batch import NEVER, CommandBatch, decide_commands, reply_to_keep, value_of
from understudy.statesync.sessions.commit import Committer, CommitUnknown, NotCommitted, NotOwner, Submission
from understudy.statesync.sessions.request_log import LogEntry, Window, request_hash
from understudy.statesync.sessions.session import (
    Method,
    NoEffect,
    Outcome,
    Repeated,
    Session,
    Stored,
    Write,
    WriteContext,
    WriteRefused,
    decide_write,
    etag_of,
    matches_none,
)
from understudy.statesync.sessions.session_crypto import UnreadableSession

ASYNC_TIMEOUT = 1.0
RESP_HEADERS = {"Content-Type": RESP_TYPE}
ETCD_TIMEOUT = 1.5
"""Seconds for which a read waits for etcd past the read deadline; also what a call to etcd may take."""

EXPIRES_IN = "Understudy-Expires-In"
"""The header of an answer with the seconds after which the session expires, unless it is renewed or written."""
RENEWAL_SHARE = 0.1
"""The part of a session's lifetime that may be added without a commit."""
COMMANDS = Write(Method.COMMANDS)
"""A write of commands without a stamp; what it does is in the call's batch."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """A write that was decided and waits for its commit."""

    submission: Submission
    outcome: Stored
    owned: OwnedSlot


class OwnerCalls:
    """Answers calls in owned slots: None when a slot turned out not to be ours after all."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        etcd: EtcdClient,
        owned: OwnedSlots,
        committer: Committer,
        reads: ReadDeadline,
        clock: PoolClock,
        loop_lag: LoopLag,
        updates: PoolUpdates,
        recorder: Recorder,
    ) -> None:
        self._me = pool.identity.me
        self._keys = pool.identity.keys
        self._copies = copies
        self._replica = copies.replica
        self._etcd = etcd
        self._owned = owned
        self._committer = committer
        self._reads = reads
        self._clock = clock
        self._loop_lag = loop_lag
        self._updates = updates
        self._recorder = recorder
        self._locks = SessionLocks()
        self._limits = WriteLimits(committer, self._locks, copies, owned, recorder.counters)
        self._unanswered: dict[tuple[int, str], asyncio.Future[int]] = {}
        self.async_lost = 0

    def at_hand(self, call: Call, slot: int) -> bool:
        """Whether :meth:`read` would answer a ``GET`` from memory now, without waiting for anything."""
        return (
            (slot, call.key) not in self._unanswered
            and self._replica.is_synced(slot)
            and call.headers.get(CONSISTENCY_HEADER) != "linearizable"
            and self._reads.holds()
        )

    async def read(self, call: Call, owned: OwnedSlot) -> Reply | None:
        """Answer a ``GET`` or commands that only read; the caller has entered the slot and this leaves it."""
        try:
            return await self._read(call, owned)
        finally:
            owned.leave()

    async def _read(self, call: Call, owned: OwnedSlot) -> Reply | None:
        pending = self._unanswered.get((owned.slot, call.key))
        if pending is not None:
            await asyncio.wait((pending,), timeout=ASYNC_TIMEOUT)
        linearizable = call.headers.get(CONSISTENCY_HEADER) == "linearizable"
        sure = linearizable or self._reads.holds() or await self._reads.renewed(ETCD_TIMEOUT)
        if not sure and self._holds(owned):
            detail = "etcd is needed to answer this read and does not answer"
            return problem(503, "no-owner", detail, retry_after=RETRY_AFTER)
        if not self._holds(owned):
            return None
        session = self._replica.session(owned.slot, call.key)
        if linearizable:
            try:
                seen = await self._read_etcd(call.key, owned)
            except EtcdError as error:
                detail = f"etcd is needed to answer this read and cannot be reached: {error}"
                return problem(503, "no-owner", detail, retry_after=RETRY_AFTER)
            except UnreadableSession as error:
                return self._placed(problem(503, "session-unreadable", str(error), retry_after=RETRY_AFTER), owned)
            if not seen:
                return None
            session = seen[0]
        return self._found(call, session, owned)

    def _found(self, call: Call, session: Session | None, owned: OwnedSlot) -> Reply:
        """The answer to a read that has found ``session``."""
        if call.batch is not None:
            return self._unreadable(call, owned) or self._read_commands(call.batch, session)
        if session is None or not session.alive(self._clock.expiry_ms()):
            absent = self._unreadable(call, owned) or problem(404, "no-such-session", "there is no session of this key")
            return self._placed(absent, owned)
        if_none_match = call.headers.get("if-none-match")
        left = {EXPIRES_IN: str(self._seconds_left(session))} if session.expires < NEVER else {}
        if if_none_match is not None and matches_none(if_none_match, session):
            return self._placed(Reply(304, {"ETag": session.etag, **left}), owned)
        headers = {"ETag": session.etag, "Content-Type": session.content_type, **left}
        return self._placed(Reply(200, headers, session.body), owned)

    def _seconds_left(self, session: Session) -> int:
        return max(session.expires - self._clock.now_ms(), 0) // 1000

    def _read_commands(self, batch: CommandBatch, session: Session | None) -> Reply:
        value = value_of(session, self._clock.expiry_ms())
        return Reply(200, RESP_HEADERS, batch.answer(value, self._clock.now_ms())[0])

    def get_now(self, call: Call, slot: int) -> Reply | None:
        """The answer to a ``GET``, if memory can give it at once."""
        owned = self._owned.get(slot)
        if owned is None or not (owned.open.is_set() or owned.readable) or not self.at_hand(call, slot):
            return None
        return self._found(call, self._replica.session(slot, call.key), owned)

    def read_now(self, batch: CommandBatch, key: str, owned: OwnedSlot) -> bytes | None:
        """The answer to commands that only read, if memory can give it at once: then nothing has to be waited for."""
        slot = owned.slot
        if (
            (owned.open.is_set() or owned.readable)
            and (slot, key) not in self._unanswered
            and self._replica.is_synced(slot)
            and self._reads.holds()
            and not self._replica.unreadable(slot, key)
        ):
            value = value_of(self._replica.session(slot, key), self._clock.expiry_ms())
            return batch.answer(value, self._clock.now_ms())[0]
        return None

    async def _read_etcd(self, key: str, owned: OwnedSlot) -> tuple[Session | None, ...]:
        """The session as etcd has it, in a tuple of one, while we own its slot; an empty tuple if we do not.

        It is taken into memory as well: a later reader must not see an older session than an earlier one.
        """
        keys = self._keys
        owner_key = keys.owner(owned.slot)
        result = await self._etcd.txn(
            [ModRevision(owner_key, owned.fence)], [Get(keys.session(owned.slot, key))], [Get(owner_key)]
        )
        if not result.succeeded:
            self._learn(owned.slot, result.answers[0][0] if result.answers[0] else None)
            return ()
        found = result.answers[0]
        replica = self._replica
        if not found:
            replica.committed(owned.slot, key, None, result.revision)
            return (None,)
        session = replica.codec.decode(found[0].key, found[0].value, found[0].mod_revision)
        replica.committed(owned.slot, key, session, session.revision)
        return (session,)

    async def write(self, call: Call, owned: OwnedSlot, spec: PoolSpec, give_up: float) -> Reply | None:
        """Answer a write by ``give_up`` (monotonic); the caller has entered the slot, and this leaves it."""
        write = write_of(call)
        if not isinstance(write, Reply):
            write = self._limits.overload(spec, new=False) or write
        if isinstance(write, Reply):
            owned.leave()
            return write
        try:
            if self._locks.locked(owned.slot, call.key):
                async with asyncio.timeout(max(give_up - time.monotonic(), 0.0)):
                    await self._locks.acquire(owned.slot, call.key)
            else:
                await self._locks.acquire(owned.slot, call.key)
        except TimeoutError:
            owned.leave()
            detail = "an earlier write to this session is not resolved yet; this one was not carried out"
            return problem(503, "not-committed", detail, retry_after=RETRY_AFTER)
        except asyncio.CancelledError:
            owned.leave()
            raise
        release = partial(self._release, owned, call.key)
        if not self._holds(owned):
            release()
            return None  # the slot was lost, or the watch had a gap, while this call waited
        unreadable = self._unreadable(call, owned)
        if unreadable is not None:
            release()
            return self._placed(unreadable, owned)
        expired = self._expired(call, write, spec)
        if expired is not None:
            release()
            return self._placed(expired, owned)
        outcome = self._decide(call, write, owned, spec)
        if isinstance(outcome, Stored) or (
            isinstance(outcome, WriteRefused) and outcome.lasting and write.request is not None
        ):
            return await self._carry_out(call, write, outcome, owned, spec, release, give_up)
        try:
            return await self._without_effect(outcome, owned, spec)
        finally:
            release()

    def write_now(self, call: Call, owned: OwnedSlot, spec: PoolSpec) -> Begun | bytes | None:
        """Begin a write of commands that has to wait for nothing but its commit; None, with nothing done, for others.

        One that waits for nothing at all is answered.

        Most writes are like that. They need no task of their own: ``submission.done`` tells when to answer ``reply``.
        """
        slot, key = owned.slot, call.key
        if (
            not owned.open.is_set()
            or self._locks.locked(slot, key)
            or not self._replica.is_synced(slot)
            or self._replica.unreadable(slot, key)
            or self._loop_lag.standstill()
            or self.lags(spec)
        ):
            return None
        outcome = self._decide(call, COMMANDS, owned, spec)
        if not isinstance(outcome, Stored):
            return None
        if self._renewed(call, outcome, owned):
            return outcome.reply
        self._locks.take(slot, key)
        owned.enter()
        submission = self._submit(key, outcome.session, owned, partial(self._release, owned, key))
        return Begun(submission, outcome, owned)

    def lags(self, spec: PoolSpec) -> bool:
        """Whether commits lag behind, so that a new session would be refused."""
        return self._limits.lags(spec)

    def _renewed(self, call: Call, outcome: Stored, owned: OwnedSlot) -> bool:
        """Whether a write only gives the session more time, so little that memory will do; then it is done.

        Stores renew their session with every request. A commit for each would cost more than all else. What is not
        committed is lost with this process: less than :data:`RENEWAL_SHARE` of the session's lifetime. Commands that
        write a value are always committed, even the same value: only that proves that nobody else owns the slot.
        """
        if call.batch is None or not call.batch.renews:
            return False
        slot, key, after = owned.slot, call.key, outcome.session
        before = self._replica.session(slot, key)
        if before is None or before.body != after.body or before.content_type != after.content_type or after.deleted:
            return False
        gained = after.expires - self._replica.stored_expiry(slot, key)
        lifetime = after.expires - self._clock.now_ms()
        if after.expires >= NEVER or not 0 <= gained < lifetime * RENEWAL_SHARE or not self._reads.holds():
            return False
        self._replica.touch(slot, key, after.expires)
        return True

    async def settle(self, begun: Begun) -> Reply | None:
        """The answer to a write that was begun and has failed, or takes too long; None to try it again."""
        return await self._resolve(begun.submission, begun.outcome, begun.owned, time.monotonic())

    def _expired(self, call: Call, write: Write, spec: PoolSpec) -> Reply | None:
        """The answer to a write that may be a copy of a request whose outcome is forgotten by now.

        A call without a stamp counts as old as the time for which it may have waited in its socket.
        """
        if write.began is not None:
            age = self._clock.now_ms() / 1000 - write.began
        else:
            age = 0.0 if call.hop else self._loop_lag.standstill()
        fault = Window.of(spec.timeouts.request_seconds).fault(age)
        if not fault:
            return None
        self._recorder.counters.expired += 1
        return problem(409, "request-expired", f"{fault}; nothing was done")

    async def _carry_out(
        self,
        call: Call,
        write: Write,
        outcome: Stored | WriteRefused,
        owned: OwnedSlot,
        spec: PoolSpec,
        release: "partial[None]",
        give_up: float,
    ) -> Reply | None:
        """Commit what was decided, and answer; whatever comes of it calls ``release``."""
        if isinstance(outcome, Stored) and self._renewed(call, outcome, owned):
            release()
            return Reply(200, RESP_HEADERS, outcome.reply)
        overloaded = self._limits.overload(spec, new=True) if outcome.status == 201 else None
        overloaded = overloaded or self._limits.too_many_requests(write, spec)
        if overloaded is not None:
            release()
            return overloaded
        entry = _entry_of(call, write, outcome)
        if isinstance(outcome, WriteRefused):
            submission = self._committer.submit(owned.slot, owned.fence, "", None, entry)
            submission.done.add_done_callback(lambda _: release())
            return await self._resolve(submission, outcome, owned, give_up)
        submission = self._submit(call.key, outcome.session, owned, release, entry)
        if call.headers.get(DURABILITY_HEADER, spec.durability) == "async":
            self._follow(owned.slot, call.key, submission)
            if outcome.reply:
                return Reply(200, RESP_HEADERS, outcome.reply)
            return self._placed(Reply(outcome.status, {"Understudy-Durability": "async"}), owned)
        return await self._resolve(submission, outcome, owned, give_up)

    async def _without_effect(
        self, outcome: Repeated | NoEffect | WriteRefused, owned: OwnedSlot, spec: PoolSpec
    ) -> Reply | None:
        """A refusal or a repeated answer is made from memory, like a read, so it needs the same proof of ownership.

        With ``takeover: lease`` the proof is the read deadline. With ``fast``, where the deadline allows old reads, it
        is a read of etcd that is sent from now on. While the owner record is ours nobody else has written, so memory
        is complete.
        """
        if spec.takeover == "lease" and self._reads.holds():
            sure = True
        else:
            sure = await self._reads.confirmed(time.monotonic(), ETCD_TIMEOUT)
        if not sure and self._holds(owned):
            detail = "etcd is needed to answer this write and does not answer"
            return problem(503, "not-committed", detail, retry_after=RETRY_AFTER)
        return self._placed(self._unchanged(outcome), owned) if self._holds(owned) else None

    def _holds(self, owned: OwnedSlot) -> bool:
        """Whether the slot is still ours and in memory after a call has waited for something."""
        return self._owned.get(owned.slot) is owned and self._replica.is_synced(owned.slot)

    def _follow(self, slot: int, key: str, submission: Submission) -> None:
        """An ``async`` write is answered before it is committed: reads wait for it, and its loss is counted."""
        self._unanswered[slot, key] = submission.done

        def settled(done: "asyncio.Future[int]") -> None:
            self._unanswered.pop((slot, key), None)
            if done.cancelled() or done.exception() is not None:
                self.async_lost += 1
                error = done.exception() if not done.cancelled() else None
                if isinstance(error, NotOwner):
                    self._recorder.audit.refused(error.found, lost=True)
                logger.warning("an async write in slot %d was lost: %s", slot, done.exception())

        submission.done.add_done_callback(settled)

    def _decide(self, call: Call, write: Write, owned: OwnedSlot, spec: PoolSpec) -> Outcome:
        current = self._replica.session(owned.slot, call.key)
        limit = spec.limits.session_bytes
        terms = WriteContext(owned.owner.epoch, self._clock.now_ms(), limit, spec.session_ttl, self._clock.expiry_ms())
        settled = None
        if write.request is not None:
            settled = self._copies.requests.find(request_hash(call.key, write.request), write.fingerprint)
        if call.batch is not None:
            outcome = decide_commands(current, call.batch, write, terms, settled)
        else:
            outcome = decide_write(current, write, terms, settled)
        if isinstance(outcome, Stored) and outcome.status == 201 and current is None and self._limits.full(spec):
            share = f"{spec.limits.sessions} sessions for {spec.slots} slots"
            return WriteRefused(
                507, "too-many-sessions", f"this member's share of the pool's limit ({share}) is used up"
            )
        return outcome

    def _unreadable(self, call: Call, owned: OwnedSlot) -> Reply | None:
        """The answer for a session that exists and cannot be read here: it must not count as absent."""
        why = self._replica.unreadable(owned.slot, call.key)
        return problem(503, "session-unreadable", why, retry_after=RETRY_AFTER) if why else None

    def _submit(
        self,
        key: str,
        session: Session | None,
        owned: OwnedSlot,
        release: "partial[None]",
        entry: LogEntry | None = None,
    ) -> Submission:
        name = self._keys.session(owned.slot, key)
        value = self._replica.codec.encode(name, session) if session is not None else None
        submission = self._committer.submit(owned.slot, owned.fence, name, value, entry)

        def settled(done: "asyncio.Future[int]") -> None:
            if not done.cancelled() and done.exception() is None:
                revision = done.result()
                kept = session.at(revision) if session is not None else None
                self._replica.committed(owned.slot, key, kept, revision)
            release()

        submission.done.add_done_callback(settled)
        return submission

    async def _resolve(
        self, submission: Submission, outcome: Stored | WriteRefused, owned: OwnedSlot, give_up: float
    ) -> Reply | None:
        try:
            revision = await self._committer.outcome(submission, max(give_up - time.monotonic(), 0.0))
        except NotOwner as error:
            self._recorder.audit.refused(error.found, lost=False)
            self._learn(owned.slot, error.found)
            return None
        except NotCommitted as error:
            return problem(503, "not-committed", error.detail, retry_after=RETRY_AFTER)
        except CommitUnknown as error:
            detail = f"{error.detail}; read the session, or repeat the request with its Idempotency-Key"
            return problem(503, "outcome-unknown", detail, retry_after=RETRY_AFTER)
        if isinstance(outcome, WriteRefused):
            return self._placed(self._unchanged(outcome), owned)
        if outcome.reply:
            return Reply(200, RESP_HEADERS, outcome.reply)
        headers = {"ETag": etag_of(revision), "Understudy-Durability": "sync"}
        return self._placed(Reply(outcome.status, headers), owned)

    async def remove_dead(self, key: str, owned: OwnedSlot) -> bool:
        """Remove an expired session or tombstone from etcd; the caller has entered the slot, and this leaves it."""
        current = self._replica.session(owned.slot, key)
        if self._locks.locked(owned.slot, key) or current is None or self._clock.expiry_ms() < current.expires:
            owned.leave()
            return False
        await self._locks.acquire(owned.slot, key)
        submission = self._submit(key, None, owned, partial(self._release, owned, key))
        await asyncio.wait((submission.done,))
        return submission.done.exception() is None

    def _release(self, owned: OwnedSlot, key: str) -> None:
        self._locks.release(owned.slot, key)
        owned.leave()

    @staticmethod
    def _unchanged(outcome: Repeated | NoEffect | WriteRefused) -> Reply:
        if isinstance(outcome, WriteRefused):
            if outcome.status == 204:
                return Reply(204)  # the application itself refuses the request
            return problem(outcome.status, outcome.problem, outcome.detail)
        if outcome.reply:
            return Reply(200, RESP_HEADERS, outcome.reply)
        if isinstance(outcome, NoEffect):
            raise TypeError("commands without an answer")
        headers = {"ETag": etag_of(outcome.revision), "Understudy-Durability": "sync", "Understudy-Repeated": "true"}
        return Reply(outcome.status, headers)

    def stale(self, call: Call, slot: int) -> Reply | None:
        """This member's copy of the session with its age, also in slots of others; None if it holds no copy."""
        if not self._replica.is_synced(slot) or self._replica.unreadable(slot, call.key):
            return None
        lag_ms = self._copies.informer.silent_for * 1000
        headers = {
            "Understudy-Slot": str(slot),
            "Understudy-Served-By": self._me,
            "Understudy-Lag-Ms": f"{lag_ms:.0f}",
        }
        session = self._replica.session(slot, call.key)
        if session is None or not session.alive(self._clock.expiry_ms()):
            reply = problem(404, "no-such-session", "this copy has no session of this key")
            return Reply(404, {**reply.headers, **headers}, reply.body)
        return Reply(200, {**headers, "ETag": session.etag, "Content-Type": session.content_type}, session.body)

    def _learn(self, slot: int, found: Kv | None) -> None:
        """Take in the owner record that etcd showed while it refused something."""
        if found is not None:
            self._updates.refused_by(slot, found)

    def _placed(self, reply: Reply, owned: OwnedSlot) -> Reply:
        """The reply with the headers that say who answered for which slot, at which epoch."""
        place = {
            "Understudy-Slot": str(owned.slot),
            "Understudy-Epoch": str(owned.owner.epoch),
            "Understudy-Served-By": self._me,
        }
        return Reply(reply.status, {**reply.headers, **place}, reply.body)


def _entry_of(call: Call, write: Write, outcome: Stored | WriteRefused) -> LogEntry | None:
    """What the request log keeps of a write; None if nothing tells the write from others."""
    if write.request is None:
        return None
    request = request_hash(call.key, write.request)
    if isinstance(outcome, WriteRefused):
        return LogEntry(request, write.fingerprint, outcome.status, outcome.problem)
    return LogEntry(request, write.fingerprint, outcome.status, reply=reply_to_keep(outcome.reply))
