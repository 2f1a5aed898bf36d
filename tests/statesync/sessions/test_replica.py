"""The replica holds what etcd holds, in whatever order watch, copies and own commits bring it."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient, Event, Kv
from understudy.statesync.etcd.informer import Informer
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.session import Answer, Session

SESSION = Session("text/plain", b"", 2**53, epoch=1)


def value_of(text: str) -> bytes:
    return replace(SESSION, body=text.encode()).encode()


def bodies(replica: Replica, slot: int) -> dict[str, bytes]:
    return {key: session.body for key, session in replica.sessions_of(slot).items()}


async def test_a_full_sync_under_writes_ends_with_what_etcd_holds(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    replica = Replica(client, keys)
    informer = Informer(
        client, keys.without_sessions, lambda batch: replica.apply(batch.events), watched=(keys.everything,)
    )
    watching = asyncio.create_task(informer.run())
    await asyncio.wait_for(informer.synced.wait(), 40)

    async def write(part: int) -> None:
        for n in range(60):
            key = keys.session(3, f"{part}-{n % 20}")
            if n % 7 == 6:
                await client.delete(key)
            else:
                await client.put(key, value_of(f"{part}/{n}"))

    writers = [asyncio.create_task(write(part)) for part in range(4)]
    await replica.full_sync(3)
    await asyncio.gather(*writers)
    last = await client.put(keys.session(3, "last"), value_of("last"))
    await asyncio.wait_for(informer.caught_up(last), 40)

    page = await client.range(prefix_range(keys.slot_sessions(3)))
    in_etcd = {kv.key.rpartition("/")[2]: Session.decode(kv.value, kv.mod_revision).body for kv in page.kvs}
    assert bodies(replica, 3) == in_etcd
    assert replica.synced == {3}
    watching.cancel()


async def test_a_compacted_watch_starts_over_with_a_reset(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    resets: list[bool] = []
    informer = Informer(client, keys.without_sessions, lambda batch: resets.append(batch.reset))
    await client.put(keys.table, b"old")
    watching = asyncio.create_task(informer.run())
    await asyncio.wait_for(informer.synced.wait(), 40)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    for n in range(5):
        revision = await client.put(keys.table, str(n).encode())
    await client.compact(revision)

    seen_before = informer.revision
    again = asyncio.create_task(informer.run())
    await until(lambda: len(resets) > 1, what="the informer reads everything again")
    again.cancel()

    assert informer.revision > seen_before
    assert resets[-1] is True


def test_sessions_of_slots_that_are_not_held_are_passed_over() -> None:
    keys = PoolKeys("p")
    replica = Replica(None, keys)  # type: ignore[arg-type]
    replica.apply([Event("put", Kv(keys.session(1, "k"), value_of("v"), 5, 5, 0))])

    assert replica.session(1, "k") is None
    assert replica.held == frozenset()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("kl"), st.booleans()), min_size=1, max_size=12), st.data())
def test_own_commits_and_the_watch_agree_in_any_order(history: list[tuple[str, bool]], data: st.DataObject) -> None:
    keys = PoolKeys("p")
    events = [
        Event("put" if put else "delete", Kv(keys.session(1, key), value_of(str(revision)), revision, 1, 0))
        for revision, (key, put) in enumerate(history, start=10)
    ]
    expected: dict[str, bytes] = {}
    for (key, put), event in zip(history, events, strict=True):
        if put:
            expected[key] = str(event.kv.mod_revision).encode()
        else:
            expected.pop(key, None)

    replica = Replica(None, keys)  # type: ignore[arg-type]
    replica.hold(1)
    committed_early = data.draw(st.integers(0, len(history)))
    for event, (key, put) in list(zip(events, history, strict=True))[:committed_early]:
        revision = event.kv.mod_revision
        session = Session.decode(event.kv.value, revision) if put else None
        replica.committed(1, key, session, revision)
    replica.apply(events)

    assert bodies(replica, 1) == expected


def test_what_this_process_has_written_is_not_decoded_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = PoolKeys("pool")
    replica = Replica(None, keys)  # type: ignore[arg-type]
    replica.hold(1)
    full, mine = keys.session(1, "a"), replace(SESSION, body=b"mine", answers=(Answer("k", "f", 200),))
    value = replica.encoded(1, "a", mine)
    monkeypatch.setattr(replica, "codec", None)
    replica.apply([Event("put", Kv(full, value, 7, 7, 0))])
    monkeypatch.undo()
    assert replica.session(1, "a") == mine.at(7) == Session.decode(value, 7)

    replica.apply([Event("put", Kv(full, value_of("another's"), 8, 7, 0))])  # the slot was lost meanwhile
    assert bodies(replica, 1) == {"a": b"another's"}
    replica.forget_write(1, "a")
    replica.committed(1, "a", mine, 7)
    assert bodies(replica, 1) == {"a": b"another's"}
