"""What front Envoys told, put together from all control servers, warned of in words, and drawn by ``status``."""

from typing import Any

import pytest
from rich.console import Console

from understudy.deploy.inspect.fronts import front_warnings, fronts_table, fronts_view, place_warnings
from understudy.deploy.inspect.tables import status_table
from understudy.deploy.inspect.views import status_view
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState

WELL = {"timeouts": 0, "connect_failures": 0, "elsewhere": 0, "unreachable_seconds": 0.0}


def answer(
    requests: int = 1000, keyless: int = 0, *, node: str = "front-1", **members: dict[str, Any]
) -> dict[str, Any]:
    front = {"node": node, "requests": requests, "keyless": keyless, "failed": 3, "members": members}
    return {"window_seconds": 300.0, "fronts": [front]}


def test_an_envoy_that_went_from_one_control_server_to_another_is_one():
    (front, other) = fronts_view(
        [
            answer(200, 10, c={**WELL, "timeouts": 2, "unreachable_seconds": 15.0}),
            {},
            answer(100, 30, c={**WELL, "timeouts": 3}),
            answer(node="front-2"),
        ]
    )
    assert (front["node"], front["requests"], front["keyless"], front["failed"]) == ("front-1", 300, 40, 6)
    assert front["members"] == {"c": {**WELL, "timeouts": 5, "unreachable_seconds": 15.0}}
    assert other["node"] == "front-2"


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        (answer(1000, 730), "73% of 1000 requests in the last 5 min had no session key"),
        (answer(1000, 400), None),
        (answer(50, 50), None),
        (
            answer(c={**WELL, "timeouts": 12}),
            "c did not answer 12 requests from front-1 within 5 min (504)",
        ),
        (answer(c={**WELL, "timeouts": 1, "elsewhere": 90}), None),
        (answer(c={**WELL, "unreachable_seconds": 40.0}), "front-1 has not reached c for 40 s, although c is healthy"),
        (answer(c={**WELL, "connect_failures": 7}), "front-1 could not connect to c for 7 requests"),
    ],
)
def test_an_operator_is_warned_of_what_needs_a_look(told: dict[str, Any], warned: str | None):
    warnings = list(front_warnings(fronts_view([told])))
    assert len(warnings) == bool(warned)
    assert all(warning.startswith(warned or "") for warning in warnings)


def test_status_draws_it():
    fronts = fronts_view([answer(1000, 730, c={**WELL, "timeouts": 12})])
    view = status_view(PoolState(PoolKeys("cart")), revision=1, fronts=fronts, warnings=list(front_warnings(fronts)))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_table(view))
        console.print(fronts_table([]))
    shown = " ".join(capture.get().split())
    assert "front-1 (5 min) 1000 3.3 3 73%" in shown
    assert "c 12" in shown
    assert "check whether its application hangs" in shown


def test_a_pool_without_its_place_at_the_front_envoys_is_told_once():
    why = "front: pool 'cart' has host * with path / on port 80"
    answers = [{"xds": {"front_fault": why}}, {"xds": {"front_fault": why}}, {"xds": {}}, {}, "no answer"]
    assert list(place_warnings(answers)) == [
        f"front Envoys of several pools do not serve this pool as its spec says: {why}"
    ]
