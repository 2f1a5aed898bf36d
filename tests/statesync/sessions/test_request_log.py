"""The request log: what is kept, for how long, and why that is long enough."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.parsing.stored import read_json
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.request_log import (
    ANY_CONTENT,
    CLOCK_MARGIN,
    MEMBER_MARGIN,
    LogEntry,
    RequestLog,
    Settled,
    Window,
    decode_entries,
    decode_entry,
    encode_entries,
    encode_entry,
    parse_stamp,
    request_hash,
    stamp_of,
)
from understudy.statesync.sessions.session import (
    Method,
    Repeated,
    Session,
    Stored,
    Write,
    WriteContext,
    WriteRefused,
    decide_write,
)

KEYS = PoolKeys("cart")
TERMS = WriteContext(epoch=7, now_ms=1000, session_bytes=100, default_ttl=60)
R = request_hash("k", "request:1;r")
EFFECT = LogEntry(R, "f1", 200, version=version_of(7, 42))
ABSENT = LogEntry(R, "f1", 404, "no-such-session")


def log_of(*records: tuple[str, LogEntry, int], seen: float = 0.0) -> RequestLog:
    log = RequestLog(KEYS, "a", "boot")
    for record, entry, revision in records:
        log.note(record, [entry], revision, seen)
    return log


def event(key: str, value: bytes, revision: int = 5, kind: str = "put") -> Event:
    return Event(kind, Kv(key, value, revision, revision, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "now;x", "1.5", "1.5;", "nan;x", "inf;x", ";x", "1;" + "x" * 300])
def test_a_stamp_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - callers tell what they expected
        parse_stamp(text)


def test_a_stamp_tells_when_its_request_began_and_its_id_is_all_of_it() -> None:
    stamp = parse_stamp(stamp_of(1763805600.1234, "abc;d"))
    assert (stamp.began, stamp.id) == (1763805600.123, "1763805600.123;abc;d")


@pytest.mark.parametrize(
    ("age", "may"), [(0, True), (25, True), (25.1, False), (-10, True), (-10.1, False), (1e9, False)]
)
def test_a_request_writes_only_within_its_window(age: float, may: bool) -> None:
    assert (Window.of(15).fault(age) == "") is may


@given(
    request_seconds=st.floats(1, 3600),
    envoy_ahead=st.floats(-7200, 7200),
    first=st.floats(0, 7200),
    later=st.floats(0, 7200),
    apart=st.floats(-MEMBER_MARGIN, MEMBER_MARGIN),
)
def test_no_copy_passes_the_check_after_its_outcome_is_forgotten_whatever_the_envoys_clock_says(
    request_seconds: float, envoy_ahead: float, first: float, later: float, apart: float
) -> None:
    """One owner carries a request out ``first`` seconds after it began; a copy comes to another one later."""
    window = Window.of(request_seconds)
    began = envoy_ahead
    if window.fault(first - began):
        return  # it never had an effect
    if not window.fault(later + apart - began):
        assert later - first <= window.keep


def test_the_window_is_open_to_every_request_that_somebody_still_waits_for() -> None:
    assert Window.of(15).oldest == 15 + CLOCK_MARGIN


def test_records_come_back_from_etcd_as_they_were() -> None:
    entries = [EFFECT, ABSENT, LogEntry(R, ANY_CONTENT, 204, "request-refused"), LogEntry(R, "f", 200, reply=":1\r\n")]
    entries += [LogEntry(R, "f", 200, "", ":1\r\n", version_of(7, 42)), LogEntry(R, "f", 200)]
    assert decode_entries(encode_entries(entries)) == entries
    newer = b'[["r","f",200,"",{"what":"is this"}],["r","f",200,"","",5,3,"more"]]'
    assert decode_entries(newer) == [LogEntry("r", "f", 200), LogEntry("r", "f", 200, version=5)]


def test_an_outcome_of_an_earlier_release_has_the_version_of_its_record() -> None:
    recorded = b'[["r1","f1",200],["r2","f2",404,"no-such-session"],["r3","f3",200,"",":1\\r\\n"]]'
    log = log_of()
    log.apply([event(f"{KEYS.requests}b/boot/1", recorded, 1234)], 0.0)
    assert log.find("r1", "any") == Settled("f1", 200, 1234)
    assert log.find("r2", "f2") == Settled("f2", 404, 0, "no-such-session")
    assert log.find("r3", "f3") == Settled("f3", 200, 1234, "", b":1\r\n")
    log.note(log.record_key(1), [LogEntry("r1", "f1", 201, version=version_of(7, 1))], 1235, 0.0)
    assert log.find("r1", "f1") == Settled("f1", 200, 1234), "the first outcome counts"
    log.forget(100, 30, {})
    assert len(log) == 0


def test_an_earlier_release_reads_every_part_of_an_outcome_that_it_knows() -> None:
    written = encode_entries([EFFECT, ABSENT, LogEntry(R, "f", 200, "", ":1\r\n", version_of(7, 43))])
    assert read_json(written) == [  # it reads five fields of a list with at least five, and passes over what follows
        [R, "f1", 200, "", "", version_of(7, 42)],
        [R, "f1", 404, "no-such-session"],
        [R, "f", 200, "", ":1\r\n", version_of(7, 43)],
    ]


@pytest.mark.parametrize("junk", [b"", b"{}x", b"7", b"[7]", b'[["r"]]', b"\xff"])
def test_a_record_that_is_none_is_passed_over(junk: bytes) -> None:
    log = log_of()
    log.apply([event(f"{KEYS.requests}b/boot/1", junk)], 0.0)
    assert len(log) == 0


def test_an_outcome_is_known_by_its_request_and_a_refusal_by_its_content_too() -> None:
    log = log_of((log_of().record_key(1), EFFECT, 9))
    assert log.find(R, "f1") == log.find(R, "other") == Settled("f1", 200, version_of(7, 42))
    log = log_of((log_of().record_key(1), ABSENT, 9))
    assert log.find(R, "f1") == Settled("f1", 404, 0, "no-such-session")
    assert log.find(R, "other") is None
    log = log_of((log_of().record_key(1), LogEntry(R, ANY_CONTENT, 204, "request-refused"), 9))
    assert log.find(R, "whatever") is not None


def test_the_first_outcome_counts_and_a_record_is_read_once() -> None:
    log = log_of((log_of().record_key(1), EFFECT, 9), (log_of().record_key(2), EFFECT, 10))
    log.apply([event(log.record_key(1), encode_entries([LogEntry(R, "f9", 201)]))], 1.0)
    assert log.find(R, "f1") == Settled("f1", 200, version_of(7, 42))


def test_what_another_member_deletes_is_kept_until_its_time_is_over_here() -> None:
    log = log_of()
    log.apply([event(f"{KEYS.requests}b/boot/1", encode_entries([EFFECT]))], 10.0)
    log.apply([event(f"{KEYS.requests}b/boot/1", b"", 6, "delete")], 11.0)
    log.forget(39.9, 30, {})
    assert log.find(R, "f1") is not None
    log.forget(40.0, 30, {})
    assert log.find(R, "f1") is None
    assert len(log) == 0


@pytest.mark.parametrize(
    ("boots", "deleted"), [({"b": "boot"}, ["a"]), ({"b": "another"}, ["a", "b"]), ({}, ["a", "b"])]
)
def test_a_member_deletes_its_own_records_and_those_of_processes_that_are_gone(
    boots: Mapping[str, str], deleted: list[str]
) -> None:
    log = log_of((log_of().record_key(1), EFFECT, 9))
    log.apply([event(f"{KEYS.requests}b/boot/1", encode_entries([ABSENT]))], 0.0)
    due = log.forget(100, 30, boots)
    assert [record.removeprefix(KEYS.requests)[0] for record in due] == deleted


# -- what a write makes of a known outcome --

HERE = Session("text/plain", b"here", 5000, epoch=3, version=version_of(3, 42))
DELETE = Write(Method.DELETE)
CREATE = Write(Method.PUT, b"x", if_none_match="*")
REFUSE = Write(Method.REFUSE)


def settled_by(outcome: Stored | WriteRefused | Repeated, write: Write) -> Settled:
    if isinstance(outcome, WriteRefused):
        return Settled(write.fingerprint, outcome.status, 0, outcome.problem)
    return Settled(write.fingerprint, outcome.status, 77)


@pytest.mark.parametrize(
    ("first", "write", "later"),
    [(None, DELETE, HERE), (HERE, CREATE, None), (None, Write(Method.PATCH, b"{}"), HERE)],
    ids=["DELETE of nothing", "PUT of what is there", "PATCH of nothing"],
)
def test_a_refusal_that_a_copy_could_contradict_is_kept_and_final(
    first: Session | None, write: Write, later: Session | None
) -> None:
    refused = decide_write(first, write, TERMS)
    assert isinstance(refused, WriteRefused)
    assert refused.lasting
    again = decide_write(later, write, TERMS, settled_by(refused, write))
    assert isinstance(again, WriteRefused)
    assert (again.status, again.problem, again.lasting) == (refused.status, refused.problem, False)


def test_a_refusal_that_no_copy_can_contradict_is_not_kept() -> None:
    refused = decide_write(HERE, Write(Method.PUT, b"x", if_match='"1"'), TERMS)
    assert isinstance(refused, WriteRefused)
    assert not refused.lasting
    star = decide_write(None, Write(Method.PUT, b"x", if_match="*"), TERMS)
    assert isinstance(star, WriteRefused)
    assert star.lasting


def test_an_effect_is_told_to_copies_and_not_to_other_writes() -> None:
    cas = Write(Method.PUT, b"x", if_match='"3.42"')
    effect = settled_by(decide_write(HERE, cas, TERMS), cas)
    assert decide_write(HERE, Write(Method.PUT, b"anew", if_match='"3.77"'), TERMS, effect) == Repeated(200, 77)
    other = decide_write(HERE, DELETE, TERMS, effect)
    assert (other.status, isinstance(other, WriteRefused)) == (422, True)


def test_a_request_that_the_application_refused_changes_nothing_any_more() -> None:
    refusal = decide_write(None, REFUSE, TERMS)
    assert isinstance(refusal, WriteRefused)
    assert (refusal.status, refusal.lasting) == (204, True)
    known = settled_by(refusal, REFUSE)
    assert decide_write(HERE, DELETE, TERMS, known).status == 409
    assert decide_write(HERE, REFUSE, TERMS, known).status == 204


def test_a_refusal_that_comes_after_the_effect_learns_of_it() -> None:
    effect = settled_by(decide_write(HERE, DELETE, TERMS), DELETE)
    assert decide_write(None, REFUSE, TERMS, effect) == Repeated(204, 77)


@pytest.mark.parametrize(
    "entry",
    [EFFECT, ABSENT, LogEntry(R, ANY_CONTENT, 204, "request-refused"), LogEntry(R, "f", 200, "", ":1\r\n", 7)],
)
def test_an_outcome_that_goes_with_its_write_comes_as_it_was(entry: LogEntry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def test_an_outcome_of_a_newer_release_is_read_and_junk_is_refused() -> None:
    assert decode_entry(b'["r","f",200,"","",5,3,"more"]') == LogEntry("r", "f", 200, version=5)
    for junk in (b"", b"{}", b"7", b"[]", b'["r"]', b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            decode_entry(junk)


def test_an_outcome_that_came_by_a_stream_is_found_and_the_first_one_counts() -> None:
    log = log_of()
    for entry in (EFFECT, LogEntry(R, "f1", 201, version=9), ABSENT):
        log.note_entry(entry, 0.0)
    assert log.find(R, "any") == Settled("f1", 200, version_of(7, 42))
    assert log.find("other", "f1") is None
    log.note_entry(LogEntry("other", "f1", 404, "no-such-session", version=3), 0.0)
    assert log.find("other", "f1") == Settled("f1", 404, 0, "no-such-session")
    assert log.find("other", "f2") is None


def test_an_outcome_that_came_by_a_stream_is_forgotten_and_never_deleted_in_etcd() -> None:
    log = log_of()
    log.note_entry(EFFECT, 0.0)
    log.note(log.record_key(1), [EFFECT], 5, 10.0)  # now it is saved, too
    log.note_entry(LogEntry("later", "f", 200, version=3), 20.0)
    assert log.forget(29, 30, {}) == []
    assert log.find(R, "any") is not None
    assert log.forget(35, 30, {}) == []
    assert log.find(R, "any") is None
    assert log.forget(45, 30, {}) == [log.record_key(1)]
    assert log.find("later", "f") is not None
    assert log.forget(60, 30, {}) == []
    assert len(log) == 0
    log.note_entry(EFFECT, 70.0)
    assert log.find(R, "any") is not None
