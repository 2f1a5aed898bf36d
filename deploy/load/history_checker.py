"""Checks a history of requests: counts lost and duplicated writes, moved sessions and long waits.

Pure, and independent of the system under test: it knows requests, answers and the final content of sessions, but no
slots, owners or etcd. Each write adds its own sku to its session, so the final content shows for every write whether it
is there, missing or doubled. ``http_load`` and ``tcp_load`` generate the load.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

OpKind = Literal["create", "read", "write", "check"]
Content = Mapping[str, int]
"""The content of a session: quantity by sku."""


@dataclass(frozen=True, slots=True)
class Op:
    """One request as its client saw it.

    Times are seconds of the client's monotonic clock. ``status`` is 0 if there was no answer. ``wrote`` is the sku that
    a write added. ``seen`` is the content in the answer, None if it had none. ``attempts`` is the number of times that
    Envoy sent the request. ``version`` is the entity tag in the answer, '' for none.
    """

    session: str
    kind: OpKind
    started: float
    ended: float
    status: int
    served_by: str = ""
    wrote: str = ""
    seen: Content | None = None
    error: str = ""
    attempts: int = 1
    version: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the answer was a success. Clients do not retry."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class MemberKill:
    """The member that was killed, with the times of the kill and of its new start, by the clock of the operations.

    ``others`` are members that were killed at the same time.
    """

    member: str
    killed_at: float
    rejoined_at: float = math.inf
    others: frozenset[str] = frozenset()

    def hit(self, member: str | None) -> bool:
        """Whether ``member`` was killed."""
        return member == self.member or member in self.others


@dataclass(frozen=True, slots=True)
class ClientGap:
    """How much longer than their normal pace clients waited around a kill, in ms; NaN if none waited."""

    p50: float = math.nan
    p99: float = math.nan
    max: float = math.nan


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The result of a check. :attr:`flawless` is the overall result; the other fields have the details.

    ``answered_elsewhere`` counts single answers of a member that served the session neither before nor after. No
    session moved because of them.
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
    client_gap_ms: ClientGap
    rejoin_failed_requests: int
    rejoin_sessions_moved: int
    failures: tuple[str, ...] = field(default=())

    @property
    def flawless(self) -> bool:
        """Whether nothing was lost, duplicated, refused or moved needlessly."""
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


def check_history(
    history: Sequence[Op],
    final: Mapping[str, Content | None],
    killing: MemberKill | None = None,
    *,
    pacing: float = 0.0,
) -> HistoryReport:
    """Check the history of a run.

    Args:
        history: every request of every client, in any order, with the final reads.
        final: the content of each session at the end; None or missing if it could not be read.
        killing: the member that was killed; None if none was.
        pacing: normal seconds between two requests of one session.
    """
    sessions = _by_session(history)
    failed = [op for op in history if not op.succeeded]
    contents = [_check_content(ops, final.get(session)) for session, ops in sessions.items()]
    gaps = _gaps(sessions.values(), killing, pacing) if killing else []
    answered = [gap for gap in gaps if gap is not None]
    return HistoryReport(
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
        failures=tuple(_failure(op) for op in failed[:20]),
    )


def _failure(op: Op) -> str:
    """What a client saw of a request that failed."""
    seconds = op.ended - op.started
    return f"{op.kind} {op.session}: {op.status or op.error} after {seconds:.1f} s, attempts {op.attempts}"


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class _ContentReport:
    lost: int
    duplicated: int
    unexplained: int


def _by_session(history: Sequence[Op]) -> dict[str, list[Op]]:
    sessions: dict[str, list[Op]] = defaultdict(list)
    for op in sorted(history, key=lambda op: op.started):
        sessions[op.session].append(op)
    return dict(sessions)


def _check_content(ops: Sequence[Op], content: Content | None) -> _ContentReport:
    """Compare the final content of a session with the answers to its client.

    A write without an acknowledgement may have taken effect once, or not at all. A sku that the client never wrote
    comes from another session.
    """
    found: Content = content or {}
    acknowledged = {op.wrote for op in ops if op.kind == "write" and op.succeeded}
    attempted = {op.wrote for op in ops if op.kind == "write"}
    return _ContentReport(
        lost=sum(found.get(sku, 0) < 1 for sku in acknowledged),
        duplicated=sum(found.get(sku, 0) > 1 for sku in attempted),
        unexplained=sum(sku not in attempted for sku in found),
    )


def _stale_reads(ops: Sequence[Op]) -> int:
    """The number of answers without a write that the same client had acknowledged before it asked."""
    acknowledged = [(op.ended, op.wrote) for op in ops if op.kind == "write" and op.succeeded]
    return sum(
        any(ended <= op.started and sku not in op.seen for ended, sku in acknowledged)
        for op in ops
        if op.succeeded and op.seen is not None and op.kind != "check"
    )


def _moved_needlessly(ops: Sequence[Op], killing: MemberKill | None) -> bool:
    """Whether the session left a member that was alive, except to return once to the restarted member.

    A standby may answer a single request by asking the active: Envoy repeated the request, or avoided the active
    because of a failed health check, or does not use the restarted member yet. Only the next request shows whether the
    session moved.
    """
    answers = _served(ops)
    excursions = _excursions(answers, killing)
    served = [op for number, op in enumerate(answers) if op.attempts == 1 and number not in excursions]
    for before, after in itertools.pairwise(served):
        if before.served_by == after.served_by:
            continue
        if killing is None:
            return True
        left_killed_member = killing.hit(before.served_by) and before.started < killing.rejoined_at
        if not (left_killed_member or _came_back(after, killing)):
            return True
        if left_killed_member and after.ended < killing.killed_at:
            return True
    return False


def _came_back(op: Op, killing: MemberKill) -> bool:
    """Whether the killed member gave this answer after its restart."""
    return killing.hit(op.served_by) and op.ended >= killing.rejoined_at


def _excursions(served: Sequence[Op], killing: MemberKill | None) -> set[int]:
    """The single answers of a session from a member that served it neither before nor after.

    The same member served it before and after, or the restarted member served it after.
    """
    away: set[int] = set()
    for number, (before, op, after) in enumerate(zip(served, served[1:], served[2:], strict=False), start=1):
        settled = before.served_by == after.served_by or (killing is not None and _came_back(after, killing))
        if settled and op.served_by not in (before.served_by, after.served_by) and number - 1 not in away:
            away.add(number)
    return away


def _served(ops: Sequence[Op]) -> list[Op]:
    """The answered requests with the session's key. Another member may have created the session."""
    return [op for op in ops if op.succeeded and op.served_by and op.kind != "create"]


