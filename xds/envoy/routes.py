"""The routes of a pool: which slot a request belongs to, and what may be repeated when a member dies.

Promises: a session key in the pool's header or cookie picks the entry ``understudy.statesync.pool.slots.slot_of(key,
slots)`` of the weighted clusters, where the key is the group of the cookie's pattern if it has one. A request that may
already have had an effect is repeated only if that is harmless. Leaves the clusters themselves to
:mod:`understudy.xds.envoy.resources`, and where a request has its key to :mod:`understudy.xds.envoy.key_sources`.

A change of one slot's order changes only one entry among hundreds, and encoding an entry in Python takes
some 40 us. So each distinct entry is encoded once and the list is put together from bytes; the encodings of
parts of a protobuf message, put one after another, are the encoding of the whole
(https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from understudy.statesync.http.headers import APPLICATION_HEADERS
from understudy.statesync.pool.session_key import SessionKey
from understudy.statesync.pool.spec_parts import Retries, Timeouts
from understudy.statesync.sessions.request_log import REQUEST_HEADER
from understudy.telemetry.tracing.names import KEYED_ROUTES, KEYLESS_ROUTES
from understudy.xds.envoy.key_sources import KeySource, key_sources
from understudy.xds.envoy.messages import (
    Any,
    DataSource,
    DirectResponseAction,
    HeaderMatcher,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HedgePolicy,
    Metadata,
    PreviousHostsPredicate,
    PreviousPrioritiesConfig,
    RegexMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
    RetryPolicyRetryPriority,
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    RouteMatchGrpcRouteMatchOptions,
    StringMatcher,
    Struct,
    Value,
    VirtualHost,
    WeightedCluster,
    WeightedClusterClusterWeight,
)
from understudy.xds.envoy.request_limit import counted_for, limit_of, limits_of_several
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.envoy.version_routes import Marks, by_version, marks_of
from understudy.xds.server.wire import delimited

REQUEST_STAMP = "%START_TIME(%s.%3f)%;%UNIQUE_ID%"
"""What ``Understudy-Request`` says: when the request began, and an id. Envoy writes it once for all copies of a request
that it sends (tried on 1.40), and over whatever the client sent. ``understudy.statesync.sessions.request_log`` tells
what it is for."""
RETRY_HEADER = "understudy-retry"
OTHER_HOST_TRIES = 30
"""How often Envoy draws again when it drew a host that a request has been to: often enough that the one well member of
three is found all but surely (5 left one request in some hundred with a failing one)."""
RETRY_SAFE = "safe"
"""An application answers ``understudy-retry: safe`` when it did nothing and another member may succeed."""

ORDER_HEADER = "x-understudy-order"
"""Tells a cluster of the ``override_host`` policy what hosts to try, in order: ``address:port`` with commas between."""

POOL_METADATA, POOL_KEY = "understudy", "pool"
"""Namespace and key of a route's metadata that name its pool, in tables of several pools."""

VERSION_GONE = "the version of this session has no member that can serve it\n"
"""What Envoy answers, with 503, to a request of a version that is gone (``versions.when_gone: refuse``)."""

_NOTHING_DONE = "connect-failure,refused-stream,reset-before-request,retriable-headers"
_PERHAPS_DONE = f"{_NOTHING_DONE},reset"
_GRPC_PERHAPS_DONE = f"{_PERHAPS_DONE},unavailable"
REPEATABLE_METHODS = "GET|HEAD|OPTIONS|TRACE"
"""A regular expression of the methods that may be repeated (RFC 9110, 9.2.2)."""
IDEMPOTENCY_KEY = "idempotency-key"
"""A request of another method that carries this header may be repeated as well."""

_WISHES_OF_CALLERS = (
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
)
"""Headers by which a caller that Envoy trusts for its address could have a plain POST repeated. Whom it trusts is the
listener's business, and in a mesh that is not ours."""

