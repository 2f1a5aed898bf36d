"""Connections that ask nothing, and too many of them: they are dropped, and reviews go on."""

import asyncio
import json
import ssl
from pathlib import Path

import aiohttp

from tests.deploy.kubernetes.injection.harness import PLAIN, review
from tests.deploy.kubernetes.injection.shapes import pod
from tests.harness.certificates import Authority
from tests.harness.waiting import free_port, until
from understudy.deploy.kubernetes.webhook.connection_limit import Door
from understudy.deploy.kubernetes.webhook.server import Webhook
from understudy.proxy.sidecar.listen import TlsSite

HEAD = b"POST /mutate HTTP/1.1\r\nHost: injector\r\nContent-Type: application/json\r\n"


async def test_who_connects_and_asks_nothing_is_dropped_and_more_than_there_is_room_for_are_refused(
    tmp_path: Path,
) -> None:
    identity = Authority(tmp_path).issue("tls", "DNS:injector", use="serverAuth")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(identity.cert, identity.key)
    trusted = ssl.create_default_context(cafile=str(identity.ca))
    port, room, patience = free_port(), 4, 1.0
    webhook = Webhook(PLAIN, door=Door(room, patience))
    runner = aiohttp.web.AppRunner(webhook.app())
    await runner.setup()
    await TlsSite(runner, "127.0.0.1", port, served, webhook.door.protocols).start()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port, ssl=trusted, server_hostname="injector")

    async with aiohttp.ClientSession() as http:

        async def reviewed(http: aiohttp.ClientSession = http) -> bool:
            url, body = f"https://127.0.0.1:{port}/mutate", json.dumps(review(pod()))
            headers = {"Content-Type": "application/json"}
            async with http.post(url, data=body, headers=headers, ssl=trusted, server_hostname="injector") as answer:
                return bool((await answer.json())["response"]["allowed"])

        try:
            await until(reviewed, what="a review, on a connection that is kept")
            idle = [await connect() for _ in range(room - 1)]
            for _, writer in idle[:1]:
                writer.write(HEAD)  # and never the end of it
            reader, _ = await connect()
            async with asyncio.timeout(30):
                assert await ended(reader)
            assert await reviewed()
            async with asyncio.timeout(30):
                assert all([await ended(reader) for reader, _ in idle])
            await until(reviewed, what="reviews go on")
            async with aiohttp.ClientSession() as another:
                await until(lambda: reviewed(another), what="there is room again")
        finally:
            await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True
