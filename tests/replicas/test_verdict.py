"""What the acceptance tests judge by: acknowledged writes, and what the sessions have in the end."""

import pytest

from tests.replicas.load import Ack
from tests.replicas.verdict import missing, went_back, wrongly_lost


def ack(number, *, durability="replicas", end=100.0, version=None, session="s", slot=3):
    return Ack(session, number, durability, durability, slot, version or (1, number + 1), end - 0.01, end)


def judged(acks, numbers, lossy=(3,)):
    return wrongly_lost(acks, {"s": numbers}, died=100.0, checkpoint=1.0, lossy=lossy)


def test_a_write_is_missing_if_its_session_does_not_have_it():
    acks = [ack(0), ack(1), ack(0, session="gone")]
    assert missing(acks, {"s": {0}}) == [acks[1], acks[2]]


@pytest.mark.parametrize(
    ("versions", "pairs"),
    [
        ([(1, 5), (1, 6), (2, 1)], 0),
        ([(1, 5), (1, 5)], 1),
        ([(2, 1), (1, 9), (3, 1)], 1),
        ([(2, 1), None, (1, 9)], 1),
    ],
)
def test_versions_rise_from_write_to_write(versions, pairs):
    acks = [Ack("s", number, "", "", 0, version, number, number) for number, version in enumerate(versions)]
    assert len(went_back(acks)) == pairs


MAY_BE_LOST = {
    "nothing is missing": ([ack(0, durability="sync"), ack(1)], {0, 1}, (3,)),
    "the last writes of class replicas": ([ack(0, end=90), ack(1), ack(2)], {0}, (3,)),
    "a write of class async": ([ack(0, end=90), ack(1, durability="async")], {0}, (3,)),
}
MAY_NOT = {
    "a sync write": ([ack(0, durability="sync")], (), (3,), "it was committed"),
    "an old write": ([ack(0, end=97.0)], (), (3,), "acknowledged 3.0 s before the end"),
    "a write in the middle": ([ack(0), ack(1)], {1}, (3,), "a later one is there"),
    "a write of which no record tells": ([ack(0)], (), (4,), "slot 3 counts no loss"),
}


@pytest.mark.parametrize("case", MAY_BE_LOST)
def test_after_the_death_of_all_members_there_may_be_missing(case):
    acks, numbers, lossy = MAY_BE_LOST[case]
    assert judged(acks, numbers, lossy) == []


@pytest.mark.parametrize("case", MAY_NOT)
def test_after_the_death_of_all_members_there_may_not_be_missing(case):
    acks, numbers, lossy, reason = MAY_NOT[case]
    assert [told.partition(": ")[2] for told in judged(acks, numbers, lossy)] == [reason]
