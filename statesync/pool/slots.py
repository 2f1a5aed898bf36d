"""Which slot a session key belongs to.

Envoy and every sidecar must agree on this without talking to each other, so there is exactly one rule:
``xxh64(key, seed 0) % slots``. It is what Envoy's router computes for ``weighted_clusters`` with
``use_hash_policy`` when each slot is one entry of weight 1 (HashUtil::xxHash64 over the header or cookie value).
"""

import xxhash

MAX_SLOTS = 16384
DEFAULT_SLOTS = 256


def slot_of(session_key: str, slots: int) -> int:
    """The slot of a session key, in ``range(slots)``.

    Args:
        session_key: the value that clients send in the session header or cookie, without quotes.
        slots: how many slots the pool has; at least 1.
    """
    return int(xxhash.xxh64_intdigest(session_key.encode("utf-8", "surrogateescape"), seed=0)) % slots
