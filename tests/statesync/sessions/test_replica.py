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
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import LoggedWrite, Stored
from understudy.statesync.replication.slot_copy import Entry
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


KEYS = PoolKeys("pool")
EPOCH = 3


def versioned(text: str, index: int) -> Session:
    return replace(SESSION, body=text.encode(), epoch=EPOCH, version=version_of(EPOCH, index))


def stored(key: str, text: str, index: int) -> Stored:
    return Stored(key, version_of(EPOCH, index), versioned(text, index).encode())


def shown(key: str, text: str | None, index: int) -> Entry:
    value = versioned(text, index).encode() if text is not None else None
    return Entry(version_of(EPOCH, index), LoggedWrite(key, value))


def streamed_replica() -> Replica:
    """A replica whose slot 1 is fed by a stream, and has all of it: one session."""
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    replica.clear(1)
    replica.keep(1, [stored("k", "five", 5)])
    replica.whole(1)
    return replica


def test_a_streamed_slot_is_synced_when_all_of_it_is_here() -> None:
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    replica.hold(1)
    replica.follow(1)
    assert (replica.streamed(1), replica.streamed_slots, replica.held) == (True, {1}, {1})
    replica.keep(1, [stored("k", "five", 5)])
    assert not replica.is_synced(1)
    replica.whole(1)
    assert (replica.is_synced(1), replica.synced) == (True, {1})
    assert replica.session(1, "k").etag == '"3.5"'
    replica.follow(1)
    assert not replica.is_synced(1)
    assert replica.session(1, "k") is None


async def test_nothing_of_etcd_changes_a_streamed_slot() -> None:
    replica = streamed_replica()
    before = dict(replica.sessions_of(1))
    replica.apply([Event("put", Kv(KEYS.session(1, "k"), versioned("watched", 9).encode(), 2**50, 5, 0))])
    replica.apply([Event("delete", Kv(KEYS.session(1, "k"), b"", 2**50, 5, 0))])
    assert await replica.refresh(1) == 0
    await replica.recopy(1)
    await replica.full_sync(1)
    replica.committed(1, "k", versioned("committed", 9), 2**50)
    replica.committed(1, "k", None, 2**50)
    replica.drop(1)
    replica.drop_all()
    assert replica.sessions_of(1) == before
    assert replica.is_synced(1)


def test_a_gap_in_the_watch_empties_the_slots_that_it_feeds() -> None:
    replica = streamed_replica()
    replica.hold(2)
    replica.drop_all()
    assert replica.held == {1}


@pytest.mark.parametrize("later", ["keep", "show"])
def test_the_later_version_counts_in_a_streamed_slot(later: str) -> None:
    replica = streamed_replica()
    replica.show(1, [shown("k", "four", 4)])
    replica.keep(1, [stored("k", "four", 4)])
    replica.show(1, [shown("k", None, 4)])
    assert bodies(replica, 1) == {"k": b"five"}
    if later == "keep":
        replica.keep(1, [stored("k", "six", 6)])
    else:
        replica.show(1, [shown("k", "six", 6)])
    assert bodies(replica, 1) == {"k": b"six"}


def test_an_outcome_without_a_session_changes_no_session() -> None:
    replica = streamed_replica()
    for value in (None, versioned("no session of this key", 6).encode()):
        replica.show(1, [Entry(version_of(EPOCH, 6), LoggedWrite("", value, b"refused"))])
    assert bodies(replica, 1) == {"k": b"five"}


def test_a_tombstone_is_a_session_and_none_removes_it() -> None:
    replica = streamed_replica()
    grave = replace(versioned("", 6), deleted=True)
    replica.show(1, [Entry(grave.version, LoggedWrite("k", grave.encode()))])
    assert replica.session(1, "k").deleted
    replica.show(1, [shown("k", None, 7)])
    assert replica.keys(1) == []


def test_the_active_puts_its_own_writes_into_a_streamed_slot() -> None:
    replica = streamed_replica()
    mine = versioned("mine", 6)
    assert replica.encoded(1, "k", mine) == mine.encode()
    replica.put(1, "k", mine)
    assert replica.session(1, "k") == mine
    assert replica.stored(1, "k") == Stored("k", mine.version, mine.encode())
    replica.put(1, "k", None)
    assert replica.stored(1, "k") is None
    assert replica.keys(1) == []


