"""Drills against a pool that runs: they refuse without redundancy, measure, undo, and leave a mark."""

import asyncio
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.harness.commands import ROOT
from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end
from tests.harness.waiting import until
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import HELD_FILE, PROCESSES_FILE, read_layout, read_processes
from understudy.deploy.drill.conditions import (
    ClientView,
    DrillKind,
    PoolSnapshot,
    missed,
    not_recovered,
    refusals,
    site_refusals,
    without_successor,
)
from understudy.deploy.drill.fault_injectors import run_template
from understudy.deploy.drill.measure import reported_view
from understudy.deploy.drill.record import lost_attributes
from understudy.deploy.drill.report import drill_table, view_of
from understudy.deploy.drill.settings import DrillResult
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.sync import newest_revision, read_sync
from understudy.deploy.inspect.traces import read_trace
from understudy.deploy.local.local_layout import LocalSettings, site_of
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EndpointStatus, EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    ControlServer,
    Intent,
    Member,
    MemberState,
    Owner,
    Process,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import HealthChecks, Liveness, Objectives, SiteSpec
from understudy.statesync.pool.state import At, PoolState
from understudy.telemetry.slo.waterfall import phases, root_of
from understudy.telemetry.tracing.names import DRILL, DRILL_GAP_MS

IN_SYNC = {"members": [{"member": "cart-1", "in_sync": True}, {"member": "cart-2", "in_sync": True}]}


def at_rest() -> PoolState:
    """Two members with two slots each, one control server."""
    state = PoolState(PoolKeys("cart"))
    orders = (("cart-1", "cart-2"), ("cart-2", "cart-1")) * 2
    state.spec = At(PoolSpec(pool="cart", slots=4, copies=2), 1)
    state.table = At(Table(1, orders), 1)
    state.leader = At("control-1", 1)
    state.controls["control-1"] = At(ControlServer("control-1", "127.0.0.1:9", "127.0.0.1:9"), 1)
    for name in ("cart-1", "cart-2"):
        state.members[name] = At(Member(name, f"{name}-a", "", "", MemberState.UP), 1)
    for slot, order in enumerate(orders):
        state.owners[slot] = At(Owner(order[0], f"{order[0]}-a", 1), 1)
    return state


def test_reported_requests_are_those_of_control_servers_that_answered_twice_and_did_not_start_anew():
    before = {"control-1": (100, 1), "control-2": (50, 0), "control-3": (70, 0)}
    after = {"control-1": (160, 3), "control-3": (2, 1), "control-4": (500, 9)}
    assert reported_view(before, after) == ClientView(requests=60, failed=2)


def test_a_pool_at_rest_may_be_drilled() -> None:
    assert refusals(PoolSnapshot(at_rest(), IN_SYNC), DrillKind.KILL) == []


def test_a_drill_is_refused_for_every_reason_that_there_is() -> None:
    state = at_rest()
    state.members["cart-2"] = At(Member("cart-2", "cart-2-a", "", "", MemberState.DOWN, reason="check failed"), 2)
    state.intents["cart-1"] = At(Intent("cart-1", until=100.0), 2)
    state.sites["east"] = At(Intent(site="east"), 2)
    state.owners[0] = At(Owner("cart-2", "cart-2-a", 2), 2)
    sync = {"members": [{"member": "cart-1", "in_sync": False, "reason": "3 revisions behind"}]}
    text = "\n".join(refusals(PoolSnapshot(state, sync, ["too many moves (for 9 s)"], now=99.0), DrillKind.KILL))
    for reason in (
        "cart-2 is DOWN: check failed",
        "cart-1 is drained",
        "site east is offline",
        "4 slots have no living standby",
        "1 slots are moving",
        "too many moves (for 9 s)",
        "cart-1 is not in sync: 3 revisions behind",
    ):
        assert reason in text


def test_leaders_are_struck_only_where_others_can_follow() -> None:
    facts = PoolSnapshot(at_rest(), IN_SYNC, etcd=[EndpointStatus("127.0.0.1:1", "3.5.9", True, 0, ())])
    assert "start a second one" in refusals(facts, DrillKind.CONTROL)[0]
    assert "needs 3" in refusals(facts, DrillKind.ETCD_LEADER)[0]


