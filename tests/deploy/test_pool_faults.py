"""A whole pool under load while one of its parts is killed: what do the clients behind Envoy notice?

Everything is real and runs as its own process; what is judged is the clients' own record of their requests.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.converged import actives
from understudy.deploy.inspect.fronts import read_share_at_home
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.traces import read_trace
from understudy.deploy.load.history_checker import Content, Op, check_history
from understudy.deploy.load.http_load import Load, Shopper
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.proxy.ownership.handover import SLOTS_TOGETHER
from understudy.proxy.ownership.handover_pacing import SPREAD
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import MemberState, Owner, Phase, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness, SiteSpec
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.failovers import failovers_of
from understudy.telemetry.slo.waterfall import path, root_of
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds

MEMBERS = 3
ROOT = Path(__file__).parents[2]
SPEC = PoolSpec(pool="cart", liveness=Liveness(missed_beats=30))
"""Each fault here has another sign than silence, so a process that stands still for a moment is to be no fault."""


@dataclass
class Scene:
    """A pool under load, and what a test does to it."""

    pool: LocalPool
    load: Load
    etcd: EtcdClient
    earlier: frozenset[str] = frozenset()
    """The changes of active before the fault, as the members found together."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    """Each fault's name, and when it began by the clock of the load."""
    noticed: int = 0
    """How many requests have failed that may."""

    @asynccontextmanager
    async def fault(self, name: str, *, may_be_noticed: bool = False, heals: bool = True) -> AsyncIterator[None]:
        """A fault on a pool at rest, which comes to rest again if it heals; clients notice nothing, unless they may."""
        begun = len(self.load.history)
        self.earlier = frozenset((await self.state()).failovers)
        self.faults.append((self.load.clock(), name))
        try:
            yield
            if heals:
                await self.settled()
            await self.progress()
        except Exception as error:
            error.add_note(f"the fault: {name}")
            raise
        failed = [op for op in self.load.history[begun:] if not op.succeeded]
        assert may_be_noticed or not failed, f"{name}: {failed}"
        self.noticed += len(failed)

    def during(self, op: Op) -> str:
        """The fault in which a request was made."""
        return max((fault for fault in self.faults if fault[0] <= op.started), default=(0.0, "before any fault"))[1]

    def judge(self, final: Mapping[str, Content | None]) -> None:
        """Every acknowledged write is there once, no read was stale, and no request failed that may not."""
        result = check_history(self.load.history, final)
        writes = [op for op in self.load.history if op.kind == "write" and op.succeeded]
        lost = [op for op in writes if op.wrote not in (final.get(op.session) or ())]
        told = [f"{self.during(op)}: {op}" for op in lost]
        losses = (result.lost_writes, result.duplicated_writes, result.stale_reads, result.unexplained_items)
        assert losses == (0,) * 4, (self.faults, told)
        assert result.failed_requests == self.noticed, (self.faults, result.failures)

    async def state(self) -> PoolState:
        return (await read_pool(self.etcd, self.pool.layout.pool))[0]

    async def settled(self) -> None:
        """Wait until every slot is owned as the table wants it, in fair shares."""
        await settled(self.pool.layout, self.etcd)

    async def served_without(self, member: str) -> None:
        """Wait until ``member`` owns nothing."""

        async def gone() -> bool:
            owners = (await self.state()).owners
            return len(owners) == 256 and all(at.record.active != member for at in owners.values())

        await until(gone, timeout=30, what=f"{member} owns nothing")

    async def progress(self, requests: int = 40) -> None:
        """Wait until the clients have got so many more good answers."""
        goal = sum(op.succeeded for op in self.load.history) + requests
        await until(lambda: sum(op.succeeded for op in self.load.history) >= goal, 40, "requests are answered")

    async def started_anew(self, member: str, boot: str) -> None:
        """Wait until another process than ``boot`` is the member, and both of its processes run."""

        async def anew() -> bool:
            at = (await self.state()).members.get(member)
            running = [self.pool.processes[name].state == "running" for name in self.pool.member_processes(member)]
            return at is not None and at.record.boot != boot and all(running)

        await until(anew, 30, f"{member} was started anew")

    async def causes_of_leaving(self, member: str) -> set[str]:
        """Why slots of ``member`` went to others, since the fault began."""
        failovers = (await self.state()).failovers
        since = [at.record for key, at in failovers.items() if key not in self.earlier]
        causes = {record.cause for record in since if record.source == member}
        assert causes
        return causes

    async def leader(self) -> str:
        """The control server that leads; '' if none does."""
        at = (await self.state()).leader
        return at.record if at is not None else ""

    async def takeovers_from(self, member: str) -> set[str]:
        """The traces of takeovers from ``member``."""
        failovers = (await self.state()).failovers.values()
        return {at.record.trace for at in failovers if at.record.source == member and not at.record.planned}

    async def reason(self, member: str, text: str) -> bool:
        """Whether a member gives this reason for not being UP."""
        at = (await self.state()).members.get(member)
        return at is not None and at.record.reason == text

    async def all_up(self) -> bool:
        """Whether every member is UP, as its record tells."""
        return {at.record.state for at in (await self.state()).members.values()} == {MemberState.UP}

    async def table(self) -> Table:
        """The slot table in force."""
        at = (await self.state()).table
        assert at is not None
        return at.record

    async def tables_after(self, generation: int) -> list[Table]:
        """The slot tables that were written after this one, in order, up to the one in force."""
        newest, found = (await self.table()).generation, list[Table]()
        key = PoolKeys(self.pool.layout.pool).table
        async with aclosing(self.etcd.watch(KeyRange(key, f"{key}\0"), 1)) as changes:
            while not found or found[-1].generation < newest:
                found += [Table.decode(event.kv.value) for event in (await anext(changes)).events]
        return [table for table in found if table.generation > generation]

    async def actives_after(self, table: Table) -> dict[int, list[str]]:
        """For each slot who was active when ``table`` was written, and then each other active in turn."""
        keys = PoolKeys(self.pool.layout.pool)
        newest = max(at.revision for at in (await self.state()).owners.values())
        began, revision, found = False, 0, dict[int, list[str]]()
        # One range: of two, each comes in its own order, so that the table could come before older owner records.
        async with aclosing(self.etcd.watch([keys.everything], 1)) as changes:
            while revision < newest:
                for event in (await anext(changes)).events:
                    revision = event.kv.mod_revision
                    if event.kv.key == keys.table:
                        began = began or Table.decode(event.kv.value) == table
                    if not event.kv.key.startswith(keys.owners):
                        continue
                    slot, active = int(event.kv.key[-5:]), Owner.decode(event.kv.value).active
                    before = found.get(slot, []) if began else []
                    found[slot] = before if before[-1:] == [active] else [*before, active]
        return found

    async def planned_trace(self, table: Table) -> Mapping[str, object]:
        """What the root says of the planned moves that a table asked for, once they are over."""
        return await self.trace(TraceIds.from_traceparent(table.traceparent).hex, planned=True)

    async def trace(self, trace: str, *, planned: bool) -> Mapping[str, object]:
        """The attributes of a trace's root, once it is there; the trace is whole, and planned or not to the review."""
        controls = [place.http for place in self.pool.layout.controls]

        async def spans() -> list[StoredSpan]:
            found = await read_trace(controls, trace)
            return found if root_of(found) else []

        found: list[StoredSpan] = await until(spans, 30, f"trace {trace} has its root")
        (judged,) = failovers_of(found)
        assert judged.planned is planned
        assert judged.total_ms == sum(span.duration_ns for span in path(found)) / 1e6
        root = root_of(found)
        assert root is not None
        return root.attributes

    def end(self, name: str) -> None:
        """End a process that its supervisor will start again."""
        os.kill(self.pool.processes[name].pid, signal.SIGTERM)


