"""What etcd said of a pool during faults: every version of its owner records and sync sets, and processes."""

import asyncio
import time
from collections.abc import Callable, Mapping

from tests.faults.history import OwnerChange, ProcessSeen, SyncChange
from tests.harness.records import SeenSyncSet
from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, Owner


class RecordLog:
    """Versions of records in the order in which they came."""

    def __init__(self, keys: PoolKeys) -> None:
        self._keys = keys
        self.owner_changes: list[OwnerChange] = []
        self.sync_changes: list[SyncChange] = []
        self.processes: list[ProcessSeen] = []

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Where the records are that :meth:`note` takes."""
        return (self._keys.owners, self._keys.members, self._keys.sync_sets)

    def note(self, kv: Kv) -> None:
        """Take in one version of a record."""
        now = time.monotonic()
        if kv.key.startswith(self._keys.members):
            member = Member.decode(kv.value)
            if member.boot not in {seen.boot for seen in self.processes if seen.member == member.member}:
                self.processes.append(ProcessSeen(member.member, member.boot, now))
        elif kv.key.startswith(self._keys.sync_sets):
            seen = SeenSyncSet.read(kv.value)
            members, former = tuple(sorted(seen.members)), tuple(sorted(seen.former))
            place = (kv.mod_revision, now)
            self.sync_changes.append(
                SyncChange(int(kv.key[-5:]), seen.epoch, members, former, seen.memory, seen.losses, *place)
            )
        elif kv.key.startswith(self._keys.owners):
            record = Owner.decode(kv.value)
            what = (record.active, record.boot, record.epoch, record.phase, record.cause)
            self.owner_changes.append(OwnerChange(int(kv.key[-5:]), *what, kv.mod_revision, now))

    async def follow_ends(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Record when processes of members end, until cancelled. ``pids``: those that run, 0 for none."""
        running: dict[str, int] = {}
        while True:
            for member, pid in pids().items():
                if running.get(member) not in (None, 0, pid):
                    self.processes.append(ProcessSeen(member, "", time.monotonic()))
                running[member] = pid
            await asyncio.sleep(0.02)
