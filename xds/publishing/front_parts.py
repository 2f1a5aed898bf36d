"""What front Envoys that serve several pools get: each pool's last published content, and what becomes of all of them.

Pure. Equal parts make equal resources, whatever order they came in, so all control servers serve the same. Clusters and
endpoints are the pools' own. The routes of a port are one table: a virtual host for each host that a pool names, and in
it the routes of its pools, those of the longest path first.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.server.references import References
from understudy.xds.server.snapshot import Resource, Snapshot, TypeSnapshot, encode
from understudy.xds.server.types import CLUSTER, ENDPOINTS, ROUTES, SECRET, VIRTUAL_HOST

if TYPE_CHECKING:  # Envoy's message classes take 0.3 s to import: not while a control server starts
    from understudy.xds.envoy.front_listener import HttpPort
    from understudy.xds.envoy.tcp_listener import TcpSettings


class FrontPart(msgspec.Struct, frozen=True, eq=False):
    """One pool's part, of one publication. ``hosts`` has the routes of each of its paths.

    ``per_second``: the requests a second that each front Envoy takes for the pool; None: all. ``spec``: what it is made
    of. ``proven``: front Envoys accepted this spec before, maybe through another control server. ``older``: if they did
    not, the part that the spec that they accepted last makes of the pool as it is now.
    """

    pool: str
    front: Front
    tcp: "TcpSettings | None"
    clusters: TypeSnapshot
    endpoints: TypeSnapshot
    hosts: TypeSnapshot
    per_second: int | None = None
    spec: PoolSpec | None = None
    proven: bool = False
    older: "FrontPart | None" = None

    def same_but_health(self, other: "FrontPart") -> bool:
        """Whether the parts differ in their endpoints at the most."""
        return (
            self.front == other.front
            and self.tcp == other.tcp
            and self.per_second == other.per_second
            and self.clusters is other.clusters
            and self.hosts is other.hosts
        )


def part_of(
    view: RoutingView, content: Snapshot, proven: PoolSpec | None = None, older: FrontPart | None = None
) -> FrontPart | None:
    """The part of a pool with this view and the content that was published of it; None without a place at fronts.

    ``proven``: the spec that front Envoys accepted last; ``older``: the part that this one makes.
    """
    from understudy.xds.envoy.tcp_listener import tcp_settings

    if view.front is None:
        return None
    clusters, endpoints, hosts = (content.of(kind) for kind in (CLUSTER, ENDPOINTS, VIRTUAL_HOST))
    per_second = view.spec.limits.requests_per_second
    is_proven = view.spec == proven
    return FrontPart(
        *(view.spec.pool, view.front, tcp_settings(view.spec), clusters, endpoints, hosts, per_second, view.spec),
        proven=is_proven,
        older=None if is_proven else older,
    )


def older_part(view: RoutingView) -> FrontPart | None:
    """The part of a view whose spec front Envoys accepted before. It takes long: for a thread.

    Raises ``ValueError`` if this version cannot make it.
    """
    from understudy.xds.envoy.resources import build

    content = {
        kind: TypeSnapshot({name: encode(kind, name, value) for name, value in named.items()})
        for kind, named in build(view).items()
        if kind in (CLUSTER, ENDPOINTS, VIRTUAL_HOST)
    }
    return part_of(view, Snapshot(content), view.spec)


class TcpPort(msgspec.Struct, frozen=True):
    """A port that a TCP pool has alone."""

    port: int
    pool: str
    settings: "TcpSettings"


class Composition(msgspec.Struct, frozen=True):
    """The resources of all parts, and the ports on which Envoys listen for them."""

    resources: Mapping[str, Mapping[str, Resource]] = msgspec.field(default_factory=dict)
    ports: tuple["HttpPort | TcpPort", ...] = ()
    pools_of: Mapping[tuple[str, str], tuple[str, ...]] = msgspec.field(default_factory=dict)
    """The pools in each route table, by its name and version."""

    def beside(self, older: "Composition") -> dict[str, dict[str, Resource]]:
        """These resources, and those of ``older`` that are not among them."""
        kinds = {**older.resources, **self.resources}
        return {kind: {**older.resources.get(kind, {}), **self.resources.get(kind, {})} for kind in kinds}


class Composer:
    """Composes parts; a table whose parts are those of the last time is not encoded again."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[tuple[object, ...], Resource]] = {}

    def compose(self, parts: Iterable[FrontPart]) -> Composition:
        """What front Envoys get. The parts must not conflict (:mod:`understudy.statesync.pool.spec_front`)."""
        from understudy.xds.envoy.front_listener import HttpPort, secret, secret_name

        ordered = sorted(parts, key=lambda part: part.pool)
        by_port: dict[int, list[FrontPart]] = defaultdict(list)
        ports: list[HttpPort | TcpPort] = []
        for part in ordered:
            if part.tcp is None:
                by_port[part.front.port].append(part)
            else:
                ports.append(TcpPort(part.front.port, part.pool, part.tcp))
        certificates = {part.front.tls for part in ordered if part.front.tls is not None}
        for port, there in by_port.items():
            tls = {host: part.front.tls for part in there if part.front.tls for host in part.front.hosts}
            ports.append(HttpPort(port, tuple(sorted(tls.items(), key=lambda one: one[0]))))
        tables = {port: self._table(port, there) for port, there in sorted(by_port.items())}
        self._tables = {port: kept for port, kept in self._tables.items() if port in by_port}
        resources = {
            SECRET: {secret_name(one): encode(SECRET, secret_name(one), secret(one)) for one in certificates},
            CLUSTER: {name: one for part in ordered for name, one in part.clusters.resources.items()},
            ENDPOINTS: {name: one for part in ordered for name, one in part.endpoints.resources.items()},
            ROUTES: {table.name: table for table in tables.values()},
        }
        pools_of = {(one.name, one.version): tuple(part.pool for part in by_port[port]) for port, one in tables.items()}
        return Composition(resources, tuple(sorted(ports, key=lambda one: one.port)), pools_of)

    def _table(self, port: int, parts: list[FrontPart]) -> Resource:
        from understudy.xds.envoy.front_listener import table_name

        made_of = tuple((part.front, part.hosts, part.per_second) for part in parts)
        known = self._tables.get(port)
        if known is not None and known[0] == made_of:  # snapshots are equal only to themselves
            return known[1]
        table = _encoded_table(table_name(port), parts)
        self._tables[port] = (made_of, table)
        return table


