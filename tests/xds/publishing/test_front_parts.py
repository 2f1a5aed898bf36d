"""What front Envoys of several pools get: made of the pools' own content, the same in whatever order pools came."""

import itertools

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front, FrontTls
from understudy.xds.envoy.front_listener import HttpPort, secret_name, table_name
from understudy.xds.envoy.mesh import build_all
from understudy.xds.envoy.messages import RouteConfiguration
from understudy.xds.envoy.resource_names import routes_name
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.publishing.front_parts import Composer, Composition, FrontPart, TcpPort, part_of
from understudy.xds.publishing.front_places import FrontPlaces
from understudy.xds.server.consistency import dangling
from understudy.xds.server.snapshot import Snapshot, TypeSnapshot, encode
from understudy.xds.server.types import CLUSTER, ENDPOINTS, ROUTES, SECRET

CERTIFICATE = FrontTls(cert="/tls/a.pem", key="/tls/a.key")


def part(pool: str, *, healthy: bool = True, protocol: str = "http1", **front: object) -> FrontPart:
    spec = PoolSpec.model_validate({"pool": pool, "slots": 4, "protocol": protocol, "front": {"port": 80, **front}})
    members = {f"{pool}-1": Endpoint("10.0.0.1", 80, healthy), f"{pool}-2": Endpoint("10.0.0.2", 80)}
    view = RoutingView(spec, members, [tuple(members)] * 4, front=spec.front)
    content = {
        kind: TypeSnapshot({name: encode(kind, name, value) for name, value in named.items()})
        for kind, named in build_all(view).items()
    }
    made = part_of(view, Snapshot(content))
    assert made is not None
    return made


def bare(composition: Composition) -> object:
    """The bytes of a composition."""
    versions = {
        kind: {name: one.version for name, one in named.items()} for kind, named in composition.resources.items()
    }
    return versions, composition.ports


def routes(composition: Composition, port: int = 80) -> dict[str, list[tuple[str, str]]]:
    """For each host the paths and pools of its routes, in order."""
    table = RouteConfiguration.parse(composition.resources[ROUTES][table_name(port)].value)
    return {
        host.domains[0]: [
            key
            for key, _ in itertools.groupby(
                (one.match.path_separated_prefix or one.match.prefix or "", one.name.partition("/")[0])
                for one in host.routes
            )
        ]
        for host in table.virtual_hosts
    }


def test_a_host_has_the_routes_of_its_pools_and_the_longest_path_first():
    made = Composer().compose(
        [part("a", hosts=["shop"]), part("b", hosts=["shop", "*"], paths=["/cart", "/cart/old"]), part("c", port=81)]
    )
    assert routes(made) == {
        "*": [("/cart/old", "b"), ("/cart", "b")],
        "shop": [("/cart/old", "b"), ("/cart", "b"), ("/", "a")],
    }
    assert routes(made, 81) == {"*": [("/", "c")]}
    assert made.ports == (HttpPort(80), HttpPort(81))
    known = {kind: TypeSnapshot(named) for kind, named in made.resources.items()}
    assert dangling(Snapshot(known), frozenset()) == {}


def test_equal_parts_in_another_order_make_the_same():
    parts = [
        part("a", hosts=["shop"], tls=CERTIFICATE),
        part("b", hosts=["help"], tls=CERTIFICATE),
        part("t", protocol="tcp", port=90),
    ]
    ways = [bare(Composer().compose(order)) for order in itertools.permutations(parts)]
    assert all(way == ways[0] for way in ways)
    made = Composer().compose(parts)
    assert made.ports[0] == HttpPort(80, (("help", CERTIFICATE), ("shop", CERTIFICATE)))
    assert isinstance(made.ports[1], TcpPort)
    assert list(made.resources[SECRET]) == [secret_name(CERTIFICATE)]


def test_clusters_and_endpoints_are_the_pools_own_and_a_table_is_encoded_once():
    composer, one = Composer(), part("a")
    made = composer.compose([one])
    assert set(made.resources[CLUSTER]) == set(one.clusters.resources)
    assert routes_name("a") not in made.resources[ROUTES]
    ill = FrontPart(one.pool, one.front, None, one.clusters, part("a", healthy=False).endpoints, one.hosts)
    assert ill.same_but_health(one)
    again = composer.compose([ill])
    assert again.resources[ROUTES][table_name(80)] is made.resources[ROUTES][table_name(80)]
    assert again.resources[ENDPOINTS] != made.resources[ENDPOINTS]


def test_a_table_knows_the_clusters_that_it_points_at():
    made = Composer().compose([part("a", paths=["/a"]), part("b")])
    table = made.resources[ROUTES][table_name(80)]
    assert table.points_at == encode(ROUTES, table.name, table.value).points_at


def spec(pool: str, **front: object) -> PoolSpec:
    return PoolSpec.model_validate({"pool": pool, "front": {"port": 80, **front}})


def test_a_pool_that_is_refused_keeps_the_place_that_it_had_and_gets_its_own_when_it_is_free():
    told: list[str] = []
    places = FrontPlaces(told.extend)
    assert places.place(spec("a", paths=["/a"]), 1) == Front(port=80, paths=("/a",))
    assert places.place(spec("b"), 2) == Front(port=80)
    assert places.place(spec("a"), 3) == Front(port=80, paths=("/a",))
    assert "pool 'b' has host * with path /" in places.refused["a"]
    assert told == []
    places.forget("b")
    assert (told, places.refused) == (["a"], {})


def test_an_earlier_spec_that_is_known_later_has_the_place_all_the_same():
    told: list[str] = []
    places = FrontPlaces(told.extend)
    assert places.place(spec("b"), 2) == Front(port=80)
    assert places.place(spec("a"), 1) == Front(port=80)
    assert (told, list(places.refused)) == (["b"], ["b"])
    assert places.place(spec("b"), 2) is None
