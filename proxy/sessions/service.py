"""The session service of a member: every session call, whoever makes it, ends here.

A call in an owned slot is answered at once (``owner_calls``). Elsewhere it is corrected, not refused: it goes to the
owner's sidecar, one hop at the most. If the owner turns out to be dead and this member is next in line, it takes over
first and then answers. Calls wait for all of this up to :data:`CALL_TIMEOUT`, since a client in the middle of a
failover wants a late answer rather than an error.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.owned_slots import NotMine
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.peers.peer_client import Life, Peer, PeerBroken, PeerError, PeerRefused, PeerSilent
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.call_attempts import CallAttempts
from understudy.proxy.sessions.creation import KEY_BYTES, derived_key, fault_of, identity_of
from understudy.proxy.sessions.owner_calls import OwnerCalls
from understudy.proxy.sessions.problems import Reply, problem
from understudy.statesync.etcd.client import CreateRevision, EtcdError, Get, Put
from understudy.statesync.http.headers import CALLER_HEADER
from understudy.statesync.pool.ownership import standbys_of
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.sessions.request_log import REQUEST_HEADER, stamp_of
from understudy.statesync.sessions.session import Method, valid_key

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 5.0
POLL_INTERVAL = 0.05
FIRST_PROBE_AFTER = 0.05
PROBE_INTERVAL = 0.3
"""Seconds after which a peer that has a call of ours is probed for the first time, and again if it lives."""
FORWARD_MARGIN = 0.5
OWN_SLOT_TRIES = 4096
SWEEP_INTERVAL = 10.0
SWEEP_MOST = 500


class SessionService:
    """Answers session calls; one per process. ``on_answer`` hears of every answer, for the metrics."""

    def __init__(self, context: MemberContext, roles: SlotReconciler, calls: OwnerCalls) -> None:
        self._context = context
        self._roles = roles
        self._calls = calls
        self._secret = b""
        self.forwarded = 0
        self.on_answer: Callable[[Call, Reply], None] | None = None

    async def create(self, call: Call) -> Reply:
        """A new session of a key drawn here, in a slot that this member is active for, or soon will be, if any.

        If the call may have repeats (:mod:`understudy.proxy.sessions.creation`), the session key is derived instead of
        drawn, so that a repeat finds the same session on any member; its slot may then be another member's.
        """
        spec = self._spec()
        if spec is None:
            return self._not_ready()
        fault = fault_of(call.headers)
        if fault:
            return problem(400, "bad-request", fault)
        identity = identity_of(call.headers)
        try:
            key = derived_key(await self._pool_secret(), identity) if identity else self._draw_key(spec.slots)
        except EtcdError as error:
            return problem(503, "not-committed", f"etcd cannot be reached: {error}", retry_after=1)
        headers = {name: value for name, value in call.headers.items() if name != CALLER_HEADER}
        reply = await self.handle(Call("PUT", key, {**headers, "if-none-match": "*"}, call.body))
        if reply.status != 201:
            return reply
        place = {"Location": f"/v1/sessions/{key}", "Content-Type": "application/json"}
        body = f'{{"key":"{key}","slot":{slot_of(key, spec.slots)}}}'.encode()
        return Reply(201, {**reply.headers, **place}, body)

    def _draw_key(self, slots: int) -> str:
        own = frozenset(self._context.owned.open_slots()) or self._slots_to_be()
        for _ in range(OWN_SLOT_TRIES):
            key = secrets.token_urlsafe(KEY_BYTES)
            if not own or slot_of(key, slots) in own:
                return key
        return secrets.token_urlsafe(KEY_BYTES)

    def _slots_to_be(self) -> frozenset[int]:
        """The slots that the table wants this member active for: it serves them in a moment, if it does not yet."""
        table = self._context.view().table
        return frozenset(slot for slot in range(table.slots) if table.active_of(slot) == self._context.me)

    async def _pool_secret(self) -> bytes:
        """The pool's secret; the first member that needs one makes it."""
        if not self._secret:
            key = self._context.keys.secret
            fresh = secrets.token_hex(32).encode()
            result = await self._context.etcd.txn([CreateRevision(key, 0)], [Put(key, fresh)], [Get(key)])
            self._secret = fresh if result.succeeded else result.answers[0][0].value
        return self._secret

    async def handle(self, call: Call) -> Reply:
        """Answer a call to one session, wherever its owner is."""
        reply = await self._handle(call)
        if self.on_answer is not None:
            self.on_answer(call, reply)
        return reply

    async def _handle(self, call: Call) -> Reply:
        spec = self._spec()
        if spec is None:
            return self._not_ready()
        if not valid_key(call.key):
            return problem(
                400, "bad-key", "a session key has 1 to 256 of the characters A-Z a-z 0-9 - . _ ~ :, and is not . or .."
            )
        slot = slot_of(call.key, spec.slots)
        if call.method == "GET" and call.headers.get("understudy-consistency") == "stale":
            copy = self._calls.stale(call, slot)
            if copy is not None:
                return copy
        now = time.monotonic()
        attempts = CallAttempts(now, now + CALL_TIMEOUT)
        if self._context.owned.takes(slot):
            return await self._retry_loop(call, slot, spec, attempts)
        context, request = self._context, call.headers.get("traceparent", "")
        with context.claim_progress.waiting(slot), context.handover_latency.call(slot, now, request):
            return await self._retry_loop(call, slot, spec, attempts)

    async def _retry_loop(self, call: Call, slot: int, spec: PoolSpec, attempts: CallAttempts) -> Reply:
        """Try until there is an answer, or no time left."""
        while True:
            seen = self._roles.changed
            if slot not in self._context.owned:
                call = self._with_stamp(call, attempts)
            reply = await self._attempt(call, slot, spec, attempts)
            if reply is not None:
                return attempts.final_reply(reply)
            if attempts.left <= 0:
                detail = f"no owner of slot {slot} could be reached"
                return attempts.final_reply(problem(503, "no-owner", detail, retry_after=1))
            await self._roles.change(seen, min(POLL_INTERVAL, attempts.left))

    async def _attempt(self, call: Call, slot: int, spec: PoolSpec, attempts: CallAttempts) -> Reply | None:
        """One attempt: the answer, or None to look again."""
        holdings = self._context.owned
        reading = call.method == "GET" and self._calls.at_hand(call, slot)
        owned = holdings.enter_to_read(slot) if reading else None
        try:
            if owned is None:
                async with asyncio.timeout(attempts.left):
                    owned = await holdings.enter(slot)
        except NotMine:
            return await self._route_to_owner(call, slot, attempts)
        except TimeoutError:
            return None
        if call.method == "GET":
            reply = await self._calls.read(call, owned)
        else:
            reply = await self._calls.write(call, owned, spec, attempts.give_up)
        if reply is not None and reply.status < 500:
            context = self._context
            came = context.telemetry.clock.at_ns(attempts.came)
            context.claim_progress.answered(slot, came, call.headers.get("traceparent", ""))
        return reply

    def _with_stamp(self, call: Call, attempts: CallAttempts) -> Call:
        """A write that may travel gets a stamp, if its request has none: it has its effect once, wherever that is."""
        if call.method in ("GET", Method.REFUSE) or REQUEST_HEADER in call.headers:
            return call
        waited = time.monotonic() - attempts.came + self._context.loop_lag.standstill()
        stamp = stamp_of(self._context.clock.now_ms() / 1000 - waited, secrets.token_hex(12))
        return replace(call, headers={**call.headers, REQUEST_HEADER: stamp})

    # -- slots of others --

    async def _route_to_owner(self, call: Call, slot: int, attempts: CallAttempts) -> Reply | None:
        view = self._context.view()
        owner = view.owner(slot)
        if call.hop:
            return await self._handle_forwarded(slot, owner, attempts)
        if owner is None:
            return await self._forward_to_assigned(call, view.table.active_of(slot), attempts)
        if view.mine(slot):
            return None
        if view.replaced(owner):
            return await self._failover_to_standby(call, slot, owner, "it was restarted", attempts)
        try:
            return await self._forward(call, owner.active, attempts)
        except (PeerRefused, PeerBroken) as error:
            why = "connection refused" if isinstance(error, PeerRefused) else error.detail
            witness = error.life if isinstance(error, PeerSilent) else None
            return await self._failover_to_standby(call, slot, owner, why, attempts, witness)

    async def _forward_to_assigned(self, call: Call, wanted: str | None, attempts: CallAttempts) -> Reply | None:
        """Nobody has ever owned the slot: whoever the table names will soon."""
        if wanted is None or wanted == self._context.me:
            return None
        try:
            return await self._forward(call, wanted, attempts)
        except PeerError as error:
            logger.info("first owner to be: %s", error)
            return None

    async def _handle_forwarded(self, slot: int, owner: Owner | None, attempts: CallAttempts) -> Reply | None:
        """A peer sent the call here, so there is no second hop: either the slot becomes ours, or the peer is told."""
        view = self._context.view()
        if owner is not None and view.mine(slot):
            return None
        if (
            owner is not None
            and self._context.me in standbys_of(view, slot)
            and await self._roles.takeovers.for_caller(slot, owner, "a peer cannot reach it", attempts.give_up)
        ):
            return None
        return self._not_owner(slot, owner)

    @staticmethod
    def _not_owner(slot: int, owner: Owner | None) -> Reply:
        """What a peer is told that sent a call to the wrong member."""
        active = owner.active if owner else None
        return problem(421, "not-owner", f"slot {slot} belongs to {active or 'nobody yet'}", owner=active)

    async def _failover_to_standby(
        self, call: Call, slot: int, owner: Owner, why: str, attempts: CallAttempts, witness: Life | None = None
    ) -> Reply | None:
        """The owner does not answer: go down the slot's order until somebody serves it, ourselves included.

        ``witness`` is what our own probe has just found, if it was asked.
        """
        for standby in standbys_of(self._context.view(), slot):
            if standby == self._context.me:
                await self._roles.takeovers.for_caller(slot, owner, why, attempts.give_up, witness)
                return None
            try:
                reply = await self._forward(call, standby, attempts)
            except PeerError as error:
                logger.info("slot %d: %s", slot, error)
                continue
            if reply is not None:
                return reply
        return None

    async def _forward(self, call: Call, member: str | None, attempts: CallAttempts) -> Reply | None:
        """A peer's answer; None if it does not own the slot either. Raises ``PeerError`` if it does not answer.

        A write that was not answered is in doubt from then on, even after a refused connection: the HTTP client may
        have tried once before, on a connection that broke.
        """
        peer = self._context.peer(member) if member else None
        if peer is None:
            raise PeerRefused(str(member), "its address is unknown")
        self.forwarded += 1
        try:
            reply = await self._send(peer, call, attempts)
        except PeerError as error:
            if call.method != "GET":
                attempts.doubts.append(str(error))
            raise
        return reply if reply.status != 421 else None

    async def _send(self, peer: Peer, call: Call, attempts: CallAttempts) -> Reply:
        """Forward, and look after a peer that takes its time: a silent one is given up, a busy one is waited for."""
        answer = asyncio.ensure_future(
            self._context.peers.forward(
                peer,
                call.method,
                call.key,
                headers=dict(call.headers),
                body=call.body,
                timeout=attempts.left + FORWARD_MARGIN,
            )
        )
        waited = FIRST_PROBE_AFTER
        try:
            while True:
                await asyncio.wait((answer,), timeout=waited)
                if answer.done():
                    return answer.result()
                # The time for which it has not answered the call is silence, too.
                patience = max(self._context.patience(peer.member) - waited, FIRST_PROBE_AFTER)
                life = await self._context.peers.probe(peer, patience=patience)
                waited = PROBE_INTERVAL
                if life in (Life.SILENT, Life.STOPPED) and not answer.done():
                    raise PeerSilent(peer.member, life)
        finally:
            answer.cancel()

    # -- sweeping --

    async def sweep(self) -> None:
        """Remove expired sessions of owned slots from etcd, at most :data:`SWEEP_MOST` per round, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now_ms = self._context.clock.expiry_ms()
            dead = [
                (slot, key)
                for slot in self._context.owned.open_slots()
                for key, session in self._context.replica.sessions_of(slot).items()
                if now_ms >= session.expires
            ]
            for slot, key in dead[:SWEEP_MOST]:
                try:
                    owned = await self._context.owned.enter(slot)
                except NotMine:
                    continue
                await self._calls.remove_dead(key, owned)

    def _spec(self) -> PoolSpec | None:
        return self._context.state.spec.record if self._context.state.spec else None

    @staticmethod
    def _not_ready() -> Reply:
        return problem(503, "not-ready", "this member has not seen the pool's spec yet", retry_after=1)
