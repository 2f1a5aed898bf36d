"""What a TCP pool's slots cost: ``make bench-tcp``. Writes bench/results/tcp.json and prints a table; needs wrk.

Configuration: for each number of slots and members the size of what is sent, the time to encode it, and the time from a
change of the cache to the ACK of a real Envoy; and that Envoy's memory. Connections: the same Envoys take turns under
wrk with a plain tcp_proxy in front of one Maglev cluster by source address, which is what people use. Behind all of
them one Envoy answers at once; nobody sends PROXY headers, and no member is checked. docs/benchmarks.md tells what came
out.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.telemetry import answering, cpu_seconds
from bench.xds import ROOT, machine
from tests.harness.envoy import Envoy, running_envoy
from tests.harness.front import Front, PoolCache, running_front
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.envoy.tcp_listener import tcp_listener, tcp_settings

RESULTS = ROOT / "bench/results/tcp.json"
SHAPES = ((256, 3), (1024, 3), (4096, 3), (256, 16), (1024, 16), (4096, 16))
UNDER_LOAD = ((256, 16), (1024, 16), (4096, 16))
PEER = "peer"
TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
KINDS = {"connections": ("-H", "Connection: close"), "round trips": ()}


def view_of(slots: int, members: int, port: int) -> RoutingView:
    """A pool whose slots have all orders of three, mixed."""
    endpoints = {f"m-{number}": Endpoint(f"127.0.2.{number + 1}", port) for number in range(members)}
    orders = list(itertools.permutations(endpoints, 3))
    random.Random(5).shuffle(orders)
    spec = PoolSpec(
        pool="notes",
        protocol="tcp",
        slots=slots,
        tcp={"send_proxy_protocol": "none"},  # type: ignore[arg-type]
        health_checks={"enabled": False},  # type: ignore[arg-type]
    )
    return RoutingView(spec, endpoints, [orders[slot % len(orders)] for slot in range(slots)])


def moved(view: RoutingView, number: int) -> RoutingView:
    """One slot goes to its standby."""
    slot = number % len(view.orders)
    first, second, *rest = view.orders[slot]
    return replace(view, orders=[*view.orders[:slot], (second, first, *rest), *view.orders[slot + 1 :]])


def without_first(view: RoutingView) -> RoutingView:
    """The first member is dead: nobody's orders have it any more."""
    return replace(view, orders=[tuple(one for one in order if one != "m-0") for order in view.orders])


def ill(view: RoutingView, *, healthy: bool) -> RoutingView:
    return replace(view, members={**view.members, "m-0": replace(view.members["m-0"], healthy=healthy)})


async def push(front: Front, view: RoutingView, before: RoutingView) -> float:
    """Milliseconds from the change of the cache to Envoy's acknowledgement; encoding is not in it."""
    resources, old = build(view), build(before)[ENDPOINTS]
    changed = {name: value for name, value in resources[ENDPOINTS].items() if old[name] != value}
    began = time.perf_counter()
    if view.orders == before.orders:
        await front.cache.update(ENDPOINTS, changed)
    else:
        await front.cache.set_all(resources)
    await front.cache.acknowledged(60)
    return (time.perf_counter() - began) * 1e3


async def memory(envoy: Envoy) -> int:
    """Bytes that Envoy has allocated."""
    async with envoy.http.get(f"{envoy.admin}/memory") as answer:
        return int((await answer.json(content_type=None))["allocated"])


@contextlib.asynccontextmanager
async def served(home: Path, view: RoutingView) -> AsyncIterator[tuple[Front, dict[str, Any]]]:
    """A running front Envoy with this view, and what its start showed."""
    cache = PoolCache("notes")
    began = time.perf_counter()
    resources = build(view)
    encoded = time.perf_counter() - began
    began = time.perf_counter()
    terms = tcp_settings(view.spec)
    assert terms is not None
    listener = tcp_listener.__wrapped__("notes", "127.0.0.1", 9000, terms)
    encoded_listener = time.perf_counter() - began
    async with running_front(home, cache, pool="notes") as front:
        base = await memory(front.envoy)
        await cache.publish(view)
        began = time.perf_counter()
        cache.ready()
        await until(lambda: _accepts(front.envoy), 60, "Envoy accepts clients", every=0.005)
        accepts = time.perf_counter() - began
        await cache.acknowledged(60)
        yield (
            front,
            {
                "slots": len(view.orders),
                "members": len(view.members),
                "orders": len(set(view.orders)),
                "listener_bytes": len(listener),
                "cluster_bytes": sum(map(len, resources[CLUSTER].values())),
                "encode_listener_ms": round(encoded_listener * 1e3, 1),
                "encode_clusters_ms": round(encoded * 1e3, 1),
                "first_accept_ms": round(accepts * 1e3),
                "envoy_bytes": await memory(front.envoy) - base,
            },
        )


async def _accepts(envoy: Envoy) -> bool:
    return await envoy.stat("listener_manager.total_listeners_active") == 1


