"""The request log: what is kept, for how long, and why that is long enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.etcd.client import Kv
from understudy.statesync.parsing.stored import read_json
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.request_log import (
    ANY_CONTENT,
    CLOCK_MARGIN,
    MEMBER_MARGIN,
    NO_SLOT,
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


SLOT = 3


def log_of(*entries: LogEntry, seen: float = 0.0) -> RequestLog:
    """The log of a process with outcomes of one slot."""
    log = RequestLog(KEYS, "a", "boot")
    for entry in entries:
        log.note(SLOT, entry, seen)
    return log


def record(value: bytes, revision: int = 5) -> Kv:
    return Kv(f"{KEYS.requests}b/boot/1", value, revision, revision, 0)


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


texts = st.text(st.characters(codec="utf-8"), max_size=5)
outcomes = st.builds(
    LogEntry,
    request=st.sampled_from(["r1", "r2", "r3"]),
    fingerprint=st.sampled_from(["f1", "f2", ANY_CONTENT]),
    status=st.integers(200, 599),
    problem=st.sampled_from(["", "", "no-such-session"]),
    reply=texts,
    version=st.integers(0, 2**63 - 1),
    slot=st.sampled_from([NO_SLOT, 0, SLOT, MAX_SLOTS - 1]),
)


@given(st.lists(outcomes, max_size=5))
def test_records_come_back_from_etcd_as_they_were(entries: list[LogEntry]) -> None:
    assert decode_entries(encode_entries(entries)) == entries
    assert [decode_entry(encode_entry(entry)) for entry in entries] == entries


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b'["r","f",200]', LogEntry("r", "f", 200)),
        (b'["r","f",404,"absent"]', LogEntry("r", "f", 404, "absent")),
        (b'["r","f",200,"",":1"]', LogEntry("r", "f", 200, reply=":1")),
        (b'["r","f",200,"","",5]', LogEntry("r", "f", 200, version=5)),
        (b'["r","f",200,"","",5,3]', LogEntry("r", "f", 200, version=5, slot=3)),
        (b'["r","f",200,"","",5,3,"more"]', LogEntry("r", "f", 200, version=5, slot=3)),
        (b'["r","f",200,"","",5,"no slot"]', LogEntry("r", "f", 200, version=5)),
        (b'["r","f",200,"",{"what":"is this"}]', LogEntry("r", "f", 200)),
    ],
)
def test_outcomes_of_earlier_and_of_newer_releases_are_read(written: bytes, read: LogEntry) -> None:
    assert decode_entry(written) == read
    assert decode_entries(b"[" + written + b"]") == [read]


def test_an_earlier_release_reads_every_part_of_an_outcome_that_it_knows() -> None:
    effect, refusal = EFFECT._replace(slot=SLOT), ABSENT._replace(slot=SLOT)
    written = encode_entries([EFFECT, ABSENT, effect, refusal])
    assert read_json(written) == [  # it reads six fields of a list with at least six, and passes over what follows
        [R, "f1", 200, "", "", version_of(7, 42)],
        [R, "f1", 404, "no-such-session"],
        [R, "f1", 200, "", "", version_of(7, 42), SLOT],
        [R, "f1", 404, "no-such-session", "", 0, SLOT],
    ]


def test_an_outcome_of_the_first_releases_has_the_version_of_its_record() -> None:
    recorded = b'[["r1","f1",200],["r2","f2",404,"no-such-session"],["r3","f3",200,"",":1\\r\\n"]]'
    log = log_of()
    log.read([record(recorded, 1234)], 0.0)
    assert log.find(SLOT, "r1", "any") == Settled("f1", 200, 1234)
    assert log.find(SLOT, "r2", "f2") == Settled("f2", 404, 0, "no-such-session")
    assert log.find(SLOT, "r3", "f3") == Settled("f3", 200, 1234, "", b":1\r\n")


def test_records_without_slots_hold_for_every_slot_and_the_others_for_theirs() -> None:
    log = log_of()
    log.read([record(encode_entries([EFFECT, ABSENT._replace(request="r2", slot=SLOT)]))], 0.0)
    assert [log.find(slot, R, "f1") for slot in (SLOT, 4)] == [Settled("f1", 200, version_of(7, 42))] * 2
    assert log.find(SLOT, "r2", "f1") == Settled("f1", 404, 0, "no-such-session")
    assert log.find(4, "r2", "f1") is None


@pytest.mark.parametrize("junk", [b"", b"{}x", b"7", b"[7]", b'[["r"]]', b"\xff"])
def test_a_record_that_is_none_is_logged_and_the_others_are_read(junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    log = log_of()
    log.read([record(junk), record(encode_entries([EFFECT]))], 0.0)
    assert len(log) == 1
    assert f"unreadable record at {KEYS.requests}b/boot/1" in caplog.text


def test_an_outcome_with_half_a_character_is_passed_on_as_it_is() -> None:
    log = log_of()
    log.read([record(b'[["r","f",200,"","\\ud800",5,3]]')], 0.0)
    assert log.find(SLOT, "r", "f") is not None
    assert [decode_entry(outcome) for outcome in log.outcomes(SLOT)] == [LogEntry("r", "f", 200, "", "\ud800", 5, SLOT)]


@pytest.mark.parametrize("junk", [b"", b"{}", b"7", b"[]", b'["r"]', b"\xff"])
def test_an_outcome_that_is_none_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        decode_entry(junk)


def test_an_outcome_is_known_by_its_request_and_a_refusal_by_its_content_too() -> None:
    log = log_of(EFFECT)
    assert log.find(SLOT, R, "f1") == log.find(SLOT, R, "other") == Settled("f1", 200, version_of(7, 42))
    log = log_of(ABSENT)
    assert log.find(SLOT, R, "f1") == Settled("f1", 404, 0, "no-such-session")
    assert log.find(SLOT, R, "other") is None
    log = log_of(LogEntry(R, ANY_CONTENT, 204, "request-refused"))
    assert log.find(SLOT, R, "whatever") is not None


def test_the_first_outcome_counts_wherever_the_others_come_from() -> None:
    log = log_of(EFFECT, LogEntry(R, "f1", 201, version=9))
    log.read([record(encode_entries([LogEntry(R, "f9", 201, version=9, slot=SLOT)]))], 1.0)
    assert log.find(SLOT, R, "f1") == Settled("f1", 200, version_of(7, 42))
    assert len(log) == 1


@given(st.lists(st.tuples(st.sampled_from([SLOT, 4]), outcomes, st.booleans())))
def test_a_copy_of_a_slot_knows_what_its_active_knows(noted: list[tuple[int, LogEntry, bool]]) -> None:
    active, copy = log_of(), log_of()
    for slot, entry, from_etcd in noted:
        if from_etcd:
            active.read([record(encode_entries([entry]))], 0.0)
        else:
            active.note(slot, entry, 0.0)
    for outcome in active.outcomes(SLOT):
        entry = decode_entry(outcome)
        assert entry.slot in (SLOT, NO_SLOT)
        copy.note(entry.slot, entry, 5.0)
    for request in ("r1", "r2", "r3"):
        for fingerprint in ("f1", "f2", "f3"):
            assert copy.find(SLOT, request, fingerprint) == active.find(SLOT, request, fingerprint)


@given(st.lists(st.tuples(st.sampled_from([0, SLOT]), outcomes, st.floats(0, 100)), max_size=30), st.floats(0, 200))
def test_an_outcome_is_kept_for_as_long_as_is_said_and_no_longer(
    noted: list[tuple[int, LogEntry, float]], now: float
) -> None:
    log, seen = log_of(), {}
    for slot, entry, at in sorted(noted, key=lambda one: one[2]):
        log.note(slot, entry, at)
        seen.setdefault((slot, entry.request, entry.fingerprint if entry.problem else ""), at)
    assert len(log) == len(seen)
    log.forget(now, 30.0)
    kept = {key for key, at in seen.items() if now - at < 30.0}
    assert len(log) == len(kept)
    for slot, request, fingerprint in kept:
        assert log.find(slot, request, fingerprint) is not None
    log.forget(1000.0, 30.0)
    assert (len(log), log.outcomes(SLOT)) == (0, [])


def test_a_slot_that_is_read_anew_forgets_its_outcomes_and_not_those_of_others() -> None:
    log = log_of(EFFECT, ABSENT)
    log.note(4, EFFECT, 0.0)
    log.read([record(encode_entries([EFFECT._replace(request="r2")]))], 0.0)
    log.drop(SLOT)
    log.drop(SLOT)
    assert log.find(SLOT, R, "f1") is None
    assert log.find(4, R, "f1") is not None
    assert log.find(SLOT, "r2", "f1") is not None, "it may be of any slot"
    assert len(log) == 2
    log.note(SLOT, LogEntry(R, "f1", 201, version=9), 50.0)
    log.forget(60.0, 30.0)
    assert log.find(SLOT, R, "f1") == Settled("f1", 201, 9), "it counts from when it was seen again"


def test_a_process_deletes_its_own_records_when_they_are_too_old() -> None:
    log = log_of()
    first, second = log.record_key(1), log.record_key(2)
    assert first.startswith(f"{KEYS.requests}a/boot/")
    log.committed(first, 0.0)
    log.committed(second, 10.0)
    log.read([record(encode_entries([EFFECT]))], 0.0)
    assert log.forget(29.0, 30.0) == []
    assert log.forget(35.0, 30.0) == [first]
    assert log.forget(50.0, 30.0) == [second]
    assert log.forget(90.0, 30.0) == []


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
