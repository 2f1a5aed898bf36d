"""Whether the application beside this sidecar answers.

Asks its health path every :data:`INTERVAL` seconds. A refused connection counts at once, since nobody listens there;
an error or silence counts after :data:`FAILURES` in a row, since busy is not dead.
"""

import asyncio
from collections.abc import Callable

import aiohttp

INTERVAL = 0.2
TIMEOUT = 1.0
FAILURES = 3


class ApplicationCheck:
    """The application's health, as last seen. ``reason`` is '' when it is well."""

    def __init__(self, app: str, path: str, on_change: Callable[[], None]) -> None:
        """``app`` is ``host:port``; ``on_change`` is called when it becomes well or ill."""
        self._url = f"http://{app}{path}"
        self._on_change = on_change
        self._failures = FAILURES
        self.reason = "the application has not answered yet"

    @property
    def well(self) -> bool:
        """Whether the application answers."""
        return not self.reason

    async def run(self) -> None:
        """Ask until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                self._note(*await self._ask(http))
                await asyncio.sleep(INTERVAL)

    async def _ask(self, http: aiohttp.ClientSession) -> tuple[str, bool]:
        """What is wrong ('' for nothing), and whether that is beyond doubt."""
        try:
            async with http.get(self._url) as answer:
                if answer.status < 400:
                    return "", True
                return f"the application answers {answer.status} at {self._url}", False
        except aiohttp.ClientConnectorError:
            return f"the application does not listen at {self._url}", True
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"the application does not answer at {self._url}: {str(error) or 'timeout'}", False

    def _note(self, fault: str, certain: bool) -> None:
        self._failures = 0 if not fault else FAILURES if certain else self._failures + 1
        reason = fault if self._failures >= FAILURES else "" if not fault else self.reason
        if reason != self.reason:
            self.reason = reason
            self._on_change()
