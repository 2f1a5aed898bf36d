"""The control server as a process: settings in, everything started in order, an exit code out.

One gRPC port carries xDS, heartbeats and the OTLP receiver, one HTTP port the admin interface. Wrong
settings, a taken port or an etcd that does not answer within 10 s of the start cost one clear line and exit
code 2; an etcd that goes away later costs nothing but fresh tables. On SIGTERM or SIGINT the server resigns
first, so that a successor leads within milliseconds, then ends its streams, then stops.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.access import START_TIMEOUT, EtcdMissing, await_etcd
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.pool.spec import Timeouts
from understudy.statesync.tls.identity import DOMAIN, Trust, is_loopback
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import TooOpen, fault_of
from understudy.telemetry.metrics.phase_metrics import PhaseMetrics, expose
from understudy.telemetry.metrics.span_metrics import SpanMetrics
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.telemetry.receiver.otlp_grpc import add_otlp_receiver
from understudy.telemetry.receiver.otlp_http import OPENED, otlp_application
from understudy.telemetry.receiver.otlp_service import OtlpService
from understudy.telemetry.store.schema import StoreError
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing.names import POOL, SERVICE_CONTROL
from understudy.telemetry.tracing.setup import Telemetry, service_version, start_telemetry
from understudy.xds.control.admin import Admin
from understudy.xds.control.controller import Controller, Timing
from understudy.xds.control.election import LEASE_SECONDS, Leadership
from understudy.xds.control.gc_tuning import collecting_when_calm
from understudy.xds.control.identity import Clients, server_credentials
from understudy.xds.control.name_check import holder_of_name
from understudy.xds.control.pool_metrics import PoolMetrics
from understudy.xds.publishing.listener_groups import Fronts, listen_of
from understudy.xds.server.ads import KEEPALIVE, TAKE_ALL, AdsServer, StreamSettings
from understudy.xds.server.cache import AckEvent, ResourceCache
from understudy.xds.server.metrics import XdsMetrics
from understudy.xds.server.stream_config import Pace
from understudy.xds.server.stream_quota import HTTP2_LIMIT
from understudy.xds.tracing.failover_timing import Delivery

logger = logging.getLogger(__name__)

WRONG_USE = 2
STOP_SECONDS = 2.0
REMOVAL_LINGER = Timeouts().request_seconds + 5.0
"""Seconds that Envoy keeps a cluster after its last route is gone: requests routed before may still be retried."""
MOST_RECEIVED = 16 * 1024 * 1024
MAX_STREAM_AGE = 1800.0
WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not listened at


class StartError(Exception):
    """The control server cannot start; the text is the one line that the user sees: what, where, what to do."""


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """How a control server is started.

    Addresses are ``host:port``; port 0 takes a free one. ``advertise_grpc`` and ``advertise_http`` are what
    members and tools connect to, where that is not what is listened at. ``otlp_http`` takes OTLP over HTTP, under the
    same rules as the gRPC port, which takes it anyhow; empty for none. ``traces`` is the SQLite file of the
    trace store. ``tls`` makes the gRPC port demand certificates, whose SPIFFE ids are of ``trust_domain``; without it,
    and unless ``insecure``, that port must be on loopback. ``http`` asks for no certificate, so it must be on loopback
    unless ``open_http`` or ``insecure``. ``max_stream_age``: seconds
    (give or take a fifth) after which an xDS stream is ended, so that Envoys spread over the replicas.
    ``etcd_patience`` is how long, in seconds, etcd may be silent at the start.
    """

    pool: str
    name: str
    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    grpc: str = "127.0.0.1:18000"
    http: str = "127.0.0.1:18001"
    otlp_http: str = ""
    advertise_grpc: str = ""
    advertise_http: str = ""
    traces: str | Path = ":memory:"
    tls: PemFiles | None = None
    trust_domain: str = DOMAIN
    insecure: bool = False
    open_http: bool = False
    max_stream_age: float = MAX_STREAM_AGE
    lease: int = LEASE_SECONDS
    etcd_patience: float = START_TIMEOUT
    timing: Timing = field(default_factory=Timing)


async def run_control(settings: ControlSettings) -> int:
    """Run a control server until SIGTERM or SIGINT.

    Returns:
        0 after an orderly end, 2 when it could not start; why is then on stderr, in one line.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        await serve_until(settings, stop)
    except StartError as error:
        sys.stderr.write(f"understudy control: {error}\n")
        return WRONG_USE
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)
    return 0


