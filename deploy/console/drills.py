"""The outcomes of drills for a page, and the commands that repeat them. Pure.

A drill sends what its clients saw to all control servers, as a span of the failover that it caused. So every control
server has the outcomes, as long as it keeps traces.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from understudy.telemetry.slo.model import Failover
from understudy.telemetry.slo.statement import lost_writes, statement
from understudy.telemetry.timing.duration import length

DRILLS_SHOWN = 200
NOT_MEASURED = "not measured"
OF_A_MEMBER = ("kill", "app", "sidecar", "freeze", "drain")
"""The kinds of drills that take ``--member``."""


_BY_HAND = (
    ("kill", "kills a member at once"),
    ("app", "kills the application of a member alone"),
    ("sidecar", "kills the sidecar of a member alone"),
    ("freeze", "stops a member's processes, and lets them go on"),
    ("rolling", "drains and restarts all members, one after another"),
    ("control", "kills the leading control server"),
    ("etcd-leader", "kills the leader of etcd"),
    ("site", "kills all of a site at once"),
    ("all-sites", "kills all members, control servers and etcd members at once"),
    ("witness", "keeps the etcd member that is on no site away"),
    ("link", "loses all packets between two sites"),
    ("link-witness", "does both, so etcd has no majority on two sites"),
    ("home-move", "moves the home to the other of two distant sites, and back"),
    ("home-loss", "kills the home of two distant sites, takes over at the other one, and moves back"),
    ("site-take-over", "kills the site with most of etcd, takes over at the other one, and brings it back"),
    ("site-offline", "takes a site out of service, and brings it back"),
)


def by_hand(pool: str) -> list[dict[str, str]]:
    """The drills that a page cannot start: the command, and what it does."""
    return [{"command": f"understudy drill {kind} --load 300 --pool {pool}", "what": what} for kind, what in _BY_HAND]


def drill_rows(failovers: Sequence[Failover], pool: str) -> list[dict[str, Any]]:
    """The newest drills, the newest first."""
    drills = [one for one in failovers if one.drill]
    drills.sort(key=lambda one: -one.began_ns)
    return [_row(one, pool) for one in drills[:DRILLS_SHOWN]]


def _row(one: Failover, pool: str) -> dict[str, Any]:
    waited = one.gap_ms if one.gap_ms is not None else one.total_ms
    return {
        "trace": one.trace,
        "at": one.began_ns / 1e9,
        "drill": f"{one.drill} {one.source}".strip(),
        "failed": NOT_MEASURED if one.failed is None else f"{one.failed} of {one.requests or 0}",
        "waited": NOT_MEASURED if waited is None else length(waited),
        "of_clients": one.gap_ms is not None,
        "lost": _count(lost_writes(one)),
        "needless": _count(one.needless_moves),
        "missed": one.missed,
        "command": one.command or _command(one, pool),
    }


def _count(value: int | None) -> str:
    return NOT_MEASURED if value is None else str(value)


def _command(one: Failover, pool: str) -> str:
    """The command for a drill whose trace does not have it, as those of earlier releases."""
    words = ["understudy", "drill", one.drill]
    one_member = one.drill in OF_A_MEMBER and one.source and "," not in one.source
    words += ["--member", one.source] if one_member else []
    return shlex.join([*words, "--pool", pool])


def statement_rows(failovers: Sequence[Failover], pool: str) -> list[dict[str, str]]:
    """The statement of recovery (``understudy slo --statement``), with the command of each drill; '' for none."""
    return [
        {
            "failure": row.failure.name,
            "happens": row.failure.happens,
            "lost": row.loss,
            "waited": row.recovery,
            "by_hand": row.failure.by_hand,
            "command": f"understudy drill {row.failure.drill} --load 300 --pool {pool}" if row.failure.drill else "",
        }
        for row in statement(failovers)
    ]
