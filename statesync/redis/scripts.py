"""The lock and store scripts of known clients, carried out natively: there is no Lua interpreter.

A script is recognised by the SHA1 of its text, or by the SHA1 of its text normalised for white space and quotes. The
texts belong to their projects and are not here. A text that was recognised by its normalised form is remembered under
its own SHA1, so that EVALSHA finds it from then on.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from understudy.statesync.redis.command import NOT_AN_INTEGER, Apply, Args, Effect, KeyCommand, Rule
from understudy.statesync.redis.expiry import expire, persist
from understudy.statesync.redis.hashes import RULES as HASHES
from understudy.statesync.redis.number import integer_of
from understudy.statesync.redis.reply import RedisError, error
from understudy.statesync.redis.strings import on_string, setex
from understudy.statesync.redis.value import Value

NO_SCRIPT: Final = RedisError("NOSCRIPT No matching script. Please use EVAL.")
NOT_SUPPORTED: Final = error("this script is not supported by Understudy's Redis port; see docs/redis.md")
_TOO_MANY_KEYS: Final = error("Number of keys can't be greater than number of args")
_NEGATIVE_KEYS: Final = error("Number of keys can't be negative")
_ONE_KEY: Final = error("this script takes exactly one key in Understudy's Redis port; see docs/redis.md")
_TOO_FEW_ARGUMENTS: Final = error("this script needs more arguments")
_LONGEST_TEXT: Final = 2048
_MOST_REMEMBERED: Final = 64
_NO_EXPIRY: Final = b"-1"


def _owned(before: Value | None, owner: bytes) -> bool:
    return before is not None and before.data == owner


def _release(args: Args, before: Value | None, _: int) -> Effect:
    """Delete the lock if it has this owner."""
    return Effect(1, None) if _owned(before, args[0]) else Effect(0, before)


def _pexpire(milliseconds: bytes, before: Value | None, now_ms: int) -> Effect:
    """Give the key this expiry; an error, or 1 whatever became of the key."""
    effect = expire((milliseconds,), before, now_ms, seconds=False, absolute=False, command="pexpire")
    return effect if isinstance(effect.reply, RedisError) else Effect(1, effect.after)


def _reacquire(args: Args, before: Value | None, now_ms: int) -> Effect:
    """Set the expiry of a lock that has this owner."""
    return _pexpire(args[1], before, now_ms) if _owned(before, args[0]) else Effect(0, before)


def _extend(args: Args, before: Value | None, now_ms: int) -> Effect:
    """Set the expiry of a lock that has this owner and an expiry, or add to it if the third argument is 0."""
    if before is None or before.expires is None or not _owned(before, args[0]):
        return Effect(0, before)
    milliseconds = integer_of(args[1])
    if milliseconds is None:
        return Effect(NOT_AN_INTEGER, before)
    remaining = before.expires - now_ms if args[2] == b"0" else 0
    return _pexpire(b"%d" % (milliseconds + remaining), before, now_ms)


def _add(args: Args, before: Value | None, now_ms: int) -> Effect:
    """Set the key with an expiry if it does not exist."""
    return Effect(None, before) if before is not None else setex((args[1], args[0]), None, now_ms)


def _refresh(args: Args, before: Value | None, now_ms: int) -> Effect:
    """Set the expiry of a lock that has this owner; seconds that are not positive remove it."""
    if not _owned(before, args[0]):
        return Effect(0, before)
    seconds = integer_of(args[1])
    if seconds is None or seconds > 0:
        return expire(args[1:2], before, now_ms, seconds=True, absolute=False, command="expire")
    return Effect(1, persist((), before, now_ms).after)


def _store_hash(args: Args, before: Value | None, now_ms: int) -> Effect:
    """Set the three fields of an entry of ASP.NET's cache, then its expiry if it has one."""
    fields = (b"absexp", args[0], b"sldexp", args[1], b"data", args[3])
    effect = HASHES[b"HSET"].apply(fields, before, now_ms)
    if not isinstance(effect.reply, RedisError) and args[2] != _NO_EXPIRY:
        effect = expire(args[2:3], effect.after, now_ms, seconds=True, absolute=False, command="expire")
    return Effect(effect.reply, before) if isinstance(effect.reply, RedisError) else Effect(1, effect.after)


@dataclass(frozen=True, slots=True)
class _Script:
    """A known script: how many arguments it needs, its effect, and the SHA1 of its texts as they are and normalised."""

    name: bytes
    arguments: int
    apply: Apply
    exact: tuple[str, ...]
    normalised: tuple[str, ...]


