"""Which front Envoys of several pools a control server takes: only those whose pools it knows all."""

import asyncio

import pytest

from understudy.statesync.pool.front_node import cluster_of_front
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.control.served_fronts import ServedFronts
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.server.ads import StreamSettings
from understudy.xds.server.ads_router import NotServed
from understudy.xds.server.cache import AckEvent
from understudy.xds.server.snapshot import Snapshot
from understudy.xds.server.wire import Node, Request


class FakePools:
    """The pools of a process, as a test wants them."""

    def __init__(
        self, *names: str, read: bool = True, starting: tuple[str, ...] = (), waited_long: bool = False
    ) -> None:
        self._names, self._read, self._starting, self._waited_long = set(names), read, starting, waited_long

    def names(self) -> set[str]:
        return self._names

    def were_read(self) -> bool:
        return self._read

    def waited_long(self) -> bool:
        return self._waited_long

    def starting(self) -> tuple[str, ...]:
        return self._starting

    async def confirm_fresh(self, pool: str) -> None: ...

    def acknowledged(self, pool: str, event: AckEvent) -> None: ...

    def wake(self, pool: str) -> None: ...

    def proven(self, pool: str, spec: PoolSpec) -> None: ...

    def held(self, pool: str) -> None: ...


async def refusal(
    pools: FakePools, *wanted: str, every_pool: bool = True, published: tuple[str, ...] = (), **request: object
) -> tuple[bool, str] | None:
    """Whether a stream may come again, and why it is refused; None if it is served."""
    fronts = ServedFronts(pools, StreamSettings(), every_pool=every_pool, domain="")
    running = asyncio.create_task(fronts.run())
    await asyncio.sleep(0)
    try:
        for pool in published:
            fronts.published(RoutingView(PoolSpec(pool=pool), {}, []), Snapshot())
        first = Request("", Node("front-1", cluster_of_front(wanted)), **request)  # type: ignore[arg-type]
        fronts.for_stream(wanted, first)
    except NotServed as refused:
        return refused.later, str(refused)
    else:
        return None
    finally:
        running.cancel()


@pytest.mark.parametrize(
    ("pools", "wanted", "later", "said"),
    [
        (FakePools(read=False), (), True, "has not read yet which pools there are"),
        (FakePools("a", read=False), ("a", "b"), True, "has not read yet which pools there are"),
        (FakePools("a"), ("a", "b"), False, "does not serve b"),
        (FakePools("a", "b", starting=("b",)), ("a", "b"), True, "pool b starts"),
    ],
)
async def test_an_envoy_of_pools_that_are_not_known_is_refused(pools: FakePools, wanted, later: bool, said: str):
    found = await refusal(pools, *wanted)
    assert found is not None
    assert (found[0], said in found[1]) == (later, True)
    assert await refusal(FakePools("a", "b"), *wanted) is None


async def test_an_etcd_cluster_that_is_not_read_holds_up_only_envoys_that_may_have_routes_of_its_pools():
    pools = FakePools("a", read=False, waited_long=True)
    assert await refusal(pools) is None
    assert await refusal(pools, "a") is None
    for held in ({"version": "1"}, {"held": {"b/any": "1"}}):
        found = await refusal(pools, **held)
        assert found is not None
        assert found[0], "it may come again"
    assert await refusal(FakePools("a", read=False), "a") is None


async def test_all_pools_are_served_only_by_a_server_of_all_pools():
    found = await refusal(FakePools("a"), every_pool=False)
    assert found is not None
    assert (found[0], "--all-pools" in found[1]) == (False, True)


@pytest.mark.parametrize("request_of", [{"held": {"b/any": "1"}}, {"version": "1"}])
async def test_an_envoy_that_would_lose_routes_of_an_unknown_pool_is_refused(request_of: dict[str, object]):
    found = await refusal(FakePools("a", "b"), published=("a",), **request_of)
    assert found is not None
    assert (found[0], "pool b has not been published" in found[1]) == (True, True)
    assert await refusal(FakePools("a", "b"), published=("a", "b"), **request_of) is None
    assert await refusal(FakePools("a", "b"), published=("a",)) is None
    assert await refusal(FakePools("a", "b"), published=("a",), held={"a/any": "1"}) is None