def sharing(first: int, second: int) -> PoolState:
    """The pool at rest, with so many slots for each member."""
    state, actives = at_rest(), ["cart-1"] * first + ["cart-2"] * second
    state.spec = At(PoolSpec(pool="cart", slots=len(actives), copies=2), 1)
    orders = tuple((active, "cart-2" if active == "cart-1" else "cart-1") for active in actives)
    state.table = At(Table(1, orders), 1)
    state.owners = {slot: At(Owner(active, f"{active}-a", 1), 1) for slot, active in enumerate(actives)}
    return state


def test_a_restarted_member_must_come_back_as_another_boot_and_with_its_share() -> None:
    before = {"cart-1": 10, "cart-2": 10}
    assert not_recovered(sharing(10, 10), before, {}) == ""
    assert not_recovered(sharing(10, 10), before, {"cart-1": "cart-1-a"}) == "cart-1 is not back"
    assert not_recovered(sharing(16, 4), before, {}) == "cart-2 without a full share of slots"
    assert not_recovered(sharing(10, 10), {"cart-1": 6, "cart-2": 14}, {}) == "", "it had more than its share"


@pytest.mark.parametrize(("weight", "short"), [(25, ""), (50, "cart-2 without a full share of slots")])
def test_the_share_of_a_member_is_that_of_its_site(weight: int, short: str) -> None:
    state = sharing(15, 5)
    sites = {"east": SiteSpec(weight=100 - weight), "west": SiteSpec(weight=weight)}
    state.spec = At(PoolSpec(pool="cart", slots=20, copies=2, sites=sites), 1)
    for name, site in (("cart-1", "east"), ("cart-2", "west")):
        state.members[name] = At(replace(state.members[name].record, site=site), 1)
    assert not_recovered(state, {"cart-1": 12, "cart-2": 8}, {}) == short


def on_two_sites(*, standby: str = "west") -> PoolState:
    """The pool at rest, with its second member on ``standby``; the slots of the first have their copies."""
    state = at_rest()
    for name, site in (("cart-1", "east"), ("cart-2", standby)):
        state.members[name] = At(replace(state.members[name].record, site=site), 1)
    copies = (Process("cart-1", "cart-1-a"), Process("cart-2", "cart-2-a"))
    state.sync_sets = {slot: At(SyncRecord(1, copies), 1) for slot in (0, 2)}
    return state


def test_a_site_is_killed_only_where_another_has_a_copy_of_all_that_it_serves() -> None:
    assert site_refusals(on_two_sites(), "east") == []
    assert "2 slots have no current copy outside site west" in site_refusals(on_two_sites(), "west")[0]
    assert "no other site than east has members" in site_refusals(on_two_sites(standby="east"), "east")[0]


def test_a_site_that_waits_for_an_operator_is_no_fault_of_the_drill() -> None:
    state = sharing(16, 4)
    weights = {"east": SiteSpec(weight=100), "west": SiteSpec(weight=0)}
    state.spec = At(PoolSpec(pool="cart", slots=20, copies=2, sites=weights), 1)
    assert state.table
    orders = state.table.record.orders
    before = {"cart-1": 10, "cart-2": 10}
    assert not_recovered(state, before, {}) != ""
    state.table = At(Table(1, orders, resting={"east": 100}), 1)
    assert not_recovered(state, before, {}) == ""

    preferred = state.spec.record.model_copy(update={"recovery": "prefer_site"})
    state.spec = At(preferred, 1)
    assert not_recovered(state, before, {}) != "", "its time comes within the drill"
    state.table = At(Table(1, orders, resting={"east": 100}, returned={"east": time.time() - 200}), 1)
    assert not_recovered(state, before, {}) == "", "it rests for longer than a drill waits"
    state.table = At(Table(1, orders, resting={"east": 100}, returned={"east": time.time() - 400}), 1)
    assert not_recovered(state, before, {}) != "", "that was long ago"


