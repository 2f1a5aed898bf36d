"""What a process keeps in memory of the sessions: from etcd, from the stream of an active, or by its own writes."""

import asyncio

import pytest
from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import LoggedWrite, Stored
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.sessions import replica as replica_module
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_header import Answer

SESSION = Session("text/plain", b"", 2**53, epoch=1)


def bodies(replica: Replica, slot: int) -> dict[str, bytes]:
    return {key: session.body for key, session in replica.sessions_of(slot).items()}


KEYS = PoolKeys("pool")
EPOCH = 3


def versioned(text: str, index: int) -> Session:
    return replace(SESSION, body=text.encode(), epoch=EPOCH, version=version_of(EPOCH, index))


def stored(key: str, text: str, index: int) -> Stored:
    return Stored(key, version_of(EPOCH, index), versioned(text, index).encode())


def shown(key: str, text: str | None, index: int) -> Entry:
    value = versioned(text, index).encode() if text is not None else None
    return Entry(version_of(EPOCH, index), LoggedWrite(key, value))


def replica_with_one() -> Replica:
    """A replica that has all of slot 1: one session."""
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    replica.clear(1)
    replica.keep(1, [stored("k", "five", 5)])
    replica.whole(1)
    return replica


def test_sessions_are_counted_by_the_version_of_the_application_that_wrote_them_last() -> None:
    replica = replica_with_one()
    assert replica.apps([1, 2]) == {"": 1}
    for index, (key, app) in enumerate([("a", "v1"), ("b", "v1"), ("a", "v2"), ("c", "v1"), ("k", "v1")], 6):
        written = replace(versioned("x", index), app=app)
        replica.put(1, key, written)
    assert replica.apps([1]) == {"v1": 3, "v2": 1}
    grave = replace(versioned("", 20), app="v1", deleted=True)
    replica.put(1, "b", grave)
    assert replica.apps([1]) == {"v1": 2, "v2": 1}
    replica.clear(1)
    assert replica.apps([1]) == {}


def test_a_slot_is_synced_when_all_of_it_is_here() -> None:
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    replica.clear(1)
    assert replica.held == {1}
    replica.keep(1, [stored("k", "five", 5)])
    assert not replica.is_synced(1)
    replica.whole(1)
    assert (replica.is_synced(1), replica.synced) == (True, {1})
    assert replica.session(1, "k").etag == '"3.5"'
    replica.clear(1)
    assert not replica.is_synced(1)
    assert replica.session(1, "k") is None
    replica.drop(1)
    assert replica.held == frozenset()


@pytest.mark.parametrize("later", ["keep", "show"])
def test_the_later_version_counts(later: str) -> None:
    replica = replica_with_one()
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
    replica = replica_with_one()
    for value in (None, versioned("no session of this key", 6).encode()):
        replica.show(1, [Entry(version_of(EPOCH, 6), LoggedWrite("", value, b"refused"))])
    assert bodies(replica, 1) == {"k": b"five"}


def test_a_tombstone_is_a_session_and_none_removes_it() -> None:
    replica = replica_with_one()
    grave = replace(versioned("", 6), deleted=True)
    replica.show(1, [Entry(grave.version, LoggedWrite("k", grave.encode()))])
    assert replica.session(1, "k").deleted
    replica.show(1, [shown("k", None, 7)])
    assert replica.keys(1) == []


def test_the_active_puts_its_own_writes() -> None:
    replica = replica_with_one()
    mine = versioned("mine", 6)
    replica.put(1, "k", mine)
    assert replica.session(1, "k") == mine
    assert replica.stored(1, "k") == Stored("k", mine.version, mine.encode())
    replica.put(1, "k", None)
    assert replica.stored(1, "k") is None
    assert replica.keys(1) == []


def test_what_the_active_stores_is_what_a_copy_keeps() -> None:
    active, copy = replica_with_one(), Replica(None, KEYS)  # type: ignore[arg-type]
    active.put(1, "l", replace(versioned("l", 6), answers=(Answer("k", "f", 200, 7),), since=version_of(EPOCH, 2)))
    copy.clear(1)
    copy.keep(1, [active.stored(1, key) for key in active.keys(1)])
    copy.whole(1)
    assert {key: session.etag for key, session in copy.sessions_of(1).items()} == {"k": '"3.5"', "l": '"3.6"'}
    assert all(
        replace(one, revision=0) == replace(active.session(1, key), revision=0)
        for key, one in copy.sessions_of(1).items()
    )


