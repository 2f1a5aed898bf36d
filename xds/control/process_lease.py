"""The one lease of a control server process in an etcd: its leaderships and records there hang on it, in all its pools.

A lost lease means the same for each pool of this etcd: this process cannot reach it. One lease for all needs one
keepalive, however many pools there are.
"""

import asyncio
import logging

from understudy.statesync.etcd.client import EtcdClient, EtcdError, Lease
from understudy.statesync.process.services import first_of, set_within
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

LEASE_SECONDS = 5
RETRY_FIRST = 0.1
RETRY_LONGEST = 1.0


class ProcessLease:
    """A lease that is replaced when it is lost, until :meth:`end`.

    Args:
        client: the etcd client.
        ttl: seconds after which a silent process loses its lease.

    Attributes:
        ids: the leases that this process has had.
        trouble: why there is no lease; '' if there is one, or if none was asked for yet.
        ended: set when :meth:`run` has returned, and the last lease was revoked.
    """

    def __init__(self, client: EtcdClient, ttl: int = LEASE_SECONDS) -> None:
        self._client = client
        self.ttl = ttl
        self.ids: set[int] = set()
        self.trouble = ""
        self.ended = asyncio.Event()
        self._lease: Lease | None = None
        self._granted = asyncio.Event()
        self._leave = asyncio.Event()
        self._ending = False

    async def run(self) -> None:
        """Hold one lease after the other until :meth:`end`; survives every etcd error."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        self.ended.clear()
        try:
            while not self._ending:
                self._leave.clear()
                try:
                    await self._hold_one()
                    backoff.reset()
                except EtcdError as error:
                    self.trouble = str(error)
                    pause = backoff.next()
                    logger.warning("lease of this control server: %s; trying again in %.1f s", error, pause)
                    await set_within(self._leave, pause)
        finally:
            self.ended.set()

    async def _hold_one(self) -> None:
        async with self._client.lease(self.ttl) as lease:
            self.ids.add(lease.id)
            self._lease, self.trouble = lease, ""
            self._granted.set()
            try:
                await first_of(lease.lost, self._leave)
                if not self._ending:
                    # The next lease takes its keys over, if etcd still has them: a leader keeps its term.
                    lease.abandon()
            finally:
                self._granted.clear()
                self._lease = None

    async def granted(self) -> Lease:
        """The present lease; waits until there is one."""
        while self._lease is None or self._lease.lost.is_set():
            self._granted.clear()
            await self._granted.wait()
        return self._lease

    def give_up(self, lease: Lease) -> None:
        """Take another lease now: etcd does not know ``lease`` any more."""
        if self._lease is lease:
            self._leave.set()

    def end(self) -> None:
        """Revoke the lease, which removes everything on it at once, and take no other."""
        self._ending = True
        self._leave.set()