class LocalClients(Load):
    """Clients of the front Envoy of a site. Their new sessions have a key that the member draws in its own slots."""

    async def _create(self, shopper: Shopper) -> None:
        await self._request(shopper, "create", "POST", "/cart")
        assert shopper.key, self.history[-1]

    def share_on(self, members: Collection[str], begun: int) -> float:
        """The share of the answers since then that these members gave."""
        answers = [op.served_by in members for op in self.history[begun:]]
        return sum(answers) / len(answers)

    async def answered(self, requests: int = 40) -> int:
        """Wait for so many more good answers; returns how many requests there were before."""
        begun = len(self.history)
        good = sum(op.succeeded for op in self.history) + requests
        await until(lambda: sum(op.succeeded for op in self.history) >= good, 40, "requests are answered")
        return begun


@asynccontextmanager
async def clients_of_sites(scene: Scene) -> AsyncIterator[dict[str, LocalClients]]:
    """Clients at the front Envoy of each site; at the end they have missed nothing."""
    layout = scene.pool.layout
    fronts = {front.site: front.listen for front in (layout.front, *layout.site_fronts)}
    clients = {site: LocalClients(f"http://{listen}", sessions=8, rate=6.0) for site, listen in fronts.items()}
    try:
        for one in clients.values():
            await one.open_sessions()
            one.start()
        yield clients
        for site, one in clients.items():
            await one.stop()
            result = check_history(one.history, await one.final_contents())
            assert result.failed_requests == 0, (site, result.failures)
            assert (result.lost_writes, result.duplicated_writes, result.stale_reads) == (0, 0, 0), site
    finally:
        for one in clients.values():
            await one.close()


