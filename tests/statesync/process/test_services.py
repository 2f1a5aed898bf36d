"""The services of a process: one that fails is named and told, an orderly stop ends all, the last of them first."""

import asyncio
from pathlib import Path

import pytest

from tests.harness.places import ROOT
from understudy.statesync.process.services import running_services, set_within


async def steady() -> None:
    await asyncio.Event().wait()


async def broken() -> None:
    raise KeyError("slot")


async def short() -> None:
    await asyncio.sleep(0)


async def test_a_service_that_fails_is_named_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(20), running_services({"publisher": steady(), "leader": broken()}, stop) as running:
        await running.until_stop_or_failure()
        await running.failed.wait()
    assert str(running.failure) == "service leader failed (KeyError: 'slot')"
    assert isinstance(running.failure, Exception)
    assert isinstance(running.failure.__cause__, KeyError)
    assert "service leader failed (KeyError: 'slot'); this process cannot go on" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_service_that_ends_by_itself_has_failed_unless_the_process_is_to_stop() -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(20), running_services({"election": short()}, stop) as running:
        await running.until_stop_or_failure()
    assert str(running.failure) == "service election failed (it ended by itself)"

    stop.set()
    async with asyncio.timeout(20), running_services({"election": short()}, stop) as running:
        await running.until_stop_or_failure()
        await asyncio.sleep(0)
    assert running.failure is None


async def test_the_first_failure_is_told_when_several_services_fail() -> None:
    async with asyncio.timeout(20), running_services({"one": broken(), "two": broken()}, asyncio.Event()) as running:
        await running.failed.wait()
        await asyncio.sleep(0)
    assert "service one failed" in str(running.failure)


async def test_a_service_that_fails_at_its_end_is_logged_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    async def clumsy() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise BrokenPipeError("a socket was closed already")

    async with running_services({"group commit": clumsy()}, asyncio.Event()) as running:
        await begun.wait()
    assert running.failure is None
    assert "service group commit did not end well" in caplog.text


async def test_services_end_one_by_one_the_last_first() -> None:
    ended = []

    async def service(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with running_services({name: service(name) for name in "abc"}, asyncio.Event()):
        await asyncio.sleep(0)
    assert ended == ["c", "b", "a"]


async def test_an_error_in_the_block_is_raised_as_it_is() -> None:
    async def failing() -> None:
        async with running_services({"a service": steady()}, asyncio.Event()):
            await asyncio.sleep(0)
            raise KeyError("k")

    with pytest.raises(KeyError):
        await failing()


@pytest.mark.parametrize("steps", range(5))
async def test_a_loop_that_waits_for_an_event_ends_when_it_is_cancelled_together_with_the_event(steps: int) -> None:
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            event.clear()
            await set_within(event, 0.05)

    looping = asyncio.create_task(loop())
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    looping.cancel()
    done, _ = await asyncio.wait({looping}, timeout=1)
    assert done


async def test_a_wait_tells_whether_the_event_is_set() -> None:
    event = asyncio.Event()
    assert not await set_within(event, 0)
    assert not await set_within(event, 0.01)
    event.set()
    assert await set_within(event, 0)
    assert await set_within(event, None)


@pytest.mark.parametrize("package", ["deploy", "proxy", "statesync", "telemetry", "xds"])
def test_nothing_waits_in_the_way_that_loses_cancellations_before_python_3_12(package: str) -> None:
    assert [path for path in Path(ROOT, package).rglob("*.py") if "asyncio.wait_for(" in path.read_text()] == []
