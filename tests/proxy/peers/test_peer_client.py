"""The client of other sidecars: what it sends when connections break."""

import pytest
from aiohttp import web

from tests.harness.http_app import http_app
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_protocol import PeerBroken


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
async def test_a_write_whose_kept_connection_breaks_is_sent_once(method: str) -> None:
    came: list[str] = []

    async def dying(request: web.Request) -> web.Response:
        came.append(request.method)
        if came.count(method) == 1:
            assert request.transport is not None
            request.transport.abort()  # carried out, and dead before the answer
        return web.Response(text="ok")

    client = PeerClient()
    try:
        async with http_app(dying) as port:
            peer = Peer("b", f"127.0.0.1:{port}")
            await client.forward(peer, "GET", "/k", headers={}, body=b"", timeout=20)
            with pytest.raises(PeerBroken):
                await client.forward(peer, method, "/k", headers={}, body=b"x", timeout=20)
    finally:
        await client.close()
    assert came == ["GET", method]
