"""The way of a session call to the owner of its slot, where that is another member: one hop at most.

If the owner turns out to be dead, the call goes to the slot's standbys in their order. If this member is the first of
them, it takes the slot over, and the call is answered here.
"""

import asyncio
import logging

from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.peer_protocol import (
    COMMANDS_PATH,
    SESSIONS_PATH,
    PeerBroken,
    PeerError,
    PeerRefused,
    PeerSilent,
    ProbeResult,
)
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.call_attempts import DOUBT_HEADER, NOT_OWNER, CallAttempts
from understudy.statesync.http.headers import APP_VERSION_HEADER
from understudy.statesync.pool.ownership import standbys_of
from understudy.statesync.pool.records import Owner
from understudy.statesync.sessions.overwrites import SEEN_HEADER

logger = logging.getLogger(__name__)

FIRST_PROBE_AFTER = 0.05
PROBE_INTERVAL = 0.3
"""Seconds after which a peer that has a call of ours is probed for the first time, and again if it lives."""
FORWARD_MARGIN = 0.5
GIVEN_UP = (ProbeResult.SILENT, ProbeResult.SILENT_EVERYWHERE, ProbeResult.STOPPED)
"""A peer of which a probe finds this is not waited for."""


class OwnerRouter:
    """Forwards calls to other members; ``forwarded`` counts them."""

    def __init__(self, pool: PoolView, client: PeerClient, probe: PeerProbe, takeovers: Takeovers) -> None:
        self._pool = pool
        app = pool.identity.app_version
        self._said = {APP_VERSION_HEADER: app} if app else {}
        self._me = pool.identity.me
        self._client = client
        self._probe = probe
        self._takeovers = takeovers
        self.forwarded = 0

    async def route(self, call: Call, slot: int, attempts: CallAttempts) -> Reply | None:
        """The owner's answer to a call in a slot that is not served here; None to look again who owns it."""
        view = self._pool.view()
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
            witness = error.result if isinstance(error, PeerSilent) else None
            return await self._failover_to_standby(call, slot, owner, why, attempts, witness)

    async def _forward_to_assigned(self, call: Call, assigned: str | None, attempts: CallAttempts) -> Reply | None:
        """Nobody has owned the slot yet: the member that the table assigns it to will own it soon."""
        if assigned is None or assigned == self._me:
            return None
        try:
            return await self._forward(call, assigned, attempts)
        except PeerError as error:
            logger.info("the first owner of a slot does not answer yet: %s", error)
            return None

    async def _handle_forwarded(self, slot: int, owner: Owner | None, attempts: CallAttempts) -> Reply | None:
        """A peer forwarded the call, and there is no second hop: either the slot becomes ours, or the peer is told."""
        view = self._pool.view()
        if owner is not None and view.mine(slot):
            return None
        if (
            owner is not None
            and self._me in standbys_of(view, slot)
            and await self._takeovers.for_caller(slot, owner, "a peer cannot reach it", attempts.give_up)
        ):
            return None
        active = owner.active if owner else None
        return problem(NOT_OWNER, "not-owner", f"slot {slot} belongs to {active or 'nobody yet'}", owner=active)

    async def _failover_to_standby(
        self,
        call: Call,
        slot: int,
        owner: Owner,
        why: str,
        attempts: CallAttempts,
        witness: ProbeResult | None = None,
    ) -> Reply | None:
        """The owner does not answer: ask the slot's standbys in their order until one serves it, this member included.

        ``witness`` is what our own probe of the owner has just found, if there was one.
        """
        for standby in standbys_of(self._pool.view(), slot):
            if standby == self._me:
                await self._takeovers.for_caller(slot, owner, why, attempts.give_up, witness)
                return None
            try:
                reply = await self._forward(call, standby, attempts)
            except PeerError as error:
                logger.info("slot %d: %s", slot, error)
                continue
            if reply is not None:
                return reply
        return None

    async def _forward(self, call: Call, member: str, attempts: CallAttempts) -> Reply | None:
        """A peer's answer; None if it does not own the slot either. Raises ``PeerError`` if it does not answer.

        A write that was not answered is in doubt from then on, even after a refused connection: the HTTP client may
        have sent it before, on a connection that broke.
        """
        peer = self._pool.peer(member)
        if peer is None:
            raise PeerRefused(member, "its address is unknown")
        self.forwarded += 1
        try:
            reply = await self._send(peer, call, attempts)
        except PeerError as error:
            if not call.reads:
                attempts.doubts.append(str(error))
            raise
        if reply.status != NOT_OWNER:
            return reply
        if DOUBT_HEADER in reply.headers and not call.reads:
            attempts.doubts.append(f"{member}: {reply.headers[DOUBT_HEADER]}")
        return None

    async def _send(self, peer: Peer, call: Call, attempts: CallAttempts) -> Reply:
        """Forward a call, and probe a peer that takes long: a silent one is given up, a busy one is waited for."""
        commands = call.batch is not None
        answer = asyncio.ensure_future(
            self._client.forward(
                peer,
                "POST" if commands else call.method,
                COMMANDS_PATH if commands else SESSIONS_PATH + call.key,
                headers={**call.headers, **self._said, **({} if call.seen is None else {SEEN_HEADER: str(call.seen)})},
                body=call.batch.encode() if call.batch is not None else call.body,
                timeout=attempts.left + FORWARD_MARGIN,
            )
        )
        waited = FIRST_PROBE_AFTER
        try:
            while True:
                await asyncio.wait((answer,), timeout=waited)
                if answer.done():
                    return answer.result()
                # The time for which the peer has not answered the call is silence, too.
                patience = max(self._probe.patience(peer.member) - waited, FIRST_PROBE_AFTER)
                result = await self._probe.probe(peer, patience=patience)
                waited = PROBE_INTERVAL
                if result in GIVEN_UP and not answer.done():
                    raise PeerSilent(peer.member, result)
        finally:
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # marks it as retrieved: the caller may have gone while the peer was probed