def test_a_renewal_in_memory_holds_until_the_next_write() -> None:
    replica = replica_with_one()
    replica.touch(1, "k", 2**53 + 5)
    assert replica.session(1, "k").expires == 2**53 + 5
    assert replica.stored_expiry(1, "k") == 2**53
    replica.put(1, "k", versioned("six", 6))
    assert replica.session(1, "k").expires == 2**53


def test_a_session_that_a_copy_cannot_open_is_named_until_a_later_one_comes() -> None:
    replica = replica_with_one()
    replica.show(1, [Entry(version_of(EPOCH, 6), LoggedWrite("k", b"no session"))])
    assert replica.unreadable(1, "k")
    assert replica.session(1, "k") is None
    assert replica.stored(1, "k") == Stored("k", version_of(EPOCH, 6), b"no session")
    replica.show(1, [shown("k", "five", 5)])
    assert replica.unreadable(1, "k")
    replica.show(1, [shown("k", "seven", 7)])
    assert not replica.unreadable(1, "k")
    assert bodies(replica, 1) == {"k": b"seven"}


def test_a_session_is_known_where_all_of_its_slot_is_here_and_it_can_be_opened() -> None:
    replica = replica_with_one()
    replica.show(1, [Entry(version_of(EPOCH, 6), LoggedWrite("sealed", b"no session"))])
    replica.touch(1, "k", 2**53 + 5)
    assert replica.session_if_known(1, "k") == replica.session(1, "k")
    assert replica.session_if_known(1, "absent") is None
    assert replica.session_if_known(1, "sealed") is False
    assert replica.session_if_known(2, "k") is False
    replica.clear(1)
    assert replica.session_if_known(1, "k") is False


@pytest.mark.parametrize("call", ["keep", "show", "whole", "put"])
def test_what_comes_for_a_slot_that_is_not_held_is_not_lost_in_silence(call: str) -> None:
    replica = Replica(None, KEYS)  # type: ignore[arg-type]
    arguments = {"keep": ([],), "show": ([],), "whole": (), "put": ("k", None)}[call]
    with pytest.raises(ValueError, match="slot 1 is not held"):
        getattr(replica, call)(1, *arguments)


# -- from etcd --


async def test_a_slot_that_is_read_from_etcd_has_what_etcd_has_and_nothing_else(
    client: EtcdClient, pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "PAGE", 2)
    keys = PoolKeys(pool_name)
    for number in range(5):
        await client.put(keys.session(3, f"k{number}"), versioned(f"v{number}", number + 1).encode())
    await client.put(keys.session(3, "bad"), b"no session")
    await client.put(keys.session(30, "other"), versioned("of another slot", 1).encode())
    replica = Replica(client, keys)
    replica.clear(3)
    replica.keep(3, [stored("never acknowledged", "x", 9), stored("k0", "later, and never acknowledged", 9)])

    await replica.load(3)

    assert bodies(replica, 3) == {f"k{number}": b"v%d" % number for number in range(5)}
    assert replica.unreadable(3, "bad")
    assert (replica.synced, replica.copies) == ({3}, 1)
    assert replica.copied_at > 0


async def test_a_session_without_a_version_in_its_value_has_the_revision_that_wrote_it(
    client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    revision = await client.put(keys.session(3, "old"), replace(SESSION, body=b"of an earlier release").encode())
    active = Replica(client, keys)
    await active.load(3)
    assert active.session(3, "old").version == revision
    copy = Replica(client, keys)
    copy.clear(3)
    copy.keep(3, [active.stored(3, "old")])
    assert copy.session(3, "old").etag == active.session(3, "old").etag


async def test_a_slot_that_is_not_wanted_when_it_has_been_read_stays_as_it_is(
    client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    await client.put(keys.session(1, "k"), versioned("in etcd", 9).encode())
    replica = Replica(client, keys)
    replica.clear(1)
    replica.keep(1, [stored("k", "five", 5)])
    await replica.load(1, lambda: False)
    assert (bodies(replica, 1), replica.is_synced(1), replica.copies) == ({"k": b"five"}, False, 0)


async def test_a_slot_that_cannot_be_read_stays_as_it_is() -> None:
    async with EtcdClient(["127.0.0.1:9"], timeout=0.1) as nobody:
        replica = Replica(nobody, KEYS)
        replica.clear(1)
        replica.keep(1, [stored("k", "five", 5)])
        with pytest.raises(EtcdError):
            await asyncio.wait_for(replica.load(1), 40)
    assert (bodies(replica, 1), replica.copies) == ({"k": b"five"}, 0)
