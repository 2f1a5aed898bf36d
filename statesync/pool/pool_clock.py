"""The pool's time, by which members stamp sessions and end them.

A wall clock may be wrong, and one that is ahead would end every session. So a member asks the other members and the
control servers for their time and uses the median. Each clock is stored as its distance from this process's monotonic
clock, which neither operators nor NTP set. So a wall clock that jumps changes only one vote, its own.

:func:`judge` decides, and is pure. :class:`PoolClock` keeps the answers. Times of the monotonic clock are in seconds,
times of wall clocks in ms since the Unix epoch.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

import msgspec

APART_MS = 10_000
"""Clocks that differ by more than this do not agree; a member that differs that much from the pool reports it."""
LATEST_ANSWER = 2.0
"""An answer that took longer than this, in seconds, is too inexact."""
KEPT = 300.0
"""Seconds for which the last answer of another clock counts."""
SAID_FROM = 10.0
"""Seconds after the start before which a missing agreement is not reported: the others may not have answered."""
ALONE_FROM = 60.0
"""Seconds after which a member that is alone in its pool uses its own clock."""

COMPARED_WITHIN = 5.0
"""Seconds after the start for which a member waits for another clock before it serves sessions by its own alone."""

_BOOT_TIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)

monotonic: Callable[[], float] = time.monotonic if _BOOT_TIME is None else partial(time.clock_gettime, _BOOT_TIME)
"""Seconds of a clock that is never set; where possible it includes the time for which the machine was suspended."""


def wall_ms() -> int:
    """This machine's wall clock, which may be wrong."""
    return time.time_ns() // 1_000_000


class Heard(msgspec.Struct, frozen=True):
    """Another clock: how far it is ahead of this process's monotonic clock, in ms, and when it was asked."""

    ahead: int
    at: float


class PoolTime(msgspec.Struct, frozen=True):
    """The pool's time as one member knows it.

    ``ahead`` is how far it is ahead of the monotonic clock, in ms. ``agreed``: it may end sessions. ``deviation`` is
    how far this member's own wall clock is ahead of it, in ms. ``clocks`` is how many clocks were compared, its own
    included, and ``agreeing`` how many of them agree.
    """

    ahead: int
    agreed: bool
    deviation: int = 0
    clocks: int = 1
    agreeing: int = 1

    @property
    def deviates(self) -> bool:
        """Whether this member's own wall clock is wrong."""
        return self.agreed and abs(self.deviation) > APART_MS


