"""The value of a key: its kind, its stored bytes and its expiry. Pure.

A string is stored as it is. A hash and a set are stored as a RESP2 array of bulk strings, which hiredis writes and
reads: field, value, field, value ... or the members, in the order in which they were added. So every session has one
body of bytes, whatever wrote it.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import chain
from typing import Final

import hiredis
import msgspec

STRING_TYPE: Final = "application/octet-stream"
HASH_TYPE: Final = "application/vnd.understudy.redis-hash"
SET_TYPE: Final = "application/vnd.understudy.redis-set"


class Kind(StrEnum):
    """What a key holds."""

    STRING = "string"
    HASH = "hash"
    SET = "set"


class CorruptValue(ValueError):
    """The stored bytes are not those of a hash or set."""


class Value(msgspec.Struct, frozen=True, gc=False):
    """What a key holds. ``expires`` is in Unix milliseconds; None: never."""

    kind: Kind
    data: bytes
    expires: int | None


_STRING: Final = Kind.STRING
"""Python looks a member of an enumeration up anew each time, and hashes it in Python: both take longer than this."""
_CONTENT_TYPES: Final = {Kind.STRING: STRING_TYPE, Kind.HASH: HASH_TYPE, Kind.SET: SET_TYPE}
_KINDS: Final = {HASH_TYPE: Kind.HASH, SET_TYPE: Kind.SET}


def content_type_of(kind: Kind) -> str:
    """The content type of a session that holds a value of this kind."""
    return STRING_TYPE if kind is _STRING else _CONTENT_TYPES[kind]


def kind_of(content_type: str) -> Kind:
    """The kind of value in a session of this content type: a string unless a Redis command made it otherwise."""
    return _KINDS.get(content_type, _STRING)


def is_string(content_type: str) -> bool:
    """Whether :func:`kind_of` says that it is a string."""
    return content_type not in _KINDS


def encode_hash(fields: Mapping[bytes, bytes]) -> bytes:
    """The stored form of a hash."""
    return _pack(chain.from_iterable(fields.items()))


def decode_hash(data: bytes) -> dict[bytes, bytes]:
    """The fields of a stored hash in their order; raises :class:`CorruptValue`."""
    items = _unpack(data)
    fields = dict(zip(items[::2], items[1::2], strict=False))
    if 2 * len(fields) != len(items):
        raise CorruptValue("the stored hash has a field twice, or one without a value")
    return fields


def encode_set(members: Iterable[bytes]) -> bytes:
    """The stored form of a set."""
    return _pack(members)


def decode_set(data: bytes) -> dict[bytes, None]:
    """The members of a stored set in their order, as the keys of a dictionary; raises :class:`CorruptValue`."""
    items = _unpack(data)
    members = dict.fromkeys(items)
    if len(members) != len(items):
        raise CorruptValue("the stored set has a member twice")
    return members


def _pack(items: Iterable[bytes]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(items))  # type: ignore[arg-type]
    return packed


def _unpack(data: bytes) -> list[bytes]:
    reader = hiredis.Reader(notEnoughData=None)
    try:
        reader.feed(data)
        items = reader.gets()
    except hiredis.HiredisError as error:
        raise CorruptValue("the stored value is no RESP") from error
    if not isinstance(items, list) or reader.has_data() or not all(isinstance(item, bytes) for item in items):
        raise CorruptValue("the stored value is not one array of strings")
    return items
