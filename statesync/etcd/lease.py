"""A lease that keeps itself alive, and knows when it may have expired.

etcd may drop a lease ``ttl`` seconds after it received the last keepalive. The owner counts from the moment at which it
*sent* the last successful keepalive, by its own monotonic clock. So ``lost`` is set before etcd may have dropped the
lease, never after. Each keepalive is a short stream of its own, so it can go to whichever endpoint works.
"""

import asyncio
import logging
import secrets
import time
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.errors import DENIED, EtcdError, Rejected, Unavailable
from understudy.statesync.etcd.transport import Transport

SHORTEST_TTL = 5
RETRY_PAUSE = 0.1
logger = logging.getLogger(__name__)


class Lease:
    """Async context manager: granted on entry, kept alive inside, revoked on exit.

    ``id`` is what puts name; ``ttl`` is in seconds, as granted. ``lost`` is set when etcd says that the lease
    is gone, when it could be, and on exit. A lost lease does not come back: leave the block and enter a new
    one. Entry raises :class:`Unavailable`, or :class:`NoSpace` when etcd is full.
    """

    def __init__(self, transport: Transport, ttl: int) -> None:
        if ttl < SHORTEST_TTL:
            raise ValueError(f"a lease lives at least {SHORTEST_TTL} s, not {ttl} s")
        self.id = 0
        self.ttl = ttl
        self.lost = asyncio.Event()
        self._transport = transport
        self._sent = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._abandoned = False

    def abandon(self) -> None:
        """Do not revoke it on exit: its keys stay until it expires, and may be put on another lease before that."""
        self._abandoned = True

    async def __aenter__(self) -> Self:
        # The id is ours, so a grant whose answer was lost can be asked for again.
        lease_id = secrets.randbits(62) + 1
        request = rpc.LeaseGrantRequest(ID=lease_id, TTL=self.ttl)
        self._sent = time.monotonic()
        try:
            self.ttl = (await self._transport.call("lease grant", request, repeatable=True)).TTL
        except Rejected as error:
            if error.detail != "etcdserver: lease already exists":
                raise
        self.id = lease_id
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self.lost.set()
        if self._abandoned:
            return
        try:
            await self._transport.call("lease revoke", rpc.LeaseRevokeRequest(ID=self.id), repeatable=True)
        except EtcdError as failure:
            logger.debug("lease %x is left to expire: %s", self.id, failure)

    async def _keep(self) -> None:
        try:
            pause, patience = self.ttl / 3, self._transport.timeout
            while True:
                expiry = self._sent + self.ttl
                await asyncio.sleep(max(min(pause, expiry - time.monotonic()), 0))
                sent = time.monotonic()
                if sent >= expiry:
                    break
                try:
                    alive = await self._renewed(expiry, patience) or await self._renewed_after_all(expiry, patience)
                except EtcdError as error:
                    logger.debug("lease %x is not renewed yet: %s", self.id, error)
                    # A process that is itself late needs more time for each step; it must not lose the lease for that.
                    pause, patience = RETRY_PAUSE, 2 * patience
                    continue
                if not alive:
                    break
                self._sent = sent
                pause, patience = self.ttl / 3, self._transport.timeout
        finally:
            self.lost.set()

    async def _renewed(self, expiry: float, patience: float) -> bool:
        """Send one keepalive; whether etcd knows the lease. Raises :class:`Unavailable`."""
        deadline = min(expiry, time.monotonic() + patience)
        metadata = await self._transport.metadata(deadline)
        endpoint = await self._transport.connected("lease keepalive", deadline, patient=True)
        call = endpoint.keep_alive(metadata=metadata, timeout=max(deadline - time.monotonic(), 0.001))
        try:
            await call.write(rpc.LeaseKeepAliveRequest(ID=self.id))
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            await self._transport.stream_failed(endpoint, error)
            raise Unavailable("lease keepalive", endpoint.address, error.details() or "no answer") from None
        except asyncio.InvalidStateError:  # what gRPC raises for a write to a call that has ended already
            self._transport.suspect(endpoint)
            raise Unavailable("lease keepalive", endpoint.address, "the stream had ended") from None
        finally:
            call.cancel()
        if not isinstance(answer, rpc.LeaseKeepAliveResponse):
            raise Unavailable("lease keepalive", endpoint.address, "the stream ended without an answer")
        return int(answer.TTL) > 0

    async def _renewed_after_all(self, expiry: float, patience: float) -> bool:
        """Ask again after a linearizable read: a member that has just started may not have applied the grant before."""
        try:
            await self._transport.call("range", rpc.RangeRequest(key=b"\x00", count_only=True), repeatable=True)
        except Rejected as error:
            # A role that is confined to a prefix may not read this key. etcd refuses it only after it has caught up
            # with its log, so a refusal is as good as an answer.
            if error.detail != DENIED:
                raise
        return await self._renewed(expiry, patience)
