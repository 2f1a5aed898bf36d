"""One member of etcd on its own data, reached from this machine alone: for the moments of ``site take-over``.

Its process is started with the data directory of a member whose own process is stopped. It listens on loopback only. So
no member or control server of a pool sees it, whatever is done to it.
"""

import asyncio
import contextlib
import fcntl
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from understudy.deploy.common.errors import DeployError
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.processes import last_line
from understudy.proxy.front.pdeathsig import tethered
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings

START_TIMEOUT = 60.0
"""Seconds for etcd to read its data."""
STOP_TIMEOUT = 20.0
POLL_INTERVAL = 0.1
CONNECT_TIMEOUT = 1.0


class EtcdMember(msgspec.Struct, frozen=True):
    """A member of etcd, as another one knows it."""

    id: int
    name: str
    peer_urls: tuple[str, ...]


class EtcdData(msgspec.Struct, frozen=True):
    """A member's data directory, and how etcd is started with it. ``arguments`` are further ones, such as of TLS."""

    directory: Path
    binary: str
    arguments: tuple[str, ...] = ()

    @property
    def database(self) -> Path:
        """The file that a running etcd locks."""
        return self.directory / "member" / "snap" / "db"

    def require_stopped(self) -> None:
        """Raise :class:`DeployError` unless this is the data of a member that does not run."""
        try:
            with self.database.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployError(
                f"--data-dir {self.directory}: etcd runs on it; stop this member of etcd first, and its supervisor"
            ) from None
        except OSError as error:
            raise DeployError(
                f"--data-dir {self.directory} is no data directory of etcd: {self.database}: {error.strerror}"
            ) from None

    @property
    def begun(self) -> Path:
        """The file that is there while a take-over has begun and not ended; etcd takes no notice of it."""
        return self.directory / "understudy-take-over.json"

    def note_begun(self, before: Sequence[EtcdMember]) -> None:
        """A take-over begins; these were the members of etcd. Raises :class:`DeployError`."""
        try:
            self.begun.write_bytes(msgspec.json.encode(before))
        except OSError as error:
            raise DeployError(f"{self.begun}: {error.strerror}") from None

    def members_before(self) -> tuple[EtcdMember, ...]:
        """The members of etcd when a take-over began that has not ended; () if there is none."""
        try:
            return msgspec.json.decode(self.begun.read_bytes(), type=tuple[EtcdMember, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            raise DeployError(f"{self.begun}, which an interrupted take-over left, cannot be read: {error}") from None

    @property
    def last_entry(self) -> float:
        """When etcd last wrote to its log (wall time in seconds); 0 if there is none."""
        return max((file.stat().st_mtime for file in (self.directory / "member" / "wal").glob("*.wal")), default=0.0)

    @contextlib.asynccontextmanager
    async def running(self, *, alone: bool) -> AsyncIterator["LoneEtcd"]:
        """Run etcd inside the block. ``alone``: it gives the other members up for good (``--force-new-cluster``).

        Raises:
            DeployError: it ended, or did not start in time.
        """
        picker = PortPicker()
        try:
            client, peer = picker.pick(), picker.pick()
            with tempfile.TemporaryDirectory(prefix="understudy-etcd-") as scratch:
                log = Path(scratch) / "log"
                process = await self._start(client, peer, log, alone=alone)
                try:
                    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT)) as http:
                        etcd = LoneEtcd(client, peer, process, log, http)
                        await etcd.until_started()
                        if alone and not await etcd.has_leader(START_TIMEOUT):
                            raise DeployError(f"etcd does not go on alone: {last_line(log)}")
                        yield etcd
                finally:
                    await _stop(process)
        finally:
            picker.close()

    async def _start(self, client: str, peer: str, log: Path, *, alone: bool) -> asyncio.subprocess.Process:
        options = {
            "name": "take-over",
            "data-dir": str(self.directory),
            "listen-client-urls": f"http://{client}",
            "advertise-client-urls": f"http://{client}",
            "listen-peer-urls": f"http://{peer}",
            "log-level": "warn",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        command = tethered(Path(self.binary), *arguments, *(("--force-new-cluster",) if alone else ()), *self.arguments)
        with log.open("wb") as output:
            return await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, so that etcd brings its database up to date, and SIGKILL if it does not end."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class LoneEtcd:
    """A running member; ``client_address`` and ``peer_address`` are on loopback."""

    def __init__(
        self,
        client_address: str,
        peer_address: str,
        process: asyncio.subprocess.Process,
        log: Path,
        http: aiohttp.ClientSession,
    ) -> None:
        self.client_address = client_address
        self.peer_address = peer_address
        self._process = process
        self._log = log
        self._http = http

    def client(self, user: str | None, password: str | None) -> EtcdClient:
        """A client of it; close it."""
        return EtcdSettings((self.client_address,), username=user, password=password).client()

    async def until_started(self) -> None:
        """Wait until it has read its data. Raises :class:`DeployError`."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self._get(self.peer_address, "/members"):
                    self._require_running()
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise DeployError(f"etcd did not start within {START_TIMEOUT:g} s: {last_line(self._log)}") from None

    def _require_running(self) -> None:
        if self._process.returncode is not None:
            raise DeployError(f"etcd has ended: {last_line(self._log) or 'without a word'}")

    async def members(self) -> tuple[EtcdMember, ...]:
        """The members that it knows of, itself among them."""
        found = msgspec.json.decode(await self._get(self.peer_address, "/members"))
        return tuple(EtcdMember(one["id"], one.get("name", ""), tuple(one["peerURLs"])) for one in found)

    async def has_leader(self, within: float) -> bool:
        """Whether it finds a leader within so many seconds: whether more than half of its members answer it."""
        try:
            async with asyncio.timeout(within):
                while b'"health":"true"' not in await self._get(self.client_address, "/health"):
                    self._require_running()
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            return False
        return True

    async def _get(self, address: str, path: str) -> bytes:
        """The body of an answer, b'' if there is none: it does not serve clients before it has a leader."""
        try:
            async with self._http.get(f"http://{address}{path}") as answer:
                return await answer.read() if answer.status == 200 else b""
        except (aiohttp.ClientError, TimeoutError):
            return b""


async def answering(members: Sequence[EtcdMember]) -> list[EtcdMember]:
    """Which of these members accept a connection from here at one of their addresses for members."""

    async def answers(member: EtcdMember) -> bool:
        return any(await asyncio.gather(*map(_accepts, member.peer_urls)))

    found = await asyncio.gather(*map(answers, members))
    return [member for member, yes in zip(members, found, strict=True) if yes]


async def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 2380)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
