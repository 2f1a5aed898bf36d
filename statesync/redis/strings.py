"""Commands on strings: GET and SET in their variants, counters, and parts of strings. Pure."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from understudy.statesync.redis.command import (
    NOT_AN_INTEGER,
    SYNTAX_ERROR,
    Apply,
    Args,
    Check,
    Effect,
    Rule,
    no_check,
    option,
)
from understudy.statesync.redis.expiry import deadline, invalid_expire_time, with_expiry
from understudy.statesync.redis.number import GREATEST, float_of, float_sum, float_text, integer_of, is_64_bit
from understudy.statesync.redis.reply import OK, WRONG_TYPE, RedisError, error
from understudy.statesync.redis.value import Kind, Value

LONGEST_STRING: Final = 16_000_000
"""A longer one is refused with Redis's own error, before it is made; no session may be as long as that."""
_TOO_LONG: Final = error("string exceeds maximum allowed size (proto-max-bulk-len)")
_OVERFLOW: Final = error("increment or decrement would overflow")
_DECREMENT_OVERFLOW: Final = error("decrement would overflow")
_OFFSET: Final = error("offset is out of range")
_NOT_A_FLOAT: Final = error("value is not a valid float")
_INFINITE_SUM: Final = error("increment would produce NaN or Infinity")
_TIMES: Final = {b"EX": (True, False), b"PX": (False, False), b"EXAT": (True, True), b"PXAT": (False, True)}
"""Option -> (the number is in seconds, it is a Unix time)."""
_USUAL_TIMES: Final = {b"EX": True, b"ex": True, b"PX": False, b"px": False}
"""An option that most SETs have alone -> its number is in seconds."""
_STRING: Final = Kind.STRING
_NO_FLAGS: Final[frozenset[bytes]] = frozenset()
_KEEPS_OR_CLEARS: Final = frozenset({b"KEEPTTL", b"PERSIST"})
_OF_SET: Final = frozenset({b"NX", b"XX", b"GET", b"KEEPTTL"})
_OF_GETEX: Final = frozenset({b"PERSIST"})
_EXCLUDES: Final = {b"NX": b"XX", b"XX": b"NX"}
_LONGEST_CACHED: Final = 24


@dataclass(frozen=True, slots=True)
class Options:
    """The options of SET or GETEX; ``time`` is the one of EX, PX, EXAT and PXAT, if any, and ``number`` its number."""

    flags: frozenset[bytes] = frozenset()
    time: bytes | None = None
    number: bytes = b""


def _parse_options(args: Args, allowed: frozenset[bytes]) -> Options | RedisError:
    """The options of SET or GETEX. As in Redis, an option may be repeated; of repeated times the last one counts."""
    flags: set[bytes] = set()
    time: bytes | None = None
    number = b""
    rest = list(reversed(args))
    while rest:
        name = option(rest.pop())
        if name in _TIMES and rest and time in {None, name} and not flags & _KEEPS_OR_CLEARS:
            time, number = name, rest.pop()
        elif name in allowed and _EXCLUDES.get(name) not in flags and not (time and name in _KEEPS_OR_CLEARS):
            flags.add(name)
        else:
            return SYNTAX_ERROR
    return Options(frozenset(flags), time, number)


_remembered_options = lru_cache(maxsize=1024)(_parse_options)


def _options(args: Args, allowed: frozenset[bytes]) -> Options | RedisError:
    """The options; those of usual length are remembered, since applications repeat theirs."""
    if len(args) < 6 and all(len(argument) <= _LONGEST_CACHED for argument in args):
        return _remembered_options(args, allowed)
    return _parse_options(args, allowed)


def _expires(options: Options, now_ms: int, command: str) -> int | RedisError | None:
    """When a value with these options expires; None if they do not say."""
    if options.time is None:
        return None
    seconds, absolute = _TIMES[options.time]
    return deadline(options.number, seconds=seconds, absolute=absolute, now_ms=now_ms, command=command)


def _string(data: bytes, expires: int | None = None) -> Value:
    return Value(_STRING, data, expires)


def _stored(data: bytes, expires: int | None, now_ms: int) -> Value | None:
    """The string as a value; None if it has expired at once."""
    return None if expires is not None and expires <= now_ms else Value(_STRING, data, expires)


@lru_cache(maxsize=1024)
def _after(name: bytes, number: bytes) -> int | RedisError:
    """The milliseconds that EX or PX mean with this number; remembered, since applications repeat theirs."""
    return deadline(number, seconds=_USUAL_TIMES[name], absolute=False, now_ms=0, command="set")


