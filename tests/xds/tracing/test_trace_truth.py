"""A trace puts the time where it was spent: a real control server, on an etcd whose answers are held back."""

import asyncio
import time

from tests.harness.cable import Way, cable_to
from tests.harness.waiting import until
from tests.xds.ads_node import connected
from tests.xds.control.control_pool import POOL, Control, control_pool
from understudy.telemetry.tracing.ids import trace_seed

HELD = 0.7
"""Seconds that etcd's answers are held back; far below the 1.5 s after which a call to etcd is given up."""
ERROR = 0.03
"""What the test may be wrong by about when it let the answers go."""


async def test_a_slow_etcd_is_seen_in_the_phase_that_waits_for_etcd(tmp_path):
    async with control_pool(tmp_path) as pool, cable_to(pool.etcd.endpoints[0]) as cable:
        control = pool.controls["control-1"] = Control(pool, "control-1")
        control.settings["etcd"] = [cable.address]
        control.start()
        await control.ready()
        members = await pool.join("cart-1", "cart-2", "cart-3")
        await control.hears(*members)
        seen = await pool.table_with(lambda table: {order[0] for order in table.orders} == set(pool.members), "a table")
        await pool.claim_all(seen)

        async def trace(kind: str, subject: str) -> dict:
            spans = (await control.ask(f"/v1/traces/{trace_seed(POOL, kind, subject).hex}")).get("spans", [])
            return {span["name"]: span for span in spans} if any(not span["parent_id"] for span in spans) else {}

        async with connected(control.grpc, POOL):
            cable.cut(Way.ANSWERS)
            began = time.monotonic()
            members[0].kill()

            async def is_found() -> bool:
                return (await control.member("cart-1"))["state"] == "LOST"

            await until(is_found, what="the death is found, and the table asked for")
            found = time.monotonic()
            await asyncio.sleep(HELD)
            mended = time.monotonic()
            cable.mend()
            after = await pool.table_with(lambda table: "cart-1" in table.lost, "the table names it lost")
            del pool.members["cart-1"]
            await pool.claim_all(after)
            spans = await until(lambda: trace("takeover", "cart-1/boot-1"), 40, "the whole trace")
            watched = time.monotonic() - began

        seconds = {name: (span["end_ns"] - span["start_ns"]) / 1e9 for name, span in spans.items()}
        assert seconds["decide"] >= mended - found - ERROR, "etcd's delay is in the phase that waits for etcd"
        # A busy control server reads late that a connection has closed; the trace says by how much it may be wrong.
        stated = spans["failover"]["attributes"]["understudy.error_ms"] / 1000
        assert seconds["detect"] + seconds["decide"] >= mended - began - stated - ERROR
        assert {"push", "ack"} <= spans.keys(), "Envoys have the routes, a moment before the claims or after them"
        # The last sign of life may be a beat older than the death.
        assert seconds["failover"] <= watched + 1