def test_what_the_active_stores_is_what_a_copy_keeps() -> None:
    active, copy = streamed_replica(), Replica(None, KEYS)  # type: ignore[arg-type]
    active.put(1, "l", replace(versioned("l", 6), answers=(Answer("k", "f", 200, 7),), since=version_of(EPOCH, 2)))
    copy.follow(1)
    copy.keep(1, [active.stored(1, key) for key in active.keys(1)])
    copy.whole(1)
    assert {key: session.etag for key, session in copy.sessions_of(1).items()} == {"k": '"3.5"', "l": '"3.6"'}
    assert all(
        replace(one, revision=0) == replace(active.session(1, key), revision=0)
        for key, one in copy.sessions_of(1).items()
    )


@pytest.mark.parametrize("call", ["keep", "show", "whole", "put"])
def test_a_stream_into_a_slot_that_the_watch_feeds_is_an_error(call: str) -> None:
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    replica.hold(1)
    arguments = {"keep": ([],), "show": ([],), "whole": (), "put": ("k", None)}[call]
    with pytest.raises(ValueError, match="slot 1 is not fed by a stream"):
        getattr(replica, call)(1, *arguments)


def test_a_slot_goes_back_to_the_watch_empty() -> None:
    replica = streamed_replica()
    replica.unfollow(1)
    assert (replica.held, replica.synced, replica.streamed(1)) == ({1}, frozenset(), False)
    replica.apply([Event("put", Kv(KEYS.session(1, "k"), value_of("watched"), 7, 7, 0))])
    assert bodies(replica, 1) == {"k": b"watched"}
    replica.unfollow(1)
    assert bodies(replica, 1) == {"k": b"watched"}, "the watch feeds it already"


async def test_a_slot_that_begins_to_replicate_keeps_its_sessions(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    replica = Replica(client, keys)
    with pytest.raises(ValueError, match="not synced"):
        replica.adopt(3)
    await client.put(keys.session(3, "k"), versioned("k", 1).encode())
    await client.put(keys.session(3, "old"), value_of("without an index"))
    await client.put(keys.session(3, "bad"), b"no session")
    await replica.full_sync(3)
    replica.touch(3, "k", 2**53 + 1)
    replica.adopt(3)

    assert replica.is_synced(3)
    assert replica.session(3, "k").expires == 2**53 + 1
    assert replica.unreadable(3, "bad")
    old = replica.session(3, "old")
    assert replica.stored(3, "old").version == old.version > 0
    copy = Replica(client, keys)
    copy.follow(3)
    copy.keep(3, [replica.stored(3, key) for key in replica.keys(3)])
    assert bodies(copy, 3) == {"k": b"k", "old": b"without an index"}
    assert copy.session(3, "old").etag == old.etag
    assert copy.unreadable(3, "bad")
    replica.apply([Event("delete", Kv(keys.session(3, "k"), b"", 2**50, 5, 0))])
    assert replica.session(3, "k") is not None


async def test_a_copy_from_etcd_that_is_under_way_does_not_touch_a_slot_that_replicates(
    client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    await client.put(keys.session(3, "k"), versioned("k", 1).encode())
    replica = Replica(client, keys)
    await replica.full_sync(3)
    copying = asyncio.create_task(replica.refresh(3))
    await asyncio.sleep(0)
    replica.adopt(3)
    replica.put(3, "new", versioned("new", 2))
    replica.put(3, "k", None)
    await copying
    assert bodies(replica, 3) == {"new": b"new"}


def test_a_renewal_in_memory_holds_until_the_next_write() -> None:
    replica = streamed_replica()
    replica.touch(1, "k", 2**53 + 5)
    assert replica.session(1, "k").expires == 2**53 + 5
    assert replica.stored_expiry(1, "k") == 2**53
    replica.put(1, "k", versioned("six", 6))
    assert replica.session(1, "k").expires == 2**53


def test_a_session_that_a_copy_cannot_open_is_named_until_a_later_one_comes() -> None:
    replica = streamed_replica()
    replica.show(1, [Entry(version_of(EPOCH, 6), LoggedWrite("k", b"no session"))])
    assert replica.unreadable(1, "k")
    assert replica.session(1, "k") is None
    assert replica.stored(1, "k") == Stored("k", version_of(EPOCH, 6), b"no session")
    replica.show(1, [shown("k", "five", 5)])
    assert replica.unreadable(1, "k")
    replica.show(1, [shown("k", "seven", 7)])
    assert not replica.unreadable(1, "k")
    assert bodies(replica, 1) == {"k": b"seven"}