def _read_set(args: Args, now_ms: int) -> tuple[frozenset[bytes], int | None] | RedisError:
    """The flags of a SET with these arguments, and when its value expires (KEEPTTL aside)."""
    if len(args) == 1:
        return _NO_FLAGS, None
    if len(args) == 3 and args[1] in _USUAL_TIMES and len(args[2]) <= _LONGEST_CACHED:
        expires = _after(args[1], args[2])
        if isinstance(expires, int):
            expires += now_ms
            return (_NO_FLAGS, expires) if expires <= GREATEST else invalid_expire_time("set")
        return expires
    options = _options(args[1:], _OF_SET)
    if isinstance(options, RedisError):
        return options
    time = _expires(options, now_ms, "set")
    return time if isinstance(time, RedisError) else (options.flags, time)


def _check_set(args: Args) -> RedisError | None:
    found = _read_set(args, 0)
    return found if isinstance(found, RedisError) else None


def _set(args: Args, before: Value | None, now_ms: int) -> Effect:
    found = _read_set(args, now_ms)
    if isinstance(found, RedisError):
        return Effect(found, before)
    flags, expires = found
    if not flags:
        return Effect(OK, _stored(args[0], expires, now_ms))
    return _set_with_flags(args[0], flags, expires, before, now_ms)


def _set_with_flags(
    data: bytes, flags: frozenset[bytes], expires: int | None, before: Value | None, now_ms: int
) -> Effect:
    reply: object = OK
    if b"GET" in flags:
        if before is not None and before.kind is not _STRING:
            return Effect(WRONG_TYPE, before)
        reply = before and before.data
    if (b"NX" in flags and before is not None) or (b"XX" in flags and before is None):
        return Effect(None if reply is OK else reply, before)
    if b"KEEPTTL" in flags and before is not None:
        expires = before.expires
    return Effect(reply, _stored(data, expires, now_ms))


def _check_setex(args: Args, *, seconds: bool, command: str) -> RedisError | None:
    expires = deadline(args[0], seconds=seconds, absolute=False, now_ms=0, command=command)
    return expires if isinstance(expires, RedisError) else None


def setex(args: Args, before: Value | None, now_ms: int, *, seconds: bool = True, command: str = "setex") -> Effect:
    """SETEX and PSETEX."""
    expires = deadline(args[0], seconds=seconds, absolute=False, now_ms=now_ms, command=command)
    if isinstance(expires, RedisError):
        return Effect(expires, before)
    return Effect(OK, _string(args[1], expires))


def _setnx(args: Args, before: Value | None, _: int) -> Effect:
    return Effect(1, _string(args[0])) if before is None else Effect(0, before)


def get(_: Args, before: Value | None, __: int) -> Effect:
    """GET."""
    if before is None:
        return Effect(None, None)
    return Effect(before.data if before.kind is _STRING else WRONG_TYPE, before)


def _get_or_nothing(_: Args, before: Value | None, __: int) -> Effect:
    """A key of MGET: nothing if it holds no string."""
    return Effect(before.data if before is not None and before.kind is _STRING else None, before)


def _getdel(_: Args, before: Value | None, __: int) -> Effect:
    if before is not None and before.kind is not _STRING:
        return Effect(WRONG_TYPE, before)
    return Effect(before and before.data, None)


def _getset(args: Args, before: Value | None, _: int) -> Effect:
    if before is not None and before.kind is not _STRING:
        return Effect(WRONG_TYPE, before)
    return Effect(before and before.data, _string(args[0]))


def _check_getex(args: Args) -> RedisError | None:
    options = _options(args, _OF_GETEX)
    return options if isinstance(options, RedisError) else None


def _getex(args: Args, before: Value | None, now_ms: int) -> Effect:
    if before is None or before.kind is not _STRING:
        return Effect(before and WRONG_TYPE, before)
    options = _options(args, _OF_GETEX)
    expires = options if isinstance(options, RedisError) else _expires(options, now_ms, "getex")
    if isinstance(options, RedisError) or isinstance(expires, RedisError):
        return Effect(expires, before)
    if expires is None and not options.flags:
        return Effect(before.data, before)
    return Effect(before.data, with_expiry(before, expires, now_ms))


def on_string(change: Apply) -> Apply:
    """The command ``change`` for keys that hold a string or nothing."""

    def guarded(args: Args, before: Value | None, now_ms: int) -> Effect:
        if before is not None and before.kind is not _STRING:
            return Effect(WRONG_TYPE, before)
        return change(args, before, now_ms)

    return guarded


def _edited(before: Value | None, data: bytes) -> Value:
    """The string with another content and the same expiry."""
    return _string(data, before.expires if before else None)


def _append(args: Args, before: Value | None, _: int) -> Effect:
    data = (before.data if before else b"") + args[0]
    if len(data) > LONGEST_STRING:
        return Effect(_TOO_LONG, before)
    return Effect(len(data), _edited(before, data))


def _strlen(_: Args, before: Value | None, __: int) -> Effect:
    return Effect(len(before.data) if before else 0, before)


