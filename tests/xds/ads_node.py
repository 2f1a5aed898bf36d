"""The simplest xDS client that behaves: state of the world over ADS, acknowledges everything, remembers what it saw."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from envoy_data_plane.envoy.config.core.v3 import HealthStatus
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration

from tests.harness.waiting import until
from understudy.xds.server import types, wire

STREAM = f"/{types.AGGREGATED_SERVICE}/StreamAggregatedResources"


class AdsNode:
    """A front Envoy, as far as the protocol goes.

    ``seen`` lists the short names of the answers in their order, ``routes`` the contents of those that are routes.
    """

    def __init__(self, address: str, pool: str, listen: str = "127.0.0.1:10000", name: str = "") -> None:
        self.address, self.pool, self.listen, self.name = address, pool, listen, name or f"front-{id(self):x}"
        self.versions: dict[str, str] = {}
        self.raw: dict[str, list[bytes]] = {}
        self.seen: list[str] = []
        self.routes: list[bytes] = []
        self.code: grpc.StatusCode | None = None

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            call = channel.stream_stream(STREAM)()
            try:
                await self._subscribe(call)
                async for data in call:
                    await self._take(call, wire.DiscoveryResponse.FromString(data))
            except grpc.aio.AioRpcError as error:
                self.code = error.code()

    async def _subscribe(self, call: grpc.aio.StreamStreamCall) -> None:
        first = wire.DiscoveryRequest(type_url=types.CLUSTER)
        first.node.id, first.node.cluster = self.name, self.pool
        first.node.metadata["understudy"] = {"listen": self.listen}
        await call.write(first.SerializeToString())
        await call.write(wire.DiscoveryRequest(type_url=types.LISTENER).SerializeToString())
        routes = wire.DiscoveryRequest(type_url=types.ROUTES, resource_names=[f"{self.pool}/routes"])
        await call.write(routes.SerializeToString())

    async def _take(self, call: grpc.aio.StreamStreamCall, answer: wire.DiscoveryResponse) -> None:
        kind = answer.type_url
        self.versions[kind] = answer.version_info
        self.raw[kind] = [resource.value for resource in answer.resources]
        if kind == types.ENDPOINTS:
            self._endpoints = {**getattr(self, "_endpoints", {}), **self._read_endpoints()}
        self.seen.append(types.short_name(kind))
        if kind == types.ROUTES:
            self.routes.append(self.raw[kind][0])
        names = [f"{self.pool}/routes"] if kind == types.ROUTES else []
        ack = wire.DiscoveryRequest(type_url=kind, version_info=answer.version_info, response_nonce=answer.nonce)
        ack.resource_names.extend(self._clusters() if kind == types.ENDPOINTS else names)
        await call.write(ack.SerializeToString())
        if kind == types.CLUSTER:
            known = types.ENDPOINTS in self.versions
            more = wire.DiscoveryRequest(type_url=types.ENDPOINTS, resource_names=self._clusters())
            if known:
                more.version_info, more.response_nonce = self.versions[types.ENDPOINTS], self._eds_nonce
            await call.write(more.SerializeToString())
        if kind == types.ENDPOINTS:
            self._eds_nonce = answer.nonce

    def _clusters(self) -> list[str]:
        from envoy_data_plane.envoy.config.cluster.v3 import Cluster

        names = [Cluster.parse(raw).name for raw in self.raw.get(types.CLUSTER, [])]
        return sorted(name for name in names if "/order/" not in name)

    def _read_endpoints(self) -> dict[str, dict[str, bool]]:
        found = {}
        for raw in self.raw[types.ENDPOINTS]:
            one = ClusterLoadAssignment.parse(raw)
            hosts = [host for locality in one.endpoints for host in locality.lb_endpoints]
            found[one.cluster_name] = {
                f"{host.endpoint.address.socket_address.address}:{host.endpoint.address.socket_address.port_value}": (
                    host.health_status == HealthStatus.HEALTHY
                )
                for host in hosts
            }
        return found

    def healthy(self, member: str) -> bool | None:
        """Whether the member's endpoint is healthy; None when it is not there."""
        hosts = getattr(self, "_endpoints", {}).get(f"{self.pool}/member/{member}")
        return all(hosts.values()) if hosts else None

    def orders(self, answer: int = -1) -> list[tuple[str, ...]]:
        """The members of each slot, in order, as the routes (of this answer) and the names of their clusters tell."""
        if not self.routes:
            return []
        routes = RouteConfiguration.parse(self.routes[answer]).virtual_hosts[0].routes
        for route in routes:
            if route.route is not None and route.route.weighted_clusters is not None:
                names = [entry.name for entry in route.route.weighted_clusters.clusters]
                return [tuple(name.rpartition("/")[2].split("+")) if "/order/" in name else () for name in names]
        return []


class RefusingNode(AdsNode):
    """A front Envoy that refuses everything, with its name as the reason."""

    async def _take(self, call: grpc.aio.StreamStreamCall, answer: wire.DiscoveryResponse) -> None:
        refusal = wire.DiscoveryRequest(type_url=answer.type_url, response_nonce=answer.nonce)
        refusal.error_detail.code, refusal.error_detail.message = 13, self.name
        await call.write(refusal.SerializeToString())
        self.seen.append(types.short_name(answer.type_url))


@contextlib.asynccontextmanager
async def connected(address: str, pool: str) -> AsyncIterator[AdsNode]:
    """A node that has got all four types."""
    node = AdsNode(address, pool)
    task = asyncio.create_task(node.run())
    try:
        await until(lambda: len(node.versions) == 4, 40, "the node has all types")
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
