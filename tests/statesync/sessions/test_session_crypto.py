"""Sealed sessions: what opens them, what does not, and what a changed value in etcd gives."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.secrets import write_secret
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import LoggedWrite, Stored
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import (
    PLAIN,
    BadKeyFile,
    EncryptionKey,
    KeyMissing,
    SealedSessions,
    UnreadableSession,
    agree,
    load_session_crypto,
    outline,
)
from understudy.statesync.sessions.session_header import Answer

OLD, NEW = EncryptionKey.of(b"o" * 32), EncryptionKey.of(b"n" * 32)
KEYS = PoolKeys("cart")
AT = KEYS.session(3, "k")
VERSION = version_of(4, 17)
SESSION = Session("text/plain", b"the secret", 2**53, epoch=4, answers=(Answer("a", "f", 201),), version=VERSION)


@given(st.binary(max_size=200), st.text(max_size=20), st.booleans())
def test_what_was_sealed_is_opened_as_it_was(body: bytes, content_type: str, deleted: bool) -> None:
    session = Session(content_type, body, 1234, epoch=2, revision=7, deleted=deleted, version=version_of(2, 9))
    codec = SealedSessions((NEW,))
    assert codec.decode(AT, codec.encode(AT, session), 7) == session


def test_nothing_of_the_content_is_in_a_sealed_value_and_no_two_are_alike() -> None:
    codec = SealedSessions((NEW,))
    one, other = codec.encode(AT, SESSION), codec.encode(AT, SESSION)
    assert one != other
    for part in (b"secret", b"text/plain", b"201", b'"a"'):
        assert part not in one
    shown = outline(one, 9)
    assert (shown.epoch, shown.expires, shown.revision, shown.etag) == (4, 2**53, 9, '"4.17"')
    assert NEW.id in shown.content_type
    assert b"secret" not in shown.body


def test_keys_rotate() -> None:
    before, during, after = SealedSessions((OLD,)), SealedSessions((NEW, OLD)), SealedSessions((NEW,))
    stored = before.encode(AT, SESSION)
    opened = during.decode(AT, stored, 1)
    assert opened.body == SESSION.body
    with pytest.raises(KeyMissing, match=OLD.id):
        after.decode(AT, stored, 1)
    assert after.decode(AT, during.encode(AT, opened), 1).body == SESSION.body


def test_a_wrong_or_missing_key_gives_an_error_without_content() -> None:
    stored = SealedSessions((OLD,)).encode(AT, SESSION)
    for codec in (PLAIN, SealedSessions((NEW,))):
        with pytest.raises(KeyMissing) as caught:
            codec.decode(AT, stored, 1)
        assert OLD.id in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_value_that_was_moved_or_changed_does_not_open() -> None:
    codec = SealedSessions((NEW,))
    stored = codec.encode(AT, SESSION)
    longer_life = stored.replace(str(2**53).encode(), str(2**53 + 1).encode())
    for key, value in (
        (KEYS.session(3, "other"), stored),
        (AT, longer_life),
        (AT, stored.replace(b'"epoch":4', b'"epoch":5')),
        (AT, stored.replace(b'"index":17', b'"index":18')),
        (AT, stored[:-1] + bytes([stored[-1] ^ 1])),
        (AT, stored[:-20]),
        (AT, stored[: stored.index(b"\n") + 5]),
    ):
        assert (key, value) != (AT, stored)
        with pytest.raises(UnreadableSession, match="changed in etcd"):
            codec.decode(key, value, 1)


def test_sessions_from_before_encryption_are_read_and_plain_only_opens() -> None:
    assert SealedSessions((NEW,)).decode(AT, SESSION.encode(), 1).body == SESSION.body
    leaving = SealedSessions((NEW,), plain=True)
    assert leaving.encode(AT, SESSION) == PLAIN.encode(AT, SESSION)
    assert leaving.decode(AT, SealedSessions((NEW,)).encode(AT, SESSION), 1).body == SESSION.body


def line(key: EncryptionKey) -> str:
    return base64.b64encode(key.secret).decode()


def test_a_key_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_secret(file, f"# of 2026\n{line(NEW)}\n\n{line(OLD)}  # until May\n")
    codec = load_session_crypto(file)
    assert isinstance(codec, SealedSessions)
    assert (codec.first, list(codec.keys), codec.plain) == (NEW, [NEW.id, OLD.id], False)
    write_secret(file, f"plain\n{line(NEW)}\n")
    codec = load_session_crypto(file)
    assert isinstance(codec, SealedSessions)
    assert codec.plain
    assert load_session_crypto(None) is PLAIN


@pytest.mark.parametrize("content", ["", "# none\n", "plain\n", "c2hvcnQ=\n", "not base64!\n", "=\n"])
def test_a_bad_key_file_is_named_without_its_content(tmp_path: Path, content: str) -> None:
    write_secret(tmp_path / "keys", content)
    with pytest.raises(BadKeyFile, match="openssl rand -base64 32") as caught:
        load_session_crypto(tmp_path / "keys")
    assert "c2hvcnQ" not in str(caught.value)
    with pytest.raises(BadKeyFile, match="cannot be read"):
        load_session_crypto(tmp_path / "missing")


def test_no_key_shows_in_a_representation() -> None:
    assert "oooo" not in repr(OLD) + repr(SealedSessions((OLD,)))


async def test_a_pool_agrees_on_its_key(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    assert await agree(client, keys, PLAIN) == ""
    assert await agree(client, keys, SealedSessions((OLD,), plain=True)) == ""
    assert await client.get(keys.encryption) is None
    assert await agree(client, keys, SealedSessions((OLD,))) == ""
    assert "give --session-keys" in await agree(client, keys, PLAIN)
    assert OLD.id in await agree(client, keys, SealedSessions((NEW,)))
    assert await agree(client, keys, SealedSessions((OLD, NEW))) == ""
    assert await agree(client, keys, SealedSessions((NEW, OLD))) == ""
    assert NEW.id in await agree(client, keys, SealedSessions((OLD,)))
    assert await agree(client, keys, SealedSessions((NEW,))) == ""


async def test_a_copy_tells_what_it_cannot_open_from_what_is_absent(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    sealed, at = SealedSessions((OLD,)), keys.session(3, "k")
    await client.put(at, sealed.encode(at, SESSION))
    replica = Replica(client, keys)
    await replica.load(3)
    assert replica.session(3, "k") is None
    assert OLD.id in replica.unreadable(3, "k")
    assert OLD.id in replica.fault
    assert replica.unreadable(3, "absent") == ""

    replica.keep(3, [Stored("k", VERSION, SESSION.encode())])
    assert replica.session(3, "k") is not None
    assert replica.unreadable(3, "k") == ""
    replica.keep(3, [Stored("k", VERSION + 1, sealed.encode(at, SESSION))])
    assert replica.session(3, "k") is None
    assert replica.unreadable(3, "k") != ""
    replica.keep(3, [Stored("k", VERSION, SESSION.encode())])
    assert replica.session(3, "k") is None
    replica.show(3, [Entry(VERSION + 2, LoggedWrite("k", None))])
    assert replica.unreadable(3, "k") == ""
