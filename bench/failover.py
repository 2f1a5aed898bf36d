"""Failover of Understudy beside what is used instead: same load, same application, one after the other in one run.

    make bench-failover                                          everything (long: see --events)
    python -m bench.failover --scenario kill --events 20         one scenario on all systems
    python -m bench.failover --system understudy --system maglev --scenario freeze
    python -m bench.failover --table                             print what was measured so far

An event: strike, observe, start the victim again, wait until the system says that it is whole, and rest as long as it
takes every client to make a request, so that it is known who serves it. The victim is the member that serves most
sessions. Each cell replaces its former figures in bench/results/failover.json, with the machine's load at that time.
What is measured is told in ``failover_load``.
"""

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cpu import spent
from bench.failover_load import WINDOW, Effect, Event, Load, effect_of, latency
from bench.failover_systems import TITLES, System, Understudy, freeze, make, thaw
from understudy.deploy.load.history_checker import percentile

RESULTS = Path(__file__).parent / "results" / "failover.json"
SCENARIOS = {
    "steady": "no event",
    "kill": "kill -9 of a member",
    "app": "kill -9 of the application alone",
    "sidecar": "kill -9 of the sidecar alone",
    "freeze": "SIGSTOP of a member for 4 s",
    "drain": "drain and return",
    "rolling": "rolling restart",
    "control": "control server down, then kill",
    "etcd-leader": "etcd leader killed, then kill",
}
ONLY_OURS = {
    "app": "the application is all of their member: see kill -9 of a member",
    "sidecar": "they have none",
    "control": "they have none; their proxy's configuration is a file",
    "etcd-leader": "they have none; Redis is not hurt",
}
"""Why a scenario is not for the peers."""
FROZEN_FOR = 4.0
OBSERVE = 1.0
SETTLED = 0.2
GOLDEN = 0.618
"""Its multiples, without their whole part, are spread evenly over 0 to 1."""
STEADY_FOR = 20.0
WHOLE_PATIENCE = 60.0


class Cell:
    """One scenario on one system."""

    def __init__(self, scenario: str, system: System, load: Load) -> None:
        self.scenario = scenario
        self.system = system
        self.load = load
        self._turn = 0

    async def event(self) -> Event:
        """Strike once and mend; ``end`` is when every client has made a request of the system that is whole again."""
        system, scenario = self.system, self.scenario
        victim = self.load.busiest(system.members)
        if scenario == "rolling":
            victim = system.members[self._turn % len(system.members)]
            self._turn += 1
        struck = time.monotonic()
        back = await self._strike(victim)
        await self.whole()
        await asyncio.sleep(SETTLED + self._turn_takes())
        planned = scenario in ("drain", "rolling")
        return Event(victim, struck, back or time.monotonic(), time.monotonic(), planned)

    def _turn_takes(self) -> float:
        """Seconds in which every client makes a request."""
        return 1.1 * self.load.sessions / self.load.rate

    async def _strike(self, victim: str) -> float:
        """Strike and mend; returns when the victim was (or began to be) there again."""
        system, scenario = self.system, self.scenario
        if scenario == "freeze":
            freeze(system, victim)
            try:
                await asyncio.sleep(FROZEN_FOR)
            finally:
                back = time.monotonic()
                thaw(system, victim)
            return back
        if scenario in ("drain", "rolling"):
            await system.drain(victim)
            if scenario == "drain":
                await asyncio.sleep(self._turn_takes())
                back = time.monotonic()
            else:
                await system.end(victim)
                back = time.monotonic()
                await system.start_again(victim)
            await system.undrain(victim)
            return back
        part = scenario if scenario in ("app", "sidecar") else ""
        others = await self._others()
        system.kill(victim, part)
        await asyncio.sleep(OBSERVE)
        back = time.monotonic()
        if others and isinstance(system, Understudy):
            await system.pool.processes.start_again(*others)
        await system.start_again(victim, part)
        return back

    async def _others(self) -> tuple[str, ...]:
        """Kill what is to be down when the member dies."""
        if not isinstance(self.system, Understudy) or self.scenario not in ("control", "etcd-leader"):
            return ()
        name = "control-1" if self.scenario == "control" else await self.system.etcd_leader()
        self.system.pool.processes.kill(name)
        if self.scenario == "control":
            await asyncio.sleep(0.3)
        return (name,)

    async def whole(self) -> None:
        give_up, last = time.monotonic() + WHOLE_PATIENCE, "no word of why"
        while True:
            try:
                if await self.system.whole():
                    return
            except (OSError, TimeoutError) as error:
                last = repr(error)  # it is still starting, perhaps
            if time.monotonic() > give_up:
                raise RuntimeError(f"the system does not become whole within {WHOLE_PATIENCE:g} s ({last})")
            await asyncio.sleep(0.05)


