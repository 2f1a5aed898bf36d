"""The control server as a process: settings in, everything started in order, an exit code out.

One gRPC port carries xDS, heartbeats and the OTLP receiver. One HTTP port carries the admin interface. If the settings
are wrong, a port is taken or etcd does not answer within 10 s, the server prints one line and exits with code 2. If
etcd goes away later, the server goes on with what it knows, and only the slot table stays as it is. If one of its
services fails, the server names it and exits with code 1; in a server for several pools a service of one pool fails
alone (:mod:`understudy.xds.control.served_pools`). On SIGTERM or SIGINT it resigns first, so that a successor leads
within milliseconds. Then it ends its streams, and then it stops.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
from prometheus_client import CollectorRegistry

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.front_node import pools_of_front
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import pools_with_spec_beside
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.process.services import ServiceFailed, running_services, set_within
from understudy.statesync.tls.followed_file import BadFile
from understudy.statesync.tls.identity import Trust
from understudy.telemetry.metrics.span_metrics import SpanMetrics
from understudy.telemetry.receiver.otlp_grpc import add_otlp_receiver
from understudy.telemetry.receiver.otlp_http import OPENED, otlp_application
from understudy.telemetry.receiver.otlp_service import FrontReports, OtlpService
from understudy.telemetry.store.schema import StoreError
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing.names import POOL, SERVICE_CONTROL
from understudy.telemetry.tracing.setup import Telemetry, service_version, start_telemetry
from understudy.xds.control.admin import Admin
from understudy.xds.control.etcd_leader import PreferredLeader
from understudy.xds.control.etcd_links import EtcdLink, etcd_links
from understudy.xds.control.front_reports import FrontReportsByPool
from understudy.xds.control.gc_tuning import collect_when_idle
from understudy.xds.control.http_access import RightsFile
from understudy.xds.control.http_extension import HttpExtension, HttpParts, no_extension
from understudy.xds.control.leader_balance import keep_balanced
from understudy.xds.control.name_check import holder_of_name
from understudy.xds.control.pool_service import STOP_TIMEOUT, PoolService, stream_settings
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
from understudy.xds.control.process_metrics import ProcessMetrics
from understudy.xds.control.served_fronts import ServedFronts
from understudy.xds.control.served_pools import Finder, OnePool, Pools, ServedPools, pool_of
from understudy.xds.control.settings import ControlSettings
from understudy.xds.control.tenant_quota import quota_fault
from understudy.xds.membership.heartbeat_router import HeartbeatRouter
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.ads_router import AdsRouter
from understudy.xds.server.stream_quota import QuotaLimits
from understudy.xds.server.wire import Request

__all__ = ["StartError", "run_control", "serve_until"]

logger = logging.getLogger(__name__)

FAILED = 1
WRONG_USE = 2
ONE_OF_SEVERAL = QuotaLimits(address=2_500, total=5_000)
"""Streams of one pool in a process with several: half of what the process takes, so that no pool uses it all up."""


async def run_control(settings: ControlSettings, extend: HttpExtension = no_extension) -> int:
    """Run a control server until SIGTERM or SIGINT.

    Args:
        settings: how it is started.
        extend: adds routes to the HTTP port, such as those of the console.

    Returns:
        0 after an orderly end, 2 when it could not start, 1 when a service failed. The reason is then on stderr, in one
        line.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        await serve_until(settings, stop, extend)
    except (StartError, ServiceFailed) as error:
        sys.stderr.write(f"understudy control: {error}\n")
        return WRONG_USE if isinstance(error, StartError) else FAILED
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)
    return 0


