"""Autoscaling of members by ``understudy_wanted_members``: a HorizontalPodAutoscaler, or KEDA's ScaledObject. Pure.

Members go one at a time, with time between them for the handover of the slots and for new copies. Kubernetes chooses
who goes: the highest ordinal of a StatefulSet.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import MEMBER, labels
from understudy.deploy.kubernetes.base.objects import meta
from understudy.deploy.kubernetes.render.plan import HPA, Autoscale, Plan, Pool

METRIC = "understudy_wanted_members"
SERIES = "understudy:wanted_members"
"""The recorded series, with the label ``pool``, that adapters read."""
_DOWN_EVERY, _DOWN_AFTER = 300, 600
"""Seconds between two members that go, and for which fewer must be enough."""
_UP_EVERY = 60
_ABOUT = {
    True: "Needs an adapter that serves the recorded series as an external metric; docs/placement.md has its rule.\n"
    "While the metric is missing, nothing is scaled.",
    False: "Needs KEDA. While the series is missing, nothing is scaled (ignoreNullValues).",
}


def autoscaling_manifests(plan: Plan, autoscale: Autoscale) -> list[Manifest]:
    """One object for each pool, in the application's namespace."""
    return [
        Manifest(
            _horizontal(pool, autoscale) if autoscale.form == HPA else _keda(pool, autoscale),
            about=_ABOUT[autoscale.form == HPA],
        )
        for pool in plan.pools
    ]


def fewest_members(pool: Pool) -> int:
    """As many as a slot has copies, and two at least."""
    return max(2, pool.spec.copies)


def _horizontal(pool: Pool, autoscale: Autoscale) -> Body:
    metric = {"name": METRIC, "selector": {"matchLabels": {"pool": pool.name}}}
    return _object(
        pool,
        api_version="autoscaling/v2",
        kind="HorizontalPodAutoscaler",
        minReplicas=fewest_members(pool),
        maxReplicas=autoscale.most,
        metrics=[{"type": "External", "external": {"metric": metric, "target": _AVERAGE}}],
        behavior=_behavior(),
    )


_AVERAGE = {"type": "AverageValue", "averageValue": "1"}


def _keda(pool: Pool, autoscale: Autoscale) -> Body:
    return _object(
        pool,
        api_version="keda.sh/v1alpha1",
        kind="ScaledObject",
        minReplicaCount=fewest_members(pool),
        maxReplicaCount=autoscale.most,
        advanced={"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
        triggers=[
            {
                "type": "prometheus",
                "metricType": "AverageValue",
                "metadata": {
                    "serverAddress": autoscale.prometheus,
                    "query": f'max({SERIES}{{pool="{pool.name}"}})',
                    "threshold": "1",
                    "ignoreNullValues": "false",
                },
            }
        ],
    )


def _object(pool: Pool, *, api_version: str, kind: str, **spec: object) -> Body:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": meta(f"members-{pool.name}", pool.namespace, labels(MEMBER, pool.name)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": pool.workload_kind, "name": pool.workload},
            **spec,
        },
    }


def _behavior() -> Body:
    """New members at once, up to four a minute. One goes at a time, and only if fewer were enough for ten minutes."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 4, "periodSeconds": _UP_EVERY}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": _DOWN_AFTER,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": _DOWN_EVERY}],
        },
    }
