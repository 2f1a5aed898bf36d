"""The control server as a process: settings in, everything started in order, an exit code out.

One gRPC port carries xDS, heartbeats and the OTLP receiver. One HTTP port carries the admin interface. If the settings
are wrong, a port is taken or etcd does not answer within 10 s, the server prints one line and exits with code 2. If
etcd goes away later, the server goes on with what it knows, and only the slot table stays as it is. If one of its
services fails, the server names it and exits with code 1. On SIGTERM or SIGINT it resigns first, so that a successor
leads within milliseconds. Then it ends its streams, and then it stops.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import msgspec

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.access import START_TIMEOUT, EtcdMissing, await_etcd
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.pool.spec import Timeouts
from understudy.statesync.process.services import ServiceFailed, running_services, set_within
from understudy.statesync.tls.identity import DOMAIN, Trust
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
from understudy.xds.control.gc_tuning import collect_when_idle
from understudy.xds.control.identity import Clients
from understudy.xds.control.name_check import holder_of_name
from understudy.xds.control.pool_metrics import PoolMetrics
from understudy.xds.control.ports import (
    StartError,
    grpc_server,
    listening,
    peer_tls,
    reachable,
    require_private,
    require_private_http,
    serving_http,
)
from understudy.xds.publishing.listener_groups import ListenerGroups, group_of
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.cache import AckEvent, ResourceCache
from understudy.xds.server.metrics import XdsMetrics
from understudy.xds.server.stream_config import StreamTimeouts
from understudy.xds.tracing.failover_timing import Delivery

__all__ = ["ControlSettings", "StartError", "run_control", "serve_until"]

logger = logging.getLogger(__name__)

FAILED = 1
WRONG_USE = 2
STOP_TIMEOUT = 2.0
REMOVAL_LINGER = Timeouts.model_construct().request_seconds + 5.0
"""Seconds that Envoy keeps a cluster after its last route is gone, so that earlier requests can be retried."""
MAX_STREAM_AGE = 1800.0


class ControlSettings(msgspec.Struct, frozen=True):
    """How a control server is started.

    Addresses are ``host:port``; port 0 takes a free one.

    Attributes:
        grpc: without ``tls``, and unless ``insecure``, it must be on loopback.
        http: it asks for no certificate, so it must be on loopback unless ``open_http`` or ``insecure``.
        otlp_http: takes OTLP over HTTP, under the rules of the gRPC port, which takes OTLP in any case; empty for none.
        advertise_grpc: what members and Envoys connect to, if that is not the listening address.
        advertise_http: what tools connect to, if that is not the listening address.
        traces: the SQLite file of the trace store.
        tls: makes the gRPC port ask for certificates.
        trust_domain: that of the SPIFFE ids in these certificates.
        max_stream_age: seconds (give or take a fifth) after which an xDS stream is ended, so that Envoys spread over
            the replicas.
        etcd_patience: how long, in seconds, etcd may be silent at the start.
    """

    pool: str
    name: str
    etcd: EtcdSettings = msgspec.field(default_factory=EtcdSettings)
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
    timing: Timing = msgspec.field(default_factory=Timing)


async def run_control(settings: ControlSettings) -> int:
    """Run a control server until SIGTERM or SIGINT.

    Returns:
        0 after an orderly end, 2 when it could not start, 1 when a service failed. The reason is then on stderr, in one
        line.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        await serve_until(settings, stop)
    except (StartError, ServiceFailed) as error:
        sys.stderr.write(f"understudy control: {error}\n")
        return WRONG_USE if isinstance(error, StartError) else FAILED
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)
    return 0


