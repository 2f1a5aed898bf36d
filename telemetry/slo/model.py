"""What an SLO review speaks of: one change of active as a record, what it is held against, and what came out.

Frozen data and nothing else. Records are made from spans by :mod:`understudy.telemetry.slo.failovers`, judged by
:mod:`understudy.telemetry.slo.judgement`, and drawn by others. A figure for which nobody recorded anything is ``no
data``, never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
MOST_PICTURED = 5
"""The worst failovers of a review that are shown one by one."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One span of a record, for its picture: who, which phase, ms after the record's start, ms of length."""

    who: str
    name: str
    start_ms: float
    ms: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Through:
    """What front Envoys told of a change of active: requests that met it.

    ``failed`` were answered with 5xx or cut short, ``retried`` answered well by another try. ``total`` is how many
    requests of the pool ended in the counting periods that touch the change, ``uncounted`` those of them in no period
    of an earlier change, ``rate`` how many there were a second; None where the Envoys did not count all of its time.
    """

    failed: int
    retried: int
    total: int | None = None
    uncounted: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """All requests that front Envoys counted in a window; ``requests`` None: none of them counted.

    ``since_ns`` is the first count, ``covered`` the share of the window in which any Envoy counted. ``unreported``
    failed ones were counted but not told one by one: whether they met a change of active is not known.
    """

    requests: int | None = None
    nodes: int = 0
    since_ns: int = 0
    covered: float = 0.0
    unreported: int = 0


@dataclass(frozen=True, slots=True)
class Failover:
    """One change of active, told by its trace. None: not recorded. Lengths in ms, ``began_ns`` since 1970.

    ``total_ms`` is None when nobody saw the end. ``costs`` shares the total out over the phases; its values add
    up to it. ``stalls_ms`` are, per slot of a planned move, how long the slot could not be written. ``propagation_ms``
    is from the cause known until the last Envoy acknowledged. ``requests``, ``failed``, ``gap_ms``, ``lost_writes`` (of
    sync writes) and ``needless_moves`` were seen by clients (of a drill), ``through`` by the front Envoys. ``losers``
    and ``winners`` are the members that slots left and came to.

    ``lost_async`` are async writes that were answered and are gone, by clients or by an old active that lived on to
    tell; ``fenced`` writes of its that were refused, and repeated elsewhere. ``second_writes`` are sessions found in
    the ``audited`` slots that a former owner wrote too late. ``exposed_ms`` is how long some slot had fewer than two
    current copies; ``protected`` tells whether that ended. ``returned`` tells whether the member that was taken for
    dead was heard again as the same process, and ``could_not_serve`` why it was rightly taken over from all the same.
    ``stop_or_start``: it has no measured end, and every member that took slots over was going down itself or had never
    met the process it replaced: the pool was stopped or started.
    """

    trace: str
    pool: str
    planned: bool
    began_ns: int
    total_ms: float | None
    cause: str = ""
    source: str = ""
    to: str = ""
    slots: int = 0
    drill: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)
    stalls_ms: tuple[float, ...] = ()
    propagation_ms: float | None = None
    requests: int | None = None
    failed: int | None = None
    gap_ms: float | None = None
    lost_writes: int | None = None
    lost_async: int | None = None
    fenced: int = 0
    second_writes: int | None = None
    audited: int = 0
    needless_moves: int | None = None
    exposed_ms: float | None = None
    protected: bool = True
    returned: bool | None = None
    could_not_serve: str = ""
    stop_or_start: bool = False
    losers: frozenset[str] = frozenset()
    winners: frozenset[str] = frozenset()
    through: Through | None = None
    bars: tuple[Bar, ...] = ()

    @property
    def dearest(self) -> str:
        """The phase that cost most; empty when nothing is known of phases."""
        return max(self.costs, key=lambda name: self.costs[name], default="")


