"""Gets what an SLO review needs: the pool's objectives from its spec, and spans from control servers or elsewhere."""

from collections.abc import Sequence

from deploy.errors import DeployError
from deploy.reading import AdminError, ask_control, spans_of
from statesync.spec import Objectives
from telemetry.slo import review
from telemetry.slo_model import Review, Targets
from telemetry.slo_read import failovers_of
from telemetry.sources import SourceError, Window, load_spans
from telemetry.spans import StoredSpan

_MOST_PAGES = 200


def targets_of(objectives: Objectives) -> Targets:
    """The spec's objectives as the review takes them."""
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
        rpo_async_writes=objectives.rpo_async_writes,
        needless_moves=objectives.needless_moves,
        false_failovers=objectives.false_failovers,
    )


async def read_spans(addresses: Sequence[str], since: int, until: int) -> list[StoredSpan]:
    """The spans of all traces that began in the window, put together from what all control servers have stored.

    Raises:
        DeployError: no control server could be asked.
    """
    spans: dict[tuple[str, str], StoredSpan] = {}
    faults, asked = [], 0
    for address in addresses:
        try:
            for span in await _from_one(address, since, until):
                spans.setdefault((span.trace_id, span.span_id), span)
            asked += 1
        except AdminError as fault:
            faults.append(str(fault))
    if not asked:
        raise DeployError(
            f"no control server could be asked for its traces: {'; '.join(faults) or 'none is registered in etcd'}"
        )
    return list(spans.values())


def spans_from(source: str, since: int, until: int) -> tuple[list[StoredSpan], str]:
    """The spans of another source (:mod:`telemetry.sources`), and what to say of those that were refused."""
    try:
        batch = load_spans(source, Window(since, until))
    except SourceError as error:
        raise DeployError(f"--from {error}") from None
    told = f"{batch.refused} spans of {source} could not be used ({batch.reason})" if batch.refused else ""
    return list(batch.spans), told


def reviews(
    spans: Sequence[StoredSpan], targets: Targets, *, pool: str, slots: int, start_ns: int, end_ns: int
) -> tuple[Review, Review]:
    """The review of the window, and that of the window of the same length before it."""
    failovers = failovers_of(spans, pool)
    earlier = 2 * start_ns - end_ns
    return (
        review(failovers, targets, pool=pool, start_ns=start_ns, end_ns=end_ns, slots=slots),
        review(failovers, targets, pool=pool, start_ns=earlier, end_ns=start_ns, slots=slots),
    )


async def _from_one(address: str, since: int, until: int) -> list[StoredSpan]:
    spans: list[StoredSpan] = []
    at: int | None = since
    for _ in range(_MOST_PAGES):
        answer = await ask_control(address, f"/v1/spans?since={at}&until={until}")
        spans += spans_of(answer)
        following = answer.get("next") if isinstance(answer, dict) else None
        if not isinstance(following, int) or following <= (at or 0):
            return spans
        at = following
    raise AdminError(address, f"more than {_MOST_PAGES} pages of traces; give a shorter --window")
