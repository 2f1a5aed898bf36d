"""How many reviews the injector answers, and how quickly: ``make bench-injector``. Writes bench/results/injector.json.

The injector is a process of its own, tied to one core; the client, on the others, sends reviews when they are due by
the clock, whatever the answers do, so that a slow answer does not slow the asking: latencies count from when a review
was due. ``kept`` connections (16 of them) are those of an API server, which reuses them; ``fresh`` ones have a TLS
handshake each, the worst that could be. Three kinds of pods take turns: one that gets a sidecar, one that is left
alone, one that is refused. Every answer is checked.
"""

import argparse
import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.xds import ROOT
from tests.deploy.kubernetes.injection.harness import review
from tests.deploy.kubernetes.injection.shapes import SHAPES
from tests.harness.certificates import Authority
from tests.harness.processes import bound_to
from tests.harness.waiting import free_port, until

RESULTS = ROOT / "bench/results/injector.json"
HOST = "understudy-injector.understudy-system.svc"
KINDS = ("Istio was first", "no sidecar wanted", "wrong values, every one named")
AIM_RATE, AIM_P99 = 200, 50.0
CORE = 0
PATIENCE = 5.0
CONNECTIONS = 16


@asynccontextmanager
async def injector(home: Path) -> AsyncIterator[tuple[int, ssl.SSLContext, subprocess.Popen[bytes]]]:
    """A running injector on one core: port, how to trust it, process."""
    identity = Authority(home / "authority").issue("tls", f"DNS:{HOST}", use="serverAuth")
    for file, name in ((identity.cert, "tls.crt"), (identity.key, "tls.key")):
        shutil.copy(file, home / name)  # with its permissions
    port = free_port()
    command = [
        *(
            "/usr/bin/taskset",
            "-c",
            str(CORE),
            sys.executable,
            "-m",
            "understudy.deploy.cli",
            "--log-level",
            "warning",
            "injector",
        ),
        *("--listen", f"127.0.0.1:{port}", "--cert-dir", str(home), "--sidecar-image", "understudy-sidecar:bench"),
        *("--etcd", "etcd-0.etcd:2379"),
    ]
    process = subprocess.Popen(bound_to(os.getpid(), command), cwd=ROOT)  # noqa: ASYNC220 - returns at once
    context = ssl.create_default_context(cafile=str(identity.ca))
    try:
        async with aiohttp.ClientSession() as http:
            await until(lambda: ask(http, port, context, body_of(KINDS[0]), "kept"), 20, "the injector answers")
        yield port, context, process
    finally:
        process.terminate()
        process.wait()


def body_of(kind: str) -> bytes:
    """A review of a pod of this shape."""
    return json.dumps(review(SHAPES[kind].pod)).encode()


async def ask(http: aiohttp.ClientSession, port: int, context: ssl.SSLContext, body: bytes, how: str) -> Any:
    """One review; the answer's response."""
    headers = {"Content-Type": "application/json", **({"Connection": "close"} if how == "fresh" else {})}
    async with http.post(
        f"https://127.0.0.1:{port}/mutate", data=body, headers=headers, ssl=context, server_hostname=HOST
    ) as answer:
        assert answer.status == 200
        return (await answer.json())["response"]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """The most memory that a process has had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def load(port: int, context: ssl.SSLContext, pid: int, how: str, rate: int, seconds: float) -> dict[str, Any]:
    """Reviews at ``rate`` a second for so long: what came back, and how late."""
    bodies = [(kind, body_of(kind)) for kind in KINDS]
    expected = {"Istio was first": (True, True), "no sidecar wanted": (True, False)}
    latencies: list[float] = []
    failed: list[str] = []
    lateness: list[float] = []
    begin, used = time.monotonic() + 0.2, cpu_seconds(pid)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=how == "fresh")
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:

        async def one(number: int) -> None:
            due = begin + number / rate
            await asyncio.sleep(max(due - time.monotonic(), 0))
            lateness.append((time.monotonic() - due) * 1000)
            kind, body = bodies[number % len(bodies)]
            try:
                response = await ask(http, port, context, body, how)
                assert (response["allowed"], "patch" in response) == expected.get(kind, (False, False)), kind
                latencies.append((time.monotonic() - due) * 1000)
            except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
                failed.append(f"{type(error).__name__}: {error}")

        await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    took = time.monotonic() - begin
    return {
        "connections": how,
        "rate": rate,
        "answered": len(latencies),
        "failed": len(failed),
        "failures": failed[:3],
        "per_second": round(len(latencies) / took, 1),
        "p50_ms": percentile(latencies, 0.50),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": percentile(latencies, 1.0),
        "client_late_p99_ms": percentile(lateness, 0.99),
        "core": round((cpu_seconds(pid) - used) / took, 3),
    }


def percentile(values: list[float], share: float) -> float | None:
    """The nearest rank; milliseconds."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 2)


async def run(seconds: float) -> dict[str, Any]:
    """All rounds."""
    if hasattr(os, "sched_setaffinity"):
        others = os.sched_getaffinity(0) - {CORE}
        os.sched_setaffinity(0, others or {CORE})
    rounds = []
    with tempfile.TemporaryDirectory() as home:
        async with injector(Path(home)) as (port, context, process):
            await load(port, context, process.pid, "kept", AIM_RATE, 2.0)  # warm
            for how, rates in (("kept", (AIM_RATE, 400, 800)), ("fresh", (AIM_RATE, 300))):
                for rate in rates:
                    rounds.append(await load(port, context, process.pid, how, rate, seconds))
                    print(json.dumps(rounds[-1]), flush=True)
            peak = peak_memory(process.pid)
    aims = [r for r in rounds if r["rate"] == AIM_RATE]
    met = all(r["failed"] == 0 and r["p99_ms"] is not None and r["p99_ms"] < AIM_P99 for r in aims)
    return {
        "aim": {"rate": AIM_RATE, "p99_ms": AIM_P99, "met": met},
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "seconds_a_round": seconds,
        "pods": list(KINDS),
        "peak_memory_kib": peak,
        "rounds": rounds,
    }


def main() -> int:
    """Measure, write, and say by the exit code whether the aim was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    told = parser.parse_args()
    result = asyncio.run(run(told.seconds))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'met' if result['aim']['met'] else 'MISSED'}: {AIM_RATE} reviews/s with p99 under {AIM_P99:g} ms")
    return 0 if result["aim"]["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
