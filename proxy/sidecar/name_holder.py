"""This member's record in etcd, and who holds the member's name: one living process at a time.

A process replaces only a record that it wrote itself, or the record of a process that does not answer. So a second
process of the same name takes nothing over while the first one lives. A process that was replaced while nobody could
reach it notices that, and ends.
"""

import logging
from datetime import UTC, datetime

from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.peer_protocol import ProbeResult
from understudy.statesync.etcd.client import EtcdClient, Get, Kv, ModRevision, Put
from understudy.statesync.pool.records import Member

logger = logging.getLogger(__name__)

HOLDER_TIMEOUT = 1.5
"""Seconds in which the holder of a name must answer a probe, or it counts as gone."""
_TRIES = 3
"""How often the holder is probed again when this process itself stood still during the probe."""
_WRITES = 5
"""How often one write of the record is repeated because the record was another one."""
_ANSWERS = (ProbeResult.ALIVE, ProbeResult.CUT_OFF, ProbeResult.VOID)
"""What a probe found when the holder must be taken for alive."""


class NameTaken(Exception):
    """Another living process holds this member's name; the text is for the operator."""


class NameHolder:
    """Writes the member's record for this process."""

    def __init__(self, pool: PoolView, etcd: EtcdClient, probe: PeerProbe) -> None:
        self._pool = pool
        self._me = pool.identity.me
        self._boot = pool.identity.boot
        self._etcd = etcd
        self._probe = probe
        self._key = pool.identity.keys.member(self._me)
        self._revision = 0

    @property
    def replaced(self) -> bool:
        """Whether another process has written the record since this one did, as far as the informer shows."""
        seen = self._pool.state.members.get(self._me)
        return seen is not None and seen.record.boot != self._boot and seen.revision > self._revision > 0

    async def check(self) -> None:
        """Check who holds the name before anything is written. Raises :class:`NameTaken` or ``EtcdError``."""
        found = await self._etcd.get(self._key)
        await self._pass_over((found,) if found else ())

    async def write(self, record: Member, lease: int) -> bool:
        """Write the record on a lease; False if something else kept getting in between.

        Raises:
            NameTaken: another process holds the name, and answers.
            EtcdError: as the etcd client tells it.
        """
        for _ in range(_WRITES):
            put = Put(self._key, record.encode(), lease)
            result = await self._etcd.txn([ModRevision(self._key, self._revision)], [put], [Get(self._key)])
            if result.succeeded:
                self._revision = result.revision
                return True
            await self._pass_over(result.answers[0])
        return False

    async def _pass_over(self, found: tuple[Kv, ...]) -> None:
        """Let the next write replace what was found, unless it belongs to a living process."""
        if not found:
            self._revision = 0
            return
        holder = self._read(found[0])
        if holder is not None and holder.boot != self._boot:
            await self._require_gone(holder)
        self._revision = found[0].mod_revision

    def _read(self, found: Kv) -> Member | None:
        try:
            return Member.decode(found.value)
        except ValueError as error:
            logger.warning("the value at %s is no member record and is replaced: %s", self._key, error)
            return None

    async def _require_gone(self, holder: Member) -> None:
        found = ProbeResult.VOID
        for _ in range(_TRIES):
            found = await self._probe.probe(Peer(self._me, holder.peer), holder.boot, patience=HOLDER_TIMEOUT)
            if found is not ProbeResult.VOID:
                break
        if found in _ANSWERS:
            raise NameTaken(name_taken(self._me, holder))
        logger.warning("this process takes the name %s over from %s: %s", self._me, _described(holder), found)


def name_taken(me: str, holder: Member) -> str:
    """The message for an operator whose process finds its name taken."""
    return (
        f"the member name {me!r} belongs to another process, which answers: {_described(holder)}. Stop that process, "
        "or give this one another name with --member. A process that no longer answers is replaced at the next start"
    )


def _described(holder: Member) -> str:
    since = datetime.fromtimestamp(holder.since, UTC).isoformat(sep=" ", timespec="seconds") if holder.since else "?"
    node = f" on {holder.node}" if holder.node else ""
    return f"boot {holder.boot}, peer API {holder.peer}{node}, {holder.state} since {since}"
