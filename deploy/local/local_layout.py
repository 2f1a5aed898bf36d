"""The options of a local pool, and the addresses of its processes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import (
    ControlAddresses,
    FrontAddresses,
    Layout,
    MemberAddresses,
    PoolAddresses,
)
from understudy.deploy.local.ports import LOOPBACK, PortPicker, require_free
from understudy.deploy.local.several_pools import listen_address
from understudy.statesync.pool.spec import PoolSpec

APP_TIMEOUT = 10.0
ETCD_PEERS_FILE = "etcd-peers.json"


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The options of a local pool. ``app`` is a command line; '' for an example. ``listen`` '': a free port.

    ``more``: the specs of further pools, each with as many members; one front Envoy serves all of them, at the host of
    ``listen``. ``app_timeout`` is the number of seconds for ``app`` to become ready after all other processes; the
    examples have more. ``otlp_http``: control servers also receive OTLP over HTTP. ``sites``: members are assigned to
    them in turn, those of a site to ``zones`` in turn, and those of a zone to ``hosts`` in turn. Control servers and
    members of etcd are assigned as :func:`site_of` says, for ``understudy drill site``. If the spec has ``sites`` too,
    each site has a front Envoy, and ``listen`` is that of the first.
    ``etcd_election_ms``: etcd's election timeout. The default is for one machine, where only a lack of CPU or a slow
    disk delays a heartbeat.
    ``app_versions``: members name these versions of the application in turn. ``links``: each site has a network of its
    own (``linked_pool``). ``witness``: what is left over among sites is on no site; otherwise the first sites have it.
    """

    directory: Path
    spec: PoolSpec
    more: tuple[PoolSpec, ...] = ()
    members: int = 3
    controls: int = 1
    etcds: int = 1
    etcd_election_ms: int = 200
    app: str = ""
    app_health: str = "/healthz"
    app_timeout: float = APP_TIMEOUT
    listen: str = ""
    otlp_http: bool = False
    sites: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    app_versions: tuple[str, ...] = ()
    links: bool = False
    witness: bool = True
    log_level: str = "info"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def specs(self) -> tuple[PoolSpec, ...]:
        """The specs of all pools."""
        return (self.spec, *self.more)


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
                site=site_of(settings.sites, number - 1, settings.controls, witness=settings.witness),
            )
            for number in range(1, settings.controls + 1)
        ),
        front=FrontAddresses(
            "front-1",
            listen=_listen(settings, settings.spec) or ports.pick(),
            admin=ports.pick(),
            site="".join(_front_sites(settings)[:1]),
        ),
        site_fronts=tuple(
            FrontAddresses(f"front-{number}", listen=ports.pick(), admin=ports.pick(), site=site)
            for number, site in enumerate(_front_sites(settings)[1:], 2)
        ),
        members=_members(settings, pool, ports),
        beside=tuple(
            PoolAddresses(spec.pool, _listen(settings, spec), _members(settings, spec.pool, ports))
            for spec in settings.more
        ),
        etcd_sites=tuple(
            site_of(settings.sites, number, settings.etcds, witness=settings.witness)
            for number in range(settings.etcds)
        ),
    )


def _front_sites(settings: LocalSettings) -> tuple[str, ...]:
    """The sites that have a front Envoy each; none if sites make no difference to Envoys."""
    alone = not settings.more and settings.spec.tcp is None
    return settings.sites if settings.spec.sites and alone else ()


def site_of(sites: Sequence[str], number: int, count: int, *, witness: bool = True) -> str:
    """The site of one of ``count`` control servers or members of etcd; '' for none.

    Each site has as many. Those that are left over are elsewhere, like the witness among three members of etcd. Without
    a ``witness`` the first sites have one more.
    """
    shared = count // len(sites) * len(sites) if sites and witness else count
    return sites[number % len(sites)] if sites and number < shared else ""


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
    if settings.links == any(f"//{LOOPBACK}:" in url for url in saved):
        how = "without" if settings.links else "with"
        raise DeployError(
            f"{settings.directory} holds the data of a pool {how} --links: do the same, or use another --dir"
        )
    if settings.links:
        return tuple(f"http://{LOOPBACK}:{url.rpartition(':')[2]}" for url in saved)
    for url in saved:
        require_free(
            url.removeprefix("http://"), "the etcd data in this directory needs it: free it, or use another --dir"
        )
    return saved
