import asyncio
import json
import socket

import aiohttp
import grpc
import pytest
from aiohttp import web

from tests.harness.commands import ask
from tests.harness.etcd import running_etcd
from tests.harness.waiting import free_port, until
from tests.xds.control.control_pool import POOL, control_pool
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.heartbeat.heartbeat import METHOD, Beat
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer, MemberState
from understudy.xds.control import name_check, server
from understudy.xds.control.name_check import holder_of_name
from understudy.xds.control.server import StartError, run_control, serve_until
from understudy.xds.control.settings import ControlSettings


def settings(**changes) -> ControlSettings:
    usual = {
        "pools": (POOL,),
        "name": "control-1",
        "etcd": EtcdSettings((f"127.0.0.1:{free_port()}",)),
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "etcd_patience": 0.5,
    }
    return ControlSettings(**{**usual, **changes})


async def refused(wrong: ControlSettings) -> str:
    with pytest.raises(StartError) as caught:
        await asyncio.wait_for(serve_until(wrong, asyncio.Event()), 40)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_an_etcd_that_does_not_answer_is_named_in_one_line_and_the_code_is_2(capfd):
    wrong = settings()
    assert await run_control(wrong) == 2

    (line,) = capfd.readouterr().err.splitlines()
    assert wrong.etcd.endpoints[0] in line
    assert line.startswith("understudy control: etcd does not answer at")


@pytest.mark.parametrize("option", ["grpc", "http"])
async def test_a_taken_port_is_named(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = await refused(settings(**{option: address}))

    assert f"--{option} {address} cannot be listened at" in told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"grpc": "nowhere"}, "--grpc: 'nowhere' is not HOST:PORT"),
        ({"http": "127.0.0.1:x"}, "--http: '127.0.0.1:x' is not HOST:PORT"),
        ({"http": "0.0.0.0:0"}, "--http 0.0.0.0:0 is not loopback"),
        ({"http": "[::]:0"}, "--http [::]:0 is not loopback"),
        ({"etcd": EtcdSettings(())}, "--etcd"),
    ],
)
async def test_wrong_settings_are_named(wrong, told):
    assert told in await refused(settings(**wrong))


async def test_a_trace_file_that_is_none_is_named(tmp_path):
    (tmp_path / "traces").write_text("a letter to my aunt " * 100)

    assert "trace store" in await refused(settings(traces=tmp_path / "traces"))


async def test_etcd_may_come_a_little_later():
    async with running_etcd() as etcd:
        etcd.stop()
        stop = asyncio.Event()
        http = f"127.0.0.1:{free_port()}"
        late = settings(etcd=EtcdSettings((etcd.endpoint,)), etcd_patience=30, http=http)
        serving = asyncio.create_task(serve_until(late, stop))
        await etcd.start()
        assert not serving.done()
        await until(lambda: ask(http, "/healthz"), 40, "the control server serves, as it does once it has etcd")
        stop.set()
        await asyncio.wait_for(serving, 40)


async def test_a_service_that_fails_is_named_in_one_line_and_the_code_is_1(monkeypatch, capfd):
    async def broken(_: object) -> None:
        raise ValueError("no such span")

    monkeypatch.setattr(server, "collect_when_idle", broken)
    async with running_etcd() as etcd, asyncio.timeout(60):
        assert await run_control(settings(etcd=EtcdSettings((etcd.endpoint,)))) == 1

    said = capfd.readouterr().err.splitlines()
    assert "understudy control: service garbage collection failed (ValueError: no such span)" in said


async def test_the_admin_interface_says_what_is_wrong_with_a_request(tmp_path):
    async with control_pool(tmp_path) as pool:
        control = await pool.control()
        await control.ready()

        for path, status in {
            "/v1/table": 404,
            "/v1/traces/nonsense": 400,
            f"/v1/traces/{'0' * 31}1": 404,
            "/v1/traces?limit=-1": 400,
            "/v1/traces?limit=many": 400,
            "/nowhere": 404,
        }.items():
            problem = await control.ask(path)
            assert (path, problem["status"]) == (path, status)
            assert problem["type"].startswith("urn:understudy:")
            assert problem["detail"]
        assert (await control.ask("/v1/failovers")) == {"failovers": []}
        assert (await control.ask("/v1/traces")) == {"traces": []}
        assert (await control.ask("/v1/xds")) == []
        assert (await control.ask("/readyz")) == {"status": "ready"}


async def test_a_stream_of_nonsense_is_ended_with_its_reason_and_disturbs_nobody(tmp_path):
    async with control_pool(tmp_path) as pool:
        control = await pool.control()
        await control.ready()
        (member,) = await pool.join("cart-1")
        await control.hears(member)
        sound = Beat(POOL, "cart-9", "b", MemberState.UP, 1)
        wrong = {
            b"\xff\x00": grpc.StatusCode.INVALID_ARGUMENT,
            b"[]": grpc.StatusCode.INVALID_ARGUMENT,
            json.dumps({"pool": POOL}).encode(): grpc.StatusCode.INVALID_ARGUMENT,
            json.dumps({**json.loads(sound.encode()), "state": "HAPPY"}).encode(): grpc.StatusCode.INVALID_ARGUMENT,
            Beat("other", "cart-9", "b", MemberState.UP, 1).encode(): grpc.StatusCode.FAILED_PRECONDITION,
        }
        async with grpc.aio.insecure_channel(control.grpc) as channel:
            for first, code in wrong.items():
                call = channel.stream_stream(METHOD)()
                await call.write(first)
                assert (await call.code(), first) == (code, first)
            changing = channel.stream_stream(METHOD)()
            await changing.write(sound.encode())
            await changing.write(Beat(POOL, "cart-8", "b", MemberState.UP, 1).encode())
            assert await changing.code() is grpc.StatusCode.INVALID_ARGUMENT

        await control.hears(member)


async def test_a_second_control_server_of_the_same_name_does_not_start(etcd, client, pool_name, monkeypatch):
    monkeypatch.setattr(name_check, "STATUS_TIMEOUT", aiohttp.ClientTimeout(total=30))

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"control": "control-1", "pool": pool_name})

    app = web.Application()
    app.router.add_get("/v1/status", status)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    keys, holder = PoolKeys(pool_name), ControlServer("control-1", "127.0.0.1:1", f"127.0.0.1:{port}")
    await client.put(keys.control("control-1"), holder.encode())
    try:
        told = await refused(settings(etcd=EtcdSettings((etcd.endpoint,)), pools=(pool_name,)))
        assert "--name control-1: another control server" in told
        assert f"gRPC at 127.0.0.1:1, HTTP at 127.0.0.1:{port}" in told

        newcomer = ControlServer("control-1", "127.0.0.1:2", "127.0.0.1:3")
        assert await holder_of_name(client, keys, newcomer)
        assert not await holder_of_name(client, keys, ControlServer("control-2", "127.0.0.1:2", "127.0.0.1:3"))
        assert not await holder_of_name(client, keys, holder)  # its own addresses: the one before it is gone
    finally:
        await runner.cleanup()
    assert not await holder_of_name(client, keys, newcomer)  # killed: nobody answers any more
