"""Patterns for the values of cookies, which Envoy's RE2 and Python's ``re`` must read alike. Pure.

Envoy hashes the group of a pattern. It applies the pattern to the whole ``cookie`` header, so every set of characters
is reduced to those that a cookie's value may have: no pattern matches beyond the end of its cookie.

Envoy rejects all routes of a pool if an expression is larger than 100 instructions of RE2 (tried on 1.40), so
:func:`header_regex` estimates the size, and rather too large.
"""

import functools
import re

import msgspec

LENGTH_MOST = 256
_SIZE_MOST = 100
_SIZE_AROUND = 18
"""Instructions for what stands around the cookie's name and the pattern."""

_VALUE_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '";')
_ESCAPE = r"\\(?:[dwsDWS]|[!-/:-@\[-^`{-~])"
_TOKEN = re.compile(
    rf"""
    (?P<set>\[\^?(?:{_ESCAPE}|[A-Za-z0-9_.%~+/=:!@#$&*',|?(){{}}<>-])+\]|{_ESCAPE}|\.)
    |(?P<text>[A-Za-z0-9_%~=:!@\#&',<>/-])
    |(?P<group>\((?:\?:|(?!\?))|[)|])
    |(?P<repeat>(?:[*+?]|\{{(?P<least>\d{{1,3}})(?P<range>,(?P<most>\d{{0,3}}))?\}})\??)
    """,
    re.VERBOSE,
)


class PatternError(ValueError):
    """A pattern that cannot be used; the text says why."""


def header_regex(cookie: str, pattern: str) -> str:
    r"""The RE2 expression that matches a whole ``cookie`` header and has the session id as its group.

    The first cookie of this name whose value matches counts. ``\C`` is any byte: other cookies may hold what is no
    UTF-8.

    Raises:
        PatternError: the pattern cannot be used.
    """
    value = _read(pattern)
    size = _SIZE_AROUND + len(cookie) + value.size
    if size > _SIZE_MOST:
        raise PatternError(
            f"too large for Envoy: about {size} instructions, and {_SIZE_MOST} are the limit; write fewer characters, "
            "smaller sets of them, or + and * instead of counted repetitions"
        )
    return rf'^(?:\C*?;)?? *{re.escape(cookie)}="?(?:{value.regex})"?(?:;\C*)?$'


def id_in_value(pattern: str, value: str) -> str | None:
    """The session id in a cookie's value; None if the value does not match."""
    found = re.fullmatch(_read(pattern).regex, value)
    return (found[1] or "") if found else None


class _ValuePattern(msgspec.Struct, frozen=True):
    """What a cookie's whole value must match, and how many instructions of RE2 that takes at the most."""

    regex: str
    size: int


@functools.lru_cache(maxsize=64)
def _read(pattern: str) -> _ValuePattern:
    if len(pattern) > LENGTH_MOST:
        raise PatternError(f"a pattern has at most {LENGTH_MOST} characters")
    regex, size = _translated(pattern)
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise PatternError(f"not a regular expression: {error.msg}") from None
    if groups != 1:
        raise PatternError(f"exactly one group (...) must mark the session id, and there are {groups}")
    return _ValuePattern(regex, size)


def _translated(pattern: str) -> tuple[str, int]:
    """The pattern with its sets reduced to characters of values, and its size."""
    parts: list[str] = []
    size, before, after_repeat, place = 0, 0, False, 0
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        if token is None:
            raise PatternError(
                f"{pattern[place:][:10]!r} is not supported: use characters, escapes such as \\. and \\w, [...], "
                "(...), (?:...), | and repetitions; the pattern is for the whole value, so it needs no ^ and $"
            )
        if token["repeat"]:
            if after_repeat:
                raise PatternError(f"{token[0]!r} follows another repetition")
            size += 2 + _more_for_count(token, before)
        after_repeat, place = bool(token["repeat"]), token.end()
        text = _reduced(token["set"]) if token["set"] else token[0]
        before = max(1, text.count(r"-\x")) if token["set"] or token["text"] else 0
        size += before or (0 if token["repeat"] else 2)
        parts.append(text)
    return "".join(parts), size


def _reduced(atom: str) -> str:
    """A set of characters as the ranges of those that values may have."""
    try:
        matches = re.compile(atom, re.ASCII).fullmatch
    except re.error as error:
        raise PatternError(f"{atom!r} is not a set of characters: {error.msg}") from None
    codes = [ord(character) for character in _VALUE_CHARACTERS if matches(character)]
    if not codes:
        raise PatternError(f"{atom!r} matches no character that a cookie's value may have")
    starts = [code for code in codes if code - 1 not in codes]
    ends = [code for code in codes if code + 1 not in codes]
    if len(codes) == 1:
        return re.escape(chr(codes[0]))
    ranges = [rf"\x{start:02x}-\x{end:02x}" for start, end in zip(starts, ends, strict=True)]
    return f"[{''.join(ranges)}]"


def _more_for_count(token: re.Match[str], before: int) -> int:
    """The instructions that a counted repetition of one character or set adds."""
    if token["least"] is None:
        return 0
    if not before:
        raise PatternError(f"{token[0]!r} may follow one character or set, not a group")
    least = int(token["least"])
    most = int(token["most"] or least + 1) if token["range"] else least
    return before * max(most, 1) + most - least
