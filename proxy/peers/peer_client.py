"""The client side of the peer API: what a sidecar asks of the other members.

Sorts what can happen into what a takeover needs to know: the peer *refused* the connection (nobody listens
there, so the process is gone), the exchange *broke* (it may have been carried out), the peer was *silent*,
or it answered. Over mTLS a peer may also be *untrusted*: somebody is there, and a certificate is wrong, on either side.
That speaks neither for its life nor for its death, so no ownership changes for it.
"""

import asyncio
import dataclasses
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import aiohttp

from understudy.proxy.sessions.problems import Reply
from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.ownership import CUT_OFF
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At
from understudy.statesync.tls.peer_tls import PeerTls, WrongName, trust_fault

logger = logging.getLogger(__name__)

PROBE_PATH = "/peer/v1/probe"
SESSIONS_PATH = "/peer/v1/sessions/"
PREPARE_PATH = "/peer/v1/handover/prepare"
ACTIVATE_PATH = "/peer/v1/handover/activate"
ETCD_PATH = "/peer/v1/etcd"
TAKE_PATH = "/peer/v1/take"
PROBES = 3
VOID_FROM = 1.5
PULSE_POLL_INTERVAL = 0.05
CALL_TIMEOUT = 1.0
ETCD_CHECK_TIMEOUT = 0.7
"""Seconds in which etcd answers a look that a peer asks for, or is taken for silent."""
HOP_HEADER = "Understudy-Hop"
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


class PeerError(Exception):
    """A peer could not do what it was asked; ``member`` names it."""

    def __init__(self, member: str, detail: str) -> None:
        super().__init__(f"{member}: {detail}")
        self.member = member
        self.detail = detail


class PeerRefused(PeerError):
    """Nobody listens at the peer's address: surely nothing was done, and the process is gone."""


class PeerBroken(PeerError):
    """The connection broke or stayed silent after the request was sent; it may have been carried out."""


class PeerSilent(PeerBroken):
    """The peer answered neither the call nor three probes after it, or it has stopped (``life``)."""

    def __init__(self, member: str, life: "Life") -> None:
        super().__init__(member, str(life))
        self.life = life


class PeerUntrusted(PeerBroken):
    """Certificates are wrong, on this side or on the peer's: nothing was done, and nothing is known of the peer."""


class PeerDeclined(PeerError):
    """The peer answered and said no."""


class Life(StrEnum):
    """What a probe says of a peer."""

    ALIVE = "alive"
    GONE = "connection refused"
    SILENT = "silent"
    STOPPED = "its process has stopped"
    REPLACED = "another process answers"
    CUT_OFF = CUT_OFF
    UNTRUSTED = "certificates are wrong"
    VOID = "this process stood still itself"

    @property
    def condemns(self) -> bool:
        """Whether it is a witness against the peer, so that its slots may be taken over."""
        return self not in (Life.ALIVE, Life.UNTRUSTED, Life.VOID)


