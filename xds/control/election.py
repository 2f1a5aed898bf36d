"""The election: one control server of a pool leads, and it alone writes the slot table.

The `leader` key is created by a transaction that demands its absence, on the process's one lease. The same lease
carries the server's address record. The key's create revision fences the term: every write of the leader compares it,
so a leader that was deposed and does not know it yet changes nothing. Whether this server leads is therefore only a
hint about who should try. The times here decide how soon a successor takes over, never whether two can write.
"""

import asyncio
import logging
from collections.abc import Callable

from understudy.statesync.etcd.client import CreateRevision, EtcdClient, EtcdError, Get, Lease, ModRevision, Put
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.process.services import set_within
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

LEASE_SECONDS = 5
RETRY_FIRST = 0.1
RETRY_LONGEST = 1.0


class Leadership:
    """A control server's part in the election, and its registration.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        record: name and addresses of this server; the `leader` key holds the name. Names must be unique.
        ttl: seconds after which a silent server loses its lease, and with it its leadership.

    ``on_change`` is called on the event loop whenever :attr:`is_leader` changes.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        record: ControlServer,
        *,
        ttl: int = LEASE_SECONDS,
    ) -> None:
        self._client = client
        self._keys = keys
        self._record = record
        self._ttl = ttl
        self.on_change: Callable[[], None] = lambda: None
        self._term = 0
        self._leases: set[int] = set()
        self._resigned = asyncio.Event()
        self._recheck = asyncio.Event()
        self.registered = asyncio.Event()
        self.ended = asyncio.Event()
        self.trouble = ""

    @property
    def is_leader(self) -> bool:
        """Whether this server believes that it leads. :attr:`fence` makes it safe to act on that."""
        return self._term != 0

    @property
    def term(self) -> int:
        """Create revision of the `leader` key while leading, else 0. It rises from leader to leader."""
        return self._term

    @property
    def fence(self) -> CreateRevision:
        """The compare that every write of this leader carries. Raises ``RuntimeError`` when not leading."""
        if not self._term:
            raise RuntimeError(f"control server {self._record.name!r} does not lead pool {self._keys.pool!r}")
        return CreateRevision(self._keys.leader, self._term)

    def check_again(self) -> None:
        """Read the `leader` key again now: a fenced write was refused."""
        self._recheck.set()

    async def run(self) -> None:
        """Register, stand for election and lead, again and again, until :meth:`resign`; survives every etcd error."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        self.ended.clear()
        try:
            while not self._resigned.is_set():
                await self._hold_one_lease(backoff)
        finally:
            self.ended.set()

    async def _hold_one_lease(self, backoff: Backoff) -> None:
        """Serve one lease to its end; after an error, wait."""
        try:
            async with self._client.lease(self._ttl) as lease:
                self._leases.add(lease.id)
                await self._hold_lease(lease)
                backoff.reset()
        except EtcdError as error:
            self.trouble = str(error)
            pause = backoff.next()
            logger.warning("election of pool %s: %s; trying again in %.1f s", self._keys.pool, error, pause)
            self._set_term(0)
            await self._pause(pause)
        finally:
            self._set_term(0)
            self.registered.clear()

    def resign(self) -> None:
        """Stop leading: :meth:`run` revokes the lease, which removes both keys at once, and returns."""
        self._resigned.set()

    async def _hold_lease(self, lease: Lease) -> None:
        await self._client.put(self._keys.control(self._record.name), self._record.encode(), lease=lease.id)
        self.registered.set()
        while not (lease.lost.is_set() or self._resigned.is_set()):
            self._recheck.clear()
            seen = await self._stand(lease)
            self.trouble = ""
            await self._wait_for_change(lease, seen)
        # Before the lease is revoked: that takes long while etcd is away.
        self._set_term(0)

    async def _stand(self, lease: Lease) -> int:
        """Try to get the `leader` key once; returns the etcd revision from which to watch it."""
        key = self._keys.leader
        mine = Put(key, self._record.name.encode(), lease.id)
        result = await self._client.txn([CreateRevision(key, 0)], [mine], [Get(key)])
        if result.succeeded:
            self._set_term(result.revision)
            return result.revision
        seen = result.answers[0][0]
        if seen.lease == lease.id:
            self._set_term(seen.create_revision)
        elif seen.lease in self._leases:
            # Our own former lease still holds the key: keep the term instead of waiting until the lease ends.
            same = await self._client.txn([ModRevision(key, seen.mod_revision)], [mine])
            self._set_term(seen.create_revision if same.succeeded else 0)
            if same.succeeded:
                return same.revision
        else:
            self._set_term(0)
        return result.revision

    async def _wait_for_change(self, lease: Lease, revision: int) -> None:
        """Wait until the key changes, the lease ends, a check is asked for, or the TTL has passed."""
        reasons = [
            asyncio.create_task(self._watch(revision)),
            asyncio.create_task(lease.lost.wait()),
            asyncio.create_task(self._resigned.wait()),
            asyncio.create_task(self._recheck.wait()),
        ]
        try:
            done, _ = await asyncio.wait(reasons, timeout=self._ttl, return_when=asyncio.FIRST_COMPLETED)
            for reason in done:
                reason.result()
        finally:
            for reason in reasons:
                reason.cancel()
            await asyncio.gather(*reasons, return_exceptions=True)

    async def _watch(self, revision: int) -> None:
        key = self._keys.leader
        async for batch in self._client.watch(KeyRange(key, key + "\0"), revision + 1):
            if batch.events:
                return

    def _set_term(self, term: int) -> None:
        before, self._term = self._term, term
        if before == term:
            return
        if term:
            logger.info("control server %s leads pool %s (term %d)", self._record.name, self._keys.pool, term)
        else:
            logger.info("control server %s no longer leads pool %s", self._record.name, self._keys.pool)
        self.on_change()

    async def _pause(self, seconds: float) -> None:
        await set_within(self._resigned, seconds)
