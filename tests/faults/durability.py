"""What each class of durability promises, judged by what clients saw. Independent of the code under test.

- An acknowledged ``sync`` write is never lost.
- An acknowledged ``replicas`` write may be lost only if all processes that must have it are dead, and the slot's record
  counts that loss. Then those may be missing that are younger than the checkpoint.
- An acknowledged ``async`` write may be lost by a fault.
- The answer tells a class that is at least as strong as the one asked for.
- The versions of a session rise.

A loss is found by its epoch: everything that was answered in an earlier epoch of the slot comes before it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.faults.history import FaultWindow, History, Kind, Op, Outcome, ProcessSeen, SyncChange

STRENGTH = {"async": 0, "replicas": 1, "sync": 2}
CHECKPOINT = 1.0
"""Seconds: ``replication.checkpoint_ms`` of the pools under test."""
MARGIN = 1.5
"""Seconds that a checkpoint may take on a busy machine."""
ASYNC_DELAY = 2.0
"""Seconds after its answer within which an ``async`` write is surely kept, if nothing happens."""
LATE_COPY = 30.0
"""Seconds after its client has given up within which a copy of a request may still take effect."""
NOTED_LATE = 1.0
"""Seconds by which the test may learn of the end of a process later than members do."""

Found = tuple[str, str, tuple[str, ...]]
"""A broken promise, where, and the evidence."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A slot was claimed from etcd although its processes may have acknowledged more.

    ``epoch`` is the first after it. ``safe_until``: ``replicas`` writes that were acknowledged before are kept.
    """

    slot: int
    epoch: int
    safe_until: float


def losses_of(history: History) -> dict[int, list[Loss]]:
    """The losses of each slot, in order."""
    found: dict[int, list[Loss]] = defaultdict(list)
    for before, after in _counted(history.syncs):
        found[after.slot].append(Loss(after.slot, after.epoch, _safe_until(before, after, history)))
    return found


def losses_among(ops: Sequence[Op], losses: Mapping[int, Sequence[Loss]]) -> list[Loss]:
    """The losses in the life of one session: those after its first answer."""
    first = min((op.epoch for op in ops if op.epoch), default=0)
    slot = max((op.slot for op in ops), default=-1)
    return [loss for loss in losses.get(slot, ()) if loss.epoch > first]


def _counted(syncs: Iterable[SyncChange]) -> Iterable[tuple[SyncChange, SyncChange]]:
    """The records that count a loss, each with the one before it."""
    last: dict[int, SyncChange] = {}
    for change in sorted(syncs, key=lambda change: change.revision):
        before = last.get(change.slot)
        if before is not None and change.losses > before.losses:
            yield before, change
        last[change.slot] = change


def _safe_until(before: SyncChange, after: SyncChange, history: History) -> float:
    """When the last checkpoint that surely succeeded began.

    The first process of the set that ended may be the one that saved. A fault may have kept it from that before.
    """
    ends = [_ended(process, history.processes) for process in before.members]
    known = [end for end in ends if end is not None and end <= after.at + NOTED_LATE]
    safe = min(known, default=after.at) - CHECKPOINT - MARGIN
    for fault in sorted(history.faults, key=lambda fault: -fault.begin):
        if fault.begin < safe + CHECKPOINT + MARGIN and fault.end > safe:
            safe = min(safe, fault.begin - CHECKPOINT - MARGIN)
    return safe


def _ended(process: tuple[str, str], processes: Sequence[ProcessSeen]) -> float | None:
    """When a process had ended at the latest; None if it has not."""
    member, boot = process
    seen = [one for one in processes if one.member == member]
    began = next((one.at for one in seen if one.boot == boot), None)
    if began is None:
        began = float("-inf")
    later = [one.at for one in seen if one.at > began and one.boot != boot]
    return min(later, default=None)


def check_losses(history: History) -> list[Found]:
    """A loss is counted only when every process that may have more is dead: the set, and former actives."""
    owners = {(change.slot, change.epoch): (change.active, change.boot) for change in history.owners}
    found: list[Found] = []
    for before, after in _counted(history.syncs):
        claimer = owners.get((after.slot, after.epoch))
        others = {*before.members, *before.former} | {owners.get((before.slot, before.epoch), ("", ""))}
        for process in sorted(others - {claimer, ("", "")}):
            end = _ended(process, history.processes)
            if end is None or end > after.at + NOTED_LATE:
                evidence = (str(before), str(after), f"{process} ended at {end}")
                found.append(("a loss while a process of the set lives", f"slot {after.slot}", evidence))
    return found


def check_classes(ops: Iterable[Op]) -> list[Found]:
    """Every acknowledged write tells a class that is as strong as asked for."""
    found: list[Found] = []
    for op in ops:
        if op.outcome is not Outcome.OK or not op.asked or not op.writes:
            continue
        if STRENGTH.get(op.durability, -1) < STRENGTH[op.asked]:
            found.append((f"asked for {op.asked}, answered as {op.durability or 'none'}", op.session, (op.line(),)))
    return found


def check_versions(ops: Sequence[Op], losses: Sequence[Loss]) -> list[Found]:
    """The versions in the answers of one session rise: a later write has a newer one, a later read none that is older.

    Not judged: repeated answers, which are the first ones, and what a loss lies between.
    """
    parts: dict[int, list[tuple[Op, tuple[int, int]]]] = defaultdict(list)
    for op in ops:
        version = version_in(op.attempts[-1].etag) if op.outcome is Outcome.OK and op.attempts else None
        if version is not None and not op.attempts[-1].repeated:
            parts[sum(loss.epoch <= op.epoch for loss in losses)].append((op, version))
    found: list[Found] = []
    for answered in parts.values():
        by_end = sorted(answered, key=lambda entry: entry[0].attempts[-1].end)
        position, highest = 0, None
        for op, version in sorted(answered, key=lambda entry: entry[0].begin):
            while by_end[position][0].attempts[-1].end < op.begin:
                if highest is None or by_end[position][1] > highest[1]:
                    highest = by_end[position]
                position += 1
            if highest is not None and (version < highest[1] or (op.writes and version == highest[1])):
                found.append(("a version went back", f"session {op.session}", (highest[0].line(), op.line())))
    return found


def version_in(etag: str) -> tuple[int, int] | None:
    """Epoch and index of an ETag such as ``"7.42"``; None for none."""
    epoch, _, index = etag.strip('"').partition(".")
    return (int(epoch), int(index)) if epoch and index else None


def softened(ops: Sequence[Op], faults: Sequence[FaultWindow]) -> list[Op]:
    """The operations of a session, with those ``async`` writes as open ones that a fault may have undone."""
    return [
        replace(op, outcome=Outcome.UNKNOWN) if op.durability == "async" and _beside(op, faults) else op for op in ops
    ]


def _beside(op: Op, faults: Iterable[FaultWindow]) -> bool:
    return any(op.begin < fault.end + ASYNC_DELAY and fault.begin < op.end + ASYNC_DELAY for fault in faults)


def before_losses(ops: Sequence[Op], losses: Sequence[Loss]) -> list[Op]:
    """The operations that were answered before the first loss, and those without an answer, whose epoch is 0."""
    first = min(loss.epoch for loss in losses)
    return [op for op in ops if op.epoch < first]


def check_after_losses(session: str, ops: Sequence[Op], losses: Sequence[Loss]) -> list[Found]:
    """What is read after a loss lacks no write that must be kept, and has nothing that nobody wrote."""
    first = min(loss.epoch for loss in losses)
    kept = [op for op in ops if op.outcome is Outcome.OK and op.writes and _is_kept(op, losses)]
    reads = [op for op in ops if op.kind is Kind.READ and op.outcome is Outcome.OK and op.linearizable]
    kinds = {op.kind for op in ops}
    judge: Callable[[Op, Sequence[Op], Sequence[Op]], tuple[Op, ...]] = _written_over
    if kinds & {Kind.ADD, Kind.REMOVE}:
        judge = _fields_missing
    elif Kind.APPEND in kinds:
        judge = _items_missing
    found: list[Found] = []
    for read in reads:
        if read.epoch < first:
            continue
        missing = judge(read, kept, ops)
        if missing:
            evidence = (*(op.line() for op in missing), read.line())
            found.append(("an acknowledged write is gone after a loss", f"session {session}", evidence))
        unknown = _of_nobody(read, ops)
        if unknown:
            found.append(("a value that nobody wrote", f"session {session}", (f"{unknown}", read.line())))
    return found


def _is_kept(op: Op, losses: Sequence[Loss]) -> bool:
    """Whether an acknowledged write has to survive the next loss after it."""
    after = [loss for loss in losses if loss.epoch > op.epoch]
    match op.durability:
        case "sync":
            return True
        case "replicas":
            return not after or op.end < min(loss.safe_until for loss in after)
    return False


def _fields_missing(read: Op, kept: Sequence[Op], ops: Sequence[Op]) -> tuple[Op, ...]:
    seen = read.seen if isinstance(read.seen, tuple) else ()
    tried = {op.sent for op in ops if op.kind is Kind.REMOVE and op.outcome is not Outcome.FAILED}
    settled = [op for op in kept if op.end < read.begin]
    gone = [op for op in settled if op.kind is Kind.ADD and op.sent not in seen and op.sent not in tried]
    return (*gone, *(op for op in settled if op.kind is Kind.REMOVE and op.sent in seen))


def _items_missing(read: Op, kept: Sequence[Op], ops: Sequence[Op]) -> tuple[Op, ...]:
    """The items that were appended before the read, and since then nobody has tried to delete the list."""
    seen = read.seen if isinstance(read.seen, tuple) else ()
    deletes = [op for op in ops if op.kind is Kind.DELETE and op.outcome is not Outcome.REFUSED and op.begin < read.end]
    last = max((op.end + (0 if op.outcome is Outcome.OK else LATE_COPY) for op in deletes), default=-math.inf)
    return tuple(
        op for op in kept if op.kind is Kind.APPEND and last < op.begin and op.end < read.begin and op.sent not in seen
    )


def _written_over(read: Op, kept: Sequence[Op], ops: Sequence[Op]) -> tuple[Op, ...]:
    """The kept writes that were acknowledged before the read, and begun after what it saw had been acknowledged."""
    if read.seen is None:
        sources = [op for op in ops if op.kind is Kind.DELETE and op.outcome is not Outcome.FAILED]
    else:
        sources = [op for op in ops if op.writes and op.sent == read.seen]
    open_ones = [op for op in sources if op.outcome is not Outcome.OK]
    if open_ones:
        return ()
    newest = max((op.end for op in sources), default=float("-inf"))
    later = [op for op in kept if newest < op.begin and op.end < read.begin and op.kind is not Kind.ADD]
    return tuple(op for op in later if op not in sources)


def _of_nobody(read: Op, ops: Sequence[Op]) -> set[str]:
    seen = set(read.seen) if isinstance(read.seen, tuple) else {read.seen} if read.seen is not None else set()
    sent = {op.sent for op in ops if op.writes and op.begin < read.end and op.outcome is not Outcome.FAILED}
    return seen - sent
