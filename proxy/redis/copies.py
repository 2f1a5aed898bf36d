"""``WAIT``: how many other members have what a connection has written.

In a replicated slot those are the others of its sync set: they have every acknowledged write. In other slots a write
that was acknowledged is on the disks of most of etcd, whatever this says. The members that hold copies of its slot read
it from etcd's watch, usually some milliseconds later; from then on they can take the slot over at once.
"""

import asyncio
import time
from collections.abc import Sequence

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_protocol import PeerError
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.ownership import agreed_set, is_replicated, standbys_of
from understudy.statesync.redis.command import NOT_AN_INTEGER
from understudy.statesync.redis.reply import RedisError

WAIT_MOST = 60.0
"""Seconds; ``WAIT n 0`` would wait for ever in Redis."""
ASK_AGAIN = 0.05


class CopyCount:
    """Counts the copies of slots; one per port."""

    def __init__(self, pool: PoolView, etcd: EtcdClient, client: PeerClient) -> None:
        self._pool = pool
        self._etcd = etcd
        self._client = client

    async def wait(self, args: Sequence[bytes], written: str | None) -> object:
        """The answer to ``WAIT``; ``written`` is the key that the connection wrote last. Raises ``EtcdError``."""
        if not all(arg.removeprefix(b"-").isdigit() for arg in args):
            return NOT_AN_INTEGER
        wanted, timeout = (int(arg) for arg in args)
        if timeout < 0:
            return RedisError("ERR timeout is negative")
        spec = self._pool.spec
        if spec is None or written is None:
            return len(self._pool.others())
        slot = spec.slot_of_key(written)
        view = self._pool.view()
        owner, at = view.owner(slot), view.sync_sets.get(slot)
        if owner is not None and is_replicated(owner, at):
            return len(agreed_set(owner, at).members) - 1
        revision = (await self._etcd.range(prefix_range(self._pool.identity.keys.spec))).revision
        holders = standbys_of(view, slot)
        until = time.monotonic() + (min(timeout / 1000, WAIT_MOST) or WAIT_MOST)
        while True:
            having = await asyncio.gather(*(self._has(member, revision) for member in holders))
            if sum(having) >= min(wanted, len(holders)) or time.monotonic() >= until:
                return sum(having)
            await asyncio.sleep(ASK_AGAIN)

    async def _has(self, member: str, revision: int) -> bool:
        """Whether a member has every write up to a revision in memory."""
        if member == self._pool.identity.me:
            return True
        peer = self._pool.peer(member)
        try:
            return peer is not None and await self._client.applied(peer, revision) >= revision
        except PeerError:
            return False
