"""Who takes the slots of a member that alone is cut off from etcd, and that it keeps its word about them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.proxy.ownership import slot_reconciler
from understudy.proxy.ownership.step_down import receivers
from understudy.proxy.peers import peer_client
from understudy.statesync.pool.ownership import View
from understudy.statesync.pool.records import Owner, Table
from understudy.statesync.pool.state import At

A_FIRST = (("a", "b"),)


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, f"slots: 16\ntakeover: lease\n{PATIENT}") as pool:
        yield pool


def view(*orders: tuple[str, ...]) -> View:
    owners = {slot: At(Owner(order[0], "1", 1), 5) for slot, order in enumerate(orders)}
    return View("a", "1", Table(1, orders), 4, owners, {})


def test_a_slot_goes_to_the_next_in_line_that_reaches_etcd() -> None:
    pool = view(("a", "b", "c"), ("a", "c", "b"), ("a", "b"))
    assert receivers(pool, [0, 1, 2], ["b", "c"]) == {"b": [0, 2], "c": [1]}
    assert receivers(pool, [0, 1], ["c"]) == {"c": [0, 1]}


def test_a_slot_none_of_whose_heirs_reaches_etcd_goes_to_whoever_gets_fewest() -> None:
    pool = view(("a", "b"), ("a", "b"), ("a", "b"), ("a", "c"))
    assert receivers(pool, [0, 1, 2, 3], ["c", "d"]) == {"c": [0, 2, 3], "d": [1]}
    assert receivers(pool, [0], []) == {}


async def test_slots_that_were_given_up_and_not_taken_are_served_again_only_under_a_new_record(
    pool: SidecarPool,
) -> None:
    async with sidecars_here(pool, "a", "b") as here:
        await pool.settle(*A_FIRST)
        await until(lambda: len(here["a"].owned.open_slots()) == pool.spec.slots, what="a knows what it owns")
        await pool.call("a", "PUT", "/k", "kept")
        before = await pool.owners()

        fences = here["a"].reconciler.give_up()

        assert len(fences) == pool.spec.slots
        assert len(here["a"].owned) == 0

        async def answer() -> tuple[int, bytes, str | None] | None:
            status, headers, body = await pool.call("a", "GET", "/k")
            return None if status == 503 else (status, body, headers.get("understudy-served-by"))

        assert await until(answer, what="the call is answered") == (200, b"kept", "a")
        await until(lambda: len(here["a"].owned.open_slots()) == pool.spec.slots, what="all are served")
        after = await pool.owners()
        assert {slot: owner.epoch - 1 for slot, owner in after.items()} == {s: o.epoch for s, o in before.items()}


async def test_who_is_given_slots_takes_them_only_under_the_records_that_they_were_given_by(
    pool: SidecarPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_client, "CALL_TIMEOUT", 20.0)
    monkeypatch.setattr(slot_reconciler, "ORPHANED_AFTER", 60.0)
    async with sidecars_here(pool, "a", "b") as here:
        await pool.settle(*A_FIRST)
        a = here["a"]
        await until(lambda: len(a.owned.open_slots()) == pool.spec.slots, what="a knows what it owns")
        sets = here["b"].pool.state.sync_sets
        await until(
            lambda: sum(len(at.record.members) == 2 for at in sets.values()) == pool.spec.slots,
            what="b is in all sync sets: a claim loses against a change of the set",
        )
        peer = a.pool.peer("b")
        assert peer is not None
        stale = {slot: at.revision for slot, at in a.pool.view().owners.items()}
        stale |= {0: stale[0] - 1}
        a.reconciler.give_up()
        await a.client.take_from(peer, "a", a.pool.identity.boot, stale)

        owners = await pool.owners()
        assert [slot for slot, owner in owners.items() if owner.active == "a"] == [0]
        stale |= {0: stale[0] + 1}
        again = await a.client.take_from(peer, "a", a.pool.identity.boot, stale)
        owners = await pool.owners()
        assert {owner.active for owner in owners.values()} == {"b"}, "who gives slots away again is told who has them"
        assert {slot: at.record for slot, at in again.owners.items()} == owners
        await until(
            lambda: a.registration.record.life == 1,
            what="the next takeover from it is another one, with its own trace",
        )
