"""The sidecar process: starts everything in order, drains when it is told to end, and stops in reverse order.

On SIGTERM it drains first: it says so, hands its slots over (by the new table, or to the first standbys if none comes),
goes on answering meanwhile, and ends when it owns nothing or after ``drain_seconds``.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import time
from asyncio import selector_events
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from aiohttp import web

from understudy.proxy.health.health_port import Patient, Question, open_health_port
from understudy.proxy.http.requests import MAX_BODY, Expose, Status
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.drain import BEGIN_TIMEOUT, DrainApi
from understudy.proxy.peers.peer_api import Answers, peer_app
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.sync_api import SyncApi, metrics_app
from understudy.proxy.sessions.session_api import add_forwarded_calls, session_app
from understudy.proxy.sidecar.assembly import Assembled, assemble
from understudy.proxy.sidecar.checks_api import ChecksApi, built_in_checks
from understudy.proxy.sidecar.listen import CannotStart, SidecarSecurity, bound_socket, listen, protection
from understudy.proxy.sidecar.name_holder import NameHolder, NameTaken
from understudy.proxy.sidecar.parts import Sidecar
from understudy.proxy.sidecar.settings import NO_HEALTH_PORT, SidecarSettings
from understudy.proxy.sidecar.status_view import status_view
from understudy.proxy.sidecar.take_over_watch import TakeOverWatch
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.access import EtcdMissing, await_etcd
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.process.services import Services, first_of, running_services
from understudy.statesync.sessions.session_crypto import SessionCrypto, agree
from understudy.statesync.testing.crash_points import UnknownCrashPoint, arm_from_environment
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.secret_files import TooOpen, fault_of
from understudy.telemetry.metrics.phase_metrics import expose
from understudy.telemetry.tracing.names import POOL, SERVICE_SIDECAR, SITE
from understudy.telemetry.tracing.setup import start_telemetry

logger = logging.getLogger(__name__)

READ_MOST = 64 * 1024
"""Bytes that are read from a connection at once. For each read asyncio takes a buffer of the size that it may have, and
for its 256 KiB the C library maps memory anew each time: 16 us instead of 3."""


@dataclass(frozen=True, slots=True)
class Running:
    """A sidecar that serves, and its services."""

    sidecar: Sidecar
    services: Services


async def run_sidecar(settings: SidecarSettings) -> int:
    """Run a sidecar until SIGTERM or SIGINT; returns the process's exit code.

    1: another process has taken its name, another site went on without its etcd, or a service failed. 2: it could not
    start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        arm_from_environment()
        async with _running(settings, stop) as running:
            _freeze_objects()
            read_less_at_once()
            logger.info("sidecar of %s: session API on %s", settings.member, settings.session_api)
            displaced, given_up = running.sidecar.registration.displaced, running.sidecar.take_over.given_up
            await first_of(stop, running.services.failed, displaced, given_up)
            if given_up.is_set() or (displaced.is_set() and not stop.is_set()):
                return 1
            await running.sidecar.drain.run()
            return 1 if running.services.failure else 0
    except (CannotStart, EtcdMissing, UnknownCrashPoint) as error:
        logger.error("sidecar of %s cannot start: %s", settings.member, error)  # noqa: TRY400 - one line is the point
        return 2


def _freeze_objects() -> None:
    """Take all objects that exist out of the garbage collector's sight; only for a process that is nothing else.

    Of the 70,000 objects of a sidecar that has just started nearly all stay. To go through them would hold up every
    request, and the heartbeats, for 20 to 35 ms each time.
    """
    gc.collect()
    gc.freeze()


def read_less_at_once() -> None:
    """Have asyncio read at most :data:`READ_MOST` bytes at once in this process; for one that is nothing else."""
    vars(selector_events)["_SelectorTransport"].max_size = READ_MOST  # asyncio has no setting for it


@contextlib.asynccontextmanager
async def running_sidecar(settings: SidecarSettings) -> AsyncIterator[Sidecar]:
    """A sidecar that serves inside the block. Raises :class:`CannotStart` or ``EtcdMissing``."""
    async with _running(settings, asyncio.Event()) as running:
        yield running.sidecar


