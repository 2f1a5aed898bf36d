"""Writes to sessions at the owner of their slot.

Writes to one session run one after the other. Each is decided on the committed state, and the next begins only when
the outcome of the one before is known, even if its client has gone. So nothing is decided on a guess, and for a
handover the slot counts as busy until every write in it is resolved.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveWrite, NotYet, SlotLost
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_proof import ReadProof
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.call import Call, write_of, writing_app
from understudy.proxy.sessions.call_attempts import CallAttempts
from understudy.proxy.sessions.load_shedding import priority_of
from understudy.proxy.sessions.overwrite_log import OverwriteLog
from understudy.proxy.sessions.owner_replies import ETCD_TIMEOUT, RESP_HEADERS, placed, unreadable
from understudy.proxy.sessions.pool_quotas import PoolQuotas
from understudy.proxy.sessions.restored import RestoredSessions
from understudy.proxy.sessions.session_locks import SessionLocks
from understudy.proxy.sessions.write_limits import RETRY_AFTER, WriteLimits
from understudy.statesync.http.headers import DURABILITY_HEADER
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.sessions.command_batch import NEVER, decide_commands, reply_to_keep
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.overwrites import VALUE_HEADER, overwrites, version_after
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
    give_app,
    give_version,
)

RENEWAL_SHARE = 0.1
"""The part of a session's lifetime that may be added without a commit."""
OVERWRITE = "overwrite"
"""The problem of a write that is refused because its author did not know the value that it would replace."""
COMMANDS = Write(Method.COMMANDS)
"""A write of commands without a stamp; what it does is in the call's batch."""


class Begun(msgspec.Struct, frozen=True, eq=False):
    """A write that was decided and waits for its acknowledgement."""

    call: Call
    write: ActiveWrite
    outcome: Stored
    owned: OwnedSlot


Then = Callable[[Begun, bool], None]
"""What is called once when a begun write has ended: with True if it is acknowledged."""