def _encoded_table(name: str, parts: Sequence[FrontPart]) -> Resource:
    from understudy.xds.envoy.resource_names import part_name
    from understudy.xds.envoy.routes import table_of_pools

    by_host: dict[str, list[tuple[int, str, Resource]]] = defaultdict(list)
    clusters: set[str] = set()
    for part in parts:
        for path in part.front.paths:
            below = part.hosts.resources[part_name(part.pool, path)]
            clusters |= below.points_at.clusters
            for host in part.front.hosts:
                by_host[host].append((-len(path), path, below))
    hosts = []
    for host, found in sorted(by_host.items()):
        # Each part is the encoding of a virtual host with nothing but its routes and a name; the last name counts.
        routes = b"".join(one.value for _, _, one in sorted(found, key=lambda one: one[:2]))
        hosts.append(routes + _host_head(host))
    limits = {part.pool: part.per_second for part in parts if part.per_second is not None}
    value = table_of_pools(name, hosts, limits)
    return encode(ROUTES, name, value, points_at=References(clusters=frozenset(clusters)))


@functools.lru_cache(maxsize=4096)
def _host_head(host: str) -> bytes:
    """A virtual host without its routes."""
    from understudy.xds.envoy.messages import VirtualHost
    from understudy.xds.envoy.routes import virtual_host

    return virtual_host(VirtualHost(name=host, domains=[host]), b"")
