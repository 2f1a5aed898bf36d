"""The listener of a front Envoy that serves a TCP pool: a connection's source address decides its slot.

Pure. Promises that a connection from an address goes to the cluster of slot
``understudy.statesync.pool.slots.slot_of(text of the address, slots)`` and that the listener is the same whatever the
table says: it has a filter chain per slot, which leads to the slot's own cluster. Leaves the clusters, and with them
who serves a slot, to :mod:`understudy.xds.envoy.resources`.

A chain per order of members, as HTTP pools have clusters, would be smaller. But a table that ends an order takes its
chain away, and Envoy then cuts the chain's connections after its drain time, those of living members too (tried on
1.40). Whoever has connections to keep must never change a chain: so a change of the table changes clusters alone.

Slots are told apart by a tree of comparisons (``hash % slots >= threshold``), so that a connection costs
``log2(slots)`` hashes. Everything is put together from bytes, as in :mod:`understudy.xds.envoy.routes`: with 4,096
slots the messages of a library would take seconds.
"""

import functools
from dataclasses import dataclass
from datetime import timedelta

from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.clusters import socket_address
from understudy.xds.envoy.listener import listener_name, stderr_lines
from understudy.xds.envoy.messages import (
    AccessLog,
    AccessLogFilter,
    Any,
    BackoffStrategy,
    ConsistentHashing,
    Listener,
    ListenerFilter,
    ProxyProtocol,
    ResponseFlagFilter,
    SourceIpInput,
    TcpProxy,
)
from understudy.xds.envoy.resource_names import slot_name
from understudy.xds.server.types import PREFIX
from understudy.xds.server.wire import any_of, delimited

_FAILED = ["UH", "URX", "UO", "NC", "NR"]
"""Response flags of connections that no member took. ``UF`` would tell of those too that another member took."""

FIRST_PAUSE, LONGEST_PAUSE = timedelta(milliseconds=2), timedelta(milliseconds=100)
"""Between tries to connect. Without a pause Envoy tries again before it has learnt of the ejection: it would ask the
same member until its tries are used up (envoy issue 31453)."""

# Field numbers in listener.proto, listener_components.proto, tcp_proxy.proto, matcher.proto and extension.proto.
_LISTENER_CHAINS, _LISTENER_MATCHER = 3, 32
_CHAIN_FILTERS, _CHAIN_NAME = 3, 7
_FILTER_NAME, _FILTER_CONFIG = 1, 4
_PROXY_CLUSTER = 2
_MATCHER_LIST, _MATCHER_ON_NO_MATCH = 1, 3
_LIST_MATCHERS = 1
_FIELD_PREDICATE, _FIELD_ON_MATCH = 1, 2
_ON_MATCH_MATCHER, _ON_MATCH_ACTION = 1, 2
_PREDICATE_SINGLE = 1
_SINGLE_INPUT, _SINGLE_CUSTOM = 1, 3
_EXTENSION_NAME, _EXTENSION_CONFIG = 1, 2
_STRING_VALUE = 1


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """What of a spec goes into the listener. ``attempts`` are those to connect, at all of a slot's members together."""

    slots: int
    attempts: int
    idle_seconds: int
    accept_proxy_protocol: bool


def tcp_settings(spec: PoolSpec) -> TcpSettings | None:
    """The settings of a TCP pool's listener; None for any other pool.

    Every member but the last may be dead and not yet known to be: as many tries as it takes to eject it are lost.
    """
    if spec.tcp is None:
        return None
    lost = spec.outliers.failures * (spec.copies - 1)
    return TcpSettings(
        slots=spec.slots,
        attempts=1 + spec.retries.attempts + lost,
        idle_seconds=spec.timeouts.idle_seconds,
        accept_proxy_protocol=spec.tcp.accept_proxy_protocol,
    )


