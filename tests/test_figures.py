"""The figures of the README and of the pages that help to choose are those measured, and of one run a column."""

import json
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from tests.harness.places import ROOT

README, WHY_NOT, DURABILITY = (ROOT / name for name in ("README.md", "docs/why-not.md", "docs/durability.md"))
BENCHMARKS = ROOT / "docs/benchmarks.md"
NOT_MEASURED = "not measured"
Row = dict[str, str]

SYSTEMS = {
    "Envoy Maglev or Istio": "maglev",
    "Envoy with Maglev, state in memory": "maglev",
    "Envoy Maglev, state in Redis": "maglev-redis",
    "Envoy with Maglev, state in Redis": "maglev-redis",
    "Envoy `stateful_session` cookie": "cookie-redis",
    "HAProxy stick table": "haproxy-redis",
    "Hazelcast or Infinispan": "none",
    "Istio, Hazelcast, Infinispan": "none",
    "Understudy, `durability: sync`": "understudy",
    "Understudy, `sync`": "understudy",
    "Understudy, `durability: replicas`": "understudy-replicas",
    "Understudy, `replicas`": "understudy-replicas",
}
"""How a row or a column begins, and what bench/failover.py calls the system; ``none`` is measured by nothing."""
RUNS = {
    "two cores, 500 requests/s": ("failover-2-cores", 500),
    "two cores, 200 requests/s": ("failover-2-cores-200", 200),
    "four cores, 500 requests/s": ("failover", 500),
}
EVENTS = {
    "kill -9 of a member": "kill",
    "kill -9 of the application alone": "app",
    "kill -9 of the sidecar alone": "sidecar",
    "SIGSTOP of a member for 4 s": "freeze",
    "drain and return": "drain",
    "rolling restart": "rolling",
    "control server down, then kill": "control",
    "etcd leader killed, then kill": "etcd-leader",
}
LETTERS = {"(a)": "maglev", "(b)": "maglev-redis", "(c)": "cookie-redis", "(d)": "haproxy-redis"}
LETTERS |= {"(e)": "understudy", "(f)": "understudy-replicas"}
CLASSES = {"`sync`": "ours", "`replicas`": "ours, replicas", "`async`": "ours, async"}
CLASSES |= {"Redis, `WAIT 1`": "Redis, WAIT 1"}


def test_the_readme_compares_waits_of_one_run() -> None:
    rows = list(tables(README.read_text(), "[why not something else]"))
    assert len(rows) == 5
    for row in rows:
        assert row["wait after a kill: p50, p99"] == gap("two cores, 500 requests/s", "kill", system(row[""])), row


def test_each_column_of_waits_after_a_kill_is_one_run() -> None:
    rows = list(tables(WHY_NOT.read_text(), "after `kill -9` of a member"))
    assert len(rows) == 7
    for row in rows:
        for column in list(row)[1:]:
            run = next(run for run in RUNS if column.startswith(run))
            assert row[column] == gap(run, "kill", system(row[""])), (row, column)


def test_the_waits_in_other_events_are_those_of_the_same_runs() -> None:
    rows = list(tables(WHY_NOT.read_text(), "event"))
    assert len(rows) == 4
    for row in rows:
        event, _, load = row.pop("").partition(", ")
        for column, cell in row.items():
            assert cell == gap(f"two cores, {load}", EVENTS.get(event, event), system(column)), (event, load, column)


def test_nothing_was_lost_where_the_pages_say_so() -> None:
    runs = [*(run for run, _ in RUNS.values()), "failover-2-cores-800"]
    cells = [found for run in runs for found in events(run)]
    assert {cell["lost"] for name, cell in cells if "understudy" in name} == {0}
    assert {cell["lost"] for name, cell in cells if name.startswith("kill/")} == {0, 8896}
    assert "8,896 in 20 kills" in WHY_NOT.read_text()
    assert [cells_of("failover")["kill/maglev"][key] for key in ("lost", "events")] == [8896, 20]


def test_the_costs_of_a_request_are_as_measured() -> None:
    ratios, cpu = costs()
    told = [re.sub(r"\s+", " ", page.read_text()) for page in (README, WHY_NOT)]
    sync = [ratio for rate, ratio in ratios["Understudy, sync"] if rate <= 300]
    everywhere = [ratio for _, ratio in ratios["Understudy, sync"]]
    replicas = [ratio for _, ratio in ratios["Understudy, replicas"]]
    assert f"{short(min(replicas))} to {short(max(replicas))} times as long with `replicas`" in told[0]
    assert f"{short(min(everywhere))} to {short(max(everywhere))} times with `sync`" in told[0]
    assert f"With `replicas` it is {short(min(replicas))} to {short(max(replicas))} times" in told[1]
    assert f"With `sync` it is {short(min(sync))} to {short(max(sync))} times up to 300 requests a second" in told[1]
    assert f"and {short(max(everywhere))} times at 500" in told[1]
    assert f"is {min(cpu):.0f} to {max(cpu):.0f} times as much" in told[1]


