"""What the mirror has while it copies, after it was killed, and after its home has dropped its history."""

import asyncio
import time

import pytest

from tests.deploy.mirror.pairs import Pair, paired
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.deploy.mirror.copier import RoleChanged
from understudy.deploy.mirror.records import set_home
from understudy.statesync.audit.entry import Act
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.home import Home, Role, loss_now


async def test_sessions_outcomes_and_spec_are_copied_as_they_are_and_nothing_else(pair: Pair) -> None:
    east, west, keys = pair.east.client, pair.west.client, pair.keys
    await pair.write(1, "before")
    await pair.write(2, "goes")
    async with pair.copying() as copier:
        await east.delete(keys.session(0, "k0002"))
        await east.put(f"{keys.requests}a/boot/1", b"outcome")
        await east.put(keys.secret, b"secret")
        await east.put(keys.member("a"), b"{}")
        await pair.same(await pair.write(1, "after"))
        assert copier.resyncs == 1
    copied = {kv.key: kv.value async for page in west.pages(keys.everything) for kv in page.kvs}
    own = {keys.home, keys.mirrored}
    spec = await east.get(keys.spec)
    assert spec is not None
    assert {key: value for key, value in copied.items() if key not in own} == {
        keys.session(0, "k0001"): b"after",
        f"{keys.requests}a/boot/1": b"outcome",
        keys.secret: b"secret",
        keys.spec: spec.value,
    }


async def test_what_was_written_together_is_never_seen_apart(pair: Pair) -> None:
    async with pair.copying():
        writing = asyncio.create_task(write_twins(pair, 150))
        seen = set()
        while not writing.done():
            values = set((await pair.sessions(pair.west)).values())
            assert len(values) <= 1
            seen |= values
        await pair.same(await writing)
    assert len(seen) > 3


async def write_twins(pair: Pair, times: int) -> int:
    return [await pair.write_together({1: str(n), 2: str(n), 3: str(n)}) for n in range(times)][-1]


async def test_a_mirror_that_was_killed_goes_on_where_it_was(pair: Pair) -> None:
    last = 0
    for number in range(8):
        async with pair.copying() as copier:
            for one in range(20):
                last = await pair.write(one, f"{number}")
            seen = 3 * number
            await until(lambda copier=copier, seen=seen: copier.progress.writes > seen, 40, "it copies")
            assert copier.resyncs == (1 if number == 0 else 0)
    async with pair.copying() as copier:
        await pair.same(last)
        assert copier.resyncs == 0


async def test_everything_is_copied_anew_when_the_home_has_dropped_its_history(
    etcd_server: EtcdServer, west_etcd: EtcdServer
) -> None:
    async with paired(etcd_server, west_etcd) as pair:
        for number in range(5):
            last = await pair.write(number, "old")
        async with pair.copying():
            await pair.same(last)
        await pair.east.client.delete(pair.keys.session(0, "k0001"))
        last = await pair.write(2, "new")
        await pair.east.client.compact(last)
        async with pair.copying() as copier:
            await pair.same(last)
            assert copier.resyncs == 1
            await pair.same(await pair.write(3, "newer"))


async def test_nothing_is_copied_from_an_etcd_that_was_replaced_by_an_empty_one(
    etcd_server: EtcdServer, west_etcd: EtcdServer
) -> None:
    async with paired(etcd_server, west_etcd) as pair:
        async with pair.copying() as copier:
            for number in range(30):
                last = await pair.write(number, "kept")
            await pair.same(last)
            etcd_server.kill()
            etcd_server.wipe()
            await etcd_server.start()
            async with etcd_server.client() as anew:
                await anew.put(pair.keys.spec, b"{}")
            await until(lambda: "has no home record" in copier.trouble, 40, "it says why it copies nothing")
        assert len(await pair.sessions(pair.west)) == 30


async def test_a_change_of_more_than_a_transaction_holds_is_copied_whole(pair: Pair) -> None:
    for number in range(130):
        await pair.write(number, "x", slot=number % 2)
    async with pair.copying():
        await pair.same(await pair.write(1))
        await pair.east.client.delete(prefix_range(pair.keys.slot_sessions(1)))
        await pair.east.client.delete(prefix_range(pair.keys.sessions))
        await pair.same(await pair.write(7))


async def test_nothing_is_copied_once_this_side_is_no_mirror_any_more(pair: Pair) -> None:
    copier = await pair.copier()
    copying = asyncio.create_task(copier.run())
    await pair.same(await pair.write(1, "before"))
    opening = Home("west", Role.OPENING, "east", 2)
    await set_home(pair.west, await pair.at(pair.west), opening, pair.log(pair.west), Act("test"))
    await pair.write(1, "after")
    with pytest.raises(RoleChanged):
        await asyncio.wait_for(copying, 40)
    assert list((await pair.sessions(pair.west)).values()) == [b"before"]


async def test_the_estimate_covers_what_a_mirror_that_stands_still_does_not_have(pair: Pair) -> None:
    async with pair.copying():
        for number in range(50):
            last = await pair.write(number)
        await pair.same(last)
        await until(lambda: covers(pair, last), 40, "it knows that it has everything")
    began = time.time()
    for number in range(10):
        await pair.write(number, "not there")
    loss = loss_now(await pair.west.mirrored(), time.time())
    assert loss.writes >= 10
    assert loss.seconds >= time.time() - began


async def covers(pair: Pair, revision: int) -> bool:
    await pair.east.client.put(pair.keys.home_beat, b"{}")
    found = await pair.west.mirrored()
    return found.revision >= revision and found.rate > 0 and loss_now(found, time.time()).seconds < 30
