"""A trace puts the time where it was: known delays in one part after the other, on real processes, and a wrong clock.

What a test waited by its own clock, the trace must tell within the error that it states; see docs/telemetry.md.
"""

import asyncio
import contextlib
import itertools
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.faults.pool import DEBIAN_ETCD, FaultPool, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.cable import Way, cable_to
from tests.harness.clock import LIBRARY, NO_LIBRARY
from tests.harness.commands import ask
from tests.harness.envoy import running_envoy
from tests.harness.lateness import lateness
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.traces import read_trace
from understudy.proxy.front.bootstrap import bootstrap
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import Intent, Phase, Table
from understudy.statesync.pool.slots import slot_of
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.waterfall import is_measured, path, root_of
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed

HELD = 0.7
"""Seconds for which something is held back: far below what makes a living part be taken for dead."""
AT_THE_GATE = 0.6
"""The same for a call whose slot is on its way."""
PATIENT = """
import understudy.proxy.ownership.handover, understudy.proxy.ownership.step_down, understudy.proxy.peers.peer_client
understudy.proxy.ownership.handover.CONFIRM_TIMEOUT = understudy.proxy.peers.peer_client.CALL_TIMEOUT = 20.0
understudy.proxy.ownership.step_down.SUSPECT_AFTER = 20.0
"""
"""What a sidecar does first that gives up no handover, and no slot, while an answer is held back."""
MINUTES = 300.0
OURS = 0.05
"""Seconds by which the test's own reading of its clock may be late."""

pytestmark = pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)


class Traced:
    """A pool, and what its traces say."""

    def __init__(self, pool: FaultPool) -> None:
        self.pool = pool

    async def boot(self, member: str) -> tuple[str, int]:
        """A member's boot id, and which of its lives this is."""
        record = await self.pool.record(member)
        assert record is not None
        return record.boot, record.life

    async def table(self) -> Table:
        seen = await self.pool.table()
        assert seen is not None
        return seen.table

    async def trace(self, trace: str, *also: str) -> dict[str, list[StoredSpan]]:
        """The spans of a trace by name, once the root and spans of the members ``also`` are there."""

        async def whole() -> list[StoredSpan]:
            spans = await read_trace([self.pool.controls[0].option("--http")], trace)
            there = {span.instance for span in spans}
            told = {span.instance for span in spans if span.name == names.HELD_UP}
            complete = told.issuperset(span.instance for span in spans if span.name == names.FENCE)
            return spans if root_of(spans) is not None and complete and there.issuperset(also) else []

        spans = await until(whole, 60, "the whole trace")
        assert is_measured(root_of(spans)), spans
        by_name: dict[str, list[StoredSpan]] = {}
        for span in spans:
            by_name.setdefault(span.name, []).append(span)
        waited = path(spans)
        root = root_of(spans)
        assert sum(span.duration_ns for span in waited) == root.duration_ns
        assert waited[0].start_ns == root.start_ns
        return by_name | {"path": waited}

    async def spans(self, traceparent: str) -> list[StoredSpan]:
        """All spans of a trace that are there by now."""
        return await read_trace([self.pool.controls[0].option("--http")], traceparent.split("-")[1])

    async def held_up(self, traceparent: str, member: str) -> StoredSpan | None:
        """The call that the member held up longest; a member that paused between two slots has a span for each part."""
        spans = await self.spans(traceparent)
        told = [span for span in spans if span.name == names.HELD_UP and span.instance == member]
        return next((span for span in told if names.SLOT in span.attributes), None)

    async def takeover(self, member: str, boot: tuple[str, int]) -> dict[str, list[StoredSpan]]:
        others = [name for name in self.pool.names if name != member]
        return await self.trace(takeover_seed(self.pool.name, member, *boot).hex, *others)

    async def settled(self) -> None:
        await until(self.pool.at_rest, 90, "the pool is whole again")


@contextlib.asynccontextmanager
async def traced(home: Path, **wanted: object) -> AsyncIterator[Traced]:
    async with fault_pool(takeover="fast", traces=True, home=home, **wanted) as pool:
        yield Traced(pool)


def seconds(spans: list[StoredSpan]) -> dict[str, float]:
    """The lengths of the phases on the path."""
    return {span.name: span.duration_ns / 1e9 for span in spans}


def error(trace: dict[str, list[StoredSpan]]) -> float:
    """By how many seconds the trace says that it may be wrong, and what comes on top of it here."""
    return trace[names.FAILOVER][0].attributes[names.ERROR_MS] / 1000 + OURS


