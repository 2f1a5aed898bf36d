"""The fields and rules of the published resource definitions, as far as our resources can touch them.

Written by hand from Istio's API (``networking`` and ``security`` packages, and the rules of its custom resource
definitions, such as ``portLevelMtls requires selector``) and from Kubernetes' for the two kinds of its own. A mapping
has every field of its level, or the levels that we use in full; a set has the values of an enumeration. API servers
prune unknown fields or refuse them, depending on who applies: here they are an error.
"""

import re
from typing import Any

TEXT, NUMBER, FLAG, DURATION, ANYTHING = "text", "number", "flag", "duration", "anything"
PORT = "port"
_DURATION = re.compile(r"^(\d+(\.\d+)?(h|m|s|ms))+$")


class Map:
    """A mapping of names to values of one kind."""

    def __init__(self, value: Any, key: str = r".+") -> None:
        self.value, self.key = value, re.compile(key)


LABELS = Map(TEXT, r"^[^*]+$")
_SELECTOR = {"matchLabels": LABELS}
_POD_SELECTOR = {"matchLabels": LABELS, "matchExpressions": [ANYTHING]}
_STRING_MATCH = {"exact": TEXT, "prefix": TEXT, "regex": TEXT}
_DESTINATION = {"host": TEXT, "subset": TEXT, "port": {"number": PORT}}
_MTLS = {"mode": {"UNSET", "DISABLE", "PERMISSIVE", "STRICT"}}
_TARGET_REF = {"group": TEXT, "kind": TEXT, "name": TEXT, "namespace": TEXT}
_LOAD_BALANCER = {
    "simple": {"UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"},
    "consistentHash": ANYTHING,
    "localityLbSetting": {
        "enabled": FLAG,
        "distribute": [ANYTHING],
        "failover": [ANYTHING],
        "failoverPriority": [TEXT],
    },
    "warmup": ANYTHING,
    "warmupDurationSecs": DURATION,
}
_CONNECTION_POOL = {
    "tcp": {
        "maxConnections": NUMBER,
        "connectTimeout": DURATION,
        "tcpKeepalive": ANYTHING,
        "maxConnectionDuration": DURATION,
        "idleTimeout": DURATION,
    },
    "http": {
        "http1MaxPendingRequests": NUMBER,
        "http2MaxRequests": NUMBER,
        "maxRequestsPerConnection": NUMBER,
        "maxRetries": NUMBER,
        "idleTimeout": DURATION,
        "h2UpgradePolicy": {"DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"},
        "useClientProtocol": FLAG,
        "maxConcurrentStreams": NUMBER,
    },
}

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("networking.istio.io/v1alpha3", "EnvoyFilter"): {
        "priority": NUMBER,
        "workloadSelector": {"labels": LABELS},
        "targetRefs": [_TARGET_REF],
        "configPatches": [
            {
                "applyTo": {
                    *("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "ROUTE_CONFIGURATION"),
                    *("VIRTUAL_HOST", "HTTP_ROUTE", "CLUSTER", "EXTENSION_CONFIG", "BOOTSTRAP", "LISTENER_FILTER"),
                },
                "match": {
                    "context": {"ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"},
                    "proxy": {"proxyVersion": TEXT, "metadata": Map(TEXT)},
                    "listener": {
                        "portNumber": PORT,
                        "portName": TEXT,
                        "name": TEXT,
                        "listenerFilter": TEXT,
                        "filterChain": {
                            "name": TEXT,
                            "sni": TEXT,
                            "transportProtocol": TEXT,
                            "applicationProtocols": TEXT,
                            "destinationPort": PORT,
                            "filter": {"name": TEXT, "subFilter": {"name": TEXT}},
                        },
                    },
                    "routeConfiguration": ANYTHING,
                    "cluster": {"portNumber": PORT, "service": TEXT, "subset": TEXT, "name": TEXT},
                },
                "patch": {
                    "operation": {
                        *("MERGE", "ADD", "REMOVE", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST", "REPLACE"),
                    },
                    "value": ANYTHING,
                    "filterClass": {"UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"},
                },
            }
        ],
    },
    ("networking.istio.io/v1", "DestinationRule"): {
        "host": TEXT,
        "trafficPolicy": {
            "loadBalancer": _LOAD_BALANCER,
            "connectionPool": _CONNECTION_POOL,
            "outlierDetection": ANYTHING,
            "tls": {
                "mode": {"DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"},
                "sni": TEXT,
                "subjectAltNames": [TEXT],
            },
            "portLevelSettings": [ANYTHING],
            "tunnel": ANYTHING,
            "proxyProtocol": ANYTHING,
            "retryBudget": ANYTHING,
        },
        "subsets": [ANYTHING],
        "exportTo": [TEXT],
        "workloadSelector": _SELECTOR,
    },
    ("networking.istio.io/v1", "Gateway"): {
        "selector": LABELS,
        "servers": [
            {
                "port": {
                    "number": PORT,
                    "protocol": {"HTTP", "HTTPS", "GRPC", "HTTP2", "MONGO", "TCP", "TLS"},
                    "name": TEXT,
                    "targetPort": PORT,
                },
                "hosts": [TEXT],
                "bind": TEXT,
                "tls": {
                    "mode": {"PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"},
                    "credentialName": TEXT,
                    "httpsRedirect": FLAG,
                },
                "defaultEndpoint": TEXT,
                "name": TEXT,
            }
        ],
    },
    ("networking.istio.io/v1", "VirtualService"): {
        "hosts": [TEXT],
        "gateways": [TEXT],
        "http": [
            {
                "name": TEXT,
                "match": [{"uri": _STRING_MATCH, "port": PORT}],
                "route": [{"destination": _DESTINATION, "weight": NUMBER, "headers": ANYTHING}],
                "timeout": DURATION,
                "retries": ANYTHING,
            }
        ],
        "exportTo": [TEXT],
    },
    ("networking.istio.io/v1beta1", "ProxyConfig"): {
        "selector": _SELECTOR,
        "concurrency": NUMBER,
        "environmentVariables": Map(TEXT),
        "image": {"imageType": TEXT},
    },
    ("security.istio.io/v1", "PeerAuthentication"): {
        "selector": _SELECTOR,
        "mtls": _MTLS,
        "portLevelMtls": Map(_MTLS, r"^[1-9]\d{0,4}$"),
    },
    ("v1", "Service"): {
        "selector": LABELS,
        "ports": [
            {"name": TEXT, "port": PORT, "targetPort": PORT, "protocol": {"TCP", "UDP", "SCTP"}, "appProtocol": TEXT}
        ],
        "type": {"ClusterIP", "NodePort", "LoadBalancer"},
        "clusterIP": TEXT,
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector": _POD_SELECTOR,
        "policyTypes": [{"Ingress", "Egress"}],
        "ingress": [
            {
                "from": [{"podSelector": _POD_SELECTOR, "namespaceSelector": _POD_SELECTOR, "ipBlock": ANYTHING}],
                "ports": [{"port": PORT, "protocol": {"TCP", "UDP", "SCTP"}, "endPort": PORT}],
            }
        ],
        "egress": [ANYTHING],
    },
}


def refuse_unknown_fields(body: dict[str, Any]) -> None:
    """Assert that a resource has only fields of its kind, of their types, and keeps the rules between them."""
    where = f"{body['kind']} {body['metadata']['name']}"
    assert set(body) == {"apiVersion", "kind", "metadata", "spec"}, where
    assert set(body["metadata"]) <= {"name", "namespace", "labels", "annotations"}, where
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", body["metadata"]["name"]), where
    _check(body["spec"], SPECS[body["apiVersion"], body["kind"]], where)
    rule = _RULES.get(body["kind"])
    if rule is not None:
        rule(body["spec"])


def _check(value: Any, rule: Any, where: str) -> None:
    if isinstance(rule, dict):
        assert isinstance(value, dict), where
        for name, inner in value.items():
            assert name in rule, f"{where} has no field {name}"
            _check(inner, rule[name], f"{where}.{name}")
    elif isinstance(rule, list):
        assert isinstance(value, list), where
        for number, inner in enumerate(value):
            _check(inner, rule[0], f"{where}[{number}]")
    elif isinstance(rule, Map):
        for name, inner in value.items():
            assert isinstance(name, str), f"{where}: {name!r} is no text"
            assert rule.key.search(name), f"{where}: {name}"
            _check(inner, rule.value, f"{where}.{name}")
    elif isinstance(rule, set):
        assert value in rule, f"{where}: {value!r}"
    else:
        assert _fits(value, rule), f"{where}: {value!r} is no {rule}"


def _fits(value: Any, kind: str) -> bool:
    match kind:
        case "text":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "port":
            return isinstance(value, int) and 0 < value < 65536
        case "flag":
            return isinstance(value, bool)
        case "duration":
            return isinstance(value, str) and _DURATION.match(value) is not None
    return True


def _envoy_filter(spec: dict[str, Any]) -> None:
    assert not ("workloadSelector" in spec and "targetRefs" in spec), "only one of them may be set"
    for patch in spec["configPatches"]:
        assert sum(key in patch["match"] for key in ("listener", "routeConfiguration", "cluster")) <= 1
        assert patch["applyTo"] != "BOOTSTRAP" or patch["patch"]["operation"] == "MERGE"


def _destination_rule(spec: dict[str, Any]) -> None:
    balancer = spec["trafficPolicy"]["loadBalancer"]
    assert not ("simple" in balancer and "consistentHash" in balancer), "only one of them may be set"


def _peer_authentication(spec: dict[str, Any]) -> None:
    assert "portLevelMtls" not in spec or spec["selector"]["matchLabels"], "portLevelMtls requires selector"


_RULES = {
    "EnvoyFilter": _envoy_filter,
    "DestinationRule": _destination_rule,
    "PeerAuthentication": _peer_authentication,
}
