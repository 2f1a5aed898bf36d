"""Real gRPC streams on the real server."""

import asyncio

import grpc
import grpc.aio
import pytest

from tests.harness.waiting import stays, until
from tests.xds.server.client import ADS, served
from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types, wire
from understudy.xds.server.ads import StreamSettings
from understudy.xds.server.responses import ConfigStatus
from understudy.xds.server.stream import UNNAMED
from understudy.xds.server.stream_config import StreamLimits, StreamTimeouts

CDS, EDS, LDS, RDS = types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES
BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
CONTENT = {
    CDS: {"a": cluster("a")},
    EDS: {"a": endpoints("a", 1)},
    LDS: {"l": listener("l", 80, "r")},
    RDS: {"r": routes("r", "a")},
}


@BOTH
async def test_rule_01_only_the_first_request_carries_the_node(delta: bool):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta, node="front-9")
        await stream.ask(CDS)
        await stream.receive()
        await stream.ask(RDS, "r")
        assert (await stream.receive()).type_url == RDS
        assert {status.node for status in world.cache.status()} == {"front-9"}


@BOTH
@pytest.mark.parametrize("fields", [{}, {"type_url": CDS}])
async def test_rule_01_a_first_request_without_node_ends_the_stream_and_says_why(delta: bool, fields: dict):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        kind = wire.DeltaDiscoveryRequest if delta else wire.DiscoveryRequest
        await stream.send(kind(**fields).SerializeToString())
        code, text = await stream.status()
        assert code is INVALID
        assert "node" in text


@BOTH
async def test_rule_01_nodes_without_an_id_are_served_and_told_apart(delta: bool):
    async with served(CONTENT) as world:
        for _ in range(2):
            stream = world.stream(delta=delta, node="")
            await stream.ask(CDS)
            await stream.acknowledge(await stream.receive())
        await world.cache.acknowledged(30)
        nodes = {status.node for status in world.cache.status()}
        assert len(nodes) == 2
        assert all(node.startswith(UNNAMED) for node in nodes)


@BOTH
async def test_rule_01_a_request_without_type_ends_an_aggregated_stream_and_says_why(delta: bool):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        await stream.ask("")
        code, text = await stream.status()
        assert code is INVALID
        assert "type_url" in text


@BOTH
async def test_rule_02_a_nonce_from_elsewhere_in_a_first_request_is_answered(delta: bool):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        await stream.ask(CDS, response_nonce="of-another-stream")
        assert len((await stream.receive()).resources) == 1


async def test_rule_04_a_reconnect_with_version_gets_nothing_and_with_other_names_an_answer():
    async with served(CONTENT) as world:
        first = world.stream(delta=False)
        await first.ask(CDS)
        version = (await first.receive()).version_info
        first.call.cancel()

        again = world.stream(delta=False)
        await again.ask(CDS, version_info=version)
        await again.ask(RDS, "r")
        assert (await again.receive()).type_url == RDS
        # The server may hear of the first stream's end a moment after what the second one asks.
        await until(lambda: world.server.streams == 1, what="the first stream has ended")
        assert world.cache.status()[0].state is ConfigStatus.SYNCED

        other = world.stream(delta=False)
        await other.ask(CDS, "none-such", version_info=version)
        assert len((await other.receive()).resources) == 0


@BOTH
async def test_rule_06_a_nack_is_not_answered_with_the_same_again(delta: bool):
    async with served(CONTENT) as world:
        stream = world.stream(delta=delta)
        await stream.ask(CDS)
        await stream.acknowledge(await stream.receive(), error="no such cluster type")
        await until(lambda: (world.cache.counters.pushes, world.cache.counters.nacks) == (1, 1))
        await stays(lambda: world.cache.counters.pushes == 1, 0.3, "silence after a NACK")
        (status,) = world.cache.status()
        assert (status.state, status.error) == (ConfigStatus.ERROR, "no such cluster type")

        await world.cache.update(CDS, {"a": cluster("a", mark="better")})
        assert len((await stream.receive()).resources) == 1


