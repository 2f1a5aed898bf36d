"""The options of a drill, and its result."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from understudy.deploy.common.options import TlsOptions
from understudy.deploy.drill.conditions import ClientView, DrillKind, HomeFigures, TakeOverFigures
from understudy.deploy.drill.link import ONE_WAY
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.practice import PRACTISED_EVERY, Outcome


@dataclass(frozen=True, slots=True)
class DrillSettings:
    """The options of a drill. ``rate`` 0: measure the pool's real clients. ``seconds`` is the duration of the fault.

    ``every``: how often, in seconds, a practice is meant to run. ``peer``: the other of two distant sites with its
    etcd, and ``peer_url`` its front Envoy.
    """

    kind: DrillKind
    member: str = ""
    site: str = ""
    link: tuple[str, ...] = ()
    one_way: bool = False
    rate: int = 0
    seconds: float = 5.0
    repeat: int = 1
    url: str = ""
    admin: str = ""
    command: str = ""
    undo: str = ""
    reason: str = ""
    every: float = PRACTISED_EVERY
    peer: tuple[str, EtcdSettings] | None = None
    peer_url: str = ""
    tls: TlsOptions | None = None

    @property
    def why(self) -> str:
        """What the audit log says of the acts of this drill."""
        return f"drill: {self.reason}" if self.reason else "drill"

    def command_again(self, pool: str, name: str) -> str:
        """The command that repeats this drill of ``pool`` at the target ``name``.

        It is kept with the trace, which more people may read. So own commands and addresses are words in capitals.
        """
        words = ["understudy", "drill", str(self.kind)]
        words += ["--member", name] if self.kind.of_a_member else []
        words += ["--site", name] if self.kind.of_a_site else []
        if self.kind.of_a_link:
            words += ["--link", name, *(["--direction", ONE_WAY] if self.one_way else [])]
        words += ["--load", str(self.rate)] if self.rate else []
        words += ["--for", f"{self.seconds:g}s"] if self.kind is not DrillKind.ROLLING else []
        words += ["--peer", "PEER"] if self.peer else []
        for option in ("url", "peer_url", "admin", "command", "undo"):
            words += [f"--{option.replace('_', '-')}", option.upper()] if getattr(self, option) else []
        return shlex.join([*words, "--pool", pool])


@dataclass(frozen=True, slots=True)
class DrillResult:
    """One drill. ``name`` is the target, ``traces`` are those of the failovers that it caused, ``at`` is wall time.

    ``taken``: the number of slots that each site lost by a cut link. ``outcome`` and ``why`` are those of a practice.
    ``home``: of a drill of the home. ``take_over``: of a drill of ``site take-over``.
    """

    kind: DrillKind
    name: str
    at: float
    seconds: float
    seen: ClientView
    missed: tuple[str, ...]
    traces: tuple[str, ...]
    taken: Mapping[str, int] = field(default_factory=dict)
    outcome: Outcome | None = None
    why: str = ""
    home: HomeFigures | None = None
    take_over: TakeOverFigures | None = None
