"""Whether the application beside this sidecar answers.

Asks its health path every :data:`INTERVAL` seconds, one question at a time. A refused connection counts at once, since
nobody listens there; an answer that says no counts after :data:`FAILURES` in a row; silence counts after the patience
that the pool's spec allows, longer while the application, or this process, was seen to be slow: busy is not dead.
In a TCP pool it opens a connection instead, with the question that the spec names (:mod:`proxy.tcp_question`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import aiohttp

from proxy.tcp_question import ask
from statesync.beat import LOAD_WINDOW, patience
from statesync.spec import Liveness
from statesync.spec_tcp import Tcp

INTERVAL = 0.1
FAILURES = 3


class ApplicationCheck:
    """The application's health, as last seen. ``reason`` is '' when it is well."""

    def __init__(
        self,
        app: str,
        path: str,
        on_change: Callable[[], None],
        *,
        rules: Callable[[], Liveness],
        stall: Callable[[], float],
        known: Callable[[], bool] = lambda: True,
        tcp: Callable[[], Tcp | None] = lambda: None,
    ) -> None:
        """``app`` is ``host:port``; ``on_change`` is called when it becomes well or ill.

        ``rules`` are those of the pool as they are now; ``stall`` is how late this process was of late, in seconds;
        ``tcp`` is what a TCP pool's spec says. Nothing is asked before the spec is ``known``.
        """
        self._app = app
        self._url = f"http://{app}{path}"
        self._known = known
        self._tcp = tcp
        self._on_change = on_change
        self._rules = rules
        self._stall = stall
        self._failures = FAILURES
        self._delays: deque[tuple[float, float]] = deque()
        self.reason = "the application has not answered yet"
        self.listening = True
        """Whether somebody listens at its address, as of the last question; until then it is believed."""

    @property
    def well(self) -> bool:
        """Whether the application answers."""
        return not self.reason

    @property
    def delay(self) -> float:
        """The application's slowest answer of late, in seconds."""
        return max((delay for _, delay in self._delays), default=0.0)

    @property
    def patience(self) -> float:
        """How long it may be silent now, in seconds."""
        rules = self._rules()
        return patience(rules.application_ms / 1000, max(self.delay, self._stall()), rules.load_cap_ms / 1000)

    async def run(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession() as http:
            while True:
                if not self._known():
                    await asyncio.sleep(INTERVAL)
                    continue
                began = time.monotonic()
                fault, certain = await self._ask(http)
                now = time.monotonic()
                while self._delays and self._delays[0][0] < now - LOAD_WINDOW:
                    self._delays.popleft()
                if not fault:
                    self._delays.append((now, now - began))
                self._note(fault, certain)
                await asyncio.sleep(INTERVAL)

    async def _ask(self, http: aiohttp.ClientSession) -> tuple[str, bool]:
        """What is wrong ('' for nothing), and whether that is beyond doubt."""
        allowed = self.patience
        tcp = self._tcp()
        if tcp:
            return await self._ask_by_connection(tcp, allowed)
        try:
            async with http.get(self._url, timeout=aiohttp.ClientTimeout(total=allowed)) as answer:
                self.listening = True
                if answer.status < 400:
                    return "", True
                return f"the application answers {answer.status} at {self._url}", False
        except aiohttp.ClientConnectorError:
            self.listening = False
            return f"the application does not listen at {self._url}", True
        except TimeoutError:
            return f"the application is silent at {self._url} for {allowed:.1f} s", True
        except aiohttp.ClientError as error:
            return f"the application does not answer at {self._url}: {error}", False

    async def _ask_by_connection(self, tcp: Tcp, allowed: float) -> tuple[str, bool]:
        try:
            async with asyncio.timeout(allowed):
                answer = await ask(self._app, tcp)
        except TimeoutError:
            return f"the application is silent at {self._app} for {allowed:.1f} s", True
        except ConnectionRefusedError:
            self.listening = False
            return f"the application does not listen at {self._app}", True
        except OSError as error:
            return f"the application does not answer at {self._app}: {error}", False
        self.listening = True
        if answer.startswith(tcp.pong):
            return "", True
        return f"the application at {self._app} answers {answer!r}, not {tcp.pong!r}", False

    def _note(self, fault: str, certain: bool) -> None:
        self._failures = 0 if not fault else FAILURES if certain else self._failures + 1
        reason = fault if self._failures >= FAILURES else "" if not fault else self.reason
        if reason != self.reason:
            self.reason = reason
            self._on_change()
