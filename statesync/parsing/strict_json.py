"""JSON from clients, read as RFC 8259 has it: Python's reader takes ``NaN``, and makes infinity of ``1e400``. Pure."""

import json
import math
from typing import Any, NoReturn


def read_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value in ``body``.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number that JSON or a float does not have. Only a
            ``json.JSONDecodeError`` has a text that does not quote the content.
    """
    try:
        return json.loads(body, parse_float=finite, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def whole_number(text: str, most: int) -> int | None:
    """The number that ``text`` is in decimal digits, from 0 to ``most``; None if it is none."""
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
    """For ``NaN`` and ``Infinity``, which Python's reader takes for numbers."""
    raise ValueError(f"{name} is no JSON")
