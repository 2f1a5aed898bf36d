"""Pools by name: listed, deleted, and what is said to somebody who names one that is not there."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from tests.harness.waiting import free_port, until
from understudy.deploy.cli.main import cli
from understudy.deploy.data import pools as deploy_pools
from understudy.proxy.sidecar.settings import SidecarSettings
from understudy.proxy.sidecar.sidecar import running_sidecar
from understudy.statesync.etcd.client import Rejected
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool import pools as statesync_pools
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import did_you_mean, nearest, pool_names
from understudy.statesync.pool.records import ControlServer, Member, MemberState, Owner
from understudy.statesync.pool.spec import PoolSpec


@pytest.fixture
def understudy(tmp_path, monkeypatch, etcd):
    """Run a command in an empty directory, against the tests' etcd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_ETCD", etcd.endpoint)
    runner = CliRunner(env={"COLUMNS": "200"})
    with ThreadPoolExecutor(1) as thread:  # commands run an event loop of their own

        def run(*arguments, answer=None):
            return thread.submit(runner.invoke, cli, [str(one) for one in arguments], input=answer).result()

        yield run


@pytest.fixture
async def made(client, pool_name):
    """A pool of four slots with owners and seven sessions, and nobody who runs; returns its keys."""
    keys = PoolKeys(pool_name)
    await client.put(keys.spec, PoolSpec(pool=pool_name, slots=4).encode())
    for slot in range(4):
        await client.put(keys.owner(slot), Owner("cart-1", "boot1", 2).encode())
    for number in range(7):
        await client.put(keys.session(number % 4, f"key-{number}"), b"{}")
    return keys


async def count(client, keys):
    return (await client.range(keys.everything, limit=1, keys_only=True)).count


def misspelt(pool):
    return pool.replace("pool", "poll")


# -- names --


@pytest.mark.parametrize(
    ("named", "meant"),
    [("crat", "cart"), ("carts", "cart"), ("car", "cart"), ("czrt", "cart"), ("invnetroy", "inventory")],
)
def test_a_misspelt_name_is_known_again(named, meant):
    assert nearest(named, ["shop", "cart", "inventory"]) == meant


@pytest.mark.parametrize("named", ["cart", "tract", "cat-b", "inventor-east", ""])
def test_another_name_is_no_misspelling(named):
    assert nearest(named, ["cart", "inventory"]) == ""


async def test_who_may_not_see_other_pools_is_offered_none():
    class Denied:
        async def range(self, *_args, **_options):
            raise Rejected("range", "", "permission denied")

    assert await did_you_mean(Denied(), "crat") == ""


async def test_names_are_found_without_reading_their_keys(client, made):
    other = PoolKeys(f"{made.pool}-2")
    await client.put(other.secret, b"x")
    assert {made.pool, other.pool} <= set(await pool_names(client))


@pytest.mark.parametrize("command", ["status", "table", "failovers", "sessions"])
def test_a_misspelt_pool_is_told_with_the_name_that_was_meant(understudy, made, command):
    refused = understudy(command, "--pool", misspelt(made.pool))
    assert refused.exit_code == 2
    assert f"there is no pool '{misspelt(made.pool)}' in etcd at" in refused.stderr
    assert refused.stderr.endswith(f": did you mean '{made.pool}'?\n")


async def test_who_waits_for_a_pool_that_was_never_made_is_told(understudy, client, pool_name):
    record = Member("cart-1", "b", "127.0.0.1:1", "127.0.0.1:2")
    await client.put(PoolKeys(pool_name).member("cart-1"), record.encode())
    refused = understudy("status", "--pool", pool_name)
    assert ", although cart-1 waits for it: " in refused.stderr
    row = next(row for row in json.loads(understudy("pools", "-o", "json").output)["pools"] if row["pool"] == pool_name)
    assert (row["made"], row["members"], row["slots"]) == (False, 1, None)


def test_a_pool_that_is_made_beside_one_of_nearly_the_same_name_is_questioned(understudy, made, tmp_path):
    (tmp_path / "pool.yaml").write_text(f"pool: {misspelt(made.pool)}\n")
    done = understudy("apply", "-f", "pool.yaml")
    assert (done.exit_code, done.stdout) == (0, f"pool {misspelt(made.pool)}: created\n")
    assert f"there is also a pool {made.pool}" in done.stderr
    assert understudy("apply", "-f", "pool.yaml").stderr == ""


