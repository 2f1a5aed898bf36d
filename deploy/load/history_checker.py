"""Judges what clients saw: from a history of requests to counts of what was lost, doubled, moved or late.

Pure and apart from the system under test: it knows requests, answers and the final content of sessions,
nothing of slots, owners or etcd. Each write adds a sku of its own to its session, so that every single
write can be found (or missed, or found twice) in the end. Driving the load is left to ``http_load``, telling the
story to ``demo``.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["create", "read", "write", "check"]
Content = Mapping[str, int]
"""What a session holds: quantity by sku."""


@dataclass(frozen=True, slots=True)
class Op:
    """One request as its client saw it.

    Times are seconds of the client's monotonic clock. ``status`` is 0 when no answer came. ``wrote`` is the
    sku that a write added. ``seen`` is the content in the answer, None when the answer carried none. ``attempts`` is
    how often Envoy says it sent the request.
    """

    session: str
    kind: Kind
    started: float
    ended: float
    status: int
    served_by: str = ""
    wrote: str = ""
    seen: Content | None = None
    error: str = ""
    attempts: int = 1

    @property
    def succeeded(self) -> bool:
        """Whether the client got the answer it wanted; there is no second try."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Killing:
    """When which member was killed and, if it was, started again (same clock as the operations)."""

    member: str
    killed_at: float
    rejoined_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Gap:
    """How long clients waited around a kill, beyond their normal pacing, in ms; NaN if nobody waited."""

    p50: float = math.nan
    p99: float = math.nan
    max: float = math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out. :attr:`flawless` is the one answer; the rest says where it failed.

    ``answered_elsewhere`` are single answers of a member that a session was neither with before nor after: no session
    moved for them.
    """

    sessions: int
    requests: int
    failed_requests: int
    acknowledged_writes: int
    unknown_writes: int
    lost_writes: int
    duplicated_writes: int
    stale_reads: int
    unexplained_items: int
    moved_needlessly: int
    answered_elsewhere: int
    sessions_touched: int
    never_answered: int
    client_gap_ms: Gap
    rejoin_failed_requests: int
    rejoin_sessions_moved: int
    failures: tuple[str, ...] = field(default=())

    @property
    def flawless(self) -> bool:
        """Whether nothing was lost, doubled, refused or moved without need."""
        return not any(
            (
                self.failed_requests,
                self.lost_writes,
                self.duplicated_writes,
                self.stale_reads,
                self.unexplained_items,
                self.moved_needlessly,
                self.never_answered,
            )
        )


def judge(
    history: Sequence[Op],
    final: Mapping[str, Content | None],
    killing: Killing | None = None,
    *,
    pacing: float = 0.0,
) -> Verdict:
    """Judge a run.

    Args:
        history: every request of every client, in any order, the final check included.
        final: what each session held at the end; None (or missing) when it could not be read.
        killing: which member was killed and when; None for a run without.
        pacing: seconds between two requests of one session when all is well.
    """
    sessions = _by_session(history)
    failed = [op for op in history if not op.succeeded]
    contents = [_judge_content(ops, final.get(session)) for session, ops in sessions.items()]
    gaps = _gaps(sessions.values(), killing, pacing) if killing else []
    answered = [gap for gap in gaps if gap is not None]
    return Verdict(
        sessions=len(sessions),
        requests=len(history),
        failed_requests=len(failed),
        acknowledged_writes=sum(op.kind == "write" and op.succeeded for op in history),
        unknown_writes=sum(op.kind == "write" and not op.succeeded for op in history),
        lost_writes=sum(content.lost for content in contents),
        duplicated_writes=sum(content.duplicated for content in contents),
        stale_reads=sum(_stale_reads(ops) for ops in sessions.values()),
        unexplained_items=sum(content.unexplained for content in contents),
        moved_needlessly=sum(_moved_needlessly(ops, killing) for ops in sessions.values()),
        answered_elsewhere=sum(len(_excursions(_served(ops), killing)) for ops in sessions.values()),
        sessions_touched=len(gaps),
        never_answered=len(gaps) - len(answered),
        client_gap_ms=_gap_summary(answered),
        rejoin_failed_requests=sum(op.ended >= killing.rejoined_at for op in failed) if killing else 0,
        rejoin_sessions_moved=sum(_moved_back(ops, killing) for ops in sessions.values()) if killing else 0,
        failures=tuple(f"{op.kind} {op.session}: {op.status or op.error}" for op in failed[:20]),
    )


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class _ContentVerdict:
    lost: int
    duplicated: int
    unexplained: int


def _by_session(history: Sequence[Op]) -> dict[str, list[Op]]:
    sessions: dict[str, list[Op]] = defaultdict(list)
    for op in sorted(history, key=lambda op: op.started):
        sessions[op.session].append(op)
    return dict(sessions)


def _judge_content(ops: Sequence[Op], content: Content | None) -> _ContentVerdict:
    """Compare a session's final content with what its client was told.

    A write without an acknowledgement may have had its effect or not, but never twice. What nobody wrote is
    somebody else's.
    """
    found: Content = content or {}
    acknowledged = {op.wrote for op in ops if op.kind == "write" and op.succeeded}
    attempted = {op.wrote for op in ops if op.kind == "write"}
    return _ContentVerdict(
        lost=sum(found.get(sku, 0) < 1 for sku in acknowledged),
        duplicated=sum(found.get(sku, 0) > 1 for sku in attempted),
        unexplained=sum(sku not in attempted for sku in found),
    )


def _stale_reads(ops: Sequence[Op]) -> int:
    """Answers that lacked a write acknowledged to the same client before it asked."""
    acknowledged = [(op.ended, op.wrote) for op in ops if op.kind == "write" and op.succeeded]
    return sum(
        any(ended <= op.started and sku not in op.seen for ended, sku in acknowledged)
        for op in ops
        if op.succeeded and op.seen is not None and op.kind != "check"
    )


def _moved_needlessly(ops: Sequence[Op], killing: Killing | None) -> bool:
    """Whether the session ever left a member that was alive, but to the one that came back for its share.

    The way back is taken once: a session that leaves the returned member again was moved needlessly. A single request
    may be answered by the standby, which asks the active: Envoy repeated it, or avoided a member for the moment of a
    check, or does not trust yet the one that came back. Whether the session moved, the next one tells.
    """
    answers = _served(ops)
    excursions = _excursions(answers, killing)
    served = [op for number, op in enumerate(answers) if op.attempts == 1 and number not in excursions]
    for before, after in itertools.pairwise(served):
        if before.served_by == after.served_by:
            continue
        if killing is None:
            return True
        left_the_dead = before.served_by == killing.member and before.started < killing.rejoined_at
        if not (left_the_dead or _came_back(after, killing)):
            return True
        if left_the_dead and after.ended < killing.killed_at:
            return True
    return False


def _came_back(op: Op, killing: Killing) -> bool:
    """Whether the killed member gave this answer after its return."""
    return op.served_by == killing.member and op.ended >= killing.rejoined_at


def _excursions(served: Sequence[Op], killing: Killing | None) -> set[int]:
    """Which of a session's answers are single ones of a member that it was neither with before nor after.

    Before and after it was with the same one, or on its way to the member that came back.
    """
    away: set[int] = set()
    for number, (before, op, after) in enumerate(zip(served, served[1:], served[2:], strict=False), start=1):
        settled = before.served_by == after.served_by or (killing is not None and _came_back(after, killing))
        if settled and op.served_by not in (before.served_by, after.served_by) and number - 1 not in away:
            away.add(number)
    return away


def _served(ops: Sequence[Op]) -> list[Op]:
    """The answered requests that carried the session's key; who makes a session need not be who serves it."""
    return [op for op in ops if op.succeeded and op.served_by and op.kind != "create"]