_SCRIPTS: Final = (
    _Script(  # phpredis, Laravel, and the lock of Redis's own documentation
        b"SCRIPT:release",
        1,
        on_string(_release),
        ("b70c2384248f88e6b75b9f89241a180f856ad852", "647c65a442733a1aa440f99908d249d13b4d6c4a"),
        ("a91807ce0022788594785a5ef8092960e94fa110",),
    ),
    _Script(
        b"SCRIPT:laravel-add",
        2,
        _add,
        ("a08c9c69b7c07ae2485190873b90d128a23e502d",),
        ("a08c9c69b7c07ae2485190873b90d128a23e502d",),
    ),
    _Script(
        b"SCRIPT:laravel-refresh",
        2,
        on_string(_refresh),
        ("d5f94f1848f0c54fff99d99dbc4d54184a157c02", "f47149d821dffad4f4510be6399cf5df8dbf17db"),
        ("afa6e94a6ee0a68c0594d8976198e1932d2d65fb", "d45efe809f7f1b307e20b0c69bcc8e97da19a992"),
    ),
    _Script(
        b"SCRIPT:redis-py-release",
        1,
        on_string(_release),
        ("c3f8721cbb97f72bc19e972846bd7aaf91901658",),
        ("b728eb8c7e5625714ab1f2b87819c8e3f0b1f050",),
    ),
    _Script(
        b"SCRIPT:redis-py-extend",
        3,
        on_string(_extend),
        ("a4e8783852e6b949f9ef3a97212805108459a890",),
        ("31ffa0b47e83cd82824166710d1c0e60ab8ff00f",),
    ),
    _Script(
        b"SCRIPT:redis-py-reacquire",
        2,
        on_string(_reacquire),
        ("1cac51482acf5858da00f6d685d68f886cd6b6b2",),
        ("69da8718dcc044550b82a782a74c01a48b6be520",),
    ),
    _Script(  # with HSET and with HMSET; lines that end in LF and in CR LF
        b"SCRIPT:aspnet-set",
        4,
        _store_hash,
        (
            "241ff9be272d2cc7ea3ff7a9c556b75e143d4c26",
            "3915ee22fda531a1d5661f2523d0443fd35ff0a4",
            "19d6145c6bb04ad20392ffe92c1a0d333ed7564e",
            "2cf3a5ca51adf9b3b3500002e73e176dc3c54e26",
        ),
        ("3bec63bda77ec214804af1dcd4dfd1c8e3634a9b", "19c82e28ebb0af69b05fafc348375c4c1ea4b8d7"),
    ),
)
RULES: Final = {script.name: Rule(-1, read=False, apply=script.apply) for script in _SCRIPTS}
_EXACT: Final = {sha1.encode(): script for script in _SCRIPTS for sha1 in script.exact}
_NORMALISED: Final = {sha1.encode(): script for script in _SCRIPTS for sha1 in script.normalised}
_remembered: Final[dict[bytes, _Script]] = {}


def script_sha1(text: bytes) -> bytes:
    """The SHA1 of a script's text, in hexadecimal digits."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _normalised(text: bytes) -> bytes:
    """The text with one kind of quotes, and white space only where Lua needs it."""
    one_line = re.sub(rb"\s+", b" ", text.replace(b'"', b"'")).strip()
    return re.sub(rb" ?([(),=~<>+]) ?", rb"\1", one_line)


def _by_sha1(sha1: bytes) -> _Script | None:
    return _EXACT.get(sha1) or _remembered.get(sha1)


def _by_text(text: bytes) -> _Script | None:
    """The script that has this text, exactly or but for white space and quotes."""
    if len(text) > _LONGEST_TEXT:
        return None
    sha1 = script_sha1(text)
    script = _by_sha1(sha1) or _NORMALISED.get(script_sha1(_normalised(text)))
    if script is not None and sha1 not in _EXACT and sha1 not in _remembered:
        if len(_remembered) >= _MOST_REMEMBERED:
            del _remembered[next(iter(_remembered))]
        _remembered[sha1] = script
    return script


def known_script(sha1: bytes) -> bool:
    """SCRIPT EXISTS: whether EVALSHA with this SHA1 would be carried out."""
    return _by_sha1(sha1.lower()) is not None


def load_script(text: bytes) -> bytes | RedisError:
    """SCRIPT LOAD: the SHA1, or an error for an unknown script."""
    return NOT_SUPPORTED if _by_text(text) is None else script_sha1(text)


def parse_script(argv: Sequence[bytes]) -> KeyCommand | RedisError:
    """The known script that EVAL or EVALSHA names, as a command on its key; ``argv`` has at least three words."""
    by_sha1 = argv[0].upper() == b"EVALSHA"
    if by_sha1 and len(argv[1]) != 40:
        return NO_SCRIPT
    keys = integer_of(argv[2])
    if keys is None:
        return NOT_AN_INTEGER
    if not 0 <= keys <= len(argv) - 3:
        return _NEGATIVE_KEYS if keys < 0 else _TOO_MANY_KEYS
    script = _by_sha1(argv[1].lower()) if by_sha1 else _by_text(argv[1])
    if script is None:
        return NO_SCRIPT if by_sha1 else NOT_SUPPORTED
    if keys != 1:
        return _ONE_KEY
    args = tuple(argv[4:])
    return _TOO_FEW_ARGUMENTS if len(args) < script.arguments else KeyCommand(script.name, argv[3], args)
