"""A pool's requests a second at each front Envoy: Envoy's local rate limit (``envoy.filters.http.local_ratelimit``).

The filter stands in the listener and does nothing there. The limit comes with the routes, for the pool's virtual host,
so it can change without touching a connection. All workers of an Envoy share one bucket, which holds one second's
worth. It is full again when the routes have changed.
"""

from datetime import timedelta

from understudy.xds.envoy.messages import (
    Any,
    FractionalPercent,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HttpFilter,
    LocalRateLimit,
    RuntimeFractionalPercent,
    TokenBucket,
)

FILTER = "envoy.filters.http.local_ratelimit"
RETRY_AFTER = "1"


def limit_filter(pool: str) -> HttpFilter:
    """The filter of the listener: without a bucket of its own it limits nothing."""
    return HttpFilter(name=FILTER, typed_config=Any.pack(LocalRateLimit(stat_prefix=pool)))


def limit_of(pool: str, per_second: int) -> dict[str, Any]:
    """What the virtual host of a pool says to the filter: 429 with ``Retry-After`` beyond ``per_second`` requests.

    gRPC clients get RESOURCE_EXHAUSTED.
    """
    always = RuntimeFractionalPercent(default_value=FractionalPercent(numerator=100))
    later = HeaderValueOption(
        header=HeaderValue(key="retry-after", value=RETRY_AFTER),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    limit = LocalRateLimit(
        stat_prefix=pool,
        token_bucket=TokenBucket(max_tokens=per_second, tokens_per_fill=per_second, fill_interval=timedelta(seconds=1)),
        filter_enabled=always,
        filter_enforced=always,
        response_headers_to_add=[later],
        rate_limited_as_resource_exhausted=True,
    )
    return {FILTER: Any.pack(limit)}
