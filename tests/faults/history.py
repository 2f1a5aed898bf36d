"""What clients did and saw: the record that the checker judges. Knows nothing of the code under test.

An operation begins when its first attempt is sent and ends when its client knows no more than it ever will. Several
attempts with one ``Idempotency-Key`` are one operation. Its outcome is what the client may rely on: ``ok``, ``refused``
(an answer that says something about the state: 404, 412), ``failed`` (surely no effect) or ``unknown`` (it may have
taken effect, or may at any later time). Times are seconds of one monotonic clock.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What became of an operation."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Kind(StrEnum):
    """What an operation asks for."""

    READ = "read"
    PUT = "put"
    CAS = "cas"
    DELETE = "delete"
    CREATE = "create"
    APPEND = "append"
    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP exchange; ``status`` 0 means that no answer came, and ``note`` says why."""

    member: str
    begin: float
    end: float
    status: int = 0
    note: str = ""
    slot: int = -1
    epoch: int = 0
    served_by: str = ""
    etag: str = ""
    repeated: bool = False
    durability: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on one session.

    ``sent``: the value written or the field added or removed; ``expected``: what a ``cas`` replaces; ``seen``: what a
    read found (None: no such session), for a session of fields their names, sorted; ``created``: whether a ``put``
    was told that the session is new. ``linearizable`` is False for a read from the owner's memory. ``asked`` is the
    class of durability that a write asked for, '' for the pool's.
    """

    session: str
    kind: Kind
    begin: float
    end: float
    outcome: Outcome
    client: int = 0
    sent: str = ""
    expected: str = ""
    seen: str | tuple[str, ...] | None = None
    created: bool = False
    linearizable: bool = True
    attempts: tuple[Attempt, ...] = ()
    asked: str = ""

    @property
    def answer(self) -> Attempt | None:
        """The attempt that was answered with the operation's outcome."""
        settled = self.outcome in (Outcome.OK, Outcome.REFUSED)
        return self.attempts[-1] if settled and self.attempts else None

    @property
    def durability(self) -> str:
        """The class that the answer to an acknowledged write told; '' for everything else."""
        return self.attempts[-1].durability if self.outcome is Outcome.OK and self.attempts else ""

    @property
    def epoch(self) -> int:
        """The epoch in which it was answered; 0 if it was not."""
        return self.answer.epoch if self.answer else 0

    @property
    def slot(self) -> int:
        """The slot of its session, as an attempt was told; -1 if none was."""
        return max((attempt.slot for attempt in self.attempts), default=-1)

    @property
    def writes(self) -> bool:
        """Whether it asks for a change."""
        return self.kind is not Kind.READ

    def line(self) -> str:
        """The operation in one line, for people."""
        what = f"{self.sent or ''}" + (f" if {self.expected}" if self.expected else "")
        if self.kind is Kind.READ:
            what = f"saw {self.seen}" if self.outcome is not Outcome.FAILED else ""
            what += "" if self.linearizable else " (owner read)"
        tries = "; ".join(
            f"{a.member} {a.status or '-'}{' repeated' if a.repeated else ''}"
            + (f" by {a.served_by}@{a.epoch}" if a.served_by else "")
            + (f" etag {a.etag}" if a.etag else "")
            + (f" {a.durability}" if a.durability else "")
            + (f" [{a.note}]" if a.note else "")
            for a in self.attempts
        )
        end = "open" if math.isinf(self.end) else f"{self.end:.4f}"
        return f"{self.begin:.4f} - {end} client {self.client:2} {self.kind:6} {self.outcome:8} {what} <{tries}>"


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """A fault that was in force from ``begin`` to ``end``; ``members`` are those it was done to."""

    name: str
    members: tuple[str, ...]
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class OwnerChange:
    """A version of an owner record as etcd had it."""

    slot: int
    active: str
    boot: str
    epoch: int
    phase: str
    cause: str
    revision: int
    at: float


@dataclass(frozen=True, slots=True)
class SyncChange:
    """A version of a slot's sync set as etcd had it. A process is a member and its boot."""

    slot: int
    epoch: int
    members: tuple[tuple[str, str], ...]
    former: tuple[tuple[str, str], ...]
    memory: bool
    losses: int
    revision: int
    at: float


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A process of a member, by its ``boot``, was first seen in etcd; without a boot: the one before has ended."""

    member: str
    boot: str
    at: float


@dataclass
class History:
    """All that was recorded in one round."""

    ops: list[Op] = field(default_factory=list)
    faults: list[FaultWindow] = field(default_factory=list)
    owners: list[OwnerChange] = field(default_factory=list)
    syncs: list[SyncChange] = field(default_factory=list)
    processes: list[ProcessSeen] = field(default_factory=list)

    def sessions(self) -> dict[str, list[Op]]:
        """The operations by session."""
        grouped: dict[str, list[Op]] = {}
        for op in self.ops:
            grouped.setdefault(op.session, []).append(op)
        return grouped

    def dump(self, path: Path) -> None:
        """Write everything as JSON lines."""
        with path.open("w", encoding="utf-8") as file:
            kinds = {
                "fault": self.faults,
                "owner": self.owners,
                "sync": self.syncs,
                "process": self.processes,
                "op": self.ops,
            }
            for kind, records in kinds.items():
                for record in records:
                    file.write(json.dumps({"record": kind, **dataclasses.asdict(record)}) + "\n")

    @classmethod
    def load(cls, lines: Iterable[str]) -> "History":
        """Read what :meth:`dump` wrote."""
        history = cls()
        for line in lines:
            raw: dict[str, Any] = json.loads(line)
            match raw.pop("record"):
                case "fault":
                    history.faults.append(FaultWindow(**{**raw, "members": tuple(raw["members"])}))
                case "owner":
                    history.owners.append(OwnerChange(**raw))
                case "sync":
                    processes = {key: tuple(map(tuple, raw[key])) for key in ("members", "former")}
                    history.syncs.append(SyncChange(**{**raw, **processes}))
                case "process":
                    history.processes.append(ProcessSeen(**raw))
                case "op":
                    raw["attempts"] = tuple(Attempt(**attempt) for attempt in raw["attempts"])
                    seen = raw["seen"]
                    raw["seen"] = tuple(seen) if isinstance(seen, list) else seen
                    raw["kind"], raw["outcome"] = Kind(raw["kind"]), Outcome(raw["outcome"])
                    history.ops.append(Op(**raw))
        return history
