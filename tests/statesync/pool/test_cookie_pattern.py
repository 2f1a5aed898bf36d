"""Patterns for cookies: what they find, and those that Envoy would read differently or reject."""

import re

import pytest

from understudy.statesync.pool.cookie_pattern import PatternError, header_regex, id_in_value
from understudy.statesync.pool.session_key import PRESETS

EXPRESS = PRESETS["express"]["pattern"]


@pytest.mark.parametrize(
    ("pattern", "value", "found"),
    [
        (EXPRESS, "s%3Aabc.def%2Bg", "abc"),
        (EXPRESS, "s:a.b.c", "a.b"),
        (EXPRESS, "s%3Aabc", None),
        (EXPRESS, "j%3Aabc.def", None),
        (r"v\d-([0-9a-f]{4,6})(?:\..*)?", "v2-00ff9", "00ff9"),
        (r"(\w+)-(?:a|b)", "x_1-b", "x_1"),
        (r"([^.]+)", "a-b%20", "a-b%20"),
        (r"(\W+)", "--.", "--."),
        (r"(?:x|y(z))", "x", ""),
        (r"(a\.\-)[\-\].]", "a.-]", "a.-"),
        (r"(.+)", "a;b", None),
        (r"(.+)", 'a"', None),
        (r"([^a]+)", "ü", None),
    ],
)
def test_the_group_of_a_pattern_is_the_session_id(pattern: str, value: str, found: str | None) -> None:
    assert id_in_value(pattern, value) == found


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("c=1-ab", "ab"),
        ("a=b; c=1-ab; d=e", "ab"),
        ('a="x;y";c="1-ab"', "ab"),
        ("c=2-no; c=1-first; c=1-second", "first"),
        ("xc=1-a; a=c=1-b", None),
        ("c=1-a;b", "a"),
        ("c=1-a b", None),
        ("", None),
    ],
)
def test_the_first_cookie_of_the_name_that_matches_counts(header: str, found: str | None) -> None:
    regex = header_regex("c", "1-(.+)").replace(r"\C", "(?s:.)")  # Python has no name for any byte
    match = re.search(regex, header)
    assert (match[1] if match else None) == found


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("^(a)$", "'^(a)$' is not supported"),
        ("(?P<a>b)", "is not supported"),
        ("(?i)(a)", "is not supported"),
        (r"(a)\1", "is not supported"),
        (r"(\bab)", "is not supported"),
        (r"(\x41)", "is not supported"),
        (r"(\pL)", "is not supported"),
        ("([[:alpha:]])", "is not supported"),
        ("(a b)", "is not supported"),
        ("(ü)", "is not supported"),
        ("(a{,3})", "is not supported"),
        ("(a++)", "'+' follows another repetition"),
        ("(a{2}{3})", "'{3}' follows another repetition"),
        ("(?:ab){3}(c)", "'{3}' may follow one character or set"),
        ("(a", "not a regular expression: missing ), unterminated subpattern"),
        ("*(a)", "not a regular expression: nothing to repeat"),
        ("(a{3,2})", "not a regular expression: min repeat greater than max repeat"),
        ("([z-a])", "'[z-a]' is not a set of characters: bad character range z-a"),
        (r"([\s])", "matches no character that a cookie's value may have"),
        (r"(\;)", "matches no character that a cookie's value may have"),
        ("a", "exactly one group (...) must mark the session id, and there are 0"),
        ("(a)(b)", "and there are 2"),
        ("(.{40})", "too large for Envoy: about 148 instructions, and 100 are the limit"),
        ("(a)" * 90, "at most 256 characters"),
    ],
)
def test_what_re2_and_python_do_not_read_alike_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(PatternError) as caught:
        header_regex("c", pattern)
    assert words in str(caught.value)
