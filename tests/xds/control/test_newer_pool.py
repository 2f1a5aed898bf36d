"""A control server that starts in a pool whose spec and table were written by a newer version."""

import json

from tests.harness.waiting import until
from tests.xds.control.control_pool import POOL, SLOTS, control_pool
from understudy.statesync.pool.records import Lost, Table
from understudy.statesync.pool.spec import PoolSpec

DEAD = Lost("boot-1", "killed", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", 5.0)


async def test_it_leads_by_what_it_knows_of_them_and_says_what_it_does_not_know(tmp_path):
    async with control_pool(tmp_path) as pool:
        spec = json.loads(PoolSpec(pool=POOL, slots=SLOTS).encode()) | {"newer": {"a": 1}}
        await pool.client.put(pool.keys.spec, json.dumps(spec).encode())
        table = json.loads(Table(7, (("cart-1", "cart-2"),) * SLOTS, {"cart-9": DEAD}).encode())
        table |= {"newer": 1, "lost": {"cart-9": {**table["lost"]["cart-9"], "newer": 2}}}
        await pool.client.put(pool.keys.table, json.dumps(table).encode())

        control = await pool.control()
        await control.ready()
        first, _ = await pool.join("cart-1", "cart-2")
        await control.hears(*pool.members.values())
        await pool.claim_all(await pool.table_with(lambda table: table.generation >= 7, "a table"))
        first.kill()

        await pool.table_with(
            lambda table: "cart-1" in table.lost and table.active_of(0) == "cart-2", "it is found lost"
        )
        assert "newer" in (await control.ask("/v1/status"))["faults"][pool.keys.spec]


async def test_it_is_not_ready_by_a_spec_whose_values_it_does_not_know_and_names_them(tmp_path):
    async with control_pool(tmp_path) as pool:
        spec = json.loads(PoolSpec(pool=POOL, slots=SLOTS).encode()) | {"takeover": "by-vote"}
        await pool.client.put(pool.keys.spec, json.dumps(spec).encode())
        control = await pool.control()
        await until(control.leads, 40, "it leads")

        async def refuses() -> bool:
            ready = await control.ask("/readyz")
            said = ready["detail"].startswith("the spec cannot be read: spec in etcd: takeover")
            return (ready["status"], said) == (503, True)

        await until(refuses, 40, "it has read the pool, and says what it does not know (it may lead before)")
