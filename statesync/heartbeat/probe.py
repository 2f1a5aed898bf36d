"""One question to a member's peer API: is a process there, and which one? Sidecars and control servers ask it.

The caller decides what follows from the answer, and how many tries without one count.
"""

import errno
import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus

import aiohttp
import msgspec

from understudy.statesync.parsing.stored import read_object
from understudy.statesync.tls.peer_tls import PeerTls, WrongName, trust_fault

logger = logging.getLogger(__name__)

PROBE_PATH = "/peer/v1/probe"
GENERATION = "take_overs"
"""The key of an answer with the number of forced take-overs of etcd that the peer knows (``site take-over``)."""
_LARGEST_ANSWER = 65536


class TryResult(StrEnum):
    """What one try found. A certificate that is wrong on one side proves neither life nor death."""

    ANSWERED = "it answered"
    FORBIDDEN = "it does not accept this process as one of its pool"
    UNTRUSTED = "certificates are wrong"
    OTHER_MEMBER = "another member answers"
    REFUSED = "connection refused"
    UNREACHABLE = "no connection"
    BROKEN = "it ended the connection in the handshake"
    SILENT = "no answer, or none that can be used"


class Try(msgspec.Struct, frozen=True):
    """One try: how many seconds it took, and what the peer said if it answered."""

    found: TryResult
    seconds: float
    said: Mapping[str, object] = msgspec.field(default_factory=dict)

    @property
    def boot(self) -> str:
        """The boot id of the process that answered; '' if it did not say."""
        boot = self.said.get("boot")
        return boot if isinstance(boot, str) else ""

    @property
    def generation(self) -> int:
        """How many forced take-overs of etcd the peer knows; 0 if it did not say."""
        known = self.said.get(GENERATION)
        return known if type(known) is int else 0


async def ask(session: aiohttp.ClientSession, address: str, member: str, tls: PeerTls | None, timeout: float) -> Try:
    """Ask the peer API of ``member`` at ``address`` (``host:port``) once, and wait at most ``timeout`` seconds."""
    began, said = time.monotonic(), dict[str, object]()
    ssl, scheme = (tls.client(member), "https") if tls else (True, "http")
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with session.get(f"{scheme}://{address}{PROBE_PATH}", ssl=ssl, timeout=limit) as answer:
            if answer.status == HTTPStatus.FORBIDDEN:
                found = TryResult.FORBIDDEN
                logger.warning("%s at %s does not accept this process as one of its pool", member, address)
            else:
                said = answer_in(await answer.content.read(_LARGEST_ANSWER))
                found = TryResult.ANSWERED if said and answer.status == HTTPStatus.OK else TryResult.SILENT
    except (aiohttp.ClientError, OSError, ValueError) as error:
        found = _found_by(error)
        if found is TryResult.UNTRUSTED:
            logger.warning("%s at %s cannot be trusted: %s", member, address, trust_fault(error))
    return Try(found, time.monotonic() - began, said)


def answer_in(body: bytes) -> dict[str, object]:
    """The JSON object of an answer; an empty one if there is none."""
    try:
        return dict(read_object(body))
    except ValueError:
        return {}


def _found_by(error: Exception) -> TryResult:
    fault = trust_fault(error)
    if fault is not None:
        return TryResult.OTHER_MEMBER if isinstance(fault, WrongName) else TryResult.UNTRUSTED
    if not isinstance(error, aiohttp.ClientConnectorError):
        return TryResult.SILENT
    if error.os_error.errno == errno.ECONNREFUSED:
        return TryResult.REFUSED
    # A peer that hangs up in the handshake, or speaks no TLS, is there.
    there = isinstance(error, aiohttp.ClientSSLError) or isinstance(
        error.os_error, (ConnectionResetError, ConnectionAbortedError)
    )
    return TryResult.BROKEN if there else TryResult.UNREACHABLE