@asynccontextmanager
async def under_load(
    directory: Path, controls: int = 1, members: int = MEMBERS, sites: tuple[str, ...] = ()
) -> AsyncIterator[Scene]:
    """A pool at rest with 60 clients at 45 requests/s; at the end the load stops and is judged."""
    weights = {site: SiteSpec(weight=50) for site in sites}
    settings = LocalSettings(
        directory=directory,
        spec=SPEC.model_copy(update={"sites": weights}),
        members=members,
        sites=sites,
        listen=f"127.0.0.1:{free_port()}",
        controls=controls,
    )
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
        load = Load(pool.layout.front_url, sessions=60, rate=45.0)
        try:
            scene = Scene(pool, load, etcd)
            await scene.settled()
            await load.open_sessions()
            load.start()
            await scene.progress()
            yield scene
            await load.stop()
            scene.judge(await load.final_contents())
        finally:
            await load.close()


async def test_nobody_notices_what_befalls_a_part_of_a_member_or_a_control_server(tmp_path: Path) -> None:
    async with under_load(tmp_path, controls=2) as scene:
        async with scene.fault("the application alone is killed"):
            scene.pool.processes.kill("cart-1/app")
            await scene.served_without("cart-1")
            place = next(place for place in scene.pool.layout.members if place.name == "cart-1")
            fault = f"unfit: the application does not listen at http://{place.app}/healthz"
            assert await scene.causes_of_leaving("cart-1") == {fault}
            await scene.progress()
            await scene.pool.processes.start_again("cart-1/app")

        async with scene.fault("the sidecar alone is killed"):
            scene.pool.processes.kill("cart-2/sidecar")
            await scene.served_without("cart-2")
            for cause in await scene.causes_of_leaving("cart-2"):
                assert cause.startswith("cart-2 lost: "), cause
                assert "connection refused" in cause
            await scene.progress()
            await scene.pool.processes.start_again("cart-2/sidecar")

        async with scene.fault("a member is drained by SIGTERM"):
            boot = (await scene.state()).members["cart-3"].record.boot
            scene.end("cart-3/sidecar")
            await scene.progress(90)
            await scene.started_anew("cart-3", boot)

        async with scene.fault("an operator drains a member and brings it back"):
            place = ("--etcd", ",".join(scene.pool.etcd_endpoints), "--pool", "cart")
            assert await understudy("drain", "cart-2", *place) == 0
            assert all(at.record.active != "cart-2" for at in (await scene.state()).owners.values())
            assert (await scene.state()).members["cart-2"].record.reason == "drained by an operator"
            await scene.progress()
            assert await understudy("undrain", "cart-2", *place) == 0
            await scene.settled()
            assert await understudy("undrain", "cart-2", *place) == 1
            assert await understudy("drain", "cart-9", *place) == 1

        async with scene.fault("the control server that leads is killed"):
            leader = await until(scene.leader, timeout=30, what="a control server leads")
            before = {slot: (at.record.active, at.record.epoch) for slot, at in (await scene.state()).owners.items()}
            scene.pool.processes.kill(leader)

            async def succeeded() -> bool:
                return await scene.leader() not in ("", leader)

            await until(succeeded, timeout=30, what="the other control server leads")
            await scene.progress()
            owners = (await scene.state()).owners
            assert {slot: (at.record.active, at.record.epoch) for slot, at in owners.items()} == before, "no slot moves"


