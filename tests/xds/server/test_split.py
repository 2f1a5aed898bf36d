"""Delta answers that are larger than what a client takes in one message."""

import grpc
import pytest

from tests.harness.waiting import until
from tests.xds.server.client import served
from tests.xds.server.dialogue import CDS, EDS, RDS, Dialogue, a_pool, a_settled_client
from tests.xds.server.made import cluster
from understudy.xds.server.responses import ConfigStatus, Response
from understudy.xds.server.snapshot import Snapshot, TypeSnapshot, encode
from understudy.xds.server.split import parts_of
from understudy.xds.server.stream import StreamState
from understudy.xds.server.stream_config import StreamLimits, Variant
from understudy.xds.server.wire import TTL_FEATURE, DeltaDiscoveryResponse, Node, Request

GRPC_DEFAULT = 4 * 1024 * 1024
PLAIN = "type.googleapis.com/example.Plain"
SMALL = StreamLimits(message=400)


def an_answer(*sizes: int, removed: tuple[str, ...] = ()) -> Response:
    resources = tuple(encode(PLAIN, f"r{number}", b"x" * size) for number, size in enumerate(sizes))
    names = frozenset(one.name for one in resources)
    return Response("v", resources, removed, changed=names, added=names)


def names(answer: Response) -> list[str]:
    return [*(one.name for one in answer.resources), *(f"-{name}" for name in answer.removed)]


def test_parts_carry_everything_once_in_order_with_removals_last():
    answer = an_answer(500, 300, 900, 5000, 10, removed=("gone", "went"))
    parts = parts_of(answer, 1500)
    assert [names(part) for part in parts] == [["r0", "r1"], ["r2"], ["r3"], ["r4"], ["-gone", "-went"]]
    assert {part.version for part in parts} == {"v"}
    assert [part.added for part in parts[:2]] == [{"r0", "r1"}, {"r2"}]
    assert parts_of(answer, 1500) is parts
    assert parts_of(answer, 1_000_000) == (answer,)
    assert parts_of(an_answer(), 10) == (an_answer(),)


def a_client_with_parts() -> Dialogue:
    dialogue = Dialogue(Variant.DELTA, limits=SMALL)
    dialogue.content(a_pool("a", "b", "c", "d"))
    dialogue.ask(CDS)
    return dialogue


def test_every_part_has_a_nonce_of_its_own_and_is_below_the_limit():
    dialogue = a_client_with_parts()
    parts = []
    while (outgoing := dialogue.stream_state.next(0)) is not None:
        parts.append(outgoing)
    assert len(parts) > 1
    assert len({one.nonce for one in parts}) == len(parts)
    assert len({one.version for one in parts}) == 1
    assert all(len(one.data) <= SMALL.message for one in parts)
    told = [one.name for part in parts for one in DeltaDiscoveryResponse.FromString(part.data).resources]
    assert told == ["a", "b", "c", "d"]


def test_the_acknowledgement_of_a_part_is_none_of_the_whole():
    dialogue = a_client_with_parts()
    first = dialogue.stream_state.next(0)
    (clusters,) = dialogue.stream_state.subscriptions
    _, outcome = dialogue.stream_state.on_request(Request(CDS, nonce=first.nonce), 0)
    assert (outcome.kind, outcome.sent.nonce) == ("stale", first.nonce)
    assert (clusters.status, clusters.acked_version) == (ConfigStatus.STALE, "")
    assert not dialogue.stream_state.settled

    last = None
    while (outgoing := dialogue.stream_state.next(0)) is not None:
        last = outgoing
    dialogue.stream_state.on_request(Request(CDS, nonce=last.nonce), 0)
    assert (clusters.status, clusters.acked_version) == (ConfigStatus.SYNCED, last.version)
    assert dialogue.said() == []
    assert dialogue.stream_state.settled


