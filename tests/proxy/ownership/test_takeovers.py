"""Who serves a slot when its owner dies, freezes, drains or comes back: real sidecars, real signals, real etcd."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Self

import pytest_asyncio

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.statesync.pool.records import Member
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec_reader import parse_spec

A_FIRST = (("a", "b"),)
B_FIRST = (("b", "a"),)
MERGE = "application/merge-patch+json"
PULSES_ALONE = "liveness: {unanswered_ms: 20000, application_ms: 20000}"
"""For a spec: a process that stops is found by its pulse, and never before by probes that it does not answer."""
BUSY_FOR_LONG = "liveness: {load_cap_ms: 20000}"


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


REST = 0.02
"""Seconds between two writes of a client: sessions grow with each write, and slots are handed over in seconds."""


class Writers:
    """Clients that keep adding numbered fields to sessions through one member; remembers what was acknowledged."""

    def __init__(self, pool: SidecarPool, at: str, sessions: int = 8) -> None:
        self.pool, self.at = pool, at
        self.acknowledged: dict[str, set[str]] = {f"s{i}": set() for i in range(sessions)}
        self.refused: list[tuple[int, bytes]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        for key in self.acknowledged:
            await until(partial(self._made, key), 40, f"session {key} is there")
        self._tasks = [asyncio.create_task(self._write(key)) for key in self.acknowledged]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _made(self, key: str) -> bool:
        """Whether a session is there, made just now or by another writer; a busy member refuses new ones for a time."""
        new = {"Content_Type": "application/json", "If_None_Match": "*"}
        return (await self.pool.call(self.at, "PUT", f"/{key}", "{}", **new))[0] in (201, 412)

    async def _write(self, key: str) -> None:
        for number in count():
            if self._stopping:
                return
            field = f"{self.at}-{key}-{number}"
            headers = {"Content_Type": MERGE, "Idempotency_Key": field}
            status, _, body = await self.pool.call(self.at, "PATCH", f"/{key}", json.dumps({field: 1}), **headers)
            if status == 200:
                self.acknowledged[key].add(field)
            else:
                self.refused.append((status, body))
            await asyncio.sleep(REST)

    async def progress(self, more: int = 5) -> None:
        """Wait until every session has ``more`` further acknowledged writes."""
        goal = {key: len(fields) + more for key, fields in self.acknowledged.items()}
        await until(lambda: all(len(self.acknowledged[k]) >= n for k, n in goal.items()), 40, "writers make progress")

    async def lost(self, at: str) -> set[str]:
        """Acknowledged writes that a reader at ``at`` does not find."""
        missing: set[str] = set()
        for key, fields in self.acknowledged.items():
            missing |= fields - set(json.loads((await self.pool.call(at, "GET", f"/{key}"))[2]))
        return missing


async def test_callers_of_a_dead_owner_wait_together_while_etcd_cannot_be_asked(pool: SidecarPool) -> None:
    orders = (("a", "b"), ("b", "a"))
    gone, own = pool.key_in(orders, "a"), pool.key_in(orders, "b")
    async with cable_to(pool.etcd.endpoint) as cable:
        await pool.start("a")
        await pool.start("b", etcd=cable.address)
        await pool.settle(*orders)
        await pool.call("a", "PUT", f"/{gone}", "kept")

        cable.reset()
        pool.kill("a")
        callers = [asyncio.create_task(pool.call("b", "GET", f"/{gone}")) for _ in range(20)]
        await until(
            partial(_answers, pool, f"/{own}", 503), what="etcd has been away for longer than the read deadline"
        )
        cable.mend()
        found = {(status, body if status == 200 else b"") for status, _, body in await asyncio.gather(*callers)}

        assert found <= {(200, b"kept"), (503, b"")}
        await until(partial(_answers, pool, f"/{gone}", 200), what="the standby serves")
        async with pool.http.get(f"http://{pool.members['b'].api}/v1/status") as answer:
            assert (await answer.json())["forwarded_calls"] < 5 * len(callers)


async def _answers(pool: SidecarPool, path: str, status: int) -> bool:
    return (await pool.call("b", "GET", path))[0] == status


async def test_a_request_at_the_standby_takes_a_killed_owners_slots_over(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await pool.call("a", "PUT", "/k", "kept")

    pool.kill("a")

    status, headers, body = await pool.call("b", "GET", "/k")
    assert (status, body, headers["understudy-served-by"], headers["understudy-epoch"]) == (200, b"kept", "b", "2")
    owners = await pool.owners()
    assert {owner.active for owner in owners.values()} == {"b"}
    assert owners[0].cause.startswith("a lost: ")
    assert owners[0].cause.endswith("; connection refused")


async def test_a_standby_claims_all_slots_of_a_lost_member_without_any_request(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    boot = (await pool.owners())[0].boot
    pool.kill("a")

    await pool.write_table(B_FIRST, lost={"a": boot})

    await pool.await_owners(B_FIRST)
    assert {owner.epoch for owner in (await pool.owners()).values()} == {2}


async def test_a_killed_owners_slots_are_taken_over_before_anybody_asks_for_them(pool: SidecarPool) -> None:
    orders = (("a", "b"), ("b", "a"))
    await pool.start("a", "b")
    await pool.settle(*orders)
    await until(partial(pool.protected, 2), 40, "each has a copy of the other's slot")

    pool.kill("a")

    await pool.await_owners((("b", "a"), ("b", "a")))
    assert (await pool.owners())[0].cause == "a lost: no replication connection; connection refused"


async def test_one_witness_is_not_enough(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    boot = (await pool.owners())[0].boot

    await pool.write_table(B_FIRST, lost={"a": boot})
    await pool.await_owners(B_FIRST)

    assert {owner.cause for owner in (await pool.owners()).values()} == {"rebalance"}


async def test_nothing_acknowledged_is_lost_when_the_owner_is_killed_under_writes(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)

    async with Writers(pool, at="b") as writers:
        await writers.progress()
        pool.kill("a")
        await writers.progress()

    assert writers.refused == []
    assert await writers.lost(at="b") == set()


async def test_a_handover_loses_nothing_and_refuses_nobody(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)

    async with Writers(pool, at="a") as at_a, Writers(pool, at="b") as at_b:
        for orders in (B_FIRST, A_FIRST, B_FIRST):
            await at_a.progress()
            await pool.write_table(orders)
            await pool.await_owners(orders)
            await at_b.progress()

    assert at_a.refused + at_b.refused == []
    assert await at_a.lost(at="b") | await at_b.lost(at="a") == set()


async def test_a_frozen_owner_is_taken_over_and_learns_of_it_when_it_wakes(pool: SidecarPool) -> None:
    await pool.apply(parse_spec(f"pool: {pool.keys.pool}\nslots: 16\n{PULSES_ALONE}", where="test"))
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await pool.call("a", "PUT", "/k", "old")
    frozen = pool.members["a"].sidecar
    await until(partial(_feels, pool, "b", "a"), 40, "b feels the pulse of a")

    frozen.signal(signal.SIGSTOP)
    status, headers, _ = await pool.call("b", "PUT", "/k", "new")
    frozen.signal(signal.SIGCONT)

    assert (status, headers["understudy-served-by"]) == (200, "b")
    assert {owner.cause for owner in (await pool.owners()).values()} == {
        "a lost: its process has stopped; its process has stopped"
    }
    status, headers, body = await pool.call("a", "GET", "/k", Understudy_Consistency="linearizable")
    assert (status, body, headers["understudy-served-by"]) == (200, b"new", "b")
    status, headers, _ = await pool.call("a", "PUT", "/k", "newer")
    assert (status, headers["understudy-served-by"]) == (200, "b")


async def test_an_owner_that_is_known_to_be_busy_is_waited_for(pool: SidecarPool) -> None:
    """As under a CPU limit: the owner stands still again and again, and each time longer than a silence that counts."""
    await pool.apply(parse_spec(f"pool: {pool.keys.pool}\nslots: 16\n{BUSY_FOR_LONG}", where="test"))
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await pool.call("a", "PUT", "/k", "{}", Content_Type="application/json")
    owner = pool.members["a"].sidecar

    async def stand_still(seconds: float) -> None:
        owner.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        owner.signal(signal.SIGCONT)

    async def was_late() -> bool:
        await stand_still(0.4)  # a standstill that a busy machine makes much longer does not count as load
        return await _told_of_delays(pool, "a", "b")

    await until(was_late, 40, "a's record tells b that it was late")
    for number in range(3):
        pause = asyncio.create_task(stand_still(0.9))
        status, headers, _ = await pool.call(
            "b", "PATCH", "/k", json.dumps({str(number): 1}), Content_Type=MERGE, Idempotency_Key=str(number)
        )
        await pause
        assert (status, headers["understudy-served-by"], headers["understudy-epoch"]) == (200, "a", "1")


async def _feels(pool: SidecarPool, name: str, other: str) -> bool:
    async with pool.http.get(f"http://{pool.members[name].api}/v1/status") as answer:
        return bool((await answer.json())["pulses"].get(other))


async def _told_of_delays(pool: SidecarPool, name: str, other: str) -> bool:
    """Whether a member's record says that it was late, and another one has read it."""
    kv = await pool.client.get(pool.keys.member(name))
    if kv is None or Member.decode(kv.value).stall < 0.25:
        return False
    async with pool.http.get(f"http://{pool.members[other].api}/v1/status") as answer:
        return bool((await answer.json())["applied_revision"] >= kv.mod_revision)