@contextlib.asynccontextmanager
async def _running(settings: SidecarSettings, stop: asyncio.Event) -> AsyncIterator[Running]:
    trust = Trust(settings.pool, settings.trust_domain)
    guard = protection(
        peer=settings.peer,
        tls=settings.tls,
        session_api=settings.session_api,
        redis=settings.redis,
        token_file=settings.session_token_file,
        key_file=settings.session_keys,
        insecure=settings.insecure,
        trust=trust,
    )
    async with contextlib.AsyncExitStack() as stack:
        etcd = _etcd(settings.etcd)
        stack.push_async_callback(etcd.close)
        client = PeerClient(guard.peers)
        stack.push_async_callback(client.close)
        credentials = settings.tls.channel_credentials if settings.tls else None
        place = {POOL: settings.pool, **({SITE: settings.site} if settings.site else {})}
        telemetry = start_telemetry(SERVICE_SIDECAR, settings.member, attributes=place, credentials=credentials)
        stack.push_async_callback(telemetry.aclose)
        assembled = assemble(settings, etcd, client, telemetry, guard.codec)
        sidecar, started = assembled.sidecar, asyncio.Event()
        stack.push_async_callback(assembled.probe.close)
        stack.callback(sidecar.recorder.close)
        registration = sidecar.registration
        health = _open_health_port(stack, settings, sidecar, etcd, started)
        registration.record = replace(registration.record, health=health)
        await _open_ports(stack, settings, guard, assembled, trust, etcd)
        await await_etcd(etcd, settings.etcd, settings.pool)
        await _agree(etcd, sidecar.pool.identity.keys, guard.codec)
        await _own_etcd(sidecar.take_over)
        await _own_name(sidecar.name)
        services = await stack.enter_async_context(running_services(assembled.services(), stop))
        started.set()
        yield Running(sidecar, services)


async def _open_ports(
    stack: contextlib.AsyncExitStack,
    settings: SidecarSettings,
    guard: SidecarSecurity,
    assembled: Assembled,
    trust: Trust,
    etcd: EtcdClient,
) -> None:
    """Listen at the session API, the peer API and the metrics port."""
    sidecar = assembled.sidecar
    status = partial(status_view, sidecar)
    exposed = partial(expose, assembled.metrics.registry)
    session_runner = await serve(stack, _session_side(assembled, guard, status))
    peer_runner = await serve(stack, _peer_side(sidecar, guard, status, exposed, trust))
    await listen(peer_runner, settings.peer, "the peer API", tls=guard.peers.server() if guard.peers else None)
    await listen(session_runner, settings.session_api, "the session API", mode=settings.socket_mode)
    if settings.redis:
        await _open_redis(stack, settings, guard, assembled, etcd)
    if settings.metrics:
        await listen(await serve(stack, metrics_app(exposed)), settings.metrics, "the metrics port")


async def _open_redis(
    stack: contextlib.AsyncExitStack,
    settings: SidecarSettings,
    guard: SidecarSecurity,
    assembled: Assembled,
    etcd: EtcdClient,
) -> None:
    from understudy.proxy.redis.copies import CopyCount
    from understudy.proxy.redis.executor import Executor
    from understudy.proxy.redis.metrics import RedisCollector
    from understudy.proxy.redis.port import RedisPort
    from understudy.proxy.redis.scan import KeyScan

    sidecar = assembled.sidecar
    replica = sidecar.copies.replica
    scan = KeyScan(sidecar.pool, sidecar.copies, sidecar.keeper, etcd, sidecar.clock)
    port = RedisPort(
        Executor(sidecar.service, scan, CopyCount(sidecar.pool)),
        guard.tokens,
        sidecar.loop_lag,
        member=settings.member,
        run_id=sidecar.pool.identity.boot,
        keys=lambda: replica.count(replica.held),
        now_ms=sidecar.clock.now_ms,
    )
    assembled.metrics.registry.register(RedisCollector(port))
    await port.listen(stack, bound_socket(settings.redis, "the Redis port", mode=settings.socket_mode))


