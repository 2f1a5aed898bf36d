"""Discovery requests and responses as bytes.

Requests of both variants are read into one frozen :class:`Request`, so no other module needs protobuf for them. Any
bytes either become a request or raise :class:`Malformed`. A response is made of resources that are already encoded. Its
nonce is appended last, so that streams with the same response share all other bytes (protobuf allows any order of
fields). Field numbers are those of ``envoy.service.discovery.v3``.
"""

import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from understudy.xds.server.dynamic_protobuf import Dynamic, Schema

_CORE = "envoy.config.core.v3"
_DISCOVERY = "envoy.service.discovery.v3"

SCHEMA = Schema()
SCHEMA.declare(
    _CORE,
    {
        "Locality": {"region": (1, "string"), "zone": (2, "string"), "sub_zone": (3, "string")},
        "Node": {
            "id": (1, "string"),
            "cluster": (2, "string"),
            "metadata": (3, "google.protobuf.Struct"),
            "locality": (4, f"{_CORE}.Locality"),
            "user_agent_name": (6, "string"),
            "user_agent_version": (7, "string"),
            "client_features": (10, "repeated string"),
        },
        "ControlPlane": {"identifier": (1, "string")},
    },
)
SCHEMA.declare(
    "google.rpc",
    {
        "Status": {
            "code": (1, "int32"),
            "message": (2, "string"),
            "details": (3, "repeated google.protobuf.Any"),
        }
    },
)
SCHEMA.declare(
    _DISCOVERY,
    {
        "DiscoveryRequest": {
            "version_info": (1, "string"),
            "node": (2, f"{_CORE}.Node"),
            "resource_names": (3, "repeated string"),
            "type_url": (4, "string"),
            "response_nonce": (5, "string"),
            "error_detail": (6, "google.rpc.Status"),
        },
        "DiscoveryResponse": {
            "version_info": (1, "string"),
            "resources": (2, "repeated google.protobuf.Any"),
            "canary": (3, "bool"),
            "type_url": (4, "string"),
            "nonce": (5, "string"),
            "control_plane": (6, f"{_CORE}.ControlPlane"),
        },
        "DeltaDiscoveryRequest": {
            "node": (1, f"{_CORE}.Node"),
            "type_url": (2, "string"),
            "resource_names_subscribe": (3, "repeated string"),
            "resource_names_unsubscribe": (4, "repeated string"),
            "initial_resource_versions": (5, "map<string,string>"),
            "response_nonce": (6, "string"),
            "error_detail": (7, "google.rpc.Status"),
        },
        "Resource": {
            "version": (1, "string"),
            "resource": (2, "google.protobuf.Any"),
            "name": (3, "string"),
            "aliases": (4, "repeated string"),
            "ttl": (6, "google.protobuf.Duration"),
        },
        "DeltaDiscoveryResponse": {
            "system_version_info": (1, "string"),
            "resources": (2, f"repeated {_DISCOVERY}.Resource"),
            "type_url": (4, "string"),
            "nonce": (5, "string"),
            "removed_resources": (6, "repeated string"),
            "control_plane": (7, f"{_CORE}.ControlPlane"),
        },
    },
)

DiscoveryRequest = SCHEMA.message(f"{_DISCOVERY}.DiscoveryRequest")
DiscoveryResponse = SCHEMA.message(f"{_DISCOVERY}.DiscoveryResponse")
DeltaDiscoveryRequest = SCHEMA.message(f"{_DISCOVERY}.DeltaDiscoveryRequest")
DeltaDiscoveryResponse = SCHEMA.message(f"{_DISCOVERY}.DeltaDiscoveryResponse")

RESOURCE_TYPE = f"type.googleapis.com/{_DISCOVERY}.Resource"
TTL_FEATURE = "xds.config.supports-resource-ttl"
# In state of the world the protocol text allows lifetimes by the first name. The list of client features, and gRPC,
# have the second one: it says that the client can read a Resource wrapper, and not that it respects lifetimes.
SOTW_TTL_FEATURE = "xds.config.supports-resource-in-sotw"
WRAPPER_FEATURE = "xds.config.resource-in-sotw"


def heeds_ttl(features: Container[str], *, delta: bool) -> bool:
    """Whether a client with these features takes resources with a lifetime, and responses that only renew it."""
    if delta:
        return TTL_FEATURE in features
    return SOTW_TTL_FEATURE in features or (TTL_FEATURE in features and WRAPPER_FEATURE in features)