class OwnerWrites:
    """Answers writes in owned slots: None when a slot turned out not to be ours after all."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        owned: OwnedSlots,
        committer: Committer,
        active: ActiveSlots,
        proof: ReadProof,
        clock: PoolClock,
        loop_lag: LoopLag,
        updates: PoolUpdates,
        recorder: Recorder,
        async_writes: AsyncWrites,
        overwritten: OverwriteLog,
    ) -> None:
        self._me, self._app = pool.identity.me, pool.identity.app_version
        self._copies = copies
        self._replica = copies.replica
        self._owned = owned
        self._committer = committer
        self._active = active
        self._proof = proof
        self._clock = clock
        self._loop_lag = loop_lag
        self._updates = updates
        self._recorder = recorder
        self._locks = SessionLocks()
        self._limits = WriteLimits(committer, self._locks, copies, active, recorder.counters)
        self._quotas = PoolQuotas(copies, owned, recorder.counters)
        self._async_writes = async_writes
        self._overwritten = overwritten
        self._restored = RestoredSessions(pool, clock)

    async def write(self, call: Call, owned: OwnedSlot, spec: PoolSpec, attempts: CallAttempts) -> Reply | None:
        """Answer a write in time; the caller has entered the slot, and this leaves it."""
        write = write_of(call)
        if not isinstance(write, Reply):
            write = self._overload(call, owned, spec, new=False) or write
        if isinstance(write, Reply):
            owned.leave()
            return write
        try:
            if self._locks.locked(owned.slot, call.key) or not self._active.has_room(owned.slot):
                async with asyncio.timeout(attempts.left):
                    await self._active.room(owned.slot)
                    await self._locks.acquire(owned.slot, call.key)
            else:
                await self._locks.acquire(owned.slot, call.key)
        except TimeoutError:
            owned.leave()
            detail = "earlier writes to this session or its slot are not resolved yet; this one was not carried out"
            return problem(503, "not-committed", detail, retry_after=RETRY_AFTER)
        except asyncio.CancelledError:
            owned.leave()
            raise
        release = partial(self._release, owned, call.key)
        if not self._holds(owned):
            release()
            return None  # the slot was lost while this call waited
        unread = unreadable(self._replica, call, owned)
        if unread is not None:
            release()
            return placed(unread, owned, self._me)
        expired = self._expired(call, write, spec)
        if expired is not None:
            release()
            return placed(expired, owned, self._me)
        outcome = self._decide(call, write, self._replica.session(owned.slot, call.key), owned, spec)
        if isinstance(outcome, Stored) or (
            isinstance(outcome, WriteRefused) and outcome.lasting and write.request is not None
        ):
            return await self._carry_out(call, write, outcome, owned, spec, release, attempts)
        try:
            return await self._without_effect(call, outcome, owned, spec, attempts)
        finally:
            release()

    def write_now(self, call: Call, owned: OwnedSlot, spec: PoolSpec, then: Then) -> Begun | bytes | None:
        """Begin a write of commands that waits for its acknowledgement alone; None, with nothing done, for others.

        One that waits for nothing at all is answered.

        Most writes are like that. They need no task of their own: ``then`` is called when they have ended, and the
        answer of one that is acknowledged is ``outcome.reply``.
        """
        slot, key, wants = owned.slot, call.key, spec.durability_of(call.key)
        current = self._replica.session_if_known(slot, key)
        if (
            current is False
            or wants == "async"
            or not owned.open.is_set()
            or self._locks.locked(slot, key)
            or not self._active.has_room(slot)
            or self._loop_lag.standstill()
        ):
            return None
        from_memory = self._from_memory(call, owned, spec)
        if self._limits.lags(spec, from_memory=from_memory, priority=spec.priority_of(key)) or (
            not from_memory and self._committer.stalled(time.monotonic())
        ):
            return None
        outcome = self._decide(call, COMMANDS, current, owned, spec)
        if type(outcome) is not Stored:
            return None
        if self._renewed(call, outcome, owned):
            return outcome.reply
        if not self._quotas.takes(spec):
            return None
        self._locks.take(slot, key)
        owned.enter()
        give_version(outcome.session, self._active.next_version(slot))
        write = self._active.submit(owned, key, outcome.session, None, wants)
        begun = Begun(call, write, outcome, owned)
        write.done.add_done_callback(partial(self._ended, begun, then))
        return begun

    def _ended(self, begun: Begun, then: Then, done: "asyncio.Future[int]") -> None:
        """A begun write has ended: one callback for all that follows, since each is a turn of the event loop."""
        key = begun.call.key
        self._release(begun.owned, key)
        acknowledged = not done.cancelled() and done.exception() is None
        if acknowledged and begun.outcome.overwrites:
            self._overwritten.note(key, refused=False)
        then(begun, acknowledged)

    def lags(self, spec: PoolSpec) -> bool:
        """Whether commits lag behind, so that a new session would be refused."""
        return self._limits.lags(spec)

    def _overload(self, call: Call, owned: OwnedSlot, spec: PoolSpec, *, new: bool) -> Reply | None:
        """The answer to a write that is not taken in because commits lag behind."""
        priority, from_memory = priority_of(call.headers, call.key, spec), self._from_memory(call, owned, spec)
        return self._limits.overload(spec, new=new, from_memory=from_memory, priority=priority)

    def _from_memory(self, call: Call, owned: OwnedSlot, spec: PoolSpec) -> bool:
        """Whether a write may be answered before etcd has it."""
        active = self._active.get(owned.slot)
        return active is not None and _wanted(call, spec) != "sync" and active.from_memory

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
        if after.expires >= NEVER or not 0 <= gained < lifetime * RENEWAL_SHARE or not self._proof.holds(slot):
            return False
        self._replica.touch(slot, key, after.expires)
        return True

    async def settle(self, begun: Begun) -> Reply | None:
        """The answer to a write that was begun and has failed, or takes too long; None to try it again."""
        now = time.monotonic()
        return await self._resolve(begun.write, begun.write.key, begun.outcome, begun.owned, CallAttempts(now, now))

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
        attempts: CallAttempts,
    ) -> Reply | None:
        """Carry out what was decided, and answer; whatever comes of it calls ``release``.

        While etcd may be away, a write that needs it waits and has no effect, so that its answer can say so.
        """
        if isinstance(outcome, Stored) and self._renewed(call, outcome, owned):
            release()
            return Reply(200, RESP_HEADERS, outcome.reply)
        from_memory = self._from_memory(call, owned, spec)
        refused = self._overload(call, owned, spec, new=True) if outcome.status == 201 else None
        refused = refused or self._limits.too_many_requests(write, spec) or self._quotas.too_fast(spec)
        wants = _wanted(call, spec)
        if refused is None and wants != "async" and not from_memory:
            refused = await self._until_etcd_answers(owned, release, attempts)
        if refused is not None:
            release()
            return refused
        if not self._holds(owned):
            release()
            return None
        if isinstance(outcome, WriteRefused):
            self._quotas.count(outcome.problem)
            submitted = self._active.submit(owned, "", None, _entry_of(call, write, outcome, owned.slot), wants)
            submitted.done.add_done_callback(lambda _: release())
            return await self._resolve(submitted, call.key, outcome, owned, attempts)
        give_version(outcome.session, self._active.next_version(owned.slot))
        entry = _entry_of(call, write, outcome, owned.slot)
        submitted = self._submit_stored(call.key, outcome, owned, release, wants, entry)
        if wants == "async":
            self._async_writes.follow(owned.slot, call.key, submitted.done)
            if outcome.reply:
                return Reply(200, RESP_HEADERS, outcome.reply)
            return placed(Reply(outcome.status, {"Understudy-Durability": "async"}), owned, self._me)
        return await self._resolve(submitted, call.key, outcome, owned, attempts)

    async def _until_etcd_answers(
        self, owned: OwnedSlot, release: "partial[None]", attempts: CallAttempts
    ) -> Reply | None:
        """The refusal of a write that etcd does not take in time; None when it does, or the slot is lost."""
        if not self._committer.stalled(time.monotonic()):
            return None
        patience = attempts.left
        try:
            flows = await self._committer.flowing(patience)
        except asyncio.CancelledError:
            release()
            raise
        if flows or not self._holds(owned):
            return None
        detail = f"etcd has not taken a write for {patience:.1f} s, and this one was not sent; nothing was done"
        return problem(503, "not-committed", detail, retry_after=RETRY_AFTER)

    async def _without_effect(
        self,
        call: Call,
        outcome: Repeated | NoEffect | WriteRefused,
        owned: OwnedSlot,
        spec: PoolSpec,
        attempts: CallAttempts,
    ) -> Reply | None:
        """A refusal or a repeated answer is made from memory, like a read, so it needs the same proof of ownership.

        With ``takeover: lease`` the proof is the read deadline. With ``fast``, where the deadline allows old reads, it
        is one that is asked for from now on. While the owner record is ours nobody else has written, so memory
        is complete.
        """
        if spec.takeover == "lease" and self._proof.holds(owned.slot):
            sure = True
        else:
            sure = await self._proof.confirmed(owned.slot, time.monotonic(), ETCD_TIMEOUT)
        if not sure and self._holds(owned):
            detail = "etcd is needed to answer this write and does not answer"
            return problem(503, "not-committed", detail, retry_after=RETRY_AFTER)
        if not self._holds(owned):
            return None
        if isinstance(outcome, WriteRefused):
            self._quotas.count(outcome.problem)
            if outcome.problem == OVERWRITE:
                self._overwritten.note(call.key, refused=True)
        version = outcome.version if isinstance(outcome, Repeated) else 0
        if _wanted(call, spec) == "sync" and not await self._active.until_saved(owned.slot, version, attempts.left):
            detail = "the write took effect, and etcd does not have it yet; repeat the request with its Idempotency-Key"
            return problem(503, "outcome-unknown", detail, retry_after=RETRY_AFTER)
        reply = _unchanged(outcome, self._active.durability_of(owned.slot, version))
        return self._without_write(reply, call.key, owned)

    def _without_write(self, reply: Reply, key: str, owned: OwnedSlot) -> Reply:
        """The answer to a write that was refused or is a repeat: the session may be as it was restored."""
        restored = self._restored.header(owned.slot, self._replica.session(owned.slot, key))
        return placed(Reply(reply.status, {**reply.headers, **restored}, reply.body), owned, self._me)

    def _holds(self, owned: OwnedSlot) -> bool:
        """Whether the slot is still ours and in memory after a call has waited for something."""
        return self._owned.get(owned.slot) is owned and self._replica.is_synced(owned.slot)

    def _decide(self, call: Call, write: Write, current: Session | None, owned: OwnedSlot, spec: PoolSpec) -> Outcome:
        now_ms, ended_ms = self._clock.now_and_expiry_ms()
        terms = WriteContext(owned.owner.epoch, now_ms, spec.limits.session_bytes, spec.session_ttl, ended_ms)
        settled = None
        if write.request is not None:
            request = request_hash(call.key, write.request)
            settled = self._copies.requests.find(owned.slot, request, write.fingerprint)
        if call.batch is not None:
            outcome = decide_commands(current, call.batch, write, terms, settled)
        else:
            outcome = decide_write(current, write, terms, settled)
        if type(outcome) is Stored and (app := writing_app(call, self._app, current, ended_ms)):
            give_app(outcome.session, app)
        refused = self._quotas.refusal(current, outcome, spec) if isinstance(outcome, Stored) else None
        if refused is not None:
            return refused
        if call.seen is not None and isinstance(outcome, Stored) and overwrites(current, call.seen, terms.ended_ms):
            return _overwriting(outcome, spec)
        return outcome

    def _submit_stored(
        self,
        key: str,
        outcome: Stored,
        owned: OwnedSlot,
        release: "partial[None]",
        wants: str,
        entry: LogEntry | None = None,
    ) -> ActiveWrite:
        write = self._submit(key, outcome.session, owned, release, wants, entry)
        if outcome.overwrites:

            def note(done: "asyncio.Future[int]") -> None:
                if not done.cancelled() and done.exception() is None:
                    self._overwritten.note(key, refused=False)

            write.done.add_done_callback(note)
        return write

    def _submit(
        self,
        key: str,
        session: Session | None,
        owned: OwnedSlot,
        release: "partial[None]",
        wants: str,
        entry: LogEntry | None = None,
    ) -> ActiveWrite:
        write = self._active.submit(owned, key, session, entry, wants)
        write.done.add_done_callback(lambda _: release())
        return write

    async def _resolve(
        self, write: ActiveWrite, key: str, outcome: Stored | WriteRefused, owned: OwnedSlot, attempts: CallAttempts
    ) -> Reply | None:
        try:
            await self._active.outcome(write, attempts.left)
        except SlotLost as error:
            if error.identified:
                attempts.doubts.append(error.detail)
                return None  # the next active knows what became of the request
            detail = f"{error.detail}; read the session, or repeat the request with its Idempotency-Key"
            return problem(503, "outcome-unknown", detail, retry_after=RETRY_AFTER)
        except NotYet as error:
            detail = f"{error.detail}; read the session, or repeat the request with its Idempotency-Key"
            return problem(503, "outcome-unknown", detail, retry_after=RETRY_AFTER)
        if isinstance(outcome, WriteRefused):
            return self._without_write(_unchanged(outcome, "sync"), key, owned)
        if outcome.reply:
            version = str(version_after(outcome.session))
            return Reply(200, {**RESP_HEADERS, VALUE_HEADER: version}, outcome.reply)
        headers = {"ETag": outcome.session.etag, "Understudy-Durability": write.got}
        return placed(Reply(outcome.status, headers), owned, self._me)

    async def remove_dead(self, key: str, owned: OwnedSlot) -> bool:
        """Remove an expired session or tombstone from etcd; the caller has entered the slot, and this leaves it."""
        current = self._replica.session(owned.slot, key)
        if self._locks.locked(owned.slot, key) or current is None or self._clock.expiry_ms() < current.expires:
            owned.leave()
            return False
        await self._locks.acquire(owned.slot, key)
        write = self._submit(key, None, owned, partial(self._release, owned, key), "sync")
        await asyncio.wait((write.done,))
        return write.done.exception() is None

    def _release(self, owned: OwnedSlot, key: str) -> None:
        self._locks.release(owned.slot, key)
        owned.leave()


def _wanted(call: Call, spec: PoolSpec) -> str:
    """The class of durability that a write asks for."""
    return call.headers.get(DURABILITY_HEADER) or spec.durability_of(call.key)


def _overwriting(outcome: Stored, spec: PoolSpec) -> Outcome:
    """What becomes of a write that replaces a value which its author did not know (``concurrency``)."""
    if spec.concurrency == "ignore":
        return outcome
    if spec.concurrency == "refuse":
        detail = "another client has changed the value since this connection read it; read it again"
        return WriteRefused(409, OVERWRITE, detail, lasting=False)
    return replace(outcome, overwrites=True)


def _entry_of(call: Call, write: Write, outcome: Stored | WriteRefused, slot: int) -> LogEntry | None:
    """What the request log keeps of a write; None if nothing tells the write from others."""
    if write.request is None:
        return None
    request = request_hash(call.key, write.request)
    if isinstance(outcome, WriteRefused):
        return LogEntry(request, write.fingerprint, outcome.status, outcome.problem, slot=slot)
    reply = reply_to_keep(outcome.reply)
    return LogEntry(request, write.fingerprint, outcome.status, "", reply, outcome.session.version, slot)


def _unchanged(outcome: Repeated | NoEffect | WriteRefused, durability: str) -> Reply:
    if isinstance(outcome, WriteRefused):
        if outcome.status == 204:
            return Reply(204)  # the application itself refuses the request
        return problem(outcome.status, outcome.problem, outcome.detail)
    if outcome.reply:
        return Reply(200, RESP_HEADERS, outcome.reply)
    if isinstance(outcome, NoEffect):
        raise TypeError("commands without an answer")
    headers = {"ETag": etag_of(outcome.version), "Understudy-Durability": durability, "Understudy-Repeated": "true"}
    return Reply(outcome.status, headers)
