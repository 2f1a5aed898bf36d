"""Addresses of a local pool: checks them before anything is started, and picks free ports with care.

Picked ports lie below the range from which the kernel takes ports for outgoing connections, so that no
connection can take a port while its owner is being restarted. A port is free when it can be bound now.
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
    """Raise :class:`PortInUseError` unless ``address`` can be bound now; ``remedy``: what to do then."""
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
    """Picks free loopback ports, never the same twice, out of blocks of ports that no other picker is using.

    The first port of a block is held until :meth:`close`: so two pools that start at the same moment do not get the
    same port, although neither has bound it yet.
    """

    def __init__(self, draw: Callable[[int, int], int] = random.randint) -> None:
        self._draw = draw
        self._guards: list[socket.socket] = []
        self._left: Iterator[int] = iter(())

    def pick(self) -> str:
        """A free ``127.0.0.1:port``; raises :class:`PortInUseError` if there seems to be none."""
        for port in self._left:
            address = f"{LOOPBACK}:{port}"
            if _is_free(address):
                return address
        self._left = self._next_block()
        return self.pick()

    def close(self) -> None:
        """Let the blocks go; what was picked is its user's business from now on."""
        for guard in self._guards:
            guard.close()

    def _next_block(self) -> Iterator[int]:
        highest = max(_LOWEST + 2000, _first_ephemeral() - 1)
        for _ in range(1000):
            start = _LOWEST + BLOCK * self._draw(0, (highest - _LOWEST) // BLOCK - 1)
            guard = _hold(start)
            if guard is not None:
                self._guards.append(guard)
                return iter(range(start + 1, start + BLOCK))
        raise PortInUseError(f"{LOOPBACK}:{_LOWEST}-{highest}", "end some other programs", "full")


def _hold(port: int) -> socket.socket | None:
    """A socket that holds ``port``; None if it is in use."""
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
