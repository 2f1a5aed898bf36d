"""What is sent to one client for one type, and what the client says about it: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple

from understudy.xds.server.snapshot import Resource


class ConfigStatus(StrEnum):
    """How far a node is with one type, in the terms of the client status service."""

    NOT_SENT = "NOT SENT"
    STALE = "STALE"
    SYNCED = "SYNCED"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Response:
    """What to send for one type: resources, removed names, and the version of the whole.

    Attributes:
        changed: names of the resources that the client did not hold in this version before. A response with a full set
            also carries others.
        added: those of them that the client did not hold at all.
        asked: the reason is a request and not a change of content.
        cut: the parts that it was split into (``understudy.xds.server.split``).
    """

    version: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    changed: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    asked: bool = False
    cut: "dict[int, tuple[Response, ...]]" = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """All names in the response with their versions; a removed name has an empty one."""
        return {resource.name: resource.version for resource in self.resources} | dict.fromkeys(self.removed, "")

    @cached_property
    def clusters(self) -> frozenset[str]:
        """All clusters that its resources point at."""
        return frozenset[str]().union(*(resource.points_at.clusters for resource in self.resources))


class Sent(NamedTuple):
    """A response that was sent, kept until its ACK or NACK. Times are monotonic ns."""

    nonce: str
    version: str
    versions: Mapping[str, str]
    added: frozenset[str]
    at_ns: int


class RequestOutcome(NamedTuple):
    """What one request says: about a response (``sent`` and, for a NACK, ``error``) and about the subscription."""

    kind: Literal["first", "ack", "nack", "stale", "plain"]
    sent: Sent | None = None
    error: str | None = None
    subscription_changed: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """A response that the client rejected.

    Attributes:
        names: the names in it that were not sent again since. They stay unsent for now.
        versions: everything that was in it, as it was sent.
        added: the names in it that the client did not hold before.
    """

    names: frozenset[str]
    versions: Mapping[str, str]
    added: frozenset[str]
    version: str
    error: str

    @property
    def missing(self) -> frozenset[str]:
        """The added names that the client may lack: those that its error text names, or all if it names none."""
        added = self.added & self.names
        return frozenset(name for name in added if name in self.error) or added

    def is_outdated(self, resources: Mapping[str, Resource]) -> bool:
        """Whether something in the response is different now, so that the rest may be tried again."""
        return any(version_in(resources, name) != version for name, version in self.versions.items())


def version_in(resources: Mapping[str, Resource], name: str) -> str:
    """The version of a resource; empty when it is not there."""
    found = resources.get(name)
    return "" if found is None else found.version
