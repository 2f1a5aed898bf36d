"""What the reader of JSON in etcd promises, one promise after the other."""

from dataclasses import dataclass
from typing import Any

import pytest

from understudy.statesync.parsing.stored import (
    MOST_DEPTH,
    SECONDS_MOST,
    TOLD_MOST,
    WHOLE_MOST,
    brief,
    is_text,
    made_of,
    read_json,
    read_object,
    typed,
)
from understudy.statesync.pool.records import MemberState

HALF = "\ud800"
"""Half a character; JSON can escape it, UTF-8 cannot carry it."""
DEEP = {
    "deeper than Python's reader goes": b"[" * 100_000,
    "deep and whole": b"[" * 100_000 + b"]" * 100_000,
    "one level too many": b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1),
    "one level too many of objects": b'{"a":' * (MOST_DEPTH + 1) + b"1" + b"}" * (MOST_DEPTH + 1),
    "both in turn": b'[{"a":' * MOST_DEPTH + b"1" + b"}]" * MOST_DEPTH,
}


@pytest.mark.parametrize("value", DEEP.values(), ids=list(DEEP))
def test_depth_is_bounded(value: bytes) -> None:
    with pytest.raises(ValueError, match=f"more than {MOST_DEPTH} levels"):
        read_json(value)


def test_wide_is_not_deep() -> None:
    assert len(read_json(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000


@pytest.mark.parametrize("value", [b'{"sealed":"a","sealed":["b"]}', b'[{"a":{"b":1,"b":1}}]', b'{"a":1,"\\u0061":2}'])
def test_a_key_that_stands_twice_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="twice"):
        read_json(value)


@pytest.mark.parametrize("value", [b"1e400", b"[-1e400]", b"NaN", b'{"a":-Infinity}', b"Infinity", b"9" * 5000])
def test_a_number_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"too large|no JSON|digits"):
        read_json(value)


@pytest.mark.parametrize("value", [b"\xff\xfe", b'{"a":"\xff"}', b'"\xed\xa0\x80"'])
def test_bytes_that_are_no_utf8_are_refused(value: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        read_json(value)


@pytest.mark.parametrize("value", [b"null", b"[]", b"7", b'"a"', b"true"])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_object(value)


@pytest.mark.parametrize(
    ("kind", "fine", "wrong"),
    [
        (str, ["", "a"], [7, None, ["a"], {}, True, HALF]),
        (int, [0, -1, WHOLE_MOST], [WHOLE_MOST + 1, -WHOLE_MOST - 1, 1.0, "1", True, None, [1]]),
        (float, [0, 1.5, SECONDS_MOST], [-1, SECONDS_MOST + 1, float("nan"), 10**400, "1", True, None, []]),
        (bool, [True, False], [0, 1, "true", None]),
        (MemberState, ["UP"], [7, None, ["UP"], {}, HALF]),
        (tuple[str, ...], [[], ["a"], ("a",)], ["ab", {"a": 1}, 7, None, [7], [["a"]], [HALF]]),
        (tuple[int, ...], [[1]], ["12", {1: 1}, [True], [WHOLE_MOST + 1]]),
    ],
)
def test_a_field_has_its_type(kind: Any, fine: list[object], wrong: list[object]) -> None:
    for value in fine:
        assert typed("field", kind, value) == (tuple(value) if isinstance(value, list) else value)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^field: expected"):
            typed("field", kind, value)


@dataclass
class Record:
    """Two fields, one of which must be there."""

    name: str
    number: int = 0


def test_a_record_is_made_of_the_fields_that_it_knows() -> None:
    assert made_of(Record, {"name": "a", "number": 1, "unknown": [[]]}) == Record("a", 1)
    for wrong in ({}, {"number": 1}, [], None, "name", 7, [["name", "a"]], {"name": 7}, {"name": "a", "number": "1"}):
        with pytest.raises(ValueError, match=r"Record|name|number"):
            made_of(Record, wrong)


def test_what_is_told_of_a_fault_is_short_and_can_be_printed() -> None:
    assert brief("short") == "short"
    assert len(brief("x" * 10_000)) < TOLD_MOST + 40
    assert brief(f"a{HALF}").encode() == b"a\\ud800"
    assert not is_text(HALF)
    with pytest.raises(ValueError, match="name") as caught:
        typed("name", str, HALF)
    assert str(caught.value).encode()
