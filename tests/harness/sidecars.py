"""Real sidecars on a real etcd, with the slot table written by the test instead of a control server.

Each member is two processes, as in life: a sidecar, and an application that does nothing but answer its health path.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.records import PoolRecords
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Member
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec

ROOT = Path(__file__).parents[2]

SIDECAR = """
import asyncio, logging, sys
from understudy.proxy.sidecar.sidecar import SidecarSettings, run_sidecar
from understudy.statesync.etcd.settings import EtcdSettings
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
member, pool, app, api, peer, etcd = sys.argv[1:]
settings = SidecarSettings(member, pool, app, api, peer, etcd=EtcdSettings(tuple(etcd.split(","))))
sys.exit(asyncio.run(run_sidecar(settings)))
"""

APPLICATION = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@dataclass
class MemberProcesses:
    """One member: where it listens, and its two processes."""

    member: str
    app: str
    api: str
    peer: str
    sidecar: subprocess.Popen[bytes] | None = None
    application: subprocess.Popen[bytes] | None = None


class SidecarPool(PoolRecords):
    """The sidecars of one pool, and its records.

    With ``flags`` they are started as ``understudy sidecar`` with what ``flags(member)`` says, and log into ``logs``.
    ``before`` is what single members' programs do before anything else.
    """

    def __init__(self, etcd: EtcdServer, client: EtcdClient, http: aiohttp.ClientSession, spec: PoolSpec) -> None:
        super().__init__(client, spec)
        self.etcd, self.http = etcd, http
        self.members: dict[str, MemberProcesses] = {}
        self.flags: Callable[[str], Sequence[object]] | None = None
        self.logs: Path | None = None
        self.before: dict[str, str] = {}

    async def start(self, *names: str, etcd: str = "") -> None:
        """Start members (again), and wait until each is ready. ``etcd`` is another way to etcd than the direct one."""
        before = {name: await self.record(name) for name in names}
        for name in names:
            if name not in self.members:
                ports = [f"127.0.0.1:{free_port()}" for _ in range(3)]
                self.members[name] = MemberProcesses(name, *ports)
            member = self.members[name]
            if member.application is None or member.application.poll() is not None:
                member.application = _start(APPLICATION, member.app.rpartition(":")[2])
            where = etcd or self.etcd.endpoint
            if self.flags is not None:
                member.sidecar = self._command(member, where, self.flags(name))
            else:
                program = self.before.get(name, "") + SIDECAR
                member.sidecar = _start(program, name, self.keys.pool, member.app, member.api, member.peer, where)
        await asyncio.gather(*(self.await_ready(name, before[name]) for name in names))

    def _command(self, member: MemberProcesses, etcd: str, flags: Sequence[object]) -> subprocess.Popen[bytes]:
        assert self.logs is not None
        command = [
            *(sys.executable, "-m", "understudy.deploy.cli", "--log-level", "debug", "sidecar"),
            *("--member", member.member, "--pool", self.keys.pool, "--app", member.app, "--etcd", etcd),
            *("--session-api", member.api, "--peer", member.peer, *map(str, flags)),
        ]
        with (self.logs / f"{member.member}.log").open("ab") as log:
            return subprocess.Popen(forked(command), cwd=ROOT, stdout=log, stderr=log)

    def log(self, name: str) -> str:
        """What a member that was started with ``flags`` has logged."""
        assert self.logs is not None
        return (self.logs / f"{name}.log").read_text()

    async def await_ready(self, name: str, before: Member | None = None) -> None:
        """Wait until a member says that it is ready, and is registered: not as its former self, whose record is given.

        It may be ready a moment before etcd has its record, without which nobody else knows where it is.
        """

        async def ready() -> bool:
            record = await self.record(name)
            if record is None or (before is not None and record.boot == before.boot):
                return False
            try:
                async with self.http.get(f"http://{self.members[name].api}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await until(ready, timeout=40, what=f"{name} is ready")

    async def await_copies(self, *members: str) -> None:
        """Wait until these members hold copies of all slots, as each of them says."""

        async def in_sync(member: str) -> bool:
            async with self.http.get(f"http://{self.members[member].peer}/peer/v1/status") as answer:
                sync = (await answer.json())["sync"]
            return bool(sync["in_sync"] == sync["wanted"] == self.spec.slots)

        for member in members:
            await until(lambda member=member: in_sync(member), what=f"{member} is in sync")

    def kill(self, name: str, *, application: bool = True) -> None:
        """Kill -9 a member's sidecar, and its application too unless told otherwise."""
        member = self.members[name]
        doomed = [member.sidecar, member.application] if application else [member.sidecar]
        for process in doomed:
            assert process is not None
            process.send_signal(signal.SIGKILL)
            process.wait()

    def key_in(self, orders: Sequence[Sequence[str]], active: str, number: int = 0) -> str:
        """A session key whose slot ``active`` is active for in a table of ``orders``."""
        fitting = (
            key
            for key in (f"key-{number}-{i}" for i in range(10_000))
            if orders[slot_of(key, self.spec.slots) % len(orders)][0] == active
        )
        return next(fitting)

    async def call(
        self, name: str, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """A session API call at a member: status, headers by lower-case name, body. ``If_Match=`` is ``If-Match``."""
        sent = {header.replace("_", "-"): value for header, value in headers.items()}
        url = f"http://{self.members[name].api}/v1/sessions{path}"
        async with self.http.request(method, url, data=body, headers=sent) as answer:
            content = await answer.read()
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, content

    def stop_all(self) -> None:
        """Kill whatever still runs."""
        for member in self.members.values():
            for process in (member.sidecar, member.application):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(forked([sys.executable, "-c", program, *arguments]), cwd=ROOT)


@asynccontextmanager
async def sidecar_pool(
    etcd: EtcdServer, pool: str, spec: str = "slots: 16", **access: object
) -> AsyncIterator[SidecarPool]:
    """A pool without members yet, its spec applied; ``access`` is how the test's own client gets into etcd."""
    async with etcd.client(**access) as client, aiohttp.ClientSession() as http:
        parsed = parse_spec(f"pool: {pool}\n{spec}", where="test")
        sidecars = SidecarPool(etcd, client, http, parsed)
        await sidecars.apply(parsed)
        try:
            yield sidecars
        finally:
            sidecars.stop_all()
