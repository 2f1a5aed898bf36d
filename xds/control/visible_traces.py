"""Which traces somebody sees who may see some pools only. Pure.

A span names its pool in its attributes, or its process does in the resource. A trace is shown when its spans name at
least one pool, and no pool that must not be seen.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.tracing.names import POOL


def pool_named(attributes: Mapping[str, Any]) -> str:
    """The pool that attributes name; '' for none."""
    return str(attributes.get(POOL) or "")


def of_pools(spans: Sequence[StoredSpan], pools: Collection[str] | None) -> list[StoredSpan]:
    """The spans of those traces that are about these ``pools`` alone; all spans for None."""
    if pools is None:
        return list(spans)
    named: dict[str, set[str]] = defaultdict(set)
    for span in spans:
        named[span.trace_id] |= {pool_named(span.attributes), pool_named(span.resource)} - {""}
    shown = {trace for trace, names in named.items() if names and names.issubset(pools)}
    return [span for span in spans if span.trace_id in shown]
