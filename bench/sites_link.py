"""The delay between the sites of bench/sites.py: a process that holds every packet back for as long as it is told.

The kernel needs no netem for this. Each site has a TUN device whose packets come here, wait, and go out at the device
of the site that they are for. So connections, acknowledgements and resets are late too, as on a real line, and packets
do not wait for each other.

    python -m bench.sites_link SECONDS ADDRESS=DESCRIPTOR ...
"""

import collections
import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from tests.harness.netns import Network
from tests.harness.processes import bound_to

DEVICE = "wan"
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_LARGEST = 65535
_AT_ONCE = 64


def tun() -> int:
    """A TUN device in the network of this thread; returns its descriptor, which does not block."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _TUN_WITHOUT_HEADER))
    return descriptor


@contextlib.contextmanager
def delayed(net: Network, parties: Sequence[str], seconds: float) -> Iterator[None]:
    """Delay all packets between these parties by ``seconds`` in each direction, while the block lasts; 0: by nothing.

    Raises ``OSError`` if the kernel has no TUN devices.
    """
    if not seconds:
        yield
        return
    devices = {}
    for party in parties:
        with net.entered(party):
            devices[net.addresses[party]] = tun()
        _route(net, party, parties)
    order = [sys.executable, "-m", "bench.sites_link", str(seconds)]
    order += [f"{address}={descriptor}" for address, descriptor in devices.items()]
    process = subprocess.Popen(bound_to(os.getpid(), order), pass_fds=list(devices.values()))
    for descriptor in devices.values():
        os.close(descriptor)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _route(net: Network, party: str, parties: Sequence[str]) -> None:
    """Send what a party has for the others through its device."""
    ip = ["ip", "-n", net.namespace(party)]
    subprocess.run([*ip, "link", "set", DEVICE, "up"], check=True)
    for other in parties:
        if other != party:
            way = [f"{net.addresses[other]}/32", "dev", DEVICE, "src", net.addresses[party]]
            subprocess.run([*ip, "route", "add", *way], check=True)


def relay(seconds: float, devices: Mapping[bytes, int]) -> None:
    """Hold packets back and pass them on, for ever. ``devices``: descriptors by the address that is behind them."""
    held: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        patience = max(held[0][0] - time.monotonic(), 0.0) if held else None
        ready = select.select(list(devices.values()), [], [], patience)[0]
        now = time.monotonic()
        for descriptor in ready:
            for packet in _packets(descriptor):
                target = devices.get(packet[16:20])
                if packet[0] >> 4 == 4 and target is not None:
                    held.append((now + seconds, target, packet))
        while held and held[0][0] <= now:
            _, target, packet = held.popleft()
            with contextlib.suppress(OSError):  # a queue that is full loses packets, as a line does
                os.write(target, packet)


def _packets(descriptor: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        for _ in range(_AT_ONCE):
            yield os.read(descriptor, _LARGEST)


def main() -> None:
    seconds, *places = sys.argv[1:]
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    named = (place.split("=") for place in places)
    relay(float(seconds), {socket.inet_aton(address): int(descriptor) for address, descriptor in named})


if __name__ == "__main__":
    main()
