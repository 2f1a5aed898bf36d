"""Runs the services of one process: coroutines that never end by themselves, in one task group.

A service that dies is logged with its error, and tells so, so that the process can end in good order.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def running_services(services: Mapping[str, Coroutine[object, object, None]]) -> AsyncIterator[asyncio.Event]:
    """Run services beside the block, by their names; the event that it gets is set when one of them has died.

    At the end of the block they are cancelled and awaited one by one, the last of them first.
    """
    died, ending = asyncio.Event(), asyncio.Event()
    error: Exception | None = None

    async def run(name: str, service: Coroutine[object, object, None]) -> None:
        try:
            await service
        except Exception:
            if ending.is_set():
                logger.exception("%s did not end well", name)
            else:
                logger.critical("%s failed; this process cannot go on", name, exc_info=True)
                died.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(name, service), name=name) for name, service in services.items()]
        try:
            yield died
        except Exception as raised:  # noqa: BLE001 - raised again below, where no group wraps it
            error = raised
        finally:
            ending.set()
            for task in reversed(tasks):
                task.cancel()
                await asyncio.wait((task,))
    if error is not None:
        raise error
