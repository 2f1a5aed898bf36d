"""The statement of recovery: for each failure what happens, what drills measured, and whether a hand is needed. Pure.

The measured values are those of stored drills, never of the design. A percentile is claimed only for as many drills as
prove it (:func:`understudy.telemetry.slo.judgement.needed`); below that the worst drill is shown, and that more are
needed. Failures without a drill are listed too, so that nobody takes their absence for a promise.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from understudy.telemetry.slo.judgement import needed, quantile
from understudy.telemetry.slo.model import Failover, Review
from understudy.telemetry.timing.duration import length

NOT_SHOWN = "not yet shown"


@dataclass(frozen=True, slots=True)
class Failure:
    """A kind of failure: what happens by design, what is to be done by hand, and the drill that shows it ('': none)."""

    name: str
    happens: str
    by_hand: str
    drill: str = ""


FAILURES = (
    Failure("member", "its standby takes over", "no", "kill"),
    Failure("member stands still", "its standby takes over after the time in liveness", "no", "freeze"),
    Failure("application", "the sidecar finds that it fails, and hands over", "no", "app"),
    Failure("sidecar", "another member takes over, as if the whole member had died", "no", "sidecar"),
    Failure("control server", "another one leads; slots stay where they are", "no", "control"),
    Failure("etcd member", "the other members of etcd elect a leader", "no", "etcd-leader"),
    Failure("site", "members of other sites take over", "no, if etcd keeps its majority", "site"),
    Failure("planned switch of a site", "its members hand their slots over", "no", "site-offline"),
    Failure(
        "link between sites",
        "each slot stays where it is while etcd reaches both sites; requests across the link wait",
        "no",
        "link",
    ),
    Failure("witness", "nothing moves; the next loss stops writes", "start it again", "witness"),
    Failure(
        "link and witness",
        "on two sites etcd has no majority: no slot moves, and sync writes wait and then fail on both sites",
        "restore the link or the witness",
        "link-witness",
    ),
    Failure(
        "home site (distant), planned",
        "the home moves to the other site and back; calls are refused meanwhile",
        "home move",
        "home-move",
    ),
    Failure(
        "home site (distant), lost",
        "the other site takes over, without what its mirror did not have",
        "home take-over",
        "home-loss",
    ),
    Failure(
        "larger of two sites (no third)",
        "etcd has no majority; sync writes stop until the other site takes over",
        "site take-over",
        "site-take-over",
    ),
    Failure(
        "all sites",
        "nothing is served until members and etcd run again; then sessions are as etcd has them",
        "no, if a supervisor starts them; else start the sites again",
        "all-sites",
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A failure with what drills measured of it.

    ``drills`` is the number of drills whose clients were watched, ``timed`` how many of these measured a time. Times
    are in ms: ``worst_ms`` of all, and ``p99_ms`` if so many drills prove it. ``compared``: drills that looked for lost
    writes, and ``lost`` how many they found. None: not measured.
    """

    failure: Failure
    drills: int = 0
    timed: int = 0
    worst_ms: float | None = None
    p99_ms: float | None = None
    compared: int = 0
    lost: int | None = None

    @property
    def recovery(self) -> str:
        """The measured time of recovery, in words."""
        if self.worst_ms is None:
            return NOT_SHOWN
        if self.p99_ms is not None:
            return f"p99 {length(self.p99_ms)} ({self.timed} drills)"
        return f"worst {length(self.worst_ms)} ({_drills(self.timed)}); p99 {NOT_SHOWN}"

    @property
    def loss(self) -> str:
        """The measured loss of acknowledged writes, in words."""
        return NOT_SHOWN if self.lost is None else f"{self.lost} lost ({_drills(self.compared)})"


def statement(failovers: Sequence[Failover]) -> list[Row]:
    """A row for each kind of failure, from the drills among ``failovers``."""
    return [_row(failure, failovers) for failure in FAILURES]


def _row(failure: Failure, failovers: Sequence[Failover]) -> Row:
    drills = [one for one in failovers if failure.drill and one.drill == failure.drill and one.requests is not None]
    times = [ms for one in drills if (ms := one.gap_ms if one.gap_ms is not None else one.total_ms) is not None]
    losses = [lost for one in drills if (lost := lost_writes(one)) is not None]
    return Row(
        failure,
        drills=len(drills),
        timed=len(times),
        worst_ms=max(times, default=None),
        p99_ms=quantile(times) if len(times) >= needed() else None,
        compared=len(losses),
        lost=sum(losses) if losses else None,
    )


def lost_writes(one: Failover) -> int | None:
    """The acknowledged writes of any class that the clients of a drill missed; None if none looked for them."""
    counted = [count for count in (one.lost_writes, one.lost_replicas, one.lost_async) if count is not None]
    return sum(counted) if counted else None


def _drills(count: int) -> str:
    return "1 drill" if count == 1 else f"{count} drills"


def as_json(review: Review, degraded: Sequence[str] | None = None) -> dict[str, Any]:
    """The statement for machines. What is not shown is null.

    ``degraded``: what is degraded in the pool now, each in words; None if it is not known.
    """
    return {
        "pool": review.pool,
        "drills_needed": needed(),
        "degraded_now": None if degraded is None else list(degraded),
        "failures": [
            {
                **dataclasses.asdict(row.failure),
                "drills": row.drills,
                "timed": row.timed,
                "worst_ms": row.worst_ms,
                "p99_ms": row.p99_ms,
                "compared": row.compared,
                "lost_writes": row.lost,
            }
            for row in statement(review.failovers)
        ],
    }


@dataclass(frozen=True, slots=True)
class StatementDrawing:
    """The statement as ``rich`` draws it."""

    review: Review
    degraded: Sequence[str] | None = None
    """What is degraded in the pool now; None if it is not known."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the console is."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        for column in ("failure", "what happens", "acknowledged writes", "clients wait", "by hand", "drill"):
            table.add_column(column, overflow="fold")
        for row in statement(self.review.failovers):
            failure = row.failure
            shown = [Text(text, "yellow" if text == NOT_SHOWN else "") for text in (row.loss, row.recovery)]
            table.add_row(failure.name, failure.happens, *shown, failure.by_hand, failure.drill or "none")
        yield Text(f"pool {self.review.pool}: measured by drills in the window", style="bold")
        yield table
        yield Text(caveat(), style="dim")
        yield Text(present(self.degraded), style="yellow" if self.degraded else "")
        for problem in self.degraded or ():
            yield Text(f"! {problem}", style="yellow")


def caveat() -> str:
    """What the statement rests on, in words."""
    return f"A p99 is claimed after {needed()} drills. All of this holds for a pool in which nothing is degraded."


def present(degraded: Sequence[str] | None) -> str:
    """Whether that is so now, in words; None: it is not known."""
    if degraded is None:
        return "'understudy status' and 'understudy site status' show what is degraded now."
    if not degraded:
        return "Nothing is degraded now."
    return "Something is degraded now, so more may be lost, or clients may wait longer:"
