"""Waiting for a condition with a deadline, and ports nobody else uses."""

import asyncio
import contextlib
import inspect
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

# Below the kernel's range for outgoing connections, so that nobody takes a port while its server is down for a restart,
# and below the ports of local pools (understudy.deploy.local.ports).
_PORTS = range(12_000, 20_000)
_BLOCK = 50
_claims: list[socket.socket] = []  # kept open: the kernel gives them back when this process is gone
_given: list[int] = []
_left: list[int] = []


async def until(
    condition: Callable[[], Any | Awaitable[Any]],
    timeout: float = 60,
    what: str = "the condition",
    every: float = 0.02,
) -> Any:
    """Call ``condition`` (plain or async) until its answer is true, and return that; fail after ``timeout`` seconds.

    An exception of the condition counts as "not yet". The failure text names the last answer or exception, and says
    apart from that if the deadline cut off the last call.
    The pause between two calls is ``every`` seconds at first. It grows with the time that the wait has lasted, up to
    0.1 s, and with the time that a call takes: what is waited for has the machine to itself most of the time.
    """
    begin = time.monotonic()
    deadline = begin + timeout
    last: object = "nothing"
    while True:
        called = time.monotonic()
        cut_off, limit = "", None
        try:
            answer = condition()
            if inspect.isawaitable(answer):
                async with asyncio.timeout(max(deadline - called, 0.05)) as limit:
                    answer = await answer
            if answer:
                return answer
            last = answer
        except Exception as error:  # noqa: BLE001 - whatever is not there yet
            if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                cut_off = f"; the last call was cut off after {time.monotonic() - called:.1f} s"
            else:
                last = error
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {last!r}{cut_off}")
        await asyncio.sleep(max(every, min((now - begin) / 20, 0.1), min(4 * (now - called), 0.5)))


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
    """A TCP port on 127.0.0.1 that is free now and is given to no other test, in whatever process that runs."""
    while True:
        if not _left:
            _left.extend(_claimed() or sorted(_given, key=lambda _: random.random()))
            assert _left, "no port is left: too many test processes at the same time"
        port = _left.pop()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _given.append(port)
                return port


def _claimed() -> list[int]:
    """The ports of a block that no other process has: whoever binds the block's name has it. Empty: none is left."""
    blocks = list(range(0, len(_PORTS), _BLOCK))
    random.Random(f"{os.getpid()}-{time.monotonic_ns()}").shuffle(blocks)
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0understudy-tests-{_PORTS[block]}")
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return list(_PORTS[block : block + _BLOCK])
    return []
