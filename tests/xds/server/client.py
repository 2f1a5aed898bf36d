"""A plain xDS client on a real gRPC stream, that does exactly what a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio

from understudy.xds.server import types, wire
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.cache import ResourceCache

_PATIENCE = 30.0
ADS = types.AGGREGATED_SERVICE


class Stream:
    """One stream of a client, of either variant."""

    def __init__(self, channel: grpc.aio.Channel, method: str, *, delta: bool, node: str, cluster: str = "") -> None:
        self.call = channel.stream_stream(f"/{method}")()
        self.delta = delta
        self._node: dict[str, Any] | None = {"id": node, "cluster": cluster}

    async def ask(self, type_url: str, *names: str, **fields: Any) -> None:
        """Send a request; the first one carries the node."""
        kind = wire.DeltaDiscoveryRequest if self.delta else wire.DiscoveryRequest
        listed = {"resource_names_subscribe" if self.delta else "resource_names": names}
        node, self._node = self._node, None
        await self.send(kind(type_url=type_url, node=node, **listed, **fields).SerializeToString())

    async def send(self, data: bytes) -> None:
        await self.call.write(data)

    async def receive(self) -> Any:
        """The next response; fails the test when the stream has ended."""
        async with asyncio.timeout(_PATIENCE):
            data = await self.call.read()
        assert isinstance(data, bytes), f"the stream has ended: {await self.call.code()} {await self.call.details()}"
        return (wire.DeltaDiscoveryResponse if self.delta else wire.DiscoveryResponse).FromString(data)

    async def acknowledge(self, response: Any, *names: str, error: str | None = None) -> None:
        fields: dict[str, Any] = {"response_nonce": response.nonce}
        if not self.delta:
            fields |= {"resource_names": names, "version_info": response.version_info}
        if error is not None:
            fields["error_detail"] = {"code": 3, "message": error}
        kind = wire.DeltaDiscoveryRequest if self.delta else wire.DiscoveryRequest
        await self.send(kind(type_url=response.type_url, **fields).SerializeToString())

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended; reads away what is left of it."""
        async with asyncio.timeout(_PATIENCE):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details() or ""


def connection(port: int) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.use_local_subchannel_pool", 1),))


class Served:
    """A cache, the server in front of it, and clients that connect to it."""

    def __init__(self, cache: ResourceCache, server: AdsServer, channel: grpc.aio.Channel, port: int) -> None:
        self.cache, self.server, self.channel, self.port = cache, server, channel, port

    def stream(self, *, delta: bool, node: str = "front", method: str = "") -> Stream:
        aggregated = f"{ADS}/{'DeltaAggregatedResources' if delta else 'StreamAggregatedResources'}"
        return Stream(self.channel, method or aggregated, delta=delta, node=node)


@contextlib.asynccontextmanager
async def served(
    content: Mapping[str, Mapping[str, Any]] | None = None,
    settings: StreamSettings | None = None,
    cache: ResourceCache | None = None,
    *,
    options: Iterable[tuple[str, int]] = (),
    **more: Any,
) -> AsyncIterator[Served]:
    """A server on a free port with ``content``, ready, and a client channel to it."""
    cache = cache or ResourceCache()
    if content is not None:
        await cache.set_all(content)
        cache.ready()
    server = AdsServer(cache, settings, **more)
    port = await server.start("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=tuple(options)) as channel:
            yield Served(cache, server, channel, port)
    finally:
        await server.stop(0.2)
