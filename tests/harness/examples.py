"""How many examples a random search tries: all of them at night, a third in other runs."""

import os

NIGHTLY = "UNDERSTUDY_NIGHTLY" in os.environ
"""``make nightly`` sets it."""
LEAST = 10


def examples(most: int) -> int:
    """The number of examples of this run, for a search of ``most`` examples.

    CI tries the same examples each time, so more of them find nothing new there. The nightly run tries new ones.
    """
    return most if NIGHTLY else max(min(most, LEAST), most // 3)