@pytest.mark.skipif(not LIBRARY.exists(), reason=NO_LIBRARY)
async def test_the_time_is_in_the_phase_that_was_held_up_whatever_one_members_clock_says(tmp_path):
    async with traced(tmp_path, clocks=True) as world:
        pool = world.pool
        wrong = pool.members["m3"]
        wrong.kill()
        wrong.clock.shift(MINUTES)
        wrong.start()
        await world.settled()

        # A member that is frozen: the time goes by until somebody finds it dead.
        boot = await world.boot("m1")
        await until(lambda: _felt(world, "m1"), 40, "its standbys feel its pulse")
        froze = time.monotonic()
        pool.members["m1"].signal(signal.SIGSTOP)
        frozen = time.monotonic()
        looked = await _while_not(lambda: _lost(world, "m1"), "the table names it lost")
        found = time.monotonic()
        # On a busy machine the probe may be the first to go without an answer.
        assert re.search("misses its pulse|silent at", (await world.table()).lost["m1"].cause)
        trace = await world.takeover("m1", boot)
        pool.members["m1"].signal(signal.SIGCONT)
        lengths = seconds(trace["path"])
        assert looked - frozen - error(trace) <= lengths["detect"] + lengths["decide"] <= found - froze + error(trace)
        assert lengths["detect"] > lengths["decide"]
        apart = [span.start_ns - trace[names.FAILOVER][0].start_ns for span in trace["claim"] if span.instance == "m3"]
        assert all(ns / 1e9 > MINUTES / 2 for ns in apart), "the clock was really wrong"
        assert apart
        await world.settled()

        # An etcd whose answers are late: the time goes by while claims wait for theirs.
        boot = await world.boot("m1")
        cables = [cable for name in ("m2", "m3") for cable in pool.members[name].to_etcd]
        for cable in cables:
            cable.cut(Way.ANSWERS)
        struck = time.monotonic()
        pool.members["m1"].kill()
        dead = time.monotonic()
        await until(lambda: _lost(world, "m1"), 40, "the table names it lost")
        await asyncio.sleep(max(HELD, 2 * (time.monotonic() - struck)))
        held = time.monotonic() - dead
        for cable in cables:
            cable.mend()
        trace = await world.takeover("m1", boot)
        over = time.monotonic() - struck
        lengths = seconds(trace["path"])
        assert max(lengths, key=lengths.get) == "claim"
        assert held - error(trace) <= sum(lengths.values()) <= over + error(trace)
        assert lengths["detect"] + lengths["decide"] + lengths["claim"] >= held - error(trace)


def _without_pings(config):
    """An Envoy that is late, and not one that dials anew because its connection was cut for three seconds."""
    for cluster in config["static_resources"]["clusters"]:
        for options in cluster.get("typed_extension_protocol_options", {}).values():
            options["explicit_http_config"]["http2_protocol_options"].pop("connection_keepalive", None)


