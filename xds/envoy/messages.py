"""Envoy's message classes, made without pydantic.

``envoy_data_plane`` declares them as pydantic dataclasses. Here they become plain dataclasses: mypy checks what we put
into them, and building 578 validators takes a control server 0.5 s of CPU at its start and 0.4 s at its first push.
Classes that somebody has imported before stay as they are; the bytes are the same.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pydantic.dataclasses


def _plain_dataclass(*, config: object, **options: bool) -> Callable[[type], type]:  # noqa: ARG001 - pydantic's
    """Stands in for ``pydantic.dataclasses.dataclass``, as the generated code uses it."""
    return dataclasses.dataclass(**options)


@contextmanager
def _without_pydantic() -> Iterator[None]:
    original = pydantic.dataclasses.dataclass
    pydantic.dataclasses.dataclass = _plain_dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        pydantic.dataclasses.dataclass = original


with _without_pydantic():
    from envoy_data_plane.envoy.config.accesslog.v3 import (
        AccessLog,
        AccessLogFilter,
        ComparisonFilter,
        ComparisonFilterOp,
        HeaderFilter,
        OrFilter,
        ResponseFlagFilter,
        StatusCodeFilter,
    )
    from envoy_data_plane.envoy.config.cluster.v3 import (
        CircuitBreakers,
        CircuitBreakersThresholds,
        Cluster,
        ClusterCommonLbConfig,
        ClusterCustomClusterType,
        ClusterDiscoveryType,
        ClusterEdsClusterConfig,
        ClusterLbPolicy,
        ClusterTransportSocketMatch,
        OutlierDetection,
        UpstreamConnectionOptions,
    )
    from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRemoveOnMatch
    from envoy_data_plane.envoy.config.core.v3 import (
        Address,
        AggregatedConfigSource,
        ApiVersion,
        BackoffStrategy,
        CidrRange,
        ConfigSource,
        DataSource,
        GrpcService,
        GrpcServiceEnvoyGrpc,
        HeaderValue,
        HeaderValueOption,
        HeaderValueOptionHeaderAppendAction,
        HealthCheck,
        HealthCheckHttpHealthCheck,
        HealthStatus,
        Http1ProtocolOptions,
        Http2ProtocolOptions,
        HttpProtocolOptions,
        HttpProtocolOptionsHeadersWithUnderscoresAction,
        KeepaliveSettings,
        Metadata,
        ProxyProtocolConfig,
        ProxyProtocolConfigVersion,
        RuntimeFractionalPercent,
        RuntimeUInt32,
        SocketAddress,
        SubstitutionFormatString,
        TcpKeepalive,
        TransportSocket,
        TypedExtensionConfig,
        WatchedDirectory,
    )
    from envoy_data_plane.envoy.config.endpoint.v3 import (
        ClusterLoadAssignment,
        ClusterLoadAssignmentPolicy,
        EndpointHealthCheckConfig,
        LbEndpoint,
        LocalityLbEndpoints,
    )
    from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint as EndpointMessage
    from envoy_data_plane.envoy.config.listener.v3 import (
        Filter,
        FilterChain,
        FilterChainMatch,
        Listener,
        ListenerFilter,
    )
    from envoy_data_plane.envoy.config.route.v3 import (
        CookieMatcher,
        DirectResponseAction,
        HeaderMatcher,
        HedgePolicy,
        RateLimit,
        RateLimitAction,
        RateLimitActionGenericKey,
        RetryPolicy,
        RetryPolicyRetryBackOff,
        RetryPolicyRetryHostPredicate,
        RetryPolicyRetryPriority,
        Route,
        RouteAction,
        RouteActionHashPolicy,
        RouteActionHashPolicyCookie,
        RouteActionHashPolicyHeader,
        RouteActionMaxStreamDuration,
        RouteConfiguration,
        RouteMatch,
        RouteMatchGrpcRouteMatchOptions,
        VirtualHost,
        WeightedCluster,
        WeightedClusterClusterWeight,
    )
    from envoy_data_plane.envoy.config.trace.v3 import OpenTelemetryConfig, TracingHttp
    from envoy_data_plane.envoy.extensions.access_loggers.open_telemetry.v3 import OpenTelemetryAccessLogConfig
    from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StderrAccessLog
    from envoy_data_plane.envoy.extensions.clusters.aggregate.v3 import ClusterConfig as AggregateCluster
    from envoy_data_plane.envoy.extensions.common.ratelimit.v3 import LocalRateLimitDescriptor, RateLimitDescriptorEntry
    from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import LocalRateLimit
    from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
    from envoy_data_plane.envoy.extensions.filters.listener.proxy_protocol.v3 import ProxyProtocol
    from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
        HttpConnectionManager,
        HttpConnectionManagerInternalAddressConfig,
        HttpConnectionManagerPathWithEscapedSlashesAction,
        HttpConnectionManagerTracing,
        HttpConnectionManagerUpgradeConfig,
        HttpFilter,
        Rds,
    )
    from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy
    from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
        HeaderMutation as EarlyHeaderMutation,
    )
    from envoy_data_plane.envoy.extensions.matching.common_inputs.network.v3 import SourceIpInput
    from envoy_data_plane.envoy.extensions.matching.input_matchers.consistent_hashing.v3 import ConsistentHashing
    from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
    from envoy_data_plane.envoy.extensions.retry.priority.previous_priorities.v3 import PreviousPrioritiesConfig
    from envoy_data_plane.envoy.extensions.tracers.opentelemetry.samplers.v3 import (
        ParentBasedSamplerConfig,
        TraceIdRatioBasedSamplerConfig,
    )
    from envoy_data_plane.envoy.extensions.transport_sockets.proxy_protocol.v3 import ProxyProtocolUpstreamTransport
    from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer.v3 import RawBuffer
    from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
        CommonTlsContext,
        DownstreamTlsContext,
        SdsSecretConfig,
        Secret,
        TlsCertificate,
    )
    from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions as UpstreamHttpOptions
    from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
        HttpProtocolOptionsExplicitHttpConfig,
        HttpProtocolOptionsUseDownstreamHttpConfig,
    )
    from envoy_data_plane.envoy.type.matcher.v3 import RegexMatchAndSubstitute, RegexMatcher, StringMatcher
    from envoy_data_plane.envoy.type.v3 import FractionalPercent, Int64Range, Percent, TokenBucket
    from envoy_data_plane.google.protobuf import Any, Struct, Value
    from envoy_data_plane.opentelemetry.proto.common.v1 import AnyValue, KeyValue, KeyValueList
