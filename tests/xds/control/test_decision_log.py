"""Every slot table has its record in the audit log, in the same transaction and without a further round trip."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.harness.records import SeenTable
from tests.harness.waiting import until
from tests.xds.control.control_pool import QUICK, SPEC, ControlPool, control_pool
from understudy.statesync.audit.chain import ChainReport, Mark, verify
from understudy.statesync.audit.entry import Actor, Chain, Entry, unseal
from understudy.statesync.audit.log import read_newest, trim
from understudy.statesync.etcd.client import CreateRevision, EtcdClient, Kv, OutcomeUnknown
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import ControlServer, Intent, Member, Table
from understudy.telemetry.tracing.setup import start_telemetry
from understudy.xds.control.controller import Controller, Timing
from understudy.xds.control.election import Leadership
from understudy.xds.control.process_lease import ProcessLease
from understudy.xds.server.cache import ResourceCache


@pytest.fixture
async def pool(tmp_path) -> AsyncIterator[ControlPool]:
    async with control_pool(tmp_path, SPEC.model_copy(update={"liveness": QUICK})) as running:
        yield running


@contextlib.asynccontextmanager
async def leading(pool: ControlPool, name: str = "control-1") -> AsyncIterator[Controller]:
    """A controller in this process that leads and looks for no death: records in etcd are all that it sees."""
    await pool.client.put(pool.keys.leader, name.encode())
    leader = await pool.client.get(pool.keys.leader)
    assert leader is not None
    leadership = Leadership(pool.client, pool.keys, ControlServer(name, "", ""), ProcessLease(pool.client))
    telemetry = start_telemetry("understudy-control", name)
    controller = Controller(
        pool.client,
        pool.keys,
        leadership=leadership,
        cache=ResourceCache(),
        telemetry=telemetry,
        timing=Timing(first_table=0.0, settle=0.0),
        actor=Actor(name, "here", "control, pid 1", "root"),
    )
    leadership._term = leader.create_revision
    services = controller.services()
    services.pop("heartbeats").close()  # No member listens, and each loss would be one more table.
    running = asyncio.gather(*services.values())
    try:
        yield controller
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pool.client.delete(pool.keys.leader)  # A decision that is still under way fails from here on.
        await telemetry.aclose()


async def join(pool: ControlPool, name: str) -> SeenTable:
    """Register a member, and return the table that has it."""
    await pool.client.put(pool.keys.member(name), Member(name, "one", "127.0.0.1:1", "127.0.0.1:2", "UP").encode())
    return await pool.table_with(lambda table: any(name in order for order in table.orders), f"a table with {name}")


async def stored(pool: ControlPool) -> dict[str, Kv]:
    return {kv.key: kv for kv in (await pool.client.range(prefix_range(pool.keys.audit))).kvs}


async def report(pool: ControlPool) -> ChainReport:
    return verify(pool.keys, Chain.DECISIONS, await stored(pool))


async def entries(pool: ControlPool) -> list[tuple[int, Entry]]:
    """Each record of a decision, and the revision of its transaction."""
    kvs, _ = await read_newest(pool.client, pool.keys, Chain.DECISIONS, 0)
    return [(kv.mod_revision, unseal(kv.value).entry) for kv in kvs]


async def test_every_table_has_its_record_in_its_transaction(pool: ControlPool) -> None:
    async with leading(pool):
        seen = [await join(pool, name) for name in ("cart-1", "cart-2", "cart-3")]
    found = await entries(pool)
    assert [(at, entry.what) for at, entry in found] == [
        (one.revision, f"table {one.table.generation}") for one in seen
    ]
    assert [entry.before for _, entry in found] == [0, seen[0].revision, seen[1].revision]
    assert {(one.who, one.host, one.process, one.account) for _, one in found} == {
        ("control-1", "here", "control, pid 1", "root")
    }
    assert found[0][1].why == "first table"
    assert (await report(pool)).faults == ()


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_table_costs_one_call_of_etcd_and_one_more_if_the_chain_grew_unseen(
    pool: ControlPool, monkeypatch, overtaken: bool
) -> None:
    async with leading(pool):
        await join(pool, "cart-1")
        if overtaken:
            end = await pool.client.get(pool.keys.audit_end(Chain.DECISIONS))
            assert end is not None
            await pool.client.put(end.key, end.value)
        calls: list[str] = []
        written = asyncio.Event()
        for name in ("get", "range", "put", "txn"):
            monkeypatch.setattr(pool.client, name, counted(pool.client, name, calls, written))
        async with EtcdClient(pool.etcd.endpoints) as other:
            record = Member("cart-2", "one", "127.0.0.1:1", "127.0.0.1:2", "UP")
            await other.put(pool.keys.member("cart-2"), record.encode())
            async with asyncio.timeout(40):
                await written.wait()
        assert calls == ["txn", "txn"][: 1 + overtaken]


def counted(client: EtcdClient, name: str, calls: list[str], written: asyncio.Event) -> Callable[..., Any]:
    """The method, which notes its name; not after a transaction has succeeded: the leader goes on with other work."""
    method = getattr(client, name)

    async def call(*arguments: Any, **options: Any) -> Any:
        if not written.is_set():
            calls.append(name)
        result = await method(*arguments, **options)
        if name == "txn" and result.succeeded:
            written.set()
        return result

    return call


@pytest.mark.parametrize(
    "value", [None, b"?", Mark(9, "0" * 64).encode()], ids=["deleted", "garbage", "another number"]
)
async def test_a_foreign_hand_at_the_log_stops_no_table(pool: ControlPool, value: bytes | None) -> None:
    async with leading(pool):
        await join(pool, "cart-1")
        end = pool.keys.audit_end(Chain.DECISIONS)
        await (pool.client.delete(end) if value is None else pool.client.put(end, value))
        seen = await join(pool, "cart-2")
        found = await entries(pool)
        assert found[-1][0] == seen.revision
        faults = (await report(pool)).faults
        assert bool(faults) == (value is not None and value != b"?"), faults


async def test_the_next_leader_continues_the_chain(pool: ControlPool) -> None:
    async with leading(pool, "control-1"):
        await join(pool, "cart-1")
    await pool.client.delete(pool.keys.leader)
    async with leading(pool, "control-2"):
        await join(pool, "cart-2")
    assert [(entry.number, entry.who) for _, entry in await entries(pool)] == [(1, "control-1"), (2, "control-2")]
    assert (await report(pool)).faults == ()


async def test_a_table_whose_answer_was_lost_has_one_record_and_the_next_follows_it(pool, monkeypatch) -> None:
    txn, lost = pool.client.txn, []

    async def loses_the_answer(*arguments: Any, **options: Any) -> Any:
        result = await txn(*arguments, **options)
        if not lost and any(getattr(step, "key", "") == pool.keys.table for step in arguments[1]):
            lost.append(result.revision)
            raise OutcomeUnknown("txn", "", "the answer was lost")
        return result

    async with leading(pool):
        monkeypatch.setattr(pool.client, "txn", loses_the_answer)
        first = await join(pool, "cart-1")
        second = await join(pool, "cart-2")
    assert lost == [first.revision]
    assert [at for at, _ in await entries(pool)] == [first.revision, second.revision]
    assert (await report(pool)).faults == ()


async def test_a_deposed_leader_leaves_no_record(pool: ControlPool) -> None:
    async with leading(pool) as controller:
        await join(pool, "cart-1")
        before = await stored(pool)
        await pool.client.delete(pool.keys.leader)
        await pool.client.put(pool.keys.leader, b"somebody else")
        record = Member("cart-2", "one", "127.0.0.1:1", "127.0.0.1:2", "UP")
        await pool.client.put(pool.keys.member("cart-2"), record.encode())
        recheck = controller.leader._leadership._recheck
        await until(recheck.is_set, what="it tried, and doubts that it leads")
        assert await stored(pool) == before


async def test_old_records_are_removed_and_the_rest_stays_verifiable(pool: ControlPool) -> None:
    async with leading(pool):
        for number in range(1, 8):
            await join(pool, f"cart-{number}")
    # Nobody leads while the records are counted.
    fence = CreateRevision(pool.keys.leader, 0)
    count = len(await entries(pool))
    for kept, batch, removed in ((count - 1, 2, 0), (count - 3, 2, 2), (count - 5, 2, 2), (count, 2, 0)):
        assert await trim(pool.client, pool.keys, Chain.DECISIONS, fence, kept=kept, batch=batch) == (removed, "")
    wrong = CreateRevision(pool.keys.leader, 1)
    assert await trim(pool.client, pool.keys, Chain.DECISIONS, wrong, kept=1, batch=1) == (0, "")
    found = await report(pool)
    assert (found.first, found.newest.number, found.faults) == (5, count, ())
    async with leading(pool):
        await join(pool, "cart-8")
    assert (await report(pool)).faults == ()

    left = len(await entries(pool))
    assert left > count - 4
    await pool.client.put(pool.keys.audit_record(Chain.DECISIONS, 5), b"{}")
    removed, why = await trim(pool.client, pool.keys, Chain.DECISIONS, fence, kept=1, batch=1)
    assert (removed, why) == (0, "record 5 was altered: it is not an audit record")
    assert len(await entries_or_garbage(pool)) == left


async def entries_or_garbage(pool: ControlPool) -> list[Kv]:
    return (await read_newest(pool.client, pool.keys, Chain.DECISIONS, 0))[0]


async def test_the_leader_removes_old_records_of_both_chains(pool: ControlPool, monkeypatch) -> None:
    monkeypatch.setattr("understudy.xds.control.decision_log.TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(trim, "__kwdefaults__", {"kept": 2, "batch": 2})
    async with leading(pool):
        for number in range(1, 7):
            await join(pool, f"cart-{number}")

        async def removed() -> bool:
            return (await report(pool)).first > 1

        await until(removed, 20, "old records are removed")
        assert (await report(pool)).faults == ()
        assert len(await entries(pool)) >= 2


async def test_a_death_and_a_site_are_the_reasons_of_their_tables(pool: ControlPool) -> None:
    control = await pool.control()
    await control.ready()
    members = await pool.join("cart-1", "cart-2", "cart-3")
    await control.hears(*members)
    seen = await pool.table_with(
        lambda table: {order[0] for order in table.orders if order} == pool.members.keys(), "a table of all"
    )
    await pool.claim_all(seen)
    members[1].kill()
    lost = await pool.table_with(lambda table: "cart-2" in table.lost, "a table that names cart-2 lost")
    await pool.client.put(pool.keys.site_intent("east"), Intent(site="east").encode())
    offline: Callable[[Table], bool] = lambda table: table.offline == ("east",)  # noqa: E731
    await pool.table_with(offline, "a table without site east")
    found = dict(await entries(pool))
    assert found[lost.revision].why.startswith(f"cart-2 is lost: {lost.table.lost['cart-2'].cause}")
    assert found[lost.revision].who == "control-1"
    assert found[lost.revision].process.startswith("control, pid ")
    assert "slots get another active" in found[lost.revision].detail
    assert (await report(pool)).faults == ()
