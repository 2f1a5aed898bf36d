"""The inputs of an SLO review: objectives from the pool's spec, spans and requests from control servers or files.

Every control server has all spans. But a front Envoy reports its requests to one control server only: if one control
server does not answer, some requests are missing, and the command says so.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.common.errors import DeployError
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.deploy.inspect.traces import spans_of
from understudy.statesync.pool.spec_parts import Objectives
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.failovers import failovers_of, pictured
from understudy.telemetry.slo.judgement import review
from understudy.telemetry.slo.model import Review, Targets
from understudy.telemetry.slo.requests import requests_of, with_requests
from understudy.telemetry.slo.trace_backends import TimeRange, TraceBackendError, load
from understudy.telemetry.tracing.names import POOL

_MOST_PAGES = 2_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """The inputs of a review. ``unasked`` has the errors of control servers whose requests are missing."""

    spans: Sequence[StoredSpan] = ()
    reports: Sequence[StoredLog] = ()
    counts: Sequence[Period] = ()
    unasked: Sequence[str] = ()


def targets_of(objectives: Objectives) -> Targets:
    """The spec's objectives as targets of a review."""
    return Targets(
        rto=objectives.rto.p99,
        planned_stall=objectives.planned_stall.p99,
        propagation=objectives.propagation.p99,
        re_protection=objectives.re_protection.p99,
        failed_requests=objectives.failed_requests,
        unavailability=objectives.unavailability,
        exposure=objectives.exposure,
        unmeasured=objectives.unmeasured,
        rpo_sync_writes=objectives.rpo_sync_writes,
        rpo_replica_writes=objectives.rpo_replica_writes,
        rpo_async_writes=objectives.rpo_async_writes,
        needless_moves=objectives.needless_moves,
        false_failovers=objectives.false_failovers,
    )


async def read_evidence(addresses: Sequence[str], since: int, until: int) -> Evidence:
    """The failovers and handovers of the window, merged from all control servers.

    Raises:
        DeployError: no control server could be asked.
    """
    spans: dict[tuple[str, str], StoredSpan] = {}
    reports: list[StoredLog] = []
    counts: dict[tuple[str, int], Period] = {}
    faults = []
    for address in addresses:
        try:
            for page in [page async for page in _pages(address, "/v1/spans", since, until)]:
                spans.update({(span.trace_id, span.span_id): span for span in spans_of(page)})
            mine: list[StoredLog] = []
            for page in [page async for page in _pages(address, "/v1/requests", since, until)]:
                # A page starts at "next" of the page before, so entries from there on come again.
                following = (page.get("next") if isinstance(page, dict) else None) or until + 1
                mine += [one for one in _reports(page) if one.time_ns < following]
                counts.update({(one.node, one.end_ns): one for one in _counts(page)})
            reports += mine
        except AdminError as fault:
            faults.append(str(fault))
    if len(faults) == len(addresses):
        raise DeployError(
            f"no control server could be asked for its traces: {'; '.join(faults) or 'none is registered in etcd'}"
        )
    return Evidence(list(spans.values()), reports, list(counts.values()), faults)


def evidence_from(source: str, since: int, until: int) -> tuple[Evidence, str]:
    """The evidence of another source (``trace_backends``) for the window, and a warning about unusable records."""
    try:
        found = load(source, TimeRange(since, until))
    except TraceBackendError as error:
        raise DeployError(f"--from {error}") from None
    warning = f"{found.refused} records of {source} could not be used ({found.reason})" if found.refused else ""
    return Evidence(found.spans, found.reports, found.counts), warning


def reviews(
    evidence: Evidence, targets: Targets, *, pool: str, slots: int, start_ns: int, end_ns: int
) -> tuple[Review, Review]:
    """The review of the window, and the review of the window before it, of the same length."""
    failovers = failovers_of(evidence.spans, pool)
    requests = requests_of(one for one in evidence.reports if one.attributes.get(POOL, pool) == pool)
    counts = [one for one in evidence.counts if one.pool in ("", pool)]

    def of(start: int, end: int) -> Review:
        counted, traffic = with_requests(failovers, requests, counts, start_ns=start, end_ns=end)
        found = review(counted, targets, pool=pool, start_ns=start, end_ns=end, slots=slots, traffic=traffic)
        return pictured(found, evidence.spans)

    return of(start_ns, end_ns), of(2 * start_ns - end_ns, start_ns)


async def _pages(address: str, path: str, since: int, until: int) -> AsyncIterator[Any]:
    """The pages of a control server's answer; raises ``AdminError``."""
    at = since
    for _ in range(_MOST_PAGES):
        page = await ask_control(address, f"{path}?since={at}&until={until}")
        yield page
        following = page.get("next") if isinstance(page, dict) else None
        if not isinstance(following, int) or following <= at:
            return
        at = following
    raise AdminError(address, f"more than {_MOST_PAGES} pages of {path}; give a shorter --window")


def _reports(page: Any) -> Iterator[StoredLog]:  # noqa: ANN401 - JSON
    """The request reports in a page. Entries that are not reports are left out."""
    for raw in page.get("reports", ()) if isinstance(page, dict) else ():
        with contextlib.suppress(TypeError):
            yield StoredLog(**raw)


def _counts(page: Any) -> Iterator[Period]:  # noqa: ANN401 - JSON
    """The counts in a page. Entries that are not counts are left out."""
    for raw in page.get("counts", ()) if isinstance(page, dict) else ():
        with contextlib.suppress(TypeError):
            yield Period(**raw)
