"""Commands on the expiry of a key: EXPIRE and its variants, TTL and its variants, PERSIST. Pure.

Redis's rules: an expiry in the past deletes the key; a write of the whole value clears the expiry, a change of a part
keeps it.
"""

from functools import lru_cache, partial
from typing import Final

from understudy.statesync.redis.command import NOT_AN_INTEGER, Args, Effect, Rule, option
from understudy.statesync.redis.number import GREATEST, LEAST, integer_of
from understudy.statesync.redis.reply import RedisError, error, text_of
from understudy.statesync.redis.value import Value

_CONFLICT_NX: Final = error("NX and XX, GT or LT options at the same time are not compatible")
_CONFLICT_GT: Final = error("GT and LT options at the same time are not compatible")
_OPTIONS: Final = frozenset({b"NX", b"XX", b"GT", b"LT"})
_NO_KEY: Final = -2
_NO_EXPIRY: Final = -1


@lru_cache(maxsize=256)
def invalid_expire_time(command: str) -> RedisError:
    """The error of a command whose expiry is not positive, or too far in the future."""
    return error(f"invalid expire time in '{command}' command")


def with_expiry(value: Value, expires: int | None, now_ms: int) -> Value | None:
    """The value with another expiry; None if it has expired at once."""
    return None if expires is not None and expires <= now_ms else Value(value.kind, value.data, expires)


def deadline(text: bytes, *, seconds: bool, absolute: bool, now_ms: int, command: str) -> int | RedisError:
    """When a value expires that is written with EX, PX, EXAT or PXAT."""
    number = integer_of(text)
    if number is None:
        return NOT_AN_INTEGER
    milliseconds = number * 1000 if seconds else number
    expires = milliseconds if absolute else milliseconds + now_ms
    return expires if number > 0 and milliseconds <= GREATEST and expires <= GREATEST else invalid_expire_time(command)


def _options(args: Args) -> frozenset[bytes] | RedisError:
    """The options of EXPIRE that stand in ``args``."""
    found = set()
    for argument in args:
        name = option(argument)
        if name not in _OPTIONS:
            return error(f"Unsupported option {text_of(argument.partition(bytes(1))[0])}".rstrip("\r\n"))
        found.add(name)
    if b"NX" in found and len(found) > 1:
        return _CONFLICT_NX
    return _CONFLICT_GT if {b"GT", b"LT"} <= found else frozenset(found)


def _check_expire(args: Args) -> RedisError | None:
    options = _options(args[1:]) if len(args) > 1 else None
    if isinstance(options, RedisError):
        return options
    return NOT_AN_INTEGER if integer_of(args[0]) is None else None


def _allowed(options: frozenset[bytes], expires: int, current: int | None) -> bool:
    """Whether the options let a key with the expiry ``current`` get the expiry ``expires``."""
    if current is None:
        return not options & {b"XX", b"GT"}
    return not (
        b"NX" in options or (b"GT" in options and expires <= current) or (b"LT" in options and expires >= current)
    )


def expire(args: Args, before: Value | None, now_ms: int, *, seconds: bool, absolute: bool, command: str) -> Effect:
    """EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT."""
    number = integer_of(args[0])
    options = _options(args[1:]) if len(args) > 1 else None
    if number is None or isinstance(options, RedisError):
        return Effect(NOT_AN_INTEGER if number is None else options, before)
    expires = number * 1000 if seconds else number
    base = 0 if absolute else now_ms
    if not LEAST <= expires <= GREATEST - base:
        return Effect(invalid_expire_time(command), before)
    expires += base
    if before is None or (options and not _allowed(options, expires, before.expires)):
        return Effect(0, before)
    return Effect(1, with_expiry(before, expires, now_ms))


def persist(_: Args, before: Value | None, now_ms: int) -> Effect:
    """PERSIST: the key never expires."""
    if before is None or before.expires is None:
        return Effect(0, before)
    return Effect(1, with_expiry(before, None, now_ms))


def _remaining(_: Args, before: Value | None, now_ms: int, *, seconds: bool, absolute: bool) -> Effect:
    """TTL, PTTL, EXPIRETIME and PEXPIRETIME."""
    if before is None:
        return Effect(_NO_KEY, before)
    if before.expires is None:
        return Effect(_NO_EXPIRY, before)
    milliseconds = before.expires if absolute else max(before.expires - now_ms, 0)
    return Effect((milliseconds + 500) // 1000 if seconds else milliseconds, before)


def _expire_rule(command: str, *, seconds: bool, absolute: bool) -> Rule:
    apply = partial(expire, seconds=seconds, absolute=absolute, command=command)
    return Rule(-3, read=False, apply=apply, check=_check_expire)


def _remaining_rule(*, seconds: bool, absolute: bool) -> Rule:
    return Rule(2, read=True, apply=partial(_remaining, seconds=seconds, absolute=absolute))


RULES: Final = {
    b"EXPIRE": _expire_rule("expire", seconds=True, absolute=False),
    b"PEXPIRE": _expire_rule("pexpire", seconds=False, absolute=False),
    b"EXPIREAT": _expire_rule("expireat", seconds=True, absolute=True),
    b"PEXPIREAT": _expire_rule("pexpireat", seconds=False, absolute=True),
    b"TTL": _remaining_rule(seconds=True, absolute=False),
    b"PTTL": _remaining_rule(seconds=False, absolute=False),
    b"EXPIRETIME": _remaining_rule(seconds=True, absolute=True),
    b"PEXPIRETIME": _remaining_rule(seconds=False, absolute=True),
    b"PERSIST": Rule(2, read=False, apply=persist),
}
