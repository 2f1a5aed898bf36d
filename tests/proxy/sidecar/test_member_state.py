"""What state a member is in, and whether front Envoys are refused, by what is known of it."""

from dataclasses import replace

from understudy.proxy.sidecar.member_state import Facts, MemberStatus, refusal_of, state_of
from understudy.statesync.pool.records import MemberState


def test_init_keeps_a_member_without_slots_waiting_and_one_with_slots_serving():
    loading = Facts(starting="check db: loading")
    assert state_of(loading, was_well=False) == (MemberState.INIT, "check db: loading")
    assert state_of(replace(loading, has_roles=True), was_well=False) == (MemberState.UP, "")


def test_the_last_member_that_could_serve_goes_on_and_says_why():
    faulty = Facts(fault="check db: gone", has_roles=True)
    assert state_of(faulty, was_well=True) == (MemberState.DOWN, "check db: gone")
    alone = replace(faulty, others=False)
    assert state_of(alone, was_well=True) == (MemberState.ATTENTION, "nobody else can serve: check db: gone")


def test_a_member_that_failed_stays_down_without_slots_and_one_that_never_was_well_is_starting():
    faulty = Facts(fault="check db: gone", own_fault="check db: gone")
    assert state_of(faulty, was_well=True) == (MemberState.DOWN, "check db: gone")
    assert state_of(faulty, was_well=False) == (MemberState.INIT, "check db: gone")
    assert state_of(Facts(starting="check db: loading"), was_well=True)[0] is MemberState.INIT


def test_a_member_that_cannot_reach_etcd_has_not_failed_itself():
    assert state_of(Facts(fault="etcd does not answer"), was_well=True)[0] is MemberState.INIT


def test_draining_counts_before_everything_and_reading_the_pool_before_faults():
    assert state_of(Facts(draining="going down", synced=False), was_well=True) == (MemberState.DRAINING, "going down")
    unread = Facts(fault="check db: gone", synced=False, no_pool="no pool cart")
    assert state_of(unread, was_well=False) == (MemberState.INIT, "no pool cart")


def test_envoys_are_refused_for_faults_of_the_member_and_not_because_etcd_is_away():
    faulty, owner = Facts(own_fault="check db: gone"), Facts(owns=True)
    assert refusal_of(owner, MemberState.DOWN, "etcd does not answer") == ""
    assert refusal_of(faulty, MemberState.DOWN, "check db: gone") == "check db: gone"
    assert refusal_of(faulty, MemberState.ATTENTION, "nobody else") == ""
    assert refusal_of(owner, MemberState.DRAINING, "drained by an operator") == ""
    assert refusal_of(Facts(), MemberState.DRAINING, "drained by an operator") == "drained by an operator"


def test_the_status_remembers_that_the_member_was_well_and_whom_it_refuses():
    now = Facts(starting="check db: loading")
    status = MemberStatus(lambda: now)
    assert status.refusal == "starting"
    assert status.look()[0] is MemberState.INIT
    assert status.refusal == "check db: loading"
    now = Facts()
    assert (status.look()[0], status.refusal) == (MemberState.READY, "")
    now = Facts(fault="check db: gone", own_fault="check db: gone")
    assert (status.look()[0], status.refusal) == (MemberState.DOWN, "check db: gone")
