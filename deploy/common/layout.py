"""The addresses of a local pool, and the files in its state directory.

The process that runs a pool writes ``local.json``. Commands that run in the same directory read it, so they need no
addresses. ``processes.json`` beside it has the state of the processes.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.statesync.parsing.stored import made_of, read_object

STATE_DIRECTORY = ".understudy"
LAYOUT_FILE = "local.json"
PROCESSES_FILE = "processes.json"
HELD_FILE = "held"
"""While it has the id of a living process, the processes of the pool that end are not started again.

Behind the id may be names: then it is only about the processes of these names.
"""


@dataclass(frozen=True, slots=True)
class ControlAddresses:
    """A control server: xDS, heartbeats and OTLP at ``grpc``, admin at ``http`` (both ``host:port``).

    ``otlp_http`` is its address for OTLP over HTTP, '' for none. ``site`` is where it would run, '' for no site.
    """

    name: str
    grpc: str
    http: str
    otlp_http: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True)
class FrontAddresses:
    """A front Envoy: its listener for clients, and its admin interface (both ``host:port``); its site, '' for none."""

    name: str
    listen: str
    admin: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class MemberAddresses:
    """A member: application, session API, Redis port, peer API and health port (all ``host:port``).

    And its failure domains, and the version of its application. '' stands for no site, zone, host or version, and for
    no Redis port.
    """

    name: str
    app: str
    session_api: str
    peer: str
    health: str
    site: str = ""
    redis: str = ""
    zone: str = ""
    host: str = ""
    app_version: str = ""


@dataclass(frozen=True, slots=True)
class SiteNetwork:
    """The network of a site, or of what is on no site: a namespace, and its address in it."""

    site: str
    namespace: str
    address: str


@dataclass(frozen=True, slots=True)
class DistantSite:
    """The site of a local pool that has a mirror on another site, or is one, and that other site, its ``peer``.

    ``metrics``: where ``understudy mirror`` of this site has its metrics. ``peer_etcd`` has client URLs, and
    ``peer_directory`` is the state directory of the peer.
    """

    site: str
    metrics: str
    peer: str
    peer_etcd: tuple[str, ...]
    peer_directory: str


@dataclass(frozen=True, slots=True)
class PoolAddresses:
    """A further pool: where clients reach it at the front Envoy, and its members."""

    pool: str
    listen: str
    members: tuple[MemberAddresses, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The addresses of a local pool. ``etcd`` has client URLs, ``etcd_peers`` the peer URLs of etcd.

    ``beside``: the other pools that run with it. ``etcd_sites``: where each etcd member would run, '' for no site.
    ``site_fronts``: the front Envoys of the other sites, in a pool whose spec has ``sites``. ``networks``: those of
    ``up --links``. ``distant``: in a pool of ``up --distant``.
    """

    pool: str
    pid: int
    etcd: tuple[str, ...]
    etcd_peers: tuple[str, ...]
    controls: tuple[ControlAddresses, ...]
    front: FrontAddresses
    members: tuple[MemberAddresses, ...]
    beside: tuple[PoolAddresses, ...] = ()
    etcd_sites: tuple[str, ...] = ()
    site_fronts: tuple[FrontAddresses, ...] = ()
    networks: tuple[SiteNetwork, ...] = ()
    distant: DistantSite | None = None

    def of(self, pool: str) -> "Layout | None":
        """The layout of one of the pools; None if ``pool`` does not run here."""
        if pool == self.pool:
            return self
        for one in self.beside:
            if one.pool == pool:
                front = dataclasses.replace(self.front, listen=one.listen)
                return dataclasses.replace(self, pool=pool, members=one.members, front=front, beside=())
        return None

    def encode(self) -> str:
        """The layout as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Layout":
        """Read a layout; raises ``ValueError`` on anything that is not one."""
        raw = read_object(text)
        beside, fronts, networks = (raw.get(name, []) for name in ("beside", "site_fronts", "networks"))
        lists = (raw.get("controls"), raw.get("members"), beside, fronts, networks)
        if not all(isinstance(listed, list) for listed in lists):
            raise ValueError("controls, members, beside, site_fronts and networks are lists")
        return made_of(
            cls,
            {
                **raw,
                "controls": tuple(made_of(ControlAddresses, place) for place in raw["controls"]),
                "front": made_of(FrontAddresses, raw.get("front")),
                "members": _members(raw),
                "site_fronts": tuple(made_of(FrontAddresses, one) for one in fronts),
                "networks": tuple(made_of(SiteNetwork, one) for one in networks),
                "distant": made_of(DistantSite, raw["distant"]) if raw.get("distant") else None,
                "beside": tuple(made_of(PoolAddresses, {**one, "members": _members(one)}) for one in beside),
            },
        )

    @property
    def etcd_names(self) -> tuple[str, ...]:
        """The names of the etcd processes, in the order of :attr:`etcd`."""
        count = len(self.etcd)
        return ("etcd",) if count == 1 else tuple(f"etcd-{number}" for number in range(1, count + 1))

    def etcd_of(self, site: str) -> tuple[str, ...]:
        """The client URLs for a process on a site: first etcd on this site, then what is on no site, then the others.

        So a process does not depend on a link to another site while it need not.
        """
        if not site or not self.etcd_sites:
            return self.etcd
        places = zip(self.etcd, self.etcd_sites, strict=True)
        return tuple(url for url, _ in sorted(places, key=lambda place: (place[1] != site, bool(place[1]))))

    @property
    def witness(self) -> str:
        """The client URL of the only member of etcd that is on no site, in a pool on sites; '' if there is none."""
        if not any(self.etcd_sites):
            return ""
        found = [url for url, site in zip(self.etcd, self.etcd_sites, strict=True) if not site]
        return found[0] if len(found) == 1 else ""

    @property
    def front_url(self) -> str:
        """The URL for clients' requests."""
        return f"http://{self.front.listen}"


def _members(raw: Mapping[str, Any]) -> tuple[MemberAddresses, ...]:
    return tuple(made_of(MemberAddresses, place) for place in raw["members"])


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader never sees a part of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def state_directory(environment: Mapping[str, str]) -> Path:
    """The state directory: ``UNDERSTUDY_DIR``, or ``.understudy`` in the current directory."""
    return Path(environment.get("UNDERSTUDY_DIR") or STATE_DIRECTORY)


def read_layout(directory: Path) -> Layout | None:
    """The layout in ``directory``; None if there is none, or it cannot be read."""
    try:
        return Layout.decode((directory / LAYOUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def distant_layouts(directory: Path) -> list[Layout]:
    """The layouts of the two pools of ``up --distant`` in ``directory``; empty if none run there."""
    found = [read_layout(file.parent) for file in sorted(directory.glob(f"*/{LAYOUT_FILE}"))]
    return [layout for layout in found if layout is not None and layout.distant is not None]


def is_held(directory: Path, name: str) -> bool:
    """Whether a drill that still runs keeps a process of the pool in ``directory`` from being started again."""
    try:
        drill, *names = (directory / HELD_FILE).read_text(encoding="utf-8").split()
        pid = int(drill)
    except (OSError, ValueError):
        return False
    return (not names or name in names) and Path(f"/proc/{pid}").exists()


def read_processes(directory: Path) -> list[dict[str, Any]]:
    """The processes in ``directory`` with their state; empty if there are none."""
    try:
        processes = json.loads((directory / PROCESSES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return processes if isinstance(processes, list) else []
