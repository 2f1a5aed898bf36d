"""Reads of sessions at the owner of their slot: from memory, once it is sure that the slot is still its own."""

import math
import time

from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_proof import ReadProof
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.call import Call, key_text
from understudy.proxy.sessions.owner_replies import ETCD_TIMEOUT, RESP_HEADERS, placed, unreadable
from understudy.proxy.sessions.restored import RestoredSessions
from understudy.proxy.sessions.write_limits import RETRY_AFTER
from understudy.statesync.etcd.client import EtcdClient, EtcdError, Get, ModRevision
from understudy.statesync.http.headers import CONSISTENCY_HEADER
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.sessions.command_batch import NEVER, CommandBatch, read_answer, value_of
from understudy.statesync.sessions.overwrites import VALUE_HEADER, version_of
from understudy.statesync.sessions.session import Session, matches_none

EXPIRES_IN = "Understudy-Expires-In"
"""The header of an answer with the seconds after which the session expires, unless it is renewed or written."""


class OwnerReads:
    """Answers reads in owned slots: None when a slot turned out not to be ours after all."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        keeper: CopyKeeper,
        etcd: EtcdClient,
        owned: OwnedSlots,
        proof: ReadProof,
        clock: PoolClock,
        updates: PoolUpdates,
        async_writes: AsyncWrites,
    ) -> None:
        self._pool = pool
        self._me = pool.identity.me
        self._keys = pool.identity.keys
        self._copies = copies
        self._keeper = keeper
        self._replica = copies.replica
        self._etcd = etcd
        self._owned = owned
        self._proof = proof
        self._clock = clock
        self._updates = updates
        self._async_writes = async_writes
        self._restored = RestoredSessions(pool, clock)

    def at_hand(self, call: Call, slot: int) -> bool:
        """Whether :meth:`read` would answer a ``GET`` from memory now, without waiting for anything."""
        return (
            not self._async_writes.waiting(slot, call.key)
            and self._replica.is_synced(slot)
            and call.headers.get(CONSISTENCY_HEADER) != "linearizable"
            and self._proof.holds(slot)
        )

    async def read(self, call: Call, owned: OwnedSlot) -> Reply | None:
        """Answer a ``GET`` or commands that only read; the caller has entered the slot and this leaves it."""
        try:
            return await self._read(call, owned)
        finally:
            owned.leave()

    async def _read(self, call: Call, owned: OwnedSlot) -> Reply | None:
        await self._async_writes.settled(owned.slot, call.key)
        linearizable = call.headers.get(CONSISTENCY_HEADER) == "linearizable"
        slot = owned.slot
        sure = linearizable or self._proof.holds(slot) or await self._proof.renewed(slot, ETCD_TIMEOUT)
        if not sure and self._holds(owned):
            detail = "etcd is needed to answer this read and does not answer"
            return problem(503, "no-owner", detail, retry_after=RETRY_AFTER)
        if not self._holds(owned):
            return None
        if linearizable:
            try:
                ours = await self._proven(owned)
            except EtcdError as error:
                detail = f"etcd is needed to answer this read and cannot be reached: {error}"
                return problem(503, "no-owner", detail, retry_after=RETRY_AFTER)
            if not ours:
                return None
        return self._found(call, self._replica.session(owned.slot, call.key), owned)

    def _found(self, call: Call, session: Session | None, owned: OwnedSlot) -> Reply:
        """The answer to a read that has found ``session``."""
        if call.batch is not None:
            return unreadable(self._replica, call, owned) or self._read_commands(call.batch, session)
        if session is None or not session.alive(self._clock.expiry_ms()):
            unread = unreadable(self._replica, call, owned)
            if unread is not None:
                return placed(unread, owned, self._me)
            absent = problem(404, "no-such-session", "there is no session of this key")
            headers = {**absent.headers, **self._restored.header(owned.slot, session)}
            return placed(Reply(404, headers, absent.body), owned, self._me)
        if_none_match = call.headers.get("if-none-match")
        left = {EXPIRES_IN: str(self._seconds_left(session))} if session.expires < NEVER else {}
        left.update(self._restored.header(owned.slot, session))
        if if_none_match is not None and matches_none(if_none_match, session):
            return placed(Reply(304, {"ETag": session.etag, **left}), owned, self._me)
        headers = {"ETag": session.etag, "Content-Type": session.content_type, **left}
        return placed(Reply(200, headers, session.body), owned, self._me)

    def _seconds_left(self, session: Session) -> int:
        return max(session.expires - self._clock.now_ms(), 0) // 1000

    def _read_commands(self, batch: CommandBatch, session: Session | None) -> Reply:
        value = value_of(session, self._clock.expiry_ms())
        spec = self._pool.spec
        headers = RESP_HEADERS
        if spec is not None and spec.concurrency != "ignore":
            headers = {**RESP_HEADERS, VALUE_HEADER: str(version_of(session, self._clock.expiry_ms()))}
        return Reply(200, headers, batch.answer(value, self._clock.now_ms())[0])

    def get_now(self, call: Call, slot: int) -> Reply | None:
        """The answer to a ``GET``, if memory can give it at once."""
        owned = self._owned.get(slot)
        if owned is None or not (owned.open.is_set() or owned.readable) or not self.at_hand(call, slot):
            return None
        return self._found(call, self._replica.session(slot, call.key), owned)

    def read_now(
        self, command: KeyCommand, protocol: int, owned: OwnedSlot, spec: PoolSpec
    ) -> tuple[bytes, int | None] | None:
        """The answer to a command that only reads, if memory can give it at once, and the version of the value.

        The version is None if the pool ignores lost updates.
        """
        slot, key = owned.slot, key_text(command.key)
        session = self._replica.session_if_known(slot, key)
        if (
            session is False
            or not (owned.open.is_set() or owned.readable)
            or self._async_writes.waiting(slot, key)
            or not self._proof.holds(slot)
        ):
            return None
        now_ms, ended_ms = self._clock.now_and_expiry_ms()
        version = version_of(session, ended_ms) if spec.concurrency != "ignore" else None
        return read_answer(command, protocol, session, now_ms, ended_ms), version

    async def _proven(self, owned: OwnedSlot) -> bool:
        """Whether a linearizable read of etcd shows that the slot is ours. Memory has every acknowledged write then."""
        owner = self._keys.owner(owned.slot)
        result = await self._etcd.txn([ModRevision(owner, owned.fence)], [], [Get(owner)])
        if not result.succeeded and result.answers[0]:
            self._updates.refused_by(owned.slot, result.answers[0][0])
        return result.succeeded and self._holds(owned)

    def stale(self, call: Call, slot: int) -> Reply | None:
        """This member's copy of the session with its age, also in slots of others; None if it holds no copy."""
        if not self._replica.is_synced(slot) or self._replica.unreadable(slot, call.key):
            return None
        lag_ms = self._silent_for(slot) * 1000
        if math.isinf(lag_ms):
            return None
        headers = {
            "Understudy-Slot": str(slot),
            "Understudy-Served-By": self._me,
            "Understudy-Lag-Ms": f"{lag_ms:.0f}",
        }
        session = self._replica.session(slot, call.key)
        headers.update(self._restored.header(slot, session))
        if session is None or not session.alive(self._clock.expiry_ms()):
            reply = problem(404, "no-such-session", "this copy has no session of this key")
            return Reply(404, {**reply.headers, **headers}, reply.body)
        return Reply(200, {**headers, "ETag": session.etag, "Content-Type": session.content_type}, session.body)

    def _silent_for(self, slot: int) -> float:
        """Seconds since the slot's active was last heard of; 0 if that is this process."""
        return 0.0 if slot in self._owned else self._keeper.silence(slot, time.monotonic())

    def _holds(self, owned: OwnedSlot) -> bool:
        """Whether the slot is still ours and in memory after a call has waited for something."""
        return self._owned.get(owned.slot) is owned and self._replica.is_synced(owned.slot)
