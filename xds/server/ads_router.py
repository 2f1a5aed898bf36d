"""One gRPC port for several xDS servers: the first request of a stream decides which of them serves it.

A stream is that of one server from its first request to its end. What streams need that have sent nothing yet is
limited: by a quota of the port, and by the time that a client has for its first request.
"""

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio

from understudy.xds.server.ads import END, READ, AdsServer, Context, add_discovery
from understudy.xds.server.csds import add_client_status
from understudy.xds.server.stream_config import Variant
from understudy.xds.server.stream_quota import StreamQuota
from understudy.xds.server.wire import Malformed, Node, Request

FIRST_REQUEST_TIMEOUT = 30.0
"""Seconds in which a client has to send its first request. Envoy sends it as soon as the stream is open."""


class NotServed(Exception):
    """No server here is the one that a stream wants; the text says why. ``later``: it may be here soon."""

    def __init__(self, detail: str, *, later: bool = False) -> None:
        super().__init__(detail)
        self.later = later
        self.code = grpc.StatusCode.UNAVAILABLE if later else grpc.StatusCode.FAILED_PRECONDITION


Choose = Callable[[Request], AdsServer]
"""The server for a stream with this first request; raises :class:`NotServed`."""


class AdsRouter:
    """Hands each stream to the server that ``choose`` names.

    Attributes:
        quota: counts the streams of all servers together. Each server has its own quota besides.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.quota = StreamQuota()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the discovery and client status services to a gRPC server that is not started yet.

        A request for client status names its server by the cluster in its ``node``.
        """
        add_discovery(server, self._serve)
        add_client_status(server, lambda cluster: self._chosen_for(cluster).cache, self.quota)

    def _chosen_for(self, cluster: str) -> AdsServer:
        try:
            return self._choose(Request("", Node("", cluster)))
        except NotServed as error:
            raise ValueError(f"node.cluster: {error}") from None

    async def _serve(self, variant: Variant, type_url: str, context: Context) -> None:
        async with self.quota.held(context):
            first = await self._first_request(variant, context)
            if first is None:
                return
            try:
                chosen = self._choose(first)
            except NotServed as error:
                await context.abort(error.code, str(error))
            await chosen.serve(variant, type_url, context, first)

    async def _first_request(self, variant: Variant, context: Context) -> Request | None:
        """The first request of a stream; None if the client ended the stream without one."""
        try:
            async with asyncio.timeout(FIRST_REQUEST_TIMEOUT):
                data = await context.read()
            request = None if data is END else READ[variant](data)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {FIRST_REQUEST_TIMEOUT:g} s")
        except Malformed as fault:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault.detail)
        if request is not None and request.node is None:
            text = "the first request of a stream must carry the node"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        return request
