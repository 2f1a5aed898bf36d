"""Challenges on a real etcd: who answers, who is silent, and what a probe makes of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer
from understudy.statesync.heartbeat.challenge import Answer, ChallengeAnswers, Challenger, cannot_ask, probe_both_ways
from understudy.statesync.pool.keys import PoolKeys

LONG, SHORT = 40.0, 0.3


@asynccontextmanager
async def living(client: EtcdClient, keys: PoolKeys, member: str, boot: str) -> AsyncIterator[None]:
    """A member that answers challenges, as a sidecar does."""
    answers = ChallengeAnswers(client, keys, member, boot)
    informer = Informer(client, (*keys.records, answers.watched), lambda batch: answers.heard(batch.events))
    tasks = [asyncio.create_task(informer.run()), asyncio.create_task(answers.run())]
    try:
        await asyncio.wait_for(informer.synced.wait(), LONG)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_member_that_runs_answers_all_who_ask(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with living(client, keys, "a", "boot"), living(client, keys, "b", "other"):
        asked = [Challenger(client, keys).ask("a", "boot", LONG) for _ in range(5)]
        assert await asyncio.gather(*asked) == [Answer.ALIVE] * 5
        assert await Challenger(client, keys).ask("a", "earlier", LONG) is Answer.REPLACED
        assert await Challenger(client, keys).ask("b", "other", LONG) is Answer.ALIVE


async def test_a_question_from_before_its_start_is_answered_too(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    asking = asyncio.create_task(Challenger(client, keys).ask("a", "boot", LONG))

    async def is_asked() -> bool:
        return await client.get(keys.challenge("a")) is not None

    await until(is_asked)
    async with living(client, keys, "a", "boot"):
        assert await asking is Answer.ALIVE


async def test_a_dead_member_is_silent_although_it_has_answered_before(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with living(client, keys, "a", "boot"):
        assert await Challenger(client, keys).ask("a", "boot", LONG) is Answer.ALIVE
    assert await Challenger(client, keys).ask("a", "boot", SHORT) is Answer.SILENT


async def test_one_answer_serves_the_asker_for_a_while(client: EtcdClient, pool_name: str) -> None:
    keys, challenger = PoolKeys(pool_name), Challenger(client, PoolKeys(pool_name))
    async with living(client, keys, "a", "boot"):
        await challenger.ask("a", "boot", LONG)
        before = await client.get(keys.challenge("a"))
        assert await challenger.ask("a", "boot", LONG) is Answer.ALIVE
        assert await client.get(keys.challenge("a")) == before


async def test_who_cannot_reach_etcd_learns_nothing(etcd: EtcdServer, pool_name: str) -> None:
    async with cable_to(etcd.endpoint) as cable, EtcdClient([cable.address]) as far:
        cable.cut()
        assert await Challenger(far, PoolKeys(pool_name)).ask("a", "boot", SHORT) is Answer.UNKNOWN


async def test_a_key_with_anything_in_it_is_a_question(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with living(client, keys, "a", "boot"):
        await client.put(keys.challenge("a"), b"\xff[")

        async def is_answered() -> bool:
            kv = await client.get(keys.challenge("a"))
            return kv is not None and b"boot" in kv.value

        await until(is_answered)


async def at_once(found: str) -> str:
    return found


@pytest.mark.parametrize("found", ["alive", "refused"])
async def test_a_probe_that_is_answered_asks_nobody_else(found: str) -> None:
    assert await probe_both_ways(at_once(found), never_asked, lambda one: one == "silent") == (found, None)


async def never_asked() -> Answer:
    raise AssertionError("etcd was asked")


async def test_silence_is_judged_by_what_is_said_through_etcd() -> None:
    found = await probe_both_ways(at_once("silent"), lambda: cannot_ask("a", "boot", 1.0), lambda one: one == "silent")
    assert found == ("silent", Answer.UNKNOWN)


async def test_both_ways_are_tried_side_by_side() -> None:
    asked = asyncio.Event()

    async def direct() -> str:
        await asked.wait()  # it ends only because the other way was begun meanwhile
        return "alive"

    async def ask() -> Answer:
        asked.set()
        return Answer.SILENT

    assert await probe_both_ways(direct(), ask, lambda one: one == "silent") == ("alive", None)
