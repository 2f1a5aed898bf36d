"""``understudy injector``: the webhook as a process. Its certificates come from files, or it makes them itself.

After SIGTERM it reports that it is not ready, but answers until the cluster sends no more reviews; then it ends.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from aiohttp import web

from understudy.deploy.common.errors import DeployError, PortInUseError
from understudy.deploy.kubernetes.base.injection_settings import NATIVE, BadSetting, InjectionSettings, form_for
from understudy.deploy.kubernetes.webhook.api_client import ApiClient, ApiServer, ClusterError
from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace
from understudy.deploy.kubernetes.webhook.connection_limit import Door
from understudy.deploy.kubernetes.webhook.server import Webhook
from understudy.deploy.kubernetes.webhook.tls_reload import CertificateFiles, ServingCertificate
from understudy.proxy.sidecar.listen import TlsSite
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.addresses import split_address

logger = logging.getLogger(__name__)

AUTO = "auto"
STOPPING = 5.0
"""Seconds for which a stopping injector still answers, until API servers have removed its endpoint."""


@dataclass(frozen=True, slots=True)
class InjectorSettings:
    """Settings of an injector. Certificates are in ``cert_dir``, or it makes them (``self_signed``) for ``place``.

    ``listen`` and ``metrics`` are ``host:port``. ``sidecar.form`` may be :data:`AUTO`: by the version of the cluster.
    """

    listen: str
    sidecar: InjectionSettings
    place: InjectorPlace
    metrics: str = ""
    cert_dir: Path | None = None
    self_signed: bool = False
    api_server: ApiServer | None = None
    stopping: float = STOPPING


async def run_injector(settings: InjectorSettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises :class:`DeployError` when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_injector(settings) as webhook:
        await stop.wait()
        webhook.readiness.stop()
        logger.info("stopping")
        await asyncio.sleep(settings.stopping)
    return 0


@contextlib.asynccontextmanager
async def running_injector(settings: InjectorSettings) -> AsyncIterator[Webhook]:
    """An injector that serves inside the block. Raises :class:`DeployError`."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = await _cluster(settings, stack)
        form = await _form(settings.sidecar.form, cluster)
        webhook = Webhook(replace(settings.sidecar, form=form).excluding(settings.place.namespace))
        serving = ServingCertificate(lambda certificate: _note_end(webhook, certificate))
        if settings.self_signed and cluster is not None:
            await _keep(stack, settings.place, cluster, serving, webhook)
        elif settings.cert_dir is not None:
            files = CertificateFiles(settings.cert_dir, serving)
            webhook.readiness.reason = ""
            await _beside(stack, files.follow())
        else:
            raise DeployError("no certificate: give --cert-dir DIR or --self-signed")
        if settings.metrics:
            await _serve(stack, webhook.metrics_app(), settings.metrics)
        await _serve(stack, webhook.app(), settings.listen, (serving, webhook.door))
        logger.info("injector: reviews at https://%s, sidecars in the %s form", settings.listen, form)
        yield webhook


async def _cluster(settings: InjectorSettings, stack: contextlib.AsyncExitStack) -> ApiClient | None:
    """The cluster that this process runs in; None if there is none and none is needed."""
    try:
        server = settings.api_server or ApiServer.around(os.environ)
    except DeployError:
        if settings.self_signed:
            raise
        return None
    return ApiClient(server, await stack.enter_async_context(aiohttp.ClientSession()))


async def _form(wanted: str, cluster: ApiClient | None) -> str:
    """The form of sidecars: as set, or by the version of the cluster; native if the version is unknown."""
    if wanted != AUTO:
        return wanted
    if cluster is None:
        return NATIVE
    try:
        told = await cluster.get("/version")
        return form_for(f"{told.get('major')}.{told.get('minor')}")
    except (ClusterError, BadSetting) as error:
        logger.warning("unknown Kubernetes version, so sidecars get the native form: %s", error)
        return NATIVE


async def _keep(
    stack: contextlib.AsyncExitStack,
    place: InjectorPlace,
    cluster: ApiClient,
    serving: ServingCertificate,
    webhook: Webhook,
) -> None:
    """Make and renew certificates. Ready as soon as one is served and trusted."""
    try:
        from understudy.deploy.kubernetes.webhook.cert_rotation import Keeper
    except ImportError:
        raise DeployError("--self-signed needs the package cryptography: pip install 'understudy[injector]'") from None
    keeper = Keeper(cluster, place, serving)

    def looked() -> None:
        # Once ready it stays ready: if the API server is away later, the certificate is still served and trusted.
        if not webhook.readiness.stopping and (serving.current is None or webhook.readiness.reason):
            webhook.readiness.reason = keeper.trouble

    await _beside(stack, keeper.run(looked))


async def _serve(
    stack: contextlib.AsyncExitStack,
    app: web.Application,
    address: str,
    over_tls: tuple[ServingCertificate, Door] | None = None,
) -> None:
    """Serve an application at ``host:port``, with TLS if ``over_tls`` is given. Raises :class:`DeployError`."""
    runner = await serve(stack, app)
    host, port = split_address(address)
    try:
        if over_tls:
            serving, door = over_tls
            await TlsSite(runner, host, port, serving.context, door.protocols).start()
        else:
            await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise PortInUseError(address, "free it or choose another address", str(error.strerror)) from None


async def _beside(stack: contextlib.AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    """Run ``work`` until the stack unwinds."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


def _note_end(webhook: Webhook, certificate: bytes) -> None:
    """Set the metric of the certificate's expiry, if ``cryptography`` is installed."""
    try:
        from understudy.deploy.kubernetes.webhook.certificates import end_of
    except ImportError:
        return
    end = end_of(certificate)
    webhook.metrics.certificate_end.set(end.timestamp())
    logger.info("serving with a certificate that expires at %s", end.astimezone(dt.UTC).isoformat())
