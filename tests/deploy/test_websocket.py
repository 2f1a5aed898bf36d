"""A WebSocket whose member is killed: the client connects again and goes on where it was."""

import sys
from pathlib import Path

import aiohttp

from deploy.local import LocalPool, LocalSettings
from statesync.etcd import EtcdClient
from statesync.spec import PoolSpec
from tests.harness.local_pools import settled


async def test_a_broken_websocket_finds_its_state_at_the_standby(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.counting_app"
    settings = LocalSettings(directory=tmp_path, spec=PoolSpec(pool="count"), app=app)
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, aiohttp.ClientSession() as http:
        await settled(pool.layout, etcd)
        url, who = f"{pool.layout.front_url}/count", {"x-session-id": "abc"}
        async with http.ws_connect(url, headers=who) as socket:
            for expected in (1, 2, 3):
                await socket.send_str("one more")
                counted = await socket.receive_json(timeout=10)
                assert counted["count"] == expected
            first = counted["member"]
            pool.processes.kill(*pool.member_processes(first))
            assert (await socket.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

        async with http.ws_connect(url, headers=who) as socket:
            await socket.send_str("one more")
            counted = await socket.receive_json(timeout=10)
            assert counted["count"] == 4
            assert counted["member"] != first
