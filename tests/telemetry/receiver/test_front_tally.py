"""What front Envoys told of late: counted by Envoy and member, for a while, and bounded."""

from collections.abc import Mapping

import pytest

from understudy.telemetry.otlp.counts import FrontCount
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.receiver import front_tally
from understudy.telemetry.receiver.front_tally import LASTING_SECONDS, WINDOW_SECONDS, FrontTally, Kind

HOST = "127.0.0.1:8000"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> FrontTally:
    return FrontTally(clock)


def report(status: int, flags: str = "-", attempts: int = 1, host: str = HOST, node: str = "front-1") -> StoredLog:
    said = {
        "http.response.status_code": str(status),
        "understudy.flags": flags,
        "understudy.attempts": str(attempts),
        "understudy.host": host,
        "understudy.cluster": "cart/order/cart-1+cart-2",
    }
    return StoredLog(1, "request", said, {"node_name": node})


def front(requests: int = 0, keyless: int = 0, *, node: str = "front-1", **unreached: int) -> FrontCount:
    return FrontCount(node, requests, keyless, unreached)


def test_requests_that_an_envoy_refused_are_counted(tally: FrontTally):
    tally.counted([FrontCount("front-1", 100, 0, {}, limited=7)])
    assert tally.totals == {Kind.REQUESTS: 100, Kind.LIMITED: 7}


def test_requests_and_those_without_a_key_are_counted_for_five_minutes(tally: FrontTally, clock: Clock):
    tally.counted([front(100, 73), front(8, node="front-2")])
    clock.now += 5
    tally.counted([front(50)])
    assert tally.recent() == {
        ("front-1", "", Kind.REQUESTS): 150,
        ("front-1", "", Kind.KEYLESS): 73,
        ("front-2", "", Kind.REQUESTS): 8,
    }
    clock.now += WINDOW_SECONDS - 1
    assert tally.recent() == {("front-1", "", Kind.REQUESTS): 50}
    assert tally.totals == {Kind.REQUESTS: 158, Kind.KEYLESS: 73}


def test_how_long_answers_took_is_passed_on(clock: Clock):
    told: list[Mapping[float, int]] = []
    tally = FrontTally(lambda: clock.now, told.append)
    tally.counted([FrontCount("front-1", 60, 0, {}, {500.0: 60}), front(5)])
    assert told == [{500.0: 60}]


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        (report(504, "UT"), (HOST, Kind.TIMEOUTS)),
        (report(503, "UF,URX", 3), (HOST, Kind.CONNECT_FAILURES)),
        (report(200, "-", 2), ("cart-1", Kind.ELSEWHERE)),
        (report(504, "UT", host="-"), None),
        (report(500), None),
        (StoredLog(1, "something else", {"understudy.flags": "UT"}), None),
    ],
)
def test_a_report_tells_what_went_wrong_at_which_member(tally: FrontTally, told: StoredLog, counted):
    tally.reported([told, told])
    assert tally.recent() == ({("front-1", *counted): 2} if counted else {})


def test_a_cut_between_an_envoy_and_a_member_is_known_once_it_lasts(tally: FrontTally, clock: Clock):
    tally.counted([front(**{"cart-1": 9})])
    assert tally.unreachable() == {}
    for _ in range(2):
        clock.now += 5
        tally.counted([front(**{"cart-1": 40}), front(10, node="front-2")])
    assert tally.unreachable() == {("front-1", "cart-1"): LASTING_SECONDS}
    clock.now += 16
    assert tally.unreachable() == {}
    tally.counted([front(**{"cart-1": 9})])
    assert tally.unreachable() == {}  # that is another cut


def test_whoever_makes_names_up_is_counted_and_takes_no_more_memory(
    tally: FrontTally, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(front_tally, "_MOST", 10)
    for number in range(100):
        tally.counted([front(1, node=f"front-{number}", **{f"cart-{number}": 1})])
    assert len(tally.recent()) == 10
    assert len(tally.unreachable(lasting=0)) == 10
    assert tally.totals[Kind.REQUESTS] == 100
    clock.now += WINDOW_SECONDS + 1
    tally.counted([front(1, node="new", **{"cart-new": 1})])
    assert list(tally.recent()) == [("new", "", Kind.REQUESTS)]
    assert list(tally.unreachable(lasting=0)) == [("new", "cart-new")]


def test_requests_of_a_sites_envoys_are_at_home_or_away_by_the_member_that_got_them(clock: Clock):
    sites = {"cart-1": "east", "cart-2": "west"}
    tally = FrontTally(clock, site_of=sites.get)
    served = {"cart-1": 9, "cart-2": 1, "nobody": 5}
    tally.counted([FrontCount("front-1", 0, 0, {}, site="east", served=served)] * 2)
    tally.counted([FrontCount("front-2", 0, 0, {}, served=served)])
    assert tally.by_site == {("east", Kind.AT_HOME): 18, ("east", Kind.AWAY): 2}
    assert tally.recent() == {("front-1", "east", Kind.AT_HOME): 18, ("front-1", "east", Kind.AWAY): 2}