@BOTH
async def test_rule_07_names_in_a_nack_are_answered(delta: bool):
    async with served({**CONTENT, EDS: {"a": endpoints("a", 1), "b": endpoints("b", 1)}}) as world:
        stream = world.stream(delta=delta)
        await stream.ask(EDS, "a")
        response = await stream.receive()
        names = ("b",) if delta else ("a", "b")
        await stream.ask(EDS, *names, response_nonce=response.nonce, error_detail={"message": "no"})
        assert named(await stream.receive(), delta) >= {"b"}


def named(response, delta: bool) -> set[str]:
    if delta:
        return {one.name for one in response.resources}
    return {first_string(one.value) for one in response.resources}


def first_string(value: bytes) -> str:
    return value[2 : 2 + value[1]].decode()


@BOTH
@pytest.mark.parametrize(("service", "described"), list(types.TYPE_SERVICES.items()), ids=lambda one: str(one)[-28:])
async def test_services_per_type_serve_their_type_only(delta: bool, service: str, described: tuple[str, str, str]):
    type_url, *methods = described
    secret = {types.SECRET: {"s": b"\x0a\x01s"}}
    async with served({**CONTENT, **secret}) as world:
        stream = world.stream(delta=delta, method=f"{service}/{methods[delta]}")
        await stream.ask("", *world.cache.snapshot().of(type_url).resources)
        response = await stream.receive()
        assert response.type_url == type_url
        assert len(response.resources) == 1
        await stream.ask("type.googleapis.com/other")
        assert (await stream.status())[0] is INVALID


@BOTH
async def test_rule_18_and_19_order_holds_between_the_streams_of_a_node_that_has_one_per_type(delta: bool):
    timeouts = StreamTimeouts(ack_wait=60, warm_timeout=60, removal_timeout=60)
    methods = {kind: f"{service}/{names[delta]}" for service, (kind, *names) in types.TYPE_SERVICES.items()}
    async with served(CONTENT, StreamSettings(timeouts=timeouts)) as world:
        clusters, config = (world.stream(delta=delta, method=methods[kind]) for kind in (CDS, RDS))
        await clusters.ask(CDS)
        await clusters.acknowledge(await clusters.receive())
        await config.ask(RDS, "r")
        await config.acknowledge(await config.receive(), "r")
        await world.cache.acknowledged(30)
        await until(lambda: world.cache.counters.pushes == 2, what="both answers are counted")

        pushes = world.cache.counters.pushes
        content = {CDS: {"b": cluster("b")}, EDS: {"b": endpoints("b", 1)}, RDS: {"r": routes("r", "b")}}
        await world.cache.set_all({**content, LDS: CONTENT[LDS]})
        response = await clusters.receive()
        await until(lambda: world.cache.counters.pushes > pushes, what="the clusters are counted")
        await stays(lambda: world.cache.counters.pushes == pushes + 1, 0.2, "routes kept back")
        await clusters.acknowledge(response)
        response = await config.receive()
        await until(lambda: world.cache.counters.pushes > pushes + 1, what="the routes are counted")
        await stays(lambda: world.cache.counters.pushes == pushes + 2, 0.2, "the removal kept back")
        await config.acknowledge(response, "r")
        last = await clusters.receive()
        assert (last.removed_resources == ["a"]) if delta else (named(last, delta) == {"b"})


@BOTH
async def test_rule_22_a_change_of_endpoints_reaches_a_client_that_owes_acknowledgements(delta: bool):
    timeouts = StreamTimeouts(ack_wait=60, warm_timeout=60, removal_timeout=60)
    async with served(CONTENT, StreamSettings(timeouts=timeouts)) as world:
        stream = world.stream(delta=delta)
        for type_url, names in ((CDS, ()), (EDS, ("a",)), (LDS, ()), (RDS, ("r",))):
            await stream.ask(type_url, *names)
            await stream.receive()
        for port in range(2, 6):
            await world.cache.update(EDS, {"a": endpoints("a", port)})
            assert (await stream.receive()).type_url == EDS


@BOTH
async def test_rule_25_streams_are_refused_until_the_cache_is_ready(delta: bool):
    async with served() as world:
        early = world.stream(delta=delta)
        assert (await early.status())[0] is grpc.StatusCode.UNAVAILABLE
        world.cache.ready()
        stream = world.stream(delta=delta)
        await stream.ask(CDS)
        assert len((await stream.receive()).resources) == 0