@dataclass(frozen=True, slots=True)
class Targets:
    """What a review holds the figures against: the pool spec's objectives. Seconds, shares of 1, and counts.

    Times are 99th percentiles. None: not judged.
    """

    rto: float = 1.0
    planned_stall: float = 0.5
    propagation: float = 1.0
    re_protection: float = 30.0
    failed_requests: float = 0.001
    unavailability: float = 0.0001
    exposure: float = 0.01
    unmeasured: float = 0.05
    rpo_sync_writes: int = 0
    rpo_async_writes: int | None = None
    needless_moves: int = 0
    false_failovers: int = 0
    two_writers: int = 0


class State(StrEnum):
    """What can be said of an objective."""

    MET = "met"
    MISSED = "missed"
    NOT_SHOWN = "not yet shown"
    NO_DATA = "no data"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Burn:
    """How fast the budget went in a long and a short window, against the rate that calls for somebody.

    1 is the rate that uses up the budget just at the end of its window. Windows and rates are those of the Google SRE
    workbook, chapter 5, table 5-8.
    """

    long: str
    short: str
    limit: float
    long_rate: float
    short_rate: float
    severity: str

    @property
    def firing(self) -> bool:
        """Whether both windows are over the limit: it burns fast, and it still does."""
        return self.long_rate >= self.limit and self.short_rate >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One objective and how it stands.

    ``value`` and ``target`` are in ``unit`` (``s``, ``%`` or empty for a count). ``good`` of ``total`` events were
    within the objective. ``budget_left`` is a share of 1, below 0 when overdrawn, and None where there is no budget.
    ``drills`` is how many more good failovers would show what is not yet shown. ``advice`` says what to do, ``basis``
    what the figure was made from, where that differs from pool to pool.
    """

    key: str
    title: str
    state: State
    value: float | None
    target: float | None
    unit: str
    good: int = 0
    total: int = 0
    attainment: float | None = None
    budget_left: float | None = None
    burns: tuple[Burn, ...] = ()
    drills: int = 0
    advice: str = ""
    basis: str = ""

    @property
    def shown(self) -> str:
        """The value in words."""
        return _quantity(self.value, self.unit)

    @property
    def wanted(self) -> str:
        """The objective in words."""
        return _quantity(self.target, self.unit)


@dataclass(frozen=True, slots=True)
class Review:
    """The whole: what was looked at, every figure, and the failovers, oldest first. Times in ns since 1970.

    ``left_out`` is how many changes belong to stops and starts of the pool, which are in no figure.
    """

    pool: str
    start_ns: int
    end_ns: int
    figures: tuple[Figure, ...]
    failovers: tuple[Failover, ...]
    targets: Targets
    slots: int
    traffic: Traffic = field(default_factory=Traffic)
    left_out: int = 0

    @property
    def state(self) -> State:
        """The verdict: missed if anything is, met if everything judged is, else not yet shown."""
        states = {figure.state for figure in self.figures} - {State.NOT_JUDGED}
        if State.MISSED in states:
            return State.MISSED
        return State.MET if states == {State.MET} else State.NOT_SHOWN

    @property
    def crashes(self) -> tuple[Failover, ...]:
        """The unplanned changes that moved slots and were measured."""
        return tuple(one for one in self.failovers if is_crash(one) and one.total_ms is not None)

    @property
    def worst(self) -> tuple[Failover, ...]:
        """Measured crashes, the longest first."""
        return tuple(sorted(self.crashes, key=lambda one: -(one.total_ms or 0.0)))

    @property
    def costliest(self) -> tuple[Failover, ...]:
        """The changes, planned ones as well, in which requests failed by front Envoys' word; the most first."""
        hurt = [one for one in self.failovers if one.through is not None and one.through.failed]
        return tuple(sorted(hurt, key=lambda one: -one.through.failed if one.through else 0))


def is_crash(failover: Failover) -> bool:
    """Whether it is an unplanned change that moved slots (a drill of a control server moves none)."""
    return not failover.planned and failover.slots > 0


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "%":
        # Never as 1e-05: that is for machines. Four digits that matter, as far as seven places go.
        percent = value * 100
        return f"{percent:.4g} %" if percent >= 0.001 or not percent else f"{percent:.7f}".rstrip("0") + " %"
    return f"{value:.0f}"
