"""Waiting for a condition with a deadline, and ports nobody else uses."""

import asyncio
import inspect
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

# Below the kernel's range for outgoing connections, so that nobody takes a port while its server is down for a restart,
# and below the ports of local pools (deploy.ports).
_PORTS = range(12_000, 20_000)
_given: set[int] = set()


async def until(
    condition: Callable[[], Any | Awaitable[Any]],
    timeout: float = 10,
    what: str = "the condition",
    every: float = 0.02,
) -> Any:
    """Call ``condition`` (plain or async) until its answer is true, and return that; fail after ``timeout`` seconds.

    An exception of the condition counts as "not yet"; the failure text names the last one and the last answer.
    """
    deadline = time.monotonic() + timeout
    last: object = "nothing"
    while True:
        try:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await asyncio.wait_for(answer, max(deadline - time.monotonic(), 0.05))
            if answer:
                return answer
            last = answer
        except Exception as error:  # noqa: BLE001 - whatever is not there yet
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {last!r}")
        await asyncio.sleep(every)


async def stays(
    condition: Callable[[], Any | Awaitable[Any]],
    seconds: float,
    what: str = "the condition",
    every: float = 0.05,
) -> None:
    """Check ``condition`` (plain or async) for ``seconds``, and fail as soon as its answer is not true."""
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        assert answer, f"{what}: no longer after {passed:.1f} s: {answer!r}"
        await asyncio.sleep(every)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now and is given to nobody else in this process."""
    draw = random.Random(f"{os.getpid()}-{time.monotonic_ns()}-{len(_given)}")
    while True:
        port = draw.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
