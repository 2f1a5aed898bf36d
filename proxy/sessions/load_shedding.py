"""Which calls a sidecar refuses because it is overloaded: those of low priority first.

The measure is how late the event loop is, smoothed over a second. A call that is refused costs a fraction of one that
is answered, so the calls that matter keep their time. The level rises at once and falls only after a second of calm, so
it does not swing with every burst. Commits that lag behind are another matter
(:mod:`understudy.statesync.sessions.backpressure`).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from understudy.proxy.http.problems import Reply, problem
from understudy.statesync.http.headers import PRIORITY_HEADER
from understudy.statesync.pool.priority import PRIORITIES, Priority
from understudy.statesync.pool.spec import PoolSpec

REFUSE_FROM = (0.1, 0.3)
"""Seconds of lag from which on low calls, and from which on normal calls too, are refused. Usually the lag is a few ms.
A call waits for it about once on each way."""
CALM_BELOW = 0.5
"""Times the lag at which a level begins: below that it ends."""
CALM_TIME = 1.0
LOOK_INTERVAL = 0.05
RETRY_AFTER = 1


@dataclass(frozen=True, slots=True)
class Overload:
    """``level`` 0: nothing is refused; 1: low calls; 2: normal ones too. ``calm_since``: None while it is needed."""

    level: int = 0
    calm_since: float | None = None


def overload_after(before: Overload, lag: float, now: float) -> Overload:
    """The overload at ``now`` when the event loop is late by ``lag``; both in seconds."""
    needed = sum(lag >= bound for bound in REFUSE_FROM)
    if needed >= before.level:
        return before if needed == before.level and before.calm_since is None else Overload(needed)
    if lag >= REFUSE_FROM[before.level - 1] * CALM_BELOW:
        return Overload(before.level)
    since = now if before.calm_since is None else before.calm_since
    return Overload(before.level - 1) if now - since >= CALM_TIME else Overload(before.level, since)


def priority_of(headers: Mapping[str, str], key: str, spec: PoolSpec) -> Priority:
    """The priority of a call: what it says itself, or else that of its session or pool."""
    said = headers.get(PRIORITY_HEADER)
    return next((one for one in PRIORITIES if one == said), None) or spec.priority_of(key)


class LoadShedder:
    """Decides about the calls of one sidecar. ``lag`` tells how late its event loop is, smoothed, in seconds."""

    def __init__(self, lag: Callable[[], float]) -> None:
        self._lag = lag
        self._looked = 0.0
        self._overload = Overload()
        self.refused: Counter[Priority] = Counter()

    @property
    def level(self) -> int:
        """How much is refused now; see :class:`Overload`."""
        now = time.monotonic()
        if now - self._looked >= LOOK_INTERVAL:
            self._looked = now
            self._overload = overload_after(self._overload, self._lag(), now)
        return self._overload.level

    def refused_priority(self, headers: Mapping[str, str], key: str, spec: PoolSpec) -> Priority | None:
        """The priority of a call that is not carried out now; None for a call that is."""
        level = self.level
        if not level:
            return None
        priority = priority_of(headers, key, spec)
        spared = priority == "critical" or (priority == "normal" and (level == 1 or not spec.has_critical))
        return None if spared else priority

    def refusal(self, headers: Mapping[str, str], key: str, spec: PoolSpec) -> Reply | None:
        """The answer to a call that is not carried out; None for others."""
        priority = self.refused_priority(headers, key, spec)
        if priority is None:
            return None
        self.refused[priority] += 1
        detail = f"this member is overloaded, and refuses calls of priority {priority} first; nothing was done"
        return problem(503, "overloaded", detail, retry_after=RETRY_AFTER)
