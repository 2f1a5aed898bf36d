"""The cache by itself: content, versions, validation, groups, and waiting for acknowledgement."""

import asyncio

import pytest

from tests.harness.waiting import until
from tests.xds.server.client import served
from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types
from understudy.xds.server.cache import ConfigRejected, InvalidResources, NotAcknowledged, ResourceCache
from understudy.xds.server.responses import ConfigStatus
from understudy.xds.server.snapshot import encode

CDS, EDS, LDS, RDS = types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES


def consistent() -> dict:
    return {
        CDS: {"a": cluster("a")},
        EDS: {"a": endpoints("a", 1)},
        LDS: {"l": listener("l", 80, "r")},
        RDS: {"r": routes("r", "a")},
    }


async def test_rule_03_two_caches_with_equal_content_have_equal_versions_whatever_their_history():
    one, other = ResourceCache(), ResourceCache()
    await one.set(CDS, {"a": cluster("a"), "b": cluster("b")})
    await other.set(CDS, {"b": cluster("b", mark="old")})
    await other.update(CDS, {"c": cluster("c"), "a": bytes(cluster("a"))})
    assert one.snapshot().of(CDS).version != other.snapshot().of(CDS).version
    await other.update(CDS, {"b": encode(CDS, "b", bytes(cluster("b")))})
    await other.remove(CDS, "c", "never-there")
    assert one.snapshot().of(CDS).version == other.snapshot().of(CDS).version


async def test_setting_equal_content_again_changes_nothing_at_all():
    cache = ResourceCache()
    await cache.set_all(consistent())
    before = cache.snapshot()
    await cache.set_all(consistent())
    assert {kind: cache.snapshot().of(kind) for kind in before.types} == dict(before.types)


async def test_one_change_encodes_one_resource_whatever_the_number_of_streams():
    async with served({CDS: {f"c{n}": cluster(f"c{n}", eds=False) for n in range(20)}}) as world:
        streams = [world.stream(delta=True, node=f"n{number}") for number in range(10)]
        for stream in streams:
            await stream.ask(CDS)
            await stream.receive()
        before = world.cache.counters.encodings
        await world.cache.update(CDS, {"c7": cluster("c7", eds=False, mark="new")})
        for stream in streams:
            assert [one.name for one in (await stream.receive()).resources] == ["c7"]
        assert world.cache.counters.encodings - before == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({RDS: {"r": routes("r", "nowhere")}}, "nowhere"),
        ({EDS: {}}, "points at EDS resource a"),
        ({LDS: {"l": listener("l", 80, "other")}}, "points at RDS resource other"),
        ({CDS: {"a": cluster("b")}}, "it calls itself 'b'"),
        ({CDS: {"a": b"\xff\xff"}}, "no Cluster"),
    ],
)
async def test_rule_24_what_does_not_hold_together_is_refused_and_the_last_good_snapshot_stays(broken, reason):
    cache = ResourceCache()
    await cache.set_all(consistent())
    before = cache.snapshot()
    with pytest.raises(InvalidResources, match=reason) as refused:
        await cache.set_all({**consistent(), **broken})
    assert refused.value.problems
    assert cache.snapshot() is before
    assert reason in cache.refused[""]
    assert cache.counters.refused_snapshots == 1
    await cache.set_all(consistent())
    assert not cache.refused


async def test_rule_24_removing_what_is_still_pointed_at_is_refused():
    cache = ResourceCache()
    await cache.set_all(consistent())
    with pytest.raises(InvalidResources, match="points at CDS resource a"):
        await cache.remove(CDS, "a")
    assert "a" in cache.snapshot().of(CDS).resources


async def test_rule_24_resources_may_be_set_type_by_type_and_point_at_what_nodes_have_from_elsewhere():
    cache = ResourceCache(known=frozenset({"static"}))
    await cache.set(RDS, {"r": routes("r", "static")})
    await cache.set(CDS, {"a": cluster("a")})
    await cache.set(EDS, {"a": endpoints("a", 1)})
    await cache.update(RDS, {"r2": routes("r2", "a")})


async def test_rule_30_an_older_snapshot_is_left_aside():
    cache = ResourceCache()
    assert await cache.set_all({CDS: {"new": cluster("new", eds=False)}}, revision=7)
    assert not await cache.set_all({CDS: {"old": cluster("old", eds=False)}}, revision=6)
    assert list(cache.snapshot().of(CDS).resources) == ["new"]


async def test_a_group_sees_what_all_see_and_its_own_over_it():
    cache = ResourceCache()
    await cache.set(CDS, {"a": cluster("a", eds=False), "b": cluster("b", eds=False)})
    await cache.set(CDS, {"b": cluster("b", eds=False, mark="own")}, group="g")
    await cache.set(LDS, {"l": listener("l", 80, "r")}, group="g")
    assert set(cache.snapshot("g").of(CDS).resources) == {"a", "b"}
    assert cache.snapshot("g").of(CDS).resources["b"] is not cache.snapshot().of(CDS).resources["b"]
    assert not cache.snapshot("other").of(LDS).resources

    await cache.update(CDS, {"c": cluster("c", eds=False)})
    assert set(cache.snapshot("g").of(CDS).resources) == {"a", "b", "c"}
    await cache.drop_group("g")
    assert not cache.snapshot("g").of(LDS).resources


