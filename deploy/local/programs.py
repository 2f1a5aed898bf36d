"""The programs of a local pool: the command line, environment and health URL of each process."""

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from understudy.deploy.common.arguments import control_arguments
from understudy.deploy.common.errors import DeployError, ProgramMissingError
from understudy.deploy.common.layout import (
    ControlAddresses,
    FrontAddresses,
    Layout,
    MemberAddresses,
)
from understudy.deploy.common.sidecar_arguments import (
    SidecarOptions,
    application_environment,
    sidecar_arguments,
)
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.processes import Program
from understudy.deploy.local.several_pools import layouts_of
from understudy.deploy.local.starting import APP_SUFFIX
from understudy.statesync.etcd.settings import EtcdSettings, address_of

ETCD_QUOTA_BYTES = 2 * 1024**3
COMPACTION = "5m"
HEARTBEATS = 10
"""Heartbeats in an election timeout, as by etcd's defaults; etcd demands 5."""
_STAGE_ETCD, _STAGE_CONTROL, _STAGE_MEMBERS, _STAGE_FRONT = range(4)
_PYTHON = (sys.executable, "-P", "-m")  # -P: nothing is imported from the current directory
_PROGRAM = (*_PYTHON, "understudy.deploy.cli")
MIRROR = "mirror"
"""The name of the process ``understudy mirror``."""
EXAMPLE_APP = (*_PYTHON, "understudy.deploy.examples.cart")
TCP_EXAMPLE_APP = (*_PYTHON, "understudy.deploy.examples.notebook")


def programs(settings: LocalSettings, layout: Layout, etcd_binary: str) -> list[Program]:
    """All programs of the pool. Pure: nothing is started or looked up."""
    directory = settings.directory.resolve()
    election = settings.etcd_election_ms
    found = [_etcd_program(layout, number, directory, etcd_binary, election) for number in range(len(layout.etcd))]
    found += [_control_program(settings, layout, place, directory) for place in layout.controls]
    for spec, own in zip(settings.specs, layouts_of(layout), strict=True):
        for place in own.members:
            found += _member_programs(replace(settings, spec=spec, more=()), own, place, directory)
    found += [_front_program(settings, layout, front, directory) for front in (layout.front, *layout.site_fronts)]
    return [*found, mirror_program(settings, layout)] if layout.distant else found


def _etcd_program(layout: Layout, number: int, directory: Path, binary: str, election_ms: int) -> Program:
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
            *("--election-timeout", str(election_ms), "--heartbeat-interval", str(election_ms // HEARTBEATS)),
            "--pre-vote",  # the default from 3.5 on: a member that lags behind cannot delay an election
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
                etcd=layout.etcd_of(place.site),
                etcd_leader=layout.witness,
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
        etcd=EtcdSettings(layout.etcd_of(place.site)),
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


def _front_program(settings: LocalSettings, layout: Layout, front: FrontAddresses, directory: Path) -> Program:
    return Program(
        name=front.name,
        command=_understudy(
            settings,
            *("envoy", "--node", front.name, *(("--pools", "all") if settings.more else ("--pool", layout.pool))),
            *(part for place in layout.controls for part in ("--control", place.grpc)),
            *("--listen", front.listen.rpartition(":")[0] if settings.more else front.listen, "--admin", front.admin),
            *("--dir", str(directory / front.name)),
            *(("--site", front.site) if front.site else ()),
        ),
        log=directory / "logs" / f"{front.name}.log",
        stage=_STAGE_FRONT,
        health=f"http://{front.admin}/ready",
        grace=8.0,
    )


def mirror_program(settings: LocalSettings, layout: Layout) -> Program:
    """``understudy mirror`` of one of two distant sites."""
    directory, distant = settings.directory.resolve(), layout.distant
    if distant is None:
        raise ValueError("the pool has no peer")
    return Program(
        name=MIRROR,
        command=_understudy(
            settings,
            *("mirror", "--site", distant.site, "--pool", layout.pool, "--etcd", ",".join(layout.etcd)),
            *("--peer", f"{distant.peer}={','.join(map(address_of, distant.peer_etcd))}"),
            *("--tails", str(directory), "--metrics", distant.metrics),
        ),
        log=directory / "logs" / f"{MIRROR}.log",
        stage=_STAGE_CONTROL,
        health=f"http://{distant.metrics}/metrics",
    )


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
