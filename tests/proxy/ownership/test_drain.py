"""A member that is told to leave: it gives its slots away while its application serves, and says when that is done."""

import asyncio
import http.client
import json
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.secrets import write_secret
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from tests.proxy.members import view_of
from understudy.proxy.ownership.drain import LINGER, Drain
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import FailoverRecord, Intent, MemberState, Owner

ADMIN = {"Understudy-Admin": "true"}
A_FIRST = ("a", "b")
B_FIRST = ("b", "a")


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        ports = {name: free_port() for name in "abc"}
        pool.flags, pool.logs = lambda name: ("--health", f"127.0.0.1:{ports[name]}"), tmp_path
        yield pool


async def leave(pool: SidecarPool, name: str, *flags: str) -> tuple[int, str]:
    """Run ``understudy leave`` as the sidecar container's preStop hook does: exit code, and what it complains of."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", "leave", *flags]),
        env={**os.environ, "UNDERSTUDY_SESSION_API": pool.members[name].api},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode or 0, said.decode()


async def ask(pool: SidecarPool, name: str, path: str) -> tuple[int, dict[str, object]]:
    record = await pool.record(name)
    assert record is not None
    async with pool.http.get(f"http://{record.health}{path}") as answer:
        return answer.status, json.loads(await answer.read())


async def test_a_leaving_member_serves_on_until_its_slots_are_given_away_and_then_says_so(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(A_FIRST, B_FIRST)
    key = pool.key_in((A_FIRST, B_FIRST), "a")
    assert (await pool.call("a", "PUT", f"/{key}", "kept"))[0] == 201
    assert await ask(pool, "a", "/started") == (200, {"yes": True, "reason": ""})
    status, said = await ask(pool, "a", "/drained")
    assert (status, said["reason"]) == (503, "nobody has asked this member to hand its slots over")

    the_applications_hook = asyncio.create_task(ask(pool, "a", "/drained?wait=30"))
    hook = asyncio.create_task(leave(pool, "a", "--wait", "30"))
    await without(pool, "a")
    assert await hook == (0, "")

    assert await the_applications_hook == (200, {"yes": True, "reason": ""})
    assert {owner.active for owner in (await pool.owners()).values()} == {"b"}
    assert (await pool.call("a", "GET", f"/{key}"))[2] == b"kept"
    assert (await pool.call("a", "PUT", f"/{key}", "changed"))[0] == 200
    assert (await pool.call("b", "GET", f"/{key}"))[2] == b"changed"
    assert (await ask(pool, "a", "/health"))[0] == 503
    assert (await ask(pool, "a", "/live"))[0] == 200

    sidecar = pool.members["a"].sidecar
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.ended() == 0


async def test_the_last_member_does_not_wait_for_heirs_that_there_are_not(pool: SidecarPool) -> None:
    told = pool.flags
    assert told is not None
    pool.flags = lambda name: (*told(name), "--drain-seconds", "600")
    await pool.start("a")
    await pool.settle(("a",))
    code, said = await leave(pool, "a", "--wait", "20")
    slots = len(await pool.owners())
    assert (code, said) == (0, f"no other member can take {slots} slots; etcd has their writes\n")
    assert {owner.active for owner in (await pool.owners()).values()} == {"a"}


async def test_a_handover_that_is_given_up_is_not_called_done(pool: SidecarPool) -> None:
    told = pool.flags
    assert told is not None
    pool.flags = lambda name: (*told(name), "--drain-seconds", "1")
    await pool.start("a", "b")
    await pool.settle(A_FIRST)
    pool.members["b"].sidecar.signal(signal.SIGSTOP)
    code, said = await leave(pool, "a", "--wait", "60")
    pool.members["b"].sidecar.signal(signal.SIGCONT)
    assert code == 1
    assert "slots were not handed over in time; etcd has their writes" in said
    assert (await ask(pool, "a", "/drained"))[0] == 200, "nobody need wait any longer"


async def test_a_member_that_leaves_waits_for_one_that_still_starts(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(("a",))
    warming = f"http://{pool.members['b'].api}/v1/checks/cache"
    async with pool.http.put(warming, json={"deadline_seconds": 60}, headers=ADMIN) as answer:
        assert answer.status == 201
    await until(lambda: is_in(pool, "b", MemberState.INIT), 40, "b says that it starts")
    assert (await pool.call("a", "PUT", "/k", "kept"))[0] == 201
    sidecar = pool.members["a"].sidecar

    sidecar.signal(signal.SIGTERM)
    await until(lambda: is_in(pool, "a", MemberState.DRAINING), 40, "a says that it leaves")
    async with pool.http.post(warming, json={"state": "ok"}, headers=ADMIN) as answer:
        assert answer.status == 200
    await until(lambda: is_in(pool, "b", MemberState.READY), 40, "b could serve")
    await pool.settle(B_FIRST)

    assert await sidecar.ended() == 0
    assert {owner.cause for owner in (await pool.owners()).values()} == {"drain"}
    assert (await pool.call("b", "GET", "/k"))[2] == b"kept"


async def test_an_operators_drain_with_an_end_is_over_by_itself(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(A_FIRST)
    now = time.time()
    await pool.client.put(pool.keys.intent("a"), Intent("a", now + 600.0, now).encode())
    await until(lambda: is_in(pool, "a", MemberState.DRAINING), 40, "a is drained")
    await pool.await_owners((B_FIRST,))
    # However long that took: only now the end comes near.
    await pool.client.put(pool.keys.intent("a"), Intent("a", time.time() + 1.0, now).encode())
    await until(lambda: is_in(pool, "a", MemberState.UP), 40, "a is back, and standby")


async def test_a_site_hands_over_without_a_control_server_too_and_not_to_itself(pool: SidecarPool) -> None:
    told, sites = pool.flags, {"a": "east", "b": "east", "c": "west"}
    assert told is not None
    pool.flags = lambda name: (*told(name), "--site", sites[name])
    await pool.start("a", "b", "c")
    await pool.settle(("a", "b", "c"), ("b", "a", "c"))
    await pool.client.put(pool.keys.site_intent("east"), Intent(site="east").encode())
    await pool.await_owners((("c",),))
    for name in ("a", "b"):
        await until(lambda name=name: says_that_its_site_is_offline(pool, name), 40, f"{name} says why it gives way")
    page = await pool.client.range(prefix_range(pool.keys.failovers))
    given = [FailoverRecord.decode(kv.value) for kv in page.kvs]
    assert {(one.source, one.to, one.cause) for one in given if one.planned} == {
        ("a", "c", "site east offline"),
        ("b", "c", "site east offline"),
    }

    await pool.client.delete(pool.keys.site_intent("east"))
    await until(lambda: is_in(pool, "a", MemberState.UP), 40, "a is back, and standby")


async def says_that_its_site_is_offline(pool: SidecarPool, name: str) -> bool:
    record = await pool.record(name)
    assert record is not None
    return (record.state, record.reason) == (MemberState.DRAINING, "site east is offline")


async def is_in(pool: SidecarPool, name: str, state: MemberState) -> bool:
    record = await pool.record(name)
    return record is not None and record.state is state


async def test_a_sidecar_that_has_to_outlive_its_application_waits_for_the_end_of_that(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(A_FIRST)
    outliving = asyncio.create_task(leave(pool, "a", "--wait", "60", "--until", "application-gone"))
    await without(pool, "a")
    await until(lambda: drained(pool, "a"), what="a has given its slots away", timeout=40)
    assert not outliving.done()

    application = pool.members["a"].application
    application.signal(signal.SIGTERM)

    assert await outliving == (0, "")


async def without(pool: SidecarPool, name: str) -> None:
    """Write the table that a control server writes for a member that leaves, once it has left its slots."""

    async def owns_none() -> bool:
        return all(owner.active != name for owner in (await pool.owners()).values())

    await until(owns_none, 40, f"{name} owns no slots")
    await pool.write_table((tuple(sorted(set(pool.members) - {name})),))


async def drained(pool: SidecarPool, name: str) -> bool:
    return (await ask(pool, name, "/drained"))[0] == 200


async def test_who_cannot_wait_is_told_what_is_missing(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(A_FIRST)
    code, said = await leave(pool, "a", "--wait", "30", "--until", "application-gone", "--wait", "0.01")
    assert code == 1
    assert "not done after 0.01 s" in said
    nowhere = free_port()
    code, said = await leave(pool, "a", "--session-api", f"127.0.0.1:{nowhere}")
    assert code == 2
    assert f"the sidecar at 127.0.0.1:{nowhere} does not answer" in said
    for wrong in ("wait=-1", "wait=nan", "wait=soon", "until=monday"):
        async with pool.http.post(f"http://{pool.members['b'].api}/v1/drain?{wrong}", headers=ADMIN) as answer:
            assert answer.status == 400
    assert (await ask(pool, "b", "/drained"))[1]["reason"] == "nobody has asked this member to hand its slots over"


async def test_a_question_that_waits_does_not_hold_up_others_on_the_health_port(pool: SidecarPool) -> None:
    await pool.start("a")
    record = await pool.record("a")
    assert record is not None
    host, _, port = record.health.rpartition(":")
    patient, hasty = (http.client.HTTPConnection(host, int(port), timeout=20) for _ in range(2))
    patient.request("GET", "/drained?wait=60")
    for _ in range(3):
        hasty.request("GET", "/started")
        assert hasty.getresponse().read() == b'{"yes": true, "reason": ""}'
    assert not select.select([patient.sock], [], [], 0)[0]
    hasty.request("GET", "/drained?wait=0.1")
    answer = hasty.getresponse()
    assert (answer.status, answer.read()[:12]) == (503, b'{"yes": fals')
    for nonsense in ("nan", "-3", "1e9", "x"):
        hasty.request("GET", f"/drained?wait={nonsense}")
        answer = hasty.getresponse()
        assert (answer.status, answer.read()[:12]) == (503, b'{"yes": fals')
    for each in (patient, hasty):
        each.close()


async def test_a_sidecar_takes_all_its_options_from_the_environment(
    etcd: EtcdServer, pool_name: str, tmp_path: Path
) -> None:
    async with sidecar_pool(etcd, pool_name) as pool:
        app, api, peer, health, metrics = (f"::1:{free_port()}" for _ in range(5))
        told = {
            "MEMBER": "pod-1", "POOL": pool_name, "ETCD": etcd.endpoint, "APP": app, "SESSION_API": api, "PEER": peer,
            "HEALTH": health, "METRICS": metrics, "SITE": "zone-1", "NODE": "node-7", "WEIGHT": "30", "PRIORITY": "2",
            "LOG_LEVEL": "debug", "CHECKS": "[{name: deep, http: 'http://127.0.0.1:1/'}]",
        }  # fmt: skip
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "understudy.deploy.cli", "sidecar"),
                env={**os.environ, **{f"UNDERSTUDY_{name}": value for name, value in told.items()}},
                cwd=ROOT,
                stderr=log,
            )
        try:
            record = await until(lambda: pool.record("pod-1"), 40, "the member registers")
            assert (record.site, record.node, record.weight, record.priority) == ("zone-1", "node-7", 30, 2)
            assert record.app == bracketed(app)
            assert record.peer == bracketed(peer)
            assert record.health == bracketed(health)
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://{bracketed(metrics)}/metrics") as answer:
                    assert "understudy_member_state" in await answer.text()

                async def has_the_check() -> bool:
                    async with http.get(f"http://{bracketed(api)}/v1/checks") as answer:
                        return "deep" in [check["name"] for check in (await answer.json())["checks"]]

                await until(has_the_check, 40, "the sidecar's own check has begun")
        finally:
            process.terminate()
            await process.wait()


def bracketed(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"[{host}]:{port}"


async def test_front_envoys_are_given_time_to_learn_of_the_end() -> None:
    owned, updates = OwnedSlots(), cast("Any", SimpleNamespace(wake=lambda: None))
    owned.reopen(owned.gain(1, Owner("a", "a1", 1), 7))
    state = DrainState(view_of("a"))
    drain = drain_of(state, owned, updates, others=["b"])
    handing_over = drain.begin()
    await asyncio.sleep(0)
    assert drain.outstanding(time.monotonic()) == "1 slots are still to be handed over"

    before = time.monotonic()
    owned.lose(1)
    await handing_over
    assert drain.outstanding(before) == "front Envoys may not know yet"
    assert drain.outstanding(before + LINGER) == "front Envoys may not know yet"
    assert drain.outstanding(time.monotonic() + LINGER) == ""


async def test_a_slot_that_comes_when_all_are_given_away_is_saved_and_no_other_is_taken() -> None:
    owned, saved = OwnedSlots(), []
    updates = SimpleNamespace(wake=lambda: None)

    async def save(_: float) -> int:
        saved.append((owned.slots, owned.closed))
        return 0

    drain = drain_of(DrainState(view_of("a")), owned, updates, others=["b"], save=save)
    await drain.begin()
    assert (saved, owned.closed) == ([], False), "a member that leaves may still help until it is told to end"
    owned.gain(1, Owner("a", "a1", 2), 1)
    await drain.run()
    assert saved == [((1,), True)]


async def test_a_drain_that_was_given_up_says_what_is_not_protected() -> None:
    def gave_up(others: list[str], lacking: int = 0, needed: int = 0, slots: int = 1) -> tuple[Drain, OwnedSlots]:
        async def save(_: float) -> int:
            return lacking

        owned = OwnedSlots()
        for slot in range(slots):
            owned.gain(slot, Owner("a", "a1", 1), 7)
        updates = SimpleNamespace(wake=lambda: None)
        state = DrainState(view_of("a"))
        return drain_of(state, owned, updates, others=others, save=save, needed=needed, seconds=0.0), owned

    drain, owned = gave_up(["b"])
    await drain.begin()
    assert drain.result() == (False, "1 slots were not handed over in time; etcd has their writes")
    owned.lose(0)
    assert drain.result() == (True, ""), "it was handed over after all"
    drain, _ = gave_up([], lacking=1)
    await drain.begin()
    assert drain.result() == (False, "etcd may lack the newest writes of 1 of 1 slots that are left")
    drain, _ = gave_up(["b"], needed=2, slots=0)
    await drain.begin()
    assert drain.result() == (False, "2 slots of other members still count on a copy here")
    drain, _ = gave_up([])
    await drain.begin()
    assert drain.result() == (True, "no other member can take 1 slots; etcd has their writes")


async def not_needed(_: float) -> int:
    raise AssertionError("every slot is handed over")


def drain_of(
    state: DrainState,
    owned: OwnedSlots,
    updates: Any,
    *,
    others: list[str],
    save: Callable[[float], Awaitable[int]] = not_needed,
    needed: int = 0,
    seconds: float = 60.0,
) -> Drain:
    return Drain(
        state,
        owned,
        updates,
        on_change=lambda: None,
        others=lambda: others,
        needed=lambda: needed,
        save=save,
        seconds=seconds,
    )


async def test_a_leave_that_does_not_wait_begins_the_drain(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(A_FIRST)
    assert await leave(pool, "a") == (0, "")
    await until(lambda: drained(pool, "a"), 40, "a has nothing more to do")


async def test_leaving_works_over_a_unix_socket_that_asks_for_a_token(
    etcd: EtcdServer, pool_name: str, tmp_path: Path
) -> None:
    tokens, other, api = tmp_path / "tokens", tmp_path / "other", f"unix:{tmp_path / 'api.sock'}"
    write_secret(tokens, "# ours\n0123456789abcdef\n")
    write_secret(other, "fedcba9876543210\n")
    command = (sys.executable, "-m", "understudy.deploy.cli")
    async with sidecar_pool(etcd, pool_name) as pool:
        addresses = (f"127.0.0.1:{free_port()}" for _ in range(2))
        told = ("--member", "a", "--pool", pool_name, "--etcd", etcd.endpoint, "--session-api", api)
        told += ("--app", next(addresses), "--peer", next(addresses), "--session-token-file", str(tokens))
        with (tmp_path / "log").open("wb") as log:
            sidecar = await asyncio.create_subprocess_exec(*command, "sidecar", *told, cwd=ROOT, stderr=log)
        try:
            await until(lambda: pool.record("a"), 40, "the member registers")
            codes = []
            for file in (other, tokens):
                flags = ("--session-api", api, "--session-token-file", str(file), "--wait", "20")
                process = await asyncio.create_subprocess_exec(
                    *command, "leave", *flags, cwd=ROOT, stderr=asyncio.subprocess.PIPE
                )
                _, said = await process.communicate()
                codes.append((process.returncode, said.decode()))
            assert codes[0][0] == 2
            assert "answered 401" in codes[0][1]
            assert codes[1] == (0, "")
        finally:
            sidecar.terminate()
            await sidecar.wait()
