"""What a caller may be told while a forwarded write is still somewhere on its way."""

import pytest

from proxy.errand import Doubt, Errand
from proxy.problems import Reply, problem


def under(epoch: int, reply: Reply) -> Reply:
    return Reply(reply.status, {**reply.headers, "Understudy-Epoch": str(epoch)}, reply.body)


NOT_THERE = problem(404, "no-such-session", "there is no session of this key")


@pytest.mark.parametrize(
    ("doubts", "reply", "told"),
    [
        pytest.param([], under(3, NOT_THERE), 404, id="nothing is in doubt"),
        pytest.param([2], under(3, NOT_THERE), 404, id="the doubt ended with epoch 2"),
        pytest.param([3], under(3, NOT_THERE), 503, id="it may still be carried out in this epoch"),
        pytest.param([1, 3], under(3, NOT_THERE), 503, id="one of two may"),
        pytest.param([3], NOT_THERE, 503, id="a refusal of no epoch"),
        pytest.param([3], under(3, Reply(204, {})), 204, id="an effect is had once, by the write's id"),
        pytest.param([3], problem(400, "bad-request", "what is malformed is so everywhere"), 400, id="malformed"),
        pytest.param([2], under(3, problem(503, "not-committed", "no etcd")), 503, id="not committed"),
    ],
)
def test_a_refusal_is_told_only_when_it_is_final(doubts: list[int], reply: Reply, told: int) -> None:
    errand = Errand(0.0, 0.0, doubts=[Doubt("m1: silent", until) for until in doubts])

    assert errand.honest(reply).status == told


def test_what_is_in_doubt_never_passes_for_not_done() -> None:
    errand = Errand(0.0, 0.0, doubts=[Doubt("m1: silent", 2)])

    assert b"outcome-unknown" in errand.honest(problem(503, "not-committed", "no etcd")).body
    assert b"m1: silent" in errand.honest(problem(503, "no-owner", "nobody")).body
