"""What istiod does with ``EnvoyFilter`` resources, for the operations that we use: selection, matches, merging.

Written after the behaviour of istiod (its ``envoyfilter`` and ``proto/merge`` packages) and tested against the real
Envoy by what comes out. The rules of merging: lists are appended to, map entries and single values replaced, messages
merged field by field, a member of a oneof takes the place of the others, a duration is replaced as a whole; what has
its default value is not there and changes nothing, so ``false`` never replaces a ``true``. Two extensions (``Any``) of
network filters are unpacked and merged; anywhere else an ``Any`` is a message of a type and bytes.

A patch that names fields which do not exist is refused here, although istiod would drop them.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any as Anything

from betterproto2 import FieldMetadata, Message
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.google.protobuf import Any

_ROOT_NAMESPACE = "istio-system"
_VIRTUAL = ("virtualInbound", "virtualOutbound")
_VALUES: dict[str, type[Message]] = {"BOOTSTRAP": Bootstrap, "CLUSTER": Cluster, "NETWORK_FILTER": Filter}


@dataclass(frozen=True)
class Proxy:
    """A proxy as istiod knows it; one that was restarted after ``1-prepare`` unless its metadata say otherwise."""

    context: str
    namespace: str
    labels: Mapping[str, str]
    version: str = "1.29.0"
    metadata: Mapping[str, str] = field(default_factory=lambda: {"UNDERSTUDY": "true"})


def merge(into: Message, patch: Message) -> None:
    """Merge ``patch`` into ``into``."""
    for one in dataclasses.fields(patch):
        meta, value = FieldMetadata.get(one), getattr(patch, one.name)
        if not _is_there(value, meta):
            continue
        if meta.group:
            _clear_others(into, meta.group, one.name)
        old = getattr(into, one.name)
        setattr(into, one.name, _merged(old, copy.deepcopy(value), meta))


def _merged(old: Anything, new: Anything, meta: FieldMetadata) -> Anything:
    if meta.map_meta:
        return {**old, **new}
    if meta.repeated:
        return [*old, *new]
    if isinstance(new, Message) and old is not None:
        merge(old, new)
        return old
    if meta.unwrap is not None and old is not None and not isinstance(new, timedelta) and not new:
        return old
    return new


def _is_there(value: Anything, meta: FieldMetadata) -> bool:
    if meta.repeated or meta.map_meta:
        return bool(value)
    if meta.optional or meta.group or meta.unwrap is not None or isinstance(value, Message):
        return value is not None
    return bool(value)


def _clear_others(message: Message, group: str, keep: str) -> None:
    for one in dataclasses.fields(message):
        if one.name != keep and FieldMetadata.get(one).group == group:
            setattr(message, one.name, None)


def effective(filters: Iterable[Mapping[str, Anything]], proxy: Proxy) -> list[Mapping[str, Anything]]:
    """The patches for a proxy, in the order in which they are applied."""
    chosen = [
        one
        for one in filters
        if one["metadata"]["namespace"] in (_ROOT_NAMESPACE, proxy.namespace)
        and one["spec"]["workloadSelector"]["labels"].items() <= proxy.labels.items()
    ]
    # By priority, then those of the root namespace, then as they were made (here: as they are listed).
    chosen.sort(
        key=lambda one: (one["spec"].get("priority", 0), one["metadata"]["namespace"] != _ROOT_NAMESPACE),
    )
    return [patch for one in chosen for patch in one["spec"]["configPatches"] if _is_for(patch, proxy)]


def _is_for(patch: Mapping[str, Anything], proxy: Proxy) -> bool:
    wanted = patch["match"].get("proxy", {})
    # Go's regexp matches anywhere, as ``re.search`` does. The bootstrap is patched whatever the context.
    return (
        re.search(wanted.get("proxyVersion", ""), proxy.version) is not None
        and wanted.get("metadata", {}).items() <= proxy.metadata.items()
        and (patch["applyTo"] == "BOOTSTRAP" or patch["match"]["context"] in ("ANY", proxy.context))
    )


def value_of(patch: Mapping[str, Anything]) -> Message:
    """The value of a patch as the message that it is; fields that do not exist are an error."""
    assert patch["patch"]["operation"] == "MERGE", patch
    return _VALUES[patch["applyTo"]].from_dict(patch["patch"]["value"])


def patch_bootstrap(bootstrap: Bootstrap, patches: Sequence[Mapping[str, Anything]]) -> None:
    """What istiod does when an agent asks it for the bootstrap."""
    for patch in patches:
        if patch["applyTo"] == "BOOTSTRAP":
            merge(bootstrap, value_of(patch))


def patch_cluster(cluster: Cluster, patches: Sequence[Mapping[str, Anything]]) -> None:
    """What istiod does to a cluster before it goes out."""
    for patch in patches:
        if patch["applyTo"] == "CLUSTER" and _cluster_matches(cluster, patch["match"].get("cluster")):
            value = value_of(patch)
            assert isinstance(value, Cluster)
            assert value.transport_socket is None, "merging transport sockets has rules of its own"
            merge(cluster, value)


def patch_listener(listener: Listener, patches: Sequence[Mapping[str, Anything]]) -> None:
    """What istiod does to a listener before it goes out."""
    for patch in patches:
        if patch["applyTo"] != "NETWORK_FILTER":
            continue
        match = patch["match"].get("listener") or {}
        for chain in listener.filter_chains:
            if _listener_matches(listener, chain, match):
                for one in chain.filters:
                    _patch_filter(one, match.get("filterChain", {}).get("filter", {}).get("name", ""), value_of(patch))


def _patch_filter(one: Filter, name: str, value: Message) -> None:
    assert isinstance(value, Filter)
    if name and name != one.name:
        return
    assert one.typed_config is not None
    assert value.typed_config is not None
    assert one.typed_config.type_url == value.typed_config.type_url
    config, patch = one.typed_config.unpack(), value.typed_config.unpack()
    assert config is not None
    assert patch is not None
    merge(config, patch)
    one.name, one.typed_config = value.name or one.name, Any.pack(config)


def _cluster_matches(cluster: Cluster, match: Mapping[str, Anything] | None) -> bool:
    if not match:
        return True
    direction, port, subset, host = (*cluster.name.split("|"), "", "", "")[:4]
    wanted = {"name": cluster.name, "service": host, "portNumber": port, "subset": subset}
    return bool(direction) and all(str(wanted[key]) == str(value) for key, value in match.items())


def _listener_matches(listener: Listener, chain: FilterChain, match: Mapping[str, Anything]) -> bool:
    if match.get("name") not in (None, listener.name):
        return False
    sni, served = match.get("filterChain", {}).get("sni"), chain.filter_chain_match
    if sni and (served is None or sni not in served.server_names):
        return False
    port = match.get("portNumber", 0)
    if port and listener.name in _VIRTUAL:
        return chain.filter_chain_match is not None and chain.filter_chain_match.destination_port == port
    address = listener.address.socket_address if listener.address else None
    return not port or (address is not None and address.port_value == port)
