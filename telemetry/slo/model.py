"""The data of an SLO review: one change of active as a record, the objectives, and the results.

Frozen data only. :mod:`understudy.telemetry.slo.failovers` makes records from spans, and
:mod:`understudy.telemetry.slo.judgement` judges them. Other modules draw them. A figure for which nothing was recorded
is ``no data``, never zero.
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
    """One span of a record, for its picture: process, phase, ms after the record's start, length in ms."""

    who: str
    name: str
    start_ms: float
    ms: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Through:
    """The requests that a change of active met, as front Envoys reported and counted them.

    ``failed`` were answered with 5xx or cut off. ``retried`` were answered successfully by a second try. ``total`` is
    how many requests of the pool ended in the counting periods that overlap the change. ``uncounted`` is how many of
    those are in no period of an earlier change. ``rate`` is how many there were per second. The last three are None if
    the Envoys did not count all of its time.
    """

    failed: int
    retried: int
    total: int | None = None
    uncounted: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """All requests that front Envoys counted in a window; ``requests`` is None if none of them counted.

    ``since_ns`` is the first count, ``covered`` the share of the window in which any Envoy counted. ``unreported`` are
    failed requests that were counted but not reported one by one, so it is not known whether they met a change of
    active.
    """

    requests: int | None = None
    nodes: int = 0
    since_ns: int = 0
    covered: float = 0.0
    unreported: int = 0


@dataclass(frozen=True, slots=True)
class Failover:
    """One change of active, as its trace describes it. None: not recorded. Lengths in ms, ``began_ns`` since 1970.

    ``total_ms`` is None if the end was not recorded. ``costs`` divides the total among the phases; its values add up to
    it. ``stalls_ms`` has, for each slot of a planned move, how long the slot could not be written. ``propagation_ms``
    is the time from the known cause until the last Envoy acknowledged. Clients of a drill counted ``requests``,
    ``failed``, ``gap_ms``, ``lost_writes`` (of sync writes) and ``needless_moves``; ``missed`` names the objectives
    that it missed, and ``command`` repeats it. Front Envoys counted ``through``. ``losers`` and ``winners`` are the
    members that lost and won slots.

    ``lost_async`` are async writes that were answered and then lost, as counted by clients or by an old active that
    still ran. ``lost_replicas`` are writes of class ``replicas``, as counted by clients. ``losses`` are slots that were
    claimed although acknowledged ``replicas`` writes may have been missing, as all new actives told; None if one has
    not told. Such writes were not older than ``loss_seconds`` (0: no loss). ``fenced`` are
    writes of the old active that were refused, and repeated elsewhere. ``second_writes`` are sessions in the
    ``audited`` slots that a former owner wrote too late. ``exposed_ms`` is how long some slot had fewer
    than two current copies; ``protected`` says whether that ended. ``returned`` says whether the member that was
    considered dead was heard again as the same process, and ``could_not_serve`` why the takeover was right
    nevertheless. ``stop_or_start``: the pool was stopped or started. That is assumed if there is no measured end, and
    every member that took slots over was going down itself or had never met the process it replaced.
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
    lost_replicas: int | None = None
    losses: int | None = None
    loss_seconds: float = 0.0
    fenced: int = 0
    second_writes: int | None = None
    audited: int = 0
    needless_moves: int | None = None
    missed: str = ""
    command: str = ""
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
        """The phase that took longest; empty if no phases are known."""
        return max(self.costs, key=lambda name: self.costs[name], default="")


@dataclass(frozen=True, slots=True)
class Targets:
    """The objectives of the pool's spec, against which a review judges. Seconds, shares of 1, and counts.

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
    rpo_replica_writes: int = 0
    rpo_async_writes: int | None = None
    needless_moves: int = 0
    false_failovers: int = 0
    two_writers: int = 0


class State(StrEnum):
    """The result for an objective."""

    MET = "met"
    MISSED = "missed"
    NOT_SHOWN = "not yet shown"
    NO_DATA = "no data"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Burn:
    """How fast the budget was spent in a long and a short window, and the rate that alerts.

    A rate of 1 spends the budget exactly by the end of its window. Windows and rates are those of the Google SRE
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
        """Whether both windows are above the limit: the budget is spent fast, and still is."""
        return self.long_rate >= self.limit and self.short_rate >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One objective and its result.

    ``value`` and ``target`` are in ``unit`` (``s``, ``%`` or empty for a count). ``good`` of ``total`` events were
    within the objective. ``budget_left`` is a share of 1, below 0 if more was spent, and None if there is no budget.
    ``drills`` is how many more good failovers would prove what is not proved yet. ``advice`` says what to do. ``basis``
    says from what the figure was made, where that differs from pool to pool.
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
    """A whole review: its window, every figure, and the failovers, oldest first. Times in ns since 1970.

    ``left_out`` is the number of changes that belong to stops and starts of the pool. They are in no figure
    but that of lost ``replicas`` writes.
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
        """The verdict: missed if any figure is missed, met if all judged figures are met, otherwise not yet shown."""
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
        """The changes, also planned ones, in which requests failed according to front Envoys; most failures first."""
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
        # Never as 1e-05, which people do not read. Four significant digits, at most seven decimal places.
        percent = value * 100
        return f"{percent:.4g} %" if percent >= 0.001 or not percent else f"{percent:.7f}".rstrip("0") + " %"
    return f"{value:.0f}"
