"""Requests that fail in a takeover: a real Envoy tells of them, and the review counts what the clients saw."""

import asyncio
import json
import os
import sys
from pathlib import Path

import aiohttp

from deploy.demo import unsettled
from deploy.local import LocalPool, LocalSettings
from deploy.reading import read_pool
from statesync.etcd import EtcdClient
from statesync.spec import PoolSpec
from tests.harness.commands import ROOT
from tests.harness.waiting import until

UNREPEATABLE = 7


async def review(directory: Path) -> dict:
    """What ``understudy slo`` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli", "slo", "--window", "1h", "-o", "json"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "UNDERSTUDY_DIR": str(directory)},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return json.loads(output)


async def test_the_review_counts_the_requests_that_clients_saw_fail(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.slow_app"
    settings = LocalSettings(directory=tmp_path, spec=PoolSpec(pool="slow"), app=app)
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, aiohttp.ClientSession() as http:
        names = [place.name for place in pool.layout.members]

        async def at_rest() -> bool:
            return not unsettled((await read_pool(etcd, "slow"))[0], names)

        async def counting() -> bool:
            return bool((await review(tmp_path))["traffic"]["requests"])

        async def about(key: str) -> dict:
            async with http.get(pool.layout.front_url, headers={"x-session-id": key}) as answer:
                return await answer.json()

        async def post(key: str) -> int:
            async with http.post(f"{pool.layout.front_url}/slow", headers={"x-session-id": key}) as answer:
                return answer.status

        await until(at_rest, timeout=60, what="every slot is served")
        member = (await about("0"))["member"]
        mine = [key for key in map(str, range(60)) if (await about(key))["member"] == member][:UNREPEATABLE]
        await until(counting, timeout=30, what="Envoy's counts are there", every=1)
        under_way = [asyncio.create_task(post(key)) for key in mine]

        async def held() -> bool:
            return (await about(mine[0]))["held"] == UNREPEATABLE

        await until(held, timeout=30, what="the member holds all slow requests")
        pool.processes.kill(*pool.member_processes(member))
        seen = await asyncio.gather(*under_way)
        assert seen == [503] * UNREPEATABLE

        async def counted() -> dict | None:
            told = await review(tmp_path)
            worst = [one for one in told["worst"] if one["from"] == member]
            return told if worst and worst[0]["requests"] and worst[0]["requests"]["total"] else None

        told = await until(counted, timeout=60, what="the review knows the takeover's requests", every=1)
        requests = next(one for one in told["worst"] if one["from"] == member)["requests"]
        assert requests["failed"] == UNREPEATABLE
        assert requests["total"] >= UNREPEATABLE
        figure = next(one for one in told["figures"] if one["key"] == "failed_requests")
        assert (figure["state"], figure["total"] - figure["good"]) == ("missed", UNREPEATABLE)
        await pool.processes.start_again(*pool.member_processes(member))

        async def whole() -> dict | None:
            figures = {one["key"]: one for one in (await review(tmp_path))["figures"]}
            planned = figures["exposure"]["total"] > figures["rto"]["total"] > 0
            return figures if planned and figures["two_writers"]["state"] == "met" else None

        figures = await until(whole, 60, "exposure of planned moves as well, and the audit of the takeover", every=1)
        assert "were audited" in figures["two_writers"]["basis"]
        weighted = next(one for one in told["figures"] if one["key"] == "unavailability")
        assert weighted["basis"] == "weighted by requests"
