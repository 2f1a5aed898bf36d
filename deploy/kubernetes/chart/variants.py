"""Merges variants of one object into one tree whose differing parts stand under conditions. Pure.

Each :class:`Variant` is an object as it is rendered under some facts, such as ``{"tls": True, "login": False}``. In the
merged tree a part that only some variants have stands between entries that become ``{{- if ... }}`` and ``{{- end }}``
(:class:`understudy.deploy.kubernetes.chart.templates.Raws`).
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, bool]
Guard = Callable[[str], tuple[str, str]]
"""Makes the entries before and after a guarded part from its condition."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An object, or a part of one, under some facts."""

    facts: Facts
    tree: Any


def variants(names: Sequence[str], make: Callable[[dict[str, bool]], Any]) -> list[Variant]:
    """``make`` for each combination of facts."""
    found = []
    for values in itertools.product((True, False), repeat=len(names)):
        facts = dict(zip(names, values, strict=True))
        found.append(Variant(facts, make(facts)))
    return found


def merge(every: Sequence[Variant], conditions: Mapping[str, str], guard: Guard) -> Any:  # noqa: ANN401 - a tree
    """One tree for all variants. ``conditions`` has the template's expression for each fact."""
    return _Merger(conditions, guard).merged(every)


@dataclass(frozen=True, slots=True)
class _Merger:
    conditions: Mapping[str, str]
    guard: Guard

    def merged(self, every: Sequence[Variant]) -> Any:  # noqa: ANN401 - a tree
        first = every[0].tree
        if all(one.tree == first for one in every):
            return first
        if all(isinstance(one.tree, dict) for one in every):
            return self._mappings(every)
        if all(isinstance(one.tree, list) for one in every):
            return self._lists(every)
        raise ValueError(f"variants of different kinds cannot be merged: {[one.tree for one in every]}")

    def _mappings(self, every: Sequence[Variant]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in _order([list(one.tree) for one in every]):
            having = [Variant(one.facts, one.tree[key]) for one in every if key in one.tree]
            for group in _groups(having):
                before, after = self._around(group, every)
                found |= {again(text, found): None for text in before}
                found[again(key, found)] = self.merged(group)
                found |= {again(text, found): None for text in after}
        return found

    def _lists(self, every: Sequence[Variant]) -> list[Any]:
        known = [dict(_identified(one.tree)) for one in every]
        found: list[Any] = []
        opened: list[str] = []
        for identity in _order([list(one) for one in known]):
            group = [
                Variant(one.facts, items[identity])
                for one, items in zip(every, known, strict=True)
                if identity in items
            ]
            before, after = self._around(group, every)
            if before == opened and before:
                found.pop()  # the condition of the item before goes on
                before, opened = [], before
            else:
                opened = before
            found += [*before, self.merged(group), *after]
        return found

    def _around(self, group: Sequence[Variant], every: Sequence[Variant]) -> tuple[list[str], list[str]]:
        if len(group) == len(every):
            return [], []
        before, after = self.guard(self._condition([one.facts for one in group], [one.facts for one in every]))
        return [before], [after]

    def _condition(self, group: Sequence[Facts], every: Sequence[Facts]) -> str:
        """The shortest condition by which the facts of ``group`` differ from all others of ``every``."""
        names = list(every[0])
        for size in range(1, len(names) + 1):
            for chosen in itertools.combinations(names, size):
                for values in itertools.product((True, False), repeat=size):
                    wanted = dict(zip(chosen, values, strict=True))
                    if [one for one in every if all(one[name] is wanted[name] for name in chosen)] == list(group):
                        return _all_of([self._literal(name, value=value) for name, value in wanted.items()])
        return "or " + " ".join(
            f"({_all_of([self._literal(name, value=value) for name, value in facts.items()])})" for facts in group
        )

    def _literal(self, name: str, *, value: bool) -> str:
        return self.conditions[name] if value else f"not {_in_brackets(self.conditions[name])}"


def again(key: str, found: Mapping[str, Any]) -> str:
    """The key, with a number after it if ``found`` has it already: under different conditions a key may come twice."""
    return (
        key if key not in found else next(name for n in itertools.count() if (name := f"{key}@@again{n}") not in found)
    )


def _all_of(literals: Sequence[str]) -> str:
    return literals[0] if len(literals) == 1 else "and " + " ".join(map(_in_brackets, literals))


def _in_brackets(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def _groups(having: Sequence[Variant]) -> list[list[Variant]]:
    """Variants whose values can be merged with each other: all of them, or those with equal values."""
    for kind in (dict, list):
        if all(isinstance(one.tree, kind) for one in having):
            return [list(having)]
    groups: dict[str, list[Variant]] = {}
    for one in having:
        groups.setdefault(json.dumps(one.tree), []).append(one)
    return list(groups.values())


def _identified(items: Sequence[Any]) -> list[tuple[str, Any]]:
    """The items of a list with what identifies each: its name, else its value, and its number among equal ones."""
    seen: dict[str, int] = {}
    found = []
    for item in items:
        named = isinstance(item, dict) and "name" in item
        identity = f"name {item['name']}" if named else json.dumps(item, sort_keys=True)
        seen[identity] = seen.get(identity, 0) + 1
        found.append((f"{identity} {seen[identity]}", item))
    return found


def _order(sequences: Sequence[Sequence[str]]) -> list[str]:
    """One order of all entries that keeps the order in each sequence, as far as they agree."""
    found: list[str] = []
    for sequence in sequences:
        at = 0
        for entry in sequence:
            if entry in found:
                at = found.index(entry) + 1
            else:
                found.insert(at, entry)
                at += 1
    return found
