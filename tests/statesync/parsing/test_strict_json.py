"""JSON and numbers from clients: what Python would take and RFC 8259 does not have."""

import pytest

from understudy.statesync.parsing.strict_json import json_fault, read_json, whole_number


def test_json_is_read() -> None:
    assert read_json(b'{"a": [1, 2.5, -1e300, null, true, "NaN"]}') == {"a": [1, 2.5, -1e300, None, True, "NaN"]}


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e400", "[-1e999]", "9" * 5000, "[" * 100_000, "", '"\xff"'])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is for nobody: it may quote the content
        read_json(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'{"a": [1, 2.5]}', ""),
        (b"", "Expecting value, line 1, column 1"),
        (b'{"secret": 1,\n]', "line 2, column 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b'"\xff"', "not UTF-8"),
        (b'["secret", NaN]', "number"),
        (b"1e400", "number"),
    ],
)
def test_a_fault_says_where_it_is_and_never_quotes_the_content(body: bytes, fault: str) -> None:
    said = json_fault(body)
    assert fault in said
    assert bool(said) == bool(fault)
    assert "secret" not in said


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("100", 100), ("101", None), ("", None), ("-1", None), ("1.0", None), ("\u0661", None)],
)
def test_a_whole_number_has_digits_and_a_bound(text: str, number: int | None) -> None:
    assert whole_number(text, 100) == number


def test_a_number_of_5000_digits_is_none() -> None:
    assert whole_number("9" * 5000, 1 << 64) is None
