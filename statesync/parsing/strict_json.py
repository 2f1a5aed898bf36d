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
        return json.loads(body, parse_float=finite, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