async def test_a_restarted_member_serves_its_slots_again_under_a_new_epoch(pool: SidecarPool) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await pool.call("a", "PUT", "/k", "kept")

    pool.kill("a", application=False)
    await pool.start("a")

    status, headers, body = await pool.call("a", "GET", "/k")
    assert (status, body, headers["understudy-epoch"]) == (200, b"kept", "2")


async def test_a_drained_sidecar_hands_its_slots_over_and_ends_well(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    draining = pool.members["a"].sidecar

    async with Writers(pool, at="b") as writers:
        await writers.progress()
        draining.signal(signal.SIGTERM)
        await pool.await_owners(B_FIRST)
        await writers.progress()

    assert await draining.ended() == 0
    assert writers.refused == []
    assert await writers.lost(at="b") == set()
    assert await pool.record("a") is None


async def test_writes_survive_a_restart_of_etcd(etcd_server: EtcdServer, pool_name: str) -> None:
    async with sidecar_pool(etcd_server, pool_name) as pool:
        await pool.start("a", "b")
        await pool.settle(*A_FIRST)

        async with Writers(pool, at="b") as writers:
            await writers.progress()
            etcd_server.stop()  # not kill -9: 3.5.1 may then lose what it acknowledged (etcd #13766, #14370)
            await etcd_server.start()
            await writers.progress()

        assert await writers.lost(at="a") == set()
        assert {owner.active for owner in (await pool.owners()).values()} == {"a"}


async def test_an_owner_that_is_cut_off_from_etcd_gives_way_and_acknowledges_nothing(pool: SidecarPool) -> None:
    async with cable_to(pool.etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.start("b")
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "before")

        cable.cut()
        cut_off = asyncio.create_task(pool.call("a", "PUT", "/k", "cut off"))
        await pool.write_table((("b",),))
        await pool.await_owners((("b",),))
        answers = {"after": await pool.call("b", "PUT", "/k", "after"), "cut off": await cut_off}
        cable.mend()

        # A call that was still waiting when the slots went is forwarded, and the new owner may answer it.
        assert answers["after"][0] == 200, answers
        assert (answers["cut off"][0], answers["cut off"][1].get("understudy-served-by")) in {(503, None), (200, "b")}
        assert "it cannot reach etcd" in (await pool.owners())[0].cause
        acknowledged = {text: headers["etag"] for text, (status, headers, _) in answers.items() if status == 200}
        newest = max(acknowledged, key=lambda text: tuple(map(int, acknowledged[text].strip('"').split("."))))

        async def a_knows() -> bool:
            status, headers, body = await pool.call("a", "GET", "/k")
            return (status, headers["understudy-served-by"], body) == (200, "b", newest.encode())

        await until(a_knows, 40, "the member that was cut off sends its callers to the new owner")


async def test_with_takeover_lease_a_replaced_owner_never_answers_an_old_read(etcd: EtcdServer, pool_name: str) -> None:
    async with sidecar_pool(etcd, pool_name, "slots: 16\ntakeover: lease") as pool:
        await pool.start("a", "b")
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "old")
        frozen = pool.members["a"].sidecar

        async def taken_over() -> bool:
            status, headers, _ = await pool.call("b", "PUT", "/k", "new")
            return (status, headers.get("understudy-served-by")) == (200, "b")

        frozen.signal(signal.SIGSTOP)
        await until(taken_over, 40, "b serves")
        frozen.signal(signal.SIGCONT)

        for _ in range(20):
            assert (await pool.call("a", "GET", "/k"))[2] == b"new"


async def test_a_member_takes_up_a_slot_whose_claim_was_never_answered(pool: SidecarPool) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await pool.call("a", "PUT", "/k", "kept")
    slot = slot_of("k", pool.spec.slots)
    owner = (await pool.owners())[slot]

    await pool.client.put(pool.keys.owner(slot), replace(owner, epoch=owner.epoch + 1).encode())

    async def served() -> bool:
        status, headers, _ = await pool.call("a", "PUT", "/k", "new")
        return (status, headers.get("understudy-epoch")) == (200, str(owner.epoch + 1))

    await until(served, 40, "the slot is served under the epoch that stands in etcd")