def test_what_each_class_costs_is_as_measured() -> None:
    text = DURABILITY.read_text()
    for number, connections in enumerate(("1x1", "50x1")):
        row = list(tables(text, "[the Redis port]"))[number]
        for column, name in CLASSES.items():
            found = of("redis")["rows"][f"SET {name} {connections}"]
            assert row[column] == f"{found['p50']['median']:.2f}, {found['p99']['median']:.2f}", (row, column)
    writes, cpu = list(tables(text, "[the Redis port]"))[2:]
    for column, name in CLASSES.items():
        found = of("redis")["rows"][f"SET {name} 50x1"]
        used = sum(one["median"] for process, one in found["cpu_ms_per_1000"].items() if process != "client")
        assert writes[column] == f"{found['per_second']['median']:,.0f}"
        assert cpu[column] == f"{used:.0f}"
    latency, writes = tables(text, "[the session API]")
    for column, (name, throughput) in {
        "`sync`": ("sidecar", "one sidecar's API"),
        "Redis, `WAIT 1`": ("redis", "Redis, one replica, WAIT 1"),
    }.items():
        found = of("sessions")["latency"][name]
        assert latency[column] == f"{found['writes_p50_ms']['median']:.2f}, {found['writes_p99_ms']['median']:.2f}"
        assert writes[column] == f"{of('sessions')['throughput']['writes_per_second'][throughput]['median']:,}"
    for row in tables(text, "[a whole request]"):
        what = row.pop("")
        rate = what.split()[0]
        assert row.pop("`async`") == NOT_MEASURED
        for column, cell in row.items():
            name = column.replace("`", "")
            name = name if name.startswith("Redis") else f"Understudy, {name}"
            found = of("requests")["rows"][f"{rate} write"][name]
            latency = f"{found['p50_ms']['median']:.2f}, {found['p99_ms']['median']:.1f}"
            assert cell == (f"{without_the_application(found):.0f}" if "CPU" in what else latency), (what, column)


def test_what_each_class_lost_is_as_measured() -> None:
    member, site = tables(DURABILITY.read_text(), "what was lost")
    of_ours = [
        (name.partition("/")[2], cell)
        for run in ("failover-2-cores", "failover-2-cores-200", "failover-2-cores-800")
        for name, cell in events(run)
        if "@" not in name
    ]
    for column, name in {"`sync`": "understudy", "`replicas`": "understudy-replicas"}.items():
        assert member[column] == f"nothing in {sum(cell['events'] for one, cell in of_ours if one == name)} events"
    kills = [kill for run in of("exposure").values() for kill in run["kills"]]
    lost = [kill["lost"]["replicas"] for kill in kills]
    assert sum(kill["lost"]["sync"] for kill in kills) == 0
    assert site["`sync`"] == f"nothing in {len(kills)} kills"
    assert site["`replicas`"] == (
        f"writes of {median(lost)} sessions in the median kill, {max(lost)} at most; "
        f"the oldest {max(kill['oldest_ms'] or 0 for kill in kills):,} ms old"
    )


@pytest.mark.parametrize(
    ("section", "run"),
    [("With sync sets, on two cores", "failover-2-cores"), ("Before sync sets, on four cores", "failover")],
)
def test_the_failover_tables_of_the_benchmarks_have_what_the_raw_files_have(section: str, run: str) -> None:
    text = BENCHMARKS.read_text().partition(f"### {section}\n")[2].partition("\n#")[0]
    compared = 0
    for title, event in EVENTS.items():
        for row in tables(text, title):
            cell = cells_of(run)[f"{event}/{LETTERS[row[''][:3]]}"]
            assert [plain(row["events"]), plain(row["lost"]), plain(row["moved"])] == [
                cell["events"],
                cell["lost"],
                cell["moved_needlessly"],
            ]
            told = [plain(row[column]) for column in ("gap p50 ms", "p99", "max")]
            assert told == [round(cell["gap_ms"][key]) for key in ("p50", "p99", "max")], (title, row)
            compared += 1
    assert compared == len([name for name, _ in events(run) if "@" not in name])


def tables(text: str, begins: str) -> Iterator[Row]:
    """The rows of the table whose first heading begins so; each by its headings, the first cell by an empty one."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        if header[0].startswith(begins):
            for row in rows:
                yield dict(zip(["", *header[1:]], row, strict=True))


def system(text: str) -> str:
    return next(name for begin, name in SYSTEMS.items() if text.startswith(begin))


def plain(cell: str) -> int:
    return int(cell.strip("*"))


def gap(run: str, event: str, name: str) -> str:
    """What a page has to say of a system: its figures, or that there are none."""
    file, rate = RUNS[run]
    cell = cells_of(file).get(f"{event}/{name}")
    if cell is None:
        return NOT_MEASURED
    assert cell["rate"] == rate
    return ", ".join(f"{cell['gap_ms'][key]:.0f} ms" for key in ("p50", "p99"))


def events(run: str) -> Iterator[tuple[str, Any]]:
    return ((name, cell) for name, cell in cells_of(run).items() if "events" in cell)


def cells_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = of(run)["cells"]
    return found


def of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"bench/results/{name}.json").read_text())
    return found


def costs() -> tuple[dict[str, list[tuple[int, float]]], list[float]]:
    """By class: rate and ratio of medians to Redis with WAIT 1 where each request writes. And all CPU ratios."""
    ratios: dict[str, list[tuple[int, float]]] = {"Understudy, sync": [], "Understudy, replicas": []}
    cpu = []
    for load, systems in of("requests")["rows"].items():
        rate, mix = load.split()
        redis = systems["Redis, WAIT 1"]
        for name, found in ratios.items():
            cpu.append(without_the_application(systems[name]) / without_the_application(redis))
            if mix == "write":
                found.append((int(rate), systems[name]["p50_ms"]["median"] / redis["p50_ms"]["median"]))
    return ratios, cpu


def without_the_application(row: dict[str, Any]) -> float:
    used: float = sum(one["median"] for process, one in row["cpu_ms_per_1000"].items() if process != "app")
    return used


def short(ratio: float) -> str:
    """1.7, 2, 11: one digit after the point below ten, and none where it would be a nought."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}".removesuffix(".0")