async def serve_until(settings: ControlSettings, stop: asyncio.Event) -> None:
    """Run a control server until ``stop`` is set. Raises :class:`StartError` when it cannot start."""
    async with contextlib.AsyncExitStack() as stack:
        server, grpc_port = _grpc_server(settings)
        _require_private_http(settings)
        listener = stack.enter_context(_listening("--http", settings.http))
        store = await stack.enter_async_context(_store(settings.traces))
        client = await stack.enter_async_context(_etcd(settings, stop))
        if stop.is_set():
            return
        telemetry = start_telemetry(
            SERVICE_CONTROL, settings.name, attributes={POOL: settings.pool}, direct=store.exporter()
        )
        stack.push_async_callback(telemetry.aclose)
        record = ControlServer(
            settings.name,
            settings.advertise_grpc or _reachable(settings.grpc, grpc_port),
            settings.advertise_http or _reachable(settings.http, listener.getsockname()[1]),
            service_version(),
        )
        await _require_own_name(client, PoolKeys(settings.pool), record)
        await _serve(settings, stop, server, listener, store=store, client=client, telemetry=telemetry, record=record)


async def _serve(
    settings: ControlSettings,
    stop: asyncio.Event,
    server: grpc.aio.Server,
    listener: socket.socket,
    *,
    store: SpanStore,
    client: EtcdClient,
    telemetry: Telemetry,
    record: ControlServer,
) -> None:
    """Put the parts together, run them until ``stop``, and end them in the order that hurts nobody."""
    keys = PoolKeys(settings.pool)
    cache = ResourceCache(listen_of)
    fronts = Fronts(cache, keys.pool)
    cache.on_group = fronts.give
    leadership = Leadership(client, keys, record, ttl=settings.lease)
    controller = Controller(
        client,
        keys,
        leadership=leadership,
        cache=cache,
        telemetry=telemetry,
        timing=settings.timing,
        on_spec=fronts.follow,
    )
    leadership.on_change = controller.leadership_changed
    clients = Clients(Trust(settings.pool, settings.trust_domain)) if settings.tls else None
    ads = AdsServer(
        cache,
        StreamSettings(pace=Pace(removal_linger=REMOVAL_LINGER), max_age=settings.max_stream_age),
        confirm_fresh=controller.confirm_fresh,
        identify=clients.refuse_node if clients else None,
    )
    metrics = XdsMetrics(cache, lambda: ads.streams, lambda: ads.quota.refused + controller.heartbeat.quota.refused)
    telemetry.on_span = PhaseMetrics(metrics.registry, settings.pool).recorded
    tally = FrontTally(asyncio.get_running_loop().time)
    PoolMetrics(metrics.registry, controller.observer.world, lambda: controller.missing, tally)
    SpanMetrics(metrics.registry, lambda: telemetry.counts, lambda: store.dropped)
    cache.on_push = metrics.pushed
    cache.on_ack = lambda event: _answered(metrics, controller, telemetry, event)
    admin = Admin(
        name=settings.name,
        pool=settings.pool,
        controller=controller,
        leadership=leadership,
        cache=cache,
        store=store,
        now_ns=telemetry.now_ns,
        exposition=lambda accept: expose(metrics.registry, accept),
        fronts=tally,
    )
    if settings.tls and clients:
        controller.heartbeat.identify = clients.refuse_member
        controller.heartbeat.tls = _peer_tls(settings.tls, clients.trust)
    intake = OtlpService(store, asyncio.get_running_loop().time, fronts=tally)
    ads.register(server)
    controller.heartbeat.register(server)
    add_otlp_receiver(server, intake)
    calm = collecting_when_calm(lambda: cache.counters.pushes)
    async with (
        _http(admin.app(), listener),
        _otlp_http(settings, intake),
        calm,
        asyncio.TaskGroup() as tasks,
    ):
        control = tasks.create_task(controller.run())
        await server.start()
        election = tasks.create_task(leadership.run())
        waiting = tasks.create_task(PoolWatch(client, settings.pool, controller.no_pool).run())
        logger.info("control server %s serves pool %s: %s", settings.name, settings.pool, record)
        await _first_of(stop.wait(), control, election)
        leadership.resign()
        await asyncio.wait([election], timeout=STOP_SECONDS)
        controller.heartbeat.stop()
        await ads.stop(STOP_SECONDS)
        await server.stop(STOP_SECONDS)
        for task in (election, control, waiting):
            task.cancel()


