"""Addresses of a local pool: checks whether they are free, and picks free ports.

Picked ports are below the range for outgoing connections, so that no connection takes the port of a process that is
being restarted. A port is free if it can be bound now.
"""

import errno
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from understudy.deploy.common.errors import DeployError, PortInUseError
from understudy.proxy.front.process_util import try_to_listen
from understudy.statesync.pool.addresses import split_address

LOOPBACK = "127.0.0.1"
_LOWEST = 20000
BLOCK = 128
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def require_free(address: str, remedy: str) -> None:
    """Raise :class:`PortInUseError` unless ``address`` can be bound now. ``remedy`` says what to do."""
    host, port = split_address(address)
    try:
        try_to_listen(host, port)
    except socket.gaierror as error:
        raise DeployError(f"{address}: {host} cannot be resolved ({error.strerror}): {remedy}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(address, remedy) from None
        raise PortInUseError(address, remedy, f"not usable ({error.strerror})") from None


class PortPicker:
    """Picks free loopback ports, each once, from blocks of ports that no other picker uses.

    It binds the first port of a block until :meth:`close`. So two pools that start at the same time get different
    ports, although neither has bound them yet.
    """

    def __init__(self, random_int: Callable[[int, int], int] = random.randint) -> None:
        self._random_int = random_int
        self._guards: list[socket.socket] = []
        self._left: Iterator[int] = iter(())

    def pick(self) -> str:
        """A free ``127.0.0.1:port``. Raises :class:`PortInUseError` if none is found."""
        for port in self._left:
            address = f"{LOOPBACK}:{port}"
            if _is_free(address):
                return address
        self._left = self._next_block()
        return self.pick()

    def close(self) -> None:
        """Release the blocks. Picked ports are not protected any more."""
        for guard in self._guards:
            guard.close()

    def _next_block(self) -> Iterator[int]:
        highest = max(_LOWEST + 2000, _first_ephemeral() - 1)
        for _ in range(1000):
            start = _LOWEST + BLOCK * self._random_int(0, (highest - _LOWEST) // BLOCK - 1)
            guard = _hold(start)
            if guard is not None:
                self._guards.append(guard)
                return iter(range(start + 1, start + BLOCK))
        raise PortInUseError(f"{LOOPBACK}:{_LOWEST}-{highest}", "stop other programs", "full")


def _hold(port: int) -> socket.socket | None:
    """A socket that is bound to ``port``; None if the port is in use."""
    guard = socket.socket()
    try:
        guard.bind((LOOPBACK, port))
        guard.listen(1)
    except OSError:
        guard.close()
        return None
    return guard


def _is_free(address: str) -> bool:
    try:
        require_free(address, "")
    except PortInUseError:
        return False
    return True


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768
