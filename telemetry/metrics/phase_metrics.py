"""Histograms of what is traced: how long each phase, and each whole change of active, took.

Every observation carries its trace id as an exemplar, so that a slow bucket in a graph leads to the trace behind it;
Prometheus asks for exemplars with the OpenMetrics format, which :func:`expose` speaks when asked. Labels are the
phase, the kind of change and whether its end was seen: never a slot, session or member. Which pool a process is of
stands in ``understudy_pool_info`` alone, which queries join by instance and job.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, exposition

from understudy.telemetry.tracing.ids import TraceIds
from understudy.telemetry.tracing.names import (
    CATCH_UP,
    CLAIM,
    COULD_NOT_SERVE,
    CRITICAL,
    FAILOVER,
    FIRST_OK,
    HANDOVER,
    PHASES,
    RETURNED,
    RETURNED_ALIVE,
    ROOTS,
    UNMEASURED,
)
from understudy.telemetry.tracing.setup import Attributes

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OTHER = "other"
_OF_MEMBERS = (CLAIM, CATCH_UP, FIRST_OK)
"""Members observe these themselves; what a control server says of them again, for its sum, would count twice."""


class PhaseMetrics:
    """The histograms of one process of ``pool``, in its own registry.

    For :attr:`understudy.telemetry.tracing.setup.Telemetry.on_span`.
    """

    def __init__(self, registry: CollectorRegistry, pool: str) -> None:
        Info("understudy_pool", "The pool that this process belongs to.", registry=registry).info({"pool": pool})
        self._phases = Histogram(
            "understudy_phase_seconds",
            "How long the phases of changes of active took that this process recorded.",
            labelnames=("phase",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._changes = Histogram(
            "understudy_change_seconds",
            "How long whole changes of active took whose end was seen; recorded by the control server that led.",
            labelnames=("kind",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._counted = Counter(
            "understudy_changes",
            "Changes of active: measured, or unmeasured because their end was not seen in time.",
            labelnames=("kind", "outcome"),
            registry=registry,
        )
        self._false = Counter(
            "understudy_false_failovers",
            "Takeovers from a process that lived and could have served; told by the control server that led.",
            registry=registry,
        )
        for kind in (FAILOVER, HANDOVER):
            for outcome in ("measured", "unmeasured"):
                self._counted.labels(kind, outcome)
            self._changes.labels(kind)
        for phase in PHASES:  # a series that begins at 1 hides its first event from rate()
            self._phases.labels(phase)

    def recorded(self, name: str, ids: TraceIds, seconds: float, attributes: Attributes) -> None:
        """A span was recorded."""
        exemplar = {"trace_id": ids.hex}
        if name not in ROOTS:
            if attributes.get(CRITICAL) and name in _OF_MEMBERS:
                return
            if name == RETURNED and attributes.get(RETURNED_ALIVE) and not attributes.get(COULD_NOT_SERVE):
                self._false.inc(1, exemplar)
            self._phases.labels(name if name in PHASES else OTHER).observe(seconds, exemplar)
            return
        unmeasured = bool(attributes.get(UNMEASURED))
        self._counted.labels(name, "unmeasured" if unmeasured else "measured").inc(1, exemplar)
        if not unmeasured:
            self._changes.labels(name).observe(seconds, exemplar)


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry and their content type, in the format that an ``Accept`` header asks for."""
    encode, content_type = exposition.choose_encoder(accept)
    return encode(registry), content_type
