"""``understudy mirror``: one process on each side of a pool, which does what its side's role asks for.

It writes to the etcd of its own side only; that of the peer is read.

======== =====================================================================================================
mirror   copies the pool from the home
home     asks the peer who is the home, beats, and fences this side if the peer has become it
fenced   keeps the tail in a file, and makes this side the mirror
none     makes an empty side the mirror, if the peer's record names it
======== =====================================================================================================
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.operator import this_operator
from understudy.deploy.inspect.query import connect
from understudy.deploy.mirror.copier import Copier, RoleChanged
from understudy.deploy.mirror.guard import Guard
from understudy.deploy.mirror.metrics import metrics_of
from understudy.deploy.mirror.records import HomeChanged, Side, set_home, take_slots
from understudy.deploy.mirror.tail import write_tail
from understudy.proxy.peers.sync_api import metrics_app
from understudy.proxy.sidecar.listen import listen
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdError, Put
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.home import BEAT_INTERVAL, Home, Mirrored, Role, Tail, outranked
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import At
from understudy.telemetry.metrics.phase_metrics import expose
from understudy.telemetry.tracing.setup import service_version

logger = logging.getLogger(__name__)


class MirrorSettings(msgspec.Struct, frozen=True):
    """How the process is started. ``tails`` is the directory for the tails of this side.

    ``metrics`` is where it listens for Prometheus, '' for nowhere.
    """

    pool: str
    site: str
    etcd: EtcdSettings
    peer: str
    peer_etcd: EtcdSettings
    tails: Path
    metrics: str = ""


async def run_mirror(settings: MirrorSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit code is 0. Raises :class:`DeployError` if it cannot start."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_mirror(settings) as mirror, contextlib.AsyncExitStack() as stack:
        if settings.metrics:
            runner = await serve(stack, metrics_app(partial(expose, metrics_of(mirror, settings.pool))))
            await listen(runner, settings.metrics, "the metrics port")
        logger.info("mirror of pool %s: site %s, peer %s", settings.pool, settings.site, settings.peer)
        work = asyncio.create_task(mirror.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stopping):
            task.cancel()
        await asyncio.wait({work, stopping})
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
    return 0


@contextlib.asynccontextmanager
async def running_mirror(settings: MirrorSettings) -> AsyncIterator["MirrorProcess"]:
    """The process with its connections."""
    keys = PoolKeys(settings.pool)
    async with connect(settings.etcd) as own, connect(settings.peer_etcd) as peer:
        yield MirrorProcess(settings, Side(settings.site, own, keys), Side(settings.peer, peer, keys))


class MirrorProcess:
    """Acts by the role of its side, which ``home`` says. ``copier`` is there while it copies.

    ``sites`` are the names of this side and of its peer.
    """

    def __init__(self, settings: MirrorSettings, side: Side, peer: Side) -> None:
        self._settings = settings
        self._side = side
        self._peer = peer
        self.sites = (side.name, peer.name)
        self._boot = f"mirror-{secrets.token_hex(8)}"
        self.guard = Guard(side, peer, self._log, self._boot)
        self.copier: Copier | None = None
        self.home: Home | None = None

    def _log(self, why: str) -> OperatorLog:
        actor = this_operator("mirror", self._settings.etcd)
        return OperatorLog(self._side.client, self._side.keys, actor, why)

    async def run(self) -> None:
        """Act until cancelled. Raises :class:`DeployError` if this side cannot be the mirror."""
        said = ""
        while True:
            try:
                at = await self._side.home()
                if at is not None and at.record.site != self._side.name:
                    raise DeployError(
                        f"etcd of --site {self._side.name} belongs to site {at.record.site}, by its home record: "
                        "check --site, --etcd and --peer"
                    )
                self.home = at.record if at is not None else None
                await self._act(at)
                said = ""
            except HomeChanged:
                continue
            except EtcdError as error:
                if str(error) != said:
                    logger.warning("mirror of pool %s: %s", self._settings.pool, error)
                said = str(error)
            await asyncio.sleep(BEAT_INTERVAL)

    async def _act(self, at: At[Home] | None) -> None:
        if at is None:
            await self._join()
            return
        match at.record.role:
            case Role.HOME:
                await self.guard.look(at)
            case Role.MIRROR:
                await self._copy(at)
            case Role.FENCED:
                await self._become_mirror(at)
            case Role.CLOSING:
                await self._fence_if_outranked(at)
            case _:
                pass

    async def _fence_if_outranked(self, at: At[Home]) -> None:
        peer = await self._peer.home()
        if peer is not None and outranked(at.record, peer.record):
            await self.guard.fence(at, peer.record)

    async def _join(self) -> None:
        """Make a side without sessions the mirror, if the peer's record names it."""
        side, peer = self._side, await self._peer.home()
        if peer is None or peer.record.role is not Role.HOME:
            return
        if peer.record.peer != side.name:
            raise DeployError(f"the mirror of site {self._peer.name} is site {peer.record.peer}, not {side.name}")
        if (await side.client.range(prefix_range(side.keys.sessions), limit=1)).kvs:
            raise DeployError(
                f"etcd of site {side.name} has sessions of a pool {side.keys.pool!r} of its own: "
                "delete it ('understudy pools delete'), or give this side an empty etcd"
            )
        home = Home(side.name, Role.MIRROR, peer.record.site, peer.record.term, time.time(), "mirror")
        home = replace(home, on_peer_lost=peer.record.on_peer_lost)
        act = Act("mirror begins", f"site {side.name}, of site {peer.record.site}")
        at = await set_home(side, None, home, self._log("this side had no sessions"), act)
        if await side.client.get(side.keys.spec):  # members may own slots already
            await take_slots(side, at, await side.slots(), boot=self._boot, epoch=1, now=time.time())

    async def _copy(self, at: At[Home]) -> None:
        """Copy until the record changes."""
        self.copier = Copier(self._side.client, self._peer.client, self._side.keys, at)
        copying = asyncio.create_task(self.copier.run())
        try:
            while not copying.done():
                await asyncio.wait({copying}, timeout=BEAT_INTERVAL)
                with contextlib.suppress(EtcdError):
                    now = await self._side.home()
                    if now is None or now.revision != at.revision:
                        break
        finally:
            copying.cancel()
            await asyncio.wait({copying})
            self.copier = None
        if not copying.cancelled() and (error := copying.exception()) and not isinstance(error, RoleChanged):
            raise error

    async def _become_mirror(self, at: At[Home]) -> None:
        """Keep the tail if there is one. Then copy from the new home, once it is there."""
        side, found = self._side, await self._peer.home()
        peer = found.record if found else None
        if peer is None or peer.role is not Role.HOME or peer.term < at.record.term or peer.peer != side.name:
            return
        if at.record.tail is Tail.PENDING or not (peer.planned or at.record.tail is Tail.KEPT):
            at = await self._keep_tail(at, peer)
        home = replace(at.record, role=Role.MIRROR, term=peer.term, since=time.time())
        act = Act("mirror begins", f"site {side.name}, of site {peer.site}")
        anew = Put(side.keys.mirrored, Mirrored(0).encode())
        await set_home(side, at, home, self._log(f"site {peer.site} is the home of term {peer.term}"), act, anew)

    async def _keep_tail(self, at: At[Home], peer: Home) -> At[Home]:
        side = self._side
        # Again, since an interruption may have left some: no session is written after the last of these records.
        until = await take_slots(side, at, await side.slots(), boot=self._boot, epoch=1, now=time.time())
        path = self._settings.tails.absolute() / f"{side.keys.pool}-{side.name}-term{at.record.term}.jsonl"
        counted = await write_tail(side, peer.applied, until, path, service_version())
        kept = replace(
            at.record,
            tail=Tail.KEPT,
            file=str(path),
            lost_writes=counted.writes,
            lost_sessions=counted.sessions,
        )
        known = "" if counted.every_write else "; etcd has compacted its history, so only the newest of each is counted"
        detail = f"{counted.writes} writes to {counted.sessions} sessions in {path}{known}"
        logger.warning("tail of pool %s kept: %s", side.keys.pool, detail)
        return await set_home(
            side, at, kept, self._log(f"site {peer.site} does not have them"), Act("tail kept", detail)
        )
