"""Objects for Prometheus and Grafana: monitors, and the rules and dashboard of ``deploy/observability``. Pure.

Monitors and rules are resources of the Prometheus operator (monitoring.coreos.com). The dashboard is a ConfigMap with
the label that Grafana's sidecar looks for.
"""

from collections.abc import Mapping, Sequence
from importlib import resources as files

import yaml

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    FRONT,
    INJECTOR,
    INJECTOR_NAME,
    MIRROR,
    POOL,
    control_name,
    front_name,
    labels,
    mirror_name,
    selector,
)
from understudy.deploy.kubernetes.base.objects import meta
from understudy.deploy.kubernetes.render.plan import RUNBOOK_BASE, Plan, Pool
from understudy.deploy.kubernetes.render.policies import monitoring_policies
from understudy.deploy.kubernetes.render.rights import rights_authorization

METRICS_PORT_NAME = "us-metrics"
_API = "monitoring.coreos.com/v1"
_INTERVAL = "15s"


def monitoring_manifests(plan: Plan) -> list[Manifest]:
    """Monitors, rules, dashboard, and the network policies that let Prometheus in."""
    return [
        Manifest(
            _monitor(
                "ServiceMonitor",
                control_name(plan.instance),
                plan.namespace,
                selector(CONTROL, plan.instance),
                [
                    {**one, **rights_authorization(plan)}
                    for one in ({"port": "http"}, *(_metrics_of(pool) for pool in plan.pools if plan.shared))
                ],
            ),
            about="An endpoint for the process, and one for each pool of several." if plan.shared else "",
        ),
        Manifest(
            _monitor(
                "PodMonitor",
                front_name(plan.instance),
                plan.namespace,
                selector(FRONT, plan.instance),
                [{"port": "status", "path": "/stats/prometheus"}],
            )
        ),
        *(
            Manifest(
                _monitor(
                    "PodMonitor",
                    f"members-{pool.name}",
                    pool.namespace,
                    {POOL: pool.name},
                    [{"port": METRICS_PORT_NAME}],
                ),
                about="Members' sidecars, wherever the pool's pods are.",
            )
            for pool in plan.pools
        ),
        *(
            Manifest(
                _monitor(
                    "PodMonitor",
                    mirror_name(pool.name),
                    plan.namespace,
                    selector(MIRROR, pool.name),
                    [{"port": "metrics"}],
                )
            )
            for pool in (plan.pools if plan.mirror else ())
        ),
        Manifest(_monitor("ServiceMonitor", INJECTOR_NAME, plan.namespace, selector(INJECTOR), [{"port": "metrics"}])),
        Manifest(
            {
                "apiVersion": _API,
                "kind": "PrometheusRule",
                "metadata": meta("understudy", plan.namespace, labels("alerts")),
                "spec": rules(plan.runbook_base),
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
                "data": {"understudy.json": observability("dashboard.json")},
            }
        ),
        *monitoring_policies(plan),
    ]


def rules(runbook_base: str = RUNBOOK_BASE) -> Body:
    """The recording and alert rules; each alert's ``runbook_url`` is the base, ``#`` and the alert's heading."""
    text = observability("rules.yaml").replace(f"runbook_url: {RUNBOOK_BASE}#", f"runbook_url: {runbook_base}#")
    read: Body = yaml.safe_load(text)
    return read


def observability(name: str) -> str:
    """The text of a file of ``deploy/observability``."""
    return files.files("understudy.deploy").joinpath("observability", name).read_text(encoding="utf-8")


def _metrics_of(pool: Pool) -> Body:
    """The endpoint with a pool's metrics at control servers of several pools; ``instance`` is as in /v1/targets."""
    instance = {
        "sourceLabels": ["__meta_kubernetes_pod_name"],
        "targetLabel": "instance",
        "replacement": f"$1/{pool.name}",
    }
    return {"port": "http", "params": {"pool": [pool.name]}, "relabelings": [instance]}


def _monitor(kind: str, name: str, namespace: str, match: Mapping[str, str], endpoints: Sequence[Body]) -> Body:
    key = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
    return {
        "apiVersion": _API,
        "kind": kind,
        "metadata": meta(name, namespace, {"app.kubernetes.io/part-of": "understudy"}),
        "spec": {
            "selector": {"matchLabels": dict(match)},
            key: [{"interval": _INTERVAL, **endpoint} for endpoint in endpoints],
        },
    }
