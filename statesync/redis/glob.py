"""Redis's patterns for keys: ``*``, ``?``, ``[a-z]``, ``[^a]`` and backslashes (``stringmatchlen``). Pure.

A key is compared in time proportional to its length times that of the pattern, whatever the two are.
"""

from typing import Final

_STAR: Final = None
_ALL: Final = frozenset(range(256))
Token = frozenset[int] | None
"""The bytes that may stand in a place; None: any number of any bytes."""


class Glob:
    """One pattern."""

    def __init__(self, pattern: bytes) -> None:
        self._tokens = _tokens(pattern)

    def fits(self, key: bytes) -> bool:
        """Whether the whole of ``key`` is what the pattern says."""
        tokens = self._tokens
        position = token = 0
        star, resume = -1, 0
        while position < len(key):
            wanted = tokens[token] if token < len(tokens) else frozenset()
            if wanted is _STAR:
                star, resume = token, position
                token += 1
            elif key[position] in wanted:
                position += 1
                token += 1
            elif star >= 0:
                resume += 1
                position, token = resume, star + 1
            else:
                return False
        return all(rest is _STAR for rest in tokens[token:])


def _tokens(pattern: bytes) -> list[Token]:
    tokens: list[Token] = []
    position = 0
    while position < len(pattern):
        byte = pattern[position]
        position += 1
        if byte == b"*"[0]:
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif byte == b"?"[0]:
            tokens.append(_ALL)
        elif byte == b"["[0]:
            token, position = _class(pattern, position)
            tokens.append(token)
        else:
            if byte == b"\\"[0] and position < len(pattern):
                byte = pattern[position]
                position += 1
            tokens.append(frozenset((byte,)))
    return tokens


def _class(pattern: bytes, position: int) -> tuple[frozenset[int], int]:
    """The bytes of a class that begins at ``position``, and where it ends. One that is not closed goes to the end."""
    negated = pattern[position : position + 1] == b"^"
    position += negated
    chosen: set[int] = set()
    while position < len(pattern) and pattern[position] != b"]"[0]:
        byte = pattern[position]
        if byte == b"\\"[0] and position + 1 < len(pattern):
            position += 1
            chosen.add(pattern[position])
        elif pattern[position + 1 : position + 2] == b"-" and position + 2 < len(pattern):
            last = pattern[position + 2]
            chosen.update(range(min(byte, last), max(byte, last) + 1))
            position += 2
        else:
            chosen.add(byte)
        position += 1
    return (_ALL - chosen if negated else frozenset(chosen)), position + 1
