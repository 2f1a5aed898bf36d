"""What members tell of correctness: writes that the fence refused, and audits of slots that were taken over."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.proxy.events.split_brain_audit import SplitBrainAudit, written_late
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.digests import DigestEntry, Reading, Written
from understudy.statesync.sessions.session import Session
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.telemetry.tracing.setup import start_telemetry

A_FIRST = (("a", "b"),)
IDS = takeover_seed("cart", "a", "b1")


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, f"slots: 16\n{PATIENT}\ndurability: replicas") as pool:
        yield pool


def told(sidecar: Sidecar) -> list[tuple[str, Mapping[str, Any]]]:
    """The spans that a sidecar records from now on, by name, with their attributes."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    telemetry = sidecar.recorder.telemetry
    telemetry.on_span = lambda name, _ids, _seconds, attributes: found.append((name, attributes))
    return found


def reading(**sessions: tuple[int, int, int]) -> Reading:
    """Sessions as etcd has them: the index of the version, the epoch, and the revision."""
    entries = {key: DigestEntry(version_of(epoch, index), 0) for key, (index, epoch, _) in sessions.items()}
    written = {key: Written(revision, epoch) for key, (_, epoch, revision) in sessions.items()}
    return Reading(130, entries, frozenset(), 0, written)


@pytest.mark.parametrize(
    ("session", "late"),
    [
        ((1, 5, 120), 0),
        ((8, 4, 120), 1),
        ((7, 4, 120), 0),
        ((8, 4, 90), 0),
        ((1, 6, 120), 0),
    ],
    ids=[
        "the owner's own",
        "a former owner's, afterwards",
        "a former owner's, saved by its successor, who had it",
        "a former owner's, in its time",
        "the next owner's",
    ],
)
def test_only_a_former_owners_later_write_has_two_writers(session, late):
    history = (version_of(4, 7), version_of(5, 3))
    assert written_late(reading(k=session, other=(2, 5, 110)), 5, 100, history) == late


def test_who_took_a_slot_from_etcd_saves_nothing_that_is_older():
    assert written_late(reading(k=(1, 4, 120)), 5, 100, (version_of(5, 0),)) == 1


def test_an_audit_is_told_when_the_last_of_its_slots_is_checked_or_gone():
    found = []
    telemetry = start_telemetry(names.SERVICE_SIDECAR, "b")
    telemetry.on_span = lambda name, ids, _seconds, attributes: found.append((name, ids.hex, dict(attributes)))
    writers = SplitBrainAudit(telemetry, "cart", "b")
    writers.claimed(IDS, {1: 5, 2: 5, 3: 5}, 100)
    owner, history = Owner("b", "b1", 5), (version_of(4, 7), version_of(5, 3))
    assert writers.next_audit() == 1
    writers.checked(reading(k=(2, 5, 120)), 1, owner, 100, history)
    writers.checked(reading(k=(8, 4, 120)), 2, owner, 125, history)
    assert not found
    writers.left(3)
    expected = {names.POOL: "cart", names.MEMBER: "b", names.SLOTS: 2, names.WRITES_BREACHED: 1}
    assert found == [(names.AUDIT, IDS.hex, expected)]
    assert (writers.next_audit(), writers.breaches) == (None, 1)
    telemetry.shutdown()


def test_an_owner_that_has_begun_a_slot_anew_answers_for_its_own_epoch_only():
    telemetry = start_telemetry(names.SERVICE_SIDECAR, "b")
    writers = SplitBrainAudit(telemetry, "cart", "b")
    writers.claimed(IDS, {1: 5}, 100)
    inherited = reading(k=(7, 4, 120))  # it saved that after its claim, before it read the slot again
    writers.checked(inherited, 1, Owner("b", "b1", 6), 125, (version_of(6, 0),))
    assert writers.breaches == 0
    telemetry.shutdown()


async def test_slots_that_were_taken_over_are_audited_and_a_second_writer_is_found(pool: SidecarPool) -> None:
    await pool.start("a")
    async with sidecars_here(pool, "b", scrub_interval=0.02) as here:
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "by a")
        session = pool.keys.session(slot_of("k", 16), "k")
        by_a = await until(lambda: pool.client.get(session), what="etcd has the write, which may be answered before")
        spans = told(here["b"])
        pool.kill("a")
        assert (await pool.call("b", "GET", "/k"))[0] == 200

        def audited() -> Mapping[str, Any] | None:
            return next((attributes for name, attributes in spans if name == names.AUDIT), None)

        found = await until(audited, what="the audit is told")
        assert (found[names.SLOTS], found[names.WRITES_BREACHED]) == (16, 0)

        later = replace(Session.decode(by_a.value, 0), version=version_of(1, 2))
        await pool.client.put(session, later.encode())  # as if another write of a had come through the fence
        await until(lambda: here["b"].recorder.audit.breaches, what="the second writer is found")
        async with pool.http.get(f"http://{pool.members['b'].peer}/metrics") as answer:
            metrics = await answer.text()
        assert "understudy_fence_breaches_total 0.0" not in metrics


async def test_saves_that_the_fence_refused_are_told_in_the_trace_of_the_change(pool: SidecarPool) -> None:
    async with sidecars_here(pool, "a", "b") as here:
        await pool.settle(*A_FIRST)
        assert (await pool.call("a", "PUT", "/k", "first"))[0] == 201
        committer, gate = here["a"].committer, asyncio.Event()
        send = committer._send_until_known

        async def late(batch):
            await gate.wait()
            return await send(batch)

        committer._send_until_known = late
        spans = told(here["a"])
        waiting = asyncio.create_task(pool.call("a", "PUT", "/k", "too late", Understudy_Durability="sync"))
        await until(lambda: committer.pressure(0).writes == 1, what="the save is on its way")
        owner = (await pool.owners())[slot_of("k", 16)]
        boot = here["b"].pool.identity.boot
        taken = dataclasses.replace(owner, active="b", boot=boot, epoch=owner.epoch + 1, traceparent=IDS.traceparent)
        await pool.client.put(pool.keys.owner(slot_of("k", 16)), taken.encode())
        gate.set()

        def fenced() -> Mapping[str, Any] | None:
            return next((attributes for name, attributes in spans if name == names.FENCED), None)

        found = await until(fenced, what="what was refused is told")
        assert (found[names.WRITES_FENCED], found[names.WRITES_LOST]) == (1, 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