def _session_side(assembled: Assembled, guard: SidecarSecurity, status: Status) -> web.Application:
    sidecar = assembled.sidecar
    app = session_app(sidecar.service, status, guard.tokens, partial(_most_bytes, sidecar.pool))
    own = partial(built_in_checks, sidecar.check, sidecar.reads, sidecar.copies.replica, sidecar.loop_lag)
    ChecksApi(sidecar.checks, own, assembled.changed).add_to(app)
    DrainApi(sidecar.drain, lambda: sidecar.check.listening).add_to(app)
    return app


def _most_bytes(pool: PoolView) -> int:
    return pool.spec.limits.session_bytes if pool.spec else MAX_BODY


def _peer_side(
    sidecar: Sidecar, guard: SidecarSecurity, status: Status, exposed: Expose, trust: Trust
) -> web.Application:
    answers = Answers(
        serving=lambda: not sidecar.reads.cut_off,
        reaches_etcd=sidecar.reads.reaches_etcd,
        take=sidecar.handover.take,
        take_given=sidecar.takeovers.given,
    )
    app = peer_app(sidecar.pool, answers, trust=trust if guard.peers is not None else None)
    add_forwarded_calls(app, sidecar.service)
    sidecar.keeper.add_to(app)
    SyncApi(sidecar.pool.identity.me, sidecar.copies, status, sidecar.anti_entropy, exposed).add_to(app)
    return app


def _open_health_port(
    stack: contextlib.AsyncExitStack,
    settings: SidecarSettings,
    sidecar: Sidecar,
    etcd: EtcdClient,
    started: asyncio.Event,
) -> str:
    """Open the health port; returns where it is, '' if there is none."""
    if settings.health == NO_HEALTH_PORT:
        return ""
    try:
        return open_health_port(
            stack,
            settings.health,
            settings.app,
            lambda: sidecar.status.refusal,
            sidecar.loop_lag,
            _questions(sidecar, started),
            lambda: etcd.no_leader_at,
        )
    except (OSError, ValueError) as error:
        raise CannotStart(
            f"the health port cannot be opened: {error}; give an address of this host that the front Envoys reach "
            f"with --health, or --health {NO_HEALTH_PORT}"
        ) from None


def _questions(sidecar: Sidecar, started: asyncio.Event) -> Mapping[str, Question]:
    """What an orchestrator may ask at the health port besides."""
    drain = sidecar.drain
    return {
        "/started": lambda: "" if started.is_set() else "starting",
        "/drained": Patient(lambda: drain.outstanding(time.monotonic()), lambda: drain.begun, BEGIN_TIMEOUT),
    }


def _etcd(settings: EtcdSettings) -> EtcdClient:
    try:
        return settings.client()
    except TooOpen as error:
        raise CannotStart(fault_of(error)) from None
    except (OSError, ValueError) as error:
        raise CannotStart(f"--etcd {','.join(settings.endpoints)}: {error}") from None


async def _agree(etcd: EtcdClient, keys: PoolKeys, codec: SessionCrypto) -> None:
    """Start with the others' encryption key or not at all."""
    try:
        fault = await agree(etcd, keys, codec)
    except EtcdError as error:
        fault = f"the pool's encryption cannot be checked: {error}"
    if fault:
        raise CannotStart(fault)


async def _own_etcd(take_over: TakeOverWatch) -> None:
    """Start with the etcd that counts or not at all."""
    try:
        fault = await take_over.before_start()
    except EtcdError as error:
        raise CannotStart(f"etcd does not tell who is in the pool: {error}") from None
    if fault:
        raise CannotStart(fault)


async def _own_name(name: NameHolder) -> None:
    """Start as the only living process of this name or not at all."""
    try:
        await name.check()
    except NameTaken as error:
        raise CannotStart(str(error)) from None
    except EtcdError as error:
        raise CannotStart(f"etcd does not tell who has this member's name: {error}") from None