def test_control_servers_and_etcd_members_are_shared_among_sites_and_the_odd_one_is_elsewhere() -> None:
    sites = ("east", "west")
    assert [site_of(sites, number, 3) for number in range(3)] == ["east", "west", ""]
    assert [site_of(sites, number, 4) for number in range(4)] == ["east", "west", "east", "west"]
    assert [site_of(sites, 0, 1), site_of((), 0, 3)] == ["", ""]


def test_without_a_witness_the_first_site_has_the_odd_one() -> None:
    sites = ("east", "west")
    assert [site_of(sites, number, 3, witness=False) for number in range(3)] == ["east", "west", "east"]
    assert [site_of(sites, number, 2, witness=False) for number in range(2)] == ["east", "west"]
    assert [site_of(sites, 0, 1, witness=False), site_of((), 0, 3, witness=False)] == ["east", ""]


def test_a_killed_leaders_own_record_is_no_successor() -> None:
    before, now = at_rest(), at_rest()
    assert "control-1 has no successor" in without_successor(before, now)
    now.leader = None
    assert "control-1 has no successor" in without_successor(before, now)
    now.leader = At("control-1", 2)
    assert without_successor(before, now) == "", "started again, it leads anew"


def test_objectives_are_judged_by_what_clients_felt() -> None:
    wanted = Objectives.model_validate({"rto": {"p99": "200ms"}, "failed_requests": "1%"})
    assert (
        missed(ClientView(requests=100, failed=1, gap=(1.0, 200.0, 900.0), lost_writes=0, needless_moves=0), wanted)
        == []
    )
    worse = ClientView(requests=100, failed=2, gap=(1.0, 201.0, 201.0), lost_writes=1, needless_moves=3)
    assert [text.partition(":")[0] for text in missed(worse, wanted)] == [
        "failed_requests",
        "rto p99",
        "rpo_sync_writes",
        "needless_moves",
    ]
    assert missed(ClientView(requests=0, failed=0, took_ms=201.0), wanted) == ["rto p99: 201 ms (objective 200 ms)"]


@pytest.mark.parametrize(
    ("durability", "objectives", "found"),
    [
        ("sync", {}, ["rpo_sync_writes"]),
        ("replicas", {}, ["rpo_replica_writes"]),
        ("replicas", {"rpo_replica_writes": 2}, []),
        ("async", {}, []),
        ("async", {"rpo_async_writes": 1}, ["rpo_async_writes"]),
        ("async", {"rpo_async_writes": 2}, []),
    ],
)
def test_lost_writes_miss_the_objective_of_the_pools_class(durability, objectives, found) -> None:
    seen = ClientView(requests=100, failed=0, lost_writes=2)
    texts = missed(seen, Objectives.model_validate(objectives), durability)
    assert [text.partition(":")[0] for text in texts] == found


@pytest.mark.parametrize(
    ("durability", "lost", "attributes"),
    [
        ("sync", 2, {"lost_writes": 2}),
        ("replicas", 2, {"lost_replica_writes": 2}),
        ("replicas", 0, {"lost_replica_writes": 0, "lost_writes": 0}),
        ("async", 0, {"lost_async_writes": 0}),
    ],
)
def test_lost_writes_are_told_for_the_class_that_they_surely_had(durability, lost, attributes) -> None:
    told = {f"understudy.drill.{name}": count for name, count in attributes.items()}
    assert lost_attributes(durability, lost) == told


def test_every_figure_of_a_drill_is_shown_on_a_narrow_terminal() -> None:
    seen = ClientView(
        12345, 17, gap=(38.0, 281.0, 2003.0), wait=(134.0, 403.0, 4012.0), lost_writes=3, needless_moves=9
    )
    name = "cart-7f9c5d6b8-x2x9z-of-a-cluster"
    result = DrillResult(
        DrillKind.KILL, name, 0.0, 9.0, replace(seen, took_ms=1056.0), ("rto p99: 281 ms",), ("ab" * 16,)
    )
    screen = Console(width=80, file=io.StringIO())
    screen.print(drill_table(view_of("cart", [result])))
    shown = screen.file.getvalue()
    for text in ("17 of 12345", "38/281/2003", "134/403/4012", "1056", "rto p99: 281 ms", "abababab"):
        assert text in shown
    assert "…" not in shown


