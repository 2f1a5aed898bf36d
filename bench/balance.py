"""Placement by load in a simulation: ``make bench-balance``. Writes bench/results/balance.json and prints a table.

The pure part alone, with no processes: 100 members and 4,096 slots, and a zipf load over the slots that drifts. Every
slot's load takes a random step each quarter of an hour, and now and then a quiet slot becomes a busy one. Compared are
even numbers of slots (the hash alone), and plans each quarter of an hour within a budget of moves an hour. The
*optimum* is what no placement can go below: 1, or the load of the busiest slot in shares. docs/benchmarks.md tells what
came out.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.sessions import machine
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.rebalance import rebalance
from understudy.xds.placement.solver import Candidate, decide

RESULTS = Path(__file__).parents[1] / "bench/results/balance.json"
MEMBERS, SLOTS = 100, 4096
QUARTERS = 48
"""Half a day, in steps of a quarter of an hour."""
STEP = 0.05
"""The standard deviation of one random step of a slot's load, as a logarithm."""
TURNS = 4
"""Slots that change places with another slot in each step: a new campaign, a customer that comes back."""
OVER = 0.2
BUDGETS = (0, 60, 240, 100_000)
"""Moves an hour; 0 is the hash alone."""
EXPONENTS = (0.6, 0.8, 1.0)


def loads_of_a_day(exponent: float, seed: int) -> list[list[float]]:
    """The load of each slot in every step."""
    chance = random.Random(seed)
    loads = [1000 / (rank + 1) ** exponent for rank in range(SLOTS)]
    chance.shuffle(loads)
    found = []
    for _ in range(QUARTERS):
        loads = [load * chance.lognormvariate(-STEP * STEP / 2, STEP) for load in loads]
        for _ in range(TURNS):
            one, other = chance.sample(range(SLOTS), 2)
            loads[one], loads[other] = loads[other], loads[one]
        found.append(loads)
    return found


def table() -> list[list[int]]:
    """The orders of an even table."""
    field = [Candidate(f"m{number:03d}", "", 10, 1, MemberState.UP) for number in range(MEMBERS)]
    number = {one.member: place for place, one in enumerate(field)}
    orders = decide(PoolSpec(pool="bench", slots=SLOTS), field, Table()).orders
    return [[number[member] for member in order] for order in orders]


def simulated(day: Sequence[Sequence[float]], start: Sequence[Sequence[int]], budget: int) -> dict[str, Any]:
    """One day with so many moves an hour."""
    orders = [list(order) for order in start]
    weights = [10] * MEMBERS
    worst, moves, to_standby, least, seconds, above = [], 0, 0, 0, [], 0
    hour: list[int] = []
    for loads in day:
        share = sum(loads) / MEMBERS
        hour = hour[-3:]
        if budget:
            began = time.perf_counter()
            found = rebalance(loads, orders, weights, OVER)
            seconds.append(time.perf_counter() - began)
            steps = found.steps[: max(budget - sum(hour), 0)]
            hour.append(len(steps))
            for step in steps:
                order = orders[step.slot]
                orders[step.slot] = [step.target, *(member for member in order if member != step.target)][: len(order)]
            moves += len(steps)
            to_standby += sum(step.copy == 1 for step in steps)
            least += found.least
        carried = [0.0] * MEMBERS
        for slot, order in enumerate(orders):
            carried[order[0]] += loads[slot]
        optimum = max(1.0, max(loads) / share)
        worst.append((max(carried) / share, optimum))
        above += sum(load > (1 + OVER) * share for load in carried)
    return {
        "moves_per_hour": budget,
        "worst_mean": round(mean(one for one, _ in worst), 3),
        "worst_max": round(max(one for one, _ in worst), 3),
        "optimum_mean": round(mean(best for _, best in worst), 3),
        "members_above_bound": round(above / len(day), 2),
        "moves": moves,
        "to_standby": to_standby,
        "least_moves": least,
        "plan_ms": round(1000 * mean(seconds), 1) if seconds else 0.0,
    }


def main() -> None:
    """Simulate, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    start, rows = table(), []
    for exponent in EXPONENTS:
        day = loads_of_a_day(exponent, given.seed)
        for budget in BUDGETS:
            row = {"zipf": exponent, **simulated(day, start, budget)}
            rows.append(row)
            print(row, flush=True)
    settings = {"members": MEMBERS, "slots": SLOTS, "steps": QUARTERS, "over": OVER, "seed": given.seed}
    given.results.write_text(json.dumps({"machine": machine(), **settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
