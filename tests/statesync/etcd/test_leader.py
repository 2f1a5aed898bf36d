"""Calls that wait for a leader of etcd: given up, sent again and woken as soon as there is one."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.harness.etcd import EtcdServer, running_cluster
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient, Get, ModRevision, OutcomeUnknown, Put, Unavailable
from understudy.statesync.etcd.leader import (
    LATE_LEAST,
    LATE_MOST,
    AnswerTimes,
    GivenUp,
    LeaderReport,
    LeaderWatch,
    RaftTerms,
)
from understudy.statesync.etcd.txn_retry import retry_txn

UNHURRIED = ("100", "2000")
"""An election takes 2 s at the least: whatever a test sends after it has stopped a leader still goes to that one."""


def test_only_a_leader_of_a_later_term_replaces_another() -> None:
    terms = RaftTerms()
    terms.answered(4)
    for sight, replaced in {
        LeaderReport(term=4, leader=7): False,  # a follower that has not noticed
        LeaderReport(term=5, leader=0): False,  # a candidate
        LeaderReport(term=5, leader=8): True,
    }.items():
        terms.reported(sight)
        assert terms.replaced(sight, since=4) is replaced
    assert not terms.replaced(LeaderReport(term=4, leader=7), since=3)  # it is behind: there is a later one
    assert not terms.replaced(LeaderReport(term=5, leader=8), since=5)
    assert not terms.replaced(LeaderReport(term=5, leader=8), since=0)  # nobody knows under which term that was


def test_a_call_is_late_sooner_where_calls_are_quick_and_an_election_changes_that_little() -> None:
    near, far, slow = AnswerTimes(), AnswerTimes(), AnswerTimes()
    for _ in range(200):
        near.took(0.002)
        far.took(0.04)
        slow.took(0.2)
    assert near.late == LATE_LEAST
    assert LATE_LEAST < far.late < LATE_MOST
    assert slow.late == LATE_MOST

    near.took(30.0)
    assert near.late == LATE_LEAST


async def test_the_first_call_of_a_client_may_be_late_without_being_given_up() -> None:
    sights = [LeaderReport(term=2, leader=7)]

    async def look(_: int) -> LeaderReport:
        sights.append(sights[-1])
        return sights[-1]

    watch = LeaderWatch(1, look, lambda _: None)
    call = asyncio.get_running_loop().create_future()
    answer = asyncio.create_task(watch.answer(call, led=True))
    await until(lambda: len(sights) > 4, 40, "the member was asked while the call was late")
    assert not answer.done()

    sights.append(LeaderReport(term=3, leader=8))
    with pytest.raises(GivenUp):
        await asyncio.wait_for(answer, 40)
    await watch.close()


async def test_an_answer_of_a_later_term_gives_up_what_went_to_the_leader_before() -> None:
    async def silent(_: int) -> LeaderReport:
        raise Unavailable("status", "", "no answer")

    watch = LeaderWatch(1, silent, lambda _: None)
    await watch.answer(answered(term=2), led=True)
    lost = asyncio.create_task(watch.answer(asyncio.get_running_loop().create_future(), led=True))
    await asyncio.sleep(0)
    await watch.answer(answered(term=3), led=True)
    with pytest.raises(GivenUp):
        await asyncio.wait_for(lost, 40)
    await watch.close()


def answered(*, term: int) -> asyncio.Future[SimpleNamespace]:
    """A call with its answer."""
    call = asyncio.get_running_loop().create_future()
    call.set_result(SimpleNamespace(header=SimpleNamespace(raft_term=term)))
    return call


async def leader_and_follower(members: list[EtcdServer]) -> tuple[EtcdServer, EtcdServer]:
    async with EtcdClient([member.endpoint for member in members], timeout=20) as client:
        leads = [status.leader for status in await client.status()]
    return members[leads.index(True)], members[leads.index(False)]


async def test_calls_under_way_to_a_leader_that_is_gone_are_given_up_when_there_is_another() -> None:
    async with running_cluster(timing=UNHURRIED) as members:
        leader, follower = await leader_and_follower(members)
        async with EtcdClient([follower.endpoint], timeout=60) as client:
            await client.put("/fence", b"1")
            fence = await client.get("/fence")
            assert fence is not None

            leader.pause()
            write = asyncio.create_task(client.put("/key", b"perhaps"))
            replacing = [ModRevision("/fence", fence.mod_revision)], [Put("/fence", b"2")], [Get("/fence")]
            definite = asyncio.create_task(retry_txn(client, *replacing))
            read = asyncio.create_task(client.get("/key"))

            with pytest.raises(OutcomeUnknown, match="new leader"):
                await write
            result, resent = await definite
            assert result.succeeded or result.answers[0][0].value == b"2"
            assert resent > 0
            assert await read in (None, await client.get("/key"))
            assert client.no_leader_at > float("-inf")
        leader.resume()


async def test_a_client_that_knows_all_endpoints_goes_on_with_the_new_leader() -> None:
    async with running_cluster(timing=UNHURRIED) as members:
        leader, _ = await leader_and_follower(members)
        others = [member.endpoint for member in members if member is not leader]
        async with EtcdClient([leader.endpoint, *others], timeout=60) as client:
            await client.put("/key", b"1")

            leader.pause()
            with pytest.raises(OutcomeUnknown, match="new leader"):
                await client.put("/key", b"2")
            await until(lambda: client.put("/key", b"3"), what="the new leader serves")
            found = await client.get("/key")
            assert found is not None
            assert found.value == b"3"
        leader.resume()


async def test_a_pause_before_another_try_ends_when_there_is_a_leader_again() -> None:
    async with running_cluster() as members:
        leader, follower = await leader_and_follower(members)
        async with EtcdClient([follower.endpoint]) as client:
            await until(lambda: client.put("/key", b"1"), what="the cluster serves")
            leader.pause()
            async with asyncio.timeout(60):
                await client.pause(3600)
            await until(lambda: client.put("/key", b"2"), what="the new leader serves")
        leader.resume()
