"""Keeps the request log short: forgets outcomes whose time is over, and deletes their records from etcd."""

import asyncio
import logging
import time
from itertools import groupby

from understudy.proxy.ownership.context import MemberContext
from understudy.statesync.etcd.client import Delete, EtcdError
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.sessions.request_log import Window

logger = logging.getLogger(__name__)

SWEEP_INTERVAL = 5.0
DELETES_AT_ONCE = 100
LOG_PAGE = 500
"""Records in a page when the log is read from etcd."""


class RequestSweep:
    """Forgets and deletes; one per member."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
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
                    await self._context.etcd.txn([], [Delete(one) for one in some], [])
                except EtcdError as error:
                    logger.info("records of requests cannot be deleted yet: %s", error)
                    break
                del self._undeleted[: len(some)]

    def _forget(self) -> list[KeyRange]:
        """The ranges of records that may go: neighbours go together, since a process numbers its records."""
        context = self._context
        spec = context.state.spec
        if spec is None:
            return []
        boots = {member: at.record.boot for member, at in context.state.members.items()}
        keep = Window.of(spec.record.timeouts.request_seconds).keep
        due = sorted(context.requests.forget(time.monotonic(), keep, boots))
        found = []
        for _, records in groupby(due, key=lambda record: record.rpartition("/")[0]):
            of_one_process = list(records)
            found.append(KeyRange(of_one_process[0], of_one_process[-1] + "\0"))
        return found


async def read_requests(context: MemberContext) -> None:
    """Take in the whole request log from etcd, for a member whose watch lags behind. Raises ``EtcdError``."""
    async for page in context.etcd.pages(prefix_range(context.keys.requests), page=LOG_PAGE):
        context.requests.read(page.kvs, time.monotonic())
