"""From the arguments of a command to its effect on a key: :func:`parse`, then :func:`apply`. Pure.

Errors have the texts of Redis 7.0.
"""

from collections.abc import Callable, Sequence
from typing import Final

from understudy.statesync.redis import expiry, hashes, keys, scripts, sets, strings
from understudy.statesync.redis.command import (
    Effect,
    KeyCommand,
    KeyCommands,
    Rule,
    no_check,
    wrong_number_of_arguments,
)
from understudy.statesync.redis.command_names import NOT_SUPPORTED, SUBCOMMANDS_NOT_SUPPORTED
from understudy.statesync.redis.reply import OK, RedisError, error, text_of
from understudy.statesync.redis.scripts import known_script, load_script, parse_script, script_sha1
from understudy.statesync.redis.value import CorruptValue, Value

__all__ = [
    "Effect",
    "KeyCommand",
    "KeyCommands",
    "apply",
    "arities",
    "is_read",
    "known_script",
    "load_script",
    "parse",
    "parse_script",
    "refusal",
    "script_sha1",
]

_RULES: Final[dict[bytes, Rule]] = {
    **strings.RULES,
    **keys.RULES,
    **expiry.RULES,
    **hashes.RULES,
    **sets.RULES,
    **scripts.RULES,
}
_CONTAINERS: Final = frozenset({b"OBJECT", b"MEMORY"})
"""Commands whose second word is a part of their name."""
_SCRIPTS: Final = {b"EVAL": -3, b"EVALSHA": -3}
_SHOWN_BYTES: Final = 128
_MSET: Final = b"MSET"


def refusal(argv: Sequence[bytes]) -> RedisError | None:
    """The error that Redis gives before it looks at options: unknown command, or wrong number of arguments.

    In a transaction these errors come when a command is queued, all others when it is carried out.
    """
    name, _, rule = _look_up(argv)
    arity = _SCRIPTS.get(name, -3 if name == _MSET else None) if rule is None else rule.arity
    if arity is None:
        return _no_rule(argv, name)
    fits = len(argv) == arity if arity > 0 else len(argv) >= -arity
    return None if fits else wrong_number_of_arguments(name.replace(b" ", b"|"))


def parse(argv: Sequence[bytes]) -> KeyCommand | KeyCommands | RedisError:
    """The command on one key or on several that ``argv`` is, or the error that Redis would give."""
    found = _ON_ONE_KEY.get(argv[0]) if argv else None
    if found is not None:  # most commands, in a third of the time
        name, arity, check = found
        words = len(argv)
        if words == arity or words >= -arity > 0:
            args = tuple(argv[2:]) if words > 2 else ()
            return (check and check(args)) or KeyCommand(name, argv[1], args)
    return _parse(argv)


def _parse(argv: Sequence[bytes]) -> KeyCommand | KeyCommands | RedisError:
    refused = refusal(argv)
    if refused is not None:
        return refused
    name, key_at, rule = _look_up(argv)
    if rule is None:
        return _mset(argv) if name == _MSET else parse_script(argv)
    args = tuple(argv[key_at + 1 :])
    combine = _COMBINED.get(name)
    if combine is not None:
        if args or name == b"MGET":
            return KeyCommands(tuple(KeyCommand(name, key, ()) for key in argv[1:]), combine)
        return KeyCommand(name, argv[1], ())
    return rule.check(args) or KeyCommand(name, argv[key_at], args)


def arities() -> dict[bytes, int]:
    """The arity of every command on keys, in Redis's form, by its name in upper case."""
    return {name: rule.arity for name, rule in _RULES.items() if b" " not in name and b":" not in name} | _SCRIPTS


def is_read(command: KeyCommand) -> bool:
    """Whether the command never changes anything."""
    return command.name in _READS or _RULES[command.name].read


def apply(command: KeyCommand, before: Value | None, now_ms: int) -> Effect:
    """The effect of ``command`` on a key that holds ``before``, at ``now_ms`` in Unix milliseconds.

    ``before`` is None for a key that does not exist or has expired. A command that only a newer version has is refused.
    """
    rule = _RULES.get(command.name)
    if rule is None:
        return Effect(not_supported(command.name), before)
    try:
        return rule.apply(command.args, before, now_ms)
    except CorruptValue as reason:
        return Effect(error(str(reason)), before)


def _look_up(argv: Sequence[bytes]) -> tuple[bytes, int, Rule | None]:
    """The name in upper case, where the key stands, and the rule of the command, if it has one."""
    name = argv[0].upper() if argv else b""
    if name in _CONTAINERS and len(argv) > 1:
        name = b"%b %b" % (name, argv[1].upper())
        return name, 2, _RULES.get(name)
    return name, 1, None if b" " in name else _RULES.get(name)


def _no_rule(argv: Sequence[bytes], name: bytes) -> RedisError:
    """The error for a command that Redis has and this package has not, or that nobody has."""
    word = argv[0].upper() if argv else b""
    if name in _CONTAINERS:
        return wrong_number_of_arguments(name)
    if name in (NOT_SUPPORTED if name == word else SUBCOMMANDS_NOT_SUPPORTED):
        return not_supported(name)
    if word in _CONTAINERS:
        return error(f"unknown subcommand '{_shown(argv[1])}'. Try {text_of(word)} HELP.")
    beginning = b""
    for argument in argv[1:]:
        if len(beginning) >= _SHOWN_BYTES:
            break
        beginning += b"'%b' " % argument.partition(b"\0")[0][: _SHOWN_BYTES - len(beginning)]
    shown = _shown(argv[0]) if argv else ""
    return error(f"unknown command '{shown}', with args beginning with: {text_of(beginning)}")


def not_supported(name: bytes) -> RedisError:
    """The error for a command that Redis has and Understudy has not."""
    shown = text_of(name.lower().replace(b" ", b"|"))
    return error(f"command '{shown}' is not supported by Understudy's Redis port; see docs/redis.md")


def _shown(argument: bytes) -> str:
    """The part of a user's argument that Redis's errors show."""
    return text_of(argument.partition(b"\0")[0][:_SHOWN_BYTES])


def _mset(argv: Sequence[bytes]) -> KeyCommands | RedisError:
    if len(argv) % 2 == 0:
        return wrong_number_of_arguments(_MSET)
    pairs = zip(argv[1::2], argv[2::2], strict=True)
    return KeyCommands(tuple(KeyCommand(b"SET", key, (value,)) for key, value in pairs), _all_ok)


def _first_error(replies: Sequence[object]) -> RedisError | None:
    return next((reply for reply in replies if isinstance(reply, RedisError)), None)


def _all_ok(replies: Sequence[object]) -> object:
    return _first_error(replies) or OK


def _listed(replies: Sequence[object]) -> object:
    return _first_error(replies) or list(replies)


def _counted(replies: Sequence[object]) -> object:
    return _first_error(replies) or sum(reply for reply in replies if isinstance(reply, int))


_COMBINED: Final[dict[bytes, Callable[[Sequence[object]], object]]] = {
    b"MGET": _listed,
    b"DEL": _counted,
    b"UNLINK": _counted,
    b"EXISTS": _counted,
    b"TOUCH": _counted,
}
_ON_ONE_KEY: Final = {
    spelled: (name, rule.arity, None if rule.check is no_check else rule.check)
    for name, rule in _RULES.items()
    if b" " not in name and name not in scripts.RULES and name not in _COMBINED
    for spelled in (name, name.lower())
}
"""As the commands are usually spelled: their names, arities and checks."""
_READS: Final = frozenset(name for name, rule in _RULES.items() if rule.read)
