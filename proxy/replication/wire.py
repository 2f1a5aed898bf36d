"""How two members speak over a replication connection: a WebSocket of the peer API that carries frames.

One connection goes from each process that is active in a slot to each process that has copies of its slots. It has the
messages of all these slots, in order. WebSocket (RFC 6455) brings framing, pings and the peer API's port with its
certificates. A frame of our own on a plain connection costs 10 to 15 % less CPU, and would need a port of its own.
"""

from collections.abc import Sequence

import aiohttp
from aiohttp import web

from understudy.statesync.replication.messages import PROTOCOL, Hello, Message, decode_frame, encode_frame

FRAME_MOST = 64 * 1024 * 1024
"""Bytes of a frame. It holds the largest session that a spec may allow."""
PING_SECONDS = 2.0
"""A connection is pinged so often, and ends if half of this time brings no answer."""
IDLE_SECONDS = 0.25
"""The longest time in which an active sends nothing: an empty frame tells a copy how current it is, and is answered."""

WebSocket = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


class ConnectionEnded(Exception):
    """The connection has ended, or what came over it is no frame."""


async def send(socket: WebSocket, messages: Sequence[Message]) -> None:
    """Send one frame; waits while too much is under way. Raises :class:`ConnectionEnded`."""
    try:
        await socket.send_bytes(encode_frame(messages))
    except (ConnectionError, aiohttp.ClientError, RuntimeError) as error:
        raise ConnectionEnded(str(error) or type(error).__name__) from error


async def receive(socket: WebSocket) -> list[Message]:
    """The messages of the next frame. Raises :class:`ConnectionEnded`."""
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.BINARY:
        raise ConnectionEnded(_why(socket, message))
    try:
        return decode_frame(message.data)
    except ValueError as error:
        raise ConnectionEnded(str(error)) from error


async def greeting(socket: WebSocket, pool: str) -> Hello:
    """The other side's first message. Raises :class:`ConnectionEnded` if it is something else, or of another pool."""
    match await receive(socket):
        case [Hello() as hello]:
            if hello.pool != pool:
                raise ConnectionEnded(f"{hello.member} is of the pool {hello.pool}, and this is {pool}")
            if hello.protocol < PROTOCOL:
                raise ConnectionEnded(f"{hello.member} speaks version {hello.protocol} of the replication protocol")
            return hello
    raise ConnectionEnded("the connection does not begin with a greeting")


def _why(socket: WebSocket, message: aiohttp.WSMessage) -> str:
    if message.type is aiohttp.WSMsgType.CLOSE and message.extra:
        return str(message.extra)
    error = socket.exception()
    return str(error) if error is not None else "the connection was closed"