def test_what_was_refused_in_one_part_says_nothing_of_the_others():
    dialogue = a_client_with_parts()
    parts = []
    while (outgoing := dialogue.stream_state.next(0)) is not None:
        parts.append(outgoing)
    dialogue.stream_state.on_request(Request(CDS, nonce=parts[0].nonce, error="b is bad"), 0)
    for part in parts[1:]:
        dialogue.stream_state.on_request(Request(CDS, nonce=part.nonce), 0)
    (clusters,) = dialogue.stream_state.subscriptions
    refused = dialogue.carried(parts[0])
    assert (clusters.status, clusters.error) == (ConfigStatus.ERROR, "b is bad")
    assert [sorted(one.names) for one in clusters.rejections] == [refused]

    better = a_pool("a", "b", "c", "d")
    better[CDS]["a"] = encode(CDS, "a", bytes(cluster("a", mark="better")))
    dialogue.content(better)
    assert dialogue.said() == [f"CDS {' '.join(refused)}"]


def test_parts_go_before_anything_else_and_routes_wait_for_all_of_them():
    dialogue = a_settled_client(Variant.DELTA, "a")
    dialogue.stream_state._limits = SMALL
    more = ("a", *(f"c{number}" for number in range(6)))
    dialogue.content(a_pool(*more, to="c5"))
    first = dialogue.stream_state.next(0)
    dialogue.last[CDS] = first
    dialogue.content(a_pool(*more, to="c5", port=2))
    said = dialogue.said()
    assert [one.split()[0] for one in said] == ["CDS"] * (len(said) - 1) + ["EDS"]
    dialogue.stream_state.on_request(Request(CDS, nonce=first.nonce), 0)
    assert dialogue.said() == []
    dialogue.acknowledge(CDS)
    assert dialogue.said() == ["RDS r"]


def test_heartbeats_are_split_too():
    stream_state = StreamState(Variant.DELTA, prefix="n", limits=SMALL)
    request = Request(CDS, Node("front", features=frozenset({TTL_FEATURE})))
    stream_state.introduce(request)
    content = {name: encode(CDS, name, bytes(cluster(name)), ttl=4) for name in "abcdef"}
    stream_state.offer(Snapshot({CDS: TypeSnapshot(content)}))
    stream_state.on_request(request, 0)
    for at in (0, 2_000_000_000):
        told = []
        while (outgoing := stream_state.next(at)) is not None:
            told += [one.name for one in DeltaDiscoveryResponse.FromString(outgoing.data).resources]
            assert len(outgoing.data) <= SMALL.message
        assert told == list("abcdef")


def large() -> dict[str, dict[str, object]]:
    return {CDS: {f"c{number:02}": cluster(f"c{number:02}", eds=False, mark="x" * 500_000) for number in range(11)}}


async def test_a_client_with_grpcs_own_limit_gets_five_megabytes():
    async with served(large()) as world:
        stream = world.stream(delta=True)
        await stream.ask(CDS)
        told = []
        while len(told) < 11:
            response = await stream.receive()
            assert response.ByteSize() < GRPC_DEFAULT
            told += [one.name for one in response.resources]
            await stream.acknowledge(response)
        assert told == sorted(large()[CDS])
        await world.cache.acknowledged(30)
        assert world.cache.counters.acks == world.cache.counters.pushes == 2
        assert world.cache.status()[0].state is ConfigStatus.SYNCED


async def test_state_of_the_world_is_not_split_and_ends_a_client_with_grpcs_own_limit():
    async with served(large()) as world:
        stream = world.stream(delta=False)
        await stream.ask(CDS)
        code, _ = await stream.status()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("types", [(CDS,), (CDS, EDS, RDS)])
async def test_a_client_that_ends_in_the_middle_of_parts_leaves_nothing_behind(types: tuple[str, ...]):
    async with served(large()) as world:
        stream = world.stream(delta=True)
        for kind in types:
            await stream.ask(kind)
        await stream.receive()
        stream.call.cancel()
        await until(lambda: world.server.streams == 0)
        assert world.cache.status() == ()
