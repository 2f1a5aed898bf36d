"""What one control server costs that serves 1, 50 and 200 pools: ``make bench-plane``.

Writes bench/results/plane.json and prints a table. Pools have three simulated members and 256 slots: their records and
heartbeats are those of real members, but there are no sidecars. A simulated Envoy of each pool takes its configuration
over ADS. Counted are the memory and the CPU of the control server, the CPU of etcd, and the time from the end of a
member's heartbeats to the Envoy's ACK of the endpoints without it. docs/benchmarks.md tells what came out and why.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from bench.cpu import cpu_ms
from bench.sessions import ETCD, machine, median, report
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.waiting import until
from tests.xds.control.control_pool import PATIENT, Control, ControlPool
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL, METHOD, Beat
from understudy.statesync.heartbeat.probe import PROBE_PATH
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.server import types, wire

RESULTS = Path(__file__).parents[1] / "bench/results/plane.json"
SIZES = (1, 50, 200)
SLOTS = 256
MEMBERS = 3
BATCH = 100
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Every member and Envoy has a connection of its own, as in reality."""
AT_ONCE = 20
"""Pools that are made at the same time."""


class SimulatedEnvoy:
    """Takes and acknowledges everything over ADS, without reading what is in it."""

    def __init__(self, control: str, pool: str) -> None:
        self._control, self._pool = control, pool
        self.acknowledged: dict[str, int] = {}

    async def run(self) -> None:
        method = f"/{types.AGGREGATED_SERVICE}/DeltaAggregatedResources"
        async with grpc.aio.insecure_channel(self._control, options=OWN_CONNECTION) as channel:
            call = channel.stream_stream(method)()
            for kind in (types.CLUSTER, types.ENDPOINTS):
                node = {"id": "front-1", "cluster": self._pool} if kind == types.CLUSTER else None
                await call.write(wire.DeltaDiscoveryRequest(type_url=kind, node=node).SerializeToString())
            async for data in call:
                answer = wire.DeltaDiscoveryResponse.FromString(data)
                ack = wire.DeltaDiscoveryRequest(type_url=answer.type_url, response_nonce=answer.nonce)
                await call.write(ack.SerializeToString())
                self.acknowledged[answer.type_url] = self.acknowledged.get(answer.type_url, 0) + 1

    @property
    def endpoints(self) -> int:
        """How many times it has acknowledged endpoints."""
        return self.acknowledged.get(types.ENDPOINTS, 0)


class SimulatedPool:
    """The members and the Envoy of one pool, as the control server sees them."""

    def __init__(self, client: EtcdClient, name: str, server: Control, peer: str) -> None:
        self.client, self.name, self.server = client, name, server
        self.keys = PoolKeys(name)
        self.members = [f"{name}-{number}" for number in range(1, MEMBERS + 1)]
        self.peers = dict.fromkeys(self.members, peer)
        self.envoy = SimulatedEnvoy(server.grpc, name)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.victim: web.AppRunner | None = None

    async def begin(self) -> None:
        """Register the members, let them beat, and claim every slot for the member that the table names."""
        self.victim, self.peers[self.members[0]] = await peer_port()
        # The load generator may be late; a closed stream is found as quickly all the same.
        spec = PoolSpec(pool=self.name, slots=SLOTS, liveness=PATIENT)
        await self.client.put(self.keys.spec, spec.encode())
        await until(self._known, 120, f"{self.name} is served")
        for name in self.members:
            self.tasks[name] = asyncio.create_task(self._beat(name))
        records = [
            Member(name, "b", f"127.0.0.1:{10_000 + number}", self.peers[name], MemberState.UP)
            for number, name in enumerate(self.members)
        ]
        await self.client.txn([], [Put(self.keys.member(one.member), one.encode()) for one in records])
        table = await until(self._table, 120, f"the table of {self.name}")
        puts = [Put(self.keys.owner(slot), Owner(order[0], "b", 1).encode()) for slot, order in enumerate(table.orders)]
        for first in range(0, SLOTS, BATCH):
            await self.client.txn([], puts[first : first + BATCH])
        await until(self._ready, 120, f"{self.name} is ready")
        self.tasks["envoy"] = asyncio.create_task(self.envoy.run())
        await until(lambda: self.envoy.endpoints, 120, "the Envoy has its endpoints")

    async def _known(self) -> bool:
        return self.name in {row["pool"] for row in (await self.server.ask("/v1/pools"))["pools"]}

    async def _ready(self) -> bool:
        return bool((await self.server.ask(f"/readyz?pool={self.name}"))["status"] == "ready")

    async def _table(self) -> Table | None:
        kv = await self.client.get(self.keys.table)
        table = Table.decode(kv.value) if kv else None
        return table if table and {order[0] for order in table.orders if order} == set(self.members) else None

    async def _beat(self, member: str) -> None:
        """Beats as a real member sends them."""
        beat = Beat(self.name, member, "b", MemberState.UP, 1, answers=True)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                async with grpc.aio.insecure_channel(self.server.grpc, options=OWN_CONNECTION) as channel:
                    call = channel.stream_stream(METHOD)()
                    answers = asyncio.create_task(_drain(call))
                    try:
                        while True:
                            await call.write(dataclasses.replace(beat, sent=time.monotonic_ns()).encode())
                            await asyncio.sleep(BEAT_INTERVAL)
                    finally:
                        answers.cancel()
                        call.cancel()
            await asyncio.sleep(BEAT_INTERVAL)

    async def death(self) -> float:
        """One member dies; seconds until the Envoy has acknowledged that."""
        assert self.victim is not None
        victim, self.victim = self.victim, None
        await victim.cleanup()
        before, began = self.envoy.endpoints, time.perf_counter()
        self.tasks.pop(self.members[0]).cancel()
        while self.envoy.endpoints == before:
            await asyncio.sleep(0.001)
        return time.perf_counter() - began

    async def close(self) -> None:
        if self.victim is not None:
            await self.victim.cleanup()
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def peer_port() -> tuple[web.AppRunner, str]:
    """A peer port that answers probes, and its address."""

    async def probe(_: web.Request) -> web.Response:
        return web.json_response({"boot": "b"})

    app = web.Application()
    app.router.add_get(PROBE_PATH, probe)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"


