"""The etcd client against a real etcd: reads, pages, transactions, and what failures it reports when etcd goes away."""

import asyncio

import pytest

from tests.harness.cable import Way, cable_to
from tests.harness.etcd import EtcdServer, running_cluster, running_etcd
from tests.harness.waiting import until
from understudy.statesync.etcd import transport as etcd_transport
from understudy.statesync.etcd.client import (
    Compacted,
    CompareFailed,
    CreateRevision,
    Delete,
    EtcdClient,
    Get,
    Kv,
    LeaseNotFound,
    ModRevision,
    NoSpace,
    OutcomeUnknown,
    Put,
    Rejected,
    Unavailable,
)
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import PoolKeys


@pytest.fixture
def keys(pool_name: str) -> PoolKeys:
    return PoolKeys(pool_name)


async def fill(client: EtcdClient, prefix: str, count: int) -> None:
    for begin in range(0, count, 100):
        puts = [Put(f"{prefix}{n:05d}", b"first") for n in range(begin, min(begin + 100, count))]
        await client.txn([], puts)


async def test_a_key_is_read_as_it_was_put(client: EtcdClient, keys: PoolKeys) -> None:
    first = await client.put(keys.spec, b"one")
    second = await client.put(keys.spec, b"two")

    assert await client.get(keys.spec) == Kv(keys.spec, b"two", second, first, 0)
    assert await client.get(keys.spec, serializable=True)
    assert await client.get(keys.table) is None


async def test_deleting_tells_how_many_there_were(client: EtcdClient, keys: PoolKeys) -> None:
    await fill(client, keys.members, 5)

    assert await client.delete(keys.members + "00000") == 1
    assert await client.delete(keys.everything) == 4
    assert await client.delete(keys.everything) == 0


async def test_keys_that_are_not_utf_8_come_through_unharmed(client: EtcdClient, keys: PoolKeys) -> None:
    odd = keys.members + b"\xff\xfe".decode("utf-8", "surrogateescape")
    await client.put(odd, b"value")

    [found] = (await client.range(prefix_range(keys.members))).kvs
    assert found.key == odd
    assert await client.get(odd)


async def test_a_range_is_limited_filtered_and_read_at_an_old_revision(client: EtcdClient, keys: PoolKeys) -> None:
    await fill(client, keys.members, 10)
    before = (await client.range(keys.everything)).revision
    await client.put(keys.members + "00003", b"changed")

    limited = await client.range(keys.everything, limit=4)
    changed = await client.range(keys.everything, min_mod_revision=before + 1)
    old = await client.range(keys.everything, revision=before)
    bare = await client.range(keys.everything, keys_only=True)

    assert (len(limited.kvs), limited.more, limited.count) == (4, True, 10)
    assert [kv.value for kv in changed.kvs] == [b"changed"]
    assert {kv.value for kv in old.kvs} == {b"first"}
    assert old.revision == before
    assert {kv.value for kv in bare.kvs} == {b""}


async def test_pages_are_all_of_one_revision_while_others_write(client: EtcdClient, keys: PoolKeys) -> None:
    await fill(client, keys.members, 1000)
    written: list[int] = []

    async def write() -> None:
        while True:
            n = len(written)
            changed = [f"{keys.members}{n * 37 % 1500:05d}", keys.members + "99999"]
            await client.txn([], [Put(key, b"later") for key in changed])
            await client.delete(f"{keys.members}{n * 41 % 1000:05d}")
            written.append(n)

    writer = asyncio.create_task(write())
    pages = []
    async for page in client.pages(keys.everything, page=100):
        pages.append(page)
        seen = len(written)
        await until(lambda seen=seen: len(written) > seen + 3, what="writes between two pages")
    writer.cancel()

    together = await client.range(keys.everything, revision=pages[0].revision)
    assert len(pages) > 5
    assert {page.revision for page in pages} == {together.revision}
    assert tuple(kv for page in pages for kv in page.kvs) == together.kvs


async def test_an_empty_range_is_one_empty_page(client: EtcdClient, keys: PoolKeys) -> None:
    pages = [page async for page in client.pages(keys.everything)]

    assert [page.kvs for page in pages] == [()]
    assert pages[0].revision > 0


async def test_a_transaction_answers_each_operation_of_the_branch_taken(client: EtcdClient, keys: PoolKeys) -> None:
    revision = await client.put(keys.owner(1), b"a")
    guard = [ModRevision(keys.owner(1), revision), CreateRevision(keys.owner(2), 0)]
    operations = [
        Put(keys.session(1, "s"), b"body"),
        Get(keys.owner(1)),
        Delete(keys.owner(3)),
        Put(keys.owner(1), b"b"),
    ]

    won = await client.txn(guard, operations, [Get(prefix_range(keys.owners))])
    lost = await client.txn(guard, operations, [Get(prefix_range(keys.owners))])

    assert won.succeeded
    assert [[kv.value for kv in answer] for answer in won.answers] == [[], [b"a"], [], []]
    assert not lost.succeeded
    assert lost.answers == ((Kv(keys.owner(1), b"b", won.revision, revision, 0),),)
    assert lost.revision == won.revision
    with pytest.raises(CompareFailed, match="claim of slot 1"):
        lost.or_conflict("claim of slot 1")


