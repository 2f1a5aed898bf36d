"""Keeps the request log short: forgets outcomes that are too old, and deletes their records from etcd."""

import asyncio
import logging
import time
from itertools import groupby

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
        """The ranges of records that may go: neighbours go together, since a process numbers its records."""
        spec = self._pool.spec
        if spec is None:
            return []
        boots = {member: at.record.boot for member, at in self._pool.state.members.items()}
        keep = Window.of(spec.timeouts.request_seconds).keep
        due = sorted(self._requests.forget(time.monotonic(), keep, boots))
        found = []
        for _, records in groupby(due, key=lambda record: record.rpartition("/")[0]):
            of_one_process = list(records)
            found.append(KeyRange(of_one_process[0], of_one_process[-1] + "\0"))
        return found
