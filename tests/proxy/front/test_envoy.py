"""An Envoy under supervision: it starts, comes back, drains, ends, and says what is wrong when it cannot."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.harness.forkserver import forked
from tests.harness.waiting import free_port, until
from tests.proxy.front.fronts import Control, answers, running_control
from understudy.proxy.front.binary import BINARY_VARIABLE, EnvoyMissingError, find_envoy
from understudy.proxy.front.envoy import (
    AddressInUseError,
    EnvoyProcess,
    EnvoyStartError,
    run_envoy,
)


@pytest_asyncio.fixture
async def control() -> AsyncIterator[Control]:
    async with running_control() as running:
        yield running


@contextlib.asynccontextmanager
async def front_process(control: Control, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "tests.proxy.front.front_process", control.listen, control.xds, str(directory))
    process = await asyncio.create_subprocess_exec(
        *forked(command), stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def serves(control: Control) -> bool:
    return await answers(control.listen) == "here"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_there(path: Path) -> bool:
    return path.exists()


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("delta", [True, False])
async def test_it_serves_what_the_control_server_tells_it(control: Control, delta: bool):
    async with EnvoyProcess(control.settings(delta=delta)) as envoy:
        assert await envoy.ready(40)
        assert await answers(control.listen) == "here"


async def test_a_killed_envoy_comes_back_and_the_log_says_what_it_died_of(
    control: Control, caplog: pytest.LogCaptureFixture
):
    async with EnvoyProcess(control.settings()) as envoy:
        assert await envoy.ready(40)
        killed = envoy.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await until(lambda: envoy.restarts >= 1 and serves(control), timeout=40, what="Envoy back")
        assert envoy.pid not in (None, killed)
        assert "ended by SIGKILL" in caplog.text


async def test_a_stop_lets_requests_under_way_finish_and_leaves_nothing(control: Control):
    async with EnvoyProcess(control.settings(drain=10.0)) as envoy:
        assert await envoy.ready(40)
        pid, directory = envoy.pid, envoy._admin_file.parent
        assert pid is not None
        request = asyncio.create_task(answers(control.listen, "/wait"))
        await until(lambda: control.application.waiting, what="the request at its member")
        stopping = asyncio.create_task(envoy.stop())
        await until(lambda: not envoy.supervised, what="the stop begun")
        control.application.go.set()
        assert await request == "here"
        await stopping
    assert not is_running(pid)
    assert not is_there(directory)
    assert not listens(control.listen)


async def test_a_stop_does_not_wait_for_ever(control: Control):
    async with EnvoyProcess(control.settings(drain=0.2)) as envoy:
        assert await envoy.ready(40)
        request = asyncio.create_task(answers(control.listen, "/wait"))
        await until(lambda: control.application.waiting, what="the request at its member")
    with pytest.raises(aiohttp.ClientError):
        await request


async def test_sigterm_ends_the_supervisor_and_its_envoy(control: Control, tmp_path: Path):
    async with front_process(control, tmp_path) as process:
        await until(lambda: serves(control), timeout=40, what="the front")
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 40) == 0
        assert not listens(control.listen)


async def test_a_killed_supervisor_takes_its_envoy_along_so_that_a_new_one_can_start(control: Control, tmp_path: Path):
    async with front_process(control, tmp_path) as process:
        await until(lambda: serves(control), timeout=40, what="the front")
        process.kill()
        await process.wait()
    await until(lambda: not listens(control.listen), what="the port free again")
    async with EnvoyProcess(control.settings()) as envoy:
        assert await envoy.ready(40)


@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_port_in_use_is_named(control: Control, which: str, caplog: pytest.LogCaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = control.settings(**{which: address})
        with pytest.raises(AddressInUseError, match=f"{which} address {address}: Address already in use"):
            await EnvoyProcess(settings).start()
        with caplog.at_level(logging.ERROR):
            assert await run_envoy(settings) == 2
    assert address in caplog.text


async def test_another_envoy_on_the_same_port_is_noticed_too(control: Control):
    async with EnvoyProcess(control.settings()) as first:
        assert await first.ready(40)
        with pytest.raises(AddressInUseError):
            await EnvoyProcess(control.settings(node_id="front-2")).start()


async def test_an_envoy_that_ends_at_once_is_an_error_with_its_last_words(control: Control, tmp_path: Path):
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho 'cannot go on' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EnvoyStartError, match="exit code 3: cannot go on"):
        async with EnvoyProcess(control.settings(binary=broken)):
            pass


async def test_without_a_control_server_it_waits_and_is_not_ready(control: Control):
    nowhere = control.settings(xds_addresses=[f"127.0.0.1:{free_port()}"])
    async with EnvoyProcess(nowhere) as envoy:
        assert not await envoy.ready(0.5)
        assert not listens(control.listen)


async def test_it_finds_the_control_server_that_is_alive(control: Control):
    some_dead = [f"127.0.0.1:{free_port()}", control.xds, f"127.0.0.1:{free_port()}"]
    async with EnvoyProcess(control.settings(xds_addresses=some_dead)) as envoy:
        assert await envoy.ready(40)


def test_the_binary_can_be_named(tmp_path: Path):
    named = tmp_path / "my-envoy"
    named.write_bytes(b"\x7fELF")
    named.chmod(0o755)
    assert find_envoy({BINARY_VARIABLE: str(named)}) == named
    with pytest.raises(EnvoyMissingError, match=BINARY_VARIABLE):
        find_envoy({BINARY_VARIABLE: str(tmp_path / "none")})


def test_a_binary_on_the_path_is_preferred_and_a_wrapper_script_is_not(tmp_path: Path):
    envoy = tmp_path / "envoy"
    envoy.write_bytes(b"\x7fELF")
    envoy.chmod(0o755)
    assert find_envoy({"PATH": str(tmp_path)}) == envoy
    envoy.write_text("#!/usr/bin/python\n")
    assert find_envoy({"PATH": str(tmp_path)}) != envoy
