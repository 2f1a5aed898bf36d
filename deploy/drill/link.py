"""The link between two sites as the target of a drill: its name, its directions, and who lost slots. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from understudy.deploy.common.errors import NegativeAnswer
from understudy.statesync.pool.records import FailoverRecord
from understudy.statesync.pool.state import PoolState

ONE_WAY = "one-way"


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two sites. ``name`` has both, with a comma between them, as ``--link`` has.

    ``both``: what the second site sends to the first is cut too.
    """

    name: str
    both: bool = True

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """Each direction that is cut, as (from, to)."""
        source, _, target = self.name.partition(",")
        there = (source, target)
        return (there, there[::-1]) if self.both else (there,)


def link_of(state: PoolState, wanted: Sequence[str], number: int) -> str:
    """The name of the wanted link, or of each pair of sites in turn. ``number`` counts drills from 0.

    Raises:
        NegativeAnswer: one of the sites has no member, or there are no two sites.
    """
    sites = sorted({at.record.site for at in state.members.values()} - {""})
    for site in wanted:
        if site not in sites:
            known = f"its sites are {', '.join(sites)}" if sites else "its members have no --site"
            raise NegativeAnswer(f"pool {state.keys.pool} has no member on site {site!r}; {known}")
    if len(sites) < 2:
        raise NegativeAnswer(f"pool {state.keys.pool} has no two sites: start members with another --site")
    pairs = list(combinations(sites, 2))
    return ",".join(wanted or pairs[number % len(pairs)])


def taken(state: PoolState, before: PoolState) -> Mapping[str, int]:
    """How many slots each member lost to another by a takeover, since ``before``."""
    known = {at.record.trace for at in before.failovers.values()}
    counted: Counter[str] = Counter()
    for record in _takeovers(state, known):
        counted[record.source] += len(record.slots)
    return dict(counted)


def _takeovers(state: PoolState, known: set[str]) -> list[FailoverRecord]:
    records = (at.record for at in state.failovers.values())
    return [record for record in records if record.trace not in known and not record.planned]


def by_site(counted: Mapping[str, int], state: PoolState) -> dict[str, int]:
    """The figures of members added up by their sites."""
    sites: Counter[str] = Counter()
    for member, count in counted.items():
        at = state.members.get(member)
        sites[at.record.site if at else ""] += count
    return dict(sorted(sites.items()))
