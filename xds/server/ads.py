"""The xDS server on gRPC: the aggregated service and those per type, both variants, one stream loop for all.

Carries out what ``understudy.xds.server.stream`` decides. At most one response per stream is being written. Changes
meanwhile are merged into the next one, so a slow reader costs no memory and gets the newest content. Streams are
refused until the cache is ready. They end cleanly when the server stops or when they are old. Invalid bytes from a
client end its stream with a gRPC status.
"""

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from understudy.xds.server import types, wire
from understudy.xds.server.cache import PushEvent, ResourceCache, Subscriber
from understudy.xds.server.csds import add_client_status
from understudy.xds.server.freshness import Freshness, cancel
from understudy.xds.server.stream import StreamState
from understudy.xds.server.stream_config import EncodedResponse, RequestRefused, StreamLimits, StreamTimeouts, Variant
from understudy.xds.server.stream_quota import HTTP2_LIMIT, QuotaLimits, StreamQuota
from understudy.xds.server.wire import Malformed, Node, Request

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]
Identify = Callable[[Node, Mapping[str, Any]], str | None]
Serve = Callable[[Variant, str, Context], Awaitable[None]]
"""Serves one stream to its end, given its variant and the type of its service ('': the aggregated one)."""

READ = {Variant.SOTW: wire.read_request, Variant.DELTA: wire.read_delta_request}
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
_MAX_REQUEST_BYTES = 16 * 1024 * 1024
# gRPC refuses streams at random when more than 1,000 wait to be accepted. That happens when all Envoys of a replica
# that died come at once. A waiting stream costs little, and 20,000 is far more than one process serves.
ACCEPT_ALL = (
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
)
# The stream of a client that was cut off ends soon: until then its old stream exists beside its new one. But an Envoy
# may be busy with a large configuration for seconds.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping as often as they do here (Envoy's connection_keepalive,
    # understudy.statesync.heartbeat.heartbeat.PINGS).
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)
_OPTIONS = (
    *ACCEPT_ALL,
    *KEEPALIVE,
    *HTTP2_LIMIT,
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 0),  # 0.7 KB a connection, for a service that is not offered
)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How streams are kept.

    Attributes:
        timeouts: how long a stream waits for its node.
        limits: what a stream may ask for.
        quota: how many streams may be open.
        max_age: seconds after which a stream is ended cleanly, so that clients spread over the replicas; each
            stream draws its own between 80 % and 120 %. 0 lets streams live.
    """

    timeouts: StreamTimeouts = field(default_factory=StreamTimeouts)
    limits: StreamLimits = field(default_factory=StreamLimits)
    quota: QuotaLimits = field(default_factory=QuotaLimits)
    max_age: float = 0.0


def add_discovery(server: grpc.aio.Server, serve: Serve) -> None:
    """Add the discovery services, the aggregated one and those per type, to a gRPC server that is not started yet."""

    def handler(variant: Variant, type_url: str = "") -> Any:  # noqa: ANN401  gRPC's handler type is private
        async def handle(_: AsyncIterator[bytes], context: Context) -> None:
            await serve(variant, type_url, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    methods = {
        "StreamAggregatedResources": handler(Variant.SOTW),
        "DeltaAggregatedResources": handler(Variant.DELTA),
    }
    handlers = [grpc.method_handlers_generic_handler(types.AGGREGATED_SERVICE, methods)]
    for service, (type_url, sotw, delta) in types.TYPE_SERVICES.items():
        methods = {sotw: handler(Variant.SOTW, type_url), delta: handler(Variant.DELTA, type_url)}
        handlers.append(grpc.method_handlers_generic_handler(service, methods))
    server.add_generic_rpc_handlers(tuple(handlers))


class AdsServer:
    """Serves a :class:`ResourceCache` over xDS.

    Args:
        cache: what is served.
        settings: how streams are kept.
        confirm_fresh: awaited before a client with versions from another server is sent other ones. It returns when the
            cache is as new as the source of truth was at the call. So a replica that is behind gives no client an older
            configuration.
        identify: given a stream's node and gRPC's auth context, returns why the stream is not allowed, or None.

    Attributes:
        quota: counts the open streams, and the refused ones.
    """

    def __init__(
        self,
        cache: ResourceCache,
        settings: StreamSettings | None = None,
        *,
        confirm_fresh: Callable[[], Awaitable[None]] | None = None,
        identify: Identify | None = None,
    ) -> None:
        self.cache = cache
        self.settings = settings or StreamSettings()
        self.identify = identify
        self.quota = StreamQuota(self.settings.quota)
        self.freshness = Freshness(confirm_fresh) if confirm_fresh is not None else None
        self._streams: dict[_Stream, None] = {}
        self._numbers = itertools.count()
        self._boot = secrets.token_hex(3)
        self._siblings = cache.siblings  # bound once: every stream has it
        self._stopping = False
        self._server: grpc.aio.Server | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Add the discovery and client status services to a gRPC server that the caller starts and stops."""
        add_discovery(server, self.serve)
        add_client_status(server, lambda _: self.cache, self.quota)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Serve on ``address`` (``host:port``, port 0 picks one) and return the port.

        Plain text without ``credentials``. Raises ``RuntimeError`` if the address cannot be used.
        """
        server = grpc.aio.server(options=_OPTIONS)
        self.register(server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        self._server = server
        return port

    async def stop(self, grace: float = 1.0) -> None:
        """End every stream cleanly and, if :meth:`start` made one, the gRPC server, within ``grace`` seconds."""
        self._stopping = True
        for stream in self._streams:
            stream.wake()
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        if self.freshness is not None:
            await self.freshness.close()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def stopping(self) -> bool:
        """Whether streams are being ended."""
        return self._stopping

    async def serve(self, variant: Variant, type_url: str, context: Context, first: Request | None = None) -> None:
        """Serve one stream to its end. ``first`` is its first request, if that was read already."""
        if not self.cache.is_ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this server has not loaded its state yet")
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this server is stopping")
        stream_state = StreamState(
            variant,
            prefix=f"{self._boot}-{next(self._numbers):x}-",
            type_url=type_url,
            timeouts=self.settings.timeouts,
            limits=self.settings.limits,
            siblings=self._siblings,
        )
        async with self.quota.held(context):
            stream = _Stream(self, stream_state, context)
            self._streams[stream] = None
            self.cache.counters.streams += 1
            try:
                await stream.run(first)
            finally:
                del self._streams[stream]


class _Stream:
    """One open stream: a reader task takes in requests, and the handler's own task writes responses."""

    __slots__ = (
        "_cache",
        "_client",
        "_context",
        "_ends_at_ns",
        "_finished",
        "_refusal",
        "_server",
        "_stirred",
        "_stream_state",
        "_waiter",
        "_waiting_for_freshness",
    )

    def __init__(self, server: AdsServer, stream_state: StreamState, context: Context) -> None:
        self._server = server
        self._cache = server.cache
        self._stream_state = stream_state
        self._context = context
        self._stirred = False
        self._waiter: asyncio.Future[None] | None = None
        self._client: Subscriber | None = None
        self._refusal: tuple[grpc.StatusCode, str] | None = None
        self._waiting_for_freshness: asyncio.Task[None] | None = None
        self._finished = False
        self._ends_at_ns = _end_of_life(server.settings.max_age)
        stream_state.fresh = server.freshness is None

    def wake(self) -> None:
        """There may be something to do."""
        self._stirred = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self, first: Request | None) -> None:
        """Serve until the client or the server ends the stream; ``first`` is a request that was read already."""
        # Only one coroutine and one future per idle stream: there may be thousands of them.
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(self._read(first))
        end = None
        if self._ends_at_ns != _NEVER:
            left = (self._ends_at_ns - time.monotonic_ns()) / 1e9 + 0.001  # never too early
            end = loop.call_later(left, self.wake)
        try:
            while not self._is_over():
                now_ns = time.monotonic_ns()
                outgoing = self._stream_state.next(now_ns) if self._client is not None else None
                if outgoing is not None:
                    changed_ns = self._stream_state.changed_ns
                    await self._context.write(outgoing.data)
                    self._tell_pushed(outgoing, changed_ns, now_ns)
                    outgoing = None  # an idle stream must not keep its bytes
                    continue
                timer = self._settle(now_ns)
                if not self._stirred:
                    self._waiter = loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                self._stirred = False
                if timer is not None:
                    timer.cancel()
            if self._refusal is not None:
                self._cache.counters.refused_requests += 1
                await self._context.abort(*self._refusal)
        finally:
            if end is not None:
                end.cancel()
            if self._client is not None:
                self._cache.leave(self._client)
            await cancel(reader, self._waiting_for_freshness)

    # Reading

    async def _read(self, first: Request | None) -> None:
        try:
            if first is not None:
                await self._take_in(first)
                first = None  # an idle stream must not keep it
            # Read from the call itself: its iterator costs a generator per stream.
            while (data := await self._context.read()) is not END:
                await self._take_in(READ[self._stream_state.variant](data))
        except Malformed as fault:
            self._refusal = (grpc.StatusCode.INVALID_ARGUMENT, fault.detail)
        except RequestRefused as fault:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if fault.exhausted else grpc.StatusCode.INVALID_ARGUMENT
            self._refusal = (code, fault.detail)
        except _NotAllowed as fault:
            self._refusal = (grpc.StatusCode.PERMISSION_DENIED, str(fault))
        except Exception:
            logger.exception("a stream of %s ends because of an error in the server", self._context.peer())
            self._refusal = (grpc.StatusCode.INTERNAL, "an error in the server; see its log")
        finally:
            self._finished = True
            self.wake()

    async def _take_in(self, request: Request) -> None:
        client = self._client
        if client is None:
            client = await self._introduce(self._stream_state.introduce(request))
        now_ns = time.monotonic_ns()
        type_url, outcome = self._stream_state.on_request(request, now_ns)
        self._cache.on_request(client, type_url, outcome, now_ns)
        if self._stream_state.rests():
            self._cache.on_idle(client)
        else:
            self.wake()

    async def _introduce(self, node: Node) -> Subscriber:
        if self._server.identify is not None:
            reason = self._server.identify(node, self._context.auth_context())
            if reason is not None:
                raise _NotAllowed(reason)
        group = self._cache.node_group(node)
        self._client = Subscriber(self._stream_state, group, self._context.peer(), self.wake)
        await self._cache.join(self._client)
        return self._client

    # Writing

    def _is_over(self) -> bool:
        return self._finished or self._server.stopping or time.monotonic_ns() >= self._ends_at_ns

    def _tell_pushed(self, outgoing: EncodedResponse, changed_ns: int, now_ns: int) -> None:
        self._cache.on_response_written(
            PushEvent(
                node=self._client.node if self._client else "",
                type_url=outgoing.type_url,
                version=outgoing.version,
                resources=outgoing.resources,
                removed=outgoing.removed,
                size=len(outgoing.data),
                changed_at_ns=changed_ns,
                sent_at_ns=now_ns,
                written_at_ns=time.monotonic_ns(),
                asked=outgoing.asked,
            )
        )

    def _settle(self, now_ns: int) -> asyncio.TimerHandle | None:
        """There is nothing to send now: do what else is due, and start the timer that wakes the stream."""
        if self._client is not None:
            self._cache.on_idle(self._client)
        if self._stream_state.needs_freshness and self._waiting_for_freshness is None:
            self._waiting_for_freshness = asyncio.create_task(self._become_fresh())
        until = self._stream_state.wake_ns
        if until is None:
            return None
        return asyncio.get_running_loop().call_later(max(0, until - now_ns) / 1e9, self.wake)

    async def _become_fresh(self) -> None:
        if self._server.freshness is not None:
            await self._server.freshness.confirmed()
        self._stream_state.fresh = True
        self.wake()


class _NotAllowed(Exception):
    """The client's certificate is not for the node that it claims to be."""


_NEVER = (1 << 63) - 1


def _end_of_life(max_age: float) -> int:
    if max_age <= 0:
        return _NEVER
    return time.monotonic_ns() + round(max_age * random.uniform(0.8, 1.2) * 1e9)  # noqa: S311  spreads load only
