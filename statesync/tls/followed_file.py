"""Secret files that a running process follows, and what callers show to match them.

What was read from a file last stays in use while it cannot be read.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from understudy.statesync.tls.secret_files import fault_of, read_secret

logger = logging.getLogger(__name__)
T = TypeVar("T")


class BadFile(Exception):
    """A file that cannot be used; the text names it and the fault, in one line."""


class FollowedFile(Generic[T]):
    """The value of a secret file. Its modification time, size and inode are checked at each use.

    Args:
        path: the file.
        parse: makes the value of the file's content; raises ``ValueError`` with the fault.
        what: what the file holds, for the log.

    Raises:
        BadFile: the file cannot be used now.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T], what: str) -> None:
        self._path = path
        self._parse = parse
        self._what = what
        try:
            self._stamp = self._stamp_now()
        except OSError as error:
            raise BadFile(fault_of(error)) from None
        self._value = self._read()

    @property
    def value(self) -> T:
        """The value by the file's present content, or by the last one that could be used."""
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._stamp = stamp
                self._value = self._read()
                logger.info("%s read again from %s", self._what, self._path)
        except OSError as error:
            logger.warning("the %s in use stay: %s", self._what, fault_of(error))
        except BadFile as error:
            logger.warning("the %s in use stay: %s", self._what, error)
        return self._value

    def _read(self) -> T:
        try:
            return self._parse(read_secret(self._path))
        except OSError as error:
            raise BadFile(fault_of(error)) from None
        except ValueError as error:
            raise BadFile(f"{self._path}: {error}") from None

    def _stamp_now(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def bearer_digest(authorization: str) -> bytes:
    """The SHA-256 of the token in an ``Authorization`` header of the scheme ``Bearer``; empty if there is none.

    Compare it with :func:`hmac.compare_digest`. Digests of any two tokens have the same length.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return b""
    return hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
