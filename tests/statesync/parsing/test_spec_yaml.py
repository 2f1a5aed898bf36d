"""A spec in YAML that wants to cost time or memory, or says two things at once, is refused at once, with its line."""

import pytest

from understudy.statesync.parsing.spec_yaml import DEPTH_MOST, SIZE_MOST, BadYaml, read_yaml
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_reader import parse_spec

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, where="pool.yaml")
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


def test_aliases_are_refused_with_their_line() -> None:
    assert "line 2: aliases (*a0)" in refusal(BOMB)


def test_nesting_is_bounded_and_told_with_its_line() -> None:
    assert f"line 2: more than {DEPTH_MOST} levels" in refusal("pool: cart\nslots: " + "[" * 5000 + "]" * 5000)
    assert read_yaml("[" * DEPTH_MOST + "]" * DEPTH_MOST)


def test_size_is_bounded() -> None:
    assert "characters" in refusal("#" * (SIZE_MOST + 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool: cart\nslots: 8\nslots: 16\n", "line 3: key 'slots' stands here for the second time"),
        ("pool: cart\nlimits:\n  sessions: 1\n  sessions: 2\n", "line 4: key 'sessions'"),
        ("{pool: a, pool: b}", "line 1: key 'pool'"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, said: str) -> None:
    assert said in refusal(text)


NOT_PLAIN = ["a: !!python/object:os.system x", "a: 2026-99-99", "? [a]\n: b", "\0", "a: *b", "<<: {a: 1}"]


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_is_no_plain_yaml_is_bad(text: str) -> None:
    with pytest.raises(BadYaml):
        read_yaml(text)