@dataclass(frozen=True, slots=True)
class Peer:
    """A member's peer API: ``address`` is ``host:port``."""

    member: str
    address: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What a peer has claimed that was given to it, and the giver's commit marker at that moment, if there was one."""

    owners: Mapping[int, At[Owner]]
    marker: Kv | None

    def as_json(self) -> dict[str, object]:
        """As it travels between peers."""
        marker = None
        if self.marker is not None:  # its value is this pool's own, as a rule; whatever it is, it has to travel
            value = self.marker.value.decode("utf-8", "surrogateescape")
            marker = {**dataclasses.asdict(self.marker), "value": value}
        owners = {
            str(slot): {"record": dataclasses.asdict(at.record), "revision": at.revision}
            for slot, at in self.owners.items()
        }
        return {"owners": owners, "marker": marker}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Taken":
        """Read it; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
        marker = said["marker"]
        owners = {
            int(slot): At(Owner.of(one["record"]), int(one["revision"])) for slot, one in dict(said["owners"]).items()
        }
        return cls(owners, None if marker is None else _marker_of(marker))


def _marker_of(said: Mapping[str, Any]) -> Kv:
    return Kv(**{**said, "value": str(said["value"]).encode("utf-8", "surrogateescape")})


class PeerClient:
    """Calls to other sidecars; one per process. With ``tls`` they are made over mTLS, all of them.

    ``runs`` tells, of a member and a boot id (None: whichever is on record), whether its process runs, as far as its
    pulse shows (None: it shows nothing); of one that has stopped no answer is waited for.
    """

    def __init__(self, tls: PeerTls | None = None) -> None:
        self._tls = tls
        self._scheme = "https" if tls else "http"
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        )
        self._probes: dict[tuple[Peer, str | None], asyncio.Task[Life]] = {}
        self.runs: Callable[[str, str | None], bool | None] = lambda _member, _boot: None

    async def close(self) -> None:
        """Close all connections."""
        for probe in list(self._probes.values()):
            probe.cancel()
        await self._http.close()

    async def probe(self, peer: Peer, boot: str | None = None, *, patience: float) -> Life:
        """Whether ``peer`` lives (as the process ``boot``, if given): refusal counts at once, silence after 3 tries.

        They take ``patience`` seconds in all, unless its pulse shows sooner that it has stopped. Who asks while a probe
        is under way gets its finding: a whole slot's callers may wonder at the same moment.
        """
        asked = (peer, boot)
        task = self._probes.get(asked)
        if task is None:
            task = self._probes[asked] = asyncio.create_task(self._probe(peer, boot, patience / PROBES))
            task.add_done_callback(lambda _: self._probes.pop(asked, None))
        return await asyncio.shield(task)

    async def _probe(self, peer: Peer, boot: str | None, most: float) -> Life:
        asking = asyncio.ensure_future(self._ask(peer, boot, most))
        try:
            while not asking.done():
                if self.runs(peer.member, boot) is False:
                    return Life.STOPPED
                await asyncio.wait((asking,), timeout=PULSE_POLL_INTERVAL)
            return asking.result()
        finally:
            asking.cancel()

    async def _ask(self, peer: Peer, boot: str | None, most: float) -> Life:
        silent = 0
        for _ in range(2 * PROBES):
            if silent == PROBES:
                break
            began = time.monotonic()
            try:
                status, said = await self._ask_once(peer, most)
                if status == HTTPStatus.FORBIDDEN:
                    logger.warning("%s does not take this process for one of the pool", peer.member)
                    return Life.UNTRUSTED
                if boot not in (None, said.get("boot")):
                    return Life.REPLACED
                return Life.ALIVE if said.get("serving", True) else Life.CUT_OFF
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                certain = _certain(peer, error)
                if certain is not None:
                    return certain
                # A try that took much longer than it may says something of this process, and nothing of the peer.
                silent += time.monotonic() - began < most * VOID_FROM
                await asyncio.sleep(0)
        return Life.SILENT if silent == PROBES else Life.VOID

    async def clock(self, peer: Peer) -> int | None:
        """The wall clock of a peer's machine in ms; None if it does not say."""
        try:
            _, said = await self._ask_once(peer, CALL_TIMEOUT)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        clock = said.get("clock")
        return clock if type(clock) is int else None

    async def _ask_once(self, peer: Peer, timeout: float) -> tuple[int, dict[str, Any]]:
        """Ask a peer's probe once: the status and the JSON object of its answer, an empty one if it refused us.

        Raises:
            aiohttp.ClientError, TimeoutError: no answer came.
            ValueError: the answer is no JSON object.
        """
        async with self._http.get(
            f"{self._scheme}://{peer.address}{PROBE_PATH}",
            ssl=self._ssl(peer),
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as answer:
            said = {} if answer.status == HTTPStatus.FORBIDDEN else await answer.json()
        if not isinstance(said, dict):
            raise ValueError(f"{peer.member} answered no JSON object")  # noqa: TRY004 - wrong input, no wrong call
        return answer.status, said

    def _ssl(self, peer: Peer) -> ssl.SSLContext | bool:
        return self._tls.client(peer.member) if self._tls else True

    async def forward(
        self, peer: Peer, method: str, key: str, *, headers: dict[str, str], body: bytes, timeout: float
    ) -> Reply:
        """Send a session call to ``peer`` and bring its answer back.

        Raises:
            PeerRefused: nobody listens there.
            PeerBroken: no complete answer came, or (``PeerUntrusted``) certificates are wrong.
        """
        try:
            async with self._http.request(
                method,
                f"{self._scheme}://{peer.address}{SESSIONS_PATH}{key}",
                ssl=self._ssl(peer),
                headers={**headers, HOP_HEADER: "1"},
                data=body,
                skip_auto_headers=("Content-Type",),
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as answer:
                content = await answer.read()
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
                if answer.status == HTTPStatus.FORBIDDEN:
                    raise PeerUntrusted(peer.member, "it does not take this process for one of the pool")
                return Reply(answer.status, kept, content)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _sorted(peer, error) from None

    async def prepare(self, peer: Peer, slots: Sequence[int]) -> None:
        """Ask ``peer`` to have the sessions of slots in memory, so that a handover is quick. Raises ``PeerError``."""
        await self._handover_call(peer, PREPARE_PATH, {"slots": list(slots)})

    async def activate(self, peer: Peer, slots: Sequence[int], revision: int) -> tuple[dict[int, Owner], int]:
        """Ask ``peer`` to become active for slots whose handover records were written at ``revision``.

        Returns the new owner record of each and their revision. Raises ``PeerError``.
        """
        said = await self._handover_call(peer, ACTIVATE_PATH, {"slots": list(slots), "revision": revision})
        try:
            owners = {slot: Owner.decode(json.dumps(said["owners"][str(slot)]).encode()) for slot in slots}
            return owners, int(said["revision"])
        except (ValueError, KeyError, TypeError) as error:
            raise PeerBroken(peer.member, f"an answer to a handover that is none: {error!r}") from None

    async def reaches_etcd(self, peer: Peer) -> bool:
        """Whether etcd answers ``peer`` now, and has not paused for it of late; False as well if it does not say."""
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
            raise PeerBroken(peer.member, f"an answer to slots given that is none: {error!r}") from None

    async def _handover_call(self, peer: Peer, path: str, body: dict[str, object]) -> dict[str, Any]:
        url = f"{self._scheme}://{peer.address}{path}"
        try:
            async with self._http.post(url, json=body, ssl=self._ssl(peer)) as answer:
                content: dict[str, Any] = await answer.json(content_type=None)
                if answer.status != 200:
                    raise PeerDeclined(peer.member, str(content.get("detail", answer.status)))
                return content
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _sorted(peer, error) from None


def _certain(peer: Peer, error: Exception) -> Life | None:
    """What a failed probe proves at once, if anything."""
    fault = trust_fault(error)
    if isinstance(fault, WrongName):
        return Life.REPLACED
    if fault is not None:
        logger.warning("%s at %s cannot be trusted: %s", peer.member, peer.address, fault)
        return Life.UNTRUSTED
    # Hanging up in the handshake, or speaking no TLS, says no more than silence.
    connected = isinstance(error, aiohttp.ClientSSLError) or isinstance(
        getattr(error, "os_error", None), (ConnectionResetError, ConnectionAbortedError)
    )
    return Life.GONE if isinstance(error, aiohttp.ClientConnectorError) and not connected else None


def _sorted(peer: Peer, error: Exception) -> PeerError:
    """A failed exchange as one of our errors. Another member at its address counts as nobody there."""
    fault = trust_fault(error)
    if fault is not None and not isinstance(fault, WrongName):
        return PeerUntrusted(peer.member, str(fault))
    if isinstance(error, aiohttp.ClientConnectorError):
        return PeerRefused(peer.member, str(error))
    return PeerBroken(peer.member, str(error) or type(error).__name__)
