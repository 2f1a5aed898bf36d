"""What another version of Understudy wrote is read as far as this one knows it, or refused with its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.heartbeat.heartbeat import Beat, ClaimReport
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    ControlServer,
    FailoverRecord,
    Intent,
    Lost,
    Member,
    MemberState,
    Owner,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_parts import HealthChecks, Liveness
from understudy.statesync.pool.spec_reader import decode_spec
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.history import as_text, version_of
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_header import Answer

KEYS = PoolKeys("cart")
FIRST_RELEASE = json.loads((Path(__file__).parent / "records-0.1.0.json").read_text())
"""The records below and a spec, as they were written then: not to be made anew, whatever else is."""
MORE = {"newer": {"with": ["more"]}}
LOST = {"cart-2": Lost("boot-2", "killed", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", 5.0)}
TABLE = Table(7, (("cart-1", "cart-3"), ("cart-3", "cart-1")), LOST, "")
RECORDS = [
    Member("cart-1", "boot-1", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, site="east", life=3),
    Owner("cart-1", "boot-1", 4, cause="takeover"),
    Intent("cart-1", until=7.0),
    ControlServer("control-1", "127.0.0.1:3", "127.0.0.1:4", version="9.0"),
    FailoverRecord("1" * 32, "cart-1", "cart-2", "killed", False, (1, 2), (3, 4), 5.0),
    Beat("cart", "cart-1", "boot-1", MemberState.UP, 17, sent=5, claims=(ClaimReport("1" * 32, 3, 1, 2),)),
    TABLE,
]


def with_more(value: Any, place: str = "") -> Any:
    """The document with something unknown in every object, but for the table's ``lost``, whose keys are members."""
    if isinstance(value, list):
        return [with_more(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: with_more(item, key) for key, item in value.items()} | ({} if place == "lost" else MORE)


def newer(value: bytes) -> bytes:
    return json.dumps(with_more(json.loads(value))).encode()


def state_of(*written: tuple[str, bytes]) -> PoolState:
    state = PoolState(KEYS)
    for revision, (key, value) in enumerate(written, start=1):
        state.apply(InformerBatch(revision, (Event("put", Kv(key, value, revision, revision, 0)),)))
    return state


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_fields_that_are_not_known_are_left_out(record: Any) -> None:
    assert type(record).decode(newer(record.encode())) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_the_first_release_wrote_is_read(record: Any) -> None:
    assert (
        type(record).decode(json.dumps(FIRST_RELEASE[type(record).__name__.removesuffix("Record")]).encode()) == record
    )


def test_the_first_releases_spec_is_known_in_full() -> None:
    was = HealthChecks(interval_ms=250, timeout_ms=500, failures=2)
    assert decode_spec(json.dumps(FIRST_RELEASE["PoolSpec"]).encode()) == PoolSpec(
        pool="cart", slots=32, liveness=Liveness(missed_beats=5), health_checks=was
    )


def test_a_session_is_read_whatever_its_header_and_answers_have_beside() -> None:
    answers = (Answer("key", "f", 201, 7),)
    session = Session("text/plain", b"body\nof two lines", 99, 4, 12, answers=answers, version=version_of(4, 17))
    head, _, body = session.encode().partition(b"\n")
    told = {**json.loads(head), **MORE, "answers": [["key", "f", 201, 7, "more", {}]]}

    assert Session.decode(json.dumps(told).encode() + b"\n" + body, 12) == session


SESSION_OF_0_1_0 = (
    b'{"epoch":4,"expires":99,"type":"text/plain","since":9,"answers":[["key","f",201,7]]}\nbody\nof two lines'
)
SESSION_NOW = (
    b'{"epoch":4,"index":17,"expires":99,"type":"text/plain","since":4398046511105,'
    b'"answers":[["key","f",201,4398046511112]]}\nbody\nof two lines'
)


def test_a_session_of_the_first_release_has_its_revision_as_version() -> None:
    answers = (Answer("key", "f", 201, 7),)
    was = Session("text/plain", b"body\nof two lines", 99, 4, 12, answers=answers, since=9, version=version_of(0, 12))

    assert Session.decode(SESSION_OF_0_1_0, 12) == was
    assert was.encode() == SESSION_OF_0_1_0
    assert (was.etag, as_text(was.value_version)) == ('"0.12"', "0.9")


def test_the_first_release_reads_what_is_written_of_a_session_now() -> None:
    """It takes these fields, of these types, and passes over all others; see the release's ``Session.decode``."""
    answers = (Answer("key", "f", 201, version_of(4, 8)),)
    version, since = version_of(4, 17), version_of(4, 1)
    now = Session("text/plain", b"body\nof two lines", 99, 4, 12, answers=answers, since=since, version=version)

    assert now.encode() == SESSION_NOW
    head, was = json.loads(SESSION_NOW.partition(b"\n")[0]), json.loads(SESSION_OF_0_1_0.partition(b"\n")[0])
    assert {name: type(field) for name, field in head.items() if name != "index"} == {
        name: type(field) for name, field in was.items()
    }
    assert [list(map(type, answer)) for answer in head["answers"]] == [[str, str, int, int]]
    assert max(head["since"], head["answers"][0][3]) < 2**63, "it reads whole numbers of 64 bits"


def test_a_spec_is_gone_by_as_far_as_it_is_known_and_the_rest_is_told() -> None:
    known = PoolSpec(pool="cart", slots=32)
    raw = json.loads(known.encode())
    raw |= {"newer": 1, "limits": {**raw["limits"], "newer": 2}, "session_key": [{"header": "x", "newer": 3}]}
    value = json.dumps(raw).encode()

    state = state_of((KEYS.spec, value))

    assert state.spec is not None
    assert state.spec.record == PoolSpec(pool="cart", slots=32, session_key=({"header": "x"},))
    for name in ("newer", "limits.newer", "session_key.0.newer"):
        assert name in state.faults[KEYS.spec]
    with pytest.raises(SpecError, match="unknown key"):
        decode_spec(value)
    state.apply(InformerBatch(9, (Event("put", Kv(KEYS.spec, known.encode(), 9, 1, 0)),)))
    assert state.faults == {}


@pytest.mark.parametrize("unknown", [{}, MORE], ids=["alone", "beside an unknown key"])
def test_a_spec_with_a_value_that_is_not_known_changes_nothing_and_is_named(unknown: dict[str, Any]) -> None:
    known = PoolSpec(pool="cart", slots=32)
    raw = {**json.loads(known.encode()), "takeover": "by-vote", **unknown}

    state = state_of((KEYS.spec, known.encode()), (KEYS.spec, json.dumps(raw).encode()))

    assert state.spec is not None
    assert state.spec.record == known
    assert "takeover" in state.faults[KEYS.spec]


def test_a_record_with_a_state_that_is_not_known_stays_as_it_was_and_is_named() -> None:
    member, owner = RECORDS[0], RECORDS[1]
    resting = json.dumps({**json.loads(member.encode()), "state": "RESTING"}).encode()
    parked = json.dumps({**json.loads(owner.encode()), "phase": "parked"}).encode()
    place, slot = KEYS.member("cart-1"), KEYS.owner(3)

    state = state_of((place, member.encode()), (slot, owner.encode()), (place, resting), (slot, parked))

    assert state.members["cart-1"].record == member
    assert state.owners[3].record == owner
    assert "RESTING" in state.faults[place]
    assert "parked" in state.faults[slot]
