"""Commands as hypothesis makes them: all that are supported, with few keys and fields, and every option.

Expiries are such that the outcome does not depend on the moment: relative ones are long or not positive, GT and LT
come with absolute ones alone, as two equal relative ones differ by a millisecond or not.
"""

from collections.abc import Callable, Iterator
from itertools import product

from hypothesis import strategies as st

Argv = tuple[bytes, ...]
Arguments = st.SearchStrategy[bytes | Argv]

KEYS = (b"a", b"b", b"c", b"\r\n\x00\xff")
FIELDS = (b"f", b"g", b"h", b"", b"\xff\x00")
SHORT = (b"", b"x", b"abc", b"\r\n", b"\x00\xff", b"hello world")
LONG = (b"e" * 44, b"r" * 45, b"l" * 64, b"h" * 65, b"y" * 300)
INTEGERS = (b"0", b"1", b"-1", b"7", b"10", b"-10", b"9223372036854775807", b"-9223372036854775808")
NO_INTEGERS = (
    b"9223372036854775808",
    b"-9223372036854775809",
    b"+1",
    b"01",
    b"-0",
    b" 1",
    b"1 ",
    b"",
    b"one",
    b"1\x00",
)
FLOATS = (
    *(
        b"0.1",
        b"3.5",
        b"-2.25",
        b"1e3",
        b".5",
        b"5.",
        b"+1.5",
        b"0x10",
        b"0x1.8p1",
        b"-0.0",
        b"1e-17",
        b"5e-18",
        b"1e25",
    ),
    *(b"3.0000000000000000001", b"123456789012345678901234567890", b"1e25", b"1e4932", b"-1.18e4932", b"1e-4950"),
)
NO_FLOATS = (
    b"inf",
    b"-Infinity",
    b"nan",
    b"1e5000",
    b"1e-5000",
    b"0x",
    b"e5",
    b".",
    b"1.5 ",
    b" 1.5",
    b"1,5",
    b"1e",
    b"",
)
FAR = (b"1000", b"5000", b"86400")
FAR_MILLISECONDS = (b"1000000", b"5000000")
PAST = (b"0", b"-1", b"-9223372036854775808")
PAST_DATES = (b"1", b"1000", b"1700000000")
DATES = (b"4000000000", b"4000000001", b"5000000000")
DATES_MILLISECONDS = (b"4000000000000", b"4000000000499", b"4000000000500", b"9223372036854775807")
TOO_FAR = (b"9223372036854775", b"9223372036854776", b"9223372036854775807", b"92233720368547758080")

key = st.sampled_from(KEYS)
field = st.sampled_from(FIELDS)
value = st.sampled_from(SHORT + LONG + INTEGERS + FLOATS) | st.binary(max_size=6)
integer = st.sampled_from(INTEGERS * 2 + NO_INTEGERS)
real = st.sampled_from(FLOATS * 2 + INTEGERS + NO_FLOATS)
offset = st.sampled_from((b"0", b"1", b"3", b"40", b"-1", b"-2", b"-300", *NO_INTEGERS[:3], b"9223372036854775807"))


