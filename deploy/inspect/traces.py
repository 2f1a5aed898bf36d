"""Reads traces of changes of active from the control servers, which store them."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy.deploy.common.errors import DeployError
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.statesync.parsing.stored import made_of
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.tracing import names


async def read_trace(addresses: Sequence[str], trace_id: str) -> list[StoredSpan]:
    """The spans of a trace, merged from all control servers.

    Raises:
        DeployError: no control server could be asked.
    """
    spans: dict[str, StoredSpan] = {}
    faults = []
    for address in addresses:
        try:
            answer = await ask_control(address, f"/v1/traces/{trace_id}")
        except AdminError as fault:
            if "404" not in fault.detail:
                faults.append(str(fault))
            continue
        for span in spans_of(answer):
            spans.setdefault(span.span_id, span)
    if not spans and (faults or not addresses):
        reason = "; ".join(faults) or "none is registered in etcd"
        raise DeployError(f"no control server could be asked for the trace: {reason}")
    return sorted(spans.values(), key=lambda span: span.start_ns)


async def read_durations(addresses: Sequence[str], most: int) -> dict[str, float]:
    """The durations of the latest failovers and handovers in ms by trace id; see :func:`read_lengths`."""
    return (await read_lengths(addresses, most)).took_ms


@dataclass(frozen=True, slots=True)
class Lengths:
    """The durations of changes of active in ms by trace id, and for takeovers from members of lost sites the site.

    ``sites`` has the name of the site, and the id of the trace of its loss, by the trace id of the takeover.
    """

    took_ms: dict[str, float]
    sites: dict[str, tuple[str, str]]


async def read_lengths(addresses: Sequence[str], most: int) -> Lengths:
    """How long the latest failovers and handovers took, as far as control servers know it.

    ``most`` is the number of traces to read from each control server.
    """

    async def ask(address: str) -> Any:  # noqa: ANN401 - JSON
        with contextlib.suppress(AdminError):
            return await ask_control(address, f"/v1/traces?limit={most}")
        return None

    durations: dict[str, float] = {}
    sites: dict[str, tuple[str, str]] = {}
    for answer in await asyncio.gather(*(ask(address) for address in addresses)):
        for row in answer.get("traces", ()) if isinstance(answer, dict) else ():
            match row:
                case {"trace_id": str(trace), "total_ms": int(took) | float(took)}:
                    durations[trace] = took
            match row:
                case {"name": names.SITE_LOSS, "trace_id": str(trace), "attributes": dict(told)}:
                    takeovers = str(told.get(names.TAKEOVERS, "")).split(", ")
                    sites |= {one: (str(told.get(names.SITE, "")), trace) for one in takeovers}
    return Lengths(durations, sites)


def spans_of(answer: Any) -> Iterable[StoredSpan]:  # noqa: ANN401 - JSON
    """Read a list of spans from the admin interface. Entries that are not spans are left out."""
    listed = answer.get("spans", ()) if isinstance(answer, dict) else answer
    for raw in listed if isinstance(listed, list) else ():
        with contextlib.suppress(ValueError):
            yield _span_of(raw)


def _span_of(raw: object) -> StoredSpan:
    """Read a span. Raises ``ValueError`` if it is not one."""
    span = made_of(StoredSpan, raw)
    if not isinstance(span.attributes, dict) or not isinstance(span.resource, dict):
        raise ValueError("attributes and resource are objects")  # noqa: TRY004 - one error for all
    return span


def condense(spans: Sequence[StoredSpan], most: int = 40) -> list[StoredSpan]:
    """A trace with at most ``most`` spans unchanged. In a longer one, the spans of one process and phase are merged.

    A merged span reaches from the first start to the last end. Its process name has the number of spans.
    """
    if len(spans) <= most:
        return list(spans)
    groups: dict[tuple[str, str], list[StoredSpan]] = defaultdict(list)
    for span in spans:
        groups[span.instance, span.name].append(span)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[StoredSpan]) -> StoredSpan:
    first = min(group, key=lambda span: span.start_ns)
    if len(group) == 1:
        return first
    who = {**first.resource, names.SERVICE_INSTANCE_ID: f"{first.instance} x{len(group)}"}
    return replace(first, end_ns=max(span.end_ns for span in group), resource=who)
