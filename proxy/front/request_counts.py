"""The part of Envoy's bootstrap that makes it tell how many requests there were: its OpenTelemetry stats sink. Pure.

It tells as well how many had no session key, and whose health checks failed on the network.
Only a bootstrap can set up a sink. All other stats are dropped there; ``/stats/prometheus`` has them as before. What
comes of it is read by :mod:`understudy.telemetry.otlp.counts`. Wants Envoy 1.36 or newer
(``custom_metric_conversions``).
"""

import re
from typing import Any

from understudy.telemetry.tracing import names

_TYPES = "type.googleapis.com/envoy.extensions"


NODE_VARIABLE = "OTEL_RESOURCE_ATTRIBUTES"
"""Where an Envoy that was given no ``node_id`` finds it: ``node_name=...``."""


_UNREACHED = ".health_check.network_failure"
"""How the counter of a member's health checks ends that failed on the network: refused, or without an answer."""


def member_tag(pool: str) -> dict[str, Any]:
    """The stats tag that tells the member in the name of that counter; names of members may have dots."""
    regex = rf"^{re.escape(_members(pool))}((.+?)\.)health_check\.network_failure$"
    return {"tag_name": names.MEMBER, "regex": regex}


def _members(pool: str) -> str:
    return f"cluster.{pool}/member/"


def request_counts(*, node_id: str, pool: str, cluster: str) -> dict[str, Any]:
    """The sink of the Envoy ``node_id`` of ``pool``, which sends through ``cluster`` every ``names.COUNT_SECONDS``.

    Without a ``node_id``, for Envoys that share one bootstrap, it is taken from :data:`NODE_VARIABLE`: counts of
    several Envoys under one name would be taken for those of one.

    By how much counters rose; a counter that did not rise is left out, so the uptime shows that Envoy was there.
    """
    sink = f"{_TYPES}.stat_sinks.open_telemetry.v3.SinkConfig"
    stats = {
        f"http.{pool}.downstream_rq_completed": names.COUNT_REQUESTS,
        f"http.{pool}.downstream_rq_5xx": names.COUNT_FAILED,
        f"http.{pool}.downstream_rq_time": names.COUNT_DURATION,
        f"vhost.{pool}/routes.route.{names.KEYLESS_ROUTES}.upstream_rq_completed": names.COUNT_KEYLESS,
        f"{pool}.http_local_rate_limit.rate_limited": names.COUNT_LIMITED,
        "access_logs.open_telemetry_access_log.understudy.logs_dropped": names.COUNT_DROPPED,
        "server.uptime": names.COUNT_UPTIME,
    }

    def action(kind: str, **settings: str) -> dict[str, Any]:
        return {"action": {"name": kind, "typed_config": {"@type": f"{sink}.{kind}", **settings}}}

    detectors = f"{_TYPES}.tracers.opentelemetry.resource_detectors.v3"
    known = {names.SERVICE_NAME: names.SERVICE_ENVOY, names.POOL: pool}
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
    ends = [{"prefix": _members(pool)}, {"suffix": _UNREACHED}]
    checks = {"predicate": [{"single_predicate": {"input": by_name, "value_match": end}} for end in ends]}
    unreached = {
        "matcher_list": {
            "matchers": [
                {
                    "predicate": {"and_matcher": checks},
                    "on_match": action("ConversionAction", metric_name=names.COUNT_UNREACHED),
                }
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
            "emit_tags_as_attributes": True,  # which member a check was of
            "resource_detectors": [resource] if node_id else [resource, from_environment],
            "custom_metric_conversions": {
                "matcher_tree": {"input": by_name, "exact_match_map": {"map": matched}},
                "on_no_match": {"matcher": unreached},
            },
        },
    }
