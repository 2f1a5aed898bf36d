"""Judges the failovers of a window against objectives: budget, burn rates, evidence and advice. Pure.

An objective over a percentile is met only if enough failovers prove it. Let ``k`` of ``n`` failovers be beyond the
target. The objective is proved at confidence ``c`` if so few would be unlikely (1 - c) with a true share of ``1 - p``
beyond the target. With k = 0 that means n >= ln(1-c) / ln(p): 299 failovers for p99 at 95 %. Drills count as evidence
of lengths. Counts, above all those of correctness, are judged in :mod:`understudy.telemetry.slo.counted`. The
objectives are ``Targets`` in :mod:`understudy.telemetry.slo.model`. :data:`BURNS` are the windows of the Google SRE
workbook, table 5-8.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from understudy.telemetry.slo.counted import false, lost_async, lost_replicas, lost_sync, needless, two_writers
from understudy.telemetry.slo.model import (
    DAY_NS,
    HOUR_NS,
    Burn,
    Failover,
    Figure,
    Review,
    State,
    Targets,
    Traffic,
    is_crash,
)
from understudy.telemetry.tracing import names

CONFIDENCE = 0.95
PERCENTILE = 0.99
_MINUTE_NS = HOUR_NS // 60
BURNS = (
    ("1 h", HOUR_NS, "5 min", 5 * _MINUTE_NS, 14.4, "page"),
    ("6 h", 6 * HOUR_NS, "30 min", 30 * _MINUTE_NS, 6.0, "page"),
    ("3 d", 3 * DAY_NS, "6 h", 6 * HOUR_NS, 1.0, "ticket"),
)
"""Long window, short window, burn rate that alerts, and kind of alert."""
_MOST_DRILLS = 100_000


def review(
    failovers: Sequence[Failover],
    targets: Targets,
    *,
    pool: str,
    start_ns: int,
    end_ns: int,
    slots: int,
    traffic: Traffic | None = None,
) -> Review:
    """Judge the failovers that began in ``[start_ns, end_ns)``; ``slots`` is the number of slots in the pool.

    ``traffic`` is what front Envoys counted in that time (:func:`understudy.telemetry.slo.requests.with_requests`).
    """
    traffic = traffic or Traffic()
    within = [one for one in failovers if start_ns <= one.began_ns < end_ns]
    held = tuple(sorted((one for one in within if not one.stop_or_start), key=lambda one: (one.began_ns, one.trace)))
    crashes = [one for one in held if is_crash(one)]
    figures: tuple[Figure, ...] = (
        lost_sync(held, targets),
        lost_replicas(within, targets),
        lost_async(held, targets),
        two_writers(crashes, targets),
        _percentile("rto", "crash RTO", targets.rto, crashes, lambda one: _one(one.total_ms), end_ns),
        _percentile("planned_stall", "planned stall", targets.planned_stall, held, lambda one: one.stalls_ms, end_ns),
        _requests(held, targets, traffic, end_ns),
        _unavailability(crashes, targets, traffic, (start_ns, end_ns), slots),
        needless(held, targets),
        false(crashes, targets),
        _percentile(
            "re_protection",
            "re-protection time",
            targets.re_protection,
            crashes,
            lambda one: _one(one.exposed_ms),
            end_ns,
        ),
        _exposure(held, targets, start_ns, end_ns),
        _percentile(
            "propagation", "propagation", targets.propagation, held, lambda one: _one(one.propagation_ms), end_ns
        ),
        _unmeasured(held, targets, end_ns),
    )
    if not held and traffic.requests is None:
        figures = tuple(_unseen(figure) if figure.state is State.MET else figure for figure in figures)
    return Review(pool, start_ns, end_ns, figures, held, targets, slots, traffic, len(within) - len(held))


def _unseen(figure: Figure) -> Figure:
    """A figure that is zero because nothing is known of the window. That does not prove that nothing happened."""
    advice = "no change of active is known, and no front Envoy told that it was there: was anything recorded at all?"
    return replace(figure, state=State.NO_DATA, value=None, attainment=None, budget_left=None, burns=(), advice=advice)


def needed(beyond: int = 0, *, percentile: float = PERCENTILE, confidence: float = CONFIDENCE) -> int:
    """The number of failovers that prove a percentile when ``beyond`` of them were past the target.

    It is the smallest n for which a binomial with share ``1 - percentile`` has at most ``1 - confidence`` chance of so
    few.
    """
    low, high = beyond + 1, beyond + 2
    while not _shown(high, beyond, percentile, confidence):
        low, high = high, min(2 * high, _MOST_DRILLS)
        if high == _MOST_DRILLS:
            return high
    while low < high:
        middle = (low + high) // 2
        if _shown(middle, beyond, percentile, confidence):
            high = middle
        else:
            low = middle + 1
    return low


def quantile(values: Sequence[float], share: float = PERCENTILE) -> float | None:
    """The smallest value such that at least ``share`` of the values are not above it; None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def burns_of(events: Sequence[tuple[int, float, float]], allowed: float, end_ns: int) -> tuple[Burn, ...]:
    """Burn rates at ``end_ns``. An event is (when in ns, bad, total); ``allowed`` is the share that may be bad."""

    def rate(length: int) -> float:
        recent = [(bad, total) for at, bad, total in events if end_ns - length <= at <= end_ns]
        total = sum(part for _, part in recent)
        return sum(bad for bad, _ in recent) / total / allowed if total and allowed else 0.0

    return tuple(
        Burn(long, short, limit, rate(long_ns), rate(short_ns), severity)
        for long, long_ns, short, short_ns, limit, severity in BURNS
    )


