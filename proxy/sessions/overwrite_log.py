"""The lost updates that this member has seen as the owner of slots; docs/redis.md says what counts as one."""

import hashlib
import time
from collections import OrderedDict

KEYS_KEPT = 20
"""Keys that are remembered: those that were overwritten last."""


class OverwriteLog:
    """Counts writes of clients that had not read the value which they replaced: ``written`` ones and ``refused`` ones.

    Keys are shown as digests, because whoever knows the key of a session can use it.
    """

    def __init__(self) -> None:
        self.written = 0
        self.refused = 0
        self._keys: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def note(self, key: str, *, refused: bool) -> None:
        """A write to ``key`` has replaced a value that its author did not know, or was refused for that."""
        if refused:
            self.refused += 1
        else:
            self.written += 1
        digest = digest_of(key)
        count, _ = self._keys.pop(digest, (0, 0.0))
        self._keys[digest] = (count + 1, time.monotonic())
        if len(self._keys) > KEYS_KEPT:
            self._keys.popitem(last=False)

    def view(self) -> dict[str, object]:
        """For ``/v1/status``: the counts, and the keys, the latest first."""
        now = time.monotonic()
        keys = [
            {"key_sha256": digest, "count": count, "seconds_ago": round(now - at, 1)}
            for digest, (count, at) in reversed(self._keys.items())
        ]
        return {"written": self.written, "refused": self.refused, "keys": keys}


def digest_of(key: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 digest of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
