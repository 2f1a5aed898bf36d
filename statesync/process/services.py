"""Runs the services of a process in one task group. A service that fails is named, and the process is told to end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

logger = logging.getLogger(__name__)


class ServiceFailed(Exception):
    """A service ended although the process was not to stop. The text names the service and its error."""

    def __init__(self, name: str, error: Exception | None) -> None:
        reason = f"{type(error).__name__}: {error}" if error else "it ended by itself"
        super().__init__(f"service {name} failed ({reason})")
        self.__cause__ = error


class Services:
    """The running services of a process: ``failed`` is set when one of them has failed, and ``failure`` says which."""

    def __init__(self, stop: asyncio.Event, whole: str) -> None:
        self.failed = asyncio.Event()
        self.failure: ServiceFailed | None = None
        self._stop = stop
        self._whole = whole

    async def until_stop_or_failure(self) -> None:
        """Wait until the process is to stop, or a service has failed."""
        await first_of(self._stop, self.failed)

    def fail(self, failure: ServiceFailed) -> None:
        """A service has failed; the first of several is kept."""
        logger.critical("%s; %s cannot go on", failure, self._whole, exc_info=failure.__cause__)
        self.failure = self.failure or failure
        self.failed.set()


@contextlib.asynccontextmanager
async def running_services(
    services: Mapping[str, Coroutine[Any, Any, None]], stop: asyncio.Event, whole: str = "this process"
) -> AsyncIterator[Services]:
    """Run services beside the block, and end them after it one by one, the last of them first.

    Args:
        services: what has to run, by name. None of them may end by itself before ``stop`` is set.
        stop: is set when the process is to stop.
        whole: what cannot go on when one of them fails, for the log.
    """
    running, ending = Services(stop, whole), asyncio.Event()
    error: Exception | None = None

    async def run(name: str, service: Coroutine[Any, Any, None]) -> None:
        try:
            await service
        except Exception as fault:
            if ending.is_set():
                logger.exception("service %s did not end well", name)
            else:
                running.fail(ServiceFailed(name, fault))
        else:
            if not (stop.is_set() or running.failed.is_set()):
                running.fail(ServiceFailed(name, None))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(name, service), name=name) for name, service in services.items()]
        try:
            yield running
        except Exception as raised:  # noqa: BLE001 - raised again below, where no group wraps it
            error = raised
        finally:
            ending.set()
            for task in reversed(tasks):
                task.cancel()
                await asyncio.wait((task,))
    if error is not None:
        raise error


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until ``event`` is set, for at most ``seconds`` (None: without end); returns whether it is set.

    A loop may wait like this and still be cancelled at any time. With ``asyncio.wait_for`` it may not: before
    Python 3.12 that returns normally if the cancellation comes together with the event, and the loop goes on for ever.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def first_of(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