@functools.lru_cache(maxsize=64)
def tcp_listener(pool: str, address: str, port: int, settings: TcpSettings) -> bytes:
    """The encoded ``Listener`` of a front Envoy that serves a TCP pool on ``address:port``."""
    frame = Listener(
        name=listener_name(pool),
        stat_prefix=pool,
        address=socket_address(address, port),
        listener_filters=[_proxy_header()] if settings.accept_proxy_protocol else [],
        access_log=[_failures_log()],
    )
    chains = b"".join(_chains(pool, settings))
    return bytes(frame) + chains + delimited(_LISTENER_MATCHER, _matcher(settings.slots))


def chain_name(slot: int) -> str:
    """Name of the filter chain of a slot."""
    return f"slot/{slot}"


def _proxy_header() -> ListenerFilter:
    """Takes the client's address from the header of a proxy before us; the matcher sees that one then."""
    return ListenerFilter(name="envoy.filters.listener.proxy_protocol", typed_config=Any.pack(ProxyProtocol()))


def _failures_log() -> AccessLog:
    """Connections that no member took, to Envoy's stderr. Nothing tells the client's address: it is the session key."""
    line = {
        "time": "%START_TIME%",
        "chain": "%FILTER_CHAIN_NAME%",
        "flags": "%RESPONSE_FLAGS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "ms": "%DURATION%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    }
    return stderr_lines(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=_FAILED)), line)


def _chains(pool: str, settings: TcpSettings) -> list[bytes]:
    """One filter chain per slot, all alike but for their names and clusters."""
    proxy = bytes(
        TcpProxy(
            stat_prefix=pool,
            max_connect_attempts=settings.attempts,
            backoff_options=BackoffStrategy(base_interval=FIRST_PAUSE, max_interval=LONGEST_PAUSE),
            idle_timeout=timedelta(seconds=settings.idle_seconds),
        )
    )
    name = delimited(_FILTER_NAME, b"envoy.filters.network.tcp_proxy")
    kind = f"{PREFIX}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"

    def chain(slot: int) -> bytes:
        config = any_of(kind, proxy + delimited(_PROXY_CLUSTER, slot_name(pool, slot).encode()))
        one = delimited(_CHAIN_FILTERS, name + delimited(_FILTER_CONFIG, config))
        return delimited(_LISTENER_CHAINS, one + delimited(_CHAIN_NAME, chain_name(slot).encode()))

    return [chain(slot) for slot in range(settings.slots)]


def _matcher(slots: int) -> bytes:
    """The matcher that leads every source address to the chain of its slot."""
    source = delimited(_SINGLE_INPUT, _extension("source-ip", Any.pack(SourceIpInput())))

    def at_least(slot: int) -> bytes:
        hashed = _extension("slot", Any.pack(ConsistentHashing(threshold=slot, modulo=slots)))
        return delimited(_PREDICATE_SINGLE, source + delimited(_SINGLE_CUSTOM, hashed))

    def among(first: int, end: int) -> bytes:
        """What to do with the slots from ``first`` on, to ``end`` and without it: an ``OnMatch``."""
        if end - first == 1:
            return delimited(_ON_MATCH_ACTION, _to_chain(first))
        middle = (first + end) // 2
        upper = delimited(_FIELD_PREDICATE, at_least(middle)) + delimited(_FIELD_ON_MATCH, among(middle, end))
        both = delimited(_MATCHER_LIST, delimited(_LIST_MATCHERS, upper))
        return delimited(_ON_MATCH_MATCHER, both + delimited(_MATCHER_ON_NO_MATCH, among(first, middle)))

    # All slots are among all slots: a matcher that has no comparison, only what is to be done without one.
    return delimited(_MATCHER_ON_NO_MATCH, among(0, slots))


def _to_chain(slot: int) -> bytes:
    """An action that names a filter chain: a ``StringValue`` in an extension."""
    value = any_of(f"{PREFIX}google.protobuf.StringValue", delimited(_STRING_VALUE, chain_name(slot).encode()))
    return delimited(_EXTENSION_NAME, b"chain") + delimited(_EXTENSION_CONFIG, value)


def _extension(name: str, config: Any) -> bytes:
    return delimited(_EXTENSION_NAME, name.encode()) + delimited(_EXTENSION_CONFIG, bytes(config))
