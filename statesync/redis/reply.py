"""Python values as replies in RESP2 and RESP3.

A command's result is a plain Python value. :func:`encode` turns it into the bytes that Redis would send to a
connection of the given protocol version.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isinf, isnan
from typing import Any, Final

_NO_LINE_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Simple:
    """A short text without line breaks, such as ``OK``."""

    text: bytes | str


@dataclass(frozen=True, slots=True)
class RedisError:
    """An error reply; ``text`` begins with its code: ``ERR ...``. Bytes that are not UTF-8 are surrogate escapes."""

    text: str


@dataclass(frozen=True, slots=True)
class OrderedSet:
    """The members of a set in the order in which they are sent."""

    members: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """A message that answers no command: a push in RESP3, an array in RESP2."""

    items: tuple[Any, ...]


OK: Final = Simple(b"OK")
WRONG_TYPE: Final = RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")


def text_of(argument: bytes) -> str:
    """An argument for the text of an error; :func:`encode` gives the same bytes again."""
    return argument.decode("utf-8", "surrogateescape")


def error(text: str) -> RedisError:
    """An error with the general code ``ERR``."""
    return RedisError(f"ERR {text}")


def encode(value: object, protocol: int) -> bytes:
    """The reply ``value`` in version 2 or 3 of the protocol. Raises ``TypeError`` for a value that is no reply."""
    if type(value) is bytes:
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if type(value) is int:
        return b":%d\r\n" % value
    if value is OK:
        return b"+OK\r\n"
    if value is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise TypeError(f"{type(value).__name__} is no reply")
    return writer(value, protocol)


def _line(text: bytes | str) -> bytes:
    """A text that must fit in one line: line breaks of user data become spaces, as in Redis."""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return raw.translate(_NO_LINE_BREAKS)


def _simple(value: Simple, _: int) -> bytes:
    return b"+%b\r\n" % _line(value.text)


def _error(value: RedisError, _: int) -> bytes:
    return b"-%b\r\n" % _line(value.text)


def _bulk_text(value: str, _: int) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def _bool(value: bool, _: int) -> bytes:
    return b":%d\r\n" % value


def _float(value: float, protocol: int) -> bytes:
    if isnan(value):
        text = b"nan"
    elif isinf(value):
        text = b"inf" if value > 0 else b"-inf"
    else:
        text = b"%.17g" % value
    return b",%b\r\n" % text if protocol == 3 else b"$%d\r\n%b\r\n" % (len(text), text)


def _items(values: Iterable[object], protocol: int) -> bytes:
    return b"".join([encode(value, protocol) for value in values])


def _array(value: tuple[object, ...] | list[object], protocol: int) -> bytes:
    return b"*%d\r\n%b" % (len(value), _items(value, protocol))


def _map(value: Mapping[object, object], protocol: int) -> bytes:
    items = _items((item for pair in value.items() for item in pair), protocol)
    return b"%%%d\r\n%b" % (len(value), items) if protocol == 3 else b"*%d\r\n%b" % (2 * len(value), items)


def _set(value: frozenset[object] | set[object], protocol: int) -> bytes:
    return (b"~%d\r\n%b" if protocol == 3 else b"*%d\r\n%b") % (len(value), _items(value, protocol))


def _ordered_set(value: "OrderedSet", protocol: int) -> bytes:
    return (b"~%d\r\n%b" if protocol == 3 else b"*%d\r\n%b") % (len(value.members), _items(value.members, protocol))


def _push(value: Push, protocol: int) -> bytes:
    return (b">%d\r\n%b" if protocol == 3 else b"*%d\r\n%b") % (len(value.items), _items(value.items, protocol))


_WRITERS: Final[dict[type, Callable[[Any, int], bytes]]] = {
    bool: _bool,
    dict: _map,
    float: _float,
    frozenset: _set,
    list: _array,
    set: _set,
    str: _bulk_text,
    tuple: _array,
    OrderedSet: _ordered_set,
    Push: _push,
    RedisError: _error,
    Simple: _simple,
}
