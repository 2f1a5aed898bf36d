"""The part of Envoy's bootstrap that makes it tell how many requests there were: its OpenTelemetry stats sink. Pure.

It tells as well how many had no session key, and whose health checks failed on the network. An Envoy that serves
several pools tells this by pool, from the counters of their routes.
Only a bootstrap can set up a sink. All other stats are dropped there; ``/stats/prometheus`` has them as before. What
comes of it is read by :mod:`understudy.telemetry.otlp.counts`. Wants Envoy 1.36 or newer
(``custom_metric_conversions``).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.telemetry.tracing import names

_TYPES = "type.googleapis.com/envoy.extensions"


NODE_VARIABLE = "OTEL_RESOURCE_ATTRIBUTES"
"""Where an Envoy that was given no ``node_id`` finds it: ``node_name=...``."""


_UNREACHED = ".health_check.network_failure"
"""How the counter of a member's health checks ends that failed on the network: refused, or without an answer."""


_SERVED = ".upstream_rq_total"
"""How the counter of requests that were sent to a member ends."""


def member_tag(pool: str, *, of_site: bool = False) -> dict[str, Any]:
    """The stats tag that tells the member in the name of that counter; names of members may have dots.

    ``of_site``: the Envoy has a site, and the counter of the requests that were sent to a member has the tag too.
    """
    counters = [_UNREACHED, _SERVED] if of_site else [_UNREACHED]
    ends = "|".join(re.escape(counter.removeprefix(".")) for counter in counters)
    regex = rf"^{re.escape(_members(pool))}((.+?)\.)(?:{ends})$"
    return {"tag_name": names.MEMBER, "regex": regex}


def _members(pool: str) -> str:
    return f"cluster.{pool}/member/"


def pool_tag() -> dict[str, Any]:
    """The stats tag that tells the pool in the names of counters of routes, and of members' health checks."""
    regex = rf"^(?:vhost\..+?\.route\.|cluster\.)(([^/]+)/)(?:{names.KEYED_ROUTES}\.|{names.KEYLESS_ROUTES}\.|member/)"
    return {"tag_name": names.POOL, "regex": regex}


def member_tag_of_pools() -> dict[str, Any]:
    """As :func:`member_tag`, for an Envoy that serves several pools."""
    return {"tag_name": names.MEMBER, "regex": r"^cluster\.[^/]+/member/((.+?)\.)health_check\.network_failure$"}


def request_counts_of_pools(*, node_id: str, pools: str, cluster: str) -> dict[str, Any]:
    """The sink of an Envoy that serves several pools; ``pools`` is the cluster of its node.

    A request counts for a pool when a member, or Envoy for want of one, has answered it. One that is refused with 429
    before does not.
    """
    route = {"prefix": "vhost."}
    return _sink(
        node_id,
        pools,
        cluster,
        {},
        [
            ([route, {"suffix": f"/{names.KEYED_ROUTES}.upstream_rq_completed"}], names.COUNT_POOL_KEYED),
            ([route, {"suffix": f"/{names.KEYLESS_ROUTES}.upstream_rq_completed"}], names.COUNT_POOL_KEYLESS),
            ([route, {"suffix": ".upstream_rq_5xx"}], names.COUNT_POOL_FAILED),
            ([{"prefix": "cluster."}, {"contains": "/member/"}, {"suffix": _UNREACHED}], names.COUNT_UNREACHED),
        ],
    )