async def test_a_command_gets_the_name_as_one_argument_and_its_failure_is_told(tmp_path: Path) -> None:
    note = tmp_path / "note"
    await run_template(f"sh -c 'printf %s \"$1\" > {note}' - {{name}}", {"name": "cart 1; rm -rf x"})
    assert note.read_text() == "cart 1; rm -rf x"
    with pytest.raises(DeployError, match="exit code 1"):
        await run_template("false {name}", {"name": "cart-1"})
    with pytest.raises(DeployError, match="only placeholder"):
        await run_template("kill {pod}", {"name": "cart-1"})


class Running:
    """A pool in ``directory`` that runs as under ``understudy up``, and the command ``drill`` in its directory."""

    def __init__(self, directory: Path, etcd: EtcdClient) -> None:
        self.directory = directory
        self.etcd = etcd

    async def state(self) -> PoolState:
        return (await read_pool(self.etcd, "cart"))[0]

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *forked([sys.executable, "-m", "understudy.deploy.cli", "drill", *arguments, "-o", "json"]),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "UNDERSTUDY_DIR": str(self.directory)},
        )

    async def review(self, *arguments: str) -> tuple[int, dict]:
        """What ``understudy slo`` says: exit code and JSON."""
        process = await asyncio.create_subprocess_exec(
            *forked([sys.executable, "-m", "understudy.deploy.cli", "slo", "--window", "1h", *arguments, "-o", "json"]),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "UNDERSTUDY_DIR": str(self.directory)},
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode, json.loads(output or b"{}")

    async def drill(self, *arguments: str) -> tuple[int, dict, str]:
        """Run a drill to its end: exit code, the JSON that it printed, what it said."""
        process = await self.start(*arguments)
        output, said = await asyncio.wait_for(process.communicate(), 300)
        return process.returncode, json.loads(output or b"{}"), said.decode()

    def pids(self, name: str) -> list[int]:
        return [row["pid"] for row in read_processes(self.directory) if row["name"].startswith(f"{name}/")]

    async def ready(self) -> None:
        """Wait until a drill would not be refused."""
        await until(self._table_is_lived, timeout=120, what="the pool is at rest")

    async def _table_is_lived(self) -> bool:
        state = await self.state()
        shares = {name: sum(at.record.active == name for at in state.owners.values()) for name in state.members}
        if not_recovered(state, dict.fromkeys(shares, 85), {}) or len(shares) != 3:
            return False
        sync = await read_sync(state, newest_revision(state))
        return all(row["in_sync"] for row in sync["members"])


PATIENT = Liveness(missed_beats=20, unanswered_ms=5000)
FREEZING = Liveness(missed_beats=10, unanswered_ms=1500)
"""A frozen member is found within 7 s, on a slow machine as well."""


@asynccontextmanager
async def running(
    directory: Path, *, rto: str = "60s", liveness: Liveness = PATIENT, etcds: int = 1
) -> AsyncIterator[Running]:
    """Three members, two control servers.

    A slow test machine misses none of the objectives, and no member that it holds up is taken for dead.
    """
    times = {name: {"p99": "60s"} for name in ("planned_stall", "propagation", "re_protection")}
    shares = {"exposure": "100%", "unavailability": "100%"}
    objectives = Objectives.model_validate({**times, **shares, "rto": {"p99": rto}})
    checks = HealthChecks(timeout_ms=2000)
    spec = PoolSpec(pool="cart", objectives=objectives, liveness=liveness, health_checks=checks)
    settings = LocalSettings(directory=directory, spec=spec, members=3, controls=2, etcds=etcds, sites=("east", "west"))
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
        scene = Running(directory, etcd)
        await scene.ready()
        yield scene


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stopped_of(scene: Running, member: str) -> list[int]:
    return list(filter(stopped, scene.pids(member)))


async def test_a_pool_is_drilled_and_every_drill_leaves_it_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, etcds=3) as scene:
        for part in (
            a_member_is_killed_and_the_failover_is_marked,
            a_drill_of_a_pool_that_is_not_at_rest_changes_nothing,
            ctrl_c_thaws_a_frozen_member_and_undoes_a_drain,
            a_site_is_killed_and_the_other_one_serves,
        ):
            await part(scene)
            await scene.ready()
        await _compared(scene, {"kill": (1, 1), "site": (1, 1)})


