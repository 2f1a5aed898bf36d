"""Takeovers that belong together because a whole site was lost: they get a trace of their own, above theirs. Pure.

A site counts as lost if it had two active members or more, and each of them is taken over from within
:data:`TOGETHER_NS`. The death of the only member of a site says nothing about the site.
"""

from collections.abc import Mapping, Sequence

import msgspec

from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, trace_seed
from understudy.telemetry.tracing.setup import Attributes
from understudy.xds.tracing.failover_timing import OwnershipChange

TOGETHER_NS = 15_000_000_000
"""Time within which the members of a site must have died."""


class EndedTakeover(msgspec.Struct, frozen=True):
    """The takeover from one member of the site: when its root span ended (ns), and what that says."""

    change: OwnershipChange
    ended: int
    attributes: Attributes


class SiteLoss(msgspec.Struct, frozen=True):
    """A site that was lost, with the takeovers from its members in the order in which these died."""

    site: str
    takeovers: Sequence[EndedTakeover]

    @property
    def ids(self) -> TraceIds:
        """The ids of its trace."""
        return trace_seed(self.takeovers[0].change.pool, names.SITE_LOSS, f"{self.site}/{','.join(self.traces)}")

    @property
    def traces(self) -> list[str]:
        """The trace ids of the takeovers."""
        return [one.change.trace for one in self.takeovers]

    def attributes(self) -> Attributes:
        """What its root span says."""
        unmeasured = any(one.attributes.get(names.UNMEASURED) for one in self.takeovers)
        return {
            names.POOL: self.takeovers[0].change.pool,
            names.KIND: names.SITE_LOSS,
            names.SITE: self.site,
            names.CAUSE: f"site {self.site} lost",
            names.PLANNED: False,
            names.SLOTS: sum(len(one.change.moving) for one in self.takeovers),
            names.FROM: ", ".join(one.change.subject for one in self.takeovers),
            names.TAKEOVERS: ", ".join(self.traces),
            **({names.UNMEASURED: True} if unmeasured else {}),
        }


class _Series(msgspec.Struct):
    """The takeovers from members of one site. ``wanted``: the members that make it a loss of the site."""

    began: int
    wanted: frozenset[str]
    under_way: set[str] = msgspec.field(default_factory=set)
    ended: dict[str, EndedTakeover] = msgspec.field(default_factory=dict)


class SiteLosses:
    """Finds lost sites among the takeovers that a leader records."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def began(self, change: OwnershipChange, sites: Mapping[str, str]) -> None:
        """A takeover has begun. ``sites``: the site ('' for none) of each member that was active before."""
        if not change.site:
            return
        series = self._series.get(change.site)
        if series is None or change.began - series.began > TOGETHER_NS:
            elsewhere = any(site not in ("", change.site) for site in sites.values())
            wanted = {member for member, site in sites.items() if site == change.site and elsewhere}
            series = self._series[change.site] = _Series(change.began, frozenset(wanted | {change.subject}))
        series.under_way.add(change.trace)

    def ended(self, takeover: EndedTakeover) -> SiteLoss | None:
        """A takeover has ended; returns the loss of its site if it was the last one of that."""
        site, trace = takeover.change.site, takeover.change.trace
        series = self._series.get(site)
        if series is None or trace not in series.under_way:
            return None
        series.under_way.remove(trace)
        series.ended[trace] = takeover
        left = series.wanted - {one.change.subject for one in series.ended.values()}
        if series.under_way or left or len(series.wanted) < 2:
            return None
        del self._series[site]
        return SiteLoss(site, sorted(series.ended.values(), key=lambda one: (one.change.began, one.change.subject)))
