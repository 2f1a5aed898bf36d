"""A member of etcd without data joins again by itself, with everything else of its site; nobody has to tell etcd."""

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import free_port, until
from understudy.deploy.load.history_checker import check_history
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.etcd_join import JOIN_FILE, LocalEtcd, Rejoin, expect
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.spec_reader import parse_spec

ETCDS = [LocalEtcd(f"etcd-{n}", f"http://127.0.0.1:{n}", f"http://127.0.0.1:{n}0") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("data", "later", "waiting"),
    [
        ((), (), ()),
        ((), (1, 2), ()),  # a new etcd whose members do not all start at once
        ((1, 2, 3), (), ()),
        ((1, 2), (), (3,)),
        ((2,), (), ()),  # etcd has no majority, so nobody could tell it
        ((2,), (3,), (1,)),
    ],
)
def test_a_member_waits_if_etcd_has_been_there_without_it(
    data: tuple[int, ...], later: tuple[int, ...], waiting: tuple[int, ...], tmp_path: Path
) -> None:
    for number in data:
        (tmp_path / f"etcd-{number}" / "member").mkdir(parents=True)
    rejoin = Rejoin(tmp_path, ETCDS, lambda _: True)
    for number in later:
        (tmp_path / f"etcd-{number}" / "member").mkdir(parents=True)
    assert [number for number in (1, 2, 3) if rejoin.must_wait(f"etcd-{number}")] == list(waiting)
    assert not rejoin.must_wait("cart-1/sidecar")
    for number in waiting:
        expect(tmp_path, f"etcd-{number}", "all of them")
        assert not rejoin.must_wait(f"etcd-{number}"), "etcd expects it"


SPEC = parse_spec(
    "{pool: cart, slots: 16, replication: {spread: site}, sites: {east: {weight: 50}, west: {weight: 50}}}",
    where="test",
)


async def test_a_site_that_lost_everything_is_whole_again_when_its_processes_start(tmp_path: Path) -> None:
    settings = LocalSettings(
        tmp_path, SPEC, members=2, sites=("east", "west"), etcds=3, listen=f"127.0.0.1:{free_port()}"
    )
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
        layout, processes = pool.layout, pool.processes
        lost = layout.etcd_names[layout.etcd_sites.index("west")]
        await settled(layout, etcd)
        load = Load(layout.front_url, sessions=20, rate=20.0)
        try:
            await load.open_sessions()
            load.start()
            west = [name for at in layout.members if at.site == "west" for name in pool.member_processes(at.name)]
            processes.kill(lost, *west)
            await until(lambda: not processes[lost].pid, 40, "etcd's member is dead")
            shutil.rmtree(tmp_path / lost)
            progress = sum(op.succeeded for op in load.history) + 40
            await until(lambda: sum(op.succeeded for op in load.history) >= progress, 60, "east serves")
            await processes.start_again(lost, *west, timeout=120)
            await settled(layout, etcd)
            await load.stop()
            result = check_history(load.history, await load.final_contents())
        finally:
            await load.close()
        assert (result.lost_writes, result.duplicated_writes, result.stale_reads) == (0, 0, 0), result.failures
        assert [one.errors for one in await etcd.status()] == [()] * 3
        await until(lambda: not (tmp_path / JOIN_FILE).exists(), 40, "it could be lost once more")
        processes.kill(next(name for name in layout.etcd_names if name != lost))

        async def written() -> bool:
            with contextlib.suppress(EtcdError):
                return await etcd.put("/written-after", b"") > 0
            return False

        await until(written, 60, "the member that joined again is half of a majority")
