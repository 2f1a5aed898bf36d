import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.harness.waiting import until
from tests.xds.membership.test_cluster_state import ABC, member, world
from understudy.statesync.pool.records import MemberState
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.publishing.publisher import Publisher
from understudy.xds.server.cache import ResourceCache

CALM = world(*ABC, orders=("abc", "bca", "cab"), owners="abc")


class Stage:
    """A publisher, its cache, and a world that the test changes; ``told`` has what was there after each publication."""

    def __init__(self, merge: float) -> None:
        self.cache = ResourceCache()
        self.now: ClusterState | None = None
        self.told: list[dict[str, str]] = []
        self.publisher = Publisher(self.cache, lambda: self.now, on_publish=self._note, merge=merge)

    def _note(self) -> None:
        self.told.append(self.versions())

    def show(self, now: ClusterState | None) -> None:
        self.now = now
        self.publisher.wake()

    async def settled(self) -> None:
        await asyncio.wait_for(self.publisher.settled(), 10)

    def versions(self) -> dict[str, str]:
        return {kind: self.cache.snapshot().of(kind).version for kind in (CLUSTER, ENDPOINTS, ROUTES)}


@pytest.fixture
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    made = Stage(getattr(request, "param", 0.05))
    running = asyncio.create_task(made.publisher.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def down(seen: ClusterState, name: str) -> ClusterState:
    return replace(seen, states={**seen.states, name: MemberState.DOWN})


async def test_nothing_is_published_before_the_world_is_known(stage):
    stage.show(None)
    await until(lambda: not stage.publisher._wake.is_set())

    assert stage.cache.snapshot().types == {}
    assert not stage.publisher.is_current
    stage.show(CALM)
    await stage.settled()
    assert len(stage.cache.snapshot().of(ENDPOINTS).resources) == 4


@pytest.mark.parametrize("stage", [1.0], indirect=True)  # a burst is over within that on a slow machine as well
async def test_a_burst_costs_one_publication(stage):
    stage.show(CALM)
    await stage.settled()
    for order in ("bac", "bca", "cba", "cab"):
        stage.show(world(*ABC, orders=(order, "bca", "cab")))
        await asyncio.sleep(0)
    await stage.settled()

    assert stage.publisher.publications == 2


async def test_health_is_one_small_update_that_leaves_all_else_alone(stage):
    stage.show(CALM)
    await stage.settled()
    before = stage.versions()
    kept = stage.cache.snapshot().of(ENDPOINTS).resources
    stage.show(down(CALM, "a"))
    await stage.settled()
    after = stage.versions()

    assert stage.publisher.publications == 1
    assert (after[CLUSTER], after[ROUTES]) == (before[CLUSTER], before[ROUTES])
    changed = {name for name, one in stage.cache.snapshot().of(ENDPOINTS).resources.items() if one is not kept[name]}
    assert changed == {"cart/member/a", "cart/any"}


@pytest.mark.parametrize("busy", [replace(CALM, late=True), replace(CALM, answer_ms=1000)], ids=["late", "slow"])
async def test_a_pool_that_becomes_busy_is_a_change_of_its_routes_and_of_nothing_else(stage, busy):
    stage.show(CALM)
    await stage.settled()
    before = stage.versions()
    stage.show(busy)
    await stage.settled()

    after = stage.versions()
    assert [kind for kind in before if before[kind] != after[kind]] == [ROUTES]


async def test_health_does_not_wait_for_what_is_being_merged(stage):
    stage.show(CALM)
    await stage.settled()
    stage.told.clear()
    before = stage.versions()
    stage.show(down(world(*ABC, orders=("bca", "bca", "cab")), "a"))
    await stage.settled()

    health, routes = stage.told
    assert (health[ENDPOINTS] != before[ENDPOINTS], health[ROUTES]) == (True, before[ROUTES])
    assert routes[ROUTES] != before[ROUTES]


async def test_a_world_that_tells_envoy_nothing_new_publishes_nothing(stage):
    stage.show(CALM)
    await stage.settled()
    stage.told.clear()
    stage.show(replace(CALM, beating=frozenset({("a", "one")})))
    stage.show(world(member("a"), *ABC[1:], orders=("abc", "bca", "cab"), owners="abc"))
    await until(lambda: not stage.publisher._wake.is_set())

    assert stage.publisher.is_current
    assert stage.told == []


async def test_a_view_that_cannot_be_built_leaves_the_last_good_one_in_place(stage):
    stage.show(CALM)
    await stage.settled()
    before = stage.versions()
    stage.show(replace(CALM, spec=CALM.spec.model_copy(update={"slots": 7})))
    await until(lambda: stage.publisher.fault)

    assert "7 slots" in stage.publisher.fault
    assert stage.versions() == before
    stage.show(world(*ABC, orders=("bca", "bca", "cab")))
    await stage.settled()
    assert stage.publisher.fault == ""
