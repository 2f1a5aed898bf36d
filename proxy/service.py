"""The session service of a member: every session call, whoever makes it, ends here.

A call in an owned slot is answered at once (``owner_calls``). Elsewhere it is corrected, not refused: it goes to the
owner's sidecar, one hop at the most. If the owner turns out to be dead and this member is next in line, it takes over
first and then answers. Calls wait for all of this up to :data:`CALL_PATIENCE`, since a client in the middle of a
failover wants a late answer rather than an error.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from proxy.context import MemberContext
from proxy.holdings import NotMine
from proxy.owner_calls import REQUEST_ID, Call, OwnerCalls
from proxy.peers import Life, Peer, PeerBroken, PeerError, PeerRefused
from proxy.problems import Reply, problem
from proxy.roles import Roles
from statesync.etcd import CreateRevision, EtcdError, Get, Put
from statesync.ownership import heirs_of
from statesync.pool import Owner
from statesync.sessions import valid_key
from statesync.slots import slot_of
from statesync.spec import PoolSpec

logger = logging.getLogger(__name__)

CALL_PATIENCE = 5.0
LOOK_AGAIN = 0.05
LOOK_AFTER = 0.3
FORWARD_MARGIN = 0.5
KEY_BYTES = 18
OWN_SLOT_TRIES = 4096
SWEEP_INTERVAL = 10.0
SWEEP_MOST = 500


class SessionService:
    """Answers session calls; one per process. ``on_answer`` hears of every answer, for the metrics."""

    def __init__(self, context: MemberContext, roles: Roles, calls: OwnerCalls) -> None:
        self._context = context
        self._roles = roles
        self._calls = calls
        self._secret = b""
        self.forwarded = 0
        self.on_answer: Callable[[Call, Reply], None] | None = None

    async def create(self, call: Call) -> Reply:
        """A new session of a key drawn here, in a slot that this member is active for if there is one.

        With an ``Idempotency-Key`` the session key is derived from it and the pool's secret instead of drawn, so that
        a repeat finds the same session on any member; its slot may then be another member's.
        """
        spec = self._spec()
        if spec is None:
            return self._not_ready()
        given = call.headers.get("idempotency-key")
        try:
            key = self._draw_key(spec.slots) if given is None else await self._derive_key(given)
        except EtcdError as error:
            return problem(503, "not-committed", f"etcd cannot be reached: {error}", retry_after=1)
        reply = await self.handle(Call("PUT", key, {**call.headers, "if-none-match": "*"}, call.body))
        if reply.status != 201:
            return reply
        place = {"Location": f"/v1/sessions/{key}", "Content-Type": "application/json"}
        body = f'{{"key":"{key}","slot":{slot_of(key, spec.slots)}}}'.encode()
        return Reply(201, {**reply.headers, **place}, body)

    def _draw_key(self, slots: int) -> str:
        own = frozenset(self._context.holdings.open_slots())
        for _ in range(OWN_SLOT_TRIES):
            key = secrets.token_urlsafe(KEY_BYTES)
            if not own or slot_of(key, slots) in own:
                return key
        return secrets.token_urlsafe(KEY_BYTES)

    async def _derive_key(self, idempotency_key: str) -> str:
        if not self._secret:
            self._secret = await self._pool_secret()
        digest = hmac.digest(self._secret, idempotency_key.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:KEY_BYTES]).decode()

    async def _pool_secret(self) -> bytes:
        """The pool's secret; the first member that needs one makes it."""
        key = self._context.keys.secret
        fresh = secrets.token_hex(32).encode()
        result = await self._context.etcd.txn([CreateRevision(key, 0)], [Put(key, fresh)], [Get(key)])
        return fresh if result.succeeded else result.answers[0][0].value

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
            return problem(400, "bad-key", "a session key has 1 to 256 of the characters A-Z a-z 0-9 - . _ ~")
        slot = slot_of(call.key, spec.slots)
        if call.method == "GET" and call.headers.get("understudy-consistency") == "stale":
            copy = self._calls.stale(call, slot)
            if copy is not None:
                return copy
        give_up = time.monotonic() + CALL_PATIENCE
        doubts: list[str] = []
        while True:
            seen = self._roles.changed
            if slot not in self._context.holdings:
                call = _identified(call)
            reply = await self._try(call, slot, spec, give_up, doubts)
            if reply is not None:
                return _honest(reply, doubts)
            left = give_up - time.monotonic()
            if left <= 0:
                detail = f"no owner of slot {slot} could be reached"
                return _honest(problem(503, "no-owner", detail, retry_after=1), doubts)
            await self._roles.change(seen, min(LOOK_AGAIN, left))

    async def _try(self, call: Call, slot: int, spec: PoolSpec, give_up: float, doubts: list[str]) -> Reply | None:
        """One attempt: the answer, or None to look again. ``doubts`` gets who may have carried a write out."""
        try:
            async with asyncio.timeout(max(give_up - time.monotonic(), 0.0)):
                owned = await self._context.holdings.enter(slot)
        except NotMine:
            return await self._elsewhere(call, slot, give_up, doubts)
        except TimeoutError:
            return None
        if call.method == "GET":
            reply = await self._calls.read(call, owned)
        else:
            reply = await self._calls.write(call, owned, spec, give_up)
        if reply is not None and reply.status < 500:
            self._context.first_answers.answered(slot)
        return reply

    # -- slots of others --

    async def _elsewhere(self, call: Call, slot: int, give_up: float, doubts: list[str]) -> Reply | None:
        view = self._context.view()
        owner = view.owner(slot)
        if call.hop:
            return await self._at_the_hop(slot, owner, give_up)
        if owner is None:
            return await self._ask_wanted(call, view.table.active_of(slot), give_up, doubts)
        if view.mine(slot):
            return None
        if view.replaced(owner):
            return await self._ask_heirs(call, slot, owner, "it was restarted", give_up, doubts)
        try:
            return await self._forward(call, owner.active, give_up, doubts)
        except (PeerRefused, PeerBroken) as error:
            why = "connection refused" if isinstance(error, PeerRefused) else error.detail
            return await self._ask_heirs(call, slot, owner, why, give_up, doubts)

    async def _ask_wanted(self, call: Call, wanted: str | None, give_up: float, doubts: list[str]) -> Reply | None:
        """Nobody has ever owned the slot: whoever the table names will soon."""
        if wanted is None or wanted == self._context.me:
            return None
        try:
            return await self._forward(call, wanted, give_up, doubts)
        except PeerError as error:
            logger.info("first owner to be: %s", error)
            return None

    async def _at_the_hop(self, slot: int, owner: Owner | None, give_up: float) -> Reply | None:
        """A peer sent the call here, so there is no second hop: either the slot becomes ours, or the peer is told."""
        view = self._context.view()
        if owner is not None and view.mine(slot):
            return None
        if (
            owner is not None
            and self._context.me in heirs_of(view, slot)
            and await self._roles.take_over_for(slot, owner, "a peer cannot reach it", give_up)
        ):
            return None
        active = owner.active if owner else None
        return problem(421, "not-owner", f"slot {slot} belongs to {active or 'nobody yet'}", owner=active)

    async def _ask_heirs(
        self, call: Call, slot: int, owner: Owner, why: str, give_up: float, doubts: list[str]
    ) -> Reply | None:
        """The owner does not answer: go down the slot's order until somebody serves it, ourselves included."""
        for heir in heirs_of(self._context.view(), slot):
            if heir == self._context.me:
                await self._roles.take_over_for(slot, owner, why, give_up)
                return None
            try:
                reply = await self._forward(call, heir, give_up, doubts)
            except PeerError as error:
                logger.info("slot %d: %s", slot, error)
                continue
            if reply is not None:
                return reply
        return None

    async def _forward(self, call: Call, member: str | None, give_up: float, doubts: list[str]) -> Reply | None:
        """A peer's answer; None if it does not own the slot either. Raises ``PeerError`` if it does not answer.

        A write that a peer did not answer is in doubt from then on, even after a refused connection: the HTTP client
        may have tried once before, on a connection that broke.
        """
        peer = self._context.peer(member) if member else None
        if peer is None:
            raise PeerRefused(str(member), "its address is unknown")
        self.forwarded += 1
        try:
            reply = await self._send(peer, call, give_up)
        except PeerError as error:
            if call.method != "GET":
                doubts.append(str(error))
            raise
        return None if reply.status == 421 else reply

    async def _send(self, peer: Peer, call: Call, give_up: float) -> Reply:
        """Forward, and look after a peer that takes its time: a silent one is given up, a busy one is waited for."""
        left = max(give_up - time.monotonic(), 0.0) + FORWARD_MARGIN
        answer = asyncio.ensure_future(
            self._context.peers.forward(
                peer, call.method, call.key, headers=dict(call.headers), body=call.body, timeout=left
            )
        )
        try:
            while True:
                await asyncio.wait((answer,), timeout=LOOK_AFTER)
                if answer.done():
                    return answer.result()
                if await self._context.peers.probe(peer) is Life.SILENT:
                    raise PeerBroken(peer.member, "silent")
        finally:
            answer.cancel()

    # -- sweeping --

    async def sweep(self) -> None:
        """Remove expired sessions of owned slots from etcd, at most :data:`SWEEP_MOST` per round, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now_ms = time.time_ns() // 1_000_000
            dead = [
                (slot, key)
                for slot in self._context.holdings.open_slots()
                for key, session in self._context.replica.sessions_of(slot).items()
                if now_ms >= session.expires
            ]
            for slot, key in dead[:SWEEP_MOST]:
                try:
                    owned = await self._context.holdings.enter(slot)
                except NotMine:
                    continue
                await self._calls.remove_dead(key, owned)

    def _spec(self) -> PoolSpec | None:
        return self._context.state.spec.record if self._context.state.spec else None

    @staticmethod
    def _not_ready() -> Reply:
        return problem(503, "not-ready", "this member has not seen the pool's spec yet", retry_after=1)


def _identified(call: Call) -> Call:
    """A write that may travel gets an id of its own, so that it has its effect once wherever it is carried out."""
    if call.method == "GET" or REQUEST_ID in call.headers or "idempotency-key" in call.headers:
        return call
    return replace(call, headers={**call.headers, REQUEST_ID: secrets.token_hex(12)})


def _honest(reply: Reply, doubts: list[str]) -> Reply:
    """The reply, unless it says that nothing was done while a peer that did not answer may have done it."""
    if reply.status != 503 or not doubts:
        return reply
    detail = f"{doubts[0]}; read the session, or repeat the request with its Idempotency-Key"
    return problem(503, "outcome-unknown", detail, retry_after=1)
