"""Beside Istio: excludes the sidecar's own ports from Istio's proxy. Pure.

A member recognises a dead peer by a refused connection, but a proxy in between accepts every connection. Peers, etcd
and control servers are authenticated by certificates of their own (docs/security.md), and the health port is plain
HTTP. The application's port stays with Istio.

Istio reads the annotations when it injects, or later if its CNI plugin sets up the redirection. If Istio came first,
the ports are also in the arguments of its init container, which are changed too. If it comes after us, it may redirect
our probes and hooks to its agent (istio's ``pkg/kube/inject/app_probe.go``); we undo that when we are called again.
"""

import json
from collections.abc import Iterable, Sequence

from understudy.deploy.kubernetes.base.lenient_json import Body, objects

INBOUND = "traffic.sidecar.istio.io/excludeInboundPorts"
OUTBOUND = "traffic.sidecar.istio.io/excludeOutboundPorts"
PROXIES = frozenset({"istio-proxy", "linkerd-proxy", "envoy-sidecar"})
"""Names of containers that a mesh adds; they are never the application."""
_REDIRECTING = frozenset({"istio-init", "istio-validation"})
_PROGRAM = "istio-iptables"
_PROBES = "ISTIO_KUBE_APP_PROBERS"


def excluding(annotations: dict[str, str], *, inbound: Iterable[int], outbound: Iterable[int]) -> dict[str, str]:
    """The annotations with these ports excluded, in addition to those that already were."""
    return {
        **annotations,
        INBOUND: _joined(annotations.get(INBOUND, ""), inbound),
        OUTBOUND: _joined(annotations.get(OUTBOUND, ""), outbound),
    }


def mended(containers: Sequence[Body], *, inbound: Iterable[int], outbound: Iterable[int]) -> list[Body]:
    """The init containers. If Istio's is among them, these ports are excluded in its arguments."""
    found = []
    for container in containers:
        arguments = container.get("args")
        if container.get("name") in _REDIRECTING and isinstance(arguments, list) and _PROGRAM in arguments:
            arguments = _with_ports(_with_ports(arguments, "-d", inbound), "-o", outbound)
            container = {**container, "args": arguments}  # noqa: PLW2901 - the container as it is to be
        found.append(container)
    return found


def original_path(containers: Iterable[Body], rewritten: str) -> tuple[str, int] | None:
    """The path and port of a probe or hook before Istio redirected it to its agent at ``rewritten``.

    None if Istio did not. Raises :class:`InjectionRefused` if the environment of a container is malformed.
    """
    for container in containers:
        for variable in objects(container, "env", f"container {container.get('name')}"):
            if variable.get("name") == _PROBES:
                try:
                    asked = json.loads(str(variable.get("value")))[rewritten]["httpGet"]
                    return str(asked["path"]), int(asked["port"])
                except (ValueError, KeyError, TypeError):
                    return None
    return None


def _with_ports(arguments: list[object], flag: str, ports: Iterable[int]) -> list[object]:
    if flag not in arguments[:-1]:
        return [*arguments, flag, _joined("", ports)]
    at = arguments.index(flag) + 1
    return [*arguments[:at], _joined(str(arguments[at]), ports), *arguments[at + 1 :]]


def _joined(listed: str, ports: Iterable[int]) -> str:
    """``listed``, with missing ports added at its end."""
    known = [part.strip() for part in listed.split(",") if part.strip()]
    return ",".join(known + [str(port) for port in dict.fromkeys(ports) if str(port) not in known])
