"""What a command on one key is, and what its effect is. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from understudy.statesync.redis.reply import RedisError, error, text_of
from understudy.statesync.redis.value import Value

NOT_AN_INTEGER: Final = error("value is not an integer or out of range")
SYNTAX_ERROR: Final = error("syntax error")


class KeyCommand(msgspec.Struct, frozen=True, gc=False):
    """A command on one key, checked for arity and syntax. ``name`` is in upper case."""

    name: bytes
    key: bytes
    args: tuple[bytes, ...]


class KeyCommands(msgspec.Struct, frozen=True):
    """Commands on several keys, in their order, and how their replies become one."""

    parts: tuple[KeyCommand, ...]
    combine: Callable[[Sequence[object]], object]


class Effect(NamedTuple):
    """The reply of a command, and the key's value afterwards: ``before`` itself if unchanged, None if it is gone."""

    reply: object
    after: Value | None


Args = tuple[bytes, ...]
Apply = Callable[[Args, Value | None, int], Effect]
Check = Callable[[Args], RedisError | None]


def no_check(_: Args) -> RedisError | None:
    """For commands whose arguments can be anything."""
    return None


@dataclass(frozen=True, slots=True)
class Rule:
    """A command's arity in Redis's form (the name counts; negative: at least), whether it only reads, and its effect.

    ``check`` is given the arguments after the key.
    """

    arity: int
    read: bool
    apply: Apply
    check: Check = no_check


def wrong_number_of_arguments(name: bytes) -> RedisError:
    """The error of a command with too few or too many arguments."""
    return error(f"wrong number of arguments for '{text_of(name.lower())}' command")


def option(argument: bytes) -> bytes:
    """An argument as the name of an option: in upper case, and up to the first zero byte, as C reads it."""
    return argument.partition(b"\0")[0].upper()