async def test_of_many_claims_at_once_exactly_one_wins(client: EtcdClient, keys: PoolKeys) -> None:
    claims = [client.txn([CreateRevision(keys.owner(0), 0)], [Put(keys.owner(0), b"%d" % n)]) for n in range(50)]

    results = await asyncio.gather(*claims)

    assert sum(result.succeeded for result in results) == 1


async def test_requests_that_etcd_refuses_are_rejected_and_not_carried_out(client: EtcdClient, keys: PoolKeys) -> None:
    with pytest.raises(Rejected, match="too many operations"):
        await client.txn([], [Put(keys.member(str(n)), b"") for n in range(129)])
    with pytest.raises(Rejected, match="duplicate key"):
        await client.txn([], [Put(keys.spec, b"a"), Put(keys.spec, b"b")])
    with pytest.raises(Rejected, match="message larger than max"):
        await client.put(keys.spec, bytes(3_000_000))
    with pytest.raises(LeaseNotFound):
        await client.put(keys.spec, b"", lease=12345)
    with pytest.raises(Rejected, match="future revision"):
        await client.range(keys.everything, revision=10**9)

    assert (await client.range(keys.everything)).count == 0


async def test_a_revision_that_was_compacted_says_so(etcd_server: EtcdServer) -> None:
    where = KeyRange("a", "b")
    async with etcd_server.client() as client:
        for n in range(5):
            revision = await client.put("a", b"%d" % n)
        await client.compact(revision)

        with pytest.raises(Compacted):
            await client.range(where, revision=revision - 1)
        assert (await client.range(where, revision=revision)).kvs[0].value == b"4"


