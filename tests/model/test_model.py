"""The ownership protocol, explored to the last state: what must hold does, and each rule is needed for it.

``UNDERSTUDY_MODEL=large`` explores the larger bounds too, which takes some minutes. ``python -m tests.model`` prints
how many states there are, and the history that each mutant is found by.
"""

import os

import pytest

from tests.model import copies
from tests.model.bounds import FAST, LARGE, MUTANTS, SMALL
from tests.model.explorer import explore
from tests.model.world import Bounds, Rules


@pytest.mark.parametrize(("rules", "bounds"), SMALL.values(), ids=SMALL)
def test_every_invariant_holds_in_every_state(rules: Rules, bounds: Bounds) -> None:
    explored = explore(rules, bounds)
    assert not explored.broken, explored


@pytest.mark.skipif(os.environ.get("UNDERSTUDY_MODEL") != "large", reason="UNDERSTUDY_MODEL=large explores these")
@pytest.mark.parametrize(("rules", "bounds"), LARGE.values(), ids=LARGE)
def test_every_invariant_holds_within_larger_bounds(rules: Rules, bounds: Bounds) -> None:
    explored = explore(rules, bounds)
    assert not explored.broken, explored


@pytest.mark.parametrize(("rule", "mutant"), MUTANTS.items(), ids=MUTANTS)
def test_without_any_one_rule_there_is_a_history_that_breaks_the_protocol(
    rule: str, mutant: tuple[Rules, Bounds, str]
) -> None:
    rules, bounds, broken = mutant
    explored = explore(rules._replace(**{rule: False}), bounds)
    assert explored.broken.startswith(broken), explored


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) == set(Rules._fields) - {"lease"}


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        (Bounds(writes=1, claims=0), "a hears of a's write of w1"),
        (Bounds(writes=0, claims=1), "b begins to serve"),
        (Bounds(writes=0, claims=0, handovers=1), "b is told to take over"),
        (Bounds(writes=0, claims=1, lost_answers=1), "b adopts the slot"),
        (Bounds(writes=0, claims=0, handovers=1), "a takes the slot back"),
        (Bounds(writes=0, claims=0, gifts=1), "b takes what it was given"),
        (Bounds(writes=0, claims=0, gifts=1), "a takes up what it gave away"),
        (Bounds(writes=1, claims=0, gifts=1), "a hears who has claimed what it gave away"),
    ],
)
def test_the_model_reaches_what_it_is_about(bounds: Bounds, met: str) -> None:
    assert any(step.startswith(met) for step in explore(FAST, bounds).kinds)


@pytest.mark.parametrize("bounds", copies.SMALL.values(), ids=copies.SMALL)
def test_copies_of_a_request_have_one_outcome_in_every_state(bounds: copies.Bounds) -> None:
    explored = copies.explored(copies.Rules(), bounds)
    assert not explored.broken, explored


@pytest.mark.skipif(os.environ.get("UNDERSTUDY_MODEL") != "large", reason="UNDERSTUDY_MODEL=large explores these")
@pytest.mark.parametrize("bounds", copies.LARGE.values(), ids=copies.LARGE)
def test_copies_of_a_request_have_one_outcome_within_larger_bounds(bounds: copies.Bounds) -> None:
    explored = copies.explored(copies.Rules(), bounds)
    assert not explored.broken, explored


@pytest.mark.parametrize(("rule", "mutant"), copies.MUTANTS.items(), ids=copies.MUTANTS)
def test_without_any_one_rule_a_copy_contradicts_what_its_client_was_told(
    rule: str, mutant: tuple[copies.Bounds, str]
) -> None:
    bounds, broken = mutant
    explored = copies.explored(copies.Rules()._replace(**{rule: False}), bounds)
    assert explored.broken.startswith(broken), explored


def test_every_rule_of_copies_has_a_mutant() -> None:
    assert set(copies.MUTANTS) == set(copies.Rules._fields)
