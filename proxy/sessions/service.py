"""The session service of a member: every session call of the application or of a peer ends here.

A call in an owned slot is answered at once (``owner_reads``, ``owner_writes``). A call in another slot goes to the
owner's sidecar (``routing``), which may mean that this member takes the slot over first. Calls wait for all of this up
to :data:`CALL_TIMEOUT`, since a client in the middle of a failover prefers a late answer to an error.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

from msgspec.structs import replace

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import NotMine, OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.sessions.call import TTL_MOST, Call, key_text
from understudy.proxy.sessions.call_attempts import CallAttempts
from understudy.proxy.sessions.creation import SessionKeys, fault_of
from understudy.proxy.sessions.load_shedding import LoadShedder
from understudy.proxy.sessions.owner_reads import OwnerReads
from understudy.proxy.sessions.owner_writes import Begun, OwnerWrites, Then
from understudy.proxy.sessions.routing import OwnerRouter
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.http.headers import CALLER_HEADER, CONSISTENCY_HEADER, TOUCH_HEADER, TTL_HEADER
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.sessions.command_batch import CommandBatch
from understudy.statesync.sessions.request_log import REQUEST_HEADER, stamp_of
from understudy.statesync.sessions.session import Method, valid_key

CALL_TIMEOUT = 5.0
_FOUND = (200, 304)
POLL_INTERVAL = 0.05
KEY_BYTES_MOST = 512
"""Bytes of the key of a command."""


class SessionService:
    """Answers session calls; one per process. ``on_answer`` is called with every answer, for the metrics."""

    def __init__(
        self,
        pool: PoolView,
        home: HomeWatch,
        owned: OwnedSlots,
        updates: PoolUpdates,
        reads: OwnerReads,
        writes: OwnerWrites,
        router: OwnerRouter,
        keys: SessionKeys,
        clock: PoolClock,
        loop_lag: LoopLag,
        recorder: Recorder,
        shedding: LoadShedder,
        on_answer: Callable[[Call, Reply], None],
    ) -> None:
        self._pool = pool
        self._home = home
        self._owned = owned
        self._updates = updates
        self._reads = reads
        self._writes = writes
        self._router = router
        self._keys = keys
        self._clock = clock
        self._loop_lag = loop_lag
        self._recorder = recorder
        self._shedding = shedding
        self._on_answer = on_answer

    @property
    def _spec(self) -> PoolSpec | None:
        """The spec by which this member may answer; None if it is not known, or the pool is at home elsewhere."""
        return None if self._home.away else self._pool.spec

    async def create(self, call: Call) -> Reply:
        """Make a new session; its key is drawn or derived here (:mod:`understudy.proxy.sessions.creation`)."""
        spec = self._spec
        if spec is None:
            return self._not_ready()
        fault = fault_of(call.headers)
        if fault:
            return problem(400, "bad-request", fault)
        try:
            key = await self._keys.key_for(call.headers, spec.slot_of_key)
        except EtcdError as error:
            return problem(503, "not-committed", f"etcd cannot be reached: {error}", retry_after=1)
        headers = {name: value for name, value in call.headers.items() if name != CALLER_HEADER}
        reply = await self.handle(Call("PUT", key, {**headers, "if-none-match": "*"}, call.body))
        if reply.status != 201:
            return reply
        place = {"Location": f"/v1/sessions/{key}", "Content-Type": "application/json"}
        body = f'{{"key":"{key}","slot":{spec.slot_of_key(key)}}}'.encode()
        return Reply(201, {**reply.headers, **place}, body)

    async def handle(self, call: Call) -> Reply:
        """Answer a call to one session, wherever its owner is."""
        spec = self._spec
        refused = self._shedding.refusal(call.headers, call.key, spec) if spec is not None else None
        reply = refused or await self._handle(call)
        self._on_answer(call, reply)
        if reply.status in _FOUND and TOUCH_HEADER in call.headers and not call.hop:
            await self._renew(call)
        return reply

    async def _renew(self, call: Call) -> None:
        """Renew the session that a call has read. Its answer stands whatever comes of this."""
        spec = self._spec
        if spec is not None:
            ttl = whole_number(call.headers.get(TTL_HEADER, ""), TTL_MOST) or spec.session_ttl
            renewal = KeyCommand(b"EXPIRE", call.key.encode(), (b"%d" % ttl,))
            await self._handle(Call.of_commands(CommandBatch((renewal,)), {}))

    def read_now(self, command: KeyCommand, protocol: int) -> tuple[bytes, int | None] | None:
        """The answer to a command that only reads, if this member's memory has it, and the version of the value.

        The version is None if the pool ignores lost updates.
        """
        spec = self._spec
        if spec is None or self._sheds(command.key, spec):
            return None
        slot = spec.slot_of_bytes(command.key)
        owned = self._owned.get(slot)
        answer = self._reads.read_now(command, protocol, owned, spec) if owned is not None else None
        if answer is not None:
            self._recorder.answered(slot, None, "")
        return answer

    def write_now(self, call: Call, then: Then) -> Begun | bytes | None:
        """Begin a write of commands that this member can carry out at once; None, with nothing done, for others.

        One that waits for no commit is answered at once. ``then`` is called when one that was begun has ended.
        """
        spec, batch = self._spec, call.batch
        if spec is None or batch is None or call.headers or not _fits(batch.key):
            return None
        if self._sheds(batch.key, spec):
            return None
        owned = self._owned.get(spec.slot_of_bytes(batch.key))
        return self._writes.write_now(call, owned, spec, then) if owned is not None else None

    def _sheds(self, key: bytes, spec: PoolSpec) -> bool:
        """Whether a command on this key is to be refused now."""
        return bool(self._shedding.level) and self._shedding.refused_priority({}, key_text(key), spec) is not None

    def takes_writes(self) -> bool:
        """Whether the pool's spec is known, and commits do not lag behind."""
        spec = self._spec
        return spec is not None and not self._writes.lags(spec)

    def written(self, begun: Begun) -> None:
        """A write that was begun is acknowledged."""
        self._recorder.answered(begun.owned.slot, begun.write.at, "")

    async def settle(self, begun: Begun) -> Reply:
        """The answer to a write that was begun and has failed, or takes longer than :data:`CALL_TIMEOUT`."""
        return await self._writes.settle(begun) or await self.handle(begun.call)

    def get_now(self, call: Call) -> Reply | None:
        """The answer to a ``GET``, if this member's memory can give it at once; None if not."""
        spec, headers = self._spec, call.headers
        if spec is None or headers.get(CONSISTENCY_HEADER) == "stale" or TOUCH_HEADER in headers or _key_fault(call):
            return None
        if self._shedding.refused_priority(headers, call.key, spec):
            return None  # handle() refuses it
        slot = spec.slot_of_key(call.key)
        reply = self._reads.get_now(call, slot)
        if reply is not None:
            if reply.status < 500:
                self._recorder.answered(slot, time.monotonic(), call.headers.get("traceparent", ""))
            self._on_answer(call, reply)
        return reply

    async def _handle(self, call: Call) -> Reply:
        spec = self._spec
        if spec is None:
            return self._not_ready()
        fault = _key_fault(call)
        if fault is not None:
            return fault
        slot = spec.slot_of_key(call.key)
        if call.method == "GET" and call.headers.get(CONSISTENCY_HEADER) == "stale":
            copy = self._reads.stale(call, slot)
            if copy is not None:
                return copy
        now = time.monotonic()
        attempts = CallAttempts(now, now + CALL_TIMEOUT)
        if self._owned.takes(slot):
            return await self._retry_loop(call, slot, spec, attempts)
        with self._recorder.call_elsewhere(slot, now, call.headers.get("traceparent", "")):
            return await self._retry_loop(call, slot, spec, attempts)

    async def _retry_loop(self, call: Call, slot: int, spec: PoolSpec, attempts: CallAttempts) -> Reply:
        """Try until there is an answer, or no time left."""
        while True:
            seen = self._updates.changed
            try:
                reply = await self._attempt(call, slot, spec, attempts)
            except NotMine:  # it may have waited at the gate while the slot was handed over
                await self._clock.compared()  # a stamp by a wrong clock is refused
                call = self._with_stamp(call, attempts)
                reply = await self._router.route(call, slot, attempts)
            if reply is not None:
                return attempts.final_reply(reply)
            if attempts.left <= 0:
                detail = f"no owner of slot {slot} could be reached"
                return attempts.final_reply(problem(503, "no-owner", detail, retry_after=1))
            await self._updates.wait(seen, min(POLL_INTERVAL, attempts.left))

    async def _attempt(self, call: Call, slot: int, spec: PoolSpec, attempts: CallAttempts) -> Reply | None:
        """One attempt in a slot of ours: the answer, or None to look again. Raises :class:`NotMine`."""
        owned = self._owned.enter_now(slot)  # a timeout takes as long as all of a read
        if owned is None and call.reads and self._reads.at_hand(call, slot):
            owned = self._owned.enter_to_read(slot)
        try:
            if owned is None:
                async with asyncio.timeout(attempts.left):
                    owned = await self._owned.enter(slot)
        except TimeoutError:
            return None
        if call.reads:
            reply = await self._reads.read(call, owned)
        else:
            reply = await self._writes.write(call, owned, spec, attempts)
        if reply is not None and reply.status < 500:
            self._recorder.answered(slot, attempts.came, call.headers.get("traceparent", ""))
        return reply

    def _with_stamp(self, call: Call, attempts: CallAttempts) -> Call:
        """Stamp a write that may be forwarded, unless it has a stamp: so it has its effect once, wherever that is."""
        if call.reads or call.method == Method.REFUSE or REQUEST_HEADER in call.headers:
            return call
        waited = time.monotonic() - attempts.came + self._loop_lag.standstill()
        stamp = stamp_of(self._clock.now_ms() / 1000 - waited, secrets.token_hex(12))
        return replace(call, headers={**call.headers, REQUEST_HEADER: stamp})

    def _not_ready(self) -> Reply:
        if away := self._home.away:
            return problem(503, "not-at-home", f"this side does not serve the pool: {away}", retry_after=1)
        return problem(503, "not-ready", "this member has not seen the pool's spec yet", retry_after=1)


def _fits(key: bytes) -> bool:
    return 0 < len(key) <= KEY_BYTES_MOST


def _key_fault(call: Call) -> Reply | None:
    """What is wrong with the key of a call. Over HTTP it stands in a path; commands have it as it is."""
    if call.batch is not None:
        if _fits(call.batch.key):
            return None
        detail = f"the key has {len(call.batch.key)} bytes; keys have 1 to {KEY_BYTES_MOST}"
        return problem(400, "bad-key", detail)
    if valid_key(call.key):
        return None
    detail = "a session key has 1 to 256 of the characters A-Z a-z 0-9 - . _ ~ :, and is not . or .."
    return problem(400, "bad-key", detail)
