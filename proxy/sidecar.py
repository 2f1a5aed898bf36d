"""The sidecar: puts the member's parts together, starts them in order and stops them in reverse.

On SIGTERM it drains first: it says so, hands its slots over (by the new table, or to the next in line if none comes),
goes on answering meanwhile, and leaves when it owns nothing or after ``drain_seconds``.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from proxy.checks import ApplicationCheck
from proxy.context import MemberContext
from proxy.first_answer import FirstAnswers
from proxy.holdings import Holdings
from proxy.member import Presence, state_of
from proxy.owner_calls import OwnerCalls
from proxy.peer_api import peer_app
from proxy.peers import PeerClient
from proxy.read_deadline import ReadDeadline
from proxy.roles import Roles
from proxy.service import SessionService
from proxy.session_api import session_app
from statesync.commit import Committer
from statesync.etcd import EtcdClient
from statesync.keys import PoolKeys
from statesync.mirror import Mirror, MirrorBatch
from statesync.ownership import FailoverLog
from statesync.pool import Member, MemberState
from statesync.replica import Replica
from statesync.settings import EtcdMissing, EtcdSettings, await_etcd
from statesync.state import Changed, PoolState
from telemetry.names import SERVICE_SIDECAR
from telemetry.setup import Telemetry, service_version, start_telemetry

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """The sidecar cannot start; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """What a sidecar is told at start.

    ``session_api`` is ``host:port`` or ``unix:/path``; ``peer`` is where it listens for other sidecars, and
    ``advertise`` what they are told (the same, unless given); ``app`` is where the application listens.
    """

    member: str
    pool: str
    app: str
    session_api: str = "127.0.0.1:7600"
    peer: str = "127.0.0.1:7601"
    advertise: str = ""
    app_health: str = "/healthz"
    site: str = ""
    weight: int = 10
    priority: int = 1
    drain_seconds: float = 10.0
    etcd: EtcdSettings = field(default_factory=EtcdSettings)


async def run_sidecar(settings: SidecarSettings) -> int:
    """Run a sidecar until SIGTERM or SIGINT; returns the process's exit code (2: could not start)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with running_sidecar(settings) as sidecar:
            logger.info("sidecar of %s: session API on %s", settings.member, settings.session_api)
            await stop.wait()
            await sidecar.drain()
    except (CannotStart, EtcdMissing) as error:
        logger.error("sidecar of %s cannot start: %s", settings.member, error)  # noqa: TRY400 - one line is the point
        return 2
    return 0


@dataclass(slots=True)
class Sidecar:
    """A running sidecar."""

    settings: SidecarSettings
    context: MemberContext
    roles: Roles
    presence: Presence
    check: ApplicationCheck
    reads: ReadDeadline
    service: SessionService

    def state(self) -> tuple[MemberState, str]:
        """How the member is now."""
        context = self.context
        roles = bool(len(context.holdings)) or bool(context.view().table.slots_held_by(context.me))
        return state_of(
            draining=self.roles.draining,
            fault=self.check.reason or self.reads.fault,
            synced=context.mirror.synced.is_set() and context.state.spec is not None,
            has_roles=roles,
        )

    def status(self) -> tuple[dict[str, object], bool]:
        """The member's view of itself for ``/v1/status``, and whether it is ready."""
        context = self.context
        state, reason = self.state()
        commits = context.committer.stats
        view: dict[str, object] = {
            "member": context.me,
            "pool": context.keys.pool,
            "boot": context.boot,
            "state": state,
            "reason": reason,
            "active": sorted(context.holdings.slots),
            "held": len(context.replica.held),
            "in_sync": len(context.replica.synced),
            "sessions": context.replica.count(context.replica.held),
            "applied_revision": context.mirror.revision,
            "queued_writes": context.committer.queued,
            "committed_writes": commits.writes,
            "transactions": commits.transactions,
            "resent_transactions": commits.resent,
            "forwarded_calls": self.service.forwarded,
            "trouble": self.roles.trouble or context.mirror.trouble,
        }
        return view, state in (MemberState.READY, MemberState.UP)

    async def drain(self) -> None:
        """Hand every slot over and return when none is left, or when ``drain_seconds`` have passed."""
        self.roles.draining = True
        self.presence.stir()
        give_up = time.monotonic() + self.settings.drain_seconds
        while len(self.context.holdings) and time.monotonic() < give_up:
            self.roles.wake()
            others = (at.record for member, at in self.context.state.members.items() if member != self.context.me)
            if not any(other.state.may_hold_slots for other in others):
                logger.warning("nobody is left to take %d slots over", len(self.context.holdings))
                return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running_sidecar(settings: SidecarSettings) -> AsyncIterator[Sidecar]:
    """A sidecar that serves inside the block. Raises :class:`CannotStart` or ``EtcdMissing``."""
    async with contextlib.AsyncExitStack() as stack:
        etcd = settings.etcd.client()
        stack.push_async_callback(etcd.close)
        peers = PeerClient()
        stack.push_async_callback(peers.close)
        telemetry = start_telemetry(SERVICE_SIDECAR, settings.member, endpoint=None)
        stack.push_async_callback(telemetry.aclose)
        parts = _Assembly(settings, etcd, peers, telemetry)
        sidecar = parts.sidecar
        session_runner = await _serve(stack, session_app(parts.service, sidecar.status))
        peer_runner = await _serve(stack, peer_app(parts.context, parts.service, parts.roles.handover, parts.reads))
        await _listen(peer_runner, settings.peer, "the peer API")
        await _listen(session_runner, settings.session_api, "the session API")
        await await_etcd(etcd, settings.etcd)
        for name, work in {
            "group commit": parts.context.committer.run(),
            "ownership": parts.roles.run(),
            "read deadline": parts.reads.run(),
            "sweeping": parts.service.sweep(),
            "application check": parts.check.run(),
            "mirror": parts.context.mirror.run(),
            "member record": parts.presence.run(),
            "heartbeats": parts.presence.beat(),
        }.items():
            await _keep_running(stack, work, name)
        yield sidecar


