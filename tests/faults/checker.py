"""Decides whether a history keeps the promises of the session protocol. Independent of the code under test.

The promises: each session is linearizable; no acknowledged write is lost and none applied twice (both follow, since
values are unique and the last reads go through every member); epochs never go back for writes; one member answers per
slot and epoch; every owner record has the next epoch and, when the active changes, a cause that is told; answers are
among those documented in ``docs/api.md``. The classes of durability have promises of their own (``durability.py``).

Reads from the owner's memory count as linearizable too, unless the pool's takeover is ``fast`` and they overlap a
fault: ``docs/ownership.md`` lets a replaced owner answer them for 1.5 s.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.faults import durability
from tests.faults.history import Attempt, FaultWindow, History, Kind, Op, Outcome
from tests.faults.linearizability import explain
from tests.faults.models import model_of

AFTERMATH = 3.0
"""Seconds after a fault's end during which a replaced owner may still answer from memory: 1.5 and some to spare."""

DOCUMENTED = frozenset({0, 200, 201, 204, 404, 409, 412, 503})
"""What the clients' calls may be answered with; 421, 422 and 500 among others would be faults.

409 is for a request that is too old. A member whose clock jumps while etcd is away takes new ones for old.
"""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which, where, and the lines of the history that show it."""

    promise: str
    where: str
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.promise} ({self.where})", *(f"    {line}" for line in self.evidence)])


def check(history: History, *, takeover: str) -> list[Violation]:
    """All violations in a history of a pool with ``takeover`` ``fast`` or ``lease``."""
    found: list[Violation] = []
    losses = durability.losses_of(history)
    for session, ops in history.sessions().items():
        counted = [op for op in ops if takeover == "lease" or not _exempt(op, history.faults)]
        lost = durability.losses_among(ops, losses)
        kept = durability.before_losses(counted, lost) if lost else counted
        found.extend(check_session(session, durability.softened(kept, history.faults)))
        found.extend(Violation(*one) for one in durability.check_versions(counted, lost))
        if lost:
            found.extend(Violation(*one) for one in durability.check_after_losses(session, counted, lost))
    found.extend(Violation(*one) for one in durability.check_classes(history.ops))
    found.extend(Violation(*one) for one in durability.check_losses(history))
    found.extend(check_answers(history.ops))
    found.extend(check_writers(history.ops))
    found.extend(check_epochs(history.ops))
    found.extend(check_owner_records(history))
    return found


def _exempt(op: Op, faults: Iterable[FaultWindow]) -> bool:
    """Whether ``takeover: fast`` excuses this operation: an owner read beside a fault."""
    if op.kind is not Kind.READ or op.linearizable:
        return False
    return any(op.begin < fault.end + AFTERMATH and fault.begin < op.end for fault in faults)


def check_session(session: str, ops: Sequence[Op]) -> list[Violation]:
    """Linearizability of one session; the evidence is where every order gets stuck."""
    stuck = explain(model_of(ops), ops)
    if stuck is None:
        return []
    edge = min((op.begin for op in stuck.blocked), default=0.0)
    evidence = [f"state after {len(stuck.ordered)} operations: {_short(stuck.state)}", "what came before:"]
    evidence += [op.line() for op in stuck.ordered[-8:]]
    evidence += ["what nothing explains:", *(op.line() for op in stuck.blocked)]
    placed = {id(op) for op in (*stuck.ordered, *stuck.blocked)}
    evidence += ["who saw that state later:"]
    evidence += [op.line() for op in ops if stuck.state in (op.seen, op.expected) and id(op) not in placed][:4]
    evidence += ["open, failed and refused beside it:"]
    evidence += [
        op.line()
        for op in ops
        if op.outcome in (Outcome.UNKNOWN, Outcome.FAILED, Outcome.REFUSED) and op.writes and op.end > edge - 15
    ][:12]
    promise = "not decided: too many configurations" if stuck.gave_up else "not linearizable"
    return [Violation(promise, f"session {session}", tuple(evidence))]


def _short(state: object) -> str:
    text = ", ".join(sorted(state)) if isinstance(state, frozenset) else str(state)
    return text if len(text) < 200 else f"...{text[-200:]}"


def check_answers(ops: Iterable[Op]) -> list[Violation]:
    """Every answer is one that the API documents for such a call."""
    return [
        Violation("an answer that is not documented", f"session {op.session}", (op.line(),))
        for op in ops
        if any(attempt.status not in DOCUMENTED for attempt in op.attempts)
    ]


def _placed(ops: Iterable[Op]) -> Iterable[tuple[Op, Attempt]]:
    for op in ops:
        for attempt in op.attempts:
            if attempt.epoch and attempt.served_by:
                yield op, attempt


def check_writers(ops: Iterable[Op]) -> list[Violation]:
    """At most one member answers for a slot in one epoch."""
    served: dict[tuple[int, int], dict[str, Op]] = defaultdict(dict)
    for op, attempt in _placed(ops):
        served[attempt.slot, attempt.epoch].setdefault(attempt.served_by, op)
    return [
        Violation("two members in one epoch", f"slot {slot} epoch {epoch}", tuple(op.line() for op in who.values()))
        for (slot, epoch), who in served.items()
        if len(who) > 1
    ]


def check_epochs(ops: Iterable[Op]) -> list[Violation]:
    """A write (or linearizable read) that begins after one of epoch e ended is never answered in an earlier epoch.

    Answers to repeats, refusals and ``async`` writes, and reads from memory, are given without asking anybody, so they
    do not count.
    """
    fenced: dict[int, list[tuple[Op, Attempt]]] = defaultdict(list)
    for op, attempt in _placed(ops):
        answered = op.outcome is Outcome.OK and attempt is op.answer and not attempt.repeated
        if answered and op.linearizable and attempt.durability != "async":
            fenced[attempt.slot].append((op, attempt))
    found = []
    for slot, answers in fenced.items():
        by_begin = sorted(answers, key=lambda entry: entry[1].begin)
        by_end = sorted(answers, key=lambda entry: entry[1].end)
        highest: tuple[Op, Attempt] | None = None
        position = 0
        for op, attempt in by_begin:
            while by_end[position][1].end < attempt.begin:
                if highest is None or by_end[position][1].epoch > highest[1].epoch:
                    highest = by_end[position]
                position += 1
            if highest is not None and attempt.epoch < highest[1].epoch:
                found.append(Violation("an epoch went back", f"slot {slot}", (highest[0].line(), op.line())))
    return found


def check_owner_records(history: History) -> list[Violation]:
    """Owner records as etcd had them: the epoch rises by one with each process, and a cause is told."""
    found = []
    last: dict[int, tuple[str, str, int]] = {}
    for change in sorted(history.owners, key=lambda change: change.revision):
        line = f"revision {change.revision}: {change.active}/{change.boot} epoch {change.epoch} {change.cause!r}"
        active, boot, epoch = last.get(change.slot, ("", "", 0))
        moved = (active, boot) != (change.active, change.boot)
        if change.epoch < epoch or (moved and change.epoch != epoch + 1):
            found.append(
                Violation("an owner record's epoch does not follow", f"slot {change.slot}", (f"epoch {epoch}", line))
            )
        if moved and not change.cause:
            found.append(Violation("a slot moved without a cause", f"slot {change.slot}", (line,)))
        last[change.slot] = (change.active, change.boot, change.epoch)
    return found


def needless_takeovers(history: History) -> Counter[str]:
    """Takeovers from members that no fault had touched, by cause: not a violation, but worth a look."""
    needless: Counter[str] = Counter()
    last: dict[int, str] = {}
    for change in sorted(history.owners, key=lambda change: change.revision):
        source = last.get(change.slot, "")
        last[change.slot] = change.active
        if " lost: " not in change.cause or source in ("", change.active):
            continue
        touched = any(
            (source in fault.members or not fault.members) and fault.begin <= change.at <= fault.end + 2 * AFTERMATH
            for fault in history.faults
        )
        if not touched:
            needless[change.cause] += 1
    return needless
