"""What this member keeps in memory of its pool's sessions and requests, and how far the watch has brought it."""

import asyncio
import time
from dataclasses import dataclass

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog

REQUESTS_PAGE = 500
"""Records in a page when the request log is read from etcd."""


@dataclass(frozen=True, slots=True)
class LocalCopies:
    """The sessions of the held slots, the outcomes of their requests, and the watch."""

    informer: Informer
    replica: Replica
    requests: RequestLog

    async def caught_up(self, revision: int, timeout: float, key: str = "") -> bool:
        """Wait up to ``timeout`` seconds for :meth:`Informer.caught_up`; whether it has."""
        try:
            async with asyncio.timeout(timeout):
                await self.informer.caught_up(revision, key)
        except TimeoutError:
            return False
        return True

    async def read_requests(self, etcd: EtcdClient, requests: KeyRange) -> None:
        """Read the whole request log from etcd. Raises ``EtcdError``."""
        async for page in etcd.pages(requests, page=REQUESTS_PAGE):
            self.requests.read(page.kvs, time.monotonic())
