"""What counts as a lost update."""

import pytest

from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.redis.commands import parse
from understudy.statesync.replication import history
from understudy.statesync.sessions.command_batch import NEVER, CommandBatch, decide_commands
from understudy.statesync.sessions.overwrites import ABSENT, overwrites, replaces_value, version_after, version_of
from understudy.statesync.sessions.session import Method, Session, Stored, Write, WriteContext, give_version

NOW = 1_000_000
VALUE = Session("application/x-understudy-string", b"v", NOW + 5000, 1, version=7)
RENEWED = Session("application/x-understudy-string", b"v", NOW + 9000, 1, version=9, since=7)
GONE = Session("", b"", NOW + 5000, 1, version=8, deleted=True)
EXPIRED = Session("application/x-understudy-string", b"v", NOW, 1, version=7)


@pytest.mark.parametrize(
    ("current", "seen", "lost"),
    [
        (VALUE, 7, False),
        (VALUE, 5, True),
        (VALUE, ABSENT, True),
        (RENEWED, 7, False),
        (RENEWED, 9, True),
        (GONE, 7, True),
        (GONE, ABSENT, False),
        (EXPIRED, 5, False),
        (None, 7, False),
        (None, ABSENT, False),
    ],
)
def test_a_write_overwrites_what_its_author_has_not_read(current, seen, lost):
    assert overwrites(current, seen, NOW) is lost


@pytest.mark.parametrize(
    ("session", "version"), [(VALUE, 7), (RENEWED, 7), (GONE, ABSENT), (EXPIRED, ABSENT), (None, ABSENT)]
)
def test_the_version_of_a_value_is_that_of_the_write_that_wrote_it(session, version):
    assert version_of(session, NOW) == version


def command(line: str) -> KeyCommand:
    parsed = parse([word.encode() for word in line.split()])
    assert isinstance(parsed, KeyCommand), parsed
    return parsed


@pytest.mark.parametrize("line", ["SET k v", "set k v EX 9", "SET k v XX", "SETEX k 9 v", "PSETEX k 9 v"])
def test_commands_that_replace_the_value(line):
    assert replaces_value(command(line))


@pytest.mark.parametrize(
    "line", ["SET k v NX", "set k v nx", "SET k v GET", "SETNX k v", "GETSET k v", "INCR k", "APPEND k v", "DEL k"]
)
def test_commands_that_do_not_or_that_tell_the_client_what_they_replaced(line):
    assert not replaces_value(command(line))


@pytest.mark.parametrize(
    ("line", "since"),
    [("EXPIRE k 100", 7), ("SET k v", 7), ("PERSIST k", 7), ("SET k w", 0), ("APPEND k w", 0), ("DEL k", 0)],
)
@pytest.mark.parametrize("current", [VALUE, RENEWED])
def test_a_renewal_or_the_same_value_keeps_the_version(current, line, since):
    context = WriteContext(2, NOW, 1000, 60)
    outcome = decide_commands(current, CommandBatch((command(line),)), Write(Method.COMMANDS), context, None)
    assert isinstance(outcome, Stored)
    assert outcome.session.since == since
    give_version(outcome.session, history.version_of(2, 5))
    committed = outcome.session.at(12)
    assert committed.value_version == (since or history.version_of(2, 5))
    assert version_after(outcome.session) == (ABSENT if line.startswith("DEL") else committed.value_version)
    assert Session.decode(committed.encode(), 12) == committed


def test_a_value_of_another_kind_or_that_had_expired_is_a_new_one():
    context = WriteContext(2, NOW, 1000, 60)
    for before, line in ((EXPIRED, "SET k v"), (GONE, "SET k v"), (VALUE, "DEL k")):
        outcome = decide_commands(before, CommandBatch((command(line),)), Write(Method.COMMANDS), context, None)
        assert isinstance(outcome, Stored)
        assert outcome.session.since == 0
    assert NEVER > NOW
