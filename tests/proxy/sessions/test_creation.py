"""Which calls for a new session find the same one: those of one caller, or the copies of one request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.proxy.sessions.creation import derived_key, fault_of, identity_of
from understudy.statesync.sessions.session import valid_key

SECRET = b"the pool's"
PARTS = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(st.characters(min_codepoint=32, codec="utf-8"), min_size=1, max_size=4)
        for name in ("idempotency-key", "understudy-caller", "understudy-request")
    },
)


def key_of(**headers: str) -> str | None:
    identity = identity_of({name.replace("_", "-"): value for name, value in headers.items()})
    return derived_key(SECRET, identity) if identity else None


def test_a_callers_own_repeat_is_known_in_another_request() -> None:
    first = key_of(idempotency_key="1", understudy_caller="anna", understudy_request="9;a")
    again = key_of(idempotency_key="1", understudy_caller="anna", understudy_request="12;b")
    assert first == again == key_of(idempotency_key="1", understudy_caller="anna")


def test_whoever_chooses_the_same_key_is_given_another_session() -> None:
    keys = [
        key_of(idempotency_key="1", understudy_caller="anna"),
        key_of(idempotency_key="1", understudy_caller="bert"),
        key_of(idempotency_key="1", understudy_request="9;a"),
        key_of(idempotency_key="1", understudy_request="9;b"),
        key_of(idempotency_key="1", understudy_caller="9;a"),
        key_of(idempotency_key="a1", understudy_caller="ann"),
        key_of(idempotency_key="2", understudy_caller="anna"),
        key_of(idempotency_key="2", understudy_request="9;a"),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "headers", [{}, {"idempotency_key": "1"}, {"understudy_request": "9;a"}, {"understudy_caller": "anna"}]
)
def test_what_nobody_stands_for_is_no_repeat_of_anything(headers: dict[str, str]) -> None:
    assert key_of(**headers) is None


@given(PARTS, PARTS)
def test_only_the_same_identity_leads_to_the_same_session(one: dict[str, str], other: dict[str, str]) -> None:
    here, there = identity_of(one), identity_of(other)
    if here and there:
        keys = derived_key(SECRET, here), derived_key(SECRET, there)
        assert (keys[0] == keys[1]) == (here == there)
        assert all(map(valid_key, keys))


def test_a_caller_without_a_name_is_refused() -> None:
    for name in ("", "x" * 256):
        assert fault_of({"understudy-caller": name}) == "Understudy-Caller takes 1 to 255 characters"
    assert fault_of({"understudy-caller": "x" * 255}) == fault_of({}) == ""
