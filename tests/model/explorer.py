"""Visits every state that the model can reach, breadth first, so that the first violation found has a shortest history.

Only the states of the current distance from the start are kept whole; of the others a 64-bit hash tells that they were
seen, and a parent number and the words of one step lead back. So a trace can be told.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

W = TypeVar("W")
T = TypeVar("T", bound=type)


class Violation(Exception):
    """An invariant does not hold; the text says which."""


def quickly_replaced(made: T) -> T:
    """A named tuple whose ``_replace`` takes half as long: most of a search is made of it."""
    places = {name: place for place, name in enumerate(made._fields)}

    def replace(self: tuple[object, ...], /, **changes: object) -> object:
        values = list(self)
        for name, value in changes.items():
            values[places[name]] = value
        return tuple.__new__(made, values)

    made._replace = replace
    return made


@dataclass(frozen=True, slots=True)
class Explored:
    """The result: how many states and steps there are, how far the longest way is, and the first violation's history.

    ``kinds`` has every step that led to a new state, in words.
    """

    states: int
    steps: int
    depth: int
    broken: str = ""
    trace: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.states} states, {self.steps} steps, depth {self.depth}: every invariant holds"
        lines = [f"{number:3}. {step}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([f"broken after {self.states} states: {self.broken}", *lines])


def search(
    first: W,
    moves_of: Callable[[W], Iterable[tuple[str, Callable[[], W]]]],
    check: Callable[[W], object] = lambda _: None,
    until: str = "",
) -> Explored:
    """All states reachable from ``first``, up to the first violation.

    ``moves_of`` gives the steps out of a state. A step raises :class:`Violation` if it breaks an invariant itself;
    ``check`` does if a state does. It is called once for each state, however many steps lead there. With ``until`` the
    search ends once a step whose words begin so has led to a new state.
    """
    with _collector_off():
        return _search(first, moves_of, check, until)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """No search for circles: there is none among the tuples of a state, and it takes a seventh of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _search(
    first: W, moves_of: Callable[[W], Iterable[tuple[str, Callable[[], W]]]], check: Callable[[W], object], until: str
) -> Explored:
    seen = {hash(first)}
    origins: list[tuple[int, str]] = [(-1, "")]
    frontier: list[tuple[int, W]] = [(0, first)]
    steps = depth = 0
    while frontier:
        reached: list[tuple[int, W]] = []
        for number, world in frontier:
            for told, step in moves_of(world):
                steps += 1
                try:
                    after = step()
                    mark = hash(after)
                    if mark in seen:
                        continue
                    check(after)
                except Violation as violation:
                    return Explored(len(seen), steps, depth + 1, str(violation), _trace(origins, number, told))
                seen.add(mark)
                origins.append((number, told))
                reached.append((len(origins) - 1, after))
                if until and told.startswith(until):
                    return Explored(len(seen), steps, depth + 1, kinds=_kinds(origins))
        frontier = reached
        depth += bool(reached)
    return Explored(len(seen), steps, depth, kinds=_kinds(origins))


def _kinds(origins: Iterable[tuple[int, str]]) -> frozenset[str]:
    return frozenset(told for _, told in origins)


def _trace(origins: list[tuple[int, str]], number: int, last: str) -> tuple[str, ...]:
    told = [last]
    while number > 0:
        number, step = origins[number]
        told.append(step)
    return tuple(reversed(told))