async def measure(name: str, scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one cell."""
    began, since_when = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="understudy-failover-", ignore_cleanup_errors=True) as directory:
        async with make(name, Path(directory) / "run", scenario) as system:
            load = Load(system.url, options.sessions, options.rate, system.own_key)
            cell = Cell(scenario, system, load)
            try:
                await cell.whole()
                await load.open()
                load.start()
                await asyncio.sleep(2 * options.sessions / options.rate)
                since = time.monotonic()
                if scenario == "steady":
                    before = spent(system.processes)
                    await asyncio.sleep(STEADY_FOR)
                    used = spent(system.processes) - before
                    thousands = STEADY_FOR * options.rate / 1000
                    figures: dict[str, Any] = {"latency_ms": latency(load.history, since)}
                    figures["failed"] = sum(not op.ok for op in load.history)
                    figures["cpu_ms_per_1000"] = {kind: round(ms / thousands) for kind, ms in sorted(used.items())}
                else:
                    begun = time.monotonic()
                    figures = summary(await _events(cell, options))
                    figures["event_s"] = round((time.monotonic() - begun) / figures["events"], 1)
            finally:
                await load.close()
    late = {"p99": round(percentile(load.late, 0.99) * 1000, 1), "max": round(max(load.late) * 1000, 1)}
    took = round(time.monotonic() - since_when, 1)
    print(f"   {took:.0f} s in all", file=sys.stderr, flush=True)
    figures |= {"late_ms": late, "machine_load": [began, os.getloadavg()[0]], "cell_s": took}
    return figures | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rate": options.rate}


async def _events(cell: Cell, options: argparse.Namespace) -> list[Effect]:
    effects = []
    give_up = time.monotonic() + options.seconds
    for number in range(options.events):
        event = await cell.event()
        effect = effect_of(cell.load.history, event)
        effects.append(effect)
        cell.load.tidy(event.struck - 15)
        print(
            f"   {number + 1}/{options.events} {event.victim}: "
            f"failed {effect.failed_repeatable}+{effect.failed_other}, "
            f"gap p99 {percentile(effect.gaps, 0.99):.0f} ms of {len(effect.gaps)}, lost {effect.lost}, "
            f"moved {effect.moved}, {event.end - event.struck:.1f} s {'; '.join((*effect.errors, *effect.moves))}",
            file=sys.stderr,
            flush=True,
        )
        if time.monotonic() > give_up:
            break
        # Judging held the clients up: let them catch up before the next blow. Blows fall at all points of the second,
        # since checks are made every second, and a system is whole just after one.
        await asyncio.sleep(SETTLED + number * GOLDEN % 1.0)
    return effects


def summary(effects: Sequence[Effect]) -> dict[str, Any]:
    repeatable = [gap for effect in effects for gap in effect.gaps]
    gaps = repeatable + [gap for effect in effects for gap in effect.gaps_other]
    return {
        "events": len(effects),
        "requests": sum(effect.requests for effect in effects),
        "failed_repeatable": sum(effect.failed_repeatable for effect in effects),
        "failed_other": sum(effect.failed_other for effect in effects),
        "touched": len(gaps),
        "gap_repeatable_p99_ms": round(percentile(repeatable, 0.99), 1),
        "gap_ms": {
            "p50": round(percentile(gaps, 0.5), 1),
            "p99": round(percentile(gaps, 0.99), 1),
            "max": round(max(gaps, default=float("nan")), 1),
        },
        "lost": sum(effect.lost for effect in effects),
        "moved_needlessly": sum(effect.moved for effect in effects),
        "each": [
            asdict(effect) | {"gaps": len(effect.gaps), "gaps_other": len(effect.gaps_other)} for effect in effects
        ],
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown. In each column of a scenario the best is bold, whoever has it."""
    lines = []
    cells = results.get("cells", {})
    steady = {name: cells.get(f"steady/{name}") for name in TITLES}
    if any(steady.values()):
        title = f"p99 of each session's slowest request in {WINDOW:g} s, ms"
        lines += [f"| no event | p50 ms | p99 ms | {title} | failed | CPU ms per 1,000 requests |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, one in steady.items():
            if one:
                taken = one["latency_ms"]
                slowest = taken.get("slowest_p99", "-")
                cpu = sum(one.get("cpu_ms_per_1000", {}).values()) or "-"
                shown = " | ".join(str(value) for value in (taken["p50"], taken["p99"], slowest, one["failed"], cpu))
                lines.append(f"| {TITLES[name]} | {shown} |")
    for scenario, title in SCENARIOS.items():
        found = {name: cells.get(f"{scenario}/{name}") for name in TITLES}
        if scenario == "steady" or not any(found.values()):
            continue
        columns = "events | failed: repeatable | others | gap p50 ms | p99 | max | p99, repeatable | lost | moved"
        lines += ["", f"| {title} | {columns} |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        rows = {name: _row(one) for name, one in found.items() if one}
        best = [min(row[column] for row in rows.values()) for column in range(1, 9)] if len(rows) > 1 else []
        for name, row in rows.items():
            shown = [f"{row[0]}"]
            for column, value in enumerate(row[1:]):
                text = f"{value:.0f}" if value < math.inf else "-"
                shown.append(f"**{text}**" if best and value == best[column] < math.inf else text)
            lines.append(f"| {TITLES[name]} | {' | '.join(shown)} |")
        if scenario in ONLY_OURS:
            lines += ["", f"(a) to (d): {ONLY_OURS[scenario]}."]
    return "\n".join(lines)


def _row(one: dict[str, Any]) -> list[float]:
    gap = one["gap_ms"]
    return [
        one["events"],
        one["failed_repeatable"],
        one["failed_other"],
        gap["p50"],
        gap["p99"],
        gap["max"],
        one.get("gap_repeatable_p99_ms", math.inf),
        one["lost"],
        math.inf if one["moved_needlessly"] is None else one["moved_needlessly"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only these (repeatable)")
    parser.add_argument("--system", action="append", choices=TITLES, help="only these (repeatable)")
    parser.add_argument("--events", type=int, default=20, help="events per cell")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no event in a cell after so long")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--table", action="store_true", help="only print what was measured so far")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {"cells": {}}
    wanted = [] if options.table else list(options.scenario or SCENARIOS)
    for scenario in wanted:
        for name in options.system or TITLES:
            if scenario in ONLY_OURS and not name.startswith("understudy"):
                continue
            print(f"{scenario}: {TITLES[name]}", file=sys.stderr, flush=True)
            try:
                figures = asyncio.run(measure(name, scenario, options))
            except RuntimeError as error:
                print(f"   left out: {error}", file=sys.stderr)
                continue
            results["cells"][f"{scenario}/{name}"] = figures
            options.results.parent.mkdir(exist_ok=True)
            options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
