"""The outcome of a request, however late its copies arrive: it is the same, and each rule is needed for that.

``UNDERSTUDY_MODEL=large`` explores the larger bounds too, which takes some minutes. ``python -m tests.model`` prints
how many states there are, and the history that each mutant is found by.
"""

import os

import pytest

from tests.model import copies


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