class Malformed(Exception):
    """Bytes that cannot be read as the expected message; ``detail`` says why."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Node:
    """The node that a client names. ``metadata`` is its Struct as plain data; lists of extensions are dropped."""

    id: str
    cluster: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    user_agent: str = ""
    user_agent_version: str = ""
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """A discovery request of either variant.

    State of the world uses ``names`` (the whole list) and ``version``; delta uses ``subscribe``, ``unsubscribe`` and
    ``held`` (name -> version that the client still has from an earlier stream). ``error`` is the text of
    ``error_detail``, None when the request carries none.
    """

    type_url: str
    node: Node | None = None
    nonce: str = ""
    error: str | None = None
    version: str = ""
    names: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)


def read_request(data: bytes) -> Request:
    """Read a ``DiscoveryRequest``; raises :class:`Malformed` on anything else."""
    message = _parse(DiscoveryRequest, data)
    return Request(
        type_url=sys.intern(message.type_url),
        node=_node(message),
        nonce=message.response_nonce,
        error=_error(message),
        version=message.version_info,
        names=tuple(message.resource_names),
    )


def read_delta_request(data: bytes) -> Request:
    """Read a ``DeltaDiscoveryRequest``; raises :class:`Malformed` on anything else."""
    message = _parse(DeltaDiscoveryRequest, data)
    return Request(
        type_url=sys.intern(message.type_url),
        node=_node(message),
        nonce=message.response_nonce,
        error=_error(message),
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        held=dict(message.initial_resource_versions),
    )


def _parse(kind: Dynamic, data: bytes) -> Dynamic:
    try:
        return kind.FromString(data)
    except DecodeError as fault:
        raise Malformed(f"not a {kind.DESCRIPTOR.name}: {fault}") from None


def _node(message: Dynamic) -> Node | None:
    return node_from(message.node) if message.HasField("node") else None


def node_from(node: Dynamic) -> Node:
    """Read a ``Node`` message; raises :class:`Malformed` if its metadata is no valid Struct."""
    try:
        metadata = json_format.MessageToDict(node.metadata)
    except (json_format.Error, ValueError, RecursionError) as fault:
        raise Malformed(f"node metadata: {fault}") from None
    return Node(
        id=node.id,
        cluster=node.cluster,
        metadata=metadata,
        region=node.locality.region,
        zone=node.locality.zone,
        sub_zone=node.locality.sub_zone,
        user_agent=node.user_agent_name,
        user_agent_version=node.user_agent_version,
        features=frozenset(node.client_features),
    )


def _error(message: Dynamic) -> str | None:
    if not message.HasField("error_detail"):
        return None
    return message.error_detail.message or f"rejected with code {message.error_detail.code} and no text"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(number: int, value: bytes) -> bytes:
    """A length-delimited field: its number, and its value as bytes."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def any_of(type_url: str, value: bytes) -> bytes:
    """A ``google.protobuf.Any`` around a serialised message."""
    return delimited(1, type_url.encode()) + delimited(2, value)


def resource_of(name: str, version: str, packed: bytes | None, ttl: float | None = None) -> bytes:
    """A ``Resource``: ``packed`` is the Any; None makes a heartbeat, which only renews ``ttl`` (seconds)."""
    parts = [delimited(1, version.encode())]
    if packed is not None:
        parts.append(delimited(2, packed))
    parts.append(delimited(3, name.encode()))
    if ttl is not None:
        parts.append(delimited(6, _duration(ttl)))
    return b"".join(parts)


def _duration(seconds: float) -> bytes:
    whole, rest = divmod(round(seconds * 1e9), 1_000_000_000)
    parts = [b"\x08" + _varint(whole)] if whole else []
    if rest:
        parts.append(b"\x10" + _varint(rest))
    return b"".join(parts)


def response(type_url: str, version: str, packed: Iterable[bytes]) -> bytes:
    """A ``DiscoveryResponse`` without its nonce; ``packed`` are resources as Any bytes."""
    parts = [delimited(1, version.encode()), delimited(4, type_url.encode())]
    parts.extend(delimited(2, one) for one in packed)
    return b"".join(parts)


def delta_response(type_url: str, version: str, resources: Iterable[bytes], removed: Iterable[str]) -> bytes:
    """A ``DeltaDiscoveryResponse`` without its nonce; ``resources`` are the bytes of :func:`resource_of`."""
    parts = [delimited(1, version.encode()), delimited(4, type_url.encode())]
    parts.extend(delimited(2, one) for one in resources)
    parts.extend(delimited(6, name.encode()) for name in removed)
    return b"".join(parts)


def with_nonce(shared: bytes, nonce: str) -> bytes:
    """The shared bytes of a response, and after them the stream's own nonce (field 5 in both variants)."""
    return shared + delimited(5, nonce.encode())
