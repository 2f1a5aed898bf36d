"""Commands on keys of any kind: DEL, EXISTS, TYPE, OBJECT and MEMORY USAGE. Pure."""

from functools import partial
from typing import Final

from understudy.statesync.redis.command import NOT_AN_INTEGER, SYNTAX_ERROR, Args, Effect, Rule, option
from understudy.statesync.redis.number import integer_of
from understudy.statesync.redis.reply import RedisError, Simple, error
from understudy.statesync.redis.value import Kind, Value, decode_hash, decode_set

_NO_SUCH_FREQUENCY: Final = error(
    "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between "
    "policies at runtime LRU and LFU data will take some time to adjust."
)
_SHARED_INTEGERS: Final = 10_000
_SHARED_REFERENCES: Final = 2_147_483_647
_LONGEST_INTEGER: Final = 20
_LONGEST_EMBEDDED: Final = 44
_LISTPACK_ENTRIES: Final = 512
_LISTPACK_ITEM: Final = 64
_INTSET_ENTRIES: Final = 512
_OVERHEAD: Final = 64
"""What Redis needs for a key and its value, besides their bytes; a rough figure."""


def delete(_: Args, before: Value | None, __: int) -> Effect:
    """DEL and UNLINK of one key."""
    return Effect(0 if before is None else 1, None)


def exists(_: Args, before: Value | None, __: int) -> Effect:
    """EXISTS and TOUCH of one key."""
    return Effect(0 if before is None else 1, before)


def _type(_: Args, before: Value | None, __: int) -> Effect:
    return Effect(Simple("none" if before is None else before.kind.value), before)


def _encoding_of(value: Value) -> bytes:
    """How Redis would store a new key with this value."""
    if value.kind is Kind.HASH:
        fields = decode_hash(value.data)
        longest = max(map(len, (*fields, *fields.values())), default=0)
        return b"listpack" if len(fields) <= _LISTPACK_ENTRIES and longest <= _LISTPACK_ITEM else b"hashtable"
    if value.kind is Kind.SET:
        members = decode_set(value.data)
        integers = len(members) <= _INTSET_ENTRIES and all(integer_of(member) is not None for member in members)
        return b"intset" if integers else b"hashtable"
    if len(value.data) <= _LONGEST_INTEGER and integer_of(value.data) is not None:
        return b"int"
    return b"embstr" if len(value.data) <= _LONGEST_EMBEDDED else b"raw"


def _object(_: Args, before: Value | None, __: int, *, question: bytes) -> Effect:
    """OBJECT ENCODING, REFCOUNT, IDLETIME and FREQ."""
    if before is None:
        return Effect(None, None)
    if question == b"ENCODING":
        return Effect(_encoding_of(before), before)
    if question == b"REFCOUNT":
        number = integer_of(before.data) if before.kind is Kind.STRING else None
        return Effect(1 if number is None or not 0 <= number < _SHARED_INTEGERS else _SHARED_REFERENCES, before)
    return Effect(0 if question == b"IDLETIME" else _NO_SUCH_FREQUENCY, before)


def _check_memory_usage(args: Args) -> RedisError | None:
    for name, number in zip(args[::2], (*args[1::2], None), strict=False):
        if option(name) != b"SAMPLES" or number is None:
            return SYNTAX_ERROR
        samples = integer_of(number)
        if samples is None or samples < 0:
            return NOT_AN_INTEGER if samples is None else SYNTAX_ERROR
    return None


def _memory_usage(_: Args, before: Value | None, __: int) -> Effect:
    return Effect(None if before is None else _OVERHEAD + len(before.data), before)


def _object_rule(question: bytes) -> Rule:
    return Rule(3, read=True, apply=partial(_object, question=question))


RULES: Final = {
    b"DEL": Rule(-2, read=False, apply=delete),
    b"UNLINK": Rule(-2, read=False, apply=delete),
    b"EXISTS": Rule(-2, read=True, apply=exists),
    b"TOUCH": Rule(-2, read=True, apply=exists),
    b"TYPE": Rule(2, read=True, apply=_type),
    b"OBJECT ENCODING": _object_rule(b"ENCODING"),
    b"OBJECT REFCOUNT": _object_rule(b"REFCOUNT"),
    b"OBJECT IDLETIME": _object_rule(b"IDLETIME"),
    b"OBJECT FREQ": _object_rule(b"FREQ"),
    b"MEMORY USAGE": Rule(-3, read=True, apply=_memory_usage, check=_check_memory_usage),
}
