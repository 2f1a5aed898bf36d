"""The ownership protocol, explored to the last state: what must hold does, and each rule is needed for it.

``UNDERSTUDY_MODEL=large`` explores the larger bounds too, which takes some minutes. ``python -m tests.model`` prints
how many states there are, and the history that each mutant is found by.
"""

import os

import pytest

from tests.model.replication.bounds import BUGS_OF_OTHERS, LARGE, MUTANTS, SMALL, explored
from tests.model.replication.world import Bounds, Rules

LARGEST = {
    "a handover, and reads from memory",
    "a slot given away, and reads from memory",
    "two claims, and reads from memory",
    "a claim whose answer never comes",
    "a learner joins while a save is under way",
    "claim_keeps_the_others",
    "late_answers_yield",
}
"""Searches that take many seconds each, half the time of all: the nightly run has them."""


def _nightly(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.nightly] if name in LARGEST else []


@pytest.mark.parametrize("bounds", [pytest.param(one, id=name, marks=_nightly(name)) for name, one in SMALL.items()])
def test_every_invariant_holds_in_every_state(bounds: Bounds) -> None:
    found = explored(Rules(), bounds)
    assert not found.broken, found


@pytest.mark.skipif(os.environ.get("UNDERSTUDY_MODEL") != "large", reason="UNDERSTUDY_MODEL=large explores these")
@pytest.mark.parametrize("bounds", LARGE.values(), ids=LARGE)
def test_every_invariant_holds_within_larger_bounds(bounds: Bounds) -> None:
    found = explored(Rules(), bounds)
    assert not found.broken, found


@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        pytest.param(
            rule, mutant, id=": ".join((rule, BUGS_OF_OTHERS.get(rule, ""))).rstrip(": "), marks=_nightly(rule)
        )
        for rule, mutant in MUTANTS.items()
    ],
)
def test_without_any_one_rule_there_is_a_history_that_breaks_the_protocol(
    rule: str, mutant: tuple[Bounds, str]
) -> None:
    bounds, broken = mutant
    found = explored(Rules()._replace(**{rule: False}), bounds)
    assert found.broken.startswith(broken), found


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) == set(Rules._fields)
    assert set(BUGS_OF_OTHERS) <= set(MUTANTS)


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        (Bounds(), "b begins to serve in epoch 2"),
        (Bounds(), "a is refused"),
        (Bounds(saves=1), "a acknowledges [1] as sync"),
        (Bounds(saves=1, shrinks=1), "a sends a save of (1,)"),
        (Bounds(sync=1, memory=False, growths=1, resends=1), "etcd gets a's growth (compares (1, 1)), which arrives"),
        (Bounds(torn=True), "b sees the owner record of (2, 1)"),
        (Bounds(plain=True, growths=1, before="void"), "b claims epoch 3 as an earlier release"),
        (Bounds(plain=True, growths=1, before="void"), "b claims epoch 3 from memory"),
        (Bounds(members=3, claims=0, growths=1), "etcd gets a's growth"),
        (Bounds(shrinks=1, saves=1, claims=0), "etcd gets a's shrink"),
        (Bounds(memory=False, memory_changes=1, claims=0), "a acknowledges [1] as replicas"),
        (Bounds(deaths=2, restarts=1), "etcd gets b's loss"),
        (Bounds(members=3, words=1), "etcd gets c's loss"),
        pytest.param(
            Bounds(members=3, sync=3, claims=3, deaths=1),
            "a claims epoch 4 from etcd after a loss",
            marks=pytest.mark.nightly,
        ),
        (Bounds(handovers=1, claims=0, answers=True), "b hears of its finish: done"),
        (Bounds(handovers=1, claims=0, answers=True), "a hears of its undo: done"),
        (Bounds(handovers=1, claims=0, lost_answers=1, answers=True), "b reclaims the slot from memory"),
        (Bounds(memory=False, sync=1, lost_answers=1, answers=True), "b reclaims the slot from etcd"),
        (Bounds(claims=0, gifts=1, answers=True), "b was given the slot and claims epoch 2 from memory"),
        (Bounds(claims=0, gifts=1, answers=True), "a takes up what it gave away"),
        (Bounds(memory=False, saves=1, repeats=1, answers=True), "b takes w1 again"),
        (Bounds(saves=1, repeats=1, answers=True), "b answers that it knows w1"),
        (Bounds(looks=1, answers=True, lease=True), "a's look comes back"),
        (Bounds(claims=0, handovers=1, before="void", answers=True), "b hears of its finish: done"),
        (Bounds(sync=1, growths=1, drops=1), "b drops its copy"),
        (Bounds(questions=1, claims=0), "a hears the promise of b"),
        (Bounds(shrinks=1, saves=1), "a acknowledges [1] as replicas"),
    ],
)
def test_the_model_reaches_what_it_is_about(bounds: Bounds, met: str) -> None:
    assert any(step.startswith(met) for step in explored(Rules(), bounds, until=met).kinds)
