"""The election: one control server of a pool leads, and it alone writes the slot table.

The `leader` key is created by a transaction that demands its absence, on the process's one lease
(:mod:`understudy.xds.control.process_lease`). The same lease carries the server's address record. The key's create
revision fences the term: every write of the leader compares it, so a leader that was deposed and does not know it yet
changes nothing. Whether this server leads is therefore only a hint about who should try. The times here decide how soon
a successor takes over, never whether two can write.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from understudy.statesync.etcd.client import (
    CreateRevision,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    Lease,
    LeaseNotFound,
    ModRevision,
    Put,
)
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.process.services import first_of, set_within
from understudy.telemetry.timing.backoff import Backoff
from understudy.xds.control.process_lease import RETRY_FIRST, RETRY_LONGEST, ProcessLease

logger = logging.getLogger(__name__)


def at_once(_: str) -> float:
    """The default of ``standing_delay``: nobody is given precedence."""
    return 0.0


class Leadership:
    """A control server's part in the election of one pool, and its registration there.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        record: name and addresses of this server; the `leader` key holds the name. Names must be unique.
        lease: the lease of this process.
        standing_delay: seconds to wait before this server stands after the leader of this name has gone, so that
            another server may lead.

    ``on_change`` is called on the event loop whenever :attr:`is_leader` changes.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        record: ControlServer,
        lease: ProcessLease,
        *,
        standing_delay: Callable[[str], float] = at_once,
    ) -> None:
        self._client = client
        self._keys = keys
        self._record = record
        self._lease = lease
        self._standing_delay = standing_delay
        self.on_change: Callable[[], None] = lambda: None
        self._term = 0
        self._leader = ""
        self._vacant = False
        self._resigned = asyncio.Event()
        self._recheck = asyncio.Event()
        self._hand_over = asyncio.Event()
        self.registered = asyncio.Event()
        self.ended = asyncio.Event()
        self._trouble = ""

    @property
    def is_leader(self) -> bool:
        """Whether this server believes that it leads. :attr:`fence` makes it safe to act on that."""
        return self._term != 0

    @property
    def term(self) -> int:
        """Create revision of the `leader` key while leading, else 0. It rises from leader to leader."""
        return self._term

    @property
    def trouble(self) -> str:
        """Why this server cannot take part in the election now; '' if it can."""
        return self._trouble or self._lease.trouble

    @property
    def fence(self) -> CreateRevision:
        """The compare that every write of this leader carries. Raises ``RuntimeError`` when not leading."""
        if not self._term:
            raise RuntimeError(f"control server {self._record.name!r} does not lead pool {self._keys.pool!r}")
        return CreateRevision(self._keys.leader, self._term)

    def check_again(self) -> None:
        """Read the `leader` key again now: a fenced write was refused."""
        self._recheck.set()

    def hand_over(self) -> None:
        """Stop leading, and let another server stand first."""
        self._hand_over.set()

    async def run(self) -> None:
        """Register, stand for election and lead, with each lease of the process, until :meth:`resign`.

        Survives every etcd error.
        """
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        self.ended.clear()
        try:
            while not self._resigned.is_set():
                lease = await self._next_lease()
                if lease is not None:
                    await self._use_lease(lease, backoff)
        finally:
            self.ended.set()

    async def _next_lease(self) -> Lease | None:
        """The lease of this process; None once this server has resigned."""
        granted, resigned = asyncio.create_task(self._lease.granted()), asyncio.create_task(self._resigned.wait())
        try:
            await asyncio.wait((granted, resigned), return_when=asyncio.FIRST_COMPLETED)
            return granted.result() if granted.done() else None
        finally:
            for task in (granted, resigned):
                task.cancel()

    async def _use_lease(self, lease: Lease, backoff: Backoff) -> None:
        """Hang this server's part on one lease until that ends, or until an error, after which it waits."""
        try:
            await self._hold_lease(lease, backoff)
            if self._resigned.is_set() and not lease.lost.is_set():
                await self._withdraw()
        except EtcdError as error:
            self._set_term(0)
            if isinstance(error, LeaseNotFound):
                self._lease.give_up(lease)
            self._trouble = str(error)
            pause = backoff.next()
            logger.warning("election of pool %s: %s; trying again in %.1f s", self._keys.pool, error, pause)
            await set_within(self._resigned, pause)
        finally:
            self._set_term(0)
            self.registered.clear()

    def resign(self) -> None:
        """Stop leading: :meth:`run` removes both keys of this server, and returns."""
        self._resigned.set()

    async def _hold_lease(self, lease: Lease, backoff: Backoff) -> None:
        await self._client.put(self._keys.control(self._record.name), self._record.encode(), lease=lease.id)
        self.registered.set()
        while not (lease.lost.is_set() or self._resigned.is_set()):
            self._recheck.clear()
            seen = await self._stand(lease)
            self._trouble = ""
            backoff.reset()
            await self._wait_for_change(lease, seen)
            if self._hand_over.is_set():
                await self._give_leadership_away()

    async def _withdraw(self) -> None:
        """Remove what this server has in the pool; its lease stays, since other pools are on it."""
        fence, own = self.fence if self.is_leader else None, Delete(self._keys.control(self._record.name))
        self._set_term(0)
        if fence is not None:
            await self._client.txn([fence], [Delete(self._keys.leader), own], [own])
        else:
            await self._client.txn([], [own])

    async def _give_leadership_away(self) -> None:
        self._hand_over.clear()
        if not self.is_leader:
            return
        fence = self.fence
        self._set_term(0)
        await self._client.txn([fence], [Delete(self._keys.leader)])
        self._vacant = True
        logger.info("control server %s hands pool %s over", self._record.name, self._keys.pool)

    async def _stand(self, lease: Lease) -> int:
        """Try to get the `leader` key once; returns the etcd revision from which to watch it."""
        key = self._keys.leader
        mine = Put(key, self._record.name.encode(), lease.id)
        await self._let_others_stand(lease)
        result = await self._client.txn([CreateRevision(key, 0)], [mine], [Get(key)])
        if result.succeeded:
            self._leader = self._record.name
            self._set_term(result.revision)
            return result.revision
        seen = result.answers[0][0]
        self._leader = seen.value.decode(errors="replace")
        if seen.lease == lease.id:
            self._set_term(seen.create_revision)
        elif seen.lease in self._lease.ids:
            # Our own former lease still holds the key: keep the term instead of waiting until the lease ends.
            same = await self._client.txn([ModRevision(key, seen.mod_revision)], [mine])
            self._set_term(seen.create_revision if same.succeeded else 0)
            if same.succeeded:
                return same.revision
        else:
            self._set_term(0)
        return result.revision

    async def _let_others_stand(self, lease: Lease) -> None:
        """If nobody leads any more, wait for as long as others have precedence."""
        vacant, self._vacant = self._vacant, False
        if not vacant or self.is_leader:
            return
        delay = self._standing_delay(self._leader)
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await first_of(lease.lost, self._resigned)

    async def _wait_for_change(self, lease: Lease, revision: int) -> None:
        """Wait until the key changes, the lease ends, a check or a handover is asked for, or the TTL has passed."""
        reasons = [
            asyncio.create_task(self._watch(revision)),
            asyncio.create_task(lease.lost.wait()),
            asyncio.create_task(self._resigned.wait()),
            asyncio.create_task(self._recheck.wait()),
            asyncio.create_task(self._hand_over.wait()),
        ]
        try:
            done, _ = await asyncio.wait(reasons, timeout=self._lease.ttl, return_when=asyncio.FIRST_COMPLETED)
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
                self._vacant = batch.events[-1].kind == "delete"
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