async def _drain(call: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass


@contextlib.asynccontextmanager
async def simulated(etcd: EtcdServer, size: int) -> AsyncIterator[tuple[Control, Sequence[SimulatedPool]]]:
    """A control server and its pools, all of them at rest."""
    with tempfile.TemporaryDirectory() as directory:
        async with etcd.client() as client:
            control = Control(ControlPool(etcd, client, Path(directory)), "control-1")
            control.settings |= {"pools": []}
            peers, peer = await peer_port()
            pools = [SimulatedPool(client, f"pool-{number:03}", control, peer) for number in range(size)]
            control.start()
            try:
                await until(lambda: control.ask("/healthz"), 60, "the control server runs")
                for first in range(0, size, AT_ONCE):
                    await asyncio.gather(*(pool.begin() for pool in pools[first : first + AT_ONCE]))
                yield control, pools
            finally:
                for pool in pools:
                    await pool.close()
                control.kill()
                await peers.cleanup()


def memory_mib(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def measured(size: int, options: argparse.Namespace) -> dict[str, Any]:
    async with running_etcd(arguments=ETCD) as etcd, simulated(etcd, size) as (control, pools):
        assert etcd.process is not None
        await asyncio.sleep(options.settle)
        pids = {"control": control.pid, "etcd": etcd.process.pid}
        before, begun = {name: cpu_ms(pid) for name, pid in pids.items()}, time.monotonic()
        await asyncio.sleep(options.seconds)
        took = time.monotonic() - begun
        cpu = {name: (cpu_ms(pid) - before[name]) / took for name, pid in pids.items()}
        memory = memory_mib(control.pid)
        deaths = []
        for number in range(options.deaths if size > 1 else 1):
            deaths.append(await pools[number % size].death() * 1000)
            await asyncio.sleep(0.5)
        if size == 1:
            deaths += [await _one_death() for _ in range(options.deaths - 1)]
    return {"control_ms": cpu["control"], "etcd_ms": cpu["etcd"], "memory_mib": memory, "deaths_ms": deaths}


async def _one_death() -> float:
    """A member of one pool can die once; more deaths need new pools."""
    async with running_etcd(arguments=ETCD) as etcd, simulated(etcd, 1) as (_, (pool,)):
        await asyncio.sleep(2)
        return await pool.death() * 1000


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine(), "slots": SLOTS, "members": MEMBERS, "rows": {}}
    for _ in range(options.rounds):
        for size in options.sizes:
            row, load = await measured(size, options), os.getloadavg()[0]
            rounds = results["rows"].setdefault(str(size), {"rounds": []})
            rounds["rounds"].append({**row, "load": load})
            print(f"{size} pools, load {load:.0f}: {row}", flush=True)
    for of_size in results["rows"].values():
        for figure in ("control_ms", "etcd_ms", "memory_mib"):
            of_size[figure] = statistics.median(one[figure] for one in of_size["rounds"])
        of_size["death"] = median([ms for one in of_size["rounds"] for ms in one["deaths_ms"]])
    return results


def table(results: dict[str, Any]) -> str:
    lines = [
        (
            "| pools | memory, MiB | CPU of the control server at rest, ms/s | of each pool | CPU of etcd, ms/s "
            "| death to ACK, ms: median | longest |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for size, row in results["rows"].items():
        lines.append(
            f"| {size} | {row['memory_mib']:.0f} | {row['control_ms']:.0f} | {row['control_ms'] / int(size):.1f} "
            f"| {row['etcd_ms']:.0f} | {row['death']['median']:.0f} | {row['death']['most']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--settle", type=float, default=15, help="seconds of rest before anything is counted")
    parser.add_argument("--deaths", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="all sizes in turn, so often; medians are shown")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
