"""Runs a front Envoy and keeps it running.

:class:`EnvoyProcess` writes the bootstrap into a private directory, starts the binary tied to this process,
starts it again with growing delays when it dies, and says what it died of. On :meth:`~EnvoyProcess.stop` it
lets the requests under way finish, within a bound. What Envoy is told beyond the bootstrap is the control
servers' business.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from understudy.proxy.front.binary import EnvoyError, find_envoy
from understudy.proxy.front.bootstrap import bootstrap, options
from understudy.proxy.front.envoy_tls import secret_files, transport_socket
from understudy.proxy.front.pdeathsig import tethered
from understudy.proxy.front.process_util import LONGEST_DELAY, STEADY_AFTER, describe_exit, try_to_listen
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import fault_of, require_secret
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.1

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_POLL_INTERVAL = 0.05
_TERMINATION_TIMEOUT = 2.0
_QUIET = 1.0
_START_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class AddressInUseError(EnvoyError):
    """Somebody else listens where Envoy was to listen. ``address`` is ``host:port``."""

    def __init__(self, purpose: str, address: str, detail: str) -> None:
        self.address = address
        super().__init__(f"{purpose} address {address}: {detail}; choose another one, or end what listens there")


class EnvoyStartError(EnvoyError):
    """Envoy ended before it was up. ``last_words`` is what it said at the end."""

    def __init__(self, reason: str, last_words: str) -> None:
        self.last_words = last_words
        super().__init__(f"Envoy did not start: {reason}" + (f": {last_words}" if last_words else ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """How to run one front Envoy.

    ``pool`` is the pool that it serves. With ``pools`` it serves those instead, and with ``every_pool`` all that there
    are; then the port of ``listen`` is 0, since their specs have the ports.

    ``listen``, ``admin`` and ``xds_addresses`` are ``host:port``; admin port 0 picks a free one.
    ``concurrency`` is the number of worker threads (0: one per core). ``drain`` is how many seconds a stop
    may wait for requests under way. ``directory`` holds bootstrap and admin address; without one a private
    temporary directory is made and removed. ``tls`` is for the control servers, spoken to in plain text without it.
    ``trace_requests``: Envoy adds its spans to traces that callers sample. ``site``: where it runs, and which site it
    prefers for new sessions; '' for none.
    """

    node_id: str
    pool: str = ""
    listen: str
    xds_addresses: Sequence[str]
    pools: tuple[str, ...] = ()
    every_pool: bool = False
    admin: str = "127.0.0.1:0"
    delta: bool = True
    concurrency: int = 2
    log_level: str = "warning"
    drain: float = 3.0
    binary: Path | None = None
    directory: Path | None = None
    tls: PemFiles | None = None
    trace_requests: bool = False
    site: str = ""

    @property
    def cluster(self) -> str:
        """The cluster of the node: what the Envoy serves."""
        return cluster_of_front(self.pools) if self.several else self.pool

    @property
    def several(self) -> bool:
        """Whether it serves several pools."""
        return bool(self.pools) or self.every_pool

    @property
    def stats(self) -> str:
        """A regular expression for the prefix of the statistics of its HTTP listeners."""
        return r"http\.port-[0-9]+\." if self.several else re.escape(f"http.{self.pool}.")


class EnvoyProcess:
    """One supervised Envoy. Use as an async context manager: leaving it stops Envoy."""

    def __init__(self, settings: EnvoySettings) -> None:
        self.settings = settings
        self.restarts = 0
        self.last_end = ""
        self._binary = settings.binary or find_envoy()
        self._bootstrap(Path())  # what is wrong with the settings is told at once
        self._child: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=20)
        self._cleanup = contextlib.AsyncExitStack()
        self._admin_file = Path()
        self._command: tuple[str, ...] = ()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """Envoy's process id; None while it is down."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    @property
    def supervised(self) -> bool:
        """Whether Envoy would be started again if it died now."""
        return self._supervision is not None

    @property
    def admin(self) -> str | None:
        """``host:port`` of the admin interface; None until the running Envoy has opened it."""
        try:
            return self._admin_file.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    async def start(self) -> None:
        """Start Envoy and return when its admin interface answers; from then on it is kept running.

        Raises:
            AddressInUseError: if somebody listens on the listen or admin address.
            EnvoyStartError: if Envoy ends at once, as it does when it refuses its bootstrap.
        """
        if not self.settings.several:
            require_free("listen", self.settings.listen)
        require_free("admin", self.settings.admin)
        self._prepare()
        self._http = await self._cleanup.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1))
        )
        child = await self._spawn()
        await self._until_it_answers(child)
        self._supervision = asyncio.create_task(self._supervise(child), name=f"envoy {self.settings.node_id}")

    async def _until_it_answers(self, child: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if await self._ask("GET", "/ready") is not None:
                return
            if child.returncode is not None:
                await asyncio.wait({self._relaying})
                raise EnvoyStartError(describe_exit(child.returncode), self._last_words())
            await asyncio.sleep(_POLL_INTERVAL)
        raise EnvoyStartError(f"its admin interface did not answer within {_START_TIMEOUT:.0f} s", self._last_words())

    async def ready(self, timeout: float) -> bool:
        """Wait until Envoy has all its configuration and accepts clients; False if not in ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            answer = await self._ask("GET", "/ready")
            if answer is not None and answer.status == 200:
                return True
            await asyncio.sleep(_POLL_INTERVAL)
        return False

    async def stop(self) -> None:
        """Drain, then end Envoy and remove what was written for it. Takes at most ``drain`` + 4 seconds."""
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await asyncio.wait({supervision})
        child = self._child
        if child is not None and child.returncode is None:
            await self._drain()
            await _terminate(child)
        await self._cleanup.aclose()

    def _bootstrap(self, directory: Path) -> dict[str, Any]:
        settings = self.settings
        return bootstrap(
            node_id=settings.node_id,
            pool=settings.cluster,
            listen=settings.listen,
            xds_addresses=settings.xds_addresses,
            admin=settings.admin,
            delta=settings.delta,
            trace_requests=settings.trace_requests,
            site=settings.site,
            transport_socket=transport_socket(directory, settings.xds_addresses) if settings.tls else None,
        )

    def _prepare(self) -> None:
        if self.settings.tls is not None:
            _require_own_key(self.settings.tls.pair[1])
        directory = self.settings.directory
        if directory is None:
            made = tempfile.TemporaryDirectory(prefix="understudy-envoy-", ignore_cleanup_errors=True)
            directory = Path(self._cleanup.enter_context(made))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = directory / "bootstrap.json"
        configuration.write_text(json.dumps(self._bootstrap(directory), indent=1), encoding="utf-8")
        for name, secret in (secret_files(self.settings.tls) if self.settings.tls else {}).items():
            (directory / name).write_text(json.dumps(secret, indent=1), encoding="utf-8")
        self._admin_file = directory / "admin-address"
        self._command = tethered(
            self._binary,
            *("--config-path", str(configuration)),
            *("--admin-address-path", str(self._admin_file)),
            *options(
                concurrency=self.settings.concurrency or os.cpu_count() or 1,
                log_level=self.settings.log_level,
                drain=self.settings.drain,
            ),
        )

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._admin_file.unlink(missing_ok=True)
        self._child = child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            # A Ctrl-C at the terminal must reach Envoy only through stop(), after the drain.
            start_new_session=True,
        )
        self._born = time.monotonic()
        self._relaying = asyncio.create_task(self._relay(child))
        return child

    async def _supervise(self, child: asyncio.subprocess.Process) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        while True:
            code = await child.wait()
            await asyncio.wait({self._relaying})
            lived = time.monotonic() - self._born
            if lived > STEADY_AFTER:
                backoff.reset()
            delay = backoff.next()
            self.last_end = describe_exit(code)
            logger.warning(
                "Envoy %s ended after %.1f s (%s), starting it again in %.1f s; it said last: %s",
                *(self.settings.node_id, lived, self.last_end, delay, self._last_words() or "nothing"),
            )
            await asyncio.sleep(delay)
            child = await self._spawn()
            self.restarts += 1

    async def _relay(self, child: asyncio.subprocess.Process) -> None:
        """Pass Envoy's log on to ours, and keep the end of it."""
        while child.stderr is not None:
            try:
                line = await child.stderr.readline()
            except ValueError:  # longer than the stream's limit; the reader has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            level = next((number for name, number in _LEVELS.items() if f"][{name}][" in text), logging.INFO)
            logger.log(level, "%s: %s", self.settings.node_id, text)

    def _last_words(self) -> str:
        return next((line for line in reversed(self._tail) if line), "")

    async def _drain(self) -> None:
        """Ask clients to go elsewhere, and wait until none is left, or for a while none has had a request."""
        if await self._ask("POST", "/drain_listeners?graceful&skip_exit") is None:
            return
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < self.settings.drain:
            connections, requests = await self._clients()
            if not connections or (not requests and waited > _QUIET):
                return
            await asyncio.sleep(_POLL_INTERVAL)

    async def _clients(self) -> tuple[int, int]:
        """How many connections clients have open, and how many requests are under way."""
        answer = await self._ask("GET", f"/stats?format=json&filter=^{self.settings.stats}downstream_(cx|rq)_active$")
        stats = json.loads(answer.body)["stats"] if answer and answer.status == 200 else []
        connections = sum(stat["value"] for stat in stats if stat["name"].endswith("_cx_active"))
        return connections, sum(stat["value"] for stat in stats if stat["name"].endswith("_rq_active"))

    async def _ask(self, method: str, path: str) -> _Answer | None:
        """Ask the admin interface; None if it doesn't answer."""
        admin = self.admin
        if admin is None or self._http is None:
            return None
        try:
            async with self._http.request(method, f"http://{admin}{path}") as response:
                return _Answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


async def run_envoy(settings: EnvoySettings) -> int:
    """Run a front Envoy until SIGTERM or SIGINT.

    Returns the exit code: 0, or 2 if it cannot be run as asked, which the log then explains.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        async with EnvoyProcess(settings) as envoy:
            reporting = asyncio.create_task(_report_readiness(envoy))
            await stopping.wait()
            reporting.cancel()
            logger.info("Envoy %s: draining and stopping", settings.node_id)
    except (EnvoyError, ValueError) as error:
        logger.error("%s", error)  # noqa: TRY400 - the text is for the operator, who can do nothing with a trace
        return 2
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0


async def _report_readiness(envoy: EnvoyProcess) -> None:
    settings, patience = envoy.settings, 5.0
    while not await envoy.ready(patience):
        servers = ", ".join(settings.xds_addresses)
        logger.warning("Envoy %s has no configuration yet from %s, and serves nobody", settings.node_id, servers)
        patience = min(60.0, 2 * patience)
    what = ", ".join(settings.pools) or settings.pool or "all that have a front"
    logger.info("Envoy %s serves %s on %s", settings.node_id, what, settings.listen)


def _require_own_key(key: Path) -> None:
    """Raise :class:`EnvoyError` unless the private key that Envoy will read can be read by us alone."""
    try:
        require_secret(key)
    except OSError as error:
        raise EnvoyError(fault_of(error)) from None


def require_free(purpose: str, address: str) -> None:
    """Raise :class:`AddressInUseError` unless ``address`` (an IP address and a port) can be listened on now.

    Envoy itself would not notice: its listeners share a port with other processes of the same user.
    """
    try:
        try_to_listen(*split_address(address))
    except OSError as error:
        raise AddressInUseError(purpose, address, error.strerror or str(error)) from None


async def _terminate(child: asyncio.subprocess.Process) -> None:
    for end in (child.terminate, child.kill):
        with contextlib.suppress(ProcessLookupError):
            end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TERMINATION_TIMEOUT):
                await child.wait()
            return
