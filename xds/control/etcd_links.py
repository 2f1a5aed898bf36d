"""The etcd clusters of a control server process: one, or several that know nothing of each other.

With several, each has a client, a lease and an entry in the audit log of its own. At the start one of them must answer.
Others may be away, then and later: their pools wait, and those of the other clusters do not.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from understudy.statesync.audit.actor import this_process
from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.access import EtcdMissing, await_etcd
from understudy.statesync.tls.secret_files import TooOpen, fault_of
from understudy.xds.control.ports import StartError
from understudy.xds.control.process_lease import ProcessLease
from understudy.xds.control.settings import ControlSettings

logger = logging.getLogger(__name__)


class EtcdLink(msgspec.Struct, frozen=True):
    """One etcd cluster of this process: its ``name``, '' if it is the only one, and what reaches it."""

    name: str
    settings: EtcdSettings
    client: EtcdClient
    lease: ProcessLease
    actor: Actor


@contextlib.asynccontextmanager
async def etcd_links(settings: ControlSettings, stop: asyncio.Event) -> AsyncIterator[tuple[EtcdLink, ...]]:
    """The links to all clusters, one of which answered once. Raises :class:`StartError` if none does."""
    async with contextlib.AsyncExitStack() as stack:
        links = []
        for name, etcd in settings.etcds.items():
            client = await stack.enter_async_context(_client(name, etcd, share_watches=not settings.only))
            lease, actor = ProcessLease(client, settings.lease), this_process(settings.name, "control", etcd)
            links.append(EtcdLink(name, etcd, client, lease, actor))
        await _until_one_answers(links, settings, stop)
        yield tuple(links)


def _client(name: str, etcd: EtcdSettings, *, share_watches: bool) -> EtcdClient:
    try:
        return etcd.client(share_watches=share_watches)
    except TooOpen as error:
        raise StartError(fault_of(error)) from None
    except (ValueError, OSError) as error:
        option = f"--etcd-cluster {name}=" if name else "--etcd "
        raise StartError(f"{option}{','.join(etcd.endpoints)}: {error}") from None


async def _until_one_answers(links: list[EtcdLink], settings: ControlSettings, stop: asyncio.Event) -> None:
    """Return once a cluster has answered, or ``stop`` is set."""
    stopping = asyncio.create_task(stop.wait())
    waiting = [asyncio.create_task(_answers(link, settings)) for link in links]
    faults: list[str] = []
    try:
        while waiting and not stopping.done():
            await asyncio.wait([stopping, *waiting], return_when=asyncio.FIRST_COMPLETED)
            answered = [one.result() for one in waiting if one.done()]
            if "" in answered:
                return
            faults += answered
            waiting = [one for one in waiting if not one.done()]
        if not stop.is_set():
            raise StartError("; ".join(faults))
    finally:
        for task in (stopping, *waiting):
            task.cancel()


async def _answers(link: EtcdLink, settings: ControlSettings) -> str:
    """Why a cluster does not answer; '' once it does."""
    try:
        await await_etcd(link.client, link.settings, settings.only, timeout=settings.etcd_patience)
    except EtcdMissing as error:
        if link.name:
            logger.warning("etcd cluster %s: %s", link.name, error)
        return str(error)
    for status in await link.client.status():
        if status.at_risk:
            logger.warning("%s", status.at_risk)
    return ""
