"""What Prometheus is told, read as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.commands import ask
from tests.harness.waiting import until
from tests.xds.ads_node import connected
from tests.xds.control.control_pool import POOL, control_pool
from tests.xds.server.client import served
from tests.xds.server.made import cluster, endpoints
from understudy.telemetry.metrics.phase_metrics import expose
from understudy.xds.server import types
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.metrics import XdsMetrics

CDS, EDS = types.CLUSTER, types.ENDPOINTS


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and label values; label names must be known ones."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.startswith("understudy_xds_"):
                continue
            assert sample.labels.keys() <= {"type", "state", "le", "limit"}
            values = (sample.labels[name] for name in ("type", "state", "le", "limit") if name in sample.labels)
            found[sample.name.removeprefix("understudy_xds_"), *values] = sample.value
    return found


class Measured:
    def __init__(self, cache: ResourceCache) -> None:
        self.metrics = XdsMetrics(cache, lambda: self.streams)
        self.streams = 0
        cache.on_push, cache.on_ack = self.metrics.on_push, self.metrics.on_ack

    @property
    def now(self) -> dict[tuple[str, ...], float]:
        return parsed(expose(self.metrics.registry, "")[0].decode())


async def test_pushes_answers_and_their_times_are_counted_by_type():
    cache = ResourceCache()
    measured = Measured(cache)
    content = {CDS: {"a": cluster("a")}, EDS: {"a": endpoints("a", 1)}}
    async with served(content, cache=cache) as world:
        stream = world.stream(delta=True)
        await stream.ask(CDS)
        await stream.acknowledge(await stream.receive())
        await stream.ask(EDS, "a")
        await stream.acknowledge(await stream.receive())
        await cache.acknowledged()
        await cache.update(EDS, {"a": endpoints("a", 2)})
        await stream.acknowledge(await stream.receive(), error="no")
        await until(lambda: (cache.counters.pushes, cache.counters.nacks) == (3, 1))
        measured.streams = world.server.streams
        now = measured.now
    assert now["pushes_total", "CDS"] == 1
    assert now["pushes_total", "EDS"] == now["pushed_resources_total", "EDS"] == 2
    assert now["pushed_bytes_total", "EDS"] > 50
    assert now["acks_total", "EDS"] == now["nacks_total", "EDS"] == 1
    assert now["ack_seconds_count", "EDS"] == 2
    assert now["send_seconds_count", "EDS"] == 1, "an answer to a request is no push of a change"
    assert now["send_seconds_bucket", "EDS", "10.0"] == 1
    assert now["streams",] == now["streams_opened_total",] == 1
    assert now["encodings_total", "EDS"] == 2
    assert now["resources", "CDS"] == 1
    assert now["subscriptions", "EDS", "ERROR"] == now["subscriptions", "CDS", "SYNCED"] == 1


async def test_one_change_is_one_encoding_however_many_streams_there_are():
    cache = ResourceCache()
    measured = Measured(cache)
    async with served({EDS: {name: endpoints(name, 1) for name in "abc"}}, cache=cache) as world:
        streams = [world.stream(delta=True, node=f"front-{number}") for number in range(20)]
        for stream in streams:
            await stream.ask(EDS, "a", "b", "c")
            await stream.receive()
        before = measured.now["encodings_total", "EDS"]
        await cache.update(EDS, {"b": endpoints("b", 2)})
        for stream in streams:
            await stream.receive()
        assert measured.now["encodings_total", "EDS"] == before + 1
        await until(lambda: measured.now["pushes_total", "EDS"] == 40)


async def test_types_that_clients_make_up_are_one_label():
    cache = ResourceCache()
    measured = Measured(cache)
    async with served({}, cache=cache) as world:
        stream = world.stream(delta=False)
        for number in range(5):
            await stream.ask(f"type.googleapis.com/made.up.Type{number}")
        await until(lambda: len(cache.status()) == 5)
        typed = [key for key in measured.now if len(key) > 1 and key[0] != "refused_streams_total"]
        assert {key[1] for key in typed} == {"other"}


async def test_the_control_server_shows_them_to_prometheus(tmp_path):
    async with control_pool(tmp_path) as pool:
        control = await pool.control()
        await control.ready()
        (member,) = await pool.join("cart-1")
        await control.hears(member)
        async with connected(control.grpc, POOL):

            async def counted() -> bool:
                return parsed(await ask(control.http, "/metrics")).get(("acks_total", "RDS"), 0) >= 1

            await until(counted, 40, "an acknowledgement is counted")
            now = parsed(await ask(control.http, "/metrics"))
        assert now["streams",] == 1
        assert now["resources", "RDS"] == 1
