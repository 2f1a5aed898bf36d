"""The parts of a sidecar: one that fails ends the process, one that fails while it is being ended does not."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.harness.waiting import until
from understudy.proxy.sidecar.sidecar import _keep_running


@pytest.fixture
async def told_to_end() -> AsyncIterator[asyncio.Event]:
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    yield told
    loop.remove_signal_handler(signal.SIGTERM)


async def test_a_part_that_fails_ends_the_process_in_order(told_to_end: asyncio.Event) -> None:
    async def broken() -> None:
        raise ValueError("a defect")

    async with AsyncExitStack() as stack:
        await _keep_running(stack, broken(), "a part")
        await until(told_to_end.is_set, what="the process is told to end")


async def test_a_part_that_fails_at_its_end_is_told_and_ends_nothing_else(
    told_to_end: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def clumsy() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise BrokenPipeError("a socket was closed already")

    async with AsyncExitStack() as stack:
        await _keep_running(stack, clumsy(), "a part")
        await begun.wait()

    heard, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await heard.wait()  # signals are heard in order: whatever was sent before was heard before
    loop.remove_signal_handler(signal.SIGUSR1)
    assert not told_to_end.is_set()
    assert "a part did not end well" in caplog.text
