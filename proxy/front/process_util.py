"""What keeping a process running takes, whatever the process: an address to ask for first, patience, words for its end.

:mod:`understudy.proxy.front.envoy` keeps one Envoy running by these, the local pool its programs. Starting, watching
and stopping are theirs; tying a process to its parent is :mod:`understudy.proxy.front.pdeathsig`.
"""

import asyncio
import signal
import socket

LONGEST_DELAY = 5.0
"""Seconds before a restart, at the most."""
STEADY_AFTER = 10.0
"""Seconds of life after which earlier deaths no longer lengthen the delay before the next start."""


def describe_exit(code: int, last_words: str = "") -> str:
    """Why a process ended, from its exit code (negative: a signal) and the last that it said."""
    if code >= 0:
        return f"exit code {code}" + (f": {last_words}" if last_words and code else "")
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def try_to_listen(host: str, port: int) -> None:
    """Listen for a moment, as whoever is about to be started will.

    Raises:
        socket.gaierror: ``host`` cannot be resolved.
        OSError: somebody listens there (``EADDRINUSE``), or this machine has no such address.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, so that connections still in TIME_WAIT don't count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen(1)


async def first_of(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