def _shown(n: int, beyond: int, percentile: float, confidence: float) -> bool:
    miss = 1 - percentile
    term = n * math.log(percentile)
    total = math.exp(term)
    for k in range(1, beyond + 1):
        term += math.log((n - k + 1) / k) + math.log(miss / percentile)
        total += math.exp(term)
    return total <= 1 - confidence


def _percentile(
    key: str,
    title: str,
    target: float,
    failovers: Sequence[Failover],
    lengths: Callable[[Failover], Sequence[float]],
    end_ns: int,
) -> Figure:
    """An objective on the 99th percentile of lengths (target in s, lengths in ms).

    A change with many lengths, one per slot, counts as one piece of evidence. Its slots moved at the same time on the
    same machines, so a hundred of them prove no more than one.
    """
    events = [(one.began_ns, ms) for one in failovers for ms in lengths(one)]
    total = len(events)
    bad = sum(ms > target * 1000 for _, ms in events)
    if not total:
        advice = f"nothing of the kind was recorded; understudy drill shows it ({needed()} of them show the p99)"
        return Figure(key, title, State.NO_DATA, None, target, "s", drills=needed(), advice=advice)
    value = (quantile([ms for _, ms in events]) or 0.0) / 1000
    allowed = 1 - PERCENTILE
    evidence = [lengths(one) for one in failovers if lengths(one)]
    past = sum(max(one) > target * 1000 for one in evidence)
    wanted = needed(past)
    if bad / total > allowed + 1e-12:
        worst = max(failovers, key=lambda one: max(lengths(one), default=0.0))
        cost = (
            f"; most of it went to {worst.dearest}: {_ADVICE.get(worst.dearest, _OTHERWISE)}" if worst.dearest else ""
        )
        state, advice, drills = State.MISSED, f"worst in trace {worst.trace[:12]}{cost}", 0
    elif len(evidence) < wanted:
        drills = wanted - len(evidence)
        state = State.NOT_SHOWN
        advice = f"{past} of {len(evidence)} beyond it; {drills} more within it would show the p99 at 95 %"
    else:
        state, advice, drills = State.MET, "", 0
    return Figure(
        *(key, title, state, value, target, "s"),
        good=total - bad,
        total=total,
        attainment=1 - bad / total,
        budget_left=1 - bad / (allowed * total),
        burns=burns_of([(at, float(ms > target * 1000), 1.0) for at, ms in events], allowed, end_ns),
        drills=drills,
        advice=advice,
    )


_OTHERWISE = "look at it with understudy trace"
_ADVICE = {
    "detect": "the death was found late; was the member frozen rather than closed, or the control server busy?",
    "decide": "the control server or etcd was slow to agree on a table; check etcd's disk and its leader",
    "claim": "claims are etcd transactions; check etcd's commit latency and the network to it",
    "catch_up": "the new active was behind; check understudy status --sync before a failure",
    "push": "the routes were sent late; check the control server's load and its number of Envoys",
    "ack": "an Envoy was slow to acknowledge; understudy status --xds names it",
    "between phases": "nobody recorded what took the time; do all processes send their spans?",
    "first_ok": "the new active was ready but slow to answer; check its load and its application's",
    "move": "slots are handed over in groups of up to eight; check the members' load and etcd's commit latency",
    "flush": "calls that were under way held the slot; what do they wait for?",
    "fence": "owner records were slow to change; check etcd's commit latency",
    "confirm": "the new owner was slow to confirm; check its load and understudy status --sync",
}


