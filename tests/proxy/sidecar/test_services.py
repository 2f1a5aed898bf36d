"""The services of a process: one that dies is told, one that fails while it is being ended is only logged."""

import asyncio

import pytest

from understudy.proxy.sidecar.services import running_services


async def broken() -> None:
    raise ValueError("a defect")


async def test_a_service_that_dies_is_told_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(20), running_services({"a service": broken()}) as died:
        await died.wait()
    assert "a service failed; this process cannot go on" in caplog.text
    assert "a defect" in caplog.text


async def test_a_service_that_fails_at_its_end_is_logged_and_no_death(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    async def clumsy() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise BrokenPipeError("a socket was closed already")

    async with running_services({"a service": clumsy()}) as died:
        await begun.wait()
    assert not died.is_set()
    assert "a service did not end well" in caplog.text


async def test_services_end_one_by_one_the_last_first() -> None:
    ended = []

    async def service(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with running_services({name: service(name) for name in "abc"}):
        await asyncio.sleep(0)
    assert ended == ["c", "b", "a"]


async def test_an_error_in_the_block_is_raised_as_it_is() -> None:
    async def failing() -> None:
        async with running_services({"a service": asyncio.sleep(60)}):
            await asyncio.sleep(0)
            raise KeyError("k")

    with pytest.raises(KeyError):
        await failing()
