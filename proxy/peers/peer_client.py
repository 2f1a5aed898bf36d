"""The client side of the peer API: the calls of a sidecar to the others. Raises the errors of ``peer_protocol``."""

import json
import logging
import ssl
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp

from understudy.proxy.http.problems import Reply
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.peers.peer_protocol import (
    ACTIVATE_PATH,
    ETCD_PATH,
    HOP_HEADER,
    TAKE_PATH,
    PeerBroken,
    PeerDeclined,
    PeerError,
    PeerRefused,
    PeerUntrusted,
    Taken,
)
from understudy.statesync.heartbeat.probe import Try, ask
from understudy.statesync.pool.records import Owner
from understudy.statesync.tls.peer_tls import PeerTls, WrongName, trust_fault

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 1.0
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


class PeerClient:
    """Calls to other sidecars; one per process. With ``tls`` all of them are made over mTLS."""

    def __init__(self, tls: PeerTls | None = None) -> None:
        self._tls = tls
        self._scheme = "https" if tls else "http"
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=connector)
        # aiohttp sends a PUT or DELETE again when a kept connection breaks. The answer to the second copy may say that
        # nothing was done although the first copy was carried out.
        self._once = aiohttp.ClientSession(timeout=timeout, connector=connector, connector_owner=False)
        self._once._retry_connection = False  # noqa: SLF001 - there is no public setting

    async def close(self) -> None:
        """Close all connections."""
        await self._once.close()
        await self._http.close()

    async def clock(self, peer: Peer) -> int | None:
        """The wall clock of a peer's machine in ms; None if it does not say."""
        clock = (await self.ask(peer, CALL_TIMEOUT)).said.get("clock")
        return clock if type(clock) is int else None

    async def ask(self, peer: Peer, timeout: float) -> Try:
        """Ask a peer once which process it is."""
        return await ask(self._http, peer.address, peer.member, self._tls, timeout)

    def dial(self, peer: Peer) -> tuple[str, ssl.SSLContext | bool]:
        """The address of a peer's API as a URL without a path, and what to trust there."""
        return f"{self._scheme}://{peer.address}", self._ssl(peer)

    def _ssl(self, peer: Peer) -> ssl.SSLContext | bool:
        return self._tls.client(peer.member) if self._tls else True

    async def forward(
        self, peer: Peer, method: str, path: str, *, headers: dict[str, str], body: bytes, timeout: float
    ) -> Reply:
        """Send a session call to ``peer`` and bring its answer back. A write is sent once.

        Raises:
            PeerRefused: nobody listens there.
            PeerBroken: no complete answer came, or (``PeerUntrusted``) certificates are wrong.
        """
        session = self._http if method == "GET" else self._once
        try:
            async with session.request(
                method,
                f"{self._scheme}://{peer.address}{path}",
                ssl=self._ssl(peer),
                headers={**headers, HOP_HEADER: "1"},
                data=body,
                skip_auto_headers=("Content-Type",),
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as answer:
                content = await answer.read()
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
                if answer.status == HTTPStatus.FORBIDDEN:
                    raise PeerUntrusted(peer.member, "it does not accept this process as a member of its pool")
                return Reply(answer.status, kept, content)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _as_peer_error(peer, error) from None

    async def activate(self, peer: Peer, slots: Sequence[int], revision: int) -> tuple[dict[int, Owner], int]:
        """Ask ``peer`` to become active for slots whose handover records were written at ``revision``.

        Returns the new owner record of each and their revision. Raises ``PeerError``.
        """
        said = await self._handover_call(peer, ACTIVATE_PATH, {"slots": list(slots), "revision": revision})
        try:
            owners = {slot: Owner.decode(json.dumps(said["owners"][str(slot)]).encode()) for slot in slots}
            return owners, int(said["revision"])
        except (ValueError, KeyError, TypeError) as error:
            raise PeerBroken(peer.member, f"its answer to a handover cannot be read: {error!r}") from None

    async def reaches_etcd(self, peer: Peer) -> bool:
        """Whether etcd answers ``peer`` now and has not paused recently; False also if the peer does not say."""
        url = f"{self._scheme}://{peer.address}{ETCD_PATH}"
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT)
        try:
            async with self._http.get(url, ssl=self._ssl(peer), timeout=timeout) as answer:
                said = await answer.json() if answer.status == HTTPStatus.OK else {}
                return bool(said.get("answered") is True and said.get("steady") is True)
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            logger.info("%s does not say whether it reaches etcd: %r", peer.member, error)
            return False

    async def take_from(self, peer: Peer, me: str, boot: str, fences: Mapping[int, int]) -> Taken:
        """Ask ``peer`` to claim slots that we own by records of these revisions and serve no more.

        Raises ``PeerError``; a part of the slots may not be among those taken.
        """
        body: dict[str, object] = {"member": me, "boot": boot, "slots": {str(slot): at for slot, at in fences.items()}}
        said = await self._handover_call(peer, TAKE_PATH, body)
        try:
            return Taken.of(said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PeerBroken(peer.member, f"its answer to slots given away cannot be read: {error!r}") from None

    async def _handover_call(self, peer: Peer, path: str, body: dict[str, object]) -> dict[str, Any]:
        url = f"{self._scheme}://{peer.address}{path}"
        try:
            async with self._http.post(url, json=body, ssl=self._ssl(peer)) as answer:
                content: dict[str, Any] = await answer.json(content_type=None)
                if answer.status != 200:
                    raise PeerDeclined(peer.member, str(content.get("detail", answer.status)))
                return content
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _as_peer_error(peer, error) from None


def _as_peer_error(peer: Peer, error: Exception) -> PeerError:
    """A failed exchange as one of our errors. Another member at its address counts as nobody there."""
    fault = trust_fault(error)
    if fault is not None and not isinstance(fault, WrongName):
        return PeerUntrusted(peer.member, str(fault))
    if isinstance(error, aiohttp.ClientConnectorError):
        return PeerRefused(peer.member, str(error))
    return PeerBroken(peer.member, str(error) or type(error).__name__)
