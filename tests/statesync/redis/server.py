"""A real Redis for one test module, and connections that show the raw bytes of its replies."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import hiredis
import pytest

from tests.harness.processes import bound_to

START_TIMEOUT = 40.0


@contextlib.contextmanager
def running_redis(directory: Path, port: int = 0) -> Iterator[Path]:
    """The path of the socket of a Redis that keeps nothing; skips the test where there is no redis-server.

    It listens on a loopback port too if one is given.
    """
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    path = directory / "redis.sock"
    listening = ("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path))
    options = (*listening, "--save", "", "--appendonly", "no", "--dir", str(directory))
    process = subprocess.Popen(bound_to(os.getpid(), (program, *options)), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(path):
            assert process.poll() is None, "redis-server ended at its start"
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.02)
        yield path
    finally:
        process.kill()
        process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


class RawConnection:
    """A connection that gives each reply as the bytes that came."""

    def __init__(self, path: Path | str, protocol: int) -> None:
        """``path`` is that of a Unix socket, or ``host:port``."""
        if isinstance(path, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(START_TIMEOUT)
            self._socket.connect(str(path))
        else:
            host, _, port = path.rpartition(":")
            self._socket = socket.create_connection((host, int(port)), START_TIMEOUT)
        self.ask([(b"HELLO", b"%d" % protocol)])

    def ask(self, commands: Sequence[Sequence[bytes]]) -> list[bytes]:
        """Send the commands at once; their replies in order."""
        self._socket.sendall(b"".join(hiredis.pack_command(tuple(argv)) for argv in commands))
        received = b""
        replies: list[bytes] = []
        start = 0
        while len(replies) < len(commands):
            end = end_of_reply(received, start)
            if end is None:
                more = self._socket.recv(1 << 20)
                assert more, "Redis closed the connection"
                received += more
            else:
                replies.append(received[start:end])
                start = end
        assert start == len(received)
        return replies

    def close(self) -> None:
        self._socket.close()


def end_of_reply(received: bytes, start: int) -> int | None:
    """Where the reply that begins at ``start`` ends; None if it is not all there."""
    line_end = received.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, end = received[start : start + 1], line_end + 2
    if kind not in b"$*%~>":
        return end
    count = int(received[start + 1 : line_end])
    if kind == b"$":
        end += count + 2 if count >= 0 else 0
        return end if end <= len(received) else None
    for _ in range(count * (2 if kind == b"%" else 1)):
        following = end_of_reply(received, end)
        if following is None:
            return None
        end = following
    return end
