"""Confirms that a replica is up to date, before it sends a client other versions than the client came with."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0


class Freshness:
    """Shares one confirmation among all streams that wait for one; no stream uses one that began before it waited."""

    def __init__(self, confirm: Callable[[], Awaitable[None]]) -> None:
        self._confirm = confirm
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def confirmed(self) -> None:
        """Return when a confirmation that began after this call has succeeded, however often it has to be tried."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await future

    async def close(self) -> None:
        """Stop trying."""
        await cancel(self._task)

    async def _run(self) -> None:
        while self._waiting:
            served, self._waiting = self._waiting, []
            try:
                await self._confirm()
            except Exception as fault:  # noqa: BLE001  whatever the error is, clients keep what they have
                logger.warning(
                    "cannot confirm that this server is up to date; clients with other versions wait: %s", fault
                )
                self._waiting = [*served, *self._waiting]
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            for future in served:
                if not future.done():
                    future.set_result(None)


async def cancel(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
