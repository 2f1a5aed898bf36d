"""How the harness reads records by their layout in etcd, against those that members write."""

from dataclasses import replace

from tests.harness.records import SeenSyncSet
from understudy.statesync.pool.records import SyncRecord
from understudy.statesync.replication.sync_set import Process, SyncSet


def test_a_sync_set_is_read_as_it_is_written():
    sync = SyncSet(
        frozenset({Process("b", "1"), Process("a", "2")}), memory=True, former=frozenset({Process("c", "3")})
    )
    seen = SeenSyncSet.read(replace(SyncRecord.of_set(7, sync), losses=2).encode())
    assert seen == SeenSyncSet(7, frozenset({("a", "2"), ("b", "1")}), True, frozenset({("c", "3")}), 2)
    assert seen.names == {"a", "b"}
