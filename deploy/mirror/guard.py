"""The home's side of ``understudy mirror``: asks the peer who is the home, beats, and fences this side if it is not.

An outage of this side is the start of this process, or 30 s without its etcd. After one it beats only when the peer, or
an operator, has said again that this side is the home.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from understudy.deploy.mirror.records import Side, set_home, take_slots, unsaved_slots
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdError, ModRevision, Put
from understudy.statesync.parsing.stored import compact_json
from understudy.statesync.pool.home import (
    CONFIRM_WITHIN,
    UNKNOWN,
    Home,
    Mirrored,
    Role,
    Tail,
    may_beat,
    outranked,
)
from understudy.statesync.pool.state import At

logger = logging.getLogger(__name__)

ASK_TIMEOUT = 1.5
SAVED_TIMEOUT = 3.0
"""Seconds for which members may save what is in memory alone, before an old home is fenced."""


class Guard:
    """Keeps a home confirmed; one per process. ``log`` makes the audit log of an act with its reason.

    ``trouble`` says why this side is not confirmed now, '' if it is. ``both``: the peer says that it is the home too.
    """

    def __init__(self, side: Side, peer: Side, log: Callable[[str], OperatorLog], boot: str) -> None:
        self._side = side
        self._peer = peer
        self._log = log
        self._boot = boot
        self._asked_at = -math.inf
        self._seen: At[Home] | None = None
        self._cut_off_until = self._heard_at = time.monotonic()
        self.trouble = ""
        self.both = False
        self._mirrored: Mirrored | None = None
        self._confirmed_at = time.monotonic()

    @property
    def unconfirmed_seconds(self) -> float:
        """Seconds since this side was last confirmed as the home, or since it became it, or since the start."""
        return time.monotonic() - self._confirmed_at

    async def look(self, at: At[Home]) -> None:
        """Once a second while this side is the home, by its record ``at``. Raises ``EtcdError`` of this side's etcd."""
        now = time.monotonic()
        if now - self._heard_at > CONFIRM_WITHIN:
            self._cut_off_until = now
        self._heard_at = now
        if self._seen is None or self._seen.record.term != at.record.term:
            self._confirmed_at = now
        if self._seen is not None and self._seen.revision != at.revision:
            self._asked_at = now  # an operator has changed the record just now
        self._seen = at
        peer = await self._ask()
        self.both = peer is not None and peer.record.role is Role.HOME
        if peer is not None and outranked(at.record, peer.record):
            await self.fence(at, peer.record)
            return
        if peer is not None and at.record.lost_writes == UNKNOWN:
            await self._count_loss(at, peer.record)
        if may_beat(at.record, asked_at=self._asked_at, cut_off_until=self._cut_off_until, now=time.monotonic()):
            await self._beat(at)

    async def _ask(self) -> At[Home] | None:
        try:
            peer = await self._peer.home(timeout=ASK_TIMEOUT)
        except EtcdError as error:
            if not self.trouble:
                logger.warning("site %s cannot be asked who is the home: %s", self._peer.name, error)
            self.trouble = str(error)
            return None
        if peer is None:  # its etcd may have been replaced: what it was is not known
            self.trouble = f"etcd of site {self._peer.name} has no home record"
            return None
        self._asked_at, self.trouble = time.monotonic(), ""
        self._mirrored = await self._progress(peer)
        return peer

    async def _progress(self, peer: At[Home]) -> Mirrored | None:
        """How far the mirror has come, for the beat; None if the peer is no mirror, or does not say."""
        if peer.record.role is not Role.MIRROR:
            return None
        try:
            return await self._peer.mirrored(timeout=ASK_TIMEOUT)
        except EtcdError:
            return None

    async def _beat(self, at: At[Home]) -> None:
        keys = self._side.keys
        said: dict[str, object] = {"at": time.time(), "term": at.record.term}
        if self._mirrored is not None:
            said["mirrored"] = msgspec.to_builtins(self._mirrored)
        beat = Put(keys.home_beat, compact_json(said))
        if (await self._side.client.txn([ModRevision(keys.home, at.revision)], [beat])).succeeded:
            self._confirmed_at = time.monotonic()

    async def fence(self, at: At[Home], peer: Home) -> At[Home]:
        """The peer has become the home of a later term: from now on nothing is written on this side.

        Members that run may have writes in memory alone. They save them first, so that the tail has them.
        """
        side = self._side
        logger.error("site %s is the home since term %d: site %s is fenced", peer.site, peer.term, side.name)
        log = self._log(f"site {peer.site} is the home of term {peer.term}")
        if at.record.role is not Role.CLOSING:
            closing = replace(at.record, role=Role.CLOSING, since=time.time())
            at = await set_home(side, at, closing, log, Act("home closes", f"site {side.name}"))
        await saved(side, SAVED_TIMEOUT)
        fenced = replace(
            at.record, role=Role.FENCED, term=peer.term, since=time.time(), tail=Tail.PENDING, lost_writes=UNKNOWN
        )
        at = await set_home(side, at, fenced, log, Act("home fenced", f"site {side.name}, term {peer.term}"))
        await take_slots(side, at, await side.slots(), boot=self._boot, epoch=1, now=time.time())
        return at

    async def _count_loss(self, at: At[Home], peer: Home) -> None:
        """The old home has counted what was lost: note it here, where people look."""
        if peer.term != at.record.term or peer.tail is not Tail.KEPT:
            return
        lost = f"{peer.lost_writes} writes to {peer.lost_sessions} sessions, kept at site {peer.site} in {peer.file}"
        counted = replace(at.record, lost_writes=peer.lost_writes, lost_sessions=peer.lost_sessions)
        act = Act("take-over counted", f"lost: {lost}")
        self._seen = await set_home(self._side, at, counted, self._log("the old home is back"), act)
        logger.warning("the take-over of term %d lost %s", at.record.term, lost)


async def saved(side: Side, timeout: float) -> list[int]:
    """Wait until etcd has every acknowledged write, at most ``timeout`` seconds; returns slots of which it may not."""
    give_up = time.monotonic() + timeout
    while (left := await unsaved_slots(side)) and time.monotonic() < give_up:  # noqa: ASYNC110 - etcd's records
        await asyncio.sleep(0.1)
    return left