class _Assembly:
    """Builds the parts of one sidecar, whose callbacks need one another."""

    def __init__(self, settings: SidecarSettings, etcd: EtcdClient, peers: PeerClient, telemetry: Telemetry) -> None:
        keys = PoolKeys(settings.pool)
        boot = secrets.token_hex(8)
        self.telemetry = telemetry
        self.context = MemberContext(
            me=settings.member,
            boot=boot,
            keys=keys,
            etcd=etcd,
            state=PoolState(keys),
            mirror=Mirror(etcd, keys.without_sessions, self._on_batch, watched=(keys.everything,)),
            replica=Replica(etcd, keys),
            holdings=Holdings(),
            committer=Committer(etcd, keys, settings.member, boot),
            peers=peers,
            telemetry=telemetry,
            first_answers=FirstAnswers(telemetry, settings.pool, settings.member),
            failovers=FailoverLog(keys, settings.member),
        )
        self.roles = Roles(self.context)
        self.reads = ReadDeadline(self.context, self.roles.on_batch, self._on_check)
        self.check = ApplicationCheck(settings.app, settings.app_health, self._on_check)
        self.presence = Presence(self.context, _record(settings, boot), self._state)
        self.service = SessionService(self.context, self.roles, OwnerCalls(self.context, self.reads))
        self.sidecar = Sidecar(settings, self.context, self.roles, self.presence, self.check, self.reads, self.service)

    def _on_batch(self, batch: MirrorBatch) -> None:
        changed = self.roles.on_batch(batch)
        if changed & Changed.CONTROLS:
            self.telemetry.set_endpoints([at.record.grpc for at in self.context.state.controls.values()])
        if changed:
            self.presence.stir()

    def _on_check(self) -> None:
        self.presence.stir()

    def _state(self) -> tuple[MemberState, str]:
        return self.sidecar.state()


def _record(settings: SidecarSettings, boot: str) -> Member:
    return Member(
        settings.member,
        boot,
        settings.app,
        settings.advertise or settings.peer,
        MemberState.INIT,
        site=settings.site,
        weight=settings.weight,
        priority=settings.priority,
        reason="starting",
        since=time.time(),
        version=service_version(),
    )


async def _serve(stack: contextlib.AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def _listen(runner: web.AppRunner, address: str, what: str) -> None:
    """Listen at ``host:port`` or ``unix:/path``. Raises :class:`CannotStart`."""
    try:
        if address.startswith("unix:"):
            await web.UnixSite(runner, _free_socket(address.removeprefix("unix:"))).start()
        else:
            host, _, port = address.rpartition(":")
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except (OSError, ValueError) as error:
        raise CannotStart(f"{what} cannot listen on {address}: {error}; free the address or choose another") from None


def _free_socket(path: str) -> str:
    """Remove what a killed sidecar left at a Unix socket's path; a socket that somebody serves stays."""
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(path)
        except OSError:
            Path(path).unlink(missing_ok=True)
    return path


async def _keep_running(stack: contextlib.AsyncExitStack, work: Coroutine[object, object, None], name: str) -> None:
    """Run ``work`` beside the block; when the stack unwinds it is cancelled and awaited."""
    task = asyncio.create_task(work, name=name)

    def failed(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and done.exception() is not None:
            logger.critical("%s failed; this sidecar cannot go on", name, exc_info=done.exception())
            os.kill(os.getpid(), signal.SIGTERM)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    task.add_done_callback(failed)
    stack.push_async_callback(end)
