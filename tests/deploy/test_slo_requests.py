"""Requests that fail in a takeover: a real Envoy tells of them, and the review counts what the clients saw."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from tests.harness.commands import ROOT
from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.recorded import answering
from tests.harness.waiting import free_port, until
from understudy.deploy.common.errors import DeployError
from understudy.deploy.inspect.review_inputs import Evidence, read_evidence, reviews
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness, Timeouts
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.slo.model import Targets

SLOW_REQUESTS = 20
SPEC = PoolSpec(pool="slow", liveness=Liveness(missed_beats=30), timeouts=Timeouts(request_seconds=60))
"""Slow requests are held for as long as the test takes to kill a member, and no other member is to fail meanwhile."""


def counted(node: str, pool: str = "", requests: int = 10) -> dict:
    """A count of a front Envoy as a control server tells it."""
    at = {"start_ns": 1_000, "end_ns": 5_000}
    return {"node": node, "requests": requests, "failed": 0, "dropped": 0, "arrived_ns": 0, "pool": pool, **at}


async def test_what_a_control_server_that_is_away_would_know_is_missing_and_told() -> None:
    twice = {"time_ns": 7, "body": "two requests that failed in the same moment"}
    reports = [twice, twice, {"time_ns": 8, "later": "field of another version"}]
    pages = {
        "/v1/spans": {"next": None, "spans": []},
        "/v1/requests": {"next": None, "reports": reports, "counts": [counted("front-1"), {"node": "no count"}]},
    }
    away = f"127.0.0.1:{free_port()}"
    with answering(pages) as (address, _):
        found = await read_evidence([address.removeprefix("http://"), away], 0, 10_000)
    assert [one.time_ns for one in found.reports] == [7, 7]
    assert [one.requests for one in found.counts] == [10]
    assert [fault.partition(": ")[0] for fault in found.unasked] == [away]
    with pytest.raises(DeployError, match="no control server could be asked"):
        await read_evidence([away], 0, 10_000)
    with pytest.raises(DeployError, match="none is registered"):
        await read_evidence([], 0, 10_000)


def test_what_other_pools_envoys_counted_is_not_this_pools_traffic() -> None:
    counts = [Period(**counted(node, pool)) for node, pool in (("a", "cart"), ("b", "shop"), ("c", ""))]
    now, _ = reviews(Evidence(counts=counts), Targets(), pool="cart", slots=256, start_ns=0, end_ns=10_000)
    assert (now.traffic.requests, now.traffic.nodes) == (20, 2)


async def review(directory: Path) -> dict:
    """What ``understudy slo`` says."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", "slo", "--window", "1h", "-o", "json"]),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "UNDERSTUDY_DIR": str(directory)},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return json.loads(output)


async def slow_pages_are_made_once_and_quick_answers_have_hedges_wait_for_less(pool: LocalPool, http) -> None:
    """While little is known hedges wait for a second; once Envoy has reported many quick answers, for less."""
    begun: dict[str, float] = {}

    async def get(path: str, key: str) -> None:
        begun[key] = time.monotonic()
        async with http.get(f"{pool.layout.front_url}{path}", headers={"x-session-id": key}) as answer:
            assert answer.status == 200

    async def answer_ms() -> int:
        async with http.get(f"http://{pool.layout.controls[0].http}/v1/status") as answer:
            return (await answer.json())["xds"]["answer_ms"]

    assert await answer_ms() == 1000
    await asyncio.gather(get("/page", "0"), get("/page", "1"))
    pages = []
    for place in pool.layout.members:
        async with http.get(f"http://{place.app}/") as answer:
            pages += (await answer.json())["pages"]
    assert {key for key, _ in pages} == {"0", "1"}
    again = [at - begun[key] for key in begun for at in sorted(at for made, at in pages if made == key)[1:]]
    assert all(after > 0.9 for after in again), "only where the machine stood still for a second"

    async def quick() -> bool:
        for key in range(100):  # in the end so many that hardly any was slow, whenever Envoy reports
            await get("/", str(key))
        return await answer_ms() < 1000

    await until(quick, timeout=90, what="the control server knows that answers are quick")


async def test_the_review_counts_the_requests_that_clients_saw_fail(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.slow_app"
    settings = LocalSettings(directory=tmp_path, spec=SPEC, app=app, app_timeout=60)
    async with (
        LocalPool(settings) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        aiohttp.ClientSession() as http,
        killed_at_the_end(pool),
    ):

        async def counting() -> bool:
            return bool((await review(tmp_path))["traffic"]["requests"])

        async def post(key: str) -> int:
            async with http.post(f"{pool.layout.front_url}/slow", headers={"x-session-id": key}) as answer:
                return answer.status

        async def held() -> dict[str, int]:
            """How many slow requests each member's application holds."""
            found = {}
            for place in pool.layout.members:
                async with http.get(f"http://{place.app}/") as answer:
                    found[place.name] = (await answer.json())["held"]
            return found

        async def all_held() -> dict[str, int] | None:
            found = await held()
            return found if sum(found.values()) == SLOW_REQUESTS else None

        await settled(pool.layout, etcd)
        async with http.get(pool.layout.front_url, headers={"x-session-id": "0"}) as answer:
            assert answer.status == 200
        await slow_pages_are_made_once_and_quick_answers_have_hedges_wait_for_less(pool, http)
        await until(counting, timeout=60, what="Envoy's counts are there", every=1)
        under_way = [asyncio.create_task(post(str(key))) for key in range(SLOW_REQUESTS)]
        by_member = await until(all_held, timeout=30, what="the members hold all slow requests")
        member, unrepeatable = max(by_member.items(), key=lambda item: item[1])
        pool.processes.kill(*pool.member_processes(member))
        await until(lambda: sum(task.done() for task in under_way) == unrepeatable, 30, "the killed member's calls end")
        for place in pool.layout.members:
            if place.name != member:
                await http.post(f"http://{place.app}/go")
        seen = await asyncio.gather(*under_way)
        assert sorted(seen) == [200] * (SLOW_REQUESTS - unrepeatable) + [503] * unrepeatable

        async def counted() -> dict:
            told = await review(tmp_path)
            worst = [one for one in told["worst"] if one["from"] == member]
            requests = worst[0]["requests"] if worst else None
            # Envoy's counts and its reports of what failed come each in its own time.
            if not requests or not requests["failed"] == unrepeatable <= requests["total"]:
                async with http.get(f"http://{pool.layout.controls[0].http}/v1/requests") as answer:
                    known = await answer.json()
                raise LookupError(f"{unrepeatable} calls of {member} failed: {told['traffic']} {told['worst']} {known}")
            return told

        told = await until(counted, timeout=60, what="the review knows the takeover's requests", every=1)
        figure = next(one for one in told["figures"] if one["key"] == "failed_requests")
        assert (figure["state"], figure["total"] - figure["good"]) == ("missed", unrepeatable)
        await pool.processes.start_again(*pool.member_processes(member))

        async def whole() -> dict | None:
            figures = {one["key"]: one for one in (await review(tmp_path))["figures"]}
            planned = figures["exposure"]["total"] > figures["rto"]["total"] > 0
            return figures if planned and figures["two_writers"]["state"] == "met" else None

        figures = await until(whole, 60, "exposure of planned moves as well, and the audit of the takeover", every=1)
        assert "were audited" in figures["two_writers"]["basis"]
        weighted = next(one for one in told["figures"] if one["key"] == "unavailability")
        assert weighted["basis"] == "weighted by requests"
