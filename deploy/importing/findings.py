"""What the readers of this package find: the session affinity of one application, and remarks about it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from understudy.deploy.common.errors import DeployError

Kind = Literal["lost", "changed", "check"]
"""``lost``: cannot be carried over. ``changed``: works, in another way. ``check``: only a person can know."""


class ImportFault(DeployError):
    """Input that cannot be read; the text has one line per fault, each with the file and the place in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: the file, the document in it (from 1) or the line (from 1), and the object's name."""

    file: str
    document: int = 0
    line: int = 0
    item: str = ""

    def __str__(self) -> str:
        """``ingress.yaml, document 2, Ingress shop/cart`` or ``haproxy.cfg, line 12, backend app``."""
        number = f"document {self.document}" if self.document else f"line {self.line}" if self.line else ""
        return ", ".join(part for part in (self.file, number, self.item) if part)


@dataclass(frozen=True, slots=True)
class Target:
    """The application whose instances become a pool's members.

    ``part`` is the port, subset or zone of it that has settings of its own; '' for the whole application.
    """

    name: str
    namespace: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about one setting that a pool file cannot express: why, and what to do."""

    kind: Kind
    setting: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one setting means for one application.

    ``key`` is an entry of the spec's ``session_key``; None if there is only something to remark. ``spec`` has other
    keys of the spec. ``target`` is None if no application could be found.
    """

    place: Place
    target: Target | None
    key: Mapping[str, Any] | None = None
    remarks: tuple[Remark, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in one input, and how many objects or sections without session affinity it has, by kind."""

    findings: tuple[Finding, ...] = ()
    unrelated: Mapping[str, int] = field(default_factory=dict)