async def serve_until(settings: ControlSettings, stop: asyncio.Event, extend: HttpExtension = no_extension) -> None:
    """Run a control server until ``stop`` is set. Raises :class:`StartError` when it cannot start."""
    async with contextlib.AsyncExitStack() as stack:
        server, grpc_port = grpc_server(settings.grpc, settings.tls, insecure=settings.insecure)
        guarded = settings.http_tls and settings.rights is not None
        require_private_http(settings.http, allowed=settings.open_http or settings.insecure or guarded)
        rights, http_tls = _rights(settings), _http_tls(settings)
        listener = stack.enter_context(listening("--http", settings.http))
        store = await stack.enter_async_context(_store(settings.traces))
        links = await stack.enter_async_context(etcd_links(settings, stop))
        if stop.is_set():
            return
        attributes = {POOL: settings.only} if settings.only else {}
        telemetry = start_telemetry(SERVICE_CONTROL, settings.name, attributes=attributes, direct=store.exporter())
        stack.push_async_callback(telemetry.aclose)
        record = ControlServer(
            settings.name,
            settings.advertise_grpc or reachable(settings.grpc, grpc_port),
            settings.advertise_http or reachable(settings.http, listener.getsockname()[1], tls=settings.http_tls),
            service_version(),
            every_pool=not settings.pools,
        )
        process = _Process(settings, server, listener, store, links, telemetry, record, rights, http_tls, extend)
        if settings.only:
            await process.serve_one(stop)
        else:
            await process.serve_several(stop)


async def nothing_to_end(_grace: float) -> None:
    """A process without front Envoys of several pools has no streams of theirs."""


