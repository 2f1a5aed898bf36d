"""Helpers for keeping a child process running: delays before restarts, exit codes in words, free addresses.

:mod:`understudy.proxy.front.envoy` uses them for Envoy, the local pool for its programs.
:mod:`understudy.proxy.front.pdeathsig` ends a process with its parent.
"""

import signal
import socket

LONGEST_DELAY = 5.0
"""The longest delay before a restart, in seconds."""
STEADY_AFTER = 10.0
"""Seconds of life after which earlier deaths no longer count for the delay before the next start."""


def describe_exit(code: int, last_words: str = "") -> str:
    """Why a process ended, from its exit code (negative: a signal) and its last output."""
    if code >= 0:
        return f"exit code {code}" + (f": {last_words}" if last_words and code else "")
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def try_to_listen(host: str, port: int) -> None:
    """Listen for a moment where a process is about to listen.

    Raises:
        socket.gaierror: ``host`` cannot be resolved.
        OSError: somebody listens there (``EADDRINUSE``), or this machine has no such address.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, so that connections in TIME_WAIT do not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen(1)
