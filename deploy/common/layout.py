"""Where everything of a local pool listens, and the note of it in the state directory.

``local.json`` is written by whoever runs a pool and read by the commands that look into one, so that inside the same
directory they need no addresses. ``processes.json`` beside it tells how the processes are.
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


@dataclass(frozen=True, slots=True)
class ControlPlace:
    """A control server: xDS, heartbeats and OTLP at ``grpc``, admin at ``http`` (both ``host:port``).

    ``otlp_http`` is where it takes OTLP over HTTP, '' if it does not.
    """

    name: str
    grpc: str
    http: str
    otlp_http: str = ""


@dataclass(frozen=True, slots=True)
class FrontPlace:
    """The front Envoy: where clients come in, and its admin interface (both ``host:port``)."""

    name: str
    listen: str
    admin: str


@dataclass(frozen=True, slots=True)
class MemberPlace:
    """A member: application, session API, peer API and health port (all ``host:port``), and its site, '' for none."""

    name: str
    app: str
    session_api: str
    peer: str
    health: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A local pool's addresses. ``etcd`` has client URLs; ``etcd_peers`` the URLs of etcd's own traffic."""

    pool: str
    pid: int
    etcd: tuple[str, ...]
    etcd_peers: tuple[str, ...]
    controls: tuple[ControlPlace, ...]
    front: FrontPlace
    members: tuple[MemberPlace, ...]

    def encode(self) -> str:
        """The layout as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Layout":
        """Read a layout; raises ``ValueError`` on anything that is not one."""
        raw = read_object(text)
        if not isinstance(raw.get("controls"), list) or not isinstance(raw.get("members"), list):
            raise ValueError("controls and members are lists")  # noqa: TRY004 - one error for all
        return made_of(
            cls,
            {
                **raw,
                "controls": tuple(made_of(ControlPlace, place) for place in raw["controls"]),
                "front": made_of(FrontPlace, raw.get("front")),
                "members": tuple(made_of(MemberPlace, place) for place in raw["members"]),
            },
        )

    @property
    def etcd_names(self) -> tuple[str, ...]:
        """Names of etcd's processes, in the order of :attr:`etcd`."""
        count = len(self.etcd)
        return ("etcd",) if count == 1 else tuple(f"etcd-{number}" for number in range(1, count + 1))

    @property
    def front_url(self) -> str:
        """Where clients send their requests."""
        return f"http://{self.front.listen}"


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def state_directory(environment: Mapping[str, str]) -> Path:
    """The state directory that commands look into: ``UNDERSTUDY_DIR``, or ``.understudy`` here."""
    return Path(environment.get("UNDERSTUDY_DIR") or STATE_DIRECTORY)


def read_layout(directory: Path) -> Layout | None:
    """The layout noted in ``directory``; None if there is none, or none that can be read."""
    try:
        return Layout.decode((directory / LAYOUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_processes(directory: Path) -> list[dict[str, Any]]:
    """The processes' state noted in ``directory``; empty if there is none."""
    try:
        noted = json.loads((directory / PROCESSES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return noted if isinstance(noted, list) else []
