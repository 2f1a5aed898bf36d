"""Failure domains: sites, the zones of a site, and the hosts of a zone; and which members a copy must stay clear of.

The wishes for a copy are tried one after the other. A wish that would leave no member is skipped. A *soft* wish is also
skipped if the members that are left have less than half of the weight of the domain to be avoided: few members would
otherwise carry the copies, and after a death the load, of many. In the order in which they are tried:

* standby: not in the active's zone, if the active's site has several; not on the active's host. Both are soft, but firm
  with ``copies: 2``, where the standby is the only copy.
* last backup: not on the active's site, not in its zone, not on its host (all firm). Then neither in the zone nor on
  the host of another copy (soft).
* backups between: neither in the zone nor on the host of another copy (soft).

Two keys of the spec restrict the sites before any wish is tried. With ``replication.spread: site`` a copy is on a site
of its own as soon as the copies that are left are needed for that. With ``sites`` and ``copies: 3`` or more the standby
is on the active's site, so that a member's death moves nothing to another site.

In active_standby mode the line follows priorities, so only the firm wishes for the last backup count. A zone or host
that is not known ('') is no domain: nobody is kept away from it. Sites may be '' like any other name.

Members are numbers here, in the order of their names.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from understudy.statesync.pool.separation import Place

Role = Literal["standby", "last", "between"]
Sites = frozenset[str]
NOBODY: frozenset[int] = frozenset()
NOWHERE: Sites = frozenset()


class Domain(msgspec.Struct, frozen=True):
    """A zone or a host: its site, its members, and the sum of their weights."""

    site: str
    members: frozenset[int]
    weight: int


class Wish(NamedTuple):
    """A domain that a copy should stay clear of, because this holder of another copy is in it."""

    holder: int
    domain: Domain | None
    firm: bool


class Clear(msgspec.Struct, frozen=True):
    """Which members may not have a copy: those of zones, and the members of hosts and the holders of other copies.

    ``zones`` may be large and is the same object for equal zones; ``others`` is small.
    """

    zones: frozenset[int]
    others: frozenset[int]


class FailureDomains:
    """The failure domains of the members that may hold slots.

    Args:
        places: where each member runs.
        weights: each member's weight.
    """

    def __init__(self, places: Sequence[Place], weights: Sequence[int]) -> None:
        self.sites = [place.site for place in places]
        self._weights = weights
        self._zone = self._grouped([(p.site, p.zone) if p.zone else None for p in places])
        self._host = self._grouped([(p.site, p.zone, p.host) if p.host else None for p in places])
        zones: dict[str, set[str]] = {}
        for place in places:
            if place.zone:
                zones.setdefault(place.site, set()).add(place.zone)
        self._zoned_sites = {site for site, names in zones.items() if len(names) > 1}
        self._every = frozenset(self.sites)
        self._away: dict[Sites, list[int]] = {}
        self._sizes: dict[Sites, tuple[int, int]] = {}
        self._unions: dict[frozenset[Domain], frozenset[int]] = {frozenset(): NOBODY}

    def _grouped(self, names: Sequence[tuple[str, ...] | None]) -> list[Domain | None]:
        """The domain of each member; members of one domain share the object."""
        members: dict[tuple[str, ...], list[int]] = {}
        for member, name in enumerate(names):
            if name is not None:
                members.setdefault(name, []).append(member)
        made = {
            name: Domain(name[0], frozenset(inside), sum(self._weights[member] for member in inside))
            for name, inside in members.items()
        }
        return [None if name is None else made[name] for name in names]

    def away_from(self, sites: Sites) -> Sequence[int]:
        """The members on other sites than these."""
        if not sites:
            return range(len(self.sites))
        if sites not in self._away:
            self._away[sites] = [member for member, own in enumerate(self.sites) if own not in sites]
        return self._away[sites]

    def sites_to_avoid(self, order: Sequence[int]) -> Sites:
        """The active's site, if a member of another site is free to have the last copy; else none."""
        active = frozenset({self.sites[order[0]]})
        return NOWHERE if all(member in order for member in self.away_from(active)) else active

    def sites_used(self, order: Sequence[int], copies: int) -> Sites:
        """The sites of ``order``, if the next of ``copies`` must be on another so that as many as possible have one."""
        used = frozenset(self.sites[member] for member in order)
        possible = min(copies, len(self._every))
        return used if possible - len(used) >= copies - len(order) else NOWHERE

    def other_sites(self, order: Sequence[int]) -> Sites:
        """All sites but the active's, if a member there is free to have a copy; else none."""
        others = self._every - {self.sites[order[0]]}
        return NOWHERE if all(member in order for member in self.away_from(others)) else others

    def closeness(self, member: int, active: int) -> int:
        """How close a member is to an active: 2 on its host, 1 in its zone, 0 otherwise."""
        if self._host[member] is not None and self._host[member] is self._host[active]:
            return 2
        zoned = self.sites[active] in self._zoned_sites and self._zone[member] is self._zone[active]
        return 1 if zoned and self._zone[member] is not None else 0

    def clear(self, order: Sequence[int], role: Role, *, only_copy: bool = False, sites: Sites = NOWHERE) -> Clear:
        """The members that may not have the next copy of a slot.

        Args:
            order: the members that have the slot, the active first.
            role: which copy it is.
            only_copy: the standby is the only copy (``copies: 2``).
            sites: the copy must not be on these sites.
        """
        return _Search(self, order, sites).after(self._wishes(order, role, only_copy))

    def clear_in_line(self, order: Sequence[int], sites: Sites) -> Clear:
        """The members that may not have the last copy in active_standby mode; see :meth:`clear`."""
        return _Search(self, order, sites).after(self._away_from_active(order[0]))

    def _wishes(self, order: Sequence[int], role: Role, only_copy: bool) -> Iterator[Wish]:
        active = order[0]
        if role == "standby":
            yield Wish(active, self._zone[active] if self.sites[active] in self._zoned_sites else None, only_copy)
            yield Wish(active, self._host[active], only_copy)
            return
        if role == "last":
            yield from self._away_from_active(active)
        for member in order:
            yield Wish(member, self._zone[member], False)
        for member in order:
            yield Wish(member, self._host[member], False)

    def _away_from_active(self, active: int) -> Iterator[Wish]:
        yield Wish(active, self._zone[active], True)
        yield Wish(active, self._host[active], True)

    def left(self, sites: Sites, zones: frozenset[Domain], others: frozenset[int]) -> tuple[int, int]:
        """How many members are neither on ``sites`` nor in ``zones`` nor among ``others``, and their weight."""
        if sites not in self._sizes:
            away = self.away_from(sites)
            self._sizes[sites] = len(away), sum(self._weights[member] for member in away)
        count, weight = self._sizes[sites]
        for zone in zones:
            if zone.site not in sites:
                count, weight = count - len(zone.members), weight - zone.weight
        for member in others:
            if self.sites[member] not in sites and self._zone[member] not in zones:
                count, weight = count - 1, weight - self._weights[member]
        return count, weight

    def union(self, zones: frozenset[Domain]) -> frozenset[int]:
        """The members of some zones; the same object for the same zones."""
        if zones not in self._unions:
            self._unions[zones] = NOBODY.union(*(zone.members for zone in zones))
        return self._unions[zones]

    def zone_of(self, member: int) -> Domain | None:
        """The zone of a member, if it is known."""
        return self._zone[member]


class _Search:
    """The wishes that can be met for one copy of one slot."""

    def __init__(self, domains: FailureDomains, order: Sequence[int], sites: Sites) -> None:
        self._domains = domains
        self._sites = sites
        self._zones: frozenset[Domain] = frozenset()
        self._others = frozenset(order)

    def after(self, wishes: Iterable[Wish]) -> Clear:
        """What is to be avoided when all wishes that can be met are met."""
        for holder, domain, firm in wishes:
            if domain is not None and not domain.members <= self._others:
                self._try(domain, self._domains.zone_of(holder), firm=firm)
        return Clear(self._domains.union(self._zones), self._others)

    def _try(self, domain: Domain, zone: Domain | None, *, firm: bool) -> None:
        """Avoid ``domain``, which is or is within ``zone``, unless that leaves nobody, or too few for a soft wish."""
        zones, others = self._zones, self._others
        if zone is not None and zone in zones:
            return  # it is avoided with its zone
        if domain is zone:
            zones = zones | {domain}
        else:
            others = others | domain.members
        count, weight = self._domains.left(self._sites, zones, others)
        if count and (firm or 2 * weight >= domain.weight):
            self._zones, self._others = zones, others
