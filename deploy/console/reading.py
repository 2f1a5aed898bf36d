"""What the pages show beside the frame, read when a page is asked for: traces, sessions, reviews, the audit log.

Each function returns what the command of the same name prints with ``-o json``.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.printable import printable_view
from understudy.deploy.console.drills import by_hand, drill_rows, statement_rows
from understudy.deploy.console.replay import steps_of
from understudy.deploy.inspect.audit import read_rows
from understudy.deploy.inspect.hashed_text import hashed_text
from understudy.deploy.inspect.member_views import slots_of
from understudy.deploy.inspect.review_inputs import read_evidence, reviews, targets_of
from understudy.deploy.inspect.sessions import read_session
from understudy.deploy.inspect.traces import condense, read_trace
from understudy.deploy.inspect.views import explain_view
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.slo.model import Failover, Review
from understudy.telemetry.slo.statement import caveat
from understudy.telemetry.slo.waterfall import as_json, waterfall
from understudy.xds.control.visible_traces import of_pools

AUDIT_ROWS = 200
TRACE_WIDTH = 120


def addresses_of(state: PoolState) -> list[str]:
    """The HTTP addresses of the pool's control servers."""
    return [at.record.http for at in state.controls.values()]


async def explain(client: EtcdClient, state: PoolState, key: str) -> dict[str, Any]:
    """The slot, the owner and the state of a session. Raises ``DeployError`` if its record cannot be read."""
    spec = state.spec.record if state.spec else None
    hashed, found = hashed_text(spec, key), None
    slot = None if hashed.text is None else slot_of(hashed.text, slots_of(state))
    for name in hashed.keys:
        stored_in = spec.slot_of_key(name) if spec else slot_of(name, slots_of(state))
        found = found or await read_session(client, state, name, stored_in)
    return explain_view(state, found, key, hashed, slot, int(time.time() * 1000))


def history_of(state: PoolState, slot: int | None) -> list[dict[str, Any]]:
    """The changes of active of a slot that etcd has records of, the newest first."""
    return [
        {
            "trace": trace,
            "started": part.started,
            "kind": "handover" if part.planned else "takeover",
            "source": part.source,
            "to": part.to,
            "cause": part.cause,
        }
        for trace, parts in state.changes()
        for part in parts
        if slot in part.slots
    ]


async def failover(state: PoolState, trace: str) -> dict[str, Any]:
    """One failover of this pool: the trace as JSON and as the command draws it, and its steps for the slot map.

    Raises:
        NegativeAnswer: no control server has spans of it.
        DeployError: no control server could be asked.
    """
    spans = of_pools(await read_trace(addresses_of(state), trace), {state.keys.pool})
    parts = next((parts for one, parts in state.changes() if one == trace), [])
    if not spans and not parts:
        raise NegativeAnswer(f"no control server has spans of trace {trace} (any more)")
    view = as_json(spans)
    out = io.StringIO()
    Console(file=out, width=TRACE_WIDTH, color_system=None).print(waterfall(printable_view(condense(spans))))
    return {"trace": view, "text": out.getvalue(), "steps": steps_of(parts, view) if parts else []}


async def review_of(state: PoolState, window: int, *, of_all: bool) -> Review:
    """The review of the last ``window`` seconds. Raises ``DeployError``.

    Front Envoys count requests without their pool. So the counts are only for callers who may see all pools.
    """
    if state.spec is None:
        raise NegativeAnswer(f"pool {state.keys.pool} has no spec, so it has no objectives")
    spec = state.spec.record
    end = time.time_ns()
    start = end - window * 10**9
    evidence = await read_evidence(addresses_of(state), 2 * start - end, end)
    evidence = evidence if of_all else replace(evidence, counts=())
    now, _ = reviews(
        evidence, targets_of(spec.objectives), pool=spec.pool, slots=spec.slots, start_ns=start, end_ns=end
    )
    return now


async def drill_values(state: PoolState, window: str, seconds: int, *, of_all: bool) -> dict[str, Any]:
    """What the template needs of drills in the last ``seconds``; ``fault``: why it is not known, '' if it is.

    ``of_all``: the caller may see all pools.
    """
    fault, pool = "", state.keys.pool
    failovers: Sequence[Failover] = ()
    try:
        failovers = (await review_of(state, seconds, of_all=of_all)).failovers
    except (DeployError, NegativeAnswer) as error:
        fault = str(error)
    return {
        "window": window,
        "fault": fault,
        "drills": drill_rows(failovers, pool),
        "statement": statement_rows(failovers, pool),
        "by_hand": by_hand(pool),
        "caveat": caveat(),
    }


async def audit(client: EtcdClient, state: PoolState) -> list[dict[str, Any]]:
    """The newest records of the audit log, the newest first."""
    rows, _ = await read_rows(client, state.keys, count=AUDIT_ROWS)
    return rows[::-1]