async def configuration(home: Path, member_port: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    for slots, members in SHAPES:
        view = view_of(slots, members, member_port)
        async with served(home / f"{slots}-{members}", view) as (front, shown):
            before, moves, deaths, checks = view, [], [], []
            for number in range(rounds):
                after = moved(before, number)
                moves.append(await push(front, after, before))
                before = after
            for _ in range(rounds):
                sick, dead = ill(view, healthy=False), without_first(view)
                checks.append(await push(front, sick, before))
                deaths.append(await push(front, dead, sick))
                await push(front, view, dead)
                before = view
            found.append(
                {**shown, "one_slot_ms": spread(moves), "endpoint_ms": spread(checks), "death_ms": spread(deaths)}
            )
            print(f"  {json.dumps(found[-1])}", file=sys.stderr)
    return found


def peer(port: int, member_port: int, members: int) -> dict[str, Any]:
    """What people use: one Maglev cluster, hashed by source address."""
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": f"127.0.2.{number + 1}", "port_value": member_port}}}}
        for number in range(members)
    ]
    proxy = {"@type": TCP_PROXY, "stat_prefix": "peer", "cluster": "all", "hash_policy": [{"source_ip": {}}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    assignment = {"cluster_name": "all", "endpoints": [{"lb_endpoints": hosts}]}
    cluster = {"name": "all", "type": "STATIC", "lb_policy": "MAGLEV", "load_assignment": assignment}
    return {
        "static_resources": {
            "listeners": [{"name": "l", "address": address, "filter_chains": [chain]}],
            "clusters": [cluster],
        }
    }


async def load(port: int, kind: str, seconds: int, config: Path) -> dict[str, float]:
    """Requests a second, their median time in us and Envoy's CPU time for each; a request may be a connection."""
    before = cpu_seconds(config)
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", *KINDS[kind], f"http://127.0.0.1:{port}/"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    if process.returncode or "Non-2xx" in text or re.search(r"connect [1-9]", text):
        raise SystemExit(f"wrk failed: {text}")
    spent = cpu_seconds(config) - before
    number, unit = re.findall(r"50%\s+([\d.]+)(us|ms)", text)[0]
    requests = int(re.findall(r"(\d+) requests in", text)[0])
    return {
        "per_second": float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]),
        "p50_us": float(number) * (1000 if unit == "ms" else 1),
        "cpu_us": spent / requests * 1e6,
    }


async def connections(home: Path, member_port: int, rounds: int, seconds: int) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        at: dict[str, tuple[int, Path]] = {}
        for slots, members in UNDER_LOAD:
            directory = home / f"load-{slots}"
            front, _ = await stack.enter_async_context(served(directory, view_of(slots, members, member_port)))
            at[f"{slots} slots"] = front.port, directory / "envoy.json"
        port = free_port()
        await stack.enter_async_context(running_envoy(peer(port, member_port, 16), home / PEER))
        at[PEER] = port, home / PEER / "envoy.json"
        taken: dict[str, dict[str, list[dict[str, float]]]] = {kind: {name: [] for name in at} for kind in KINDS}
        names = list(at)
        for number in range(-1, rounds):
            # Who begins changes, so that nobody gains by its place; the first round warms up.
            for kind, name in itertools.product(KINDS, names[number % 4 :] + names[: number % 4]):
                result = await load(at[name][0], kind, seconds, at[name][1])
                if number >= 0:
                    taken[kind][name].append(result)
    return {
        kind: {name: compared(results, taken[kind][PEER]) for name, results in each.items()}
        for kind, each in taken.items()
    }


def compared(results: Sequence[dict[str, float]], peers: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median, least and most of each figure, and of its ratio to the peer's in the same round."""
    return {
        figure: {
            **spread([one[figure] for one in results]),
            "ratio": spread([one[figure] / other[figure] for one, other in zip(results, peers, strict=True)], 3),
        }
        for figure in results[0]
    }


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        home, port = Path(scratch), free_port()
        behind = answering(port)
        (listener,) = behind["static_resources"]["listeners"]
        listener["address"]["socket_address"]["address"] = "127.0.2.1"
        listener["additional_addresses"] = [
            {"address": {"socket_address": {"address": f"127.0.2.{number}", "port_value": port}}}
            for number in range(2, 17)
        ]
        async with running_envoy(behind, home / "members"):
            results: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
            results["configuration"] = await configuration(home, port, options.rounds)
            results["load"] = await connections(home, port, options.rounds, options.seconds)
    return results


def table(results: dict[str, Any]) -> str:
    lines = [
        "| slots | members | orders | KB: listener, clusters | encoded | accepts | slot | death | health | MB |",
        "|" + "---|" * 10,
    ]
    for one in results["configuration"]:
        cells = [
            *(
                one["slots"],
                one["members"],
                one["orders"],
                f"{one['listener_bytes'] // 1024}, {one['cluster_bytes'] // 1024}",
            ),
            round(one["encode_listener_ms"] + one["encode_clusters_ms"]),
            one["first_accept_ms"],
            *(f"{one[name]['median']} (to {one[name]['most']})" for name in ("one_slot_ms", "death_ms", "endpoint_ms")),
            round(one["envoy_bytes"] / 1e6, 1),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for kind, each in results["load"].items():
        lines += [
            "",
            f"| {kind} | a second | ratio | p50 us | ratio | CPU us each | ratio |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, one in each.items():
            cells = [
                cell
                for figure in ("per_second", "p50_us", "cpu_us")
                for cell in (one[figure]["median"], "{median} ({least} to {most})".format(**one[figure]["ratio"]))
            ]
            lines.append("| " + " | ".join(map(str, [name, *cells])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    results = asyncio.run(run(options))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