def _moved_back(ops: Sequence[Op], killing: MemberKill) -> bool:
    """Whether the restarted member served the session after its restart, and another member before."""
    served = _served(ops)
    return any(
        not killing.hit(before.served_by) and _came_back(after, killing) for before, after in itertools.pairwise(served)
    )


def _gaps(sessions: Iterable[Sequence[Op]], killing: MemberKill, pacing: float) -> list[float | None]:
    """For each session that the killed member served last: ms without an answer, minus the normal pace.

    An answer of the killed member counts as before the kill, even if it arrived later. None: there was no answer.
    """
    gaps: list[float | None] = []
    for ops in sessions:
        answers = sorted(_served(ops), key=lambda op: op.ended)
        before = [
            op
            for op in answers
            if op.ended <= killing.killed_at or (killing.hit(op.served_by) and op.ended < killing.rejoined_at)
        ]
        if not before or not killing.hit(before[-1].served_by):
            continue
        last = before[-1].ended
        after = next((op for op in answers if op.ended > last), None)
        gaps.append(None if after is None else max(0.0, (after.ended - last - pacing) * 1000))
    return gaps


def _gap_summary(gaps: Sequence[float]) -> ClientGap:
    if not gaps:
        return ClientGap()
    return ClientGap(p50=percentile(gaps, 0.50), p99=percentile(gaps, 0.99), max=max(gaps))