async def test_a_sidecar_of_a_misspelt_pool_says_so_and_serves_once_the_pool_is_made(made, client, etcd, monkeypatch):
    monkeypatch.setattr(statesync_pools, "POLL_INTERVAL", 0.05)
    keys = PoolKeys(misspelt(made.pool))
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    settings = SidecarSettings("cart-1", keys.pool, *addresses, etcd=EtcdSettings((etcd.endpoint,)))
    said = f"there is no pool '{keys.pool}' in etcd: did you mean '{made.pool}'?"
    async with running_sidecar(settings) as sidecar:
        await until(lambda: sidecar.status.look() == (MemberState.INIT, said), 40, "the sidecar says what it waits for")

        async def recorded() -> bool:
            record = await client.get(keys.member("cart-1"))
            return record is not None and Member.decode(record.value).reason == said

        await until(recorded, 40, "so does its record")
        await client.put(keys.spec, PoolSpec(pool=keys.pool, slots=4).encode())
        await until(lambda: "no pool" not in sidecar.status.look()[1], 40, "the pool is there")


# -- listed --


async def test_pools_are_listed_with_what_they_hold(understudy, client, made):
    place = "127.0.0.1:1"
    await client.put(made.member("cart-1"), Member("cart-1", "b", place, place).encode())
    await client.put(made.control("control-1"), ControlServer("control-1", place, place).encode())
    rows = json.loads(understudy("pools", "-o", "json").output)["pools"]
    expected = {"pool": made.pool, "made": True, "members": 1, "controls": 1, "slots": 4, "sessions": 7}
    assert expected in rows
    assert [row["pool"] for row in rows] == sorted(row["pool"] for row in rows)
    assert made.pool in understudy("pools").output


async def test_a_spec_that_cannot_be_read_does_not_keep_the_pools_from_being_listed(understudy, client, made):
    await client.put(made.spec, b"garbage")
    shown = understudy("pools")
    line = next(line for line in shown.output.splitlines() if made.pool in line)
    assert (shown.exit_code, "unreadable" in line) == (0, True)


# -- deleted --


async def test_a_pool_is_deleted_with_all_its_keys_in_batches_and_its_neighbours_keep_theirs(
    understudy, client, made, monkeypatch
):
    monkeypatch.setattr(deploy_pools, "BATCH", 2)
    neighbours = [PoolKeys(f"{made.pool}{more}") for more in ("-2", ".a", "0")]
    for keys in neighbours:
        await client.put(keys.spec, b"{}")
    done = understudy("pools", "delete", made.pool, "--yes")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"pool {made.pool}: its spec (4 slots), 4 owner records, 7 sessions; 12 keys in all",
        f"deleted pool {made.pool}: 12 keys",
    ]
    assert await count(client, made) == 0
    assert [await count(client, keys) for keys in neighbours] == [1, 1, 1]


async def test_nothing_is_deleted_unless_somebody_agrees(understudy, client, made):
    assert understudy("pools", "delete", made.pool, answer="n\n").exit_code == 1
    silent = understudy("pools", "delete", made.pool, answer="")
    assert (silent.exit_code, "give --yes" in silent.stderr) == (2, True)
    assert await count(client, made) == 12
    assert understudy("pools", "delete", made.pool, answer="y\n").exit_code == 0
    assert await count(client, made) == 0


async def test_a_pool_whose_processes_run_is_deleted_by_force_alone(understudy, client, made):
    place = "127.0.0.1:1"
    await client.put(made.member("cart-1"), Member("cart-1", "b", place, place).encode())
    await client.put(made.control("control-1"), ControlServer("control-1", place, place).encode())
    refused = understudy("pools", "delete", made.pool, "--yes")
    assert (refused.exit_code, "has member cart-1, control server control-1: stop them" in refused.stderr) == (2, True)
    assert await count(client, made) == 14
    assert understudy("pools", "delete", made.pool, "--yes", "--force").exit_code == 0
    assert await count(client, made) == 0


def test_a_pool_that_is_not_there_cannot_be_deleted(understudy, made):
    refused = understudy("pools", "delete", misspelt(made.pool), "--yes")
    assert (refused.exit_code, f"did you mean '{made.pool}'?" in refused.stderr) == (2, True)


async def test_options_before_delete_are_refused_rather_than_ignored(understudy, client, made, etcd):
    refused = understudy("pools", "--etcd", etcd.endpoint, "delete", made.pool, "--yes")
    assert (refused.exit_code, "'understudy pools delete ...'" in refused.stderr) == (2, True)
    assert await count(client, made) == 12


async def test_what_is_written_behind_the_back_of_a_deletion_is_told(understudy, client, made, monkeypatch):
    real = deploy_pools.delete_pool

    async def with_a_late_writer(other, pool):
        deleted = await real(other, pool)
        await other.put(made.session(0, "late"), b"{}")
        return deleted

    monkeypatch.setattr(deploy_pools, "delete_pool", with_a_late_writer)
    refused = await asyncio.to_thread(understudy, "pools", "delete", made.pool, "--yes")
    assert (refused.exit_code, "has 1 key again: stop the processes that write them" in refused.stderr) == (2, True)