def _answered(metrics: XdsMetrics, controller: Controller, telemetry: Telemetry, event: AckEvent) -> None:
    """Count an Envoy's answer; pass an ACK on, with its monotonic times as those of the process's clock."""
    metrics.answered(event)
    if event.error is None:
        at_ns = telemetry.clock.at_ns
        controller.delivered(Delivery(event.node, at_ns(event.sent_at_ns / 1e9), at_ns(event.acked_at_ns / 1e9)))
    else:
        logger.warning("Envoy %s refused %s: %s", event.node, event.type_url, event.error)


def _grpc_server(settings: ControlSettings) -> tuple[grpc.aio.Server, int]:
    """A gRPC server bound to its address, not started, and its port."""
    address = settings.grpc
    credentials = _credentials(settings)
    _require_private(settings, "--grpc", address)
    # Without SO_REUSEPORT, since two control servers must never share a port unnoticed.
    server = grpc.aio.server(
        options=[
            *TAKE_ALL,
            *KEEPALIVE,
            *HTTP2_LIMIT,
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MOST_RECEIVED),
        ]
    )
    try:
        if credentials is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, credentials)
    except RuntimeError:
        raise _taken("--grpc", address) from None


def _credentials(settings: ControlSettings) -> grpc.ServerCredentials | None:
    """What the gRPC port asks of its clients; None for plain text."""
    if settings.tls is None:
        return None
    try:
        return server_credentials(settings.tls)
    except OSError as error:
        raise StartError(fault_of(error)) from None


def _require_private(settings: ControlSettings, option: str, address: str) -> None:
    """A port that takes from its clients asks for certificates, or is on loopback, or was allowed not to."""
    host, _ = _parts(option, address)
    if settings.tls is None and not settings.insecure and not is_loopback(host):
        raise StartError(
            f"{option} {address} is not loopback: give --tls-cert, --tls-key and --tls-ca (docs/security.md), "
            "or --insecure if everybody in that network may be trusted"
        )


def _require_private_http(settings: ControlSettings) -> None:
    """The admin interface asks nobody for anything: it is on loopback, unless it was allowed not to be."""
    host, _ = _parts("--http", settings.http)
    if not (settings.open_http or settings.insecure or is_loopback(host)):
        raise StartError(
            f"--http {settings.http} is not loopback, and whoever reaches it reads tables, traces and metrics: use "
            "loopback, or give --open-http if only operators and Prometheus reach it (docs/security.md)"
        )


def _peer_tls(tls: PemFiles, trust: Trust) -> PeerTls:
    """The same identity for other ports: as a client of the members' peer ports, as a server of OTLP/HTTP."""
    try:
        return PeerTls(Identity(tls.cert, tls.key, tls.ca, trust))
    except BadTlsFiles as error:
        raise StartError(str(error)) from None


