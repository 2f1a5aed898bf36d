"""The grade of a site: 0 to 100, how much of what the site should have can serve. Pure.

It is the weight of the members that can serve, in percent of the weight of all members that the site should have. It is
0 while something that the site needs (``needs`` in the spec) is down. Control servers and ``site status`` use the same
function. What follows from grades is decided in :mod:`understudy.xds.planning.site_switch`.
"""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from understudy.statesync.pool.spec import PoolSpec


class SiteMember(msgspec.Struct, frozen=True):
    """A member as its site's grade counts it; ``weight`` is its own, and the spec may have another one."""

    member: str
    site: str
    weight: int
    able: bool


class Grade(msgspec.Struct, frozen=True):
    """The grade of a site, and what it comes from.

    Attributes:
        value: 0 to 100.
        able: how many members can serve.
        expected: how many members the site should have.
        missing: the registered members that cannot serve.
        down: what the site needs and does not have.
    """

    value: int
    able: int
    expected: int
    missing: tuple[str, ...] = ()
    down: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """The grade as text, such as ``66 of 100: 2 of 3 members can serve``."""
        away = f" (not {', '.join(self.missing)})" if self.missing else ""
        lacking = f"; {', '.join(self.down)} is down" if self.down else ""
        return f"{self.value} of 100: {self.able} of {self.expected} members can serve{away}{lacking}"


def grades(spec: PoolSpec, members: Iterable[SiteMember], lacking: Mapping[str, Collection[str]]) -> dict[str, Grade]:
    """The grade of each site that has members or that the spec names.

    Args:
        spec: the pool.
        members: all registered members.
        lacking: the dependencies that are down, by site. Those that the spec does not name do not count.
    """
    there: dict[str, list[SiteMember]] = {site: [] for site in spec.sites}
    for member in members:
        there.setdefault(member.site, []).append(member)
    return {site: _grade(spec, site, found, lacking.get(site, ())) for site, found in sorted(there.items())}


def _grade(spec: PoolSpec, site: str, members: Collection[SiteMember], lacking: Collection[str]) -> Grade:
    wanted = spec.sites.get(site)
    down = tuple(name for name in wanted.needs if name in lacking) if wanted else ()
    expected = max(len(members), (wanted.members or 0) if wanted else 0)
    missing = tuple(sorted(one.member for one in members if not one.able))
    able = len(members) - len(missing)
    return Grade(0 if down else _percent(spec, members, expected), able, expected, missing, down)


def _percent(spec: PoolSpec, members: Collection[SiteMember], expected: int) -> int:
    """The weight that can serve, of that of ``expected`` members; one that is not registered weighs as others do."""
    total = sum(_weight(spec, one) for one in members)
    able = sum(_weight(spec, one) for one in members if one.able)
    return 100 * able * len(members) // (total * expected) if members else 0


def _weight(spec: PoolSpec, member: SiteMember) -> int:
    override = spec.members.get(member.member)
    return member.weight if override is None or override.weight is None else override.weight
