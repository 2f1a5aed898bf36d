"""What a front Envoy reports by OpenTelemetry: requests that failed or were repeated, and those that callers trace.

Pure; parts of the listener that :mod:`understudy.xds.envoy.listener` puts in. Reports go over OTLP/gRPC through a
cluster that the Envoy's own bootstrap names (``understudy.telemetry`` in its node's metadata), normally that of its
control servers; an Envoy that names none reports nothing, since Envoy refuses a listener with an unknown cluster. Envoy
drops reports rather than wait for a receiver, so that no request is ever held up. Neither session keys nor paths are
reported.
"""

from datetime import timedelta

from understudy.telemetry.tracing import names
from understudy.xds.envoy.messages import (
    AccessLog,
    AccessLogFilter,
    Any,
    AnyValue,
    ComparisonFilter,
    ComparisonFilterOp,
    FractionalPercent,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderFilter,
    HeaderMatcher,
    HttpConnectionManagerTracing,
    Int64Range,
    KeyValue,
    KeyValueList,
    OpenTelemetryAccessLogConfig,
    OpenTelemetryConfig,
    OrFilter,
    ParentBasedSamplerConfig,
    Percent,
    ResponseFlagFilter,
    RuntimeUInt32,
    StatusCodeFilter,
    TraceIdRatioBasedSamplerConfig,
    TracingHttp,
    TypedExtensionConfig,
)

_RECEIVER_PATIENCE = timedelta(seconds=2)
_FLUSH = timedelta(milliseconds=200)
_BUFFER = 64 * 1024
_ATTEMPT_HEADER = "x-envoy-attempt-count"
"""Written by the router before each try; :mod:`understudy.xds.envoy.routes` asks for it."""
_MOST_ATTEMPTS = 1_000
_CUT_SHORT = ["LR", "UR", "UC", "SI", "UMSDR", "UPE"]
"""Response flags of answers that began well and never ended: the client has a good status and half a body."""


def server_errors() -> AccessLogFilter:
    """Lets pass what Envoy or a member answered with 5xx."""
    least = RuntimeUInt32(default_value=500, runtime_key="understudy.errors_from")
    return AccessLogFilter(
        status_code_filter=StatusCodeFilter(comparison=ComparisonFilter(op=ComparisonFilterOp.GE, value=least))
    )


def request_reports(pool: str, cluster: str) -> AccessLog:
    """The access log that reports requests with 5xx, cut short, or of more than one try, over OTLP."""
    repeated = HeaderMatcher(name=_ATTEMPT_HEADER, range_match=Int64Range(start=2, end=_MOST_ATTEMPTS))
    either = OrFilter(
        filters=[
            server_errors(),
            AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=_CUT_SHORT)),
            AccessLogFilter(header_filter=HeaderFilter(header=repeated)),
        ]
    )
    config = OpenTelemetryAccessLogConfig(
        grpc_service=_receiver(cluster),
        log_name="understudy",
        stat_prefix="understudy.",
        buffer_flush_interval=_FLUSH,
        buffer_size_bytes=_BUFFER,
        resource_attributes=_pairs({names.SERVICE_NAME: names.SERVICE_ENVOY}),
        body=AnyValue(string_value="request"),
        attributes=_pairs(
            {
                names.POOL: pool,
                names.HTTP_METHOD: "%REQ(:METHOD)%",
                names.HTTP_STATUS: "%RESPONSE_CODE%",
                names.CLUSTER: "%UPSTREAM_CLUSTER%",
                names.ATTEMPTS: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                names.FLAGS: "%RESPONSE_FLAGS%",
                names.DETAILS: "%RESPONSE_CODE_DETAILS%",
                names.DURATION_MS: "%DURATION%",
                names.HOST: "%UPSTREAM_HOST%",
            }
        ),
    )
    return AccessLog(
        name="envoy.access_loggers.open_telemetry",
        filter=AccessLogFilter(or_filter=either),
        typed_config=Any.pack(config),
    )


def tracing(cluster: str) -> HttpConnectionManagerTracing:
    """Envoy's tracer: it begins no trace by itself, and adds to those whose ``traceparent`` says sampled.

    Envoy must be told to trace everything for its sampler to be asked at all, and that goes by the caller alone. The
    caller's header goes on to the application as it came: one with our span in it, or with "not sampled", would cut
    the application's own traces.
    """
    nobody = TraceIdRatioBasedSamplerConfig(sampling_percentage=FractionalPercent(numerator=0))
    ratio = TypedExtensionConfig(
        name="envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", typed_config=Any.pack(nobody)
    )
    by_caller = TypedExtensionConfig(
        name="envoy.tracers.opentelemetry.samplers.parent_based",
        typed_config=Any.pack(ParentBasedSamplerConfig(wrapped_sampler=ratio)),
    )
    config = OpenTelemetryConfig(grpc_service=_receiver(cluster), service_name=names.SERVICE_ENVOY, sampler=by_caller)
    return HttpConnectionManagerTracing(
        client_sampling=Percent(value=0.0),
        random_sampling=Percent(value=100.0),
        spawn_upstream_span=True,
        no_context_propagation=True,
        provider=TracingHttp(name="envoy.tracers.opentelemetry", typed_config=Any.pack(config)),
    )


def _receiver(cluster: str) -> GrpcService:
    return GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster), timeout=_RECEIVER_PATIENCE)


def _pairs(texts: dict[str, str]) -> KeyValueList:
    return KeyValueList(values=[KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in texts.items()])
