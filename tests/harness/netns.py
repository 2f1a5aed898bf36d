"""Networks of their own for parts of a pool: a namespace each, joined by a bridge, with a cut between any two.

Needs root, ``ip`` (iproute2) and ``iptables``; :func:`unable` says what is missing. Nothing touches the machine's own
network: the bridge lives in a namespace too, and whoever runs the test gets in by :meth:`Network.socket` alone. What a
cut drops is really lost, so it is TCP itself that sends again, backs off and gives up.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.deploy.local import site_networks

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


@functools.cache
def unable() -> str:
    """Why no network can be made here, '' if one can."""
    if missing := site_networks.unable():
        return missing
    try:
        with network(["a", "b"]) as trial:
            trial.cut("a", "b")
    except OSError as error:
        return f"this machine allows no network namespaces: {error}"
    return ""


@dataclass
class Network(site_networks.Network):
    """The parties' namespaces and addresses. Cuts are between two parties and in one direction."""

    def cut(self, source: str, target: str, *, reset: bool = False) -> None:
        """Lose what ``source`` sends to ``target`` from now on; with ``reset`` TCP is answered with a reset instead."""
        self._rule("-A", source, target, reset=reset)

    def mend(self, source: str, target: str, *, reset: bool = False) -> None:
        """End one cut of that kind."""
        self._rule("-D", source, target, reset=reset)

    @contextlib.contextmanager
    def severed(self, pairs: Sequence[tuple[str, str]], *, reset: bool = False) -> Iterator[None]:
        """These cuts (source, target) for the time of the block."""
        with contextlib.ExitStack() as stack:
            for source, target in pairs:
                self.cut(source, target, reset=reset)
                stack.callback(self.mend, source, target, reset=reset)
            yield

    def _rule(self, how: str, source: str, target: str, *, reset: bool) -> None:
        end = ["-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"] if reset else ["-j", "DROP"]
        site_networks.run(*self.inside(target), "iptables", "-w", how, "INPUT", "-s", self.addresses[source], *end)

    def socket(self, party: str) -> socket.socket:
        """A new non-blocking TCP socket that belongs to a party's namespace, wherever it is used from."""
        with self.entered(party):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    @contextlib.contextmanager
    def entered(self, party: str) -> Iterator[None]:
        """Have this thread in a party's namespace: nothing may be awaited inside."""
        own, other = Path("/proc/thread-self/ns/net"), site_networks.NAMESPACES / self.namespace(party)
        with own.open() as home, other.open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def network(parties: Sequence[str]) -> Iterator[Network]:
    """A network with these parties, gone at the end of the block. Raises ``OSError`` if it cannot be made."""
    site_networks.sweep()
    made = Network(f"{site_networks.PREFIX}-{os.getpid()}-{next(_numbers)}")
    try:
        site_networks.make_bridge(made)
        for number, party in enumerate(parties, 1):
            site_networks.join(made, party, number, f"10.0.0.{number}")
        yield made
    finally:
        site_networks.remove(made, parties)