async def serve_until(settings: ControlSettings, stop: asyncio.Event) -> None:
    """Run a control server until ``stop`` is set. Raises :class:`StartError` when it cannot start."""
    async with contextlib.AsyncExitStack() as stack:
        server, grpc_port = grpc_server(settings.grpc, settings.tls, insecure=settings.insecure)
        require_private_http(settings.http, allowed=settings.open_http or settings.insecure)
        listener = stack.enter_context(listening("--http", settings.http))
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
            settings.advertise_grpc or reachable(settings.grpc, grpc_port),
            settings.advertise_http or reachable(settings.http, listener.getsockname()[1]),
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
    """Connect the parts, run them until ``stop``, and end them in an order that disturbs no client."""
    keys = PoolKeys(settings.pool)
    cache = ResourceCache(group_of)
    listeners = ListenerGroups(cache, keys.pool)
    cache.on_group = listeners.set_listener
    leadership = Leadership(client, keys, record, ttl=settings.lease)
    controller = Controller(
        client,
        keys,
        leadership=leadership,
        cache=cache,
        telemetry=telemetry,
        timing=settings.timing,
        on_spec=listeners.apply_spec,
    )
    leadership.on_change = controller.leadership_changed
    trust = Trust(settings.pool, settings.trust_domain)
    clients = Clients(trust) if settings.tls else None
    ads = AdsServer(
        cache,
        StreamSettings(timeouts=StreamTimeouts(removal_linger=REMOVAL_LINGER), max_age=settings.max_stream_age),
        confirm_fresh=controller.confirm_fresh,
        identify=clients.refuse_node if clients else None,
    )
    if settings.tls and clients:
        controller.heartbeat.identify = clients.refuse_member
        controller.heartbeat.tls = peer_tls(settings.tls, clients.trust)
    fronts = FrontTally(asyncio.get_running_loop().time, controller.on_durations)
    metrics = _metrics(settings.pool, ads, controller, telemetry, store, fronts)
    admin = Admin(
        name=settings.name,
        pool=settings.pool,
        controller=controller,
        leadership=leadership,
        cache=cache,
        store=store,
        now_ns=telemetry.now_ns,
        exposition=lambda accept: expose(metrics.registry, accept),
        fronts=fronts,
    )
    intake = OtlpService(store, asyncio.get_running_loop().time, fronts=fronts)
    ads.register(server)
    controller.heartbeat.register(server)
    add_otlp_receiver(server, intake)

    async def wind_down() -> None:
        leadership.resign()
        await set_within(leadership.ended, STOP_TIMEOUT)
        controller.heartbeat.stop()
        await ads.stop(STOP_TIMEOUT)
        await server.stop(STOP_TIMEOUT)

    async with serving_http(admin.app(), listener), _otlp_http(settings, intake):
        await server.start()
        logger.info("control server %s serves pool %s: %s", settings.name, settings.pool, record)
        services = {
            "garbage collection": collect_when_idle(lambda: cache.counters.pushes),
            **controller.services(),
            "election": leadership.run(),
            "pool watch": PoolWatch(client, settings.pool, controller.no_pool).run(),
        }
        async with running_services(services, stop) as running:
            await running.until_stop_or_failure()
            await wind_down()
            if running.failure:
                raise running.failure


def _metrics(
    pool: str, ads: AdsServer, controller: Controller, telemetry: Telemetry, store: SpanStore, fronts: FrontTally
) -> XdsMetrics:
    """All metrics of this process, in one registry, and the hooks that feed them."""
    cache = ads.cache
    metrics = XdsMetrics(cache, lambda: ads.streams, lambda: ads.quota.refused + controller.heartbeat.quota.refused)
    telemetry.on_span = PhaseMetrics(metrics.registry, pool).recorded
    PoolMetrics(metrics.registry, controller.state_builder.current, lambda: controller.missing, fronts)
    SpanMetrics(metrics.registry, lambda: telemetry.counts, lambda: store.dropped)
    cache.on_push = metrics.on_push
    cache.on_ack = lambda event: _on_ack(metrics, controller, telemetry, event)
    return metrics


def _on_ack(metrics: XdsMetrics, controller: Controller, telemetry: Telemetry, event: AckEvent) -> None:
    """Count an Envoy's ACK or NACK. Pass an ACK on, with its monotonic times as those of the process's clock."""
    metrics.on_ack(event)
    if event.error is None:
        at_ns = telemetry.clock.at_ns
        controller.on_delivery(Delivery(event.node, at_ns(event.sent_at_ns / 1e9), at_ns(event.acked_at_ns / 1e9)))
    else:
        logger.warning("Envoy %s rejected %s: %s", event.node, event.type_url, event.error)


async def _require_own_name(client: EtcdClient, keys: PoolKeys, record: ControlServer) -> None:
    try:
        holder = await holder_of_name(client, keys, record)
    except EtcdError as error:
        logger.warning("cannot check whether another control server is named %s: %s", record.name, error)
        return
    if holder:
        raise StartError(
            f"--name {record.name}: another control server of pool {keys.pool} has this name and answers ({holder}). "
            "Stop it, or give this one another name"
        )


@contextlib.asynccontextmanager
async def _otlp_http(settings: ControlSettings, intake: OtlpService) -> AsyncIterator[None]:
    """The OTLP/HTTP receiver, if one is wanted; it asks for certificates whenever the gRPC port does."""
    if not settings.otlp_http:
        yield
        return
    require_private("--otlp-http", settings.otlp_http, allowed=settings.tls is not None or settings.insecure)
    trust = Trust(settings.pool, settings.trust_domain)
    tls = peer_tls(settings.tls, trust).server() if settings.tls else None
    with listening("--otlp-http", settings.otlp_http) as listener:
        async with serving_http(otlp_application(intake), listener, tls, opens=OPENED):
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
    """A client of an etcd that answered once. It may go away after that."""
    try:
        client = settings.etcd.client()
    except TooOpen as error:
        raise StartError(fault_of(error)) from None
    except (ValueError, OSError) as error:
        raise StartError(f"--etcd {','.join(settings.etcd.endpoints)}: {error}") from None
    async with client:
        waiting = asyncio.create_task(await_etcd(client, settings.etcd, settings.pool, timeout=settings.etcd_patience))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, waiting], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
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
