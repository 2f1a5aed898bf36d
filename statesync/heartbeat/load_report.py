"""What a member reports of its load, and how its counts become rates. Pure.

A report goes with a heartbeat every :data:`LOAD_INTERVAL` seconds, to every control server. It is nothing that etcd
keeps: a control server that starts has the reports of all members after one interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

from understudy.statesync.pool.records import Record
from understudy.statesync.pool.slots import MAX_SLOTS

LOAD_INTERVAL = 5.0
"""Seconds between two reports."""
SMOOTHED_OVER = 60.0
"""Seconds after which a count weighs 1/e of a new one: a burst of some seconds moves no slot."""
VERSIONS_MOST = 1000
SITES_MOST = 1000
KNOWN_AFTER = 9.0
"""Seconds for which a slot must be measured before its rate is reported: two intervals, one of them whole."""


class SlotLoad(NamedTuple):
    """The load of one slot at its active: session calls a second, sessions, and bytes of their bodies."""

    slot: int
    calls: float
    sessions: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LoadReport(Record):
    """The load of a member, smoothed.

    ``cpu`` is how many CPUs the sidecar uses (and the application, if ``app``), of ``cpus`` that it may use. ``memory``
    of ``memory_limit`` bytes are those of the sidecar or of the application, whichever is nearer to its limit (0: not
    known). ``lag`` is how late the event loop is, in seconds: the worst of an interval, smoothed. ``slots``: each slot
    that the member is active for and has measured for :data:`KNOWN_AFTER`. ``versions``: how many sessions of the slots
    that it is active for each version of the application wrote last ('' for sessions of which that is not known).
    Earlier releases do not say the rest. ``unsaved``: how many sessions etcd lacked at the most of late, for how many
    ms, and how many writes. ``copy_lag``: for each other site, how many ms and writes its copies of these slots were
    behind at the most of late. ``one_site_seconds``: for how long a slot has had current copies on one site only.
    """

    cpu: float = 0.0
    cpus: float = 0.0
    memory: int = 0
    memory_limit: int = 0
    lag: float = 0.0
    app: bool = False
    slots: Sequence[SlotLoad] = ()
    versions: Mapping[str, int] | None = None
    unsaved: Sequence[int] | None = None
    copy_lag: Mapping[str, Sequence[int]] | None = None
    one_site_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", _slots(self.slots))
        if self.versions is not None and not _are_versions(self.versions):
            raise TypeError(f"LoadReport: versions are up to {VERSIONS_MOST} counts by their names")
        if self.unsaved is not None and not _are_unsaved(self.unsaved):
            raise TypeError("LoadReport: unsaved has a number of sessions, one of ms, and one of writes")
        if self.copy_lag is not None and not _is_copy_lag(self.copy_lag):
            raise TypeError(f"LoadReport: copy_lag has ms and writes of up to {SITES_MOST} sites by their names")


def _are_versions(raw: object) -> bool:
    if not isinstance(raw, Mapping) or len(raw) > VERSIONS_MOST:
        return False
    return all(map(_is_count, raw.values()))


def _are_unsaved(raw: object) -> bool:
    return isinstance(raw, list | tuple) and len(raw) >= 2 and all(map(_is_count, raw[:3]))


def _is_copy_lag(raw: object) -> bool:
    if not isinstance(raw, Mapping) or len(raw) > SITES_MOST:
        return False
    return all(isinstance(one, list | tuple) and len(one) >= 2 and all(map(_is_count, one[:2])) for one in raw.values())


def _is_count(raw: object) -> bool:
    return type(raw) is int and 0 <= raw < 1 << 53


def _slots(raw: object) -> tuple[SlotLoad, ...]:
    if not isinstance(raw, list | tuple) or len(raw) > MAX_SLOTS:
        raise TypeError(f"LoadReport: slots is a list of up to {MAX_SLOTS}")
    found = []
    for one in raw:
        if not isinstance(one, list | tuple) or len(one) < len(SlotLoad._fields):
            raise TypeError("LoadReport: a slot has its number, calls, sessions and bytes")
        slot, calls, sessions, size = one[: len(SlotLoad._fields)]  # later releases may tell more
        whole = all(map(_is_count, (slot, sessions, size)))
        if not whole or slot >= MAX_SLOTS or type(calls) not in (int, float) or not 0 <= calls <= 1e9:
            raise TypeError("LoadReport: a slot has its number, calls, sessions and bytes")
        found.append(SlotLoad(slot, float(calls), sessions, size))
    return tuple(found)


class Smoothed:
    """A mean over time in which an amount counts less the older it is; it begins at the first amount, not at 0."""

    __slots__ = ("_amount", "_seconds")

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Take in an amount of the last ``seconds``."""
        kept = exp(-seconds / SMOOTHED_OVER)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + seconds

    @property
    def rate(self) -> float:
        """The amount a second."""
        return self._amount / self._seconds if self._seconds else 0.0


class SlotRates:
    """The rates of the slots that a process is active for, from counters that only rise."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[Smoothed, int, float]] = {}
        """Per slot its rate, its counter at the last look, and since when it is measured."""
        self._at = 0.0

    def look(self, counts: Sequence[int], active: Iterable[int], now: float) -> None:
        """Take in the counters of the slots in ``active``; other slots are forgotten. ``now`` is monotonic."""
        seconds, self._at = now - self._at, now
        looked = {}
        for slot in active:
            before = self._slots.get(slot)
            if before is None:
                looked[slot] = (Smoothed(), counts[slot], now)
                continue
            rate, count, since = before
            rate.add(counts[slot] - count, seconds)
            looked[slot] = (rate, counts[slot], since)
        self._slots = looked

    def known(self) -> Mapping[int, float]:
        """The rate of each slot that has been measured for long enough."""
        return {slot: rate.rate for slot, (rate, _, since) in self._slots.items() if self._at - since >= KNOWN_AFTER}
