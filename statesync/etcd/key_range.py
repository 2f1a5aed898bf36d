"""Ranges of keys in etcd's byte order."""

import msgspec


class KeyRange(msgspec.Struct, frozen=True):
    """A half-open range of keys, ``[start, end)``, in etcd's byte order."""

    start: str
    end: str


def prefix_range(prefix: str) -> KeyRange:
    """The range of all keys that begin with ``prefix`` (which must end in a character below U+007F)."""
    return KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))