async def test_an_envoy_that_is_late_with_its_word_holds_up_a_handover_and_no_takeover(tmp_path):
    async with traced(tmp_path, before=PATIENT) as world:
        pool = world.pool
        async with cable_to(pool.controls[0].option("--grpc")) as cable:
            listen = f"127.0.0.1:{free_port()}"
            config = bootstrap(node_id="front-1", pool=pool.name, listen=listen, xds_addresses=[cable.address])
            config.pop("admin", None)
            _without_pings(config)
            async with running_envoy(config, tmp_path / "envoy"):
                await until(lambda: _synced(world), 40, "Envoy has its configuration")

                boot = await world.boot("m1")
                cable.cut(Way.REQUESTS)
                pool.members["m1"].kill()
                dead = time.monotonic()
                await until(lambda: pool.owns_nothing("m1"), 40, "its slots are others'")
                await asyncio.sleep(HELD)
                held = time.monotonic() - dead
                cable.mend()
                trace = await world.takeover("m1", boot)
                (root,), (ack,) = trace[names.FAILOVER], trace[names.ACK]
                assert names.ACK not in seconds(trace["path"])
                assert ack.end_ns - root.start_ns >= (held - error(trace)) * 1e9
                assert root.end_ns < ack.end_ns
                await world.settled()

                before = await world.table()
                cable.cut(Way.REQUESTS)
                etcd_to_target = pool.members["m3"].to_etcd
                for held_back in etcd_to_target:
                    held_back.cut(Way.ANSWERS)
                asked = time.monotonic()
                await pool.client.put(pool.keys.intent("m2"), Intent("m2", 0.0, time.time()).encode())
                slot, traceparent = await until(lambda: _on_its_way(world, "m2", "m3"), 40, "a slot is on its way")
                called = asyncio.Event()
                with lateness() as late:
                    caller = asyncio.create_task(_waited(pool, "m2", slot, called))
                    await called.wait()
                    await asyncio.sleep(AT_THE_GATE)
                    mended = time.time_ns()
                    for held_back in etcd_to_target:
                        held_back.mend()
                    waited = await caller
                after = await until(lambda: _emptied(world, before, "m2"), 40, "its slots have moved")
                await until(lambda: _has_read_the_owners(world), 40, "the control server knows it")
                moved = time.monotonic()
                await asyncio.sleep(max(HELD, moved - asked))
                held = time.monotonic() - moved
                cable.mend()
                trace = await world.trace(after.traceparent.split("-")[1])
                lengths = seconds(trace["path"])
                assert lengths["ack"] >= held - OURS
                assert lengths["ack"] > lengths["move"] / 2

                # Who called meanwhile waited for the target's word, at the gate, for as long as the trace says.
                assert waited >= AT_THE_GATE
                told = await until(lambda: world.held_up(traceparent, "m2"), 60, "the call is in the trace")
                assert (told.attributes[names.SLOT], told.attributes[names.CALLS]) == (slot, 1)
                wrong = told.attributes[names.ERROR_MS] / 1000 + OURS
                assert (mended - told.start_ns) / 1e9 - wrong <= told.duration_ns / 1e9 <= waited + wrong
                assert AT_THE_GATE - wrong - late.worst <= told.duration_ns / 1e9
                its = [one for one in await world.spans(traceparent) if one.attributes.get(names.SLOT) == slot]
                of_slot = [one for one in its if one.name in (names.FLUSH, names.FENCE, names.CONFIRM)]
                times = {one.name: one.duration_ns for one in of_slot}
                assert max(times, key=times.get) == names.CONFIRM
                assert times[names.CONFIRM] / 1e9 >= AT_THE_GATE - OURS


async def _felt(world: Traced, member: str) -> bool:
    others = [name for name in world.pool.names if name != member]
    return all([(await world.pool.status(name))["pulses"].get(member) for name in others])


async def _while_not(condition: Callable[[], Awaitable[bool]], what: str) -> float:
    """Wait for ``condition``; returns when (monotonic) the last look began that still found it false."""
    looks = [time.monotonic()]

    async def look() -> bool:
        looks.append(time.monotonic())
        return await condition()

    await until(look, 40, what)
    return looks[-2]


async def _lost(world: Traced, member: str) -> bool:
    return member in (await world.table()).lost


async def _on_its_way(world: Traced, member: str, target: str) -> tuple[int, str] | None:
    """A slot that the member is handing over to the target, and the traceparent of its move, if there is one."""
    for slot, one in (await world.pool.owners()).items():
        if one.active == member and one.phase is Phase.HANDOVER and one.to == target:
            return slot, one.traceparent
    return None


async def _waited(pool: FaultPool, member: str, slot: int, called: asyncio.Event) -> float:
    """For how long, in seconds, a write in the slot waits for its answer at a member; reads go on for a while."""
    key = next(key for key in map(str, itertools.count()) if slot_of(key, pool.spec.slots) == slot)
    began = time.monotonic()
    called.set()
    async with pool.http.put(f"http://{pool.members[member].api}/v1/sessions/{key}", data=b"v") as answer:
        assert answer.status == 201, "it was made where the slot went"
        return time.monotonic() - began


async def _emptied(world: Traced, before: Table, member: str) -> Table | None:
    """The table by which the member's slots went, once they have."""
    table = await world.table()
    owners = await world.pool.owners()
    gone = table.generation > before.generation and all(owner.active != member for owner in owners.values())
    return table if gone and table.traceparent else None


async def _has_read_the_owners(world: Traced) -> bool:
    page = await world.pool.client.range(prefix_range(world.pool.keys.owners))
    read = (await ask(world.pool.controls[0].option("--http"), "/v1/status"))["etcd"]["revision"]
    return read >= max(kv.mod_revision for kv in page.kvs)


async def _synced(world: Traced) -> bool:
    rows = await ask(world.pool.controls[0].option("--http"), "/v1/xds")
    return bool(rows) and {row["state"] for row in rows} == {"SYNCED"}
