"""What members tell of correctness: writes that the fence refused, and audits of slots that were taken over."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.proxy.events.split_brain_audit import SplitBrainAudit, written_late
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.sessions.digests import DigestEntry, Reading
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.telemetry.tracing.setup import start_telemetry

A_FIRST = (("a", "b"),)
IDS = takeover_seed("cart", "a", "b1")


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


def told(sidecar: Sidecar) -> list[tuple[str, Mapping[str, Any]]]:
    """The spans that a sidecar records from now on, by name, with their attributes."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    telemetry = sidecar.recorder.telemetry
    telemetry.on_span = lambda name, _ids, _seconds, attributes: found.append((name, attributes))
    return found


@pytest.mark.parametrize(
    ("epoch", "revision", "late"),
    [(5, 120, 0), (4, 120, 1), (4, 90, 0), (6, 120, 0)],
    ids=["the owner's own", "a former owner's, afterwards", "a former owner's, in its time", "the next owner's"],
)
def test_only_a_former_owners_later_write_has_two_writers(epoch, revision, late):
    reading = Reading(
        130, {"k": DigestEntry(revision, 0), "l": DigestEntry(110, 0)}, frozenset(), 0, {"k": epoch, "l": 5}
    )
    assert written_late(reading, 5, 100) == late


def test_an_audit_is_told_when_the_last_of_its_slots_is_checked_or_gone():
    found = []
    telemetry = start_telemetry(names.SERVICE_SIDECAR, "b")
    telemetry.on_span = lambda name, ids, _seconds, attributes: found.append((name, ids.hex, dict(attributes)))
    writers = SplitBrainAudit(telemetry, "cart", "b")
    writers.claimed(IDS, {1: 5, 2: 5, 3: 5}, 100)
    clean = Reading(130, {"k": DigestEntry(120, 0)}, frozenset(), 0, {"k": 5})
    owner = Owner("b", "b1", 5)
    assert writers.next_audit() == 1
    writers.checked(clean, 1, owner, 100)
    writers.checked(Reading(130, {"k": DigestEntry(120, 0)}, frozenset(), 0, {"k": 4}), 2, owner, 125)
    assert not found
    writers.left(3)
    expected = {names.POOL: "cart", names.MEMBER: "b", names.SLOTS: 2, names.WRITES_BREACHED: 1}
    assert found == [(names.AUDIT, IDS.hex, expected)]
    assert (writers.next_audit(), writers.breaches) == (None, 1)
    telemetry.shutdown()


async def test_slots_that_were_taken_over_are_audited_and_a_second_writer_is_found(pool: SidecarPool) -> None:
    await pool.start("a")
    async with sidecars_here(pool, "b", scrub_interval=0.02) as here:
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "by a")
        session = pool.keys.session(slot_of("k", 16), "k")
        by_a = await pool.client.get(session)
        assert by_a is not None
        spans = told(here["b"])
        pool.kill("a")
        assert (await pool.call("b", "GET", "/k"))[0] == 200

        def audited() -> Mapping[str, Any] | None:
            return next((attributes for name, attributes in spans if name == names.AUDIT), None)

        found = await until(audited, what="the audit is told")
        assert (found[names.SLOTS], found[names.WRITES_BREACHED]) == (16, 0)

        await pool.client.put(session, by_a.value)  # as if a's write had come through the fence
        await until(lambda: here["b"].recorder.audit.breaches, what="the second writer is found")
        async with pool.http.get(f"http://{pool.members['b'].peer}/metrics") as answer:
            metrics = await answer.text()
        assert "understudy_fence_breaches_total 0.0" not in metrics


async def test_writes_that_the_fence_refused_are_told_in_the_trace_of_the_change(pool: SidecarPool) -> None:
    async with sidecars_here(pool, "a", "b") as here:
        await pool.settle(*A_FIRST)
        other = next(key for key in map(str, range(1000)) if slot_of(key, 16) == slot_of("k", 16))
        for key in ("k", other):  # a new session would be refused if the machine is slow
            assert (await pool.call("a", "PUT", f"/{key}", "first"))[0] == 201
        committer, gate = here["a"].committer, asyncio.Event()
        send = committer._send_until_known

        async def late(batch):
            await gate.wait()
            return await send(batch)

        committer._send_until_known = late
        spans = told(here["a"])
        waiting = asyncio.create_task(pool.call("a", "PUT", "/k", "too late"))
        await until(lambda: committer.pressure(0).writes == 1, what="the write is on its way")
        assert (await pool.call("a", "PUT", f"/{other}", "lost", Understudy_Durability="async"))[0] == 200
        owner = (await pool.owners())[slot_of("k", 16)]
        boot = here["b"].pool.identity.boot
        taken = replace(owner, active="b", boot=boot, epoch=owner.epoch + 1, traceparent=IDS.traceparent)
        await pool.client.put(pool.keys.owner(slot_of("k", 16)), taken.encode())
        gate.set()

        def fenced() -> Mapping[str, Any] | None:
            return next((attributes for name, attributes in spans if name == names.FENCED), None)

        found = await until(fenced, what="what was refused is told")
        assert (found[names.WRITES_FENCED], found[names.WRITES_LOST]) == (1, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
