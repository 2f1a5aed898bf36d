"""What a real Envoy reports to the control server by OpenTelemetry, configured over xDS and nothing else."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.harness.front import Front, PoolCache, running_front
from tests.harness.http_app import http_app
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Retries, Timeouts
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.receiver.front_tally import FrontTally, Kind
from understudy.telemetry.receiver.otlp_grpc import add_otlp_receiver
from understudy.telemetry.receiver.otlp_service import OtlpService
from understudy.telemetry.slo.requests import requests_of
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing import names
from understudy.xds.envoy.listener import listener_name
from understudy.xds.envoy.resources import build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.publishing.listener_groups import ListenerGroups
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.types import LISTENER

KEY = "session-1"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class ReportingPool:
    """An Envoy that reports to a control server, and how the member behind it answers."""

    store: SpanStore
    tally: FrontTally
    front: Front | None = None
    member: int = 0
    nowhere: int = field(default_factory=free_port)
    status: int = 200
    hang: float = 0.0
    cut: bool = False
    seen: list[str] = field(default_factory=list)

    async def get(self, method: str = "GET", **headers: str) -> int:
        assert self.front is not None
        return (await self.front.request(method, "/secret-path?secret=query", **headers)).status

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What the member does."""
        self.seen.append(request.headers.get("traceparent", ""))
        await asyncio.sleep(self.hang)
        if self.cut and request.transport is not None:
            begun = web.StreamResponse()
            await begun.prepare(request)
            await begun.write(b"half of it")
            request.transport.close()
            return begun
        return web.Response(status=self.status)

    async def reports(self, count: int, condition: Callable[[StoredLog], bool]) -> list[StoredLog]:
        """The reports that fulfil ``condition``, once there are so many: the start may leave some as well."""

        async def there() -> list[StoredLog] | None:
            found = [one for one in await self.store.logs(0, time.time_ns() + 10**10) if condition(one)]
            return found if len(found) >= count else None

        return await until(there, 40, f"{count} reports")

    async def limit(self, seconds: int) -> None:
        """Have Envoy give requests this long."""
        assert self.front is not None
        assert isinstance(self.front.cache, PoolCache)
        await self.front.cache.publish(view_of(self.member, self.nowhere, request_seconds=seconds))
        await self.front.cache.acknowledged(40)


def view_of(member: int, nowhere: int, *, request_seconds: int = 60) -> RoutingView:
    """A member at this port, two where nobody listens. Envoy asks nobody else because the answer takes long."""
    dead = "127.0.0.1", nowhere
    well = Endpoint("127.0.0.1", member)
    members = {"cart-1": Endpoint(*dead), "cart-2": well, "cart-3.east": Endpoint(*dead, check=dead)}
    timeouts = Timeouts(connect_ms=10_000, request_seconds=request_seconds)
    spec = PoolSpec(pool="cart", timeouts=timeouts, retries=Retries(hedge_ms=20_000))
    return RoutingView(spec, members, [("cart-1", "cart-2")] * 256)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ReportingPool]:
    """A control server, an Envoy, a member that is dead and its standby, which is well."""
    made = ReportingPool(SpanStore(tmp_path / "traces.db"), FrontTally(time.monotonic))
    otlp = OtlpService(made.store, time.monotonic, fronts=made.tally)
    cache = PoolCache("cart")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(made.store.aclose)
        made.member = await stack.enter_async_context(http_app(made.answer))
        await cache.publish(view_of(made.member, made.nowhere))
        cache.ready()
        receives = [lambda server: add_otlp_receiver(server, otlp)]
        running = running_front(tmp_path, cache, trace_requests=True, services=receives)
        made.front = await stack.enter_async_context(running)
        await made.front.answers("200")
        made.seen.clear()
        yield made


