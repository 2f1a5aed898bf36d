"""Runs the services of a process in one task group. The first service that fails ends the process, and is named."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

logger = logging.getLogger(__name__)

Service = Callable[[], Coroutine[Any, Any, None]]


class ServiceFailed(Exception):
    """A service ended although the process was not to stop. The text names the service and its error."""

    def __init__(self, name: str, error: Exception | None) -> None:
        reason = f"{type(error).__name__}: {error}" if error else "it ended by itself"
        super().__init__(f"service {name} failed ({reason})")


async def run_services(
    services: Mapping[str, Service], stop: asyncio.Event, wind_down: Callable[[], Awaitable[None]]
) -> None:
    """Run services until ``stop`` is set.

    Args:
        services: what has to run, by name. None of them may end by itself before ``stop`` is set.
        stop: ends all.
        wind_down: awaited when ``stop`` is set, while the services still run; they are cancelled afterwards.

    Raises:
        ServiceFailed: if a service failed or ended. All others are cancelled first, without ``wind_down``.
    """
    failures: list[ServiceFailed] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_run(name, service, stop, failures), name=name) for name, service in services.items()
            ]
            await stop.wait()
            await wind_down()
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup:
        for failure in failures:
            logger.error("%s", failure, exc_info=failure.__cause__)  # noqa: TRY400 - the cause, not the group
        if failures:
            raise failures[0] from failures[0].__cause__
        raise


async def _run(name: str, service: Service, stop: asyncio.Event, failures: list[ServiceFailed]) -> None:
    error: Exception | None = None
    try:
        await service()
    except Exception as fault:  # noqa: BLE001 - whatever it is, it ends the process with its name
        error = fault
    if error is not None or not stop.is_set():
        failure = ServiceFailed(name, error)
        failure.__cause__ = error
        failures.append(failure)
        raise failure