async def test_groups_without_own_resources_of_a_type_share_its_snapshot():
    cache = ResourceCache()
    await cache.set_all(consistent())
    for group in ("g", "h"):
        await cache.set(LDS, {"l": listener("l", 81, "r")}, group=group)
    assert cache.snapshot("g").of(CDS) is cache.snapshot("h").of(CDS) is cache.snapshot().of(CDS)


async def test_the_first_node_of_a_group_calls_for_its_resources_before_it_is_answered():
    async def fill(group: str) -> None:
        await asyncio.sleep(0)
        await cache.set(LDS, {"l": listener("l", int(group), "r")}, group=group)

    cache = ResourceCache(lambda node: node.id.rpartition("-")[2], on_group=fill)
    async with served(consistent(), cache=cache) as world:
        for node in ("x-8001", "y-8002", "z-8002"):
            stream = world.stream(delta=False, node=node)
            await stream.ask(LDS)
            response = await stream.receive()
            assert len(response.resources) == 1
            assert response.version_info == cache.snapshot(node[2:]).of(LDS).version
        assert {status.group for status in cache.status()} == {"8001", "8002"}


@pytest.mark.parametrize("delta", [False, True])
async def test_acknowledged_returns_when_every_node_has_answered(delta: bool):
    async with served({CDS: {"a": cluster("a", eds=False)}}) as world:
        await world.cache.acknowledged(0.1)
        one, two = (world.stream(delta=delta, node=name) for name in ("one", "two"))
        for stream in (one, two):
            await stream.ask(CDS)
        first, response = await one.receive(), await two.receive()
        waiting = asyncio.create_task(world.cache.acknowledged(30))
        await one.acknowledge(first)
        await until(lambda: ("one", ConfigStatus.SYNCED) in [(each.node, each.state) for each in world.cache.status()])
        with pytest.raises(NotAcknowledged) as late:
            await world.cache.acknowledged(0.2)
        assert late.value.nodes == ("two",)
        assert not waiting.done()
        await two.acknowledge(response)
        await waiting


async def test_acknowledged_raises_the_nodes_own_words_and_forgets_them_with_the_next_content():
    async with served({CDS: {"a": cluster("a", eds=False)}}) as world:
        stream = world.stream(delta=False)
        await stream.ask(CDS)
        await stream.acknowledge(await stream.receive(), error="I can't do that")
        with pytest.raises(ConfigRejected, match="I can't do that") as rejected:
            await world.cache.acknowledged(30)
        assert (rejected.value.node, rejected.value.type_url) == ("front", CDS)

        await world.cache.set(CDS, {"a": cluster("a", eds=False, mark="better")})
        waiting = asyncio.create_task(world.cache.acknowledged(30))
        await stream.acknowledge(await stream.receive())
        await waiting


async def test_acknowledged_does_not_wait_for_a_node_that_went_away():
    async with served({CDS: {"a": cluster("a", eds=False)}}) as world:
        stream = world.stream(delta=True)
        await stream.ask(CDS)
        await stream.receive()
        waiting = asyncio.create_task(world.cache.acknowledged(30))
        stream.call.cancel()
        await waiting
        assert world.cache.status() == ()


async def test_rule_28_status_tells_sent_acknowledged_and_state_per_node_and_type():
    async with served(consistent()) as world:
        stream = world.stream(delta=False, node="front-7")
        await stream.ask(CDS)
        response = await stream.receive()
        await stream.ask(RDS, "missing")

        await until(lambda: len(world.cache.status()) == 2)
        clusters, wanted = world.cache.status()
        assert (clusters.node, clusters.type_url, clusters.state) == ("front-7", CDS, ConfigStatus.STALE)
        assert (clusters.sent, clusters.acked, clusters.nonce) == (response.version_info, "", response.nonce)
        assert wanted.state is ConfigStatus.NOT_SENT

        await stream.acknowledge(response)
        await world.cache.acknowledged(30)
        clusters = world.cache.status()[0]
        assert clusters.state is ConfigStatus.SYNCED
        assert clusters.acked == clusters.sent
        assert clusters.acked_at_ns > clusters.sent_at_ns > 0


async def test_hooks_hear_of_pushes_and_acknowledgements_and_may_fail():
    pushes, acks = [], []

    def failing(event) -> None:
        acks.append(event)
        raise RuntimeError("the hook is broken")

    cache = ResourceCache(on_push=pushes.append, on_ack=failing)
    async with served({CDS: {"a": cluster("a", eds=False)}}, cache=cache) as world:
        stream = world.stream(delta=True)
        await stream.ask(CDS)
        response = await stream.receive()
        await stream.acknowledge(response, error="no")
        await until(lambda: acks and pushes)
        (push,) = pushes
        assert (push.node, push.type_url, push.resources, push.removed) == ("front", CDS, 1, 0)
        assert push.size == response.ByteSize()
        (ack,) = acks
        assert (ack.node, ack.type_url, ack.error) == ("front", CDS, "no")
        assert push.changed_at_ns < ack.sent_at_ns < ack.acked_at_ns