async def test_requests_that_failed_or_were_repeated_are_reported_and_others_are_not(pool: ReportingPool):
    assert await pool.get(**{"x-session-id": KEY}) == 200
    pool.status = 503
    assert await pool.get(**{"x-session-id": KEY}) == 503
    reports = await pool.reports(2, lambda one: "/order/" in one.attributes[names.CLUSTER])
    repeated, failed = sorted(reports, key=lambda one: one.attributes[names.HTTP_STATUS])
    assert repeated.attributes[names.HTTP_STATUS] == "200"
    assert repeated.attributes[names.ATTEMPTS] == "2"
    assert repeated.attributes[names.CLUSTER] == "cart/order/cart-1+cart-2"
    assert (failed.attributes[names.POOL], failed.attributes[names.HTTP_METHOD]) == ("cart", "GET")
    assert (failed.resource[names.SERVICE_NAME], failed.resource["node_name"]) == (names.SERVICE_ENVOY, "front-1")
    assert set(failed.attributes) <= {*names.ATTRIBUTES, *names.CONVENTIONS}
    told = [(one.node, one.first, one.failed, one.retried) for one in requests_of([failed, repeated])]
    assert told == [("front-1", "cart-1", True, False), ("front-1", "cart-1", False, True)]
    assert "secret" not in str(reports)
    assert KEY not in str(reports)
    assert pool.tally.recent()["front-1", "cart-1", Kind.ELSEWHERE] == 1


async def test_a_member_that_takes_requests_and_never_answers_is_counted(pool: ReportingPool):
    await pool.limit(1)
    pool.hang = 30.0
    assert await pool.get("POST", **{"x-session-id": KEY}) == 504
    told = ("front-1", f"127.0.0.1:{pool.member}", Kind.TIMEOUTS)
    await until(lambda: pool.tally.recent().get(told) == 1, 40, "the member is named")


async def test_an_answer_that_was_cut_short_is_reported_although_its_status_is_good(pool: ReportingPool):
    pool.cut = True
    with pytest.raises(aiohttp.ClientPayloadError):
        await pool.get(**{"x-session-id": KEY})
    (cut,) = await pool.reports(1, lambda one: one.attributes[names.FLAGS] != "-")
    assert cut.attributes[names.HTTP_STATUS] == "200"
    assert [one.failed for one in requests_of([cut])] == [True]


async def test_envoy_counts_all_requests_and_tells_of_idle_periods_as_well(pool: ReportingPool):
    for _ in range(5):
        await pool.get(**{"x-session-id": KEY})
    for _ in range(7):
        await pool.get()

    async def counted() -> list[Period] | None:
        found = await pool.store.counts(0, time.time_ns() + 10**10)
        return found if sum(one.requests for one in found) >= 5 and not found[-1].requests else None

    periods = await until(counted, 60, "counts of the requests, and of a period without any")
    assert {one.node for one in periods} == {"front-1"}
    assert all(before.end_ns <= after.end_ns for before, after in itertools.pairwise(periods))
    assert all(0 < one.end_ns - one.start_ns < 60 * 10**9 for one in periods)
    counts = pool.tally.recent()
    requests, keyless = (counts["front-1", "", kind] for kind in (Kind.REQUESTS, Kind.KEYLESS))
    assert requests == sum(one.requests for one in periods)
    assert keyless == requests - 5
    assert ("front-1", "cart-3.east") in pool.tally.unreachable(lasting=0)


async def test_envoy_goes_on_with_a_trace_that_its_caller_samples_and_begins_none(pool: ReportingPool):
    not_sampled, sampled = f"00-{TRACE[::-1]}-00f067aa0ba902b7-00", f"00-{TRACE}-00f067aa0ba902b7-01"
    for header in (not_sampled, sampled):
        await pool.get(**{"x-session-id": KEY, "traceparent": header})

    async def spans():
        return await pool.store.trace(TRACE)

    found = await until(spans, 40, "Envoy's spans")
    assert {span.resource[names.SERVICE_NAME] for span in found} == {names.SERVICE_ENVOY}
    assert not await pool.store.trace(TRACE[::-1])
    assert await pool.store.traces() == [], "requests are no failovers"
    assert pool.seen == [not_sampled, sampled], "the application sees what its caller sent"


async def test_a_node_that_names_no_cluster_for_reports_gets_a_listener_without_them():
    cache = ResourceCache()
    await cache.set_all(build(RoutingView(PoolSpec(pool="cart"), {}, ())))
    await ListenerGroups(cache, "cart").set_listener("127.0.0.1:10000")
    await ListenerGroups(cache, "cart").set_listener("127.0.0.1:10001 understudy-xds")
    await ListenerGroups(cache, "cart").set_listener("127.0.0.1:10002 understudy-xds traced")
    plain, reporting, traced = (
        cache.snapshot(group).of(LISTENER).resources[listener_name("cart")].packed for group in cache.groups if group
    )
    assert b"understudy-xds" not in plain
    assert b"understudy-xds" in reporting
    assert b"tracers" not in reporting, "a tracer costs every request, so it must be asked for"
    assert b"tracers" in traced