_ROUTING_COOKIE_VALUE = "%UNIQUE_ID%"
"""A random UUID. The cookie that Envoy's own hash policy would set is a hash of addresses, from which they can be found
by trying; and Envoy does not set it where the hash chooses among clusters."""

# Field numbers in route.proto and route_components.proto, for what is put together from bytes.
_CONFIGURATION_VIRTUAL_HOSTS = 2
_VIRTUAL_HOST_ROUTES = 3
_ROUTE_ACTION = 2
_ACTION_WEIGHTED_CLUSTERS = 3
_WEIGHTED_CLUSTERS = 1


@dataclass(frozen=True, slots=True)
class Terms:
    """What of a spec goes into routes.

    ``session_key``: where requests carry the session key; the first that is present counts. ``grpc``: whether members
    speak HTTP/2, without which there is no gRPC to route. ``per_second``: the requests a second that each front Envoy
    admits; None for all. ``marks``: how the versions of sessions are told, if that decides who answers.
    """

    session_key: tuple[SessionKey, ...]
    timeouts: Timeouts
    retries: Retries
    grpc: bool
    per_second: int | None = None
    marks: Marks | None = None


@dataclass(frozen=True, slots=True)
class Targets:
    """The clusters that the routes of a pool lead to.

    ``slots``: for each slot the cluster that serves it. ``everybody``: where requests without a session key go.
    ``by_version``: the same for members of one version of the application. ``by_distance``: the members of
    ``everybody`` have priorities, by their distance from Envoy.
    """

    slots: Sequence[str]
    everybody: str
    by_version: "Mapping[str, Targets]" = field(default_factory=dict)
    by_distance: bool = False


def terms_of(view: RoutingView) -> Terms:
    """What of a spec goes into routes.

    A hedge waits longer than nearly all answers take, unless the spec fixes the wait: an answer that takes as long as
    usual says nothing of the member. Where most members are late hedges wait longer still, by as much as load grants to
    silence at the most: a busy pool answers late, so that every request would be sent two to four times, and the copies
    keep it busy.
    """
    spec = view.spec
    retries = spec.retries
    if retries.hedge_ms:
        wait = retries.hedge_ms if retries.hedge == "fixed" else max(retries.hedge_ms, view.answer_ms)
        wait += spec.liveness.load_cap_ms if view.late else 0
        retries = retries.model_copy(update={"hedge_ms": wait})
    grpc, per_second = spec.protocol != "http1", spec.limits.requests_per_second
    return Terms(spec.session_key, spec.timeouts, retries, grpc=grpc, per_second=per_second, marks=marks_of(view))


def route_configuration(*, name: str, pool: str, terms: Terms, targets: Targets) -> bytes:
    """The encoded ``RouteConfiguration`` of a pool.

    Routes are tried in order: for each cookie with a pattern the requests that it matches, then requests without a
    session key, then those with one; and in each case first what must not be repeated once it is on the wire, then the
    rest. "Without a key" and "not repeatable" are conjunctions of absent things, which a route can match; their
    opposites are what is left over. gRPC, where there is any, comes before the rest of each kind.

    Args:
        name: of the route configuration.
        pool: its name, under which Envoy counts refused requests.
        terms: what the spec says.
        targets: the clusters.
    """
    routes = _routes_to(_frames(terms, by_priority=True, by_distance=targets.by_distance), targets)
    host = VirtualHost(name=name, domains=["*"])
    if terms.per_second is not None:
        host.typed_per_filter_config = limit_of(pool, terms.per_second)
    return route_table(name, [virtual_host(host, routes)])


def routes_below(*, pool: str, path: str, terms: Terms, targets: Targets) -> bytes:
    """The encoded routes of a pool for requests below ``path``, for a :func:`virtual_host` of several pools.

    They are the ``routes`` of a ``VirtualHost``, and the only field of it.
    """
    return _routes_to(_frames(terms, by_priority=True, place=Place(pool, path)), targets)


