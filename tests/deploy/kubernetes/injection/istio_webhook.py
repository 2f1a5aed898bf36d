"""What Istio's injector does to a pod, as far as it concerns ours: proxy, redirection, and everybody's probes.

Written after the rules of istio's ``pkg/kube/inject/app_probe.go``. At first only containers were looked at; then init
containers and hooks came in (``all``), and later ports that the pod keeps from Istio were left alone (``mindful``), by
their numbers: a probe of a named port is still sent to the agent, which then has nothing to ask.
"""

import copy
import json
from typing import Any, Literal

from tests.deploy.kubernetes.injection.shapes import ISTIO, Body, istio_init, istio_proxy

AGENT = 15020
Rules = Literal["all", "mindful"]
_PROBES = {"readinessProbe": "readyz", "livenessProbe": "livez", "startupProbe": "startupz"}


def mesh(pod: Body, *, rules: Rules, native: bool) -> Body:
    """The pod as Istio's webhook leaves it; ``native``: its proxy is an init container that stays."""
    made = copy.deepcopy(pod)
    spec, annotations = made["spec"], made["metadata"].setdefault("annotations", {})
    excluded = annotations.get("traffic.sidecar.istio.io/excludeInboundPorts", "")
    kept_from_it = {int(port) for port in excluded.split(",") if port} if rules == "mindful" else set()
    probers: dict[str, Any] = {}
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        _send_to_agent(container, kept_from_it, probers)
    proxy = istio_proxy(**({"restartPolicy": "Always"} if native else {}))
    proxy["env"] = [{"name": "ISTIO_KUBE_APP_PROBERS", "value": json.dumps(probers)}]
    redirection = istio_init()
    at = redirection["args"].index("-d") + 1
    redirection["args"][at] = ",".join(part for part in (redirection["args"][at], excluded) if part)
    own = [redirection, proxy] if native else [redirection]
    spec["initContainers"] = [*own, *spec.get("initContainers", ())]
    spec["containers"] += [] if native else [proxy]
    annotations.update(ISTIO)
    return made


def _send_to_agent(container: Body, kept_from_it: set[int], probers: dict[str, Any]) -> None:
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports") or ()}
    asked = [(container.get(name), f"/app-health/{container['name']}/{end}") for name, end in _PROBES.items()]
    asked.append(((container.get("lifecycle") or {}).get("preStop"), f"/app-lifecycle/{container['name']}/prestopz"))
    for handler, path in asked:
        if not handler or "httpGet" not in handler or handler["httpGet"]["port"] in kept_from_it:
            continue
        before = dict(handler["httpGet"])
        before["port"] = ports.get(before["port"], before["port"])
        if before["port"] not in kept_from_it:
            probers[path] = {"httpGet": before}
        handler["httpGet"] |= {"path": path, "port": AGENT}