@pytest.mark.nightly
async def test_the_other_drills_leave_the_pool_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, etcds=3) as scene:
        for part in (
            a_control_server_is_killed,
            a_practice_ends_at_once_when_a_member_elsewhere_goes,
            the_application_and_the_sidecar_of_a_member_are_killed_alone,
            the_witness_is_kept_away_and_nothing_moves,
            everything_is_killed_at_once_and_no_acknowledged_write_is_lost,
        ):
            await part(scene)
            await scene.ready()
        others = dict.fromkeys(("app", "sidecar", "witness", "all-sites"), (1, 1))
        await _compared(scene, {"control": (1, 0), **others})


async def _compared(scene: Running, kinds: dict[str, tuple[int, int]]) -> None:
    """Wait until the statement has all kinds; there were, and were compared, as many of each as is given."""

    async def rows() -> dict[str, tuple[int, int]]:
        _, told = await scene.review("--statement")
        rows = {row["drill"]: (row["drills"], row["compared"]) for row in told.get("failures", ())}
        return rows if all(rows.get(kind, (0, 0))[0] for kind in kinds) else {}

    shown = await until(rows, 120, "the statement has every drill", every=1)
    assert {kind: shown[kind] for kind in kinds} == kinds


async def a_member_is_killed_and_the_failover_is_marked(scene: Running) -> None:
    before = await scene.state()
    boot = before.members["cart-2"].record.boot
    code, view, said = await scene.drill("kill", "--member", "cart-2", "--load", "60", "--for", "1s")
    assert (code, view["ok"]) == (0, True), said
    (row,) = view["drills"]
    assert (row["name"], row["failures"], row["lost_writes"], row["moved_needlessly"]) == ("cart-2", [], 0, 0)
    assert row["failed_requests"] == 0
    assert row["sessions_touched"] > 0
    assert row["client_gap_ms"]["max"] < 30_000

    state = await scene.state()
    assert state.members["cart-2"].record.boot != boot
    records = [at.record for trace, at in state.failovers.items() if trace not in before.failovers]
    takeovers = [record for record in records if record.source == "cart-2" and not record.planned]
    assert takeovers
    assert {record.drill for record in takeovers} == {"kill"}
    controls = [at.record.http for at in state.controls.values()]
    spans = await read_trace(controls, row["traces"][0])
    (seen,) = [span for span in spans if span.name == "drill"]
    root = root_of(spans)
    assert (seen.attributes[DRILL], seen.attributes[DRILL_GAP_MS]) == (
        "kill",
        pytest.approx(row["client_gap_ms"]["p99"], abs=0.06),
    )
    assert root is not None
    assert seen.parent_id == root.span_id

    async def told() -> dict | None:
        code, review = await scene.review("--html", str(scene.directory / "review.html"))
        figures = {figure["key"]: figure for figure in review["figures"]}
        ended = all(figures[key]["state"] != "no data" for key in ("rto", "re_protection", "exposure"))
        counted = figures["failed_requests"]["state"] != "not yet shown"  # Envoys count every 5 s
        return {**figures, "code": code} if ended and counted else None

    figures = await until(told, 60, "the review knows the takeover and its end", every=1)
    states = {key: figure["state"] for key, figure in figures.items() if key != "code"}
    assert [key for key, state in states.items() if state == "missed"] == []
    assert (figures["code"], states["rto"], figures["rto"]["total"]) == (3, "not yet shown", 1)
    assert [figures[key]["state"] for key in ("rpo_sync_writes", "failed_requests", "unmeasured")] == ["met"] * 3
    assert "Not yet shown" in (scene.directory / "review.html").read_text()


