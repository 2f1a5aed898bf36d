"""The schema of the chart's values: Helm refuses values that do not fit, and names them. Pure."""

from typing import Any

from understudy.statesync.pool.spec_schema import DRAFT, spec_schema

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_LIST: Schema = {"type": "array", "items": {"type": "object"}}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_NAMESPACE: Schema = {"type": "string", "pattern": "^([a-z]([-a-z0-9]{0,61}[a-z0-9])?)?$"}
_SECRET: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"}
_IMAGE: Schema = {
    "type": "string",
    "pattern": "^$|^[^\\s@]+:[A-Za-z0-9._-]+$|@sha256:[0-9a-f]{64}$",
    "not": {"pattern": ":latest$"},
}
_RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        part: {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
        for part in ("requests", "limits")
    },
}


def values_schema() -> Schema:
    """The schema of ``values.yaml``, of draft 7; that of pool specs is in it."""
    spec = spec_schema()
    parts = spec.pop("$defs")
    del spec["$schema"]
    return {
        "$schema": DRAFT,
        "title": "Values of the Helm chart of Understudy",
        **_object(
            registry=_TEXT,
            version=_TEXT,
            images=_object(**dict.fromkeys(("control", "sidecar", "injector", "envoy", "etcd"), _IMAGE)),
            imagePullSecrets=_LIST,
            clusterDomain={"type": "string", "minLength": 1},
            commonLabels=_LABELS,
            podAnnotations=_LABELS,
            podDisruptionBudgets=_FLAG,
            pools={"type": "array", "minItems": 1, "items": _pool()},
            createNamespaces=_FLAG,
            etcd={
                **_object(
                    trial=_FLAG,
                    endpoints={"type": "array", "items": {"type": "string", "pattern": _ENDPOINT}},
                    tlsSecret=_SECRET,
                    loginSecret=_SECRET,
                ),
                **_ETCD_RULES,
            },
            certificates=_object(issuer=_TEXT, kind=_TEXT, group=_TEXT),
            control=_pods(replicas={"type": "integer", "minimum": 1, "maximum": 9}, rightsSecret=_SECRET),
            front=_pods(
                replicas={"type": "integer", "minimum": 1, "maximum": 100},
                service=_object(type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, annotations=_LABELS),
                drain={"enum": ["admin", "sleep"]},
                tlsSecrets={"type": "array", "items": {**_SECRET, "minLength": 1}, "uniqueItems": True},
            ),
            injector=_pods(enabled=_FLAG),
            operator=_pods(),
            mirror={
                **_pods(
                    site=_NAMESPACE,
                    peer=_NAMESPACE,
                    peerEndpoints={"type": "array", "items": {"type": "string", "pattern": _ENDPOINT}},
                    peerTlsSecret=_SECRET,
                ),
                **_MIRROR_RULES,
            },
            monitoring=_object(
                enabled=_FLAG,
                namespace=_NAMESPACE,
                labels=_LABELS,
                runbookBase={"type": "string", "pattern": "^[^\\s#]+$"},
            ),
            autoscaling=_object(
                enabled=_FLAG,
                form={"enum": ["hpa", "keda"]},
                max={"type": "integer", "minimum": 2, "maximum": 1000},
                prometheus=_TEXT,
            ),
            example=_object(enabled=_FLAG, members={"type": "integer", "minimum": 1}),
            **{"global": {"type": "object"}},
        ),
        "$defs": {**parts, "Pool": spec},
    }


_WORKLOAD: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"kind": {"enum": ["StatefulSet", "Deployment"]}, "name": _SECRET},
}
_ENDPOINT = "^(https?://)?(\\[[0-9a-fA-F:.]+\\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?$"
_ETCD_RULES: Schema = {
    "allOf": [
        {
            "if": {"properties": {"trial": {"const": True}}},
            "then": {
                "properties": {"endpoints": {"maxItems": 0}, "tlsSecret": {"const": ""}, "loginSecret": {"const": ""}}
            },
        },
        {
            "if": {"properties": {"tlsSecret": {"const": ""}}},
            "then": {"properties": {"endpoints": {"items": {"not": {"pattern": "^https://"}}}}},
            "else": {"properties": {"endpoints": {"items": {"not": {"pattern": "^http://"}}}}},
        },
    ]
}
"""As ``--etcd`` and its Secrets: not both trial and endpoints, and https goes with a Secret that has the authority."""

_MIRROR_RULES: Schema = {
    "allOf": [
        {
            "if": {"required": ["site"], "properties": {"site": {"minLength": 1}}},
            "then": {"properties": {"peer": {"minLength": 1}, "peerEndpoints": {"minItems": 1}}},
        },
        {
            "if": {"properties": {"peerTlsSecret": {"const": ""}}},
            "then": {"properties": {"peerEndpoints": {"items": {"not": {"pattern": "^https://"}}}}},
            "else": {"properties": {"peerEndpoints": {"items": {"not": {"pattern": "^http://"}}}}},
        },
    ]
}
"""As ``--mirror-site``, ``--mirror-peer`` and its Secret."""


def _pool() -> Schema:
    names: Schema = {"pattern": "^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"}
    fits: Schema = {
        "required": ["pool", "front"],
        "properties": {
            "pool": names,
            "front": {"required": ["port"], "properties": {"port": {"not": {"enum": [9901, 19000]}}}},
        },
    }
    made = _object(
        spec={"allOf": [{"$ref": "#/$defs/Pool"}, fits]}, namespace=_NAMESPACE, appPort=_PORT, workload=_WORKLOAD
    )
    return {**made, "required": ["spec"]}


def _pods(**more: Schema) -> Schema:
    return _object(
        **more,
        resources=_RESOURCES,
        nodeSelector=_LABELS,
        tolerations=_LIST,
        priorityClassName=_TEXT,
    )


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}
