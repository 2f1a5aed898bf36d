"""Which slots wait for an operator, and which must not be revived."""

from dataclasses import replace

import pytest

from understudy.deploy.inspect.waiting import loss_of, refusal, waiting_slots, waiting_view, waiting_warning
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner, Revival, SyncRecord
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Replication
from understudy.statesync.pool.state import At, PoolState
from understudy.statesync.replication.sync_set import Process

A, B, C, D = (Process(name, f"{name}1") for name in "abcd")


def pool_with(*registered, sync=(A, B), former=(), memory=True, on_total_loss="restore"):
    """A pool of two slots of ``a``; the sync set of slot 1 is void, so etcd has everything of it."""
    state = PoolState(PoolKeys("cart"))
    replication = Replication(on_total_loss=on_total_loss)
    state.spec = At(PoolSpec(pool="cart", slots=2, durability="replicas", replication=replication), 1)
    state.members = {one.member: At(Member(*one, "h:1", "h:2", MemberState.UP), 2) for one in registered}
    state.owners = {slot: At(Owner("a", "a1", 4), 5) for slot in (0, 1)}
    record = SyncRecord(4, sync, memory, former)
    state.sync_sets = {0: At(record, 5), 1: At(replace(record, epoch=3), 5)}
    return state


WAITING = {
    "nobody": (pool_with(C), "the death of a and b is not proven, and nobody else has its newest writes"),
    "one is proven": (
        pool_with(C, Process("a", "a2")),
        "the death of b is not proven, and nobody else has its newest writes",
    ),
    "all are proven": (
        pool_with(Process("a", "a2"), Process("b", "b2")),
        "all processes with its newest writes are gone; a member is about to restore it",
    ),
    "by the spec": (
        pool_with(C, on_total_loss="wait"),
        "all processes with its newest writes are gone, and the spec says on_total_loss: wait",
    ),
    "a former active lives": (
        pool_with(C, former=(C,)),
        "the death of a and b is not proven, and nobody else has its newest writes",
    ),
}
REFUSED = {
    "served": (pool_with(A, C), "a serves it"),
    "one of the set": (pool_with(B, C), "b is registered and has its newest writes, so it takes the slot over"),
    "no memory": (pool_with(C, memory=False), "etcd has all its acknowledged writes"),
    "two former actives": (pool_with(C, D, former=(C, D)), "the former actives c and d are registered"),
}


@pytest.mark.parametrize("case", WAITING)
def test_a_slot_waits_when_no_process_with_its_newest_writes_is_registered(case):
    state, reason = WAITING[case]
    (row,) = waiting_view(state)["waiting"]
    assert (row["slot"], row["epoch"], row["active"], row["reason"]) == (0, 4, "a", reason)
    assert [one["member"] for one in row["missing"]] == ["a", "b"]
    assert refusal(state, 0) == ""
    (warning,) = waiting_warning(state)
    assert warning.startswith("no living process has the newest writes of slots 0: 'understudy slots waiting'")


@pytest.mark.parametrize("case", REFUSED)
def test_other_slots_do_not_wait_and_must_not_be_revived(case):
    state, why = REFUSED[case]
    assert waiting_slots(state) == []
    assert list(waiting_warning(state)) == []
    assert refusal(state, 0).startswith(why)
    assert refusal(state, 1).startswith(("etcd has all", "a serves it"))


def test_a_slot_without_an_owner_record_does_not_wait():
    state = pool_with(C)
    del state.owners[0]
    assert waiting_slots(state) == []
    assert refusal(state, 0).startswith("it has no owner record")


def test_a_word_that_was_given_already_is_shown_if_it_is_about_the_record():
    state = pool_with(C)
    state.revivals[0] = At(Revival(3, "ops@host", 1.0), 9)
    assert waiting_slots(state)[0].revival is None
    state.revivals[0] = At(Revival(4, "ops@host", 1.0), 9)
    (found,) = waiting_slots(state)
    assert found.reason == "ops@host has given up its newest writes, and no member has claimed it yet"


def test_what_is_given_up_is_told_before_it_is():
    told = loss_of(pool_with(C), waiting_slots(pool_with(C)))
    assert "the newest 'replicas' writes of slots 0 were in the memory of a and b" in told
    assert "writes of the last 1 s before the loss" in told
    assert "If a or b still runs" in told
