"""Whatever arrives on the gRPC port ends in a clean status of its own stream, and nobody else notices."""

import asyncio
import contextlib
from collections.abc import Callable

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.harness.waiting import until
from tests.xds.server.client import ADS, Stream, connection, served
from tests.xds.server.made import cluster, endpoints
from tests.xds.server.test_ads import BOTH
from understudy.xds.server import types, wire
from understudy.xds.server.csds import SERVICE as CSDS
from understudy.xds.server.stream_config import StreamLimits

CDS, EDS, LDS, RDS = types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES
FEATURES = (wire.TTL_FEATURE, wire.SOTW_TTL_FEATURE, wire.WRAPPER_FEATURE)
CONTENT = {CDS: {"a": cluster("a")}, EDS: {"a": endpoints("a", 1)}}
CLEAN = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
some_bytes = st.binary(max_size=60)
some_text = st.text(max_size=8)
some_names = st.lists(st.sampled_from(["a", "l", "r", "*", "x"]) | some_text, max_size=6)
some_types = st.sampled_from([CDS, EDS, LDS, RDS, "", "odd"])
some_errors = st.none() | st.just({"message": "no"})
sotw_requests = st.builds(
    lambda **fields: wire.DiscoveryRequest(**fields).SerializeToString(),
    type_url=some_types,
    resource_names=some_names,
    response_nonce=some_text,
    version_info=some_text,
    error_detail=some_errors,
)
delta_requests = st.builds(
    lambda **fields: wire.DeltaDiscoveryRequest(**fields).SerializeToString(),
    type_url=some_types,
    resource_names_subscribe=some_names,
    resource_names_unsubscribe=some_names,
    initial_resource_versions=st.dictionaries(some_text, some_text, max_size=3),
    response_nonce=some_text,
    error_detail=some_errors,
)
some_nodes = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=8),
        "cluster": st.text(max_size=8),
        "metadata": st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.floats() | st.booleans(), max_size=3),
        "client_features": st.lists(st.text(max_size=4) | st.sampled_from(FEATURES), max_size=3),
    },
)


def first_requests(delta: bool) -> st.SearchStrategy[bytes]:
    kind = wire.DeltaDiscoveryRequest if delta else wire.DiscoveryRequest

    def made(node: dict, type_url: str) -> bytes:
        metadata = node.pop("metadata", None)
        request = kind(type_url=type_url, node=node)
        if metadata:
            request.node.metadata.update(metadata)
        return request.SerializeToString()

    return st.builds(made, some_nodes, st.sampled_from([CDS, EDS, "", "odd"]))


def later_requests(delta: bool) -> st.SearchStrategy[bytes]:
    return delta_requests if delta else sotw_requests


def well_begun(delta: bool) -> st.SearchStrategy[bytes]:
    kind = wire.DeltaDiscoveryRequest if delta else wire.DiscoveryRequest
    return st.just(kind(node={"id": "wild"}, type_url=CDS).SerializeToString())


def begun_anyhow(delta: bool) -> st.SearchStrategy[bytes]:
    return first_requests(delta) | later_requests(delta) | some_bytes


@pytest.mark.parametrize("first", [well_begun, begun_anyhow])
@BOTH
async def test_any_requests_end_in_a_clean_status_and_harm_no_other_stream(
    delta: bool, first: Callable[[bool], st.SearchStrategy[bytes]]
):
    async with served(CONTENT) as world:
        bystander = world.stream(delta=delta, node="bystander")
        await bystander.ask(CDS)
        await bystander.receive()
        method = f"/{ADS}/{'DeltaAggregatedResources' if delta else 'StreamAggregatedResources'}"

        @settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
        @given(first(delta), st.lists(later_requests(delta) | some_bytes, max_size=8))
        def wild(begin: bytes, more: list[bytes]) -> None:
            call = channel.stream_stream(method)(iter([begin, *more]), timeout=30)
            with contextlib.suppress(grpc.RpcError):
                list(call)
            assert call.code() in CLEAN

        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            await asyncio.to_thread(wild)
        await world.cache.update(CDS, {"a": cluster("a", mark="x")})
        await bystander.receive()
        await until(lambda: world.server.streams == 1)


async def test_any_bytes_to_the_client_status_service_are_answered_or_refused():
    async with served(CONTENT) as world:

        @settings(max_examples=examples(80), deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.binary(max_size=40))
        def wild(data: bytes) -> None:
            fetch = channel.unary_unary(f"/{CSDS}/FetchClientStatus")
            try:
                fetch(data, timeout=30)
            except grpc.RpcError as error:
                assert error.code() in CLEAN  # noqa: PT017

        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            await asyncio.to_thread(wild)
        stream = world.stream(delta=True)
        await stream.ask(CDS)
        await stream.receive()


@BOTH
async def test_the_usual_limit_of_names_takes_what_is_allowed_and_tells_of_what_is_not(delta: bool):
    most = StreamLimits().names
    names = [f"n{number}" for number in range(most)]
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        await stream.ask(CDS, *names, *names[:10])
        await until(lambda: len(world.cache.status()) == 1)
        if delta:
            await stream.ask(CDS, "one-more")
        else:
            await stream.ask(CDS, *names, "one-more")
        code, text = await stream.status()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(most) in text


@BOTH
async def test_a_stream_that_asks_for_too_many_types_is_told_so(delta: bool):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        for number in range(StreamLimits().types + 1):
            await stream.ask(f"type.googleapis.com/made.up.Type{number}")
        code, text = await stream.status()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "types" in text


@pytest.mark.parametrize("renews", [True, False])
@BOTH
async def test_rule_23_only_a_client_that_announces_it_is_given_a_ttl_and_kept_alive(delta: bool, renews: bool):
    async with served({}) as world:
        await world.cache.set(CDS, {"a": cluster("a", eds=False)}, ttl=0.4)
        stream = world.stream(delta=delta)
        feature = wire.TTL_FEATURE if delta else wire.SOTW_TTL_FEATURE
        stream._node = {"id": "front", "client_features": [feature] if renews else []}
        await stream.ask(CDS)
        first = await stream.receive()
        resource = whole(first.resources[0], delta=delta, wrapped=renews or delta)
        assert (resource is not None and resource.ttl.nanos == 400_000_000) is renews
        await stream.acknowledge(first)
        if not renews:
            await world.cache.acknowledged(30)
            await asyncio.wait({asyncio.create_task(asyncio.sleep(0.5))})
            assert world.cache.counters.pushes == 1
            return
        heartbeat = await stream.receive()
        again = whole(heartbeat.resources[0], delta=delta, wrapped=True)
        assert (again.name, again.ttl.nanos, again.HasField("resource")) == ("a", 400_000_000, False)
        assert world.cache.counters.pushed_resources == 1


def whole(entry, *, delta: bool, wrapped: bool):
    """The ``Resource`` of an answer's entry; None where the bare resource stands."""
    if delta:
        return entry
    if not wrapped:
        assert entry.type_url == CDS
        return None
    return wire.SCHEMA.message("envoy.service.discovery.v3.Resource").FromString(entry.value)


@pytest.mark.heavy
async def test_two_thousand_streams_that_come_at_once_are_all_taken_in():
    async with served(CONTENT) as world, contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(connection(world.port)) for _ in range(125)]
        streams = [
            Stream(channel, f"{ADS}/DeltaAggregatedResources", delta=True, node=f"front-{number}-{turn}")
            for turn in range(16)
            for number, channel in enumerate(channels)
        ]
        for stream in streams:
            await stream.ask(CDS)
        for stream in streams:
            assert len((await stream.receive()).resources) == 1