def _routes_to(frames: "Sequence[_Frame]", targets: Targets) -> bytes:
    encoded = {
        version: _Actions(_to(one.everybody), _weighted(map(_slot_entry, one.slots), hashed=True))
        for version, one in {"": targets, **targets.by_version}.items()
    }
    return _routes(frames, encoded)


def ordered_route_configuration(
    *, name: str, terms: Terms, cluster: str, slot_hosts: Sequence[str], any_hosts: Sequence[str], body_limit: int
) -> bytes:
    """The same for one cluster that takes its hosts from :data:`ORDER_HEADER`, which a client cannot set itself.

    Nor can a client have its own way with repeats, or with what the application tells its sidecar.

    Args:
        name: of the route configuration.
        terms: what the spec says.
        cluster: the cluster.
        slot_hosts: for each slot the hosts to try, in order: ``address:port`` with commas between.
        any_hosts: such lists for requests without a session key, which get one of them at random.
        body_limit: bytes of a body that are kept so that it can be sent again.
    """
    frames = _frames(terms, by_priority=False)
    host = VirtualHost(
        name=name,
        domains=["*"],
        request_body_buffer_limit=body_limit,
        request_headers_to_remove=[*_WISHES_OF_CALLERS, *APPLICATION_HEADERS],
    )
    if not any_hosts:
        host.request_headers_to_remove.append(ORDER_HEADER)
        return route_table(name, [virtual_host(host, _routes(frames, {"": _Actions(_to(cluster), _to(cluster))}))])
    to_any = _weighted((_ordered_entry(cluster, hosts) for hosts in any_hosts), hashed=False)
    slots = _weighted((_ordered_entry(cluster, hosts) for hosts in slot_hosts), hashed=True)
    return route_table(name, [virtual_host(host, _routes(frames, {"": _Actions(to_any, slots)}))])


@dataclass(frozen=True, slots=True)
class _Frame:
    """An encoded route and its action, which still lacks its clusters: those of all slots if ``keyed``, else any.

    ``version`` is that of the members; '' for all. A route without an ``action`` is whole: Envoy answers itself.
    """

    route: bytes
    action: bytes | None
    keyed: bool
    version: str


@dataclass(frozen=True, slots=True)
class _Actions:
    """The encoded clusters of actions, for requests without a session key and with one."""

    to_any: bytes
    to_slot: bytes


def _routes(frames: Sequence[_Frame], actions: Mapping[str, _Actions]) -> bytes:
    """The routes put together: ``actions`` are the clusters for each version of the application, '' for all."""
    routes = []
    for frame in frames:
        if frame.action is None:
            routes.append(frame.route)
            continue
        to = actions[frame.version]
        routes.append(frame.route + delimited(_ROUTE_ACTION, frame.action + (to.to_slot if frame.keyed else to.to_any)))
    return b"".join(delimited(_VIRTUAL_HOST_ROUTES, route) for route in routes)


