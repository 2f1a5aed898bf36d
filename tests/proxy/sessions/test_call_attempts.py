"""What a caller may be told while a forwarded write is still somewhere on its way."""

import pytest

from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.sessions.call_attempts import DOUBT_HEADER, CallAttempts

EXPIRED = problem(409, "request-expired", "the request began 30.0 s ago")


@pytest.mark.parametrize(
    ("doubts", "reply", "told"),
    [
        pytest.param([], EXPIRED, 409, id="nothing is in doubt"),
        pytest.param(["m1: silent"], EXPIRED, 503, id="an earlier copy may have been in time"),
        pytest.param(["m1: silent"], problem(409, "request-refused", "final"), 409, id="refused for all copies"),
        pytest.param(
            ["m1: silent"], problem(404, "no-such-session", "none"), 404, id="a refusal is kept, so it is final"
        ),
        pytest.param(["m1: silent"], Reply(204, {}), 204, id="an effect is had once"),
        pytest.param(["m1: silent"], problem(400, "bad-request", "malformed"), 400, id="malformed is so everywhere"),
        pytest.param(["m1: silent"], problem(503, "not-committed", "no etcd"), 503, id="not committed"),
        pytest.param(["m1: silent"], problem(421, "not-owner", "it is m2"), 421, id="the peer asks the owner"),
    ],
)
def test_what_is_told_holds_for_all_copies(doubts: list[str], reply: Reply, told: int) -> None:
    assert CallAttempts(0.0, 0.0, doubts=doubts).final_reply(reply).status == told


def test_what_is_in_doubt_never_passes_for_not_done() -> None:
    attempts = CallAttempts(0.0, 0.0, doubts=["m1: silent"])

    assert b"outcome-unknown" in attempts.final_reply(problem(503, "not-committed", "no etcd")).body
    assert b"m1: silent" in attempts.final_reply(problem(503, "no-owner", "nobody")).body


def test_a_peer_is_told_of_the_doubt_of_an_owner_that_lost_the_slot() -> None:
    moved = problem(421, "not-owner", "slot 7 belongs to m2")
    told = CallAttempts(0.0, 0.0, doubts=["slot 7\r\nwas lost\u2026"]).final_reply(moved)
    assert told.headers[DOUBT_HEADER] == "slot 7 was lost?"
    assert DOUBT_HEADER not in CallAttempts(0.0, 0.0).final_reply(moved).headers