async def test_rule_26_a_client_that_does_not_read_gets_the_newest_content_when_it_does():
    big = "x" * 200_000
    settings_ = StreamSettings(timeouts=StreamTimeouts(ack_wait=0))
    # Without probes of the connection's bandwidth: on a slow machine they find that it takes everything.
    options = [("grpc.http2.bdp_probe", 0)]
    async with served({CDS: {"a": cluster("a", eds=False, mark=big)}}, settings_, options=options) as world:
        slow, quick = world.stream(delta=False, node="slow"), world.stream(delta=False, node="quick")
        for stream in (slow, quick):
            await stream.ask(CDS)
        for number in range(200):
            await quick.receive()
            await world.cache.set(CDS, {"a": cluster("a", eds=False, mark=f"{big}{number}")})
        newest = world.cache.snapshot().of(CDS).version
        seen = 0
        while (await slow.receive()).version_info != newest:
            seen += 1
        assert seen < 100


async def test_rule_29_streams_end_cleanly_when_the_server_stops():
    async with served(CONTENT) as world:
        streams = [world.stream(delta=delta) for delta in (False, True)]
        for stream in streams:
            await stream.ask(CDS)
            await stream.receive()
        await world.server.stop(5)
        assert [(await stream.status())[0] for stream in streams] == [grpc.StatusCode.OK] * 2
        assert world.server.streams == 0


async def test_rule_29_an_old_stream_ends_cleanly():
    async with served(CONTENT, StreamSettings(max_age=1.5)) as world:
        stream = world.stream(delta=True)
        await stream.ask(CDS)  # the answer is read with the status: on a slow machine the stream may be old by then
        assert (await stream.status())[0] is grpc.StatusCode.OK


async def test_rule_30_a_client_with_other_versions_waits_until_the_server_is_surely_not_behind():
    caught_up = asyncio.Event()
    async with served(CONTENT, confirm_fresh=caught_up.wait) as world:
        newcomer = world.stream(delta=True, node="newcomer")
        await newcomer.ask(CDS)
        assert len((await newcomer.receive()).resources) == 1

        returning = world.stream(delta=True, node="returning")
        await returning.ask(CDS, initial_resource_versions={"a": "newer"})
        await until(lambda: (len(world.cache.status()), world.cache.counters.pushes) == (2, 1))
        await stays(lambda: world.cache.counters.pushes == 1, 0.3, "silence")
        await world.cache.update(CDS, {"a": cluster("a", mark="newest")})
        caught_up.set()
        response = await returning.receive()
        assert response.system_version_info == world.cache.snapshot().of(CDS).version


@BOTH
async def test_a_stream_that_asks_for_too_many_names_is_told_so_and_others_go_on(delta: bool):
    async with served(CONTENT, StreamSettings(limits=StreamLimits(names=100))) as world:
        other = world.stream(delta=delta, node="other")
        await other.ask(CDS)
        await other.receive()
        greedy = world.stream(delta=delta, node="greedy")
        await greedy.ask(EDS, *(f"n{number}" for number in range(101)))
        code, text = await greedy.status()
        assert code is EXHAUSTED
        assert "101 names" in text
        await world.cache.update(CDS, {"a": cluster("a", mark="x")})
        await other.receive()


async def test_a_message_over_the_size_limit_ends_its_stream_only():
    async with served(CONTENT) as world:
        stream = world.stream(delta=False)
        await stream.send(b"\x00" * (17 * 1024 * 1024))
        assert (await stream.status())[0] is EXHAUSTED
        after = world.stream(delta=False)
        await after.ask(CDS)
        await after.receive()


async def test_ten_thousand_resources_at_once():
    many = {f"c{number}": wire.delimited(1, f"c{number}".encode()) for number in range(10_000)}
    async with served({CDS: many}, options=[("grpc.max_receive_message_length", -1)]) as world:
        for delta in (False, True):
            stream = world.stream(delta=delta)
            await stream.ask(CDS)
            assert len((await stream.receive()).resources) == 10_000
            await stream.ask(EDS, *many)
        await until(lambda: len(world.cache.status()) == 4)


async def test_an_unknown_method_is_unimplemented():
    async with served(CONTENT) as world:
        stream = world.stream(delta=False, method=f"{ADS}/Other")
        assert (await stream.status())[0] is grpc.StatusCode.UNIMPLEMENTED