def virtual_host(host: VirtualHost, routes: bytes) -> bytes:
    """The encoded ``host`` with these encoded routes.

    Applications and clients are told how often a request was sent: an answer of a second member is no move.
    """
    host.request_headers_to_add = [
        HeaderValueOption(
            header=HeaderValue(key=REQUEST_HEADER, value=REQUEST_STAMP),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    ]
    host.include_request_attempt_count = host.include_attempt_count_in_response = True
    return bytes(host) + routes


def route_table(name: str, hosts: Iterable[bytes]) -> bytes:
    """The encoded ``RouteConfiguration`` of encoded hosts."""
    return _with_hosts(RouteConfiguration(name=name), hosts)


def table_of_pools(name: str, hosts: Iterable[bytes], limits: Mapping[str, int]) -> bytes:
    """The encoded ``RouteConfiguration`` of the hosts of several pools. A port in a request's host is ignored.

    ``limits``: the requests a second that each front Envoy takes for a pool; those without one are not in it.
    """
    table = RouteConfiguration(name=name, ignore_port_in_host_matching=True)
    table.typed_per_filter_config = limits_of_several(name, limits)
    return _with_hosts(table, hosts)


def _with_hosts(table: RouteConfiguration, hosts: Iterable[bytes]) -> bytes:
    return bytes(table) + b"".join(delimited(_CONFIGURATION_VIRTUAL_HOSTS, host) for host in hosts)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool's routes are in a table of several pools. ``path`` is that of the spec's ``front.paths``."""

    pool: str
    path: str

    def match(self) -> RouteMatch:
        """The match of the path. Envoy takes no single slash for a prefix that ends at one."""
        return RouteMatch(prefix="/") if self.path == "/" else RouteMatch(path_separated_prefix=self.path)

    def metadata(self) -> Metadata:
        """What tells the pool of a request to the listener, which reports requests."""
        return Metadata(filter_metadata={POOL_METADATA: Struct(fields={POOL_KEY: Value(string_value=self.pool)})})


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of request: the end of its route's name, what it must match beside its key, when it is repeated."""

    suffix: str
    once: bool
    grpc: bool
    retry_on: str


_GRPC = (
    _Kind("-grpc-once", once=True, grpc=True, retry_on=_NOTHING_DONE),
    _Kind("-grpc", once=False, grpc=True, retry_on=_GRPC_PERHAPS_DONE),
)
_PLAIN = (
    _Kind("-once", once=True, grpc=False, retry_on=_NOTHING_DONE),
    _Kind("", once=False, grpc=False, retry_on=_PERHAPS_DONE),
)


@functools.lru_cache(maxsize=256)
def _frames(
    terms: Terms, *, by_priority: bool, by_distance: bool = False, place: Place | None = None
) -> tuple[_Frame, ...]:
    """What of the routes does not depend on clusters, encoded, in order.

    ``by_priority``: the members of a slot are priorities of its cluster. ``by_distance``: so are those of the cluster
    for requests without a session key. ``place``: in a table of several pools.
    """
    kinds = (*(_GRPC if terms.grpc else ()), *_PLAIN)
    sources = key_sources(terms.session_key)
    return tuple(
        _frame(group, kind, terms, by_priority=by_priority if group.policies else by_distance, place=place)
        for group in (by_version(sources, terms.marks) if terms.marks else sources)
        for kind in (_PLAIN[-1:] if group.refused else kinds)
    )


def _frame(group: KeySource, kind: _Kind, terms: Terms, *, by_priority: bool, place: Place | None) -> _Frame:
    keyed = bool(group.policies)
    match = place.match() if place else RouteMatch(prefix="/")
    match.headers = [*group.headers, *(_not_repeatable() if kind.once else [])]
    match.cookies = list(group.cookies)
    match.grpc = RouteMatchGrpcRouteMatchOptions() if kind.grpc else None
    route = Route(name=f"{group.name}{kind.suffix}", match=match, stat_prefix="" if keyed else KEYLESS_ROUTES)
    if place is not None:
        route.name, route.metadata = f"{place.pool}/{route.name}", place.metadata()
        route.stat_prefix = f"{place.pool}/{KEYED_ROUTES if keyed else KEYLESS_ROUTES}"
    cookies = [f"{group.sets}={_ROUTING_COOKIE_VALUE}; Path=/; HttpOnly; SameSite=Lax"] if group.sets else []
    cookies += [group.marks] if group.marks else []
    if cookies and not kind.grpc:
        route.response_headers_to_add = [
            HeaderValueOption(header=HeaderValue(key="set-cookie", value=cookie)) for cookie in cookies
        ]
    if group.refused:
        route.direct_response = DirectResponseAction(status=503, body=DataSource(inline_string=VERSION_GONE))
        return _Frame(bytes(route), None, keyed, "")
    action = _action(terms, kind, by_priority=by_priority, keyed=keyed)
    action.hash_policy = list(group.policies)
    if place is not None and terms.per_second is not None:
        action.rate_limits = counted_for(place.pool)
    return _Frame(bytes(route), bytes(action), keyed, group.version)


def _action(terms: Terms, kind: _Kind, *, by_priority: bool, keyed: bool) -> RouteAction:
    """How requests of a kind are sent, but not where to.

    gRPC has no time limit but the client's own (``grpc-timeout``), since a server may stream for as long as it likes.
    """
    other_host = not (keyed and by_priority)
    retry = _retry_policy(kind.retry_on, terms.retries.attempts, by_priority=by_priority, other_host=other_host)
    action = RouteAction(
        timeout=timedelta(seconds=0 if kind.grpc else terms.timeouts.request_seconds),
        idle_timeout=timedelta(seconds=terms.timeouts.idle_seconds),
        retry_policy=retry,
    )
    if terms.retries.hedge_ms and not kind.once:
        # Envoy ends no HTTP request because its host fails health checks: one that a frozen member has would wait for
        # its whole time. The first try goes on, so that a slow request costs a second one but never its answer.
        retry.per_try_timeout = timedelta(milliseconds=terms.retries.hedge_ms)
        action.hedge_policy = HedgePolicy(hedge_on_per_try_timeout=True)
    if kind.grpc:
        action.max_stream_duration = RouteActionMaxStreamDuration(grpc_timeout_header_max=timedelta())
    return action


def _not_repeatable() -> list[HeaderMatcher]:
    """What a request matches that must not be sent again once a member may have seen it (RFC 9110, 9.2.2)."""
    methods = StringMatcher(safe_regex=RegexMatcher(regex=REPEATABLE_METHODS))
    return [
        HeaderMatcher(name=":method", string_match=methods, invert_match=True),
        HeaderMatcher(name=IDEMPOTENCY_KEY, present_match=True, invert_match=True),
    ]


def _retry_policy(retry_on: str, attempts: int, *, by_priority: bool, other_host: bool) -> RetryPolicy:
    """Retries at the next priority, such as the next member of a slot's order, or at another host of a cluster.

    The default back-off of 25 ms is for servers that are overloaded; here the next try goes to another one.
    """
    priority = RetryPolicyRetryPriority(
        name="envoy.retry_priorities.previous_priorities",
        typed_config=Any.pack(PreviousPrioritiesConfig(update_frequency=1)),
    )
    elsewhere = RetryPolicyRetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts", typed_config=Any.pack(PreviousHostsPredicate())
    )
    return RetryPolicy(
        retry_on=retry_on,
        num_retries=attempts,
        retry_priority=priority if by_priority else None,
        retry_host_predicate=[elsewhere] if other_host else [],
        host_selection_retry_max_attempts=OTHER_HOST_TRIES if other_host else 0,
        retriable_headers=[HeaderMatcher(name=RETRY_HEADER, string_match=StringMatcher(exact=RETRY_SAFE))],
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=timedelta(milliseconds=1), max_interval=timedelta(milliseconds=10)
        ),
    )


def _to(cluster: str) -> bytes:
    """The encoded ``cluster`` of an action."""
    return bytes(RouteAction(cluster=cluster))


def _weighted(entries: Iterable[bytes], *, hashed: bool) -> bytes:
    """The encoded ``weighted_clusters`` of an action, entries of weight 1: ``hash % entries`` is the one, or chance."""
    return delimited(_ACTION_WEIGHTED_CLUSTERS, bytes(WeightedCluster(use_hash_policy=hashed)) + b"".join(entries))


@functools.lru_cache(maxsize=4096)
def _slot_entry(cluster: str) -> bytes:
    return delimited(_WEIGHTED_CLUSTERS, bytes(WeightedClusterClusterWeight(name=cluster, weight=1)))


@functools.lru_cache(maxsize=4096)
def _ordered_entry(cluster: str, hosts: str) -> bytes:
    order = HeaderValueOption(
        header=HeaderValue(key=ORDER_HEADER, value=hosts),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    entry = WeightedClusterClusterWeight(name=cluster, weight=1, request_headers_to_add=[order])
    return delimited(_WEIGHTED_CLUSTERS, bytes(entry))
