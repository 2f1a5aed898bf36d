"""The last hour on the overview: sums of all control servers, and what is not known is no 0."""

from typing import Any

import pytest

from understudy.deploy.console.traffic import added, recent_rate, traffic_view
from understudy.telemetry.receiver.front_series import FIELDS, STEP_SECONDS, STEPS

END = 120_000_000
NOW = END * STEP_SECONDS + 1.0


def answer(*steps: list[int], now: int = END) -> dict[str, Any]:
    return {"step_seconds": STEP_SECONDS, "now": now, "fields": list(FIELDS), "steps": steps}


def change(kind: str, steps_ago: int) -> dict[str, Any]:
    return {"kind": kind, "started": (END - steps_ago) * STEP_SECONDS + 3.0}


def test_the_reports_of_all_control_servers_are_added():
    told = added([answer([END - 2, 1, 30, 0, 1, 0]), answer([END - 2, 3, 60, 2, 0, 4], [END - 1, 1, 15, 0, 0, 0])])
    view = traffic_view(told, [change("takeover", 2), change("handover", 1), change("takeover", STEPS + 1)], NOW)
    series = view["series"]
    assert series["rate"][-3:] == [None, 6.0, 1.0]
    assert [series[name][-2] for name in ("failed", "elsewhere", "unanswered", "takeover")] == [2, 1, 4, 1]
    assert view["summaries"] == {
        "rate": "3.5 requests a second on average and 6.0 at the most, in 1 min.",
        "trouble": "2 failed (5xx), 1 were answered by another member after a try at the first one, "
        "4 tries found no member or no answer.",
        "changes": "1 takeover and 1 planned handover began.",
    }
    newest, before = view["minutes"][:2]
    assert (newest["rate"], newest["requests"], newest["takeover"], newest["handover"]) == (3.5, 105, 1, 1)
    assert (before["rate"], before["failed"], before["takeover"]) == (None, None, 0)
    assert len(view["minutes"]) == 60


@pytest.mark.parametrize("fault", ["no answer in time", answer() | {"step_seconds": 60}, answer() | {"fields": ["x"]}])
def test_without_reports_nothing_is_known_and_a_silent_control_server_is_told_of(fault):
    told = added([fault])
    view = traffic_view(told, [], NOW)
    none = "Not known: no front Envoy reported in the last hour. 1 control server did not answer"
    assert view["summaries"]["rate"].startswith(none)
    assert set(view["series"]["rate"]) == {None}
    assert recent_rate(told) is None


def test_the_rate_of_late_is_that_of_steps_with_a_report():
    steps = [[END - 40, 1, 9000, 0, 0, 0], [END - 2, 1, 30, 0, 0, 0], [END - 1, 1, 0, 0, 0, 0]]
    assert recent_rate(added([answer(*steps)])) == 1.0
