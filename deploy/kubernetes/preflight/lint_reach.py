"""Whether network policies let one pod connect to another: the rules of networking.k8s.io/v1. Pure.

If no policy selects a pod for a direction, all traffic in that direction is allowed. If some policies select it, only
what one of them allows is allowed. Both ends must allow a connection. Empty selectors match everything.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.names import NAMESPACE_NAME


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as network policies see it. ``ports`` maps names of ports to numbers."""

    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outside:
    """An address that is not a pod's."""

    address: str


End = Pod | Outside


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; None matches nothing, an empty one everything."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    verdicts = {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }
    return verdicts[expression["operator"]]


class Policies:
    """The network policies among some objects, with the labels of their namespaces."""

    def __init__(self, objects: Iterable[Body]) -> None:
        self._policies: list[Body] = []
        self._namespaces: dict[str, Mapping[str, str]] = {}
        for body in objects:
            if body["kind"] == "NetworkPolicy":
                self._policies.append(body)
            elif body["kind"] == "Namespace":
                self._namespaces[body["metadata"]["name"]] = body["metadata"].get("labels") or {}

    def allow(self, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
        """Whether ``source`` may open a connection to ``port`` of ``target``."""
        out = self._open(source, "Egress", target, target, port, protocol)
        return out and self._open(target, "Ingress", source, target, port, protocol)

    def _open(self, at: End, direction: str, other: End, target: End, port: int, protocol: str) -> bool:
        if not isinstance(at, Pod):
            return True
        mine = [one for one in self._selecting(at) if direction in _directions(one["spec"])]
        if not mine:
            return True
        rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
        return any(
            self._peer_in(rule.get(peers), other, policy["metadata"]["namespace"])
            and _port_in(rule.get("ports"), target, port, protocol)
            for policy in mine
            for rule in policy["spec"].get(rules) or ()
        )

    def _selecting(self, pod: Pod) -> list[Body]:
        return [
            one
            for one in self._policies
            if one["metadata"]["namespace"] == pod.namespace
            and matches(one["spec"].get("podSelector") or {}, pod.labels)
        ]

    def _peer_in(self, peers: Sequence[Mapping[str, Any]] | None, other: End, namespace: str) -> bool:
        return not peers or any(self._is(peer, other, namespace) for peer in peers)

    def _is(self, peer: Mapping[str, Any], other: End, namespace: str) -> bool:
        if (block := peer.get("ipBlock")) is not None:
            return isinstance(other, Outside) and _in_block(block, other.address)
        if not isinstance(other, Pod):
            return False
        if (spaces := peer.get("namespaceSelector")) is not None:
            labels = {**self._namespaces.get(other.namespace, {}), NAMESPACE_NAME: other.namespace}
            if not matches(spaces, labels):
                return False
        elif other.namespace != namespace:
            return False
        return matches(peer.get("podSelector", {}), other.labels)


def _directions(spec: Mapping[str, Any]) -> Sequence[str]:
    """``policyTypes``, or the default of Kubernetes if the field is missing."""
    given: Sequence[str] | None = spec.get("policyTypes")
    return given or (("Ingress", "Egress") if spec.get("egress") else ("Ingress",))


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    at = ipaddress.ip_address(address)
    inside = at in ipaddress.ip_network(block["cidr"])
    return inside and not any(at in ipaddress.ip_network(one) for one in block.get("except") or ())


def _port_in(ports: Sequence[Mapping[str, Any]] | None, target: End, port: int, protocol: str) -> bool:
    if not ports:
        return True
    for one in ports:
        if one.get("protocol", "TCP") != protocol:
            continue
        first = one.get("port")
        if isinstance(first, str):
            first = target.ports.get(first) if isinstance(target, Pod) else None
            if first is None:
                continue
        if first is None or first <= port <= one.get("endPort", first):
            return True
    return False