def _moved_back(ops: Sequence[Op], killing: Killing) -> bool:
    """Whether the session was served by the returned member after its return, and by another one before."""
    served = _served(ops)
    return any(
        before.served_by != killing.member and _came_back(after, killing)
        for before, after in itertools.pairwise(served)
    )


def _gaps(sessions: Iterable[Sequence[Op]], killing: Killing, pacing: float) -> list[float | None]:
    """For each session that the killed member served last: milliseconds without an answer beyond its pacing.

    An answer that the killed member still gave counts as before, whenever it arrived. None: no answer came.
    """
    gaps: list[float | None] = []
    for ops in sessions:
        answers = sorted(_served(ops), key=lambda op: op.ended)
        before = [
            op
            for op in answers
            if op.ended <= killing.killed_at or (op.served_by == killing.member and op.ended < killing.rejoined_at)
        ]
        if not before or before[-1].served_by != killing.member:
            continue
        last = before[-1].ended
        after = next((op for op in answers if op.ended > last), None)
        gaps.append(None if after is None else max(0.0, (after.ended - last - pacing) * 1000))
    return gaps


def _gap_summary(gaps: Sequence[float]) -> Gap:
    if not gaps:
        return Gap()
    return Gap(p50=percentile(gaps, 0.50), p99=percentile(gaps, 0.99), max=max(gaps))
