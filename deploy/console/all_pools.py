"""What the page of all pools shows: the state of each in a sentence, the worst first. Pure.

It is made from what the control server knows. That is neither the copies nor what members report, so the page of a
pool can say more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.deploy.console.frame import sentence, serving_of
from understudy.deploy.console.problems import WARNING, problems_of
from understudy.deploy.inspect.envoys import View
from understudy.deploy.inspect.views import status_view
from understudy.statesync.pool.state import PoolState


def pool_rows(rows: Sequence[Mapping[str, Any]], states: Mapping[str, PoolState], now: float) -> list[View]:
    """The rows of ``Pools.rows`` with what else the page shows.

    ``level`` and ``sentence`` are those of the pool's overview, ``why`` is its worst problem, and ``more`` the number
    of its other problems. ``states`` are the records of the pools that are served; ``now`` is wall time in seconds.
    """
    found = [{**row, **_brief(row, states.get(row["pool"]), now)} for row in rows]
    return sorted(found, key=lambda row: -row["level"])


def _brief(row: Mapping[str, Any], state: PoolState | None, now: float) -> View:
    if state is None or row["reason"]:
        return {"level": WARNING, "sentence": "", "why": row["reason"], "more": 0}
    status = {**status_view(state, revision=0), "replication": None}
    problems = problems_of(state, status, now)
    members = status["members"]
    return {
        "level": max((problem.level for problem in problems), default=0),
        "sentence": sentence(status, serving_of(members), len(members)),
        "why": problems[0].text if problems else "",
        "more": max(len(problems) - 1, 0),
    }