async def test_service_goes_on_while_the_control_server_is_dead_and_resumes_after_etcd_and_envoy(
    tmp_path: Path,
) -> None:
    async with under_load(tmp_path) as scene:
        async with scene.fault("the control server is dead, and a member is killed"):
            scene.pool.processes.kill("control-1")
            await scene.progress()
            scene.pool.processes.kill(*scene.pool.member_processes("cart-1"))
            await scene.progress(90)
            await scene.served_without("cart-1")
            await scene.pool.processes.start_again("control-1")
            table = (await scene.state()).table
            assert table is not None
            await scene.pool.processes.start_again(*scene.pool.member_processes("cart-1"))

        async with scene.fault("etcd is restarted", may_be_noticed=True):
            before_restart = scene.pool.processes["etcd"].restarts
            # Not kill -9: the embedded 3.5.1 may then lose what it acknowledged (etcd #13766, #14370).
            scene.end("etcd")
            await until(lambda: scene.pool.processes["etcd"].restarts > before_restart, 30, "etcd is started again")
            await until(lambda: scene.pool.processes["etcd"].state == "running", 30, "etcd is back")
            await scene.progress()
            await until(scene.all_up, 30, "every member's record says that it is UP again")
            since = [at.record for key, at in (await scene.state()).failovers.items() if key not in scene.earlier]
            assert not [record for record in since if not record.planned], "nobody was taken for dead"

        async with scene.fault("Envoy is killed, and gets its configuration again", may_be_noticed=True):
            pid = await until(lambda: envoy_pid(scene), timeout=30, what="an Envoy runs")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: envoy_pid(scene) not in (0, pid), timeout=30, what="another Envoy runs")


@pytest.mark.nightly
async def test_a_whole_site_goes_offline_and_comes_back_and_nobody_notices(tmp_path: Path) -> None:
    async with under_load(tmp_path, members=4, sites=("east", "west")) as scene:
        place = ("--etcd", ",".join(scene.pool.etcd_endpoints), "--pool", "cart")
        async with scene.fault("a site goes offline and comes back"):
            owned, generation = actives(await scene.state()), (await scene.table()).generation
            assert await understudy("site", "offline", "east", "--until-i-say", *place) == 0
            assert set(actives(await scene.state()).items()) >= {("cart-1", 0), ("cart-3", 0)}
            table = (await scene.tables_after(generation))[0]
            assert table.offline == ("east",)
            gone = await scene.planned_trace(table)
            assert gone[names.CAUSE] == "site east offline"
            assert (gone[names.FROM], gone[names.TO]) == ("cart-1, cart-3", "cart-2, cart-4")
            assert (gone[names.SITE], gone[names.SLOTS]) == ("east", owned["cart-1"] + owned["cart-3"])
            assert await scene.causes_of_leaving("cart-3") == {"site east offline"}

            boot = (await scene.state()).members["cart-1"].record.boot
            scene.end("cart-1/sidecar")
            await scene.started_anew("cart-1", boot)
            await until(lambda: scene.reason("cart-1", "site east is offline"), 30, "who starts on the site stays out")
            assert await understudy("site", "offline", "west", *place) == 1
            await scene.progress()
            generation = (await scene.table()).generation

            assert await understudy("site", "online", "east", *place) == 0
            await scene.settled()
            table = (await scene.tables_after(generation))[0]
            assert table.offline == ()
            assert set(Counter(order[0] for order in table.orders).values()) <= {63, 64, 65}, (
                "all have their shares again"
            )
            back = await scene.planned_trace(table)
            assert (back[names.CAUSE], back[names.SITE]) == ("site east online", "east")
            assert (back[names.FROM], back[names.TO]) == ("cart-2, cart-4", "cart-1, cart-3")
            # A handover is undone if its target does not answer within a second. The next table tries it again.
            assert "site east online" in await scene.causes_of_leaving("cart-4") <= {"site east online", "rebalance"}
            for slot, in_turn in (await scene.actives_after(table)).items():
                assert len(in_turn) <= 2, f"no slot moves twice, as {slot} did: {in_turn}"
            assert await understudy("site", "online", "east", *place) == 1

        async with clients_of_sites(scene) as clients:
            homes = {"east": ("cart-1", "cart-3"), "west": ("cart-2", "cart-4")}
            for site, one in clients.items():
                await one.answered(20)
                assert one.share_on(homes[site], 0) >= 0.95, f"clients of {site} are served there"

            async with scene.fault("a site is lost", heals=False):
                begun = len(clients["east"].history)
                killed = [name for member in homes["east"] for name in scene.pool.member_processes(member)]
                scene.pool.processes.kill(*killed)
                for number in range(4):  # a POST that may be repeated: others may have been under way
                    await Load._create(clients["east"], Shopper(number))
                for name in homes["east"]:
                    await scene.served_without(name)
                    lost = [await scene.trace(trace, planned=False) for trace in await scene.takeovers_from(name)]
                    assert [(one[names.FROM], one[names.SITE]) for one in lost] == [(name, "east")]
                whole = await until(lambda: site_trace(*place), 30, "the loss of the site has a trace")
                spans = (await output("trace", whole, *place))["spans"]
                assert [span["name"] for span in spans if not span["parent_id"]] == [names.SITE_LOSS]
                parts = [span["attributes"] for span in spans if span["name"] == names.MEMBER_LOSS]
                assert sorted(one[names.FROM] for one in parts) == ["cart-1", "cart-3"]
                assert clients["east"].share_on(homes["west"], begun) > 0, "the other site served them"

            await scene.pool.processes.start_again(*killed)
            await scene.settled()
            for site, one in clients.items():
                await until(partial(begins_at_home, one, homes[site]), 30, f"new sessions begin on {site} again")
            assert set(await shares(scene)) == {"east", "west"}, "the control servers know the shares of both"


