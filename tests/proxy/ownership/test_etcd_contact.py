"""What a member concludes from its looks at etcd."""

import pytest

from understudy.proxy.ownership.etcd_contact import GRACE, LATE, LOOKS_KEPT, SLOW_MOST, EtcdContact

INTERVAL = 0.4


def looked(contact: EtcdContact, begin: float, end: float) -> EtcdContact:
    """The contact after looks from ``begin`` to ``end`` that were all answered at once."""
    now = begin
    while now <= end:
        contact.sent(now)
        contact.answered(now + 0.01)
        now += INTERVAL
    return contact


def test_a_member_may_judge_others_once_etcd_has_answered_it_for_long_enough() -> None:
    assert not EtcdContact().steady(100.0)
    assert not looked(EtcdContact(), 0.0, GRACE - 1).steady(GRACE - 0.5)
    assert looked(EtcdContact(), 0.0, GRACE + 1).steady(GRACE + 1)


@pytest.mark.parametrize(("pause", "wait"), [(12.0, GRACE), (1.0, 2.0), (LATE + 0.1, 2 * LATE + 0.2)])
def test_after_a_pause_it_waits_for_others_as_long_as_the_pause_was_but_not_for_ever(pause: float, wait: float) -> None:
    contact = looked(EtcdContact(), 0.0, 100.0)
    contact.sent(101.0)
    contact.sent(101.1)  # the first one has failed
    assert not contact.steady(101.0 + LATE + 0.05)
    back = 101.0 + pause
    contact.answered(back)
    looked(contact, back + 0.01, back + wait - 0.1)
    assert not contact.steady(back + wait - 0.05)
    assert contact.steady(back + wait + 0.05)


def test_looks_that_are_a_little_late_change_nothing() -> None:
    contact = looked(EtcdContact(), 0.0, 100.0)
    contact.sent(101.0)
    assert contact.steady(101.0 + LATE)
    contact.answered(101.0 + LATE)
    assert contact.steady(101.0 + LATE)


def test_silence_is_counted_from_the_first_look_that_was_not_answered() -> None:
    contact = looked(EtcdContact(), 0.0, 10.0)
    assert contact.silent_for(11.0) == 0.0
    contact.sent(11.0)
    contact.sent(11.4)
    assert contact.silent_for(12.0) == 1.0
    contact.answered(12.0)
    assert contact.silent_for(12.1) == 0.0


def test_a_silence_that_is_over_counts_for_a_while() -> None:
    contact = looked(EtcdContact(), 0.0, 100.0)
    contact.sent(101.0)
    assert contact.longest_silence(105.0, 60.0) == 4.0
    contact.answered(121.0)
    looked(contact, 122.0, 200.0)
    assert contact.longest_silence(180.0, 60.0) == 20.0
    assert contact.longest_silence(190.0, 60.0) == pytest.approx(0.01)


def test_how_long_etcd_usually_takes_is_known_from_the_last_looks() -> None:
    contact = EtcdContact()
    assert contact.slowest == 0.0
    for number in range(LOOKS_KEPT):
        contact.sent(number)
        contact.answered(number + (0.6 if number == 0 else 0.1))
    assert contact.slowest == pytest.approx(0.6)
    contact.sent(50.0)
    contact.answered(62.0)  # an outage that is over
    assert contact.slowest == SLOW_MOST
    assert looked(contact, 63.0, 63.0 + LOOKS_KEPT * INTERVAL).slowest == pytest.approx(0.01)
