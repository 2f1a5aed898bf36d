"""A member whose wall clock is hours ahead ends no session, neither as it runs nor when it starts, and says so."""

import asyncio
import time

import pytest

from tests.faults.judged import Caller
from tests.faults.pool import FaultPool, fault_pool
from tests.harness.clock import LIBRARY, NO_LIBRARY
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import status_view
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.sessions.session import Session

AHEAD = 2 * 3600.0
"""More than the time for which sessions last here."""
OFTEN = """
import understudy.proxy.peers.clock_watch, understudy.proxy.sessions.session_sweep
understudy.proxy.peers.clock_watch.ASK_INTERVAL = understudy.proxy.sessions.session_sweep.SWEEP_INTERVAL = 1.0
"""
"""What a sidecar does first that asks for others' clocks, and looks for what has ended, every second."""
LOOKS = 5.0
"""Seconds in which each sidecar has looked for what has ended some times."""
SESSIONS = [f"s{number}" for number in range(90)]


async def _clock(pool: FaultPool, name: str) -> dict[str, object]:
    view = (await pool.status(name))["clock"]
    assert isinstance(view, dict)
    return view


async def _agreed(pool: FaultPool) -> bool:
    """Whether every member has compared its clock with those of two others and the control server."""
    views = [await _clock(pool, name) for name in pool.names]
    return all(view["agreed"] and view["agreeing"] == 4 for view in views)


async def _warnings(pool: FaultPool) -> list[str]:
    """What ``understudy status`` warns of."""
    state, revision = await read_pool(pool.client, pool.name)
    return [text for text in status_view(state, revision=revision)["warnings"] if "clock" in text]


async def _lost(pool: FaultPool, caller: Caller) -> set[str]:
    """The sessions that some member does not find, or that are gone from etcd."""
    kept = {kv.key.rpartition("/")[2] for kv in (await pool.client.range(prefix_range(pool.keys.sessions))).kvs}
    answers = {(key, name): await _answer(caller, name, key) for key in SESSIONS for name in pool.names}
    return set(SESSIONS) - kept | {key for (key, _), answer in answers.items() if answer != (200, key)}


async def _answer(caller: Caller, name: str, key: str) -> tuple[int, str]:
    """Status and body, once the member does not say that it cannot tell."""

    async def definite() -> tuple[int, str] | None:
        answer = await caller.get(name, key)
        return answer if answer[0] != 503 else None

    return await until(definite, 40, f"{name} answers")


@pytest.mark.nightly
@pytest.mark.skipif(not LIBRARY.exists(), reason=NO_LIBRARY)
async def test_a_member_whose_clock_is_two_hours_ahead_ends_no_session_and_status_names_it(tmp_path):
    async with fault_pool(takeover="lease", clocks=True, before=OFTEN, home=tmp_path) as pool:
        caller, member = Caller(pool), pool.members["m1"]
        assert member.clock is not None
        assert pool.spec.session_ttl < AHEAD
        for number, key in enumerate(SESSIONS):
            assert await caller.store(pool.names[number % 3], key, key) == 201
        await until(lambda: _agreed(pool), 90, "the clocks agree")

        member.clock.shift(AHEAD)
        told = ["m1: its clock is about 2 h ahead of the pool's, which counts here"]

        async def named() -> bool:
            return await _warnings(pool) == told

        await until(named, 60, "status names the member")
        await asyncio.sleep(LOOKS)
        assert await _lost(pool, caller) == set()

        key = await pool.key_at("m1")
        assert await caller.store("m1", key, "v") == 201
        kv = await pool.client.get(pool.keys.session(slot_of(key, pool.spec.slots), key))
        expires = Session.decode(kv.value, kv.mod_revision).expires / 1000
        assert abs(expires - time.time() - pool.spec.session_ttl) < 60

        member.kill()
        await until(pool.settled, 60, "it is started again, with the wrong clock")
        await until(named, 60, "status names it again")
        await asyncio.sleep(LOOKS)
        assert await _lost(pool, caller) == set()

        member.clock.shift(0)
        await until(lambda: _agreed(pool), 90, "the clocks agree again")

        async def nothing_said() -> bool:
            return await _warnings(pool) == []

        await until(nothing_said, 60, "status has nothing to say")