async def a_drill_of_a_pool_that_is_not_at_rest_changes_nothing(scene: Running) -> None:
    state = await scene.state()
    await scene.etcd.put(state.keys.intent("cart-1"), Intent("cart-1", 0.0, time.time()).encode())
    code, view, said = await scene.drill("kill")
    assert (code, view) == (1, {})
    assert "nothing was changed" in said
    assert "cart-1 is drained" in said
    assert (await scene.state()).members["cart-2"].record.boot == state.members["cart-2"].record.boot

    async def degraded() -> str:
        return " ".join((await scene.review("--statement"))[1]["degraded_now"])

    async def told() -> bool:
        return "understudy undrain cart-1" in await degraded()

    await until(told, 60, "the statement says that a member is away", every=1)
    await scene.etcd.delete(state.keys.intent("cart-1"))
    await scene.ready()
    assert "cart-1" not in await degraded()


async def a_control_server_is_killed(scene: Running) -> None:
    led = (await scene.state()).leader
    code, view, said = await scene.drill("control", "--for", "1s")
    assert (code, view["drills"][0]["requests"]) == (0, 0), said
    state = await scene.state()
    assert led is not None
    assert state.leader is not None
    assert state.leader.revision > led.revision, "the drill ends when somebody leads anew"
    (mark,) = [at.record for at in state.failovers.values() if at.record.drill == "control"]
    spans = await read_trace([at.record.http for at in state.controls.values()], mark.trace)
    root = root_of(spans)
    assert root is not None
    assert (root.attributes[DRILL], "drill" in phases(spans)) == ("control", True)


async def ctrl_c_thaws_a_frozen_member_and_undoes_a_drain(scene: Running) -> None:
    freezing = await scene.start("freeze", "--member", "cart-1", "--for", "10m")
    await until(lambda: len(stopped_of(scene, "cart-1")) == 2, 60, "both processes of cart-1 are frozen")
    freezing.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(freezing.wait(), 60) == 130
    assert stopped_of(scene, "cart-1") == []
    await scene.ready()

    draining = await scene.start("drain", "--member", "cart-3", "--for", "10m")

    async def drained() -> bool:
        state = await scene.state()
        return "cart-3" in state.intents and all(at.record.active != "cart-3" for at in state.owners.values())

    await until(drained, 60, "cart-3 owns nothing")
    draining.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(draining.wait(), 60) == 130
    assert "cart-3" not in (await scene.state()).intents


async def a_practice_ends_at_once_when_a_member_elsewhere_goes(scene: Running) -> None:
    practice = await scene.start("site-offline", "--site", "west", "--for", "10m", "--every", "7d")

    async def away() -> bool:
        state = await scene.state()
        return "west" in state.sites and all(at.record.active != "cart-2" for at in state.owners.values())

    await until(away, 60, "site west owns nothing")
    for pid in scene.pids("cart-1"):
        os.kill(pid, signal.SIGKILL)
    output, said = await asyncio.wait_for(practice.communicate(), 120)
    assert (practice.returncode, json.loads(output)["drills"][0]["outcome"]) == (1, "INTERRUPTED"), said
    state = await scene.state()
    assert "west" not in state.sites
    assert state.practices is not None
    (run,) = state.practices.record.runs
    assert (run.site, run.outcome, run.why) == ("west", "INTERRUPTED", "cart-1 on another site can no longer serve")
    assert run.back_seconds is not None
    assert state.practices.record.every == 7 * 86400


async def the_application_and_the_sidecar_of_a_member_are_killed_alone(scene: Running) -> None:
    def processes() -> dict[str, int]:
        return {row["name"]: row["pid"] for row in read_processes(scene.directory)}

    for kind in ("app", "sidecar"):
        before = processes()
        _, view, said = await scene.drill(kind, "--member", "cart-2", "--load", "30", "--for", "3s")
        assert {name for name, pid in processes().items() if before[name] != pid} == {f"cart-2/{kind}"}
        (row,) = view["drills"]
        assert (row["lost_writes"], row["traces"] != []) == (0, True), said
        # On a slow machine the member may be back before it has handed everything over.
        assert {text.partition(":")[0] for text in row["missed"]} <= {"needless_moves"}, view
        await scene.ready()


