"""The ground of a pool whose parts each have a network of their own, so that packets are lost and not just held back.

The test itself reaches a part by a cable that ends inside the part's own network, as an application beside its sidecar
would: cuts are between the parts, never between a part and the test.
"""

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial

from tests.faults.pool import (
    DRAIN_SECONDS,
    FaultPool,
    FaultProgram,
    Ground,
    KilledEtcd,
    control_command,
)
from tests.harness.cable import Cable, cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.netns import Network, network
from tests.harness.sidecars import application_command, sidecar_command

APP, API, PEER, GRPC, HTTP, LISTEN = range(7000, 7006)


class NamespacedEtcd(KilledEtcd):
    """An etcd in a network of its own; ``endpoint`` is the test's way there, ``address`` the parts'."""

    def __init__(self, name: str, net: Network, *, arguments: Sequence[str]) -> None:
        self.host = net.addresses[name]
        super().__init__(name, arguments=arguments)
        self.launcher = net.inside(name)
        self.cables: list[Cable] = []

    @property
    def address(self) -> str:
        """``host:port`` for the parts of the pool."""
        return f"{self.host}:{self.port}"

    @property
    def client_url(self) -> str:
        """All addresses of its network, loopback included; told to clients, it is of no use, and ours do not ask."""
        return f"http://0.0.0.0:{self.port}"

    @property
    def peer_url(self) -> str:
        """Where the other etcds reach this one."""
        return f"http://{self.host}:{self.peer_port}"

    @property
    def endpoint(self) -> str:
        """``host:port`` for the test."""
        return self.cables[0].address

    @property
    def metrics(self) -> str:
        """``host:port`` for the test."""
        return self.cables[1].address


class Namespaces(Ground):
    """Each part in its own network namespace."""

    def __init__(self, net: Network) -> None:
        self.network = net
        self.net = net

    async def etcds(
        self, stack: contextlib.AsyncExitStack, count: int, arguments: Sequence[str]
    ) -> Sequence[EtcdServer]:
        """So many etcds, not started yet."""
        made = [NamespacedEtcd(f"etcd{number}", self.net, arguments=arguments) for number in range(1, count + 1)]
        for etcd in made:
            for port in (etcd.port, etcd.metrics_port):
                etcd.cables.append(await self._way_in(stack, etcd.name, port))
        return made

    async def member(self, pool: FaultPool, stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        """A sidecar, not started yet, and what stands for its application, which runs."""
        self._start_application(stack, name)
        command = sidecar_command(
            name,
            pool.name,
            before=pool.before,
            drain_seconds=DRAIN_SECONDS,
            app=f"{self.net.addresses[name]}:{APP}",
            session_api=f"127.0.0.1:{API}",
            peer=f"{self.net.addresses[name]}:{PEER}",
            insecure=True,
            etcd=self._addresses(pool),
            site=pool.site_of(name),
        )
        way_in = await self._way_in(stack, name, API)
        return FaultProgram(name, [*self.net.inside(name), *command], pool.home / f"{name}.log", api=way_in.address)

    async def control(self, pool: FaultPool, stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        """A control server, not started yet."""
        host = self.net.addresses[name]
        flags = ("--grpc", f"{host}:{GRPC}", "--http", f"127.0.0.1:{HTTP}", "--insecure")
        command = control_command(pool, name, *flags, etcds=self._addresses(pool))
        return FaultProgram(name, [*self.net.inside(name), *command], pool.home / f"{name}.log")

    async def front(self, pool: FaultPool, stack: contextlib.AsyncExitStack, name: str) -> str:
        """A front Envoy with all control servers, started; the test's way to where it takes requests."""
        controls = [f"{self.net.addresses[control.name]}:{GRPC}" for control in pool.controls]
        command = [
            *(*self.net.inside(name), sys.executable, "-m", "understudy.deploy.cli", "envoy", "--node", name),
            *("--pool", pool.name, "--listen", f"127.0.0.1:{LISTEN}", "--concurrency", "1"),
            *(part for control in controls for part in ("--control", control)),
        ]
        envoy = FaultProgram(name, command, pool.home / f"{name}.log")
        stack.callback(envoy.kill)
        envoy.start()
        return (await self._way_in(stack, name, LISTEN)).address

    async def admin(self, stack: contextlib.AsyncExitStack, name: str) -> str:
        """The test's way to a control server's admin interface."""
        return (await self._way_in(stack, name, HTTP)).address

    def _start_application(self, stack: contextlib.AsyncExitStack, name: str) -> None:
        program = [*self.net.inside(name), *application_command(self.net.addresses[name], APP)]
        application = subprocess.Popen(forked(program))
        stack.callback(application.wait)
        stack.callback(application.kill)

    @staticmethod
    def _addresses(pool: FaultPool) -> list[str]:
        return [etcd.address for etcd in pool.etcds if isinstance(etcd, NamespacedEtcd)]

    async def _way_in(self, stack: contextlib.AsyncExitStack, party: str, port: int) -> Cable:
        sockets = partial(self.net.socket, party)
        return await stack.enter_async_context(cable_to(f"127.0.0.1:{port}", sockets=sockets))


@contextlib.asynccontextmanager
async def namespaces(
    *, members: int = 3, controls: int = 1, etcds: int = 1, more: Sequence[str] = ()
) -> AsyncIterator[Namespaces]:
    """Networks for so many parts, named as ``fault_pool`` names them, and ``more``; gone at the end of the block."""
    parts = [f"m{number}" for number in range(1, members + 1)]
    parts += [f"control-{number}" for number in range(1, controls + 1)]
    parts += [f"etcd{number}" for number in range(1, etcds + 1)]
    with network([*parts, *more]) as net:
        yield Namespaces(net)
