"""Keeps this process out of an etcd that was given up: another site went on without it (``understudy site take-over``).

Members on other sites say how many take-overs they know. If that is more than etcd says, then this etcd is the one of
before. Its data is old, and whatever is written there is lost. So this process neither starts nor goes on, until it
reaches the etcd that counts. If no member of another site can be asked, nothing is known, and it serves.
"""

import asyncio
import logging
import random
from collections.abc import Mapping

from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import Member
from understudy.statesync.pool.site_records import SiteTakeOver

logger = logging.getLogger(__name__)

POLL_INTERVAL = 2.0
ASK_TIMEOUT = 1.0
MOST_ASKED = 4
"""Members that are asked at once: all of a site know the same."""


class TakeOverWatch:
    """Asks the members of other sites; one per process.

    ``given_up`` is set once this process must not go on, and ``reason`` says why.
    """

    def __init__(self, pool: PoolView, etcd: EtcdClient, client: PeerClient) -> None:
        self._pool = pool
        self._etcd = etcd
        self._client = client
        self.given_up = asyncio.Event()
        self.reason = ""

    async def before_start(self) -> str:
        """Why this process must not start, '' if it may. Raises ``EtcdError``."""
        found = await self._etcd.range(prefix_range(self._pool.identity.keys.members))
        members = {}
        for kv in found.kvs:
            try:
                record = Member.decode(kv.value)
            except ValueError:
                continue
            members[record.member] = record
        return await self.fault(members)

    async def run(self) -> None:
        """Ask every two seconds until cancelled."""
        while not self.given_up.is_set():
            await asyncio.sleep(POLL_INTERVAL)
            self.reason = await self.fault(self._pool.known)
            if self.reason:
                logger.error("%s", self.reason)
                self.given_up.set()
        await asyncio.Event().wait()

    async def fault(self, members: Mapping[str, Member]) -> str:
        """Why this process must not serve, as one of ``members`` says; '' if none knows a later take-over."""
        own = self._pool.identity.site
        elsewhere = [Peer(name, one.peer) for name, one in sorted(members.items()) if own and one.site not in ("", own)]
        asked = random.sample(elsewhere, min(len(elsewhere), MOST_ASKED))
        answers = await asyncio.gather(*(self._client.ask(peer, ASK_TIMEOUT) for peer in asked))
        said = [(one.generation, peer.member) for one, peer in zip(answers, asked, strict=True)]
        known, who = max(said, default=(0, ""))
        if known <= self._pool.state.generation:
            return ""
        try:
            here = await self._in_etcd()
        except EtcdError:
            return ""  # nothing can be written there
        return "" if here >= known else _given_up(members[who], known, here)

    async def _in_etcd(self) -> int:
        kv = await self._etcd.get(self._pool.identity.keys.take_over)
        return SiteTakeOver.generation_in(kv.value if kv else None)


def _given_up(peer: Member, known: int, here: int) -> str:
    return (
        f"site {peer.site} has taken over without this etcd: {peer.member} knows of {known} take-overs, and this etcd "
        f"of {here}. What is written here would be lost. Stop the members of etcd on this site, delete their data, and "
        f"add them to the etcd of site {peer.site} (docs/sites.md)"
    )
