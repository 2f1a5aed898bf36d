"""Whether manifests fit together: every name that one object uses is there in another. Pure; for any manifests.

Kubernetes accepts an object whose Service, port or ConfigMap is missing, and the pool then fails at run time. Secrets
may be missing: operators create them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.preflight.lint_reach import matches
from understudy.deploy.kubernetes.preflight.manifest_index import Workload, namespace_of, where, workloads

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.]*)\)")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def faults(objects: Sequence[Body]) -> list[str]:
    """What does not fit, a line each."""
    made = list(workloads(objects))
    found = [f"{name} is there {times} times" for name, times in Counter(map(where, objects)).items() if times > 1]
    for one in made:
        found += [f"{one.where}: {fault}" for fault in _workload(one, objects)]
    for body in objects:
        check = _CHECKS.get(body["kind"])
        if check is not None:
            found += [f"{where(body)}: {fault}" for fault in check(body, made, objects)]
    return found


def selected(all_of: Iterable[Workload], namespace: str, selector: Mapping[str, Any]) -> list[Workload]:
    """The workloads of a namespace whose pods a label selector matches."""
    return [one for one in all_of if one.namespace == namespace and matches(selector, one.labels)]


def _key(body: Body) -> tuple[str, str]:
    return namespace_of(body), str(body["metadata"]["name"])


def _workload(one: Workload, objects: Sequence[Body]) -> Iterator[str]:
    selector = (one.body.get("spec") or {}).get("selector")
    if selector is not None and not matches(selector, one.labels):
        yield "its selector does not match the labels of its own pods"
    there = {(body["kind"], *_key(body)) for body in objects}
    for kind, name in _names(one):
        if kind != "Secret" and (kind, one.namespace, name) not in there:
            yield f"names {kind} {name}, which is not in namespace {one.namespace}"
    volumes = {volume["name"] for volume in one.pod.get("volumes") or ()}
    volumes |= {claim["metadata"]["name"] for claim in (one.body.get("spec") or {}).get("volumeClaimTemplates") or ()}
    for container in one.containers:
        yield from (f"container {container['name']}: {fault}" for fault in _container(container, volumes))
    for name, times in Counter(port for container in one.containers for port in _port_names(container)).items():
        if times > 1:
            yield f"port name {name} is given {times} times"


def _container(container: Mapping[str, Any], volumes: set[str]) -> Iterator[str]:
    for mount in container.get("volumeMounts") or ():
        if mount["name"] not in volumes:
            yield f"mounts volume {mount['name']}, which the pod does not have"
    ports = set(_port_names(container))
    numbers = {port["containerPort"] for port in container.get("ports") or ()}
    for probe in _PROBES:
        for handler in ("httpGet", "tcpSocket", "grpc"):
            asked = ((container.get(probe) or {}).get(handler) or {}).get("port")
            if asked is not None and asked not in ports | numbers:
                yield f"{probe} asks port {asked}, which the container does not have"
    variables = {one["name"] for one in container.get("env") or ()}
    if not container.get("envFrom"):
        for text in [*(container.get("command") or ()), *(container.get("args") or ())]:
            for name in _VARIABLE.findall(text):
                if name not in variables:
                    yield f"uses $({name}), which its environment does not have"


def _port_names(container: Mapping[str, Any]) -> list[str]:
    return [port["name"] for port in container.get("ports") or () if "name" in port]


def _names(one: Workload) -> Iterator[tuple[str, str]]:
    """Kind and name of all that a pod refers to in its namespace."""
    account = one.pod.get("serviceAccountName")
    if account and account != "default":
        yield "ServiceAccount", account
    for volume in one.pod.get("volumes") or ():
        yield from _volume_names(volume)
    for container in one.containers:
        for variable in container.get("env") or ():
            source = variable.get("valueFrom") or {}
            for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if key in source and not source[key].get("optional"):
                    yield kind, source[key]["name"]
        for source in container.get("envFrom") or ():
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if key in source and not source[key].get("optional"):
                    yield kind, source[key]["name"]


def _volume_names(volume: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
        config, secret = source.get("configMap"), source.get("secret")
        if config and not config.get("optional"):
            yield "ConfigMap", config["name"]
        if secret and not secret.get("optional"):
            yield "Secret", secret.get("secretName") or secret.get("name")
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def _service(body: Body, made: Sequence[Workload], _: Sequence[Body]) -> Iterator[str]:
    selector = body["spec"].get("selector")
    if not selector:
        return
    found = selected(made, namespace_of(body), {"matchLabels": selector})
    if not found:
        yield "selects no pods"
    for one in found:
        for port in body["spec"].get("ports") or ():
            target = port.get("targetPort", port["port"])
            numbers = {number["containerPort"] for each in one.containers for number in each.get("ports") or ()}
            if target not in one.ports and target not in numbers:
                yield f"leads to port {target}, which {one.where} does not have"


def _budget(body: Body, made: Sequence[Workload], _: Sequence[Body]) -> Iterator[str]:
    spec = body["spec"]
    found = selected(made, namespace_of(body), spec.get("selector") or {})
    if not found:
        yield "protects no pods"
    replicas = sum(one.replicas for one in found)
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if found and (least in (replicas, "100%") or most in (0, "0%") or (isinstance(least, int) and least > replicas)):
        yield f"lets no pod of {replicas} be evicted, so that no node can be drained"


def _webhook(body: Body, _: Sequence[Workload], objects: Sequence[Body]) -> Iterator[str]:
    services = {_key(one): one for one in objects if one["kind"] == "Service"}
    for hook in body.get("webhooks") or ():
        told = (hook.get("clientConfig") or {}).get("service")
        if not told:
            continue
        service = services.get((told["namespace"], told["name"]))
        if service is None:
            yield f"{hook['name']}: asks Service {told['namespace']}/{told['name']}, which is not there"
        elif told.get("port", 443) not in {port["port"] for port in service["spec"]["ports"]}:
            yield f"{hook['name']}: asks port {told.get('port', 443)}, which Service {told['name']} does not have"


def _binding(body: Body, _: Sequence[Workload], objects: Sequence[Body]) -> Iterator[str]:
    role, space = body["roleRef"], namespace_of(body)
    cluster_wide = role["kind"] == "ClusterRole"
    if not any(
        one["kind"] == role["kind"]
        and one["metadata"]["name"] == role["name"]
        and (cluster_wide or namespace_of(one) == space)
        for one in objects
    ):
        yield f"binds {role['kind']} {role['name']}, which is not there"
    accounts = {_key(one) for one in objects if one["kind"] == "ServiceAccount"}
    for subject in body.get("subjects") or ():
        who = (subject.get("namespace", space), subject["name"])
        if subject["kind"] == "ServiceAccount" and who not in accounts:
            yield f"binds ServiceAccount {'/'.join(who)}, which is not there"


def _monitor(body: Body, _: Sequence[Workload], objects: Sequence[Body]) -> Iterator[str]:
    spec, space = body["spec"], namespace_of(body)
    found = [
        one
        for one in objects
        if one["kind"] == "Service"
        and namespace_of(one) == space
        and matches(spec["selector"], one["metadata"].get("labels") or {})
    ]
    if not found:
        yield "selects no Service"
    for service in found:
        names = {port["name"] for port in service["spec"]["ports"]}
        for endpoint in spec["endpoints"]:
            if endpoint["port"] not in names:
                yield f"scrapes port {endpoint['port']}, which Service {service['metadata']['name']} does not have"


_CHECKS = {
    "Service": _service,
    "PodDisruptionBudget": _budget,
    "MutatingWebhookConfiguration": _webhook,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "ServiceMonitor": _monitor,
}
