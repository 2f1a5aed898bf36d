"""A relay between sidecars and etcd that can keep saves of sessions from succeeding, and lets all else pass.

It forwards every call as the bytes that it is. A *save* is a transaction that puts or deletes below given prefixes.
It runs in a process of its own, since a test's loop has the cables already; the test tells it what to do in lines of
JSON. Each member has ways of its own through it, one to each etcd, so a fault may be about some members only.
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.harness.places import ROOT
from tests.harness.programs import Program
from tests.harness.waiting import free_port
from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.transport import CHANNEL_OPTIONS

TXN = "/etcdserverpb.KV/Txn"
STREAMS = ("/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive")
PATIENCE = 40.0
"""Seconds for an answer of the relay's process."""
# As in etcd's own server: pings every 5 s at most are no reason to close a connection.
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)


class SaveFault(StrEnum):
    """What becomes of saves. etcd carries out those that are lost, and no others."""

    UNAVAILABLE = "refused at once, and nothing tells whether they were carried out"
    BUSY = "refused at once, surely not carried out"
    DENIED = "refused for lack of permission"
    HANGING = "not answered"
    LOST = "carried out and not answered"


# Texts of etcd's rpctypes, by which clients know what they may do next.
_REFUSALS = {
    SaveFault.UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"),
    SaveFault.BUSY: (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    SaveFault.DENIED: (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"),
}
_HEALED = (grpc.StatusCode.UNAVAILABLE, "the relay dropped this call")


def is_save(request: bytes, prefixes: Sequence[bytes]) -> bool:
    """Whether a transaction puts or deletes a key below one of the prefixes."""
    txn = rpc.TxnRequest.FromString(request)
    for operation in (*txn.success, *txn.failure):
        kind = operation.WhichOneof("request")
        if kind != "request_range" and getattr(operation, kind).key.startswith(tuple(prefixes)):
            return True
    return False


class EtcdGate:
    """The relay as a test uses it: ``members`` by name, each with a way to every one of ``endpoints``."""

    def __init__(
        self, members: Collection[str], endpoints: Sequence[str], prefixes: Sequence[str], log: Path | None
    ) -> None:
        self._ways = {name: {endpoint: free_port() for endpoint in endpoints} for name in members}
        told = json.dumps({"ways": self._ways, "prefixes": list(prefixes)})
        command = [sys.executable, "-m", "tests.harness.etcd_gate", told]
        self._program = Program("etcd-gate", command, log, {"PYTHONPATH": str(ROOT)}, piped=True)
        self._talking = asyncio.Lock()

    def way(self, member: str, endpoint: str) -> str:
        """Where a member reaches one of the etcds: ``host:port``."""
        return f"127.0.0.1:{self._ways[member][endpoint]}"

    @contextlib.asynccontextmanager
    async def failing(self, members: Collection[str], how: SaveFault) -> AsyncIterator[None]:
        """Saves of these members fail during the block; one block at a time."""
        await self._ask(fault=how.name, members=list(members))
        try:
            yield
        finally:
            await self._ask(fault="", members=[])

    async def failed(self, member: str) -> int:
        """How many saves of a member have failed so far."""
        return int((await self._ask()).get(member, 0))

    async def start(self) -> None:
        """Start the process, and wait until it takes calls."""
        self._program.start()
        await self._answer()

    def close(self) -> None:
        """End the process."""
        self._program.kill()

    async def _ask(self, **order: object) -> dict[str, int]:
        async with self._talking:
            self._program.say(json.dumps(order))
            return await self._answer()

    async def _answer(self) -> dict[str, int]:
        process = self._program.process
        assert process is not None
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await asyncio.to_thread(process.stdout.readline)
        assert line, f"the relay before etcd has ended: {self._program.log}"
        counts: dict[str, int] = json.loads(line)
        return counts


@contextlib.asynccontextmanager
async def etcd_gate(
    members: Collection[str], endpoints: Sequence[str], prefixes: Sequence[str], log: Path | None = None
) -> AsyncIterator[EtcdGate]:
    """A relay while the block lasts."""
    gate = EtcdGate(members, endpoints, prefixes, log)
    try:
        await gate.start()
        yield gate
    finally:
        gate.close()


@dataclass(frozen=True)
class _Order:
    """What the test has told: the members whose saves fail, and how. ``over`` is set once it tells something else."""

    how: SaveFault | None = None
    members: frozenset[str] = frozenset()
    over: asyncio.Event = field(default_factory=asyncio.Event)


class _Faults:
    """Which saves fail."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.failed: Counter[str] = Counter()
        self._prefixes = [prefix.encode() for prefix in prefixes]
        self._order = _Order()

    def take(self, order: dict[str, Any]) -> None:
        """Carry out an order; the calls that wait are let go."""
        if "fault" in order:
            before = self._order
            self._order = _Order(SaveFault[order["fault"]] if order["fault"] else None, frozenset(order["members"]))
            before.over.set()

    def of(self, member: str, request: bytes) -> _Order:
        """What is to become of this transaction; it counts as failed if anything is."""
        order = self._order
        if order.how is None or member not in order.members or not is_save(request, self._prefixes):
            return _Order()
        self.failed[member] += 1
        return order


class _Way(grpc.GenericRpcHandler):
    """The calls of one member to one etcd."""

    def __init__(self, member: str, endpoint: str, faults: _Faults) -> None:
        self._member = member
        self._channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        self._faults = faults

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a method: all are handled alike, apart from those that stream."""
        if details.method in STREAMS:
            return grpc.stream_stream_rpc_method_handler(self._streaming(details.method))
        return grpc.unary_unary_rpc_method_handler(self._unary(details.method))

    def _unary(self, method: str) -> Callable[..., Any]:
        call = self._channel.unary_unary(method)

        async def handle(request: bytes, context: Any) -> bytes:
            order = self._faults.of(self._member, request) if method == TXN else _Order()
            answer = b""
            if order.how in _REFUSALS:
                await context.abort(*_REFUSALS[order.how])
            if order.how is not SaveFault.HANGING:
                try:
                    answer = await call(request, timeout=context.time_remaining(), metadata=_metadata(context))
                except grpc.aio.AioRpcError as error:
                    await _fail_alike(context, error)
            if order.how is not None:
                await order.over.wait()
                await context.abort(*_HEALED)
            return answer

        return handle

    def _streaming(self, method: str) -> Callable[..., Any]:
        stream = self._channel.stream_stream(method)

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = stream(requests, timeout=context.time_remaining(), metadata=_metadata(context))
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as error:
                await _fail_alike(context, error)
            finally:
                call.cancel()

        return handle


async def _fail_alike(context: Any, error: grpc.aio.AioRpcError) -> None:
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


def _metadata(context: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith((":", "grpc-")) and key not in ("user-agent", "te", "content-type")
    )


async def _relay(told: dict[str, Any]) -> None:
    """Relay until the test is gone."""
    faults = _Faults(told["prefixes"])
    servers = []  # one that nobody refers to ends
    for member, ways in told["ways"].items():
        for endpoint, port in ways.items():
            server = grpc.aio.server(options=SERVER_OPTIONS)
            server.add_generic_rpc_handlers((_Way(member, endpoint, faults),))
            server.add_insecure_port(f"127.0.0.1:{port}")
            await server.start()
            servers.append(server)
    _say(faults)
    while line := await asyncio.to_thread(sys.stdin.readline):
        faults.take(json.loads(line))
        _say(faults)


def _say(faults: _Faults) -> None:
    sys.stdout.write(json.dumps(faults.failed) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_relay(json.loads(sys.argv[1])))
