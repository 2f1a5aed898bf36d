"""The health check of an application in a TCP pool: a connection, and the question that the spec names.

Where Envoy sends a PROXY header, this check sends one without a client: an application that expects a header would
not understand anything else. (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, 2.1 UNKNOWN, 2.2 LOCAL.)
"""

import asyncio

from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec_tcp import Tcp

_NOBODY = {
    "none": b"",
    "v1": b"PROXY UNKNOWN\r\n",
    "v2": b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
}


async def ask(app: str, tcp: Tcp) -> str:
    """The answer of the application at ``host:port``, as long as ``pong``; '' when no answer is expected.

    Raises ``OSError`` when it cannot be reached or breaks the connection. Has no time limit of its own.
    """
    reader, writer = await asyncio.open_connection(*split_address(app))
    try:
        writer.write(_NOBODY[tcp.send_proxy_protocol] + tcp.ping.encode())
        await writer.drain()
        expected = len(tcp.pong.encode())
        answer = b""
        while len(answer) < expected and (more := await reader.read(expected - len(answer))):
            answer += more
        return answer.decode(errors="replace")
    finally:
        writer.close()
