"""What the port says of the server that it stands for: the text of ``INFO``."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from understudy.proxy.sessions.admission import SessionTokens


@dataclass(frozen=True, slots=True)
class Server:
    """What commands about the server answer from.

    ``clients`` are all connections, ``keys`` counts the sessions in memory, ``now_us`` is the pool's time in
    microseconds.
    """

    member: str
    run_id: str
    tokens: SessionTokens | None
    clients: Callable[[], Sequence[Any]]
    keys: Callable[[], int]
    now_us: Callable[[], int]
    since: float = field(default_factory=time.monotonic)

    @property
    def open(self) -> bool:
        """Whether clients need no password."""
        return self.tokens is None

    def accepts(self, password: bytes) -> bool:
        """Whether a password is one of the tokens of the session API; any will do if there are none."""
        return self.tokens is None or self.tokens.accepts("Bearer " + password.decode("utf-8", "surrogateescape"))


def info_text(server: Server, version: str, sections: Sequence[str]) -> str:
    """The sections that are asked for, all if none is; lines as Redis writes them."""
    uptime = int(time.monotonic() - server.since)
    everything: dict[str, dict[str, object]] = {
        "server": {
            "redis_version": version,
            "redis_mode": "standalone",
            "server_name": "understudy",
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "arch_bits": 64,
            "process_id": os.getpid(),
            "run_id": server.run_id,
            "uptime_in_seconds": uptime,
            "uptime_in_days": uptime // 86400,
        },
        "clients": {"connected_clients": len(server.clients())},
        "persistence": {"loading": 0},
        "replication": {"role": "master", "connected_slaves": 0},
        "cluster": {"cluster_enabled": 0},
        "keyspace": {"db0": f"keys={server.keys()},expires={server.keys()},avg_ttl=0"},
    }
    whole = not sections or not {"all", "everything", "default"}.isdisjoint(sections)
    lines: list[str] = []
    for name, fields in everything.items():
        if whole or name in sections:
            lines += [f"# {name.capitalize()}", *(f"{key}:{value}" for key, value in fields.items()), ""]
    return "\r\n".join(lines)
