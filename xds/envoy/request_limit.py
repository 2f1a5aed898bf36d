"""A pool's requests a second at each front Envoy: Envoy's local rate limit (``envoy.filters.http.local_ratelimit``).

The filter stands in the listener and does nothing there. The limit comes with the routes, for the pool's virtual host,
so it can change without touching a connection. In a table of several pools the limits of all pools come with the table,
and routes say of which pool they are. All workers of an Envoy share one bucket, which holds one second's
worth. It is full again when the routes have changed.
"""

from collections.abc import Mapping
from datetime import timedelta

from understudy.xds.envoy.messages import (
    Any,
    FractionalPercent,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HttpFilter,
    LocalRateLimit,
    LocalRateLimitDescriptor,
    RateLimit,
    RateLimitAction,
    RateLimitActionGenericKey,
    RateLimitDescriptorEntry,
    RuntimeFractionalPercent,
    TokenBucket,
)

FILTER = "envoy.filters.http.local_ratelimit"
RETRY_AFTER = "1"
_POOL = "pool"
_UNLIMITED = (1 << 32) - 1
"""For requests of pools without a limit; the filter must have a bucket for them."""


def limit_filter(pool: str) -> HttpFilter:
    """The filter of the listener: without a bucket of its own it limits nothing."""
    return HttpFilter(name=FILTER, typed_config=Any.pack(LocalRateLimit(stat_prefix=pool)))


def limit_of(pool: str, per_second: int) -> dict[str, Any]:
    """What the virtual host of a pool says to the filter: 429 with ``Retry-After`` beyond ``per_second`` requests.

    gRPC clients get RESOURCE_EXHAUSTED.
    """
    return {FILTER: Any.pack(_enforced(pool, _bucket(per_second)))}


def limits_of_several(table: str, limits: Mapping[str, int]) -> dict[str, Any]:
    """What the table of several pools says to the filter: for each pool its requests a second, as :func:`limit_of`."""
    if not limits:
        return {}
    limit = _enforced(table, _bucket(_UNLIMITED))
    limit.always_consume_default_token_bucket = False
    limit.descriptors = [
        LocalRateLimitDescriptor(
            entries=[RateLimitDescriptorEntry(key=_POOL, value=pool)], token_bucket=_bucket(per_second)
        )
        for pool, per_second in sorted(limits.items())
    ]
    return {FILTER: Any.pack(limit)}


def counted_for(pool: str) -> list[RateLimit]:
    """What a route of such a table says: its requests count for this pool."""
    key = RateLimitActionGenericKey(descriptor_key=_POOL, descriptor_value=pool)
    return [RateLimit(actions=[RateLimitAction(generic_key=key)])]


def _bucket(per_second: int) -> TokenBucket:
    return TokenBucket(max_tokens=per_second, tokens_per_fill=per_second, fill_interval=timedelta(seconds=1))


def _enforced(stat_prefix: str, bucket: TokenBucket) -> LocalRateLimit:
    always = RuntimeFractionalPercent(default_value=FractionalPercent(numerator=100))
    later = HeaderValueOption(
        header=HeaderValue(key="retry-after", value=RETRY_AFTER),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    return LocalRateLimit(
        stat_prefix=stat_prefix,
        token_bucket=bucket,
        filter_enabled=always,
        filter_enforced=always,
        response_headers_to_add=[later],
        rate_limited_as_resource_exhausted=True,
    )
