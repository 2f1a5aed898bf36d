"""``status --sync`` and ``verify`` as an operator runs them, on real sidecars whose memory the test spoils."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from msgspec.structs import replace

from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer
from tests.harness.redis_client import redis_client
from tests.harness.removal import remove
from tests.harness.secrets import write_secret
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.deploy.data.backup_file import sessions_in
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.history import as_text

A_FIRST = (("a", "b"),)
SPEC = f"slots: 16\n{PATIENT}\ndurability: replicas\nreplication: {{patience_ms: 1500, checkpoint_ms: 200}}"
FOREVER = 2**53


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, SPEC) as pool:
        yield pool


@pytest_asyncio.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Commands]:
    async with commands(tmp_path) as running:
        yield running


class Operator:
    """Runs commands against a pool."""

    def __init__(self, shell: Commands, pool: SidecarPool) -> None:
        self._shell = shell
        self._place = ("--etcd", pool.etcd.endpoint, "--pool", pool.keys.pool)

    async def run(self, *arguments: str) -> tuple[int, str]:
        place = self._place[:2] if arguments[0] == "restore" else self._place  # a backup knows its pool
        return await self._shell.run(*arguments, *place)

    async def ask(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, output = await self.run(*arguments, "-o", "json")
        return code, json.loads(output)


@pytest_asyncio.fixture
async def operator(shell: Commands, pool: SidecarPool) -> Operator:
    return Operator(shell, pool)


async def test_status_sync_names_who_is_in_sync_and_who_is_not(pool: SidecarPool, operator: Operator) -> None:
    await pool.start("a", "b", "c")
    await pool.settle(("a", "b", "c"))
    await pool.call("a", "PUT", "/k", "x")

    async def in_sync() -> tuple[int, dict[str, Any]] | None:
        code, view = await operator.ask("status", "--sync")
        return (code, view) if view["in_sync"] else None

    code, view = await until(in_sync, timeout=60, what="all copies are made")
    assert code == 0
    for row in view["members"]:
        assert (row["in_sync"], row["synced"], row["wanted"], row["behind_revisions"]) == (True, 16, 16, 0)
        assert (row["queued_writes"], row["sessions"], row["reason"]) == (0, 1, "")

    record = await pool.record("b")
    assert record is not None
    pool.kill("b", application=False)
    await pool.client.put(pool.keys.member("b"), record.encode())  # without its lease it stays, however slow we are
    code, view = await operator.ask("status", "--sync")
    assert (code, view["in_sync"]) == (1, False)
    assert [row["in_sync"] for row in view["members"]] == [True, False, True]
    assert "cannot be reached at" in view["members"][1]["reason"]
    code, shown = await operator.run("status", "--sync")
    assert code == 1
    assert "16/16" in shown
    assert pool.members["b"].peer in shown


async def test_status_sync_names_keys_with_lost_updates(pool: SidecarPool, operator: Operator) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    address = pool.members["a"].redis
    async with redis_client(address) as one, redis_client(address) as other:
        for client in (one, other):
            await client("GET", "k")
        for client in (one, other):
            await client("SET", "k", "v1")
            await client("SET", "k", "v2")
    code, shown = await operator.run("status", "--sync")
    digest = hashlib.sha256(b"k").hexdigest()[:16]
    assert f"a: lost updates: 1 written, 0 refused; SHA-256 of keys: {digest} (1)" in " ".join(shown.split())
    code, view = await operator.ask("status", "--sync")
    assert (code, [key["key_sha256"] for key in view["members"][0]["overwrites"]["keys"]]) == (0, [digest])


async def test_status_sync_names_a_member_that_lacks_copies_or_is_behind(pool: SidecarPool, operator: Operator) -> None:
    async with sidecars_here(pool, "a", "b") as sidecars:
        await pool.settle(*A_FIRST)
        b = sidecars["b"].copies
        await until(lambda: len(b.replica.synced) == 16, what="the standby has its copies")
        sidecars["b"].reconciler._start = lambda *_: None  # type: ignore[method-assign] # nothing is copied anew
        b.informer._hand_over = lambda _: None  # type: ignore[method-assign] # and nothing comes from the watch
        b.informer.revision -= 1
        for slot in (3, 4, 9):
            b.replica._slots[slot].synced = False
        await pool.call("a", "PUT", "/k", "x", Understudy_Durability="sync")

        code, view = await operator.ask("status", "--sync")

        row = view["members"][1]
        assert (code, row["in_sync"], row["synced"], row["not_in_sync"]) == (1, False, 13, [3, 4, 9])
        assert row["behind_revisions"] > 0
        assert "slots still to be copied: 3 (3-4, 9)" in row["reason"]
        assert "revisions behind" in row["reason"]


async def at_rest(*sidecars: Sidecar) -> None:
    """Wait until these members have copies of all slots, and all that they have is shown and saved."""

    def rests(sidecar: Sidecar) -> bool:
        copies = sidecar.anti_entropy._copies
        progress = [copies.progress(slot) for slot in range(16)]
        return all(one is not None and one.shown == one.saved == one.last for one in progress)

    for sidecar in sidecars:
        await until(lambda one=sidecar: rests(one), what="all is shown and saved")


async def test_verify_is_content_with_a_pool_under_load(pool: SidecarPool, operator: Operator) -> None:
    async with sidecars_here(pool, "a", "b", "c") as sidecars:
        await pool.settle(("a", "b", "c"), ("b", "c", "a"))
        await pool.await_copies("a", "b", "c")
        done, written = asyncio.Event(), 0

        async def load(worker: int) -> None:
            nonlocal written
            n = 0
            while not done.is_set():
                n += 1
                key = f"key-{worker}-{n % 3}"
                method, durability = ("PUT", "DELETE")[n % 5 == 0], ("replicas", "sync", "async")[n % 3]
                status, _, _ = await pool.call(
                    "abc"[worker % 3], method, f"/{key}", str(n), Understudy_Durability=durability
                )
                written += status in (200, 201, 204)
                if n % 7 == 0:
                    slot = slot_of(key, 16)
                    await remove(sidecars[(await pool.owners())[slot].active], slot, key)

        loads = [asyncio.create_task(load(worker)) for worker in range(6)]
        for _ in range(3):
            before = written
            code, view = await operator.ask("verify")
            assert (code, view["different"], view["not_asked"]) == (0, [], {})
            assert (view["slots"], view["copies"]) == (16, 48)
            assert written > before
        done.set()
        await asyncio.gather(*loads)


async def test_verify_names_what_differs_and_repairs_it(pool: SidecarPool, operator: Operator) -> None:
    async with sidecars_here(pool, "a", "b") as sidecars:
        await pool.settle(*A_FIRST)
        for n in range(40):
            await pool.call("a", "PUT", f"/key-{n}", "x")
        stand_by, owner = sidecars["b"].copies.replica, sidecars["a"].copies.replica
        await at_rest(*sidecars.values())
        lost, altered = slot_of("key-1", 16), slot_of("key-2", 16)
        del stand_by._slots[lost].sessions["key-1"]
        kept = owner._slots[altered].sessions
        kept["key-2"] = replace(kept["key-2"], body=b"spoiled")
        kept["never-written"] = replace(kept["key-2"], revision=kept["key-2"].revision)

        code, view = await operator.ask("verify")
        assert (code, view["same"], view["sessions"], view["copies"]) == (1, False, 40, 32)
        found = {(row["slot"], row["member"], row["role"]): row for row in view["different"]}
        assert set(found) == {(lost, "b", "standby"), (altered, "a", "owner")}
        at_b, at_a = found[lost, "b", "standby"]["sessions"], found[altered, "a", "owner"]["sessions"]
        assert [(one["key"], one["fault"]) for one in at_b] == [("key-1", "missing")]
        versions = [(one["held_version"], one["etcd_version"]) for one in (*at_b, *at_a)]
        text = as_text(kept["key-2"].version)
        assert versions == [(None, as_text(owner.session(lost, "key-1").version)), (text, text), (text, None)]
        assert [(one["key"], one["fault"]) for one in at_a] == [
            ("key-2", "other content"),
            ("never-written", "not in etcd"),
        ]

        code, shown = await operator.run("verify", "--slot", str(altered), "--names", "1")
        assert code == 1
        assert "DIFFERENT" in shown
        assert "other content" in shown
        assert text in shown
        assert "never-written" not in shown

        code, view = await operator.ask("verify", "--repair")
        assert (code, view["same"], view["different"]) == (0, True, [])
        assert {(row["slot"], row["member"]) for row in view["repaired"]} == {(lost, "b"), (altered, "a")}
        assert (await pool.call("a", "GET", "/key-2"))[2] == b"x"
        assert (await pool.call("b", "GET", "/key-1", Understudy_Consistency="stale"))[2] == b"x"
        assert (await operator.run("verify"))[0] == 0


async def test_verify_finds_a_value_that_was_changed_in_etcd_and_repairs_all_copies(
    pool: SidecarPool, operator: Operator
) -> None:
    async with sidecars_here(pool, "a", "b") as sidecars:
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "x")
        await at_rest(*sidecars.values())
        stored = pool.keys.session(slot_of("k", 16), "k")
        kv = await pool.client.get(stored)
        assert kv is not None
        await pool.client.put(stored, kv.value.replace(b"\nx", b"\ny"))

        code, view = await operator.ask("verify")
        faults = [(row["member"], one["key"], one["fault"]) for row in view["different"] for one in row["sessions"]]
        assert (code, faults) == (1, [("a", "k", "other content"), ("b", "k", "other content")])

        code, view = await operator.ask("verify", "--repair")
        assert (code, view["same"], len(view["repaired"])) == (0, True, 2)
        for member in ("a", "b"):
            assert (await pool.call(member, "GET", "/k", Understudy_Consistency="stale"))[2] == b"y"
        assert (await pool.call("a", "PUT", "/k", "z"))[0] == 200


async def test_verify_repairs_an_active_under_load_and_no_write_is_lost(pool: SidecarPool, operator: Operator) -> None:
    async with sidecars_here(pool, "a", "b") as sidecars:
        await pool.settle(*A_FIRST)
        await pool.await_copies("a", "b")
        key = next(key for key in map(str, range(1000)) if slot_of(key, 16) == slot_of("k", 16))
        await pool.call("a", "PUT", "/k", "x", Understudy_Durability="sync")
        done, acknowledged = asyncio.Event(), 0

        async def load() -> None:
            nonlocal acknowledged
            while not done.is_set():
                status, headers, _ = await pool.call("a", "PUT", f"/{key}", str(acknowledged + 1))
                if status in (200, 201):
                    acknowledged += 1
                assert headers.get("understudy-durability", "sync") in ("sync", "replicas")

        loading = asyncio.create_task(load())
        await until(lambda: acknowledged > 10, what="the load is under way")
        kept = sidecars["a"].copies.replica._slots[slot_of("k", 16)].sessions
        kept["k"] = replace(kept["k"], body=b"spoiled")

        async def repaired() -> bool:
            code, view = await operator.ask("verify", "--repair")
            return code == 0 and any(row["member"] == "a" for row in view["repaired"])

        await until(repaired, 60, what="the active is repaired")
        done.set()
        await loading
        assert (await pool.call("a", "GET", f"/{key}"))[2] == str(acknowledged).encode()
        assert (await pool.call("a", "GET", "/k"))[2] == b"x"


async def test_verify_says_why_a_copy_was_not_repaired(pool: SidecarPool, operator: Operator) -> None:
    async with sidecars_here(pool, "a") as sidecars:
        await pool.settle(("a",))
        await pool.call("a", "PUT", "/k", "x")
        await at_rest(*sidecars.values())
        slot = slot_of("k", 16)
        kept = sidecars["a"].copies.replica._slots[slot].sessions
        kept["k"] = replace(kept["k"], body=b"spoiled")
        sidecars["a"].owned.get(slot).preparing = True  # as while it is claimed

        code, view = await operator.ask("verify", "--slot", str(slot), "--repair")

        assert (code, view["repaired"], len(view["different"])) == (1, [], 1)
        assert "not repaired: slot" in view["different"][0]["reason"]
        assert "try again" in view["different"][0]["reason"]


async def test_verify_names_missing_copies_and_members_that_cannot_be_asked(
    pool: SidecarPool, operator: Operator
) -> None:
    async with sidecars_here(pool, "a", "b") as sidecars:
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "x")
        await until(lambda: len(sidecars["b"].copies.replica.synced) == 16, what="the standby has its copies")
        sidecars["b"].copies.replica._slots[5].synced = False
        sidecars["b"].reconciler._start = lambda *_: None  # type: ignore[method-assign] # so that it is not copied anew

        code, view = await operator.ask("verify")
        assert (code, view["same"]) == (1, False)
        assert [(row["slot"], row["member"], row["reason"]) for row in view["different"]] == [
            (5, "b", "no complete copy of slot 5 is held here")
        ]

    async with sidecars_here(pool, "a"):
        await pool.write_table((("a", "gone"),))
        code, view = await operator.ask("verify")
        assert (code, view["same"], list(view["not_asked"])) == (1, False, ["gone"])
        assert (await operator.run("verify", "--slot", "16"))[0] == 2


async def test_verify_names_values_in_etcd_that_are_no_sessions(pool: SidecarPool, operator: Operator) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await pool.client.put(pool.keys.session(7, "broken"), b"no session")

    code, view = await operator.ask("verify")

    assert (code, view["unreadable"], view["different"]) == (1, [{"slot": 7, "values": 1}], [])


async def test_encrypted_sessions_are_verified_backed_up_and_restored(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_secret(keys, base64.b64encode(bytes(range(32))).decode())
    file = tmp_path / "backup.jsonl"
    async with sidecars_here(pool, "a", session_keys=keys, scrub_interval=0.01) as sidecars:
        await pool.settle(("a",))
        await pool.call("a", "PUT", "/k", "a secret matter")
        code, told = await operator.run("verify")
        assert (code, "give --session-keys" in told) == (2, True)
        code, view = await operator.ask("verify", "--session-keys", str(keys))
        assert (code, view["same"], view["sessions"]) == (0, True, 1)
        kept = sidecars["a"].copies.replica._slots[slot_of("k", 16)].sessions
        kept["k"] = replace(kept["k"], body=b"spoiled")
        await until(lambda: sidecars["a"].recorder.counters.resyncs >= 1, what="the wrong copy is found")
        assert (await pool.call("a", "GET", "/k"))[2] == b"a secret matter"
        assert (await operator.run("backup", str(file)))[0] == 0
    assert b"secret matter" not in b"".join(line.value for line in sessions_in(file))
    await pool.client.delete(pool.keys.everything)

    code, told = await operator.run("restore", str(file))
    assert code == 0, told
    async with sidecars_here(pool, "b", session_keys=keys):
        await pool.settle(("b",))
        assert (await pool.call("b", "GET", "/k"))[2] == b"a secret matter"
