"""The client status discovery service (CSDS): the status of every connected node, for any tool that speaks it.

Answers for all nodes or, if a request has matchers, for the nodes whose id one of them matches exactly or by prefix.
Other kinds of matchers are refused. Contents of resources are not included. Field numbers are those of
``envoy.service.status.v3``.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from itertools import groupby

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from understudy.xds.server.cache import ResourceCache, TypeStatus
from understudy.xds.server.dynamic_protobuf import Dynamic, Schema
from understudy.xds.server.responses import ConfigStatus
from understudy.xds.server.stream_quota import StreamQuota

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"

_CORE = "envoy.config.core.v3"
_STATUS = "envoy.service.status.v3"
_MATCHER = "envoy.type.matcher.v3"
_ADMIN = "envoy.admin.v3"

_SCHEMA = Schema()
_SCHEMA.declare(_CORE, {"Node": {"id": (1, "string"), "cluster": (2, "string")}})
_SCHEMA.declare(_ADMIN, {"UpdateFailureState": {"details": (3, "string"), "version_info": (4, "string")}})
_SCHEMA.declare(
    _MATCHER,
    {
        "StringMatcher": {"exact": (1, "string"), "prefix": (2, "string")},
        "NodeMatcher": {"node_id": (1, f"{_MATCHER}.StringMatcher")},
    },
)
_SCHEMA.declare(
    _STATUS,
    {
        "ClientStatusRequest": {
            "node_matchers": (1, f"repeated {_MATCHER}.NodeMatcher"),
            "node": (2, f"{_CORE}.Node"),
        },
        "GenericXdsConfig": {
            "type_url": (1, "string"),
            "name": (2, "string"),
            "version_info": (3, "string"),
            "config_status": (6, "int32"),
            "client_status": (7, "int32"),
            "error_state": (8, f"{_ADMIN}.UpdateFailureState"),
        },
        "ClientConfig": {
            "node": (1, f"{_CORE}.Node"),
            "generic_xds_configs": (3, f"repeated {_STATUS}.GenericXdsConfig"),
        },
        "ClientStatusResponse": {"config": (1, f"repeated {_STATUS}.ClientConfig")},
    },
)
_Request = _SCHEMA.message(f"{_STATUS}.ClientStatusRequest")
_Response = _SCHEMA.message(f"{_STATUS}.ClientStatusResponse")

# envoy.service.status.v3.ConfigStatus
_CONFIG_STATUS = {ConfigStatus.SYNCED: 1, ConfigStatus.NOT_SENT: 2, ConfigStatus.STALE: 3, ConfigStatus.ERROR: 4}

Context = grpc.aio.ServicerContext[bytes, bytes]
CacheOf = Callable[[str], ResourceCache]
"""The cache for the cluster that the node of a request names ('': none); raises ``ValueError`` if there is none."""


def add_client_status(server: grpc.aio.Server, cache_of: CacheOf, quota: StreamQuota) -> None:
    """Add the service to a gRPC server that is not started yet. Its streams count in ``quota``."""

    async def fetch(request: bytes, context: Context) -> bytes:
        return await _response_for(request, cache_of, context)

    async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with quota.held(context):
            async for request in requests:
                yield await _response_for(request, cache_of, context)

    handlers = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(fetch),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def _response_for(data: bytes, cache_of: CacheOf, context: Context) -> bytes:
    try:
        request = _Request.FromString(data)
        wanted = [_matcher(one) for one in request.node_matchers]
        cache = cache_of(request.node.cluster)
    except (DecodeError, ValueError) as fault:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(fault))
    statuses = [one for one in cache.status() if not wanted or any(_matches(one.node, *how) for how in wanted)]
    return encode_status(statuses)


def _matcher(matcher: Dynamic) -> tuple[str, str]:
    known = matcher.node_id
    for kind in ("exact", "prefix"):
        if text := getattr(known, kind):
            return kind, text
    raise ValueError("only matchers of the node id, exact or by prefix, are understood")


def _matches(node: str, kind: str, text: str) -> bool:
    return node == text if kind == "exact" else node.startswith(text)


def encode_status(statuses: Iterable[TypeStatus]) -> bytes:
    """A ``ClientStatusResponse`` of statuses that are sorted by node, one generic configuration per type."""
    response = _Response()
    for node, of_node in groupby(statuses, key=lambda status: status.node):
        config = response.config.add(node={"id": node})
        for status in of_node:
            generic = config.generic_xds_configs.add(
                type_url=status.type_url,
                version_info=status.sent,
                config_status=_CONFIG_STATUS[status.state],
            )
            if status.error:
                generic.error_state.details = status.error
                generic.error_state.version_info = status.sent
    encoded: bytes = response.SerializeToString()
    return encoded
