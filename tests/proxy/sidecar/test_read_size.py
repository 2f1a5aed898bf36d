"""How much a sidecar reads from a connection at once."""

import asyncio
import socket
from asyncio import selector_events

import pytest

from understudy.proxy.sidecar.sidecar import READ_MOST, read_less_at_once


class Received(asyncio.Protocol):
    """Keeps the sizes of what arrives."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def test_a_long_message_arrives_whole_in_reads_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = vars(selector_events)["_SelectorTransport"]
    monkeypatch.setattr(transport, "max_size", transport.max_size)
    read_less_at_once()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours.setblocking(False)
    sent = ours.send(bytes(200_000))
    ours.close()
    assert sent > READ_MOST

    _, received = await asyncio.get_running_loop().create_connection(Received, sock=theirs)

    await asyncio.wait_for(received.ended.wait(), 20)
    assert sum(received.sizes) == sent
    assert max(received.sizes) <= READ_MOST
