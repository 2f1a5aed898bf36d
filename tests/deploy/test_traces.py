"""One real pool and all that can change an active in it: traces agree with clients, and emit what the page says."""

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from bench.drills import PROMPT_HEDGES, Clients, ClientView, Comparison, Drills
from tests.harness.commands import ROOT
from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end
from tests.harness.waiting import until
from understudy.deploy.inspect.traces import read_trace
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Objectives
from understudy.telemetry.slo.waterfall import root_of
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing import names

PAGE = (ROOT / "docs/telemetry.md").read_text()
LATER = 1 << 62
LATE = 1.5
"""Seconds within which the last request before a kill must have been answered: some beats, on a very busy machine."""
NOT_HERE = {
    names.UNMEASURED: "every change here is measured",
    names.ERROR_TYPE: "no Envoy refuses anything",
    names.SITE: "there is one site",
    names.TAKEOVER: "on spans of a lost site",
    names.TAKEOVERS: "the same",
    names.DRILL_MISSED: "no objective is missed",
    names.LINK: "on links, which the store does not keep",
    names.HELD_REQUEST: "only if a call meets a slot on its way",
    names.STOP_OR_START: "only if a member takes slots over while it stops or starts",
    names.LOSSES: "no sync set dies as a whole",
    names.LOSS_SECONDS: "the same",
    names.WITNESS: "only if a request comes before the table",
    names.WRITES_FENCED: "clients here only read, so no write is late",
    names.WRITES_LOST: "the same",
    names.DRILL_LOST_ASYNC: "the clients of the drill only make sync writes",
    names.DRILL_LOST_REPLICAS: "the same",
    names.LOSS_SECONDS: "no slot loses all its copies",
}
DRILLS_MOST = 3
SDK = {"telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"}


async def compared(drills: Drills, number: int, kind: str) -> Comparison:
    """A drill's trace beside what its clients saw; again if they differ.

    Other work on the machine holds clients up as well, and no trace can tell of that. It does not do so each time.
    """
    for _ in range(DRILLS_MOST - 1):
        one = await drills.run(number, kind)
        if one.agrees:
            return one
    return await drills.run(number, kind)


async def exposed(addresses: list[str]) -> set[str]:
    """The names of all metric families."""
    found: set[str] = set()
    async with aiohttp.ClientSession() as http:
        for address in addresses:
            async with http.get(f"http://{address}/metrics") as answer:
                found |= set(re.findall(r"^# TYPE (\S+) ", await answer.text(), re.MULTILINE))
    return {name for name in found if not name.endswith("_created")}


async def drilled(directory: Path) -> None:
    """A drill as users make it, so that the traces get its marks."""
    process = await asyncio.create_subprocess_exec(
        *forked(
            [
                *(sys.executable, "-m", "understudy.deploy.cli", "drill", "kill", "--load", "40", "--for", "1s"),
                *("-o", "json"),
            ]
        ),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "UNDERSTUDY_DIR": str(directory)},
    )
    output, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, (output, said)


OF_POOLS_BALANCED_BY_LOAD = {"understudy_load_imbalance", "understudy_rebalance_moves", "understudy_hot_slots"}


async def test_traces_agree_with_clients_link_to_their_requests_and_emit_what_is_documented(tmp_path: Path) -> None:
    objectives = Objectives.model_validate({"rto": {"p99": "30s"}, "failed_requests": "5%"})
    spec = PoolSpec(pool="cart", objectives=objectives, retries=PROMPT_HEDGES)
    async with (
        LocalPool(LocalSettings(tmp_path, spec)) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        killed_at_the_end(pool),
    ):
        clients = Clients(pool.layout.front_url, sessions=48, rate=80.0)
        drills = Drills(pool, etcd, clients)
        await drills.settled()
        async with clients.running():
            for number, kind in enumerate(("kill", "freeze", "drain")):
                one = await compared(drills, number, kind)
                assert one.agrees, one
                if kind == "kill":
                    root = root_of(await read_trace([place.http for place in pool.layout.controls], one.trace_id))
                    assert root is not None
                    first = await _answer(clients, root.attributes[names.FIRST_REQUEST])
                    # The member may have answered as it was killed; then another one has answered the client.
                    last = await _answer(clients, root.attributes[names.LAST_REQUEST])
                    # It may serve again by now.
                    before = [s for s in clients.seen if s.by == one.member and s.answered < first.answered]
                    assert before[-1].answered - last.answered < LATE
                    assert first.by in root.attributes[names.TO].split(", ")
        await drills.settled()
        await drilled(tmp_path)
        async with aiohttp.ClientSession() as http:
            page = await http.get(f"http://{pool.layout.controls[0].http}/console/cart/plans")
            assert "--load 40 --for 1s --pool cart</code>" in await page.text(), "the console has the drill"
        metrics = await exposed([*(c.http for c in pool.layout.controls), *(m.peer for m in pool.layout.members)])
        await until(
            lambda: _emitted(tmp_path / "control-1-traces.sqlite", names.RETURNED), 40, "the freeze's aftermath"
        )

    store = SpanStore(tmp_path / "control-1-traces.sqlite")
    spans = await store.window(0, LATER, 10_000)
    logs = await store.logs(0, LATER)
    await store.aclose()
    assert {*names.ROOTS, *names.PHASES} - {span.name for span in spans} <= {names.FENCED}
    assert {span.name for span in spans} <= {*names.ROOTS, *names.PHASES}
    on_spans = {key for span in spans for key in span.attributes}
    on_resources = {key for one in (*spans, *logs) for key in one.resource}
    emitted = on_spans | on_resources | {key for log in logs for key in log.attributes}
    documented = {*names.ATTRIBUTES, *names.CONVENTIONS}
    assert emitted - documented - SDK - _of_envoy() == set()
    assert documented - emitted == set(NOT_HERE) & (documented - emitted)

    explained = set(re.findall(r"`(understudy_[a-z_]+)`", PAGE.split("\n## Metrics\n")[1].split("\n## ")[0]))
    ours = {name for name in metrics if name.startswith("understudy_")}
    assert {name for name in metrics - ours if not name.startswith(("python_", "process_"))} == set()
    # Those of an injector, of a server for several pools, and of a mirror between two sites.
    elsewhere = ("understudy_injector_", "understudy_control_", "understudy_mirror_", "understudy_home_")
    assert ours == {name for name in explained if not name.startswith(elsewhere)} - OF_POOLS_BALANCED_BY_LOAD


async def _answer(clients: Clients, request: Any) -> ClientView:
    """What a client saw of this request, as soon as it has its answer."""
    shown: Callable[[], ClientView | None] = lambda: next((s for s in clients.seen if s.request == request), None)  # noqa: E731
    found: ClientView = await until(shown, 40, f"the answer to {request}")
    return found


def _of_envoy() -> set[str]:
    """What Envoy puts on the resource of its reports by itself."""
    return {"node_name", "cluster_name", "log_name", "zone_name"}


async def _emitted(path: Path, name: str) -> bool:
    store = SpanStore(path)
    try:
        return any(span.name == name for span in await store.window(0, LATER, 10_000))
    finally:
        await store.aclose()
