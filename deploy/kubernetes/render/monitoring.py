"""Objects for Prometheus and Grafana: monitors, and the rules and dashboard of ``deploy/observability``. Pure.

Monitors and rules are resources of the Prometheus operator (monitoring.coreos.com). The dashboard is a ConfigMap with
the label that Grafana's sidecar looks for.
"""

from importlib import resources as files
from typing import Any

import yaml

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    FRONT,
    INJECTOR,
    INJECTOR_NAME,
    POOL,
    control_name,
    front_name,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import meta
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.policies import monitoring_policies

METRICS_PORT_NAME = "us-metrics"
_API = "monitoring.coreos.com/v1"
_INTERVAL = "15s"


def monitoring_manifests(plan: Plan) -> list[Manifest]:
    """Monitors, rules, dashboard, and the network policies that let Prometheus in."""
    return [
        Manifest(
            _monitor("ServiceMonitor", control_name(plan.pool), plan, labels(CONTROL, plan.pool), {"port": "http"})
        ),
        Manifest(
            _monitor(
                "PodMonitor",
                front_name(plan.pool),
                plan,
                labels(FRONT, plan.pool),
                {"port": "status", "path": "/stats/prometheus"},
            )
        ),
        Manifest(
            _monitor(
                "PodMonitor",
                f"members-{plan.pool}",
                plan,
                {POOL: plan.pool},
                {"port": METRICS_PORT_NAME},
                namespace=plan.application_namespace,
            ),
            about="Members' sidecars, wherever the pool's pods are.",
        ),
        Manifest(_monitor("ServiceMonitor", INJECTOR_NAME, plan, labels(INJECTOR), {"port": "metrics"})),
        Manifest(
            {
                "apiVersion": _API,
                "kind": "PrometheusRule",
                "metadata": meta("understudy", plan.namespace, labels("alerts")),
                "spec": rules(),
            },
            about="deploy/observability/rules.yaml; docs/telemetry.md tells what each alert means.",
        ),
        Manifest(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta(
                    "understudy-dashboard", plan.namespace, labels("dashboard") | {"grafana_dashboard": "1"}
                ),
                "data": {"understudy.json": _observability("dashboard.json")},
            }
        ),
        *monitoring_policies(plan),
    ]


def rules() -> Body:
    """The recording and alert rules."""
    read: Body = yaml.safe_load(_observability("rules.yaml"))
    return read


def _observability(name: str) -> str:
    return files.files("understudy.deploy").joinpath("observability", name).read_text(encoding="utf-8")


def _monitor(
    kind: str, name: str, plan: Plan, named: dict[str, str], endpoint: dict[str, Any], namespace: str = ""
) -> Body:
    where = namespace or plan.namespace
    match = {key: value for key, value in named.items() if key in {*selector(CONTROL, plan.pool), POOL}}
    endpoints = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
    return {
        "apiVersion": _API,
        "kind": kind,
        "metadata": meta(name, where, {"app.kubernetes.io/part-of": "understudy"}),
        "spec": {"selector": {"matchLabels": match}, endpoints: [{"interval": _INTERVAL, **endpoint}]},
    }
