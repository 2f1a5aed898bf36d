"""Reads JSON that anybody may have written: values in etcd, lines of a backup, answers of peers. Writes small ones.

All such JSON is parsed here. Whatever the bytes are, the result is a document that is safe to walk, compare and print,
or a ``ValueError``. Nesting is bounded. NaN and infinity are refused. A key that occurs twice in one object is refused
too, because readers would disagree on which one counts. :func:`typed` does the same for a single field.
"""

import dataclasses
import json
import types
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from understudy.statesync.parsing.strict_json import finite, no_constant

MOST_DEPTH = 64
"""Levels of arrays and objects. The deepest value that Understudy writes, a spec, has five."""
WHOLE_MOST = 2**63 - 1
SECONDS_MOST = 253_402_300_799
"""The last second of the year 9999, which is the last one that can be shown as a date."""
TOLD_MOST = 300
"""Longest text of a fault that is logged and shown, in characters."""

T = TypeVar("T")
_COMPACT = json.JSONEncoder(separators=(",", ":"), default=dataclasses.asdict).encode


def read_json(value: bytes | str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    """The document in ``value``. Raises only ``ValueError``, on anything that is not one."""
    text = value if isinstance(value, str) else value.decode()
    try:
        document = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MOST_DEPTH:  # a quick check: otherwise it cannot be that deep
        _refuse_depth(document)
    return document


def read_object(value: bytes | str) -> dict[str, Any]:
    """The JSON object in ``value``. Raises only ``ValueError``, on anything that is not one."""
    document = read_json(value)
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")  # noqa: TRY004 - one error for all
    return document


def compact_json(document: object) -> bytes:
    """``document``, which may have dataclasses in it, as JSON without blanks; ``json`` takes ten times as long."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # half a character, which ``json`` escapes
        return _COMPACT(document).encode()


def typed(name: str, kind: Any, value: object) -> Any:  # noqa: ANN401 - ``kind`` is an annotation
    """Convert ``value`` to the type ``kind`` of the field ``name``. Raises ``ValueError`` if it does not fit.

    ``kind`` is ``str``, ``int``, ``float`` (seconds), ``bool``, a ``StrEnum``, or a tuple of any number of one of
    these. Values of all other kinds are returned unchanged, and the class that declares the field checks them.
    """
    fits = _FITS.get(kind)
    if fits is None:
        if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
            if not isinstance(value, list | tuple):
                raise ValueError(f"{name}: expected a list, got {type(value).__name__}")
            return tuple(typed(name, get_args(kind)[0], item) for item in value)
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            kind, fits = str, is_text  # the enum itself refuses texts that it does not know
    if fits is not None and not fits(value):
        raise ValueError(
            f"{name}: expected {_NAMES[kind]}, got {brief(repr(value)) if value else type(value).__name__}"
        )
    return float(value) if kind is float else value  # type: ignore[arg-type]


def made_of(cls: type[T], raw: object) -> T:
    """A dataclass made of the fields in ``raw`` that it has, with their types checked. Raises ``ValueError``."""
    if not isinstance(raw, dict):
        raise ValueError(f"{cls.__name__}: expected a JSON object, got {type(raw).__name__}")  # noqa: TRY004 - as above
    kinds = _kinds(cls)  # type: ignore[arg-type] # a class is hashable
    given = {name: typed(name, kinds[name], item) for name, item in raw.items() if name in kinds}
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {brief(str(error))}") from None


def brief(text: str) -> str:
    """``text`` for a log line: cut if it is too long, with bytes that are not UTF-8 (surrogates) as escapes."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= TOLD_MOST else f"{text[:TOLD_MOST]}... ({len(text)} characters)"


def is_text(value: object) -> bool:
    """Whether UTF-8 can encode ``value``: JSON may escape half a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number of 64 bits."""
    return type(value) is int and -WHOLE_MOST <= value <= WHOLE_MOST


def _is_seconds(value: object) -> bool:
    """Whether ``value`` is a number of seconds, which NaN and infinity are not."""
    return type(value) in (int, float) and 0 <= value <= SECONDS_MOST  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_FITS: dict[Any, Callable[[object], bool]] = {str: is_text, int: is_whole, float: _is_seconds, bool: _is_flag}
_NAMES = {str: "text", int: "a whole number", float: "a number of seconds", bool: "true or false"}


@lru_cache(maxsize=64)
def _kinds(cls: type) -> types.MappingProxyType[str, Any]:
    fields = dataclasses.fields(cls)
    return types.MappingProxyType({field.name: field.type for field in fields})


def _refuse_depth(document: object) -> None:
    level = [document] if type(document) in (list, dict) else []
    for _ in range(MOST_DEPTH):
        if not level:
            return
        level = [
            item
            for one in level
            for item in (one.values() if type(one) is dict else one)  # type: ignore[attr-defined]
            if type(item) is list or type(item) is dict
        ]
    if level:
        raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"JSON with more than {MOST_DEPTH} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("JSON with a key that stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=finite, parse_constant=no_constant)
