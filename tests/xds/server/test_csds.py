"""The client status service as another tool reads it."""

import envoy_data_plane.envoy.service.status.v3 as status
import grpc
import pytest
from envoy_data_plane.envoy.type.matcher.v3 import NodeMatcher, StringMatcher

from tests.harness.waiting import until
from tests.xds.server.client import Served, served
from tests.xds.server.made import cluster
from understudy.xds.server import types
from understudy.xds.server.csds import SERVICE
from understudy.xds.server.responses import ConfigStatus

FETCH = f"/{SERVICE}/FetchClientStatus"


async def fetch(world: Served, request: bytes = b"") -> status.ClientStatusResponse:
    return status.ClientStatusResponse.parse(await world.channel.unary_unary(FETCH)(request))


async def test_rule_28_csds_tells_state_and_error_of_every_node_and_type():
    async with served({types.CLUSTER: {"a": cluster("a", eds=False)}}) as world:
        good, bad = (world.stream(delta=True, node=node) for node in ("good", "bad"))
        for stream in (good, bad):
            await stream.ask(types.CLUSTER)
        await good.acknowledge(await good.receive())
        await bad.acknowledge(await bad.receive(), error="no such thing")
        await until(lambda: {one.state for one in world.cache.status()} == {ConfigStatus.SYNCED, ConfigStatus.ERROR})

        answer = await fetch(world)
        told = {config.node.id: config.generic_xds_configs[0] for config in answer.config}
        assert told["good"].config_status is status.ConfigStatus.SYNCED
        assert told["good"].type_url == types.CLUSTER
        assert told["good"].version_info == world.cache.snapshot().of(types.CLUSTER).version
        assert told["bad"].config_status is status.ConfigStatus.ERROR
        assert told["bad"].error_state.details == "no such thing"


@pytest.mark.parametrize("matcher", [StringMatcher(exact="one"), StringMatcher(prefix="on")])
async def test_csds_tells_of_matching_nodes_only_on_a_stream_too(matcher: StringMatcher):
    async with served({types.CLUSTER: {}}) as world:
        for node in ("one", "two"):
            stream = world.stream(delta=True, node=node)
            await stream.ask(types.CLUSTER)
            await stream.receive()
        request = status.ClientStatusRequest(node_matchers=[NodeMatcher(node_id=matcher)])
        call = world.channel.stream_stream(f"/{SERVICE}/StreamClientStatus")()
        await call.write(bytes(request))
        answer = status.ClientStatusResponse.parse(await call.read())
        assert [config.node.id for config in answer.config] == ["one"]
        call.cancel()


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff\xff",
        bytes(status.ClientStatusRequest(node_matchers=[NodeMatcher(node_id=StringMatcher(suffix="e"))])),
    ],
)
async def test_csds_refuses_what_it_does_not_understand(request_: bytes):
    async with served({}) as world:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(world, request_)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
