"""Keeps the request log short: forgets outcomes that are too old, and deletes this process's records from etcd."""

import asyncio
import logging
import time

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.etcd.client import Delete, EtcdClient, EtcdError
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.sessions.request_log import RequestLog, Window

logger = logging.getLogger(__name__)

SWEEP_INTERVAL = 5.0
DELETES_AT_ONCE = 100


class RequestSweep:
    """Forgets and deletes; one per member."""

    def __init__(self, pool: PoolView, requests: RequestLog, etcd: EtcdClient) -> None:
        self._pool = pool
        self._requests = requests
        self._etcd = etcd
        self._undeleted: list[KeyRange] = []
        self.interval = SWEEP_INTERVAL

    async def run(self) -> None:
        """Sweep until cancelled. What etcd does not take now is deleted in a later round."""
        while True:
            await asyncio.sleep(self.interval)
            self._undeleted += self._forget()
            while self._undeleted:
                some = self._undeleted[:DELETES_AT_ONCE]
                try:
                    await self._etcd.txn([], [Delete(one) for one in some], [])
                except EtcdError as error:
                    logger.info("records of requests cannot be deleted yet: %s", error)
                    break
                del self._undeleted[: len(some)]

    def _forget(self) -> list[KeyRange]:
        """The range of own records that may go: a process numbers its records, so they are neighbours."""
        spec = self._pool.spec
        if spec is None:
            return []
        due = sorted(self._requests.forget(time.monotonic(), Window.of(spec.timeouts.request_seconds).keep))
        return [KeyRange(due[0], due[-1] + "\0")] if due else []
