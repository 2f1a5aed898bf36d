"""Lost updates: writes that replace a value which has changed since their author read it. Pure.

A value's version is that of the write that wrote it, :attr:`Session.value_version`. A renewal of the session does not
change it, nor does a write of the same value.
"""

from understudy.statesync.redis.command import KeyCommand, option
from understudy.statesync.sessions.session import Session

ABSENT = 0
"""The version of a value that does not exist."""
VALUE_HEADER = "Understudy-Value"
"""In an answer between sidecars: the version of the value that was read or written."""
SEEN_HEADER = "understudy-seen"
"""In a write between sidecars: the version that its author has read."""
VERSION_MOST = 2**63 - 1
LEARNING = frozenset({b"GET", b"GETEX"})
"""The commands after which a client knows the whole value."""
_TIMES = frozenset({b"EX", b"PX", b"ex", b"px"})
_REPLACES = frozenset({b"SET", b"SETEX", b"PSETEX"})


def replaces_value(command: KeyCommand) -> bool:
    """Whether a command replaces the whole value, whatever it is."""
    if command.name not in _REPLACES:
        return False
    args = command.args
    if command.name != b"SET" or len(args) == 1 or (len(args) == 3 and args[1] in _TIMES):  # most of them
        return True
    return not any(option(arg) in (b"NX", b"GET") for arg in args[1:])


def version_of(session: Session | None, ended_ms: int) -> int:
    """The version of a value for a reader; sessions that expire at ``ended_ms`` or earlier have expired."""
    return ABSENT if session is None or not session.alive(ended_ms) else session.value_version


def version_after(session: Session) -> int:
    """The version of the value after a write that has made ``session``."""
    return ABSENT if session.deleted else session.value_version


def overwrites(current: Session | None, seen: int, ended_ms: int) -> bool:
    """Whether a write whose author has read version ``seen`` replaces a newer value, or undoes a deletion.

    A session that has expired is no loss.
    """
    if current is None or ended_ms >= current.expires:
        return False
    return seen != (ABSENT if current.deleted else current.value_version)