async def _require_own_name(client: EtcdClient, keys: PoolKeys, record: ControlServer) -> None:
    try:
        holder = await holder_of_name(client, keys, record)
    except EtcdError as error:
        logger.warning("etcd does not tell whether another control server is named %s: %s", record.name, error)
        return
    if holder:
        raise StartError(
            f"--name {record.name}: another control server of pool {keys.pool} has this name and answers ({holder}). "
            "Stop it, or give this one another name"
        )


@contextlib.contextmanager
def _listening(option: str, address: str) -> Iterator[socket.socket]:
    host, port = _parts(option, address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise _taken(option, address, error.strerror or str(error)) from None
    with listener:
        listener.setblocking(False)
        yield listener


@contextlib.asynccontextmanager
async def _http(
    app: web.Application,
    listener: socket.socket,
    tls: ssl.SSLContext | None = None,
    *,
    opens: Collection[str] = (),
) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        runner = await serve(stack, app, opens=opens)
        await web.SockSite(runner, listener, ssl_context=tls).start()
        yield


@contextlib.asynccontextmanager
async def _otlp_http(settings: ControlSettings, intake: OtlpService) -> AsyncIterator[None]:
    """The OTLP/HTTP receiver, if one is wanted; with certificates whenever the gRPC port asks for them."""
    if not settings.otlp_http:
        yield
        return
    _require_private(settings, "--otlp-http", settings.otlp_http)
    trust = Trust(settings.pool, settings.trust_domain)
    tls = _peer_tls(settings.tls, trust).server() if settings.tls else None
    with _listening("--otlp-http", settings.otlp_http) as listener:
        async with _http(otlp_application(intake), listener, tls, opens=OPENED):
            yield


@contextlib.asynccontextmanager
async def _store(path: str | Path) -> AsyncIterator[SpanStore]:
    try:
        store = await asyncio.to_thread(SpanStore, path)
    except StoreError as error:
        raise StartError(f"{error}; name another file with --traces, in a directory that exists") from None
    try:
        yield store
    finally:
        await store.aclose()


@contextlib.asynccontextmanager
async def _etcd(settings: ControlSettings, stop: asyncio.Event) -> AsyncIterator[EtcdClient]:
    """A client of an etcd that answered once; it may go away after that."""
    try:
        client = settings.etcd.client()
    except TooOpen as error:
        raise StartError(fault_of(error)) from None
    except (ValueError, OSError) as error:
        raise StartError(f"--etcd {','.join(settings.etcd.endpoints)}: {error}") from None
    async with client:
        waiting = asyncio.create_task(await_etcd(client, settings.etcd, settings.pool, timeout=settings.etcd_patience))
        await _first_of(stop.wait(), waiting)
        if stop.is_set():
            waiting.cancel()
            yield client
            return
        try:
            await waiting
        except EtcdMissing as error:
            raise StartError(str(error)) from None
        for status in await client.status():
            if status.at_risk:
                logger.warning("pool %s: %s", settings.pool, status.at_risk)
        yield client


async def _first_of(stop: Coroutine[Any, Any, object], *parts: asyncio.Task[None]) -> None:
    """Return when ``stop`` does, or when one of the parts ends, which none does by itself unless it failed."""
    stopping = asyncio.ensure_future(stop)
    try:
        await asyncio.wait([stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()


def _parts(option: str, address: str) -> tuple[str, int]:
    try:
        return split_address(address)
    except ValueError as error:
        raise StartError(f"{option}: {error}; an address is like 127.0.0.1:18000") from None


def _taken(option: str, address: str, reason: str = "address already in use, or not of this machine") -> StartError:
    return StartError(f"{option} {address} cannot be listened at ({reason}); stop what uses it, or choose another")


def _reachable(listened: str, port: int) -> str:
    """The address to register for a listening address: with the port that was given, and no wildcard host."""
    host, _, _ = listened.rpartition(":")
    return f"{'127.0.0.1' if host in WILDCARDS else host}:{port}"
