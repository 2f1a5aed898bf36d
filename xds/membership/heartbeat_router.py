"""One gRPC port for the heartbeats of several pools: the first beat of a stream names its pool."""

import asyncio
from collections.abc import Callable

import grpc

from understudy.statesync.heartbeat.heartbeat import STREAM_SILENCE, Beat
from understudy.xds.membership.heartbeat_server import END, BeatContext, HeartbeatServer, add_heartbeats, greet
from understudy.xds.server.ads_router import NotServed
from understudy.xds.server.stream_quota import StreamQuota

Choose = Callable[[str], HeartbeatServer]
"""The server for the heartbeats of a pool; raises :class:`NotServed`."""


class HeartbeatRouter:
    """Hands each heartbeat stream to the server of its pool.

    Attributes:
        quota: counts the streams of all pools together. Each pool has its own quota besides.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.quota = StreamQuota()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the heartbeat service to a gRPC server that is not started yet."""
        add_heartbeats(server, self._serve)

    async def _serve(self, context: BeatContext) -> None:
        async with self.quota.held(context):
            await greet(context)
            try:
                async with asyncio.timeout(STREAM_SILENCE):
                    first = await context.read()
                if first is END:
                    return
                chosen = self._choose(Beat.decode(first).pool)
            except TimeoutError:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no beat for {STREAM_SILENCE:g} s")
            except (ValueError, TypeError) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a beat: {error}")
            except NotServed as error:
                await context.abort(error.code, str(error))
            async with chosen.quota.held(context):
                await chosen.serve(context, first)
