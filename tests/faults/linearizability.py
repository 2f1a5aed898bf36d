"""Is there an order of the operations that explains what everyone saw? Wing and Gong's search, as Lowe improved it.

J. M. Wing, C. Gong, "Testing and verifying concurrent objects" (1993); G. Lowe, "Testing for linearizability" (2017).
An order must keep every operation within its own begin and end; an operation of unknown outcome may take effect at any
time after its begin, or never. Configurations (which operations have taken effect, and the state) that led nowhere are
remembered, so the search is nearly linear for histories of a few concurrent clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.history import Op, Outcome
from tests.faults.models import Impossible, Model, State

CONFIGURATIONS_MOST = 2_000_000


@dataclass(frozen=True, slots=True)
class Stuck:
    """No order was found. ``ordered``: the longest one; ``state`` after it; ``blocked``: what could not follow."""

    ordered: tuple[Op, ...]
    state: State
    blocked: tuple[Op, ...]
    gave_up: bool = False


class _Node:
    """The begin (or, with ``back``, the end) of an operation in the list of events by time."""

    __slots__ = ("back", "following", "position", "previous")

    def __init__(self, position: int, back: "_Node | None") -> None:
        self.position = position
        self.back = back
        self.previous: _Node | None = None
        self.following: _Node | None = None

    def unlink(self) -> None:
        if self.previous is not None:
            self.previous.following = self.following
        if self.following is not None:
            self.following.previous = self.previous

    def link(self) -> None:
        if self.previous is not None:
            self.previous.following = self
        if self.following is not None:
            self.following.previous = self


def _timeline(ops: Sequence[Op]) -> tuple[_Node, dict[int, _Node]]:
    """The head of the event list, and the end node of each operation that surely took effect."""
    events: list[tuple[float, int, int]] = []
    for position, op in enumerate(ops):
        events.append((op.begin, 0, position))
        if op.outcome is not Outcome.UNKNOWN:
            events.append((op.end, 1, position))
    head = _Node(-1, None)
    last = head
    begins: dict[int, _Node] = {}
    ends: dict[int, _Node] = {}
    for _, is_end, position in sorted(events):
        node = _Node(position, begins[position] if is_end else None)
        (ends if is_end else begins)[position] = node
        last.following, node.previous = node, last
        last = node
    return head, ends


class _Search:
    def __init__(self, model: Model, ops: Sequence[Op], lenient: Sequence[bool]) -> None:
        self._model = model
        self._ops = ops
        self._lenient = lenient
        self._head, self._ends = _timeline(ops)
        self._observers = {value: _mask(found) for value, found in model.observers(ops).items()}
        self._state = model.initial
        self._done = 0
        self._missing = len(self._ends)
        self._path: list[tuple[_Node, State]] = []
        self._tried: set[tuple[int, State]] = set()
        self._best: tuple[list[int], State, int] = ([], model.initial, 0)

    def run(self) -> Stuck | None:
        node = self._head.following
        while self._missing:
            if len(self._tried) > CONFIGURATIONS_MOST:
                return self._stuck(gave_up=True)
            if node is not None and node.back is None:
                node = self._head.following if self._take(node) else node.following
                continue
            self._note(node)
            if not self._path:
                return self._stuck()
            node = self._undo()
        return None

    def _take(self, node: _Node) -> bool:
        """Let the operation that begins here take effect now, if it can and this was not tried before."""
        position, before = node.position, self._state
        bit = 1 << position
        after = self._model.step(before, self._ops[position], self._lenient[position])
        if isinstance(after, Impossible):
            return False
        if after != before and isinstance(before, str) and self._observers.get(before, 0) & ~(self._done | bit):
            return False
        configuration = (self._done | bit, after)
        if configuration in self._tried:
            return False
        self._tried.add(configuration)
        self._path.append((node, before))
        self._state, self._done = after, self._done | bit
        node.unlink()
        end = self._ends.get(position)
        if end is not None:
            end.unlink()
            self._missing -= 1
        return True

    def _undo(self) -> _Node | None:
        node, self._state = self._path.pop()
        self._done &= ~(1 << node.position)
        end = self._ends.get(node.position)
        if end is not None:
            end.link()
            self._missing += 1
        node.link()
        return node.following

    def _note(self, node: _Node | None) -> None:
        if len(self._path) > len(self._best[0]) or not self._best[0]:
            self._best = ([n.position for n, _ in self._path], self._state, -1 if node is None else node.position)

    def _stuck(self, *, gave_up: bool = False) -> Stuck:
        path, state, blocked = self._best
        at = self._ops[blocked].end if blocked >= 0 else float("inf")
        waiting = [op for n, op in enumerate(self._ops) if n not in set(path) and op.begin <= at]
        return Stuck(tuple(self._ops[n] for n in path), state, tuple(waiting), gave_up)


def _mask(positions: Sequence[int]) -> int:
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def explain(model: Model, ops: Sequence[Op]) -> Stuck | None:
    """None if the operations of one session are linearizable, else how far an order got."""
    kept = model.relevant(ops)
    chosen = {id(op) for op in kept}
    doubts = [op.begin for op in ops if op.outcome is Outcome.UNKNOWN and op.writes and id(op) not in chosen]
    first_doubt = min(doubts, default=float("inf"))
    return _Search(model, kept, [op.end > first_doubt for op in kept]).run()
