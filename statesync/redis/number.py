"""Numbers as Redis reads and writes them: 64-bit integers, and floats of x86's 80-bit ``long double``. Pure."""

import re
from fractions import Fraction
from typing import Final

LEAST: Final = -(1 << 63)
GREATEST: Final = (1 << 63) - 1
_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_DIGITS_ALWAYS_IN_RANGE: Final = 19
_ZERO: Final = ord("0")
_DECIMAL: Final = re.compile(rb"([+-]?)(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?(?:e([+-]?[0-9]+))?", re.IGNORECASE)
_HEXADECIMAL: Final = re.compile(
    rb"([+-]?)0x(?=\.?[0-9a-f])([0-9a-f]*)(?:\.([0-9a-f]*))?(?:p([+-]?[0-9]+))?", re.IGNORECASE
)
_INFINITE: Final = re.compile(rb"([+-]?)inf(?:inity)?", re.IGNORECASE)
_FLOAT_LENGTH: Final = 5 * 1024
_MANTISSA_BITS: Final = 64
_LEAST_EXPONENT: Final = -16445
_GREATEST_EXPONENT: Final = 16384
_DECIMAL_PLACES: Final = 17
_DIGITS_AT_ONCE: Final = 4000

INFINITE: Final = "infinite"
"""What :func:`float_of` and :func:`float_sum` give for a number that is, or becomes, infinite."""


def integer_of(text: bytes) -> int | None:
    """The 64-bit integer that ``text`` is; None for anything else, also for a plus sign or leading zeros."""
    if len(text) < _DIGITS_ALWAYS_IN_RANGE and text.isdigit() and (text[0] != _ZERO or text == b"0"):
        return int(text)  # most numbers, in a third of the time
    if _INTEGER.fullmatch(text) is None:
        return None
    number = int(text)
    return number if LEAST <= number <= GREATEST else None


def is_64_bit(number: int) -> bool:
    """Whether a sum still is a 64-bit integer."""
    return LEAST <= number <= GREATEST


def float_of(text: bytes) -> Fraction | str | None:
    """The ``long double`` nearest to the number in ``text``, :data:`INFINITE`, or None if it is not a number."""
    if len(text) >= _FLOAT_LENGTH:
        return None
    if _INFINITE.fullmatch(text):
        return INFINITE
    if match := _DECIMAL.fullmatch(text):
        exact = _scaled(match, base=10, digit_base=10)
    elif match := _HEXADECIMAL.fullmatch(text):
        exact = _scaled(match, base=2, digit_base=16)
    else:
        return None
    if exact is None:
        return None
    rounded = _rounded(exact)
    return None if rounded == INFINITE or (exact and not rounded) else rounded


def _scaled(match: re.Match[bytes], *, base: int, digit_base: int) -> Fraction | None:
    """The exact number; None if it is far outside of the range of a ``long double``."""
    sign, whole, part, power = match.groups()
    digits = _whole_number(whole + (part or b""), digit_base)
    if not digits:
        return Fraction(0)
    if len(power or b"") > 10:  # never in range, however many digits there are
        return None
    exponent = int(power or b"0") - len(part or b"") * (1 if digit_base == base else 4)
    if abs(digits.bit_length() + exponent * (1 if base == 2 else 3.33)) > 2 * _GREATEST_EXPONENT:
        return None
    scaled = digits * Fraction(base) ** exponent
    return -scaled if sign == b"-" else scaled


def _whole_number(digits: bytes, base: int) -> int:
    """The number of these digits, in parts: Python converts no more than 4,300 digits at once."""
    number = 0
    for start in range(0, len(digits), _DIGITS_AT_ONCE):
        part = digits[start : start + _DIGITS_AT_ONCE]
        number = number * base ** len(part) + int(part, base)
    return number


def _digits_of(number: int) -> str:
    """The decimal digits of a positive number, in parts."""
    parts = []
    while number >= 10**_DIGITS_AT_ONCE:
        number, part = divmod(number, 10**_DIGITS_AT_ONCE)
        parts.append(f"{part:0{_DIGITS_AT_ONCE}d}")
    return "".join((str(number), *reversed(parts)))


def _rounded(exact: Fraction) -> Fraction | str:
    """The nearest number with a mantissa of 64 bits; halves go to the even one."""
    if not exact:
        return exact
    top = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** top:
        top -= 1
    unit = Fraction(2) ** max(top - _MANTISSA_BITS + 1, _LEAST_EXPONENT)
    rounded = round(exact / unit) * unit
    return INFINITE if abs(rounded) >= Fraction(2) ** _GREATEST_EXPONENT else rounded


def float_sum(one: Fraction | str, other: Fraction | str) -> Fraction | str:
    """The sum as a ``long double``, or :data:`INFINITE` (also for infinity minus infinity)."""
    if isinstance(one, str) or isinstance(other, str):
        return INFINITE
    return _rounded(one + other)


def float_text(number: Fraction) -> bytes:
    """The number with at most 17 decimal places and no trailing zeros."""
    scaled = round(number * 10**_DECIMAL_PLACES)
    whole, part = divmod(abs(scaled), 10**_DECIMAL_PLACES)
    text = f"{_digits_of(whole)}.{part:0{_DECIMAL_PLACES}d}".rstrip("0").rstrip(".")
    return f"-{text}".encode() if scaled < 0 else text.encode()
