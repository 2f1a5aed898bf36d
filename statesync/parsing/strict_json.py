"""Reads JSON from clients as RFC 8259 defines it. Pure.

Python's reader accepts ``NaN``, and turns ``1e400`` into infinity. This one refuses both.
"""

import json
import math
from typing import Any, NoReturn


def read_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value in ``body``.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number that JSON or a float cannot hold. Only the
            text of a ``json.JSONDecodeError`` does not quote the content.
    """
    try:
        return _DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_fault(body: bytes) -> str:
    """What keeps :func:`read_json` from reading ``body``, without quoting it; '' if nothing does."""
    try:
        read_json(body)
    except ValueError as error:
        return described(error)
    return ""


def described(error: ValueError) -> str:
    """An error of :func:`read_json`, without the content that it may quote."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return "not UTF-8, nested too deeply, or a number that JSON or a float cannot hold"


def whole_number(text: str, most: int) -> int | None:
    """The number from 0 to ``most`` that ``text`` is in decimal digits; None if it is not one."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):  # int() fails at 5,000 digits
        return None
    number = int(text)
    return number if number <= most else None


def finite(text: str) -> float:
    """The number in ``text``; raises ``ValueError`` if a float cannot hold it."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def no_constant(name: str) -> NoReturn:
    """Refuse ``NaN`` and ``Infinity``, which Python's reader accepts as numbers."""
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_float=finite, parse_constant=no_constant)
