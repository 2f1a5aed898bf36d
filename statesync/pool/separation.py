"""How far apart the copies of a slot are, and why not further. For operators; no decision depends on it.

Copies are apart at a level (site, zone, host) if the loss of any one domain of that level leaves a copy. A zone or host
that is not known counts for nothing.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

Level = Literal["site", "zone", "host", "member", "none"]
LEVELS: tuple[Literal["site", "zone", "host"], ...] = ("site", "zone", "host")
_OPTIONS = {"site": "--site", "zone": "--zone", "host": "--host"}


class Place(Protocol):
    """Where a member runs."""

    @property
    def site(self) -> str:
        """Its site; '' is a site too."""

    @property
    def zone(self) -> str:
        """Its zone within the site; '' if it is not known."""

    @property
    def host(self) -> str:
        """Its host within the zone; '' if it is not known."""


class Spot(NamedTuple):
    """A :class:`Place` as plain data."""

    site: str
    zone: str
    host: str


class Separation(msgspec.Struct, frozen=True):
    """The highest level at which copies are apart, and why they are not at the next higher one ('' at the highest).

    Level ``member``: they are on different members, but on one host, or on hosts that are not known. Level ``none``:
    there is one copy.
    """

    level: Level
    why: str


def separation(
    order: Sequence[str], places: Mapping[str, Place], able: Collection[str], *, by_line: bool
) -> Separation:
    """How far apart the copies of ``order`` are.

    Args:
        order: the members that have the slot, the active first.
        places: where each registered member runs.
        able: the members that may hold slots.
        by_line: the pool is in mode active_standby, in which the standby follows priority.
    """
    known = [places[member] for member in order if member in places]
    if len(known) < 2:
        return Separation("none", "the slot has one copy")
    reached = next((level for level in LEVELS if len(_domains(level, known)) > 1), None)
    if reached == LEVELS[0]:
        return Separation(reached, "")
    above = LEVELS[(LEVELS.index(reached) if reached else len(LEVELS)) - 1]
    others = [places[member] for member in able if member in places]
    return Separation(reached or "member", _why_not(above, others, len(known), by_line=by_line))


def together(
    orders: Iterable[Sequence[str]], places: Mapping[str, Place], able: Collection[str]
) -> dict[Literal["zone", "host"], list[int]]:
    """The slots all of whose copies are in one zone, or on one host, although others have members; by that level.

    A slot is named for its widest domain only.
    """
    found: dict[Literal["zone", "host"], list[int]] = {"zone": [], "host": []}
    others = [places[member] for member in able if member in places]
    there = {level: len(_domains(level, others)) > 1 for level in ("zone", "host")}
    judged: dict[tuple[str, ...], Literal["zone", "host"] | None] = {}
    for slot, order in enumerate(orders):
        key = tuple(order)
        if key not in judged:
            judged[key] = _shared([places[member] for member in key if member in places], there)
        if (level := judged[key]) is not None:
            found[level].append(slot)
    return found


def _shared(copies: Sequence[Place], there: Mapping[str, bool]) -> Literal["zone", "host"] | None:
    """The widest domain that all copies share although there are others."""
    for level in ("zone", "host"):
        named = [_domain(level, place) for place in copies]
        if len(named) > 1 and there[level] and None not in named and len(set(named)) == 1:
            return level
    return None


def _domain(level: str, place: Place) -> tuple[str, ...] | None:
    """The domain of a member at a level; None if it is not known."""
    if level == "site":
        return (place.site,)
    if level == "zone":
        return (place.site, place.zone) if place.zone else None
    return (place.site, place.zone, place.host) if place.host else None


def _domains(level: str, places: Iterable[Place]) -> set[tuple[str, ...]]:
    """The known domains at a level."""
    return {domain for place in places if (domain := _domain(level, place)) is not None}


def _why_not(level: str, able: Sequence[Place], copies: int, *, by_line: bool) -> str:
    domains = _domains(level, able)
    names = {domain[-1] for domain in domains} - {""}
    if not names:
        return f"the {level}s of the members are not known ({_OPTIONS[level]})"
    if len(domains) == 1:
        return f"all members are {'in' if level == 'zone' else 'on'} {level} {min(names)}"
    if level == "site" and copies == 2:
        return (
            "a standby that is the only copy is not placed by site; copies: 3 has one on another site, and so has "
            "replication: {spread: site}"
        )
    if by_line and copies == 2:
        return "the only standby is the next in line by priority"
    return f"the slot table has not followed the {level}s of its members yet"