async def test_a_full_database_is_reported_as_such_and_still_read(pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with running_etcd(arguments=["--quota-backend-bytes=4194304"]) as server, server.client() as client:
        with pytest.raises(NoSpace):
            await put_without_end(client, keys)
        with pytest.raises(NoSpace):
            await client.put(keys.spec, b"small")

        assert (await client.range(keys.everything)).count > 0
        [status] = await client.status()
        assert any("NOSPACE" in error for error in status.errors)


async def test_a_write_that_was_out_of_space_may_have_been_carried_out_all_the_same() -> None:
    for _ in range(12):
        if await out_of_space_but_there():
            return
    raise AssertionError("in no round was a write carried out that was reported as out of space")


async def out_of_space_but_there() -> list[str]:
    async with running_etcd(arguments=["--quota-backend-bytes=4194304"]) as server, server.client() as client:
        results: list[int | BaseException] = []
        while not any(isinstance(result, NoSpace) for result in results):
            begin = len(results)
            puts = (client.put(f"key-{n}", bytes(20_000)) for n in range(begin, begin + 64))
            results += await asyncio.gather(*puts, return_exceptions=True)

        failed = [f"key-{n}" for n, result in enumerate(results) if isinstance(result, NoSpace)]
        return [key for key in failed if await client.get(key)]


async def test_an_answer_too_large_for_us_is_rejected_at_once(
    etcd: EtcdServer, keys: PoolKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_transport, "CHANNEL_OPTIONS", (("grpc.max_receive_message_length", 100_000),))
    async with etcd.client(timeout=30) as client:
        for n in range(3):
            await client.put(keys.session(0, str(n)), bytes(50_000))

        with pytest.raises(Rejected, match="larger than max"):
            await client.range(keys.everything)
        assert len([page async for page in client.pages(keys.everything, page=1)]) == 3


async def put_without_end(client: EtcdClient, keys: PoolKeys) -> None:
    for n in range(1000):
        await client.put(keys.session(0, str(n)), bytes(500_000))


async def test_while_etcd_is_down_reads_and_writes_are_surely_not_carried_out(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=0.5) as client:
        await client.put("key", b"before", timeout=20)
        etcd_server.kill()
        await until(lambda: refused(client), what="the loss of the connection is noticed")

        with pytest.raises(Unavailable, match="Connection refused"):
            await asyncio.wait_for(client.put("key", b"lost", timeout=120), 40)
        with pytest.raises(Unavailable):
            await client.get("key")
        with pytest.raises(Unavailable):
            async with client.lease(5):
                pass
        [status] = await client.status()
        assert (status.version, status.leader) == ("", False)
        assert status.errors

        await etcd_server.start()
        await until(lambda: client.put("key", b"after"), what="service resumes by itself")


async def refused(client: EtcdClient) -> bool:
    try:
        await client.put("key", b"before", timeout=0.2)
    except OutcomeUnknown:
        return False
    except Unavailable:
        return True
    return False


async def test_a_write_without_an_answer_is_unknown_and_a_read_unavailable(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=0.4) as client:
        await client.put("key", b"before", timeout=20)
        etcd_server.pause()

        with pytest.raises(OutcomeUnknown):
            await client.put("key", b"perhaps")
        with pytest.raises(OutcomeUnknown):
            await client.txn([], [Put("key", b"perhaps")])
        with pytest.raises(OutcomeUnknown):
            await client.delete("other")
        with pytest.raises(Unavailable):
            await client.get("key")
        with pytest.raises(Unavailable):
            await client.txn([ModRevision("key", 1)], [Get("key")])

        etcd_server.resume()
        assert await until(lambda: client.get("key"), what="the client works again")


async def test_a_write_that_is_unknown_may_have_been_carried_out_and_is_not_sent_again(
    etcd: EtcdServer, client: EtcdClient, keys: PoolKeys
) -> None:
    async with cable_to(etcd.endpoint) as cable, EtcdClient([cable.address], timeout=30) as remote:
        await remote.put(keys.spec, b"before")
        cable.cut(Way.ANSWERS)
        writing = asyncio.create_task(remote.put(keys.spec, b"after"))
        await until(lambda: has(client, keys.spec, b"after"), what="the write is carried out")
        done = await client.get(keys.spec)
        cable.reset()
        cable.mend()

        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(writing, 25)
        await until(lambda: remote.get(keys.spec), what="the client works again")
        assert await client.get(keys.spec) == done


async def has(client: EtcdClient, key: str, value: bytes) -> bool:
    found = await client.get(key)
    return found is not None and found.value == value


async def test_an_endpoint_that_never_answers_a_connection_is_unavailable_for_writes(etcd_server: EtcdServer) -> None:
    etcd_server.pause()
    async with etcd_server.client(timeout=0.4) as client:
        with pytest.raises(Unavailable):
            await client.put("key", b"surely not")


async def test_a_read_waits_out_a_restart_within_its_deadline(etcd_server: EtcdServer) -> None:
    async with etcd_server.client() as client:
        await client.put("key", b"kept")
        await etcd_server.settle(client)
        etcd_server.kill()
        reading = asyncio.create_task(client.get("key", timeout=60))
        await etcd_server.start()

        found = await reading
        assert found is not None
        assert found.value == b"kept"


async def test_closing_the_client_ends_calls_with_an_error_of_ours(etcd_server: EtcdServer) -> None:
    client = etcd_server.client(timeout=30)
    await client.put("key", b"")
    etcd_server.pause()
    writing, reading = asyncio.create_task(client.put("key", b"")), asyncio.create_task(client.get("key"))
    await asyncio.wait([writing, reading], timeout=0.2)
    await client.close()

    with pytest.raises(OutcomeUnknown, match="closed"):
        await writing
    with pytest.raises(Unavailable, match="closed"):
        await reading
    with pytest.raises(Unavailable, match="closed"):
        await client.put("key", b"")


async def test_a_cancelled_task_is_cancelled(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=30) as client:
        await client.put("key", b"")
        etcd_server.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.get("key")


async def test_the_second_endpoint_is_used_when_the_first_is_down(etcd: EtcdServer, keys: PoolKeys) -> None:
    async with EtcdClient(["127.0.0.1:1", f"http://{etcd.endpoint}"], timeout=20) as client:
        await client.put(keys.spec, b"x")
        assert await client.get(keys.spec)
        first, second = await client.status()
        assert first.errors
        assert second.version == "3.5.1"
        assert second.leader
        assert second.db_size > 0


async def test_a_client_without_endpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        EtcdClient([])


async def test_a_cluster_serves_on_while_any_one_member_is_silent_or_dead() -> None:
    async with running_cluster(3) as members, EtcdClient([member.endpoint for member in members]) as client:
        await until(lambda: client.put("key", b"start"), what="the cluster serves")

        members[0].pause()
        # It may have been the leader: then nobody answers before another one is elected.
        found = await until(lambda: client.get("key"), what="reads go on without the silent member")
        assert found.value == b"start"
        await until(lambda: client.put("key", b"one is silent"), what="writes go on without the silent member")
        members[0].resume()

        members[1].kill()
        await until(lambda: client.put("key", b"one is dead"), what="writes go on without the dead member")

        members[2].kill()
        await until(lambda: refused_without_leader(client), what="without a quorum writes are refused at once")
        assert await client.get("key", serializable=True, timeout=20)


async def refused_without_leader(client: EtcdClient) -> bool:
    try:
        await client.put("key", b"", timeout=1)
    except Unavailable as error:
        return "no leader" in error.detail or "refused" in error.detail
    except OutcomeUnknown:
        return False
    return False
