"""Commands on one session: the short ways give what the long ones do."""

from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.redis.commands import is_read, parse
from understudy.statesync.redis.value import HASH_TYPE, SET_TYPE, STRING_TYPE, encode_hash, encode_set
from understudy.statesync.sessions.command_batch import NEVER, CommandBatch, read_answer, value_of
from understudy.statesync.sessions.session import Session

NOW = 1_000_000
READS = ("GET k", "get k", "STRLEN k", "TTL k", "PTTL k", "TYPE k", "EXISTS k", "HGET k f", "HGETALL k", "SMEMBERS k")
CONTENT = {
    STRING_TYPE: st.binary(max_size=40),
    "application/json": st.binary(max_size=40),
    HASH_TYPE: st.dictionaries(st.binary(max_size=3), st.binary(max_size=3), min_size=1).map(encode_hash),
    SET_TYPE: st.sets(st.binary(max_size=3), min_size=1).map(encode_set),
}


@st.composite
def sessions(draw: st.DrawFn) -> Session | None:
    kind = draw(st.sampled_from([*CONTENT, "", None]))
    if kind is None:
        return None
    expires = draw(st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + 5000, NEVER]))
    body = draw(CONTENT[kind]) if kind else b""
    return Session(kind, body, expires, 1, deleted=not kind, version=7)


def command(line: str) -> KeyCommand:
    parsed = parse(line.encode().split())
    assert isinstance(parsed, KeyCommand)
    assert is_read(parsed)
    return parsed


@given(sessions(), st.sampled_from(READS), st.sampled_from([2, 3]), st.sampled_from([NOW, 0]))
def test_a_read_is_answered_as_a_batch_of_it_would_be(
    session: Session | None, line: str, protocol: int, ended_ms: int
) -> None:
    batch = CommandBatch((command(line),), protocol)
    expected, _ = batch.answer(value_of(session, ended_ms), NOW)
    assert read_answer(batch.commands[0], protocol, session, NOW, ended_ms) == expected
