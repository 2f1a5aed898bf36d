"""Keeps the request log short: forgets outcomes that are too old, and deletes their records from etcd.

Each process deletes its own records. Those of processes that are gone are deleted by one member, the first by name.
"""

import asyncio
import logging
import time

import msgspec

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.etcd.client import Delete, EtcdClient, EtcdError
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.sessions.request_log import RequestLog, Window

logger = logging.getLogger(__name__)

SWEEP_INTERVAL = 5.0
GONE_INTERVAL = 60.0
"""Seconds between two looks for records of processes that are gone. Each look reads one key per process."""
DELETES_AT_ONCE = 100


class _Gone(msgspec.Struct, frozen=True, gc=False):
    """A process that is not living any more: ``since`` when (monotonic), and the revision of etcd then."""

    since: float
    revision: int


class RequestSweep:
    """Forgets and deletes; one per member."""

    def __init__(self, pool: PoolView, requests: RequestLog, etcd: EtcdClient) -> None:
        self._pool = pool
        self._records = pool.identity.keys.requests
        self._requests = requests
        self._etcd = etcd
        self._undeleted: list[KeyRange] = []
        self._gone: dict[str, _Gone] = {}
        self.interval, self.gone_interval = SWEEP_INTERVAL, GONE_INTERVAL

    async def run(self) -> None:
        """Sweep until cancelled. What etcd does not take now is deleted in a later round."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep_own())
            group.create_task(self._sweep_gone())

    @property
    def _keep(self) -> float | None:
        """How long outcomes are kept, in seconds; None while the spec is unknown."""
        spec = self._pool.spec
        return Window.of(spec.timeouts.request_seconds).keep if spec is not None else None

    async def _sweep_own(self) -> None:
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
        keep = self._keep
        due = sorted(self._requests.forget(time.monotonic(), keep)) if keep is not None else []
        return [KeyRange(due[0], due[-1] + "\0")] if due else []

    async def _sweep_gone(self) -> None:
        while True:
            await asyncio.sleep(self.gone_interval)
            try:
                await self._delete_gone(time.monotonic())
            except EtcdError as error:
                logger.info("records of requests of processes that are gone cannot be deleted yet: %s", error)

    async def _delete_gone(self, now: float) -> None:
        """Delete the records of processes that are gone for long enough. Raises ``EtcdError``."""
        members, keep = self._pool.state.members, self._keep
        if keep is None or self._pool.identity.me != min(members, default=""):
            return
        living = {f"{self._records}{member}/{at.record.boot}/" for member, at in members.items()}
        found = {process: revision for process, revision in (await self._processes()).items() if process not in living}
        self._gone = {process: gone for process, gone in self._gone.items() if process in found}
        for process, revision in found.items():
            gone = self._gone.get(process)
            if gone is None or await self._writes_since(process, gone.revision):
                self._gone[process] = _Gone(now, revision)
            elif now - gone.since >= keep:
                await self._etcd.delete(prefix_range(process))
                del self._gone[process]

    async def _processes(self) -> dict[str, int]:
        """What the records of each process that has some begin with, and the revision at which that was read."""
        processes: dict[str, int] = {}
        rest = prefix_range(self._records)
        while (page := await self._etcd.range(rest, limit=1, keys_only=True)).kvs:
            key = page.kvs[0].key
            member, boot, number = [*key.removeprefix(self._records).split("/", 2), "", ""][:3]
            if member and boot and number:
                process = f"{self._records}{member}/{boot}/"
                processes[process] = page.revision
                rest = KeyRange(prefix_range(process).end, rest.end)
            else:
                rest = KeyRange(key + "\0", rest.end)  # nobody of the pool wrote it
        return processes

    async def _writes_since(self, process: str, revision: int) -> bool:
        """Whether a process wrote a record after ``revision``: it lives, though its member record is gone."""
        page = await self._etcd.range(prefix_range(process), limit=1, min_mod_revision=revision + 1, keys_only=True)
        return bool(page.kvs)
