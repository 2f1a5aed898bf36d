"""A network for each site of a local pool, so that the link between two sites can be cut.

Each site is a network namespace of its own. A bridge, in a namespace too, joins them, and one pair of devices lets this
machine reach all of them. What a cut drops is really lost, as on a broken line. Needs root, ``ip`` (iproute2) and
``iptables``; :func:`unable` says what is missing.
"""

import contextlib
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from understudy.deploy.common.errors import DeployError

NAMESPACES = Path("/run/netns")
PREFIX = "understudy"
_COMMAND_TIMEOUT = 60
_OWN_HOST = 254


def run(*command: str) -> str:
    """Run a command of the network tools; returns its output. Raises ``OSError`` with its words if it fails."""
    done = subprocess.run(  # noqa: S603 - the caller is this file, or a test
        command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
    )
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def unable() -> str:
    """Why sites cannot have networks here; '' if nothing is known to be missing."""
    for tool in ("ip", "iptables"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return "network namespaces need root" if os.geteuid() else ""


@dataclass
class Network:
    """The namespaces and addresses of some parties, such as sites. A cut has one direction."""

    name: str
    addresses: dict[str, str] = field(default_factory=dict)

    def namespace(self, party: str) -> str:
        """The name of a party's namespace."""
        return f"{self.name}-{party}"

    def inside(self, party: str) -> list[str]:
        """What to put before a command so that it runs in a party's namespace; the process id stays the same."""
        return inside(self.namespace(party))


def inside(namespace: str) -> list[str]:
    """What to put before a command so that it runs in ``namespace``. Raises :class:`DeployError` without ``ip``."""
    ip = shutil.which("ip")
    if ip is None:
        raise DeployError("ip is not installed: install iproute2")
    return [ip, "netns", "exec", namespace]


def make_bridge(made: Network) -> None:
    """Make the namespace that joins the parties. Raises ``OSError``."""
    switch = made.namespace("switch")
    run("ip", "netns", "add", switch)
    run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
    run("ip", "-n", switch, "link", "set", "bridge", "up")


def join(made: Network, party: str, number: int, address: str) -> None:
    """Make the namespace of a party and join it to the bridge; ``address`` is in a network of 24 bits."""
    own, switch, port = made.namespace(party), made.namespace("switch"), f"port{number}"
    made.addresses[party] = address
    run("ip", "netns", "add", own)
    run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", own)
    run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    run("ip", "-n", own, "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        run("ip", "-n", own, "link", "set", device, "up")


def remove(made: Network, parties: Sequence[str]) -> None:
    """Delete the namespaces of these parties and the bridge."""
    for party in ("switch", *parties):
        if (NAMESPACES / made.namespace(party)).exists():
            run("ip", "netns", "delete", made.namespace(party))


def sweep() -> None:
    """Delete the namespaces of processes that were killed."""
    for path in NAMESPACES.glob(f"{PREFIX}-*"):
        pid = path.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                run("ip", "netns", "delete", path.name)


@contextlib.contextmanager
def site_network(sites: Sequence[str], directory: Path) -> Iterator[Network]:
    """A network with these sites that this machine reaches; gone at the end of the block.

    The addresses follow from the state directory and the order of the sites, because etcd keeps them in its data.

    Raises:
        DeployError: it cannot be made here.
    """
    if missing := unable():
        raise DeployError(f"the sites cannot have networks of their own: {missing}; leave --links out")
    subnet = f"198.18.{zlib.crc32(str(directory.resolve()).encode()) % 256}"
    made = Network(f"{PREFIX}-{os.getpid()}-up")
    try:
        sweep()
        if subnet in run("ip", "-o", "-4", "address", "show"):
            raise DeployError(f"the network {subnet}.0/24 is in use on this machine: use another --dir")
        _make(made, sites, subnet)
    except OSError as error:
        remove(made, sites)
        raise DeployError(f"the sites cannot have networks of their own: {error}; leave --links out") from None
    try:
        yield made
    finally:
        remove(made, sites)


def _make(made: Network, sites: Sequence[str], subnet: str) -> None:
    make_bridge(made)
    for number, site in enumerate(sites, 1):
        join(made, site, number, f"{subnet}.{number}")
    switch, device = made.namespace("switch"), f"us{os.getpid()}"
    run("ip", "link", "add", device, "type", "veth", "peer", "name", "machine", "netns", switch)
    run("ip", "-n", switch, "link", "set", "machine", "master", "bridge", "up")
    run("ip", "address", "add", f"{subnet}.{_OWN_HOST}/24", "dev", device)
    run("ip", "link", "set", device, "up")
