"""How members are told apart on the slot map: a letter, a colour and a pattern for each. Pure.

Letter and pattern are enough without colour. There are six colours and four patterns, so 24 members differ in both, and
all members differ in their letters.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

TONES, PATTERNS = 6, 4
_NUMBER = re.compile(r"(\d+)")


class Mark(NamedTuple):
    """The letters of a member, and the numbers of its colour and its pattern."""

    text: str
    tone: int
    pattern: int


UNKNOWN = Mark("?", -1, 0)


def marks_of(members: Iterable[str]) -> dict[str, Mark]:
    """A mark for each member, in the order of names; numbers in names count as numbers."""
    ordered = sorted(set(members), key=natural)
    return {name: Mark(letters(at), at % TONES, at // TONES % PATTERNS) for at, name in enumerate(ordered)}


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
