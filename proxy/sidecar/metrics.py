"""A sidecar's metrics for Prometheus: calls and their outcome, commits, copies, ownership.

Labels have few values that never change: slots, sessions and members are never labels. Calls and commits are counted
as they happen; what the parts count themselves is read when Prometheus asks. Each sidecar has its own registry, so that
several fit into one process.
"""

import json
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.proxy.http.problems import PROBLEM_TYPE, TITLES, Reply
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.pool_quotas import BYTES, SESSIONS, WRITES
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.pool.priority import PRIORITIES
from understudy.statesync.pool.records import MemberState

_PREFIX = "understudy_"
QUOTA_LIMITS = {"sessions": SESSIONS, "bytes": BYTES, "writes": WRITES}
_METHODS = frozenset({"GET", "PUT", "PATCH", "DELETE", "POST"})
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCH = (1, 2, 5, 10, 20, 50, 100)


class SidecarMetrics:
    """The metrics of one sidecar. What its parts count is added by :class:`PartsCollector`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            f"{_PREFIX}session_calls",
            "Session calls answered: by whom they came (application, peer), method, and 'ok' or the problem's type.",
            labelnames=("via", "method", "result"),
            registry=self.registry,
        )
        self._answers: dict[tuple[str, str, str], Counter] = {}
        self._batch = Histogram(
            f"{_PREFIX}commit_batch_writes",
            "Writes per committed transaction.",
            buckets=_BATCH,
            registry=self.registry,
        )
        self._commit = Histogram(
            f"{_PREFIX}commit_seconds",
            "From sending a transaction of session writes until its outcome is known, repeats included.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def answered(self, call: Call, reply: Reply) -> None:
        """A session call was answered."""
        method = call.method if call.method in _METHODS else "other"
        labels = ("peer" if call.hop else "application", method, result_of(reply))
        counter = self._answers.get(labels)
        if counter is None:  # ``labels()`` takes as long as the rest of this method
            counter = self._answers[labels] = self._calls.labels(*labels)
        counter.inc()

    def committed(self, writes: int, seconds: float) -> None:
        """A batch was committed."""
        self._batch.observe(writes)
        self._commit.observe(seconds)


def result_of(reply: Reply) -> str:
    """``ok``, or the type of the problem that the answer tells; ``other`` if it tells none that is known."""
    if reply.status < 400:
        return "ok"
    if reply.headers.get("Content-Type") != PROBLEM_TYPE:
        return "other"
    try:
        kind = str(json.loads(reply.body)["type"]).rpartition("/")[2]
    except (ValueError, KeyError, TypeError):
        return "other"
    return kind if kind in TITLES else "other"


class PartsCollector(Collector):
    """What the parts know, read when Prometheus asks."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        """The member as it is now."""
        yield from self._counters()
        yield from self._gauges()
        yield from self._replication()
        yield from self._load()
        yield from self._forecasts()
        yield from self._overload()
        handovers = CounterMetricFamily(
            f"{_PREFIX}handovers",
            "Slots handed over (given, received), and handovers that this member as the owner had to give up (failed).",
            labels=("part",),
        )
        counters = self._sidecar.recorder.counters
        for part, count in (("given", counters.given), ("received", counters.received), ("failed", counters.refused)):
            handovers.add_metric([part], count)
        yield handovers
        over_quota = CounterMetricFamily(
            f"{_PREFIX}over_quota",
            "Writes refused because this member's share of a limit of the pool was used up, by the limit.",
            labels=("limit",),
        )
        for limit, kind in QUOTA_LIMITS.items():
            over_quota.add_metric([limit], counters.over_quota[kind])
        yield over_quota
        state = GaugeMetricFamily(f"{_PREFIX}member_state", "1 for the state the member is in.", labels=("state",))
        now, _ = self._sidecar.status.look()
        for one in MemberState:
            state.add_metric([str(one)], one is now)
        yield state

    def _counters(self) -> Iterable[Metric]:
        sidecar, counters = self._sidecar, self._sidecar.recorder.counters
        commits, copies = sidecar.committer.stats, sidecar.copies
        for name, text, value in (
            (
                "writes_committed",
                "Session writes committed to etcd, removals of expired sessions included.",
                commits.writes,
            ),
            ("writes_lost", "Async writes that were answered and then not committed.", sidecar.async_writes.lost),
            (
                "fence_breaches",
                "Sessions found written by a former owner after its slot had a new one; must stay 0.",
                sidecar.recorder.audit.breaches,
            ),
            (
                "overwrites",
                "Writes that replaced a value which had changed since their connection read it.",
                sidecar.overwritten.written,
            ),
            ("overwrites_refused", "The same, refused (concurrency: refuse).", sidecar.overwritten.refused),
            ("transactions", "Transactions of session writes sent.", commits.transactions),
            ("transactions_resent", "Transactions sent again because their outcome was unknown.", commits.resent),
            ("forwarded_calls", "Session calls sent on to another member.", sidecar.router.forwarded),
            (
                "new_sessions_refused",
                "Writes that would have begun a session while commits lagged.",
                counters.refused_new,
            ),
            ("writes_refused", "Writes refused since too many waited to be committed.", counters.refused_writes),
            ("requests_expired", "Writes refused because their request began too long ago.", counters.expired),
            ("takeovers", "Claims of slots of another member's dead process.", counters.takeovers),
            ("slots_taken_over", "Slots gained by takeovers.", counters.taken_over),
            (
                "full_syncs",
                "Slots that were read from etcd, because this member became active without a copy.",
                copies.replica.copies,
            ),
            ("resyncs", "Copies of a slot that were found wrong, or that an operator repaired.", counters.resyncs),
            ("slots_checked", "Slots compared with etcd in the background.", counters.checked),
            (
                "watch_gaps",
                "Times the watch had a gap, after which everything was read again.",
                copies.informer.resets - 1,
            ),
        ):
            yield CounterMetricFamily(_PREFIX + name, text, value=max(value, 0))

    def _replication(self) -> Iterable[Metric]:
        """What :func:`replication_view` tells; the losses only once the pool's records are read."""
        sidecar = self._sidecar
        active = sidecar.active.slots
        for name, text, value in (
            (
                "replicated_slots",
                "Slots in which this member is active, with all their sessions.",
                len(active),
            ),
            (
                "slots_with_one_copy",
                "Slots of these whose sync set is this member alone: a takeover reads them from etcd.",
                sum(len(one.stream.agreed.members) < 2 for one in active),
            ),
            (
                "slots_on_one_site",
                "Slots of these with current copies on one site only, although the table gives them copies on two.",
                sidecar.site_watch.exposure.slots,
            ),
            (
                "one_site_seconds",
                "For how long the first of these has been so; 0 if there is none.",
                sidecar.site_watch.exposure.oldest(time.monotonic()),
            ),
            (
                "unsaved_bytes",
                "Bodies of sessions in these slots that etcd does not have yet.",
                sum(one.saves.bytes for one in active),
            ),
        ):
            yield GaugeMetricFamily(_PREFIX + name, text, value=float(value))
        if sidecar.copies.informer.synced.is_set():
            losses = sum(at.record.losses for at in sidecar.pool.state.sync_sets.values())
            text = "How often any slot of the pool was claimed although acknowledged writes may have been missing."
            yield GaugeMetricFamily(f"{_PREFIX}sync_set_losses", text, value=float(losses))

    def _load(self) -> Iterable[Metric]:
        """The load that this member last reported."""
        report = self._sidecar.load.report
        if report is None:
            return
        for name, text, value in (
            (
                "load_calls",
                "Session calls a second that this member answers as the owner, smoothed.",
                sum(one.calls for one in report.slots),
            ),
            (
                "load_session_bytes",
                "Bodies of the sessions in the slots that this member is active for.",
                sum(one.bytes for one in report.slots),
            ),
            ("load_cpus", "CPUs that this member uses, smoothed.", report.cpu),
            ("load_cpus_limit", "CPUs that this member may use.", report.cpus),
            ("load_memory_bytes", "Memory of the sidecar, or of the application if that is fuller.", report.memory),
            ("load_memory_limit_bytes", "The limit of that memory; 0: not known.", report.memory_limit),
        ):
            yield GaugeMetricFamily(_PREFIX + name, text, value=float(value))

    def _overload(self) -> Iterable[Metric]:
        """What was refused because this sidecar was overloaded, and whether it is now."""
        shedding = self._sidecar.shedding
        text = "Calls refused because the event loop was late, by priority."
        refused = CounterMetricFamily(f"{_PREFIX}calls_shed", text, labels=("priority",))
        for priority in PRIORITIES:
            refused.add_metric([priority], shedding.refused[priority])
        yield refused
        text = "Which calls are refused now: 0 none, 1 those of low priority, 2 normal ones beside critical ones too."
        yield GaugeMetricFamily(f"{_PREFIX}overload_level", text, value=float(shedding.level))

    def _forecasts(self) -> Iterable[Metric]:
        """How much of each resource is used, and for how long it will do."""
        used = GaugeMetricFamily(
            f"{_PREFIX}resource_used_ratio", "Used share of what this member can run out of.", labels=("resource",)
        )
        left = GaugeMetricFamily(
            f"{_PREFIX}resource_seconds_left",
            "Seconds until it runs out by its trend; +Inf if no end is in sight.",
            labels=("resource",),
        )
        for name, one in sorted(self._sidecar.resources.forecasts.items()):
            used.add_metric([name], one.share)
            left.add_metric([name], one.left)
        yield used
        yield left
        level = self._sidecar.resources.forecast.level.rank
        text = "How this member is expected to fare: 0 well, 1 warn, 2 critical."
        yield GaugeMetricFamily(f"{_PREFIX}forecast_level", text, value=float(level))

    def _gauges(self) -> Iterable[Metric]:
        sidecar, owned, clock = self._sidecar, self._sidecar.owned, self._sidecar.clock
        replica, informer = sidecar.copies.replica, sidecar.copies.informer
        slots = GaugeMetricFamily(
            f"{_PREFIX}slots",
            "Slots that this member owns, that take calls, that it should hold by the table, and holds in full.",
            labels=("kind",),
        )
        wanted = sidecar.pool.assigned() | frozenset(owned.slots)
        for kind, count in (
            ("owned", len(owned)),
            ("open", len(owned.open_slots())),
            ("wanted", len(wanted)),
            ("in_sync", len(wanted & replica.synced)),
        ):
            slots.add_metric([kind], count)
        yield slots
        for name, text, value in (
            ("sessions", "Sessions in memory, not yet swept ones included.", replica.count(replica.held)),
            ("queued_writes", "Writes that wait for a transaction.", sidecar.committer.queued),
            (
                "oldest_write_seconds",
                "How long the oldest write that is not resolved has been waiting; 0 when none is.",
                sidecar.committer.pressure(time.monotonic()).delay,
            ),
            (
                "applied_revision",
                "The etcd revision up to which this member knows the pool's records.",
                informer.revision,
            ),
            (
                "replica_lag_seconds",
                "How long ago etcd last confirmed that these records are current; up to a second when nothing happens.",
                informer.silent_for,
            ),
            ("requests_kept", "Outcomes of requests that are kept for copies of them.", len(sidecar.copies.requests)),
            ("read_deadline_holds", "1 while reads may be answered from memory.", sidecar.reads.holds()),
            (
                "clock_deviation_seconds",
                "How far this machine's wall clock is ahead of the pool's time.",
                clock.time.deviation / 1000,
            ),
            (
                "clock_agreed",
                "1 while the pool's time is known; only then do sessions expire.",
                clock.time.agreed,
            ),
            ("cut_off", "1 while this member is cut off from etcd: others should serve.", sidecar.reads.cut_off),
        ):
            yield GaugeMetricFamily(_PREFIX + name, text, value=float(value))