def request_counts(*, node_id: str, pool: str, cluster: str, site: str = "", sited: bool = False) -> dict[str, Any]:
    """The sink of the Envoy ``node_id`` of ``pool``, which sends through ``cluster`` every ``names.COUNT_SECONDS``.

    Without a ``node_id``, for Envoys that share one bootstrap, it is taken from :data:`NODE_VARIABLE`: counts of
    several Envoys under one name would be taken for those of one.

    If it is ``sited`` it tells too how many requests with a session key it sent to each member: a copy counts as one
    more. Its ``site`` is then said here, or else by :data:`NODE_VARIABLE`.

    By how much counters rose; a counter that did not rise is left out, so the uptime shows that Envoy was there.
    """
    stats = {
        f"http.{pool}.downstream_rq_completed": names.COUNT_REQUESTS,
        f"http.{pool}.downstream_rq_5xx": names.COUNT_FAILED,
        f"http.{pool}.downstream_rq_time": names.COUNT_DURATION,
        f"vhost.{pool}/routes.route.{names.KEYLESS_ROUTES}.upstream_rq_completed": names.COUNT_KEYLESS,
        f"{pool}.http_local_rate_limit.rate_limited": names.COUNT_LIMITED,
        "access_logs.open_telemetry_access_log.understudy.logs_dropped": names.COUNT_DROPPED,
        "server.uptime": names.COUNT_UPTIME,
    }
    unreached = ([{"prefix": _members(pool)}, {"suffix": _UNREACHED}], names.COUNT_UNREACHED)
    if not sited:
        return _sink(node_id, pool, cluster, stats, [unreached])
    served = ([{"prefix": _members(pool)}, {"suffix": _SERVED}], names.COUNT_SERVED)
    return _sink(node_id, pool, cluster, stats, [unreached, served], site)


def _sink(
    node_id: str,
    pool: str,
    cluster: str,
    stats: Mapping[str, str],
    by_parts: Sequence[tuple[Sequence[Mapping[str, str]], str]],
    site: str = "",
) -> dict[str, Any]:
    """A sink that reports the counters of these names, and those whose names match all of some parts, as metrics."""
    sink = f"{_TYPES}.stat_sinks.open_telemetry.v3.SinkConfig"

    def action(kind: str, **settings: str) -> dict[str, Any]:
        return {"action": {"name": kind, "typed_config": {"@type": f"{sink}.{kind}", **settings}}}

    detectors = f"{_TYPES}.tracers.opentelemetry.resource_detectors.v3"
    known = {names.SERVICE_NAME: names.SERVICE_ENVOY, names.POOL: pool}
    known |= {names.SITE: f"{names.SITE_PREFIX}{site}"} if site else {}
    resource = {
        "name": "envoy.tracers.opentelemetry.resource_detectors.static_config",
        "typed_config": {
            "@type": f"{detectors}.StaticConfigResourceDetectorConfig",
            "attributes": known | ({names.NODE_NAME: node_id} if node_id else {}),
        },
    }
    from_environment = {
        "name": "envoy.tracers.opentelemetry.resource_detectors.environment",
        "typed_config": {"@type": f"{detectors}.EnvironmentResourceDetectorConfig"},
    }
    by_name = {
        "name": "name",
        "typed_config": {"@type": f"{_TYPES}.matching.common_inputs.stats.v3.StatFullNameMatchInput"},
    }
    others = {
        "matcher_list": {
            "matchers": [
                {
                    "predicate": {
                        "and_matcher": {
                            "predicate": [{"single_predicate": {"input": by_name, "value_match": one}} for one in parts]
                        }
                    },
                    "on_match": action("ConversionAction", metric_name=metric),
                }
                for parts, metric in by_parts
            ]
        },
        "on_no_match": action("DropAction"),
    }
    matched = {stat: action("ConversionAction", metric_name=metric) for stat, metric in stats.items()}
    return {
        "name": "envoy.stat_sinks.open_telemetry",
        "typed_config": {
            "@type": sink,
            "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": "2s"},
            "report_counters_as_deltas": True,
            "report_histograms_as_deltas": True,
            "emit_tags_as_attributes": True,  # which member a check was of, and which pool
            "resource_detectors": [resource] if node_id else [resource, from_environment],
            "custom_metric_conversions": {
                "matcher_tree": {"input": by_name, "exact_match_map": {"map": matched}},
                "on_no_match": {"matcher": others},
            }
            if matched
            else others,
        },
    }
