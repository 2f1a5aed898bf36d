"""Commands on hashes. Pure.

A hash keeps the order in which its fields were added, as a small hash does in Redis; the last field that goes takes
the key with it. A change of fields keeps the expiry.
"""

from collections.abc import Callable, Mapping
from typing import Final

from understudy.statesync.redis.command import (
    NOT_AN_INTEGER,
    Apply,
    Args,
    Check,
    Effect,
    Rule,
    no_check,
    wrong_number_of_arguments,
)
from understudy.statesync.redis.number import float_of, float_sum, float_text, integer_of, is_64_bit
from understudy.statesync.redis.reply import OK, WRONG_TYPE, RedisError, error
from understudy.statesync.redis.value import Kind, Value, decode_hash, encode_hash

_HASH_NOT_AN_INTEGER: Final = error("hash value is not an integer")
_HASH_NOT_A_FLOAT: Final = error("hash value is not a float")
_OVERFLOW: Final = error("increment or decrement would overflow")
_NOT_A_FLOAT: Final = error("value is not a valid float")
_INFINITE: Final = error("value is NaN or Infinity")
_INFINITE_SUM: Final = error("increment would produce NaN or Infinity")

Fields = dict[bytes, bytes]


def _fields_of(before: Value | None) -> Fields | None:
    """The fields of the hash, none if the key does not exist; None if the key holds something else."""
    if before is None:
        return {}
    return decode_hash(before.data) if before.kind is Kind.HASH else None


def _reading(question: Callable[[Args, Mapping[bytes, bytes]], object]) -> Apply:
    """A command that answers from the fields."""

    def apply(args: Args, before: Value | None, _: int) -> Effect:
        fields = _fields_of(before)
        return Effect(WRONG_TYPE if fields is None else question(args, fields), before)

    return apply


def _changing(change: Callable[[Args, Fields], tuple[object, bool]]) -> Apply:
    """A command that changes the fields in place; ``change`` gives the reply, and whether anything changed."""

    def apply(args: Args, before: Value | None, _: int) -> Effect:
        fields = _fields_of(before)
        if fields is None:
            return Effect(WRONG_TYPE, before)
        reply, changed = change(args, fields)
        if not changed:
            return Effect(reply, before)
        expires = before.expires if before else None
        return Effect(reply, Value(Kind.HASH, encode_hash(fields), expires) if fields else None)

    return apply


def _set(args: Args, fields: Fields) -> tuple[object, bool]:
    count = len(fields)
    fields.update(zip(args[::2], args[1::2], strict=True))
    return len(fields) - count, True


def _set_many(args: Args, fields: Fields) -> tuple[object, bool]:
    fields.update(zip(args[::2], args[1::2], strict=True))
    return OK, True


def _set_new(args: Args, fields: Fields) -> tuple[object, bool]:
    if args[0] in fields:
        return 0, False
    fields[args[0]] = args[1]
    return 1, True


def _delete(args: Args, fields: Fields) -> tuple[object, bool]:
    count = len(fields)
    for name in args:
        fields.pop(name, None)
    return count - len(fields), count != len(fields)


def _check_pairs(command: bytes) -> Check:
    """Refuse a field without a value."""

    def check(args: Args) -> RedisError | None:
        return wrong_number_of_arguments(command) if len(args) % 2 else None

    return check


def _check_integer(args: Args) -> RedisError | None:
    return NOT_AN_INTEGER if integer_of(args[1]) is None else None


def _add(args: Args, fields: Fields) -> tuple[object, bool]:
    current = integer_of(fields.get(args[0], b"0"))
    if current is None:
        return _HASH_NOT_AN_INTEGER, False
    total = current + int(args[1])
    if not is_64_bit(total):
        return _OVERFLOW, False
    fields[args[0]] = b"%d" % total
    return total, True


def _check_float(args: Args) -> RedisError | None:
    amount = float_of(args[1])
    if amount is None:
        return _NOT_A_FLOAT
    return _INFINITE if isinstance(amount, str) else None


def _add_float(args: Args, fields: Fields) -> tuple[object, bool]:
    current = float_of(fields.get(args[0], b"0"))
    amount = float_of(args[1])
    if current is None or amount is None:
        return _HASH_NOT_A_FLOAT, False
    total = float_sum(current, amount)
    if isinstance(total, str):
        return _INFINITE_SUM, False
    fields[args[0]] = float_text(total)
    return fields[args[0]], True


def _read_rule(arity: int, question: Callable[[Args, Mapping[bytes, bytes]], object]) -> Rule:
    return Rule(arity, read=True, apply=_reading(question))


def _write_rule(arity: int, change: Callable[[Args, Fields], tuple[object, bool]], check: Check = no_check) -> Rule:
    return Rule(arity, read=False, apply=_changing(change), check=check)


RULES: Final = {
    b"HSET": _write_rule(-4, _set, _check_pairs(b"HSET")),
    b"HMSET": _write_rule(-4, _set_many, _check_pairs(b"HMSET")),
    b"HSETNX": _write_rule(4, _set_new),
    b"HDEL": _write_rule(-3, _delete),
    b"HINCRBY": _write_rule(4, _add, _check_integer),
    b"HINCRBYFLOAT": _write_rule(4, _add_float, _check_float),
    b"HGET": _read_rule(3, lambda args, fields: fields.get(args[0])),
    b"HMGET": _read_rule(-3, lambda args, fields: [fields.get(name) for name in args]),
    b"HGETALL": _read_rule(2, lambda _, fields: fields),
    b"HEXISTS": _read_rule(3, lambda args, fields: int(args[0] in fields)),
    b"HLEN": _read_rule(2, lambda _, fields: len(fields)),
    b"HKEYS": _read_rule(2, lambda _, fields: list(fields)),
    b"HVALS": _read_rule(2, lambda _, fields: list(fields.values())),
    b"HSTRLEN": _read_rule(3, lambda args, fields: len(fields.get(args[0], b""))),
}