def _one(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _share(
    key: str,
    title: str,
    bad: float,
    total: float,
    allowed: float,
    events: Sequence[tuple[int, float, float]],
    end_ns: int,
) -> Figure:
    """An objective on the share of events that may be bad. All events are counted, so it is either met or missed."""
    value = bad / total
    left = 1 - value / allowed if allowed else (1.0 if not bad else -math.inf)
    return Figure(
        *(key, title, State.MET if value <= allowed else State.MISSED, value, allowed, "%"),
        good=round(total - bad),
        total=round(total),
        attainment=1 - value,
        budget_left=left if math.isfinite(left) else None,
        burns=burns_of(events, allowed, end_ns) if allowed else (),
    )


def _with(figure: Figure, advice: str) -> Figure:
    """The figure with advice, if its objective is missed."""
    return replace(figure, advice=advice) if figure.state is State.MISSED else figure


def _requests(held: Sequence[Failover], targets: Targets, traffic: Traffic, end_ns: int) -> Figure:
    """The failed share of requests during changes, counted by front Envoys or else by the clients of a drill."""
    key, title = "failed_requests", "failed requests"
    events, unknown, basis = _counted(held, traffic)
    total = sum(event[2] for event in events)
    if not total:
        advice = (
            "no front Envoy counted requests while the active changed, and no client told what it saw; "
            "understudy envoy counts, understudy drill counts its own"
        )
        return Figure(key, title, State.NO_DATA, None, targets.failed_requests, "%", advice=advice, basis=basis)
    bad = sum(event[1] for event in events)
    figure = replace(_share(key, title, bad, total, targets.failed_requests, events, end_ns), basis=basis)
    if figure.state is State.MISSED:
        return replace(figure, advice=f"{bad:.0f} failed: see the worst changes below; are retries on for what may be?")
    missing = []
    if unknown:
        missing.append(f"the requests of {unknown} changes were not counted by every Envoy that was there")
    if traffic.unreported:
        missing.append(f"{traffic.unreported} failed requests were counted but not reported, so their cause is unknown")
    if not missing:
        return figure
    state = State.NOT_SHOWN if unknown else figure.state
    return replace(figure, state=state, advice="; ".join(missing))


def _counted(held: Sequence[Failover], traffic: Traffic) -> tuple[list[tuple[int, float, float]], int, str]:
    """Failed requests and all requests of each change; how many changes were not counted; who counted how many."""
    events: list[tuple[int, float, float]] = []
    unknown, by_envoys, by_clients, stopped = 0, 0, 0, 0
    for one in held:
        through = one.through
        if one.drill in names.DRILLS_THAT_STOP_SERVICE:
            stopped += 1
        elif through is not None and through.uncounted is not None:
            events.append((one.began_ns, float(through.failed), float(max(through.uncounted, through.failed))))
            by_envoys += 1
        elif one.requests:
            events.append((one.began_ns, float(one.failed or 0), float(one.requests)))
            by_clients += 1
        elif one.slots and ((traffic.since_ns and one.began_ns >= traffic.since_ns) or through is not None):
            unknown += 1
    basis = _listed(
        (by_envoys, "by front Envoys"),
        (by_clients, "by clients of drills"),
        (unknown, "not counted"),
        (stopped, "left out: drills that stop the whole pool"),
    )
    return events, unknown, basis


def _listed(*parts: tuple[int, str]) -> str:
    """The counts with their names, without those that are zero."""
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _unavailability(
    crashes: Sequence[Failover], targets: Targets, traffic: Traffic, window: tuple[int, int], slots: int
) -> Figure:
    """The share of requests that met a takeover: its length, its share of slots and the traffic then, multiplied.

    The traffic is the rate of requests around each takeover, if front Envoys counted around all of them. Otherwise only
    time counts, as if requests were spread evenly over it. In both cases sessions are spread evenly over slots.
    """
    key, title = "unavailability", "failover unavailability"
    endless = sum(one.total_ms is None for one in crashes)
    advice = f"the end of {endless} takeovers was not seen, so how long their slots were out is not known"
    if endless and endless == len(crashes):
        return Figure(key, title, State.NO_DATA, None, targets.unavailability, "%", advice=advice)
    costs, weighted = outages(crashes, traffic, window, slots)
    length_ms = max(window[1] - window[0], 1) / 1e6
    share = sum(costs) / length_ms
    left = 1 - share / targets.unavailability if targets.unavailability else None
    figure = Figure(
        *(key, title, State.MET if share <= targets.unavailability else State.MISSED),
        *(share, targets.unavailability, "%"),
        total=len(crashes),
        attainment=1 - share,
        budget_left=left,
        burns=_time_burns(
            [(one.began_ns, cost) for one, cost in zip(crashes, costs, strict=True)], targets.unavailability, window[1]
        ),
        basis="weighted by requests" if weighted else "by time: requests were not counted" if crashes else "",
    )
    if endless and figure.state is State.MET:
        return replace(figure, state=State.NOT_SHOWN, advice=advice)
    return _with(figure, "fewer or shorter takeovers: see the worst failovers")


def outages(
    crashes: Sequence[Failover], traffic: Traffic, window: tuple[int, int], slots: int
) -> tuple[list[float], bool]:
    """The cost of each takeover, in ms of the whole pool at mean traffic, and whether traffic was counted for it."""
    rates = [one.through.rate for one in crashes if one.through is not None and one.through.rate is not None]
    weighted = bool(traffic.requests) and bool(crashes) and len(rates) == len(crashes)
    # A mean over the time in which any Envoy counted. Other times are assumed to be as busy.
    seconds = max(traffic.covered, 1e-12) * max(window[1] - window[0], 1) / 1e9
    mean = (traffic.requests or 0) / seconds
    weights = [rate / mean for rate in rates] if weighted else [1.0] * len(crashes)
    costs = [
        (one.total_ms or 0.0) * min(1.0, one.slots / max(slots, 1)) * weight
        for one, weight in zip(crashes, weights, strict=True)
    ]
    return costs, weighted


def _time_burns(lost: Sequence[tuple[int, float]], allowed: float, end_ns: int) -> tuple[Burn, ...]:
    """Burn rates of a budget of time: the loss of each moment in ms, divided by the length of the window."""
    if not allowed:
        return ()

    def rate(length: int) -> float:
        return sum(ms for at, ms in lost if end_ns - length <= at <= end_ns) / (length / 1e6) / allowed

    return tuple(
        Burn(long, short, limit, rate(long_ns), rate(short_ns), severity)
        for long, long_ns, short, short_ns, limit, severity in BURNS
    )


def _exposure(held: Sequence[Failover], targets: Targets, start_ns: int, end_ns: int) -> Figure:
    """The share of the window in which some slot had fewer than two current copies; overlaps count once."""
    key, title = "exposure", "exposure"
    told = [one for one in held if one.exposed_ms is not None]
    blind = sum(one.exposed_ms is None and is_crash(one) for one in held)
    if blind and not told:
        advice = "for no takeover anybody told when every slot had two copies again"
        return Figure(key, title, State.NO_DATA, None, targets.exposure, "%", advice=advice)
    exposed, until = 0, start_ns
    for one in told:
        end = min(one.began_ns + round((one.exposed_ms or 0.0) * 1e6), end_ns)
        exposed += max(0, end - max(one.began_ns, until))
        until = max(until, end)
    share = exposed / max(end_ns - start_ns, 1)
    lost = [(one.began_ns, one.exposed_ms or 0.0) for one in told]
    figure = Figure(
        *(key, title, State.MET if share <= targets.exposure else State.MISSED),
        *(share, targets.exposure, "%"),
        total=len(told),
        attainment=1 - share,
        budget_left=1 - share / targets.exposure if targets.exposure else None,
        burns=_time_burns(lost, targets.exposure, end_ns),
    )
    if blind and figure.state is State.MET:
        advice = f"for {blind} takeovers nobody told when every slot had two copies again"
        return replace(figure, state=State.NOT_SHOWN, advice=advice)
    return _with(figure, "too few members to keep two copies while one is gone: add one, or bring them back sooner")


def _unmeasured(held: Sequence[Failover], targets: Targets, end_ns: int) -> Figure:
    key, title = "unmeasured", "unmeasured share"
    if not held:
        return Figure(key, title, State.NO_DATA, None, targets.unmeasured, "%", advice="no change of active at all")
    events = [(one.began_ns, float(one.total_ms is None), 1.0) for one in held]
    bad = sum(event[1] for event in events)
    figure = _share(key, title, bad, len(held), targets.unmeasured, events, end_ns)
    return _with(figure, "traces without an end: was the leading control server stopped, or a spans' receiver away?")