async def site_trace(*place: str) -> str:
    """The id of the trace of the loss of a site that both takeovers from its members belong to; '' if there is none."""
    rows = (await output("failovers", *place))["failovers"]
    found = Counter(row["site_trace"] for row in rows if row["lost_site"] == "east")
    return next((trace for trace, count in found.items() if trace and count == 2), "")


async def output(*arguments: str) -> Any:
    """What a command answers with ``-o json``."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", *arguments, "-o", "json"]),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    return json.loads((await process.communicate())[0])


async def begins_at_home(clients: LocalClients, home: Collection[str]) -> bool:
    """Whether six new sessions begin at these members, and stay there."""
    served = set()
    for number in range(6):
        shopper = Shopper(number)
        await clients._create(shopper)
        served.add(shopper.served_by)
        await clients._request(shopper, "read", "GET", "/cart")
        served.add(shopper.served_by)
    return served <= set(home)


async def shares(scene: Scene) -> Mapping[str, Any]:
    """The requests at home and away that ``site status`` shows, by site."""
    controls = {place.name: place.http for place in scene.pool.layout.controls}
    return await read_share_at_home(controls, "cart")


async def understudy(*arguments: str) -> int:
    """Run a command as a user would, and return its exit code."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", *arguments]), cwd=ROOT
    )
    return await process.wait()


def envoy_pid(scene: Scene) -> int:
    """The process id of the Envoy below the supervisor ``front-1``; 0 while there is none."""
    supervisor = scene.pool.processes["front-1"].pid
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and (entry / "comm").read_text().strip() == "envoy":
                return int(entry.name)
    return 0


@pytest.mark.nightly
async def test_nobody_notices_that_every_member_is_upgraded_one_after_the_other(tmp_path: Path) -> None:
    async with under_load(tmp_path) as scene:
        place = ("--etcd", ",".join(scene.pool.etcd_endpoints), "--pool", "cart")
        for member in [place.name for place in scene.pool.layout.members]:
            async with scene.fault(f"{member} is upgraded"):
                state = await scene.state()
                before, served = state.members[member].record.boot, served_by(state, member)
                assert await understudy("drain", member, "--for", "10m", *place) == 0
                owners = (await scene.state()).owners
                changed = [owners[slot].record.since for slot in served]
                assert max(changed) - min(changed) > SPREAD / 2, "slots go in no hurry"
                for process in scene.pool.member_processes(member):
                    scene.end(process)
                await scene.started_anew(member, before)
                async with handovers_at_once(scene) as most:
                    assert await understudy("undrain", member, *place) == 0
                    await scene.settled()
                assert set(most.values()) <= set(range(1, SLOTS_TOGETHER + 1)), "slots come back a few at a time"
                assert most
                failovers = (await scene.state()).failovers
                assert all(at.record.planned for key, at in failovers.items() if key not in scene.earlier)


def served_by(state: PoolState, member: str) -> list[int]:
    return [slot for slot, at in state.owners.items() if at.record.active == member]


@asynccontextmanager
async def handovers_at_once(scene: Scene) -> AsyncIterator[dict[str, int]]:
    """By member, how many of its slots were on their way to another one at the same time, at the most."""
    keys = PoolKeys(scene.pool.layout.pool)
    leaving: dict[str, set[str]] = defaultdict(set)
    most: dict[str, int] = {}

    def look(batch: InformerBatch) -> None:
        for event in batch.events:
            for slots in leaving.values():
                slots.discard(event.kv.key)
            owner = Owner.decode(event.kv.value)
            if owner.phase is Phase.HANDOVER:
                leaving[owner.active].add(event.kv.key)
                most[owner.active] = max(most.get(owner.active, 0), len(leaving[owner.active]))

    watching = asyncio.create_task(Informer(scene.etcd, (prefix_range(keys.owners),), look).run())
    try:
        yield most
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
