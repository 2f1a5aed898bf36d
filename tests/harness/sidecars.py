"""Real sidecars on a real etcd, with the slot table written by the test instead of a control server.

Each member is two processes, as in life: a sidecar, and an application that does nothing but answer its health path.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.harness.etcd import EtcdServer
from tests.harness.programs import Program
from tests.harness.records import PoolRecords
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Member
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec

SIDECAR = """
import asyncio, json, logging, sys
from understudy.proxy.sidecar.sidecar import SidecarSettings, run_sidecar
from understudy.statesync.etcd.settings import EtcdSettings
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
raw = json.loads(sys.argv[1])
sys.exit(asyncio.run(run_sidecar(SidecarSettings(**{**raw, "etcd": EtcdSettings(tuple(raw["etcd"]))}))))
"""

APPLICATION = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Health(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Health).serve_forever()
"""


def sidecar_command(member: str, pool: str, *, before: str = "", **settings: object) -> list[str]:
    """How a sidecar is started with these ``SidecarSettings``; ``before`` is what its program does first."""
    return [sys.executable, "-c", before + SIDECAR, json.dumps({"member": member, "pool": pool, **settings})]


def application_command(host: str, port: int | str) -> list[str]:
    """How an application is started that answers every GET with 200."""
    return [sys.executable, "-c", APPLICATION, host, str(port)]


class MemberProcesses:
    """One member: where it listens, and its two processes."""

    def __init__(self, member: str) -> None:
        self.member = member
        self.app, self.api, self.peer, self.redis = (f"127.0.0.1:{free_port()}" for _ in range(4))
        self.sidecar = Program(f"sidecar {member}", [], None)
        self.application = Program(
            f"application {member}", application_command("127.0.0.1", self.app.rpartition(":")[2]), None
        )


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
                self.members[name] = MemberProcesses(name)
            member = self.members[name]
            if not member.application.runs:
                member.application.start()
            member.sidecar.command = self._command(member, etcd or self.etcd.endpoint)
            member.sidecar.log = self.logs and self.logs / f"{name}.log"
            member.sidecar.start()
        await asyncio.gather(*(self.await_ready(name, before[name]) for name in names))

    def _command(self, member: MemberProcesses, etcd: str) -> list[str]:
        if self.flags is None:
            return sidecar_command(
                member.member,
                self.keys.pool,
                before=self.before.get(member.member, ""),
                app=member.app,
                session_api=member.api,
                redis=member.redis,
                peer=member.peer,
                etcd=etcd.split(","),
            )
        return [
            *(sys.executable, "-m", "understudy.deploy.cli", "--log-level", "debug", "sidecar"),
            *("--member", member.member, "--pool", self.keys.pool, "--app", member.app, "--etcd", etcd),
            *("--session-api", member.api, "--peer", member.peer, *map(str, self.flags(member.member))),
        ]

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

        await until(ready, timeout=90, what=f"{name} is ready")

    async def await_copies(self, *members: str) -> None:
        """Wait until these members hold copies of all slots, as each of them says."""

        async def in_sync(member: str) -> bool:
            async with self.http.get(f"http://{self.members[member].peer}/peer/v1/status") as answer:
                sync = (await answer.json())["sync"]
            return bool(sync["in_sync"] == sync["wanted"] == self.spec.slots)

        for member in members:
            await until(lambda member=member: in_sync(member), timeout=60, what=f"{member} is in sync")

    def kill(self, name: str, *, application: bool = True) -> None:
        """Kill -9 a member's sidecar, and its application too unless told otherwise."""
        self.members[name].sidecar.kill()
        if application:
            self.members[name].application.kill()

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
        for name in self.members:
            self.kill(name)


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
