"""Session keys do not travel in headers that front Envoys refuse or remove."""

import pytest

from understudy.statesync.pool.spec import PoolSpec, SessionKey, SpecError, parse_spec


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("X_Session", "refuse requests with an underscore"),
        ("Understudy-Session", "remove headers that begin with understudy-"),
        ("x-understudy-session", "remove headers that begin with"),
    ],
)
def test_a_new_spec_may_not_name_such_a_header_and_a_running_pool_keeps_it(header: str, why: str) -> None:
    text = f"{{pool: cart, session_key: [{{header: x-id}}, {{header: {header}}}]}}"
    with pytest.raises(SpecError, match=f"pool.yaml: session_key: front Envoys {why}"):
        parse_spec(text, where="pool.yaml")
    running = PoolSpec(pool="cart", session_key=(SessionKey(header=header),))
    assert PoolSpec.decode(running.encode()) == running


def test_others_are_as_good_as_before() -> None:
    assert parse_spec("{pool: cart, session_key: [{header: X-Understudy}, {cookie: a_b}]}", where="pool.yaml")
