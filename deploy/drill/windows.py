"""Times of the week in which a practice must not run, such as ``Mon-Fri 08:00-18:00``. Pure.

They are in the time zone of the process. A window that ends before it begins goes on into the next day, and belongs to
the day on which it begins.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM = re.compile(r"(?:([A-Z][a-z]{2})(?:-([A-Z][a-z]{2}))? )?(\d\d:\d\d)-(\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """On ``days`` (0 is Monday) from ``begin`` to ``end``; ``text`` is how it was written."""

    text: str
    days: frozenset[int]
    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Window":
        """``Mon-Fri 08:00-18:00``, ``Sat 00:00-06:00``, or every day ``22:00-06:00``. Raises ``ValueError``."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no window; examples: 'Mon-Fri 08:00-18:00', 'Sat 22:00-06:00'")
        first, last, begin, end = match.groups()
        for day in filter(None, (first, last)):
            if day not in DAYS:
                raise ValueError(f"{text!r}: {day} is no day; the days are {', '.join(DAYS)}")
        return cls(text.strip(), _days(first, last), time.fromisoformat(begin), time.fromisoformat(end))

    def meets(self, start: datetime, end: datetime) -> bool:
        """Whether any moment from ``start`` to ``end`` is in the window."""
        day = start.date() - timedelta(days=1)
        while day <= end.date():
            opens = datetime.combine(day, self.begin, start.tzinfo)
            closes = datetime.combine(day, self.end, start.tzinfo)
            closes += timedelta(days=1) if self.end <= self.begin else timedelta()
            if day.weekday() in self.days and opens < end and start < closes:
                return True
            day += timedelta(days=1)
        return False


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = DAYS.index(first)
    length = (DAYS.index(last or first) - begin) % 7
    return frozenset((begin + step) % 7 for step in range(length + 1))


def blocking(windows: Sequence[Window], start: datetime, seconds: float) -> str:
    """The first window that a run of so many seconds from ``start`` would meet, as it was written; '' for none."""
    end = start + timedelta(seconds=seconds)
    return next((window.text for window in windows if window.meets(start, end)), "")