async def the_witness_is_kept_away_and_nothing_moves(scene: Running) -> None:
    layout = read_layout(scene.directory)
    assert layout is not None
    witness = layout.etcd_names[layout.etcd.index(layout.witness)]

    def state_of(name: str) -> str:
        return next(row["state"] for row in read_processes(scene.directory) if row["name"] == name)

    drilling = await scene.start("witness", "--load", "30", "--for", "4s")
    await until((scene.directory / HELD_FILE).exists, 60, "the witness is killed")
    await until(lambda: state_of(witness) == "restarting", 60, "its supervisor waits")
    output, said = await asyncio.wait_for(drilling.communicate(), 300)
    (row,) = json.loads(output)["drills"]
    assert (drilling.returncode, row["slots_taken_from"], row["lost_writes"]) == (0, {}, 0), said
    assert state_of(witness) == "running"
    code, _, said = await scene.drill("link-witness", "--load", "30")
    assert (code, "networks that could be cut" in said) == (1, True), said


async def a_site_is_killed_and_the_other_one_serves(scene: Running) -> None:
    before = await scene.state()
    code, view, said = await scene.drill("site", "--site", "west", "--load", "60", "--for", "1s")
    assert code == 0, (said, view)
    (row,) = view["drills"]
    assert (row["name"], row["lost_writes"], row["moved_needlessly"]) == ("west", 0, 0)
    after = await scene.state()
    killed = {name for name, at in before.members.items() if at.record.boot != after.members[name].record.boot}
    assert killed == {name for name, at in before.members.items() if at.record.site == "west"}
    assert killed


async def everything_is_killed_at_once_and_no_acknowledged_write_is_lost(scene: Running) -> None:
    before, pids = await scene.state(), {row["name"]: row["pid"] for row in read_processes(scene.directory)}
    code, view, said = await scene.drill("all-sites", "--load", "30", "--for", "1s")
    assert code == 0, (said, view)
    (row,) = view["drills"]
    assert (row["name"], row["lost_writes"], row["second_writers"]) == ("east,west", 0, 0)
    assert row["failed_requests"] > 0
    assert row["client_gap_ms"]["p99"] > 0
    kept = {each["name"] for each in read_processes(scene.directory) if pids[each["name"]] == each["pid"]}
    assert kept == {"front-1"}
    after = await scene.state()
    assert all(at.record.boot != after.members[name].record.boot for name, at in before.members.items())


SIGNAL = """
import json, os, sys
signal, member, processes = int(sys.argv[1]), sys.argv[2], json.load(open(sys.argv[3]))
for row in processes:
    if row["name"].startswith(f"{member}/"):
        os.kill(row["pid"], signal)
"""


@pytest.mark.nightly
async def test_a_pool_elsewhere_is_frozen_twice_by_the_operators_own_commands(tmp_path: Path) -> None:
    """Nothing but etcd and the front's address is known, as with a pool in Kubernetes. Its objective cannot be met."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = tmp_path / "send.py"
    script.write_text(SIGNAL)
    async with running(home, rto="1ms", liveness=FREEZING) as scene:
        layout = read_layout(home)
        assert layout is not None
        command = f"{sys.executable} {script} {{signal}} {{name}} {home / PROCESSES_FILE}"
        freeze, thaw = (command.replace("{signal}", str(int(n))) for n in (signal.SIGSTOP, signal.SIGCONT))
        scene.directory = elsewhere
        code, view, said = await scene.drill(
            *("freeze", "--etcd", ",".join(layout.etcd), "--pool", "cart", "--url", f"http://{layout.front.listen}"),
            *("--command", freeze, "--undo", thaw, "--repeat", "2", "--for", "8s", "--load", "60"),
        )
        assert (code, view["ok"]) == (1, False), (said, view)
        missed = [{text.partition(":")[0] for text in row["missed"]} for row in view["drills"]]
        assert [each - {"failed_requests"} for each in missed] == [{"rto p99"}] * 2, view["drills"]
        assert "drill 2 of 2" in said
        assert [(row["kind"], row["lost_writes"]) for row in view["drills"]] == [("freeze", 0)] * 2
        assert all(row["sessions_touched"] > 0 for row in view["drills"])
        names = [row["name"] for row in view["drills"]]
        takeovers = [
            at.record for at in (await scene.state()).failovers.values() if at.record.drill and not at.record.planned
        ]
        assert {(record.source, record.drill) for record in takeovers} == {(name, "freeze") for name in names}