def _check_range(args: Args) -> RedisError | None:
    return NOT_AN_INTEGER if integer_of(args[0]) is None or integer_of(args[1]) is None else None


def _getrange(args: Args, before: Value | None, _: int) -> Effect:
    start, end = integer_of(args[0]), integer_of(args[1])
    if start is None or end is None:
        return Effect(NOT_AN_INTEGER, before)
    data = before.data if before else b""
    if start < 0 and end < 0 and start > end:
        return Effect(b"", before)
    first = max(start + len(data) if start < 0 else start, 0)
    last = max(end + len(data) if end < 0 else end, 0)  # as in Redis, an end before the first byte is the first byte
    return Effect(data[first : last + 1], before)


def _check_setrange(args: Args) -> RedisError | None:
    offset = integer_of(args[0])
    if offset is None:
        return NOT_AN_INTEGER
    return _OFFSET if offset < 0 else None


def _setrange(args: Args, before: Value | None, _: int) -> Effect:
    offset, patch = integer_of(args[0]), args[1]
    if offset is None or offset < 0:
        return Effect(_OFFSET if offset else NOT_AN_INTEGER, before)
    data = before.data if before else b""
    if not patch:
        return Effect(len(data), before)
    if offset + len(patch) > LONGEST_STRING:
        return Effect(_TOO_LONG, before)
    data = data[:offset].ljust(offset, b"\0") + patch + data[offset + len(patch) :]
    return Effect(len(data), _edited(before, data))


def _add(amount: int, before: Value | None) -> Effect:
    """Add to the integer that the key holds."""
    current = integer_of(before.data) if before else 0
    if current is None:
        return Effect(NOT_AN_INTEGER, before)
    if not is_64_bit(current + amount):
        return Effect(_OVERFLOW, before)
    return Effect(current + amount, _edited(before, b"%d" % (current + amount)))


def _check_amount(args: Args) -> RedisError | None:
    return NOT_AN_INTEGER if integer_of(args[0]) is None else None


def _check_decrement(args: Args) -> RedisError | None:
    amount = integer_of(args[0])
    if amount is None:
        return NOT_AN_INTEGER
    return None if is_64_bit(-amount) else _DECREMENT_OVERFLOW


def _add_amount(args: Args, before: Value | None, _: int, *, sign: int) -> Effect:
    """INCRBY and DECRBY."""
    refusal = _check_amount(args) if sign > 0 else _check_decrement(args)
    return Effect(refusal, before) if refusal else _add(sign * int(args[0]), before)


def _add_float(args: Args, before: Value | None, _: int) -> Effect:
    current = float_of(before.data) if before else float_of(b"0")
    amount = float_of(args[0])
    if current is None or amount is None:
        return Effect(_NOT_A_FLOAT, before)
    total = float_sum(current, amount)
    if isinstance(total, str):
        return Effect(_INFINITE_SUM, before)
    data = float_text(total)
    return Effect(data, _edited(before, data))


def _counter(arity: int, apply: Apply, check: Check = no_check) -> Rule:
    return Rule(arity, read=False, apply=on_string(apply), check=check)


RULES: Final = {
    b"GET": Rule(2, read=True, apply=get),
    b"MGET": Rule(-2, read=True, apply=_get_or_nothing),
    b"SET": Rule(-3, read=False, apply=_set, check=_check_set),
    b"SETEX": Rule(4, read=False, apply=setex, check=partial(_check_setex, seconds=True, command="setex")),
    b"PSETEX": Rule(
        4,
        read=False,
        apply=partial(setex, seconds=False, command="psetex"),
        check=partial(_check_setex, seconds=False, command="psetex"),
    ),
    b"SETNX": Rule(3, read=False, apply=_setnx),
    b"GETEX": Rule(-2, read=False, apply=_getex, check=_check_getex),
    b"GETDEL": Rule(2, read=False, apply=_getdel),
    b"GETSET": Rule(3, read=False, apply=_getset),
    b"APPEND": _counter(3, _append),
    b"STRLEN": Rule(2, read=True, apply=on_string(_strlen)),
    b"GETRANGE": Rule(4, read=True, apply=on_string(_getrange), check=_check_range),
    b"SUBSTR": Rule(4, read=True, apply=on_string(_getrange), check=_check_range),
    b"SETRANGE": _counter(4, _setrange, _check_setrange),
    b"INCR": _counter(2, lambda _, before, __: _add(1, before)),
    b"DECR": _counter(2, lambda _, before, __: _add(-1, before)),
    b"INCRBY": _counter(3, partial(_add_amount, sign=1), _check_amount),
    b"DECRBY": _counter(3, partial(_add_amount, sign=-1), _check_decrement),
    b"INCRBYFLOAT": _counter(3, _add_float),
}