def judge(own: int, others: Collection[int], before: PoolTime | None, *, alone: bool) -> PoolTime:
    """The pool's time from this member's own clock and those of others, all as ms ahead of its monotonic clock.

    1. More than half of all clocks agree: their median.
    2. No majority, but the time was agreed before: that time goes on. Only where no other clock is known does it
       follow the own clock, and not when that jumps.
    3. Nothing was agreed yet, and ``alone`` says that there is nobody else: the own clock.
    4. Otherwise nobody can tell. The latest clock then counts for stamps, so that no session ends too early, and
       nothing ends.
    """
    clocks = sorted((own, *others))
    middle = clocks[(len(clocks) - 1) // 2]  # the lower of two; importing statistics takes longer than this
    agreeing = sum(abs(clock - middle) <= APART_MS for clock in clocks)
    counts = {"clocks": len(clocks), "agreeing": agreeing}
    if others and 2 * agreeing > len(clocks):
        return PoolTime(middle, True, own - middle, **counts)
    if before is not None and before.agreed:
        drifts = not others and abs(own - before.ahead) <= APART_MS
        ahead = own if drifts else before.ahead
        return PoolTime(ahead, True, own - ahead, **counts)
    if alone:
        return PoolTime(own, True, 0, **counts)
    return PoolTime(clocks[-1], False, 0, **counts)


def fault_of(now: PoolTime, told: str = "") -> str:
    """What an operator should know of this member's clock, '' for nothing. ``told`` is what was said before.

    A deviation is told in coarse steps, so that drift does not change the text all the time.
    """
    if not now.agreed:
        if now.clocks == 1:
            return "no other clock of the pool is known yet, so no session expires here"
        return f"only {now.agreeing} of {now.clocks} clocks agree, so no session expires here"
    if not now.deviates and not (told and abs(now.deviation) > APART_MS / 2):
        return ""
    way = "ahead of" if now.deviation > 0 else "behind"
    return f"its clock is about {_length(abs(now.deviation) / 1000)} {way} the pool's, which counts here"


def _length(seconds: float) -> str:
    if seconds < 60:
        return f"{round(seconds / 10) * 10 or 10} s"
    if seconds < 7200:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"


class PoolClock:
    """The pool's time, kept by :meth:`heard` and :meth:`look`; one per member.

    Call :meth:`look` about once a second. Between two looks the time goes on by the monotonic clock alone. ``fault`` is
    what an operator should know of this member's clock, '' for nothing.
    """

    def __init__(self, wall: Callable[[], int] = wall_ms, passed: Callable[[], float] = monotonic) -> None:
        self._wall = wall
        self._passed = passed
        self._begun = passed()
        self._heard: dict[str, Heard] = {}
        self._compared = asyncio.Event()
        self.time = judge(self._own(), (), None, alone=False)
        self.fault = ""

    def now_ms(self) -> int:
        """The pool's time, for stamps; as good as this member knows it."""
        return self.time.ahead + self._passed_ms()

    def expiry_ms(self) -> int:
        """What ends at this time or earlier has ended: the pool's time, or 0 while the clocks do not agree."""
        return self.now_and_expiry_ms()[1]

    def now_and_expiry_ms(self) -> tuple[int, int]:
        """:meth:`now_ms` and :meth:`expiry_ms` at one moment."""
        time = self.time
        now = time.ahead + round(self._passed() * 1000)
        return now, (now if time.agreed else 0)

    @property
    def is_compared(self) -> bool:
        """Whether its time is fit for stamps: another clock was heard, or nobody else is there, or none answers.

        A process that starts with a clock that is hours behind would stamp sessions that have ended when it hears the
        others.
        """
        return self._compared.is_set() or self._passed() - self._begun >= COMPARED_WITHIN

    async def compared(self) -> None:
        """Wait until :attr:`is_compared`."""
        if self.is_compared:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._begun + COMPARED_WITHIN - self._passed()):
                await self._compared.wait()

    def passed(self) -> float:
        """The monotonic clock that :meth:`heard` takes its times from, in seconds."""
        return self._passed()

    def heard(self, who: str, wall: int, asked: float, answered: float) -> None:
        """The wall clock of ``who`` was at ``wall`` ms at some moment between ``asked`` and ``answered``."""
        if answered - asked <= LATEST_ANSWER:
            self._heard[who] = Heard(wall - round((asked + answered) * 500), answered)
            if not self._compared.is_set():
                self.look(alone=False)

    def look(self, *, alone: bool) -> PoolTime:
        """Judge anew, from the own wall clock as it is now; ``alone``: nobody else is registered in the pool."""
        now = self._passed()
        self._heard = {who: one for who, one in self._heard.items() if now - one.at < KEPT}
        others = [one.ahead for one in self._heard.values()]
        if alone or others:
            self._compared.set()
        long_alone = alone and now - self._begun >= ALONE_FROM
        self.time = judge(self._own(), others, self.time, alone=long_alone)
        self.fault = fault_of(self.time, self.fault) if self.time.agreed or now - self._begun >= SAID_FROM else ""
        return self.time

    def distances(self) -> Mapping[str, float]:
        """How far each clock that is known is ahead of the pool's time, in seconds."""
        return {who: (one.ahead - self.time.ahead) / 1000 for who, one in sorted(self._heard.items())}

    def _own(self) -> int:
        return self._wall() - self._passed_ms()

    def _passed_ms(self) -> int:
        return round(self._passed() * 1000)
