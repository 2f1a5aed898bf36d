"""Whether the application beside this sidecar answers.

Asks it every :data:`POLL_INTERVAL` seconds, one question at a time, in one of the ways of
:mod:`understudy.statesync.pool.app_health`; and at once when the application ends the connection of an HTTP check, as
it does when it is killed. A refused connection counts at once, since nobody listens there. A bad
answer counts after :data:`FAILURES` in a row. Silence counts after the time that the pool's spec allows, and later
while the application or this process is slow: a busy application is not dead. In a TCP pool it opens a connection
instead, and asks what the spec says (:mod:`understudy.proxy.health.tcp_health`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from understudy.proxy.health.grpc_health import GrpcHealth
from understudy.proxy.health.http_health import HttpHealth
from understudy.proxy.health.tcp_health import ask
from understudy.statesync.heartbeat.adaptive_timeout import LOAD_WINDOW, adaptive_timeout
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.app_health import AppHealth, HealthKind
from understudy.statesync.pool.spec_parts import Liveness
from understudy.statesync.pool.spec_tcp import Tcp
from understudy.statesync.process.ticks import Alarm

POLL_INTERVAL = 0.1
FAILURES = 3

Asking = Callable[[float], Awaitable[str]]
"""Asks, waits at most so many seconds, and says what is wrong, '' for nothing.

Raises ``TimeoutError``, ``ConnectionRefusedError``, or ``OSError`` for anything else that is no answer.
"""


class AppHealthCheck:
    """The application's health, as last seen. ``reason`` is '' when it is well."""

    def __init__(
        self,
        app: str,
        health: AppHealth,
        on_change: Callable[[], None],
        *,
        rules: Callable[[], Liveness],
        stall: Callable[[], float],
        known: Callable[[], bool] = lambda: True,
        tcp: Callable[[], Tcp | None] = lambda: None,
    ) -> None:
        """``app`` is ``host:port``; ``on_change`` is called when it becomes well or stops being well.

        ``rules`` are those of the pool as they are now; ``stall`` is its process's longest recent delay in seconds;
        ``tcp`` is what a TCP pool's spec says. Nothing is asked before the spec is ``known``.
        """
        self._app = app
        self._health = health
        self._place = f"http://{app}{health.what}" if health.kind is HealthKind.HTTP else app
        self._known = known
        self._tcp = tcp
        self._on_change = on_change
        self._rules = rules
        self._stall = stall
        self._failures = FAILURES
        self._ask_now = Alarm()
        self._delays: deque[tuple[float, float]] = deque()
        self.reason = "the application has not answered yet"
        self.listening = True
        """Whether somebody listens at its address, by the last question; True before the first one."""

    @property
    def well(self) -> bool:
        """Whether the application answers."""
        return not self.reason

    @property
    def delay(self) -> float:
        """The application's slowest recent answer, in seconds."""
        return max((delay for _, delay in self._delays), default=0.0)

    def slowest_since(self, then: float) -> float:
        """Its slowest answer, in seconds, of those that came after ``then`` (monotonic); 0 if none did."""
        return max((delay for at, delay in self._delays if at >= then), default=0.0)

    @property
    def patience(self) -> float:
        """How long it may be silent now, in seconds."""
        rules = self._rules()
        return adaptive_timeout(rules.application_ms / 1000, max(self.delay, self._stall()), rules.load_cap_ms / 1000)

    async def run(self) -> None:
        """Ask until cancelled."""
        async with AsyncExitStack() as stack:
            asking = self._way(stack)
            while True:
                if not self._known():
                    await asyncio.sleep(POLL_INTERVAL)
                    continue
                began = time.monotonic()
                fault, certain = await self._ask(asking)
                now = time.monotonic()
                while self._delays and self._delays[0][0] < now - LOAD_WINDOW:
                    self._delays.popleft()
                if not fault:
                    self._delays.append((now, now - began))
                self._note(fault, certain)
                await self._ask_now.wait(POLL_INTERVAL)

    def _way(self, stack: AsyncExitStack) -> Asking:
        """How this application is asked unless its pool is a TCP pool; connections are closed with ``stack``."""
        match self._health.kind:
            case HealthKind.HTTP:
                http = HttpHealth(self._app, self._health.what, self._ask_now.set)
                stack.callback(http.close)
                return http.ask
            case HealthKind.GRPC:
                question = GrpcHealth(self._app, self._health.what)
                stack.push_async_callback(question.close)
                return question.ask
            case HealthKind.TCP:
                return lambda patience: self._by_connection(None, patience)

    async def _ask(self, asking: Asking) -> tuple[str, bool]:
        """What is wrong ('' for nothing), and whether that is certain."""
        allowed = self.patience
        tcp = self._tcp()
        try:
            said = await (self._by_connection(tcp, allowed) if tcp else asking(allowed))
        except TimeoutError:
            return f"the application is silent at {self._place} for {allowed:.1f} s", True
        except OSError as error:
            if isinstance(error, ConnectionRefusedError) or await self._refuses():
                self.listening = False
                return f"the application does not listen at {self._place}", True
            return f"the application does not answer at {self._place}: {error}", False
        self.listening = True
        return (f"the application at {self._place} {said}" if said else ""), not said

    async def _by_connection(self, tcp: Tcp | None, patience: float) -> str:
        async with asyncio.timeout(patience):
            if tcp is None:
                _, writer = await asyncio.open_connection(*split_address(self._app))
                writer.close()
                return ""
            answer = await ask(self._app, tcp)
        return "" if answer.startswith(tcp.pong) else f"answers {answer!r}, not {tcp.pong!r}"

    async def _refuses(self) -> bool:
        """Whether nobody listens at the application's address: gRPC says only that it got no answer."""
        try:
            await self._by_connection(None, POLL_INTERVAL)
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)  # nothing else proves it, silence neither
        return False

    def _note(self, fault: str, certain: bool) -> None:
        self._failures = 0 if not fault else FAILURES if certain else self._failures + 1
        reason = fault if self._failures >= FAILURES else "" if not fault else self.reason
        if reason != self.reason:
            self.reason = reason
            self._on_change()
