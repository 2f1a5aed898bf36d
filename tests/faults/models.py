"""What one session should do, as sequential models: a register with compare-and-set, a set of fields, and a list.

A model says what state follows when an operation takes effect in a state, or that it cannot take effect there. Values
and fields are written once only, so an operation that applies twice shows as a value that comes back.
"""

from collections.abc import Sequence
from typing import Protocol

from tests.faults.history import Kind, Op, Outcome

State = str | frozenset[str] | tuple[str, ...] | None


class Impossible:
    """The answer of a model to an operation that cannot take effect in a state."""


IMPOSSIBLE = Impossible()


class Model(Protocol):
    """The sequential behaviour of one session."""

    @property
    def initial(self) -> State:
        """The state before all operations."""
        ...

    def step(self, state: State, op: Op, lenient: bool) -> State | Impossible:
        """The state after ``op``; ``lenient``: an open write that nobody observed may stand behind a refusal."""
        ...

    def relevant(self, ops: Sequence[Op]) -> list[Op]:
        """The operations that matter: without the failed ones, and open writes whose effect nobody ever saw."""
        ...

    def observers(self, ops: Sequence[Op]) -> dict[str, list[int]]:
        """For each value the positions of the operations that must come before the value is written over."""
        ...


class Register:
    """A session that is put, compared-and-set, deleted and read as a whole. State: the value, None for none."""

    initial: State = None

    def step(self, state: State, op: Op, lenient: bool) -> State | Impossible:
        """See :class:`Model`."""
        refused = op.outcome is Outcome.REFUSED
        match op.kind:
            case Kind.READ:
                return state if op.seen == state else IMPOSSIBLE
            case Kind.CAS if refused:
                return state if state != op.expected or lenient else IMPOSSIBLE
            case Kind.CAS:
                return op.sent if state == op.expected else IMPOSSIBLE
            case Kind.DELETE if refused:
                return state if state is None or lenient else IMPOSSIBLE
            case Kind.DELETE:
                return None if state is not None or lenient else IMPOSSIBLE
            case Kind.PUT:
                told = op.outcome is Outcome.OK
                return IMPOSSIBLE if told and op.created is not (state is None) and not lenient else op.sent
        raise ValueError(f"not an operation of a register: {op.kind}")

    def relevant(self, ops: Sequence[Op]) -> list[Op]:
        """See :class:`Model`. An open delete is always kept: its effect has no name of its own."""
        observed = {op.seen for op in ops if op.kind is Kind.READ}
        observed |= {op.expected for op in ops if op.kind is Kind.CAS and op.outcome is Outcome.OK}
        open_cas = [op for op in ops if op.kind is Kind.CAS and op.outcome is Outcome.UNKNOWN]
        for op in reversed(open_cas):  # one that took effect has seen the value that it replaced
            if op.sent in observed:
                observed.add(op.expected)
        return [
            op
            for op in ops
            if op.outcome in (Outcome.OK, Outcome.REFUSED)
            or (op.outcome is Outcome.UNKNOWN and (op.kind is Kind.DELETE or (op.writes and op.sent in observed)))
        ]

    def observers(self, ops: Sequence[Op]) -> dict[str, list[int]]:
        """See :class:`Model`: a value that was written over can never be seen again."""
        found: dict[str, list[int]] = {}
        for position, op in enumerate(ops):
            if op.kind is Kind.READ and isinstance(op.seen, str):
                found.setdefault(op.seen, []).append(position)
            elif op.kind is Kind.CAS and op.outcome is Outcome.OK:
                found.setdefault(op.expected, []).append(position)
        return found


class Fields:
    """A session to which clients add fields of unique names, and remove them again. State: the names."""

    initial: State = frozenset()

    def step(self, state: State, op: Op, lenient: bool) -> State | Impossible:
        """See :class:`Model`. A refusal is impossible: the session is always there."""
        del lenient
        if op.outcome is Outcome.REFUSED or not isinstance(state, frozenset):
            return IMPOSSIBLE
        match op.kind:
            case Kind.READ:
                return state if isinstance(op.seen, tuple) and frozenset(op.seen) == state else IMPOSSIBLE
            case Kind.ADD:
                return state | {op.sent}
            case Kind.REMOVE:
                return state - {op.sent}
        raise ValueError(f"not an operation of fields: {op.kind}")

    def relevant(self, ops: Sequence[Op]) -> list[Op]:
        """See :class:`Model`."""
        reads = [op for op in ops if op.kind is Kind.READ and isinstance(op.seen, tuple)]
        observed: set[str] = set()
        for read in reads:
            observed.update(read.seen or ())
        return [
            op
            for op in ops
            if op.outcome in (Outcome.OK, Outcome.REFUSED)
            or (op.outcome is Outcome.UNKNOWN and op.kind is Kind.ADD and op.sent in observed)
            or (
                op.outcome is Outcome.UNKNOWN
                and op.kind is Kind.REMOVE
                and any(op.sent not in (read.seen or ()) and read.end > op.begin for read in reads)
            )
        ]

    def observers(self, ops: Sequence[Op]) -> dict[str, list[int]]:
        """See :class:`Model`: states of this model repeat, so there is no such shortcut."""
        del ops
        return {}


class Appends:
    """A list that is made, appended to and deleted. State: its values in order, None for no list.

    A write of unknown outcome may take effect at any later time, or never; one that was refused takes none.
    """

    initial: State = None

    def step(self, state: State, op: Op, lenient: bool) -> State | Impossible:
        """See :class:`Model`."""
        del lenient
        refused = op.outcome is Outcome.REFUSED
        match op.kind:
            case Kind.READ:
                return state if op.seen == state else IMPOSSIBLE
            case Kind.CREATE if refused:
                return state if state is not None else IMPOSSIBLE
            case Kind.CREATE:
                return () if state is None else IMPOSSIBLE
            case Kind.DELETE | Kind.APPEND if refused:
                return state if state is None else IMPOSSIBLE
            case Kind.DELETE:
                return None if state is not None else IMPOSSIBLE
            case Kind.APPEND:
                return (*state, op.sent) if isinstance(state, tuple) else IMPOSSIBLE
        raise ValueError(f"not an operation of a list: {op.kind}")

    def relevant(self, ops: Sequence[Op]) -> list[Op]:
        """See :class:`Model`. An open append that nobody saw may be left out: it may never have taken effect."""
        observed: set[str] = set()
        for op in ops:
            if op.kind is Kind.READ and isinstance(op.seen, tuple):
                observed.update(op.seen)
        return [
            op
            for op in ops
            if op.outcome in (Outcome.OK, Outcome.REFUSED)
            or (op.outcome is Outcome.UNKNOWN and (op.kind is not Kind.APPEND or op.sent in observed))
        ]

    def observers(self, ops: Sequence[Op]) -> dict[str, list[int]]:
        """See :class:`Model`: there is no such shortcut here."""
        del ops
        return {}


def model_of(ops: Sequence[Op]) -> Model:
    """The model that a session's operations belong to."""
    if any(op.kind in (Kind.CREATE, Kind.APPEND) for op in ops):
        return Appends()
    fields = any(op.kind in (Kind.ADD, Kind.REMOVE) or isinstance(op.seen, tuple) for op in ops)
    return Fields() if fields else Register()
