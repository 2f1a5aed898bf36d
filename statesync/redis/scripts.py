"""The lock and store scripts of known clients, carried out natively. There is no Lua interpreter."""

import hashlib
from collections.abc import Sequence
from typing import Final

from understudy.statesync.redis.command import KeyCommand, Rule
from understudy.statesync.redis.reply import RedisError, error

NO_SCRIPT: Final = RedisError("NOSCRIPT No matching script. Please use EVAL.")
NOT_SUPPORTED: Final = error("this script is not supported by Understudy's Redis port; see docs/redis.md")
RULES: Final[dict[bytes, Rule]] = {}
_NAMES: Final[dict[bytes, bytes]] = {}
"""SHA1 -> the command that it stands for."""


def script_sha1(text: bytes) -> bytes:
    """The SHA1 of a script's text, in hexadecimal digits."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def known_script(sha1: bytes) -> bool:
    """Whether EVALSHA with this SHA1 would be carried out."""
    return sha1.lower() in _NAMES


def load_script(text: bytes) -> bytes | RedisError:
    """SCRIPT LOAD: the SHA1, or an error for an unknown script."""
    sha1 = script_sha1(text)
    return sha1 if known_script(sha1) else NOT_SUPPORTED


def parse_script(argv: Sequence[bytes]) -> KeyCommand | RedisError:
    """The known script that EVAL or EVALSHA names, as a command on its key."""
    return NO_SCRIPT if argv[0].upper() == b"EVALSHA" else NOT_SUPPORTED
