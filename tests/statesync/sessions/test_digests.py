"""Which differences between a copy and etcd prove something, and digests that depend on nothing but content."""

import random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.digests import (
    Difference,
    DigestEntry,
    Fault,
    Reading,
    compare,
    digest_of,
    entries_of,
    entry_of,
    read_slot,
)
from understudy.statesync.sessions.session import Answer, Session

SESSION = Session(
    "text/plain", b"hello", 5000, epoch=3, revision=7, answers=(Answer("k", "f", 201),), version=version_of(3, 5)
)


def reading(**entries: tuple[int, int]) -> Reading:
    return Reading(100, held(**entries), frozenset(), 0)


def held(**entries: tuple[int, int]) -> dict[str, DigestEntry]:
    """Entries whose versions do not rise with their revisions, as is so in an etcd that was restored."""
    return {key: DigestEntry(*entry, version=1000 - entry[0]) for key, entry in entries.items()}


def test_every_part_of_a_session_counts() -> None:
    changes = [
        {"body": b"hellO"},
        {"content_type": "text/html"},
        {"expires": 5001},
        {"epoch": 4},
        {"revision": 8},
        {"version": version_of(3, 6)},
        {"deleted": True},
        {"answers": ()},
    ]
    others = {entry_of("a", replace(SESSION, **change)).digest for change in changes}  # type: ignore[arg-type]
    assert len(others | {entry_of("a", SESSION).digest, entry_of("b", SESSION).digest}) == len(changes) + 2


def test_a_session_as_it_was_written_and_as_it_is_read_back_has_the_same_entry() -> None:
    assert entry_of("a", Session.decode(SESSION.encode(), 7)) == entry_of("a", SESSION)


def test_a_slots_digest_depends_on_no_order_and_not_on_what_came_later() -> None:
    entries = [(f"key-{n}", DigestEntry(n, random.Random(n).getrandbits(128))) for n in range(50)]
    shuffled = random.Random(1).sample(entries, len(entries))
    assert digest_of(dict(entries), 100) == digest_of(dict(shuffled), 100)
    assert digest_of(dict(entries), 29) == digest_of(dict(entries[:30]), 100)
    assert digest_of(dict(entries), 29) != digest_of(dict(entries[:29]), 100)


def test_real_differences_are_proved() -> None:
    etcd = reading(missing=(10, 1), older=(20, 2), newer=(30, 3), other=(40, 4), same=(50, 5))
    copy = held(older=(19, 2), newer=(31, 3), other=(40, 9), same=(50, 5))

    assert compare(copy, 60, etcd).proved == (
        Difference("missing", Fault.MISSING, 0, 990),
        Difference("newer", Fault.NEWER, 969, 970),
        Difference("older", Fault.OLDER, 981, 980),
        Difference("other", Fault.CONTENT, 960, 960),
    )


def test_a_change_on_its_way_proves_nothing() -> None:
    etcd = reading(rewritten=(61, 1), created=(62, 2))
    copy = held(rewritten=(10, 7), removed=(30, 3))

    findings = compare(copy, 60, etcd)

    assert findings.proved == ()
    assert findings.open == (Difference("removed", Fault.EXTRA, 970, 0),)


def test_a_value_that_is_no_session_is_not_held_against_the_copy() -> None:
    etcd = Reading(100, {}, frozenset({"broken"}), 0)
    assert compare(held(broken=(5, 1)), 60, etcd).all == frozenset()


@given(
    history=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=30),
    applied=st.integers(0, 30),
    read_at=st.integers(0, 30),
    ahead=st.frozensets(st.sampled_from("abcd")),
)
def test_a_true_copy_is_never_found_wrong(
    history: list[tuple[str, bool]], applied: int, read_at: int, ahead: frozenset[str]
) -> None:
    def as_of(revision: int, keys: str | frozenset[str] = "abcd") -> dict[str, DigestEntry]:
        state: dict[str, DigestEntry] = {}
        for number, (key, put) in enumerate(history[:revision], start=1):
            if key in keys:
                state.pop(key, None)
                if put:
                    state[key] = DigestEntry(number, number)
        return state

    read_at = max(applied, read_at)
    etcd = Reading(read_at, as_of(read_at), frozenset(), 0)
    own_commits_known_early = as_of(read_at, ahead)
    copy = {k: e for k, e in as_of(applied).items() if k not in ahead} | own_commits_known_early

    assert compare(copy, applied, etcd).proved == ()


async def test_a_slot_is_read_as_it_was_at_a_revision(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    for n in range(150):
        revision = await client.put(keys.session(3, f"key-{n:03}"), SESSION.encode())
    await client.put(keys.session(3, "broken"), b"no session")
    await client.put(keys.session(3, "key-000"), replace(SESSION, body=b"later").encode())
    await client.put(keys.session(4, "elsewhere"), SESSION.encode())

    then = await read_slot(client, keys, 3, revision=revision)
    now = await read_slot(client, keys, 3)

    assert (len(then.entries), then.revision, then.unreadable) == (150, revision, frozenset())
    assert (len(now.entries), now.unreadable) == (150, {"broken"})
    assert {key for key in then.entries if then.entries[key] != now.entries[key]} == {"key-000"}
    assert await entries_of([("key-149", replace(SESSION, revision=revision))]) == {"key-149": then.entries["key-149"]}