class _Process(msgspec.Struct, frozen=True):
    """What the pools of a process share, and how they are served over it."""

    settings: ControlSettings
    server: grpc.aio.Server
    listener: socket.socket
    store: SpanStore
    links: tuple[EtcdLink, ...]
    telemetry: Telemetry
    record: ControlServer
    rights: RightsFile | None
    http_tls: ssl.SSLContext | None
    extend: HttpExtension

    async def serve_one(self, stop: asyncio.Event) -> None:
        """Serve the one pool that this process is for. If a service of it fails, the process ends."""
        (link,) = self.links
        await _require_own_name(link.client, PoolKeys(self.settings.only), self.record)
        service = PoolService(
            self.settings.only,
            self.settings,
            link,
            record=self.record,
            telemetry=self.telemetry,
        )
        service.ads.register(self.server)
        service.heartbeat.register(self.server)
        SpanMetrics(service.registry, lambda: self.telemetry.counts, lambda: self.store.dropped)
        services = {
            "garbage collection": collect_when_idle(lambda: service.cache.counters.pushes),
            **service.services(),
        }
        await self._run(OnePool(service), services, service.fronts, service.registry, stop)

    async def serve_several(self, stop: asyncio.Event) -> None:
        """Serve several pools. Each goes on, whatever happens to the others."""
        settings, registry = self.settings, CollectorRegistry()

        def gone(pool: str) -> None:
            fronts.gone(pool)

        pools = ServedPools(
            lambda pool, etcd, delay: self._make(pool, etcd, delay, fronts),
            self._check_pool,
            settings.name,
            gone,
        )
        fronts = ServedFronts(
            pools,
            stream_settings(ONE_OF_SEVERAL, settings.max_stream_age),
            every_pool=not settings.pools,
            domain=settings.trust_domain if settings.tls else "",
        )

        def choose(request: Request) -> AdsServer:
            several = pools_of_front(request.node.cluster) if request.node else None
            return pools.find(pool_of(request)).ads if several is None else fronts.for_stream(several, request)

        streams, heartbeats = AdsRouter(choose), HeartbeatRouter(pools.for_heartbeats)
        streams.register(self.server)
        heartbeats.register(self.server)
        SpanMetrics(registry, lambda: self.telemetry.counts, lambda: self.store.dropped)
        ProcessMetrics(registry, pools.rows, lambda: streams.quota.refused + heartbeats.quota.refused)
        services = {
            "garbage collection": collect_when_idle(lambda: pools.pushes + fronts.pushes),
            "front Envoys of several pools": fronts.run(),
            "balance of leaders": keep_balanced(settings.name, pools.leads, pools.hand_over, settings.settled),
            "pools": pools.run(() if settings.clusters else settings.pools, self._finders()),
        }
        await self._run(pools, services, FrontReportsByPool(pools.tally_of), registry, stop, fronts.end_streams)

    def _finders(self) -> dict[str, Finder]:
        """For each etcd cluster what finds the pools to serve there; none if they are named, and there is one etcd."""
        named = set(self.settings.pools)
        if named and not self.settings.clusters:
            return {}

        async def find(link: EtcdLink, known: set[str]) -> set[str]:
            found = await pools_with_spec_beside(link.client, known)
            return found & named if named else found

        return {link.name: partial(find, link) for link in self.links}

    def _link(self, name: str) -> EtcdLink:
        return next(link for link in self.links if link.name == name)

    def _make(self, pool: str, etcd: str, standing_delay: Callable[[str], float], fronts: ServedFronts) -> PoolService:
        return PoolService(
            pool,
            self.settings,
            self._link(etcd),
            record=self.record,
            telemetry=self.telemetry.with_attributes({POOL: pool}),
            quota=ONE_OF_SEVERAL,
            standing_delay=standing_delay,
            fronts=fronts,
        )

    async def _check_pool(self, pool: str, etcd: str) -> None:
        client = self._link(etcd).client
        await _require_own_name(client, PoolKeys(pool), self.record)
        if fault := await quota_fault(client, pool):
            raise StartError(f"not served: {fault}")

    async def _run(
        self,
        pools: Pools,
        services: Mapping[str, Coroutine[Any, Any, None]],
        fronts: FrontReports,
        registry: CollectorRegistry,
        stop: asyncio.Event,
        end_streams: Callable[[float], Awaitable[None]] = nothing_to_end,
    ) -> None:
        """Open the ports, run the services until ``stop``, and end them in an order that disturbs no client."""
        settings = self.settings
        intake = OtlpService(self.store, asyncio.get_running_loop().time, fronts=fronts)
        add_otlp_receiver(self.server, intake)
        admin = Admin(name=settings.name, pools=pools, store=self.store, registry=registry, rights=self.rights).app()
        guarded = self.rights is not None
        self.extend(admin, HttpParts(settings.name, pools, tuple(settings.etcds.values()), self.store, guarded))

        async def wind_down() -> None:
            for link in self.links:
                link.lease.end()
            await asyncio.gather(*(set_within(link.lease.ended, STOP_TIMEOUT) for link in self.links))
            await asyncio.gather(end_streams(STOP_TIMEOUT), *(service.end_streams() for service in pools.services))
            await self.server.stop(STOP_TIMEOUT)

        async with serving_http(admin, self.listener, self.http_tls), _otlp_http(settings, intake):
            await self.server.start()
            what = ", ".join(settings.pools) or "all pools"
            logger.info("control server %s serves %s: %s", settings.name, what, self.record)
            leases = {f"lease {link.name}".strip(): link.lease.run() for link in self.links}
            leads = {
                f"leader of etcd {link.name}".strip(): PreferredLeader(link.client, link.settings).run()
                for link in self.links
                if link.settings.leader
            }
            async with running_services({**services, **leases, **leads}, stop) as running:
                await running.until_stop_or_failure()
                await wind_down()
                if running.failure:
                    raise running.failure


def _rights(settings: ControlSettings) -> RightsFile | None:
    """The rights file, if there is one."""
    try:
        return RightsFile(settings.rights) if settings.rights else None
    except BadFile as error:
        raise StartError(f"--rights: {error}") from None


def _http_tls(settings: ControlSettings) -> ssl.SSLContext | None:
    """What the HTTP port shows and asks for with ``--http-tls``: a client may come without a certificate."""
    if not settings.http_tls:
        return None
    if settings.tls is None:
        raise StartError("--http-tls needs --tls-cert, --tls-key and --tls-ca (docs/security.md)")
    trust = Trust(settings.only, settings.trust_domain)
    return peer_tls(settings.tls, trust).server(certificate_wanted=False)


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
    # As a server it asks for any certificate of the authority; the name in it counts for nothing here.
    tls = peer_tls(settings.tls, Trust(settings.only, settings.trust_domain)).server() if settings.tls else None
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
