"""Faults that once broke a promise, each on its own: found by ``make chaos``, or by reading with it in mind."""

import asyncio
import json
import signal

from tests.faults.clients import NO_EFFECT
from tests.faults.pool import fault_pool
from tests.harness.cable import Way, cable_to
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import until
from understudy.statesync.pool.slots import slot_of

A_FIRST = ("a", "b")
MERGE = "application/merge-patch+json"


async def test_a_write_that_the_owner_carried_out_is_never_said_to_be_undone(tmp_path):
    async with fault_pool(takeover="fast", members=2, slots=4, home=tmp_path) as pool:
        caller, owner = (pool.members[name] for name in pool.names)
        key = await pool.key_at(owner.name)
        for cable in caller.to_etcd:
            cable.cut()
        owner.from_peers.cut(Way.ANSWERS, caller.name)

        url = f"http://{caller.api}/v1/sessions/{key}"
        async with pool.http.put(url, data="v", headers={"Idempotency-Key": "once"}) as answer:
            said = json.loads(await answer.read())

        async with pool.http.get(f"http://{owner.api}/v1/sessions/{key}") as answer:
            assert (answer.status, await answer.text()) == (200, "v")
        assert said["status"] == 503
        assert said["type"].rpartition("/")[2] not in NO_EFFECT


async def test_an_owner_that_was_replaced_refuses_nothing_from_its_old_memory(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool, cable_to(etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.start("b")
        await pool.settle(A_FIRST)
        await pool.call("a", "PUT", "/k", "old")
        cable.cut()
        await pool.write_table((("b",),))
        await pool.await_owners((("b",),))
        _, headers, _ = await pool.call("b", "PUT", "/k", "new")
        await pool.call("b", "PUT", "/n", "{}", Content_Type="application/json")

        replaced = await pool.call("a", "PUT", "/k", "newer", If_Match=headers["etag"])
        patched = await pool.call("a", "PATCH", "/n", '{"x":1}', Content_Type=MERGE)
        deleted = await pool.call("a", "DELETE", "/n")

        # It may have learned of its successor, who carries them out; its own memory would have said 412 and 404.
        assert {status for status, _, _ in (replaced, patched, deleted)} <= {200, 204, 503}


async def test_an_owners_memory_is_never_behind_what_a_linearizable_read_has_shown(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool, cable_to(etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.settle(("a",))
        await pool.call("a", "PUT", "/k", "old")

        cable.cut(Way.ANSWERS)
        put = asyncio.create_task(pool.call("a", "PUT", "/k", "new"))
        await _revision_rises(pool)
        cable.reset()
        await asyncio.sleep(0.9)  # long enough for the repeats of the transaction to lie half a second apart
        cable.mend()

        pairs = []
        while not put.done():
            _, _, shown = await pool.call("a", "GET", "/k", Understudy_Consistency="linearizable")
            _, _, remembered = await pool.call("a", "GET", "/k")
            pairs.append((shown, remembered))
        assert (b"new", b"old") not in pairs
        assert (await put)[0] == 200


async def _revision_rises(pool):
    """Wait until etcd has applied the write whose answer is held back."""

    async def applied():
        found = await pool.client.get(pool.keys.session(slot_of("k", pool.spec.slots), "k"))
        return found is not None and found.value.endswith(b"new")

    await until(applied, what="etcd has the write")


async def test_a_write_whose_refusal_was_told_is_not_carried_out_when_a_stopped_member_wakes(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, "slots: 16") as pool:
        await pool.start("a", "b")
        await pool.settle(A_FIRST)
        pool.members["a"].sidecar.signal(signal.SIGSTOP)
        deleted, _, _ = await pool.call("b", "DELETE", "/k")  # left behind in the stopped owner's socket as well
        await pool.call("b", "PUT", "/k", "kept")
        pool.kill("b")

        pool.members["a"].sidecar.signal(signal.SIGCONT)

        await until(lambda: _answered(pool, "a", "DELETE"), what="the woken member has dealt with what it was sent")
        assert deleted == 404
        assert await until(lambda: _found(pool, "a", "/k"), 40, "the woken member answers") == (200, b"kept")


async def _found(pool, member, path):
    """Status and body, once the member does not say that it cannot tell."""
    status, _, body = await pool.call(member, "GET", path)
    return (status, body) if status != 503 else None


async def _answered(pool, member, method):
    """Whether a member has answered a call of ``method`` that a peer sent."""
    async with pool.http.get(f"http://{pool.members[member].peer}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return any(
        "session_calls_total" in line and f'method="{method}"' in line and 'via="peer"' in line for line in lines
    )