def _cased(*names: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([cased for name in names for cased in (name, name.lower())])


def _flat(parts: tuple[bytes | Argv, ...]) -> Argv:
    return tuple(word for part in parts for word in ((part,) if isinstance(part, bytes) else part))


def _of(*parts: Arguments) -> st.SearchStrategy[Argv]:
    return st.tuples(*parts).map(_flat)


def _some(one: Arguments, most: int, least: int = 0) -> st.SearchStrategy[Argv]:
    return st.lists(one, min_size=least, max_size=most).map(tuple).map(_flat)


_flag = _cased(b"NX", b"XX", b"GET", b"KEEPTTL", b"PERSIST", b"GT", b"FOO", b"nx\x00tail")
_time = st.one_of(
    _of(_cased(b"EX"), st.sampled_from(FAR * 3 + PAST + TOO_FAR + NO_INTEGERS)),
    _of(_cased(b"PX"), st.sampled_from(FAR_MILLISECONDS * 3 + PAST + TOO_FAR[2:])),
    _of(_cased(b"EXAT"), st.sampled_from(DATES * 3 + PAST_DATES + TOO_FAR)),
    _of(_cased(b"PXAT"), st.sampled_from(DATES_MILLISECONDS * 3 + PAST_DATES + TOO_FAR[3:])),
    _cased(b"EX", b"PX", b"EXAT", b"PXAT"),
)
_set_options = st.one_of(
    st.just(()),
    _time,
    _of(_cased(b"NX", b"XX", b"GET", b"KEEPTTL")),
    _of(_time, _flag),
    _of(_flag, _time),
    _some(_flag, 3),
    _some(_time, 2),
)
_getex_options = st.one_of(st.just(()), _time, _of(_cased(b"PERSIST")), _of(_cased(b"PERSIST"), _time), _of(_flag))
_plain_conditions = st.one_of(
    st.just(()), st.just(()), _of(_cased(b"NX", b"XX")), _some(_cased(b"NX", b"XX", b"FOO"), 2)
)
_conditions = _some(_cased(b"NX", b"XX", b"GT", b"LT"), 2)

strings = st.one_of(
    _of(_cased(b"GET", b"STRLEN", b"GETDEL"), key),
    _of(_cased(b"SET"), key, value, _set_options),
    _of(_cased(b"SETEX"), key, st.sampled_from(FAR * 3 + PAST + TOO_FAR + NO_INTEGERS), value),
    _of(_cased(b"PSETEX"), key, st.sampled_from(FAR_MILLISECONDS * 3 + PAST + TOO_FAR[2:]), value),
    _of(_cased(b"SETNX", b"GETSET", b"APPEND"), key, value),
    _of(_cased(b"GETEX"), key, _getex_options),
    _of(_cased(b"GETRANGE", b"SUBSTR"), key, offset, offset),
    _of(_cased(b"SETRANGE"), key, offset.filter(lambda number: len(number) < 10) | st.just(b"9" * 18), value),
    _of(_cased(b"MGET"), _some(key, 3, 1)),
    _of(_cased(b"MSET"), _some(_of(key, value), 3, 1)),
)
counters = st.one_of(
    _of(_cased(b"SET"), key, st.sampled_from(INTEGERS)),
    _of(_cased(b"INCR", b"DECR"), key),
    _of(_cased(b"INCRBY", b"DECRBY"), key, integer),
    _of(_cased(b"INCRBYFLOAT"), key, real),
    _of(_cased(b"HINCRBY"), key, field, integer),
    _of(_cased(b"HINCRBYFLOAT"), key, field, real),
)
expiries = st.one_of(
    _of(_cased(b"EXPIRE"), key, st.sampled_from(FAR * 3 + PAST + TOO_FAR + NO_INTEGERS), _plain_conditions),
    _of(_cased(b"PEXPIRE"), key, st.sampled_from(FAR_MILLISECONDS * 3 + PAST + TOO_FAR[2:]), _plain_conditions),
    _of(_cased(b"EXPIREAT"), key, st.sampled_from(DATES * 3 + PAST_DATES + PAST + TOO_FAR), _conditions),
    _of(_cased(b"PEXPIREAT"), key, st.sampled_from(DATES_MILLISECONDS * 3 + PAST_DATES + PAST), _conditions),
    _of(_cased(b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME", b"PERSIST"), key),
)
keys = st.one_of(
    _of(_cased(b"DEL", b"UNLINK", b"EXISTS", b"TOUCH"), _some(key, 3, 1)),
    _of(_cased(b"TYPE"), key),
    _of(_cased(b"OBJECT"), _cased(b"IDLETIME", b"FREQ"), key),
    _of(
        _cased(b"MEMORY"),
        _cased(b"USAGE"),
        key,
        st.sampled_from([(), (b"SAMPLES", b"5"), (b"samples",), (b"SAMPLES", b"-1")]),
    ),
)
hashes = st.one_of(
    _of(_cased(b"HSET", b"HMSET"), key, _some(_of(field, value), 3, 1)),
    _of(_cased(b"HSET", b"HMSET"), key, field, value, field),
    _of(_cased(b"HSETNX"), key, field, value),
    _of(_cased(b"HGET", b"HEXISTS", b"HSTRLEN"), key, field),
    _of(_cased(b"HMGET", b"HDEL"), key, _some(field, 3, 1)),
    _of(_cased(b"HGETALL", b"HLEN", b"HKEYS", b"HVALS"), key),
)
sets = st.one_of(
    _of(_cased(b"SADD", b"SREM", b"SMISMEMBER"), key, _some(field | value, 3, 1)),
    _of(_cased(b"SISMEMBER"), key, field | value),
    _of(_cased(b"SMEMBERS", b"SCARD"), key),
)

# The scripts in words of our own: but for white space and quotes they are those of the clients.
RELEASE = b'if redis.call("get", KEYS[1]) == ARGV[1]\nthen return redis.call("del", KEYS[1])\nelse return 0 end'
ADD = b'return redis.call("exists", KEYS[1]) < 1 and redis.call("setex", KEYS[1], ARGV[2], ARGV[1])'
REFRESH = (
    b"if redis.call('get', KEYS[1]) == ARGV[1] then if tonumber(ARGV[2]) > 0 then "
    b"return redis.call('expire', KEYS[1], ARGV[2]) end redis.call('persist', KEYS[1]) return 1 else return 0 end"
)
_IF_MINE = b"local token = redis.call('get', KEYS[1]) if not token or token ~= ARGV[1] then return 0 end "
LOCK_RELEASE = _IF_MINE + b"redis.call('del', KEYS[1]) return 1"
LOCK_REACQUIRE = _IF_MINE + b"redis.call('pexpire', KEYS[1], ARGV[2]) return 1"
LOCK_EXTEND = _IF_MINE + (
    b"local expiration = redis.call('pttl', KEYS[1]) if not expiration then expiration = 0 end "
    b'if expiration < 0 then return 0 end local newttl = ARGV[2] if ARGV[3] == "0" then '
    b"newttl = ARGV[2] + expiration end redis.call('pexpire', KEYS[1], newttl) return 1"
)
STORE_HASH = (
    b"redis.call('HSET', KEYS[1], 'absexp', ARGV[1], 'sldexp', ARGV[2], 'data', ARGV[4]) "
    b"if ARGV[3] ~= '-1' then redis.call('EXPIRE', KEYS[1], ARGV[3]) end return 1"
)
SCRIPTS = (RELEASE, ADD, REFRESH, LOCK_RELEASE, LOCK_REACQUIRE, LOCK_EXTEND, STORE_HASH)
_owner = st.sampled_from((b"x", b"abc", b"1"))
_seconds = st.sampled_from(FAR + PAST[:2])
_milliseconds = st.sampled_from(FAR_MILLISECONDS + PAST[:2])


def _script(text: bytes, *arguments: Arguments) -> st.SearchStrategy[Argv]:
    return _of(_cased(b"EVAL"), st.just(text), st.just(b"1"), key, *arguments)


scripts = st.one_of(
    _of(_cased(b"SET"), key, _owner),
    _script(RELEASE, _owner),
    _script(ADD, _owner, _seconds),
    _script(REFRESH, _owner, _seconds),
    _script(LOCK_RELEASE, _owner),
    _script(LOCK_REACQUIRE, _owner, _milliseconds),
    _script(LOCK_EXTEND, _owner, _milliseconds, st.sampled_from((b"0", b"1"))),
    _script(STORE_HASH, value, value, _seconds | st.just(b"-1"), value),
    _of(_cased(b"EVAL"), st.just(RELEASE), st.sampled_from((*NO_INTEGERS, b"-1", b"9")), _some(key, 2)),
    _of(_cased(b"EVALSHA"), st.sampled_from((b"abc", b"0" * 40)), st.sampled_from((b"0", b"1", b"x")), key),
)
"""Some are on keys of the wrong kind; the texts of errors inside scripts differ in their ends."""


def _misshapen(argv: Argv) -> st.SearchStrategy[Argv]:
    """The command with an argument too few or too many, or another name."""
    last: Callable[[bytes], Argv] = lambda word: (*argv, word)  # noqa: E731
    return st.one_of(
        st.integers(1, len(argv)).map(lambda count: argv[:count]),
        value.map(last),
        st.sampled_from((b"FOO", b"get\r\n", b"x" * 200, b"\xff", b"", b"OBJECT", b"memory")).map(
            lambda name: (name, *argv[1:])
        ),
    )


well_formed = st.one_of(strings, counters, expiries, keys, hashes, sets)
command = st.one_of(strings, counters, expiries, keys, hashes, sets, scripts, well_formed.flatmap(_misshapen))
sequence = st.lists(command, min_size=1, max_size=25)


STATES: tuple[tuple[Argv, ...], ...] = (
    (),
    ((b"SET", b"a", b"10"),),
    ((b"SET", b"a", b"hello", b"PXAT", DATES_MILLISECONDS[2]),),
    ((b"SET", b"a", b"", b"EX", b"1000"),),
    ((b"HSET", b"a", b"f", b"1", b"g", b"text"), (b"PEXPIREAT", b"a", DATES_MILLISECONDS[2])),
    ((b"SADD", b"a", b"f", b"x"),),
)
"""Ways to make the key ``a``, each in some commands."""
LOOKS: tuple[Argv, ...] = ((b"GET", b"a"), (b"PEXPIRETIME", b"a"), (b"HGETALL", b"a"), (b"SMEMBERS", b"a"))


def grid() -> Iterator[Argv]:
    """Every command on the key ``a``, with every option and every pair of options."""
    absolute = ((b"EXAT", DATES[0]), (b"PXAT", DATES_MILLISECONDS[1]), (b"PXAT", b"1"))
    times = ((b"EX", b"1000"), (b"PX", b"1000000"), *absolute)
    flags = ((b"NX",), (b"XX",), (b"GET",), (b"KEEPTTL",), (b"PERSIST",), (b"nx\x00tail",), (b"",))
    options = ((), *times, *flags, *(one + other for one, other in product(times + flags, repeat=2)))
    yield from ((b"SET", b"a", b"v", *chosen) for chosen in options)
    yield from ((b"GETEX", b"a", *chosen) for chosen in options)
    conditions = ((), *((name,) for name in (b"NX", b"xx", b"GT", b"LT\x00tail", b"FOO\r\n")))
    for one, other in product(conditions, repeat=2):
        yield from ((b"PEXPIREAT", b"a", date, *one, *other) for date in (*DATES_MILLISECONDS, *PAST))
        yield from ((b"EXPIREAT", b"a", date, *one, *other) for date in (*DATES, *PAST, *TOO_FAR))
    for number in (*FAR, *PAST, *TOO_FAR, *NO_INTEGERS):
        yield from ((name, b"a", number, b"v") for name in (b"SETEX", b"PSETEX"))
        yield from ((name, b"a", number) for name in (b"EXPIRE", b"PEXPIRE"))
    for start, end in product((b"-300", b"-2", b"-1", b"0", b"1", b"3", b"40", b"x"), repeat=2):
        yield from ((name, b"a", start, end) for name in (b"GETRANGE", b"SUBSTR", b"SETRANGE"))
    for number in (*INTEGERS, *NO_INTEGERS, *FLOATS, *NO_FLOATS):
        yield from ((name, b"a", number) for name in (b"INCRBY", b"DECRBY", b"INCRBYFLOAT"))
        yield from ((name, b"a", b"f", number) for name in (b"HINCRBY", b"HINCRBYFLOAT"))
    for name in (b"GET", b"GETDEL", b"STRLEN", b"INCR", b"DECR", b"TTL", b"PTTL", b"EXPIRETIME", b"PERSIST", b"TYPE"):
        yield from ((name, b"a"), (name,), (name, b"a", b"b"))
    for name in (b"DEL", b"UNLINK", b"EXISTS", b"TOUCH", b"MGET", b"HLEN", b"HKEYS", b"HVALS", b"SCARD"):
        yield from ((name, b"a"), (name,), (name, b"a", b"b"), (name, b"a", b"a"))
    for name in (
        b"SETNX",
        b"GETSET",
        b"APPEND",
        b"HGET",
        b"HEXISTS",
        b"HSTRLEN",
        b"HMGET",
        b"HDEL",
        b"HSETNX",
        b"HSET",
    ):
        yield from ((name, b"a", b"f"), (name, b"a", b"f", b"g"), (name, b"a", b"new", b"v"), (name, b"a", b""))
    for name in (b"SADD", b"SREM", b"SISMEMBER", b"SMISMEMBER", b"HSET", b"HMSET", b"MSET"):
        yield from ((name, b"a", b"f"), (name, b"a", b"f", b"x"), (name, b"a", b"new", b"new"))
        yield (name, b"a", b"f", b"x", b"y")
