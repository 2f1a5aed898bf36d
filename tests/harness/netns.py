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
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_RUN = Path("/run/netns")
_PREFIX = "understudy"
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@functools.cache
def unable() -> str:
    """Why no network can be made here, '' if one can."""
    for tool in ("ip", "iptables"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(["a", "b"]) as trial:
            trial.cut("a", "b")
    except OSError as error:
        return f"this machine allows no network namespaces: {error}"
    return ""


@dataclass
class Network:
    """The parties' namespaces and addresses. Cuts are between two parties and in one direction."""

    name: str
    addresses: dict[str, str] = field(default_factory=dict)

    def namespace(self, party: str) -> str:
        """The name of a party's namespace."""
        return f"{self.name}-{party}"

    def inside(self, party: str) -> list[str]:
        """What to put before a command so that it runs in a party's namespace; the process id stays the same."""
        ip = shutil.which("ip")
        assert ip is not None
        return [ip, "netns", "exec", self.namespace(party)]

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
        _run(*self.inside(target), "iptables", "-w", how, "INPUT", "-s", self.addresses[source], *end)

    def socket(self, party: str) -> socket.socket:
        """A new non-blocking TCP socket that belongs to a party's namespace, wherever it is used from."""
        with self.entered(party):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    @contextlib.contextmanager
    def entered(self, party: str) -> Iterator[None]:
        """Have this thread in a party's namespace: nothing may be awaited inside."""
        with Path("/proc/thread-self/ns/net").open() as home, (_RUN / self.namespace(party)).open() as there:
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
    _sweep()
    made = Network(f"{_PREFIX}-{os.getpid()}-{next(_numbers)}")
    switch = made.namespace("switch")
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for number, party in enumerate(parties, 1):
            _join(made, switch, party, number)
        yield made
    finally:
        for party in ("switch", *parties):
            if (_RUN / made.namespace(party)).exists():
                _run("ip", "netns", "delete", made.namespace(party))


def _join(made: Network, switch: str, party: str, number: int) -> None:
    own, port = made.namespace(party), f"port{number}"
    made.addresses[party] = f"10.0.0.{number}"
    _run("ip", "netns", "add", own)
    _run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", own)
    _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    _run("ip", "-n", own, "address", "add", f"{made.addresses[party]}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run("ip", "-n", own, "link", "set", device, "up")


def _sweep() -> None:
    """Remove what test processes left behind that were killed."""
    for path in _RUN.glob(f"{_PREFIX}-*"):
        pid = path.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                _run("ip", "netns", "delete", path.name)
