"""What a write makes of a session: the rules one by one, and properties over any sequence of writes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.merge_patch import merge_patch
from understudy.statesync.sessions.session import (
    ANSWERS_KEPT,
    MERGE_PATCH_TYPE,
    Method,
    Repeated,
    Session,
    Stored,
    Write,
    WriteContext,
    decide_write,
    give_version,
    matches_none,
    valid_key,
)
from understudy.statesync.sessions.session_header import (
    INDEX_MOST,
    Answer,
    read_any_header,
    read_header,
    without_version,
)

NOW = 1_000_000
TERMS = WriteContext(epoch=7, now_ms=NOW, session_bytes=100, default_ttl=60)
HERE = Session("text/plain", b"here", NOW + 5000, epoch=7, revision=99, version=version_of(7, 42))
OF_EARLIER_RELEASE = Session("text/plain", b"here", NOW + 5000, epoch=3, revision=1234, version=1234)
GONE = replace(HERE, deleted=True)
EXPIRED = replace(HERE, expires=NOW)

PUT = Write(Method.PUT, b"new", "text/plain")
PATCH = Write(Method.PATCH, b'{"a":1}', MERGE_PATCH_TYPE)
DELETE = Write(Method.DELETE)


@pytest.mark.parametrize(
    ("current", "write", "status"),
    [
        (None, PUT, 201),
        (GONE, PUT, 201),
        (EXPIRED, PUT, 201),
        (HERE, PUT, 200),
        (HERE, replace(PUT, if_match='"7.42"'), 200),
        (HERE, replace(PUT, if_match='"1", "7.42"'), 200),
        (HERE, replace(PUT, if_match="*"), 200),
        (HERE, replace(PUT, if_match='"7.41"'), 412),
        (HERE, replace(PUT, if_match='W/"7.42"'), 412),
        (None, replace(PUT, if_match="*"), 412),
        (EXPIRED, replace(PUT, if_match='"7.42"'), 412),
        (HERE, replace(PUT, if_none_match="*"), 412),
        (HERE, replace(PUT, if_none_match='W/"7.42"'), 412),
        (HERE, replace(PUT, if_none_match='"7.41"'), 200),
        (None, replace(PUT, if_none_match="*"), 201),
        (HERE, replace(PUT, body=b"x" * 100), 200),
        (HERE, replace(PUT, body=b"x" * 101), 413),
        (None, PATCH, 404),
        (GONE, PATCH, 404),
        (HERE, PATCH, 422),
        (replace(HERE, body=b'{"b":2}'), PATCH, 200),
        (replace(HERE, body=b"{}"), replace(PATCH, body=b"{"), 422),
        (replace(HERE, body=b"{}"), replace(PATCH, content_type="application/json"), 415),
        (None, DELETE, 404),
        (EXPIRED, DELETE, 404),
        (HERE, DELETE, 204),
        (HERE, replace(DELETE, if_match='"7.41"'), 412),
    ],
)
def test_the_answer_to_a_write(current: Session | None, write: Write, status: int) -> None:
    assert decide_write(current, write, TERMS).status == status


def test_a_stored_session_carries_epoch_expiry_and_content() -> None:
    outcome = decide_write(HERE, replace(PUT, ttl=10), TERMS)

    assert isinstance(outcome, Stored)
    assert outcome.session == Session("text/plain", b"new", NOW + 10_000, epoch=7)


def test_a_repeat_gets_its_first_answer_even_when_the_precondition_no_longer_holds() -> None:
    keyed = replace(PUT, idempotency_key="w1", if_match='"7.42"')
    first = decide_write(HERE, keyed, TERMS)
    assert isinstance(first, Stored)
    committed = replace(first.session, version=50)

    assert decide_write(committed, keyed, TERMS) == Repeated(200, 50)
    assert decide_write(committed, replace(keyed, body=b"decided anew"), TERMS) == Repeated(200, 50)


def test_an_idempotency_key_does_not_fit_another_request() -> None:
    first = decide_write(HERE, replace(PUT, idempotency_key="w1"), TERMS)
    assert isinstance(first, Stored)
    other = replace(PUT, idempotency_key="w1", body=b"other")

    assert decide_write(replace(first.session, version=50), other, TERMS).status == 422


def test_a_repeated_delete_gets_its_first_answer() -> None:
    keyed = replace(DELETE, idempotency_key="d1")
    first = decide_write(HERE, keyed, TERMS)
    assert isinstance(first, Stored)

    assert decide_write(replace(first.session, version=50), keyed, TERMS) == Repeated(204, 50)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 12)), max_size=40))
def test_each_keyed_write_has_its_effect_once_while_its_answer_is_kept(writes: list[tuple[str, int]]) -> None:
    current: Session | None = None
    answers: list[tuple[str, int]] = []
    for index, (body, number) in enumerate(writes, start=1):
        key = f"{body}{number}"
        outcome = decide_write(current, Write(Method.PUT, body.encode(), "t", idempotency_key=key), TERMS)
        kept = dict(answers[-ANSWERS_KEPT:])
        if key in kept:
            assert isinstance(outcome, Repeated)
            assert outcome.version == kept[key]
        else:
            assert isinstance(outcome, Stored)
            give_version(outcome.session, version_of(TERMS.epoch, index))
            current = Session.decode(outcome.session.encode(), 1000 - index)
            answers.append((key, version_of(TERMS.epoch, index)))
        assert current is not None
        assert len(current.answers) <= ANSWERS_KEPT


@given(
    st.builds(
        Session,
        content_type=st.text(max_size=30),
        body=st.binary(max_size=200),
        expires=st.integers(0, 2**53),
        epoch=st.integers(1, 2**53),
        revision=st.just(9),
        deleted=st.booleans(),
        since=st.integers(0, 2**63 - 1),
    ),
    st.integers(0, INDEX_MOST),
)
def test_a_session_comes_back_from_etcd_as_it_was(session: Session, index: int) -> None:
    session = replace(session, version=version_of(session.epoch, index) if index else session.revision)
    assert Session.decode(session.encode(), 9) == session


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_what_appendix_a_of_rfc_7396_says(target: object, patch: object, result: object) -> None:
    assert merge_patch(target, patch) == result


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON)
def test_merge_patch_is_idempotent_and_leaves_its_arguments_alone(target: object, patch: object) -> None:
    before = json.dumps([target, patch])
    once = merge_patch(target, patch)

    assert merge_patch(once, patch) == once
    assert json.dumps([target, patch]) == before


@pytest.mark.parametrize(
    ("key", "valid"),
    [("a", True), ("a-b_c.d~1", True), ("...", True)]
    + [(wrong, False) for wrong in ("", ".", "..", "a/b", "é", "a" * 257)],
)
def test_which_keys_can_name_a_session(key: str, valid: bool) -> None:
    assert valid_key(key) is valid


def test_a_conditional_read_matches_weakly() -> None:
    assert matches_none('W/"7.42"', HERE)
    assert matches_none("*", HERE)
    assert not matches_none('"7.43"', HERE)


@pytest.mark.parametrize("content_type", ["text/plain", 'a"b\\c', "caf\u00e9", "line\nbreak", ""])
def test_a_plain_session_stands_in_etcd_as_any_other(content_type: str) -> None:
    plain = Session(content_type, b"body\n{}", 5000, 3, version=version_of(3, 8))
    header = plain.encode().partition(b"\n")[0]
    assert json.loads(header) == {"epoch": 3, "index": 8, "expires": 5000, "type": content_type}
    assert Session.decode(plain.encode(), 9) == plain.at(9)


@pytest.mark.parametrize("more", [{}, {"answers": (Answer("a", "f", 201, 5),)}, {"since": 4}, {"deleted": True}])
def test_the_version_of_the_application_that_wrote_last_is_kept(more: dict[str, Any]) -> None:
    written = Session("text/plain", b"body", 5000, 3, version=version_of(3, 8), app="v2", **more)
    head, _, _ = written.encode().partition(b"\n")
    assert json.loads(head)["app"] == "v2"
    assert Session.decode(written.encode(), 9) == written.at(9)
    assert read_any_header(head, 9) == read_header(head, 9)


@pytest.mark.parametrize("index", [0, -1, INDEX_MOST + 1, "1", 1.0, True])
def test_a_session_with_an_index_that_no_write_has_is_none(index: object) -> None:
    header = {"epoch": 7, "index": index, "expires": 5000, "type": "text/plain"}
    with pytest.raises(ValueError, match="index"):
        Session.decode(json.dumps(header).encode() + b"\n", 9)


def test_the_versions_of_a_session_are_told_apart_and_ordered_across_epochs() -> None:
    tags = {}
    for version in (1234, version_of(7, 41), version_of(7, 42), version_of(8, 1)):
        tags[replace(HERE, version=version).etag] = version
    assert list(tags) == ['"0.1234"', '"7.41"', '"7.42"', '"8.1"']
    assert sorted(tags.values()) == list(tags.values())


@pytest.mark.parametrize(
    ("write", "status"),
    [
        (replace(PUT, if_match='"4d2"'), 200),
        (replace(PUT, if_match='"1", "4d2"'), 200),
        (replace(PUT, if_match='"0.1234"'), 200),
        (replace(PUT, if_match='"4d3"'), 412),
        (replace(PUT, if_match='"0.4d2"'), 412),
        (replace(PUT, if_match='"1234"'), 412),
        (replace(PUT, if_none_match='"4d2"'), 412),
    ],
)
def test_a_session_of_an_earlier_release_is_known_by_the_etag_that_it_had_there_too(write: Write, status: int) -> None:
    assert decide_write(OF_EARLIER_RELEASE, write, TERMS).status == status
    assert matches_none('"4d2"', OF_EARLIER_RELEASE)


def test_a_session_with_an_epoch_in_its_version_has_no_etag_in_hexadecimal() -> None:
    for number in (HERE.version, HERE.revision, 42):
        assert decide_write(HERE, replace(PUT, if_match=f'"{number:x}"'), TERMS).status == 412


def test_an_answer_that_is_kept_names_the_version_that_it_was_given_for() -> None:
    first = decide_write(OF_EARLIER_RELEASE, replace(PUT, idempotency_key="w1"), TERMS)
    assert isinstance(first, Stored)
    give_version(first.session, version_of(7, 1))
    second = decide_write(first.session, replace(PUT, idempotency_key="w2"), TERMS)
    assert isinstance(second, Stored)
    give_version(second.session, version_of(7, 2))

    for key, version in (("w1", version_of(7, 1)), ("w2", version_of(7, 2))):
        stored = Session.decode(second.session.encode(), 1236)
        assert decide_write(stored, replace(PUT, idempotency_key=key), TERMS) == Repeated(200, version)


def test_a_session_that_goes_to_another_etcd_has_the_version_of_its_record_there() -> None:
    answers = (Answer("k", "f", 200, version_of(7, 40)),)
    stored = replace(HERE, since=version_of(7, 30), answers=answers).encode()
    newer = stored.replace(b"{", b'{"newer":["more"],', 1)
    for value in (stored, newer):
        restored = Session.decode(without_version(value), 5)
        assert restored == replace(HERE, answers=answers, revision=5, version=5)
    assert b'"newer":["more"]' in without_version(newer)
    for left in (replace(HERE, version=0).encode(), b"no session", b'{"sealed":"0","index":3}\n', b"[1]", b""):
        assert without_version(left) == left
