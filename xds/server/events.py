"""What users of the cache get: errors, events of pushes and acknowledgements, status, counters.

Plain data. Times are monotonic nanoseconds of the process that serves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from understudy.xds.server import types
from understudy.xds.server.responses import ConfigStatus


class CacheError(Exception):
    """The base of this library's errors."""


class InvalidResources(CacheError):
    """Resources that were refused; nothing of the call was applied. ``problems``: (type, name) -> reason."""

    def __init__(self, problems: Mapping[tuple[str, str], str]) -> None:
        self.problems = dict(problems)
        reasons = [f"{types.short_name(kind)} {name}: {why}" for (kind, name), why in self.problems.items()]
        more = f" (and {len(reasons) - 5} more)" if len(reasons) > 5 else ""
        super().__init__("; ".join(reasons[:5]) + more)


class ConfigRejected(CacheError):
    """A node rejected a response (NACK). ``error`` is the node's own text."""

    def __init__(self, node: str, type_url: str, version: str, error: str) -> None:
        super().__init__(f"{node} rejected {types.short_name(type_url)} {version}: {error}")
        self.node = node
        self.type_url = type_url
        self.version = version
        self.error = error


class NotAcknowledged(CacheError, TimeoutError):
    """Some nodes did not response in time; ``nodes`` names them."""

    def __init__(self, nodes: tuple[str, ...], timeout: float) -> None:
        shown = ", ".join(nodes[:10]) + (", ..." if len(nodes) > 10 else "")
        super().__init__(f"not acknowledged within {timeout} s by {shown}")
        self.nodes = nodes


class PushEvent(NamedTuple):
    """One response written to a node. Times are monotonic ns.

    ``changed_at_ns`` is the last change of what the node sees, which caused the response unless the node ``asked`` for
    it. ``written_at_ns`` is when the transport had taken it over.
    """

    node: str
    type_url: str
    version: str
    resources: int
    removed: int
    size: int
    changed_at_ns: int
    sent_at_ns: int
    written_at_ns: int
    asked: bool


class AckEvent(NamedTuple):
    """A node's response to a response: an ACK, or a NACK with its ``error``. Times are monotonic ns.

    ``versions``: the names that the response carried, with the versions of the resources; '' for a removed name.
    """

    node: str
    type_url: str
    version: str
    sent_at_ns: int
    acked_at_ns: int
    error: str | None = None
    versions: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """How far one connected node is with one type.

    ``sent`` and ``acked`` are versions, empty when there is none. ``nonce`` is that of the last response; the times
    are monotonic ns of the last response and of the last response to one, 0 when there was none.
    """

    node: str
    group: str
    peer: str
    type_url: str
    sent: str
    acked: str
    state: ConfigStatus
    error: str
    nonce: str
    sent_at_ns: int
    acked_at_ns: int


@dataclass(slots=True)
class ServerCounters:
    """What the cache and its server have done so far.

    ``encodings`` counts messages turned into bytes, ``encoded`` by type the resources made of them or of given bytes.
    """

    encodings: int = 0
    encoded: dict[str, int] = field(default_factory=dict)
    streams: int = 0
    pushes: int = 0
    pushed_resources: int = 0
    pushed_bytes: int = 0
    acks: int = 0
    nacks: int = 0
    refused_requests: int = 0
    refused_snapshots: int = 0
