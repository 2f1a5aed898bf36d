"""How members are told apart on the slot map: a letter, a colour and a pattern for each. Pure.

Letter and pattern are enough without colour. There are six colours and four patterns, so 24 members differ in both, and
all members differ in their letters.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

TONES, PATTERNS = 6, 4
_NUMBER = re.compile(r"(\d+)")


class Mark(NamedTuple):
    """The letters of a member, the numbers of its colour and its pattern, and its place in the order of names."""

    text: str
    tone: int
    pattern: int
    place: int


UNKNOWN = Mark("?", -1, 0, -1)


def marks_of(members: Iterable[str]) -> Mapping[str, Mark]:
    """A mark for each member, in the order of names; numbers in names count as numbers."""
    return _marks_of(frozenset(members))


@functools.lru_cache(maxsize=16)
def _marks_of(members: frozenset[str]) -> Mapping[str, Mark]:
    """Kept for the last sets of members: for thousands of them this takes a quarter of the time of a frame."""
    ordered = sorted(members, key=natural)
    marks = {name: Mark(letters(at), at % TONES, at // TONES % PATTERNS, at) for at, name in enumerate(ordered)}
    return MappingProxyType(marks)


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which ``cart-2`` comes before ``cart-10``."""
    return [(int(part), "") if part.isascii() and part.isdigit() else (0, part) for part in _NUMBER.split(name)]


def letters(at: int) -> str:
    """0 is ``A``, 25 is ``Z``, 26 is ``AA``, as in a spreadsheet."""
    text = ""
    at += 1
    while at:
        at, rest = divmod(at - 1, 26)
        text = chr(ord("A") + rest) + text
    return text
