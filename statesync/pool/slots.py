"""Which slot a session key belongs to.

Envoy and every sidecar must agree on this without talking to each other, so there is exactly one rule:
``xxh64(key, seed 0) % slots``. It is what Envoy's router computes for ``weighted_clusters`` with
``use_hash_policy`` when each slot is one entry of weight 1 (HashUtil::xxHash64 over the header or cookie value).

A session store of a web framework writes keys that contain the session id, such as ``sess:ID``. In a pool whose spec
names such keys, :class:`SlotRule` takes the id out of the key, so that the key has the slot of the framework's cookie.
"""

import base64
from typing import Literal

import msgspec
from xxhash import xxh64_intdigest

MAX_SLOTS = 16384
DEFAULT_SLOTS = 256

Transform = Literal["base64"]
"""How a cookie spells the session id, where it is not the id itself."""


def slot_of(session_key: str, slots: int) -> int:
    """The slot of a session key, in ``range(slots)``.

    Args:
        session_key: the value that clients send in the session header or cookie, without quotes. Bytes that are no
            UTF-8 are surrogate escapes.
        slots: how many slots the pool has; at least 1.
    """
    return slot_of_bytes(session_key.encode("utf-8", "surrogateescape"), slots)


def slot_of_bytes(session_key: bytes, slots: int) -> int:
    """The slot of a session key whose bytes are given, in ``range(slots)``."""
    return xxh64_intdigest(session_key) % slots


class StoreKeys(msgspec.Struct, frozen=True):
    """The keys of one session store: ``prefix``, the session id, and perhaps one of the ``suffixes``."""

    prefix: str
    suffixes: tuple[str, ...] = ()
    transform: Transform | None = None

    def id_in(self, key: str) -> str:
        """The session id in a key with this prefix, as the cookie spells it; only its ``{tag}`` if it has one."""
        text = key[len(self.prefix) :]
        if self.suffixes and text.endswith(self.suffixes):
            suffix = next(suffix for suffix in self.suffixes if text.endswith(suffix))
            text = text[: -len(suffix)]
        if "{" in text:
            text = _tag_of(text)
        if self.transform == "base64":
            return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
        return text


class SlotRule(msgspec.Struct, frozen=True):
    """Which part of a stored key is hashed; ``stores`` has the longest prefix first.

    It decides in which slot a session is found, so it is fixed for the life of a pool.
    """

    stores: tuple[StoreKeys, ...]

    def store_of(self, key: str) -> StoreKeys | None:
        """The session store that this key belongs to; None if its prefix is not known."""
        for store in self.stores:  # a loop is three times as fast as next(), and every command comes by here
            if key.startswith(store.prefix):
                return store
        return None

    def hashed_text(self, key: str) -> str:
        """The text whose hash decides the slot of ``key``.

        For a key of a known store it is the session id, as the cookie spells it. Any other key is hashed as it is. If
        there is a ``{tag}`` in what would be hashed, the tag alone is hashed, by Redis's rule.
        """
        store = self.store_of(key)
        if store is not None:
            return store.id_in(key)
        return _tag_of(key) if "{" in key else key


def slot_rule(stores: set[StoreKeys]) -> SlotRule:
    """The rule for these session stores; equal stores give equal rules."""
    return SlotRule(tuple(sorted(stores, key=lambda store: (-len(store.prefix), store.prefix))))


def _tag_of(text: str) -> str:
    """The text between the first ``{`` and the next ``}`` if there is any, else the whole (Redis Cluster's rule)."""
    start = text.find("{") + 1
    if not start:
        return text
    end = text.find("}", start)
    return text[start:end] if end > start else text
