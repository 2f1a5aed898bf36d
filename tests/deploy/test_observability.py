"""A real Prometheus scrapes a real pool: it has every metric, rule and query that we ship, and leads to the traces."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.harness.commands import ROOT, commands
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.kubernetes.webhook.server import WebhookMetrics
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec

PROMETHEUS = shutil.which("prometheus")
SHIPPED = ROOT / "deploy/observability"
DASHBOARD = json.loads((SHIPPED / "dashboard.json").read_text())
INJECTORS = {name for one in WebhookMetrics().registry.collect() for name in (one.name, f"{one.name}_total")}
"""What an injector tells, of which this pool has none."""
MIRROR = re.compile("understudy_(home|mirror)_")
"""Metrics of ``understudy mirror``, which this pool does not have."""
QUERIES = {target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}


class Asked:
    """A Prometheus that runs."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self._address = address
        self._http = http

    async def get(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"http://{self._address}/api/v1/{path}", params=parameters) as answer:
            told = await answer.json()
            assert told["status"] == "success", told
            return told["data"]

    async def value(self, query: str) -> float:
        """The sum of what a query gives; 0 for nothing."""
        return sum(float(one["value"][1]) for one in (await self.get("query", query=query))["result"])

    async def drawn(self, query: str) -> bool:
        """Whether a query gives anything."""
        return bool((await self.get("query", query=query))["result"])


@asynccontextmanager
async def scraping(directory: Path, targets: list[str]) -> AsyncIterator[Asked]:
    """Prometheus with our rules and exemplars."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(SHIPPED / "rules.yaml")],
        "scrape_configs": [{"job_name": "understudy", "static_configs": [{"targets": targets}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    async with commands(directory) as started, aiohttp.ClientSession() as http:
        await started.program(
            *("prometheus", str(PROMETHEUS), f"--config.file={directory}/prometheus.yaml"),
            *(f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"),
            "--enable-feature=exemplar-storage",
        )

        async def ready() -> bool:
            try:
                async with http.get(f"http://{address}/-/ready") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await until(ready, 30, "Prometheus is ready")
        yield Asked(address, http)


@pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus (Debian: prometheus; .ci/programs)")
async def test_prometheus_has_all_that_rules_and_dashboard_ask_for(tmp_path: Path) -> None:
    settings = LocalSettings(directory=tmp_path / "pool", spec=PoolSpec(pool="watched"), members=2)
    (tmp_path / "pool").mkdir()
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
        layout = pool.layout
        names = [place.name for place in layout.members]

        targets = [control.http for control in layout.controls] + [member.peer for member in layout.members]
        async with scraping(tmp_path, targets) as asked, aiohttp.ClientSession() as http:
            await settled(pool.layout, etcd)

            async def scraped() -> bool:
                return await asked.value("up") == len(targets)

            await until(scraped, 30, "everything is scraped")
            pool.processes.kill(*pool.member_processes(names[0]))

            async def seen() -> bool:
                async with http.post(f"{layout.front_url}/cart") as answer:
                    await answer.read()
                if not await asked.value("understudy_session_calls_total"):
                    return False
                return await asked.value('increase(understudy_changes_total{kind="failover"}[1m])') > 0

            await until(seen, 60, "Prometheus sees the takeover", every=0.5)

            rules = (SHIPPED / "rules.yaml").read_text()
            mentioned = set(re.findall(r"\bunderstudy_[a-z_]+", f"{rules} {QUERIES}"))
            mentioned = {name for name in mentioned if not MIRROR.match(name)}

            async def known() -> bool:
                return mentioned <= set(await asked.get("label/__name__/values")) | INJECTORS

            await until(known, 30, f"Prometheus has seen all of {sorted(mentioned)}")
            for query in QUERIES:
                await asked.get("query", query=query.replace("$__rate_interval", "1m").replace("$pool", "watched"))
            for drawn in (query for query in QUERIES if "result!=" not in query):
                concrete = drawn.replace("$__rate_interval", "1m").replace("$pool", "watched")
                await until(lambda query=concrete: asked.drawn(query), 30, f"something to draw for {drawn}")
                elsewhere = drawn.replace("$__rate_interval", "1m").replace("$pool", "other")
                assert not (await asked.get("query", query=elsewhere))["result"], drawn

            async def evaluated() -> bool:
                groups = (await asked.get("rules"))["groups"]
                return {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

            await until(evaluated, 40, "all rules are evaluated, and well")

            async def linked() -> bool:
                dots = await asked.get(
                    "query_exemplars", query="understudy_change_seconds_bucket", start="0", end=str(2**32)
                )
                traces = {dot["labels"]["trace_id"] for one in dots for dot in one["exemplars"]}
                recorded = {at.record.trace for at in (await read_pool(etcd, "watched"))[0].failovers.values()}
                return bool(traces & recorded)

            await until(linked, 30, "a dot in the graph leads to a trace that there is")
