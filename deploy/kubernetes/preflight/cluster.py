"""Checks a running cluster through ``kubectl``: versions, permissions, nodes, namespaces, the webhook.

:func:`look_at_cluster` collects facts (``kubectl ... -o json``). :func:`judge_cluster` decides what they mean, and is
pure. Nothing in the cluster is changed.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.names import INJECT, INJECTION, INJECTOR_NAME, POOL
from understudy.deploy.kubernetes.istio.plan import OLDEST as ISTIO
from understudy.deploy.kubernetes.preflight.findings import Finding, Level, judged
from understudy.deploy.kubernetes.preflight.lint_reach import matches
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.deploy.kubernetes.preflight.manifests import replicas_apart
from understudy.deploy.kubernetes.preflight.webhooks import bundle_faults, chain_faults
from understudy.deploy.kubernetes.webhook.configuration import CERTIFICATES

AREA = "cluster"
OLDEST, NATIVE_SIDECARS, ZONE_IN_PODS = (1, 25), (1, 29), (1, 35)
_PATIENCE = 20.0
_MONITORING = "monitoring.coreos.com"
_ENFORCING = ("calico", "canal", "cilium", "antrea", "kube-router", "weave", "ovn", "azure-npm", "kindnet")
_PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}


@dataclass(frozen=True, slots=True)
class KubectlAnswers:
    """Answers of kubectl. ``refused``: failed request -> reason. ``rights``: kind -> may we create it?"""

    version: str
    nodes: Sequence[Body] = ()
    namespaces: Sequence[Body] = ()
    definitions: frozenset[str] = frozenset()
    drivers: frozenset[str] | None = None
    daemon_sets: Sequence[Body] = ()
    webhooks: Sequence[Body] = ()
    secrets: Sequence[Body] = ()
    slices: Sequence[Body] = ()
    istiods: Sequence[Body] = ()
    rights: Mapping[str, bool] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


class NoCluster(Exception):
    """No cluster can be reached; the text says why."""


async def look_at_cluster(objects: Sequence[Body], context: str = "") -> KubectlAnswers:
    """Ask kubectl. ``objects`` are the manifests, if any. Raises :class:`NoCluster`."""
    binary = shutil.which("kubectl")
    if binary is None:
        raise NoCluster("kubectl is not on the PATH")
    kubectl = _Kubectl(binary, context)
    told = await kubectl.ask("version")
    version = ((told or {}).get("serverVersion") or {}).get("gitVersion")
    if not version:
        raise NoCluster(
            f"kubectl reaches no cluster: {kubectl.refused.get('version', 'its answer has no server version')}"
        )
    space = _home(objects)
    listings = {
        "nodes": ("get", "nodes"),
        "namespaces": ("get", "namespaces"),
        "definitions": ("get", "customresourcedefinitions"),
        "drivers": ("get", "csidrivers"),
        "daemon_sets": ("get", "daemonsets", "--all-namespaces"),
        "webhooks": ("get", "mutatingwebhookconfigurations"),
        "slices": ("get", "endpointslices", "--namespace", space, "-l", f"kubernetes.io/service-name={INJECTOR_NAME}"),
        "istiods": ("get", "deployments", "--all-namespaces", "-l", "app=istiod"),
    }
    found = dict(zip(listings, await asyncio.gather(*(kubectl.items(*one) for one in listings.values())), strict=True))
    secret = await kubectl.ask("get", "secret", CERTIFICATES, "--namespace", space, "--ignore-not-found")
    found["secrets"] = [secret] if secret else []
    definitions, drivers = (
        frozenset(one["metadata"]["name"] for one in found.pop(listing)) for listing in ("definitions", "drivers")
    )
    wanted = sorted({resource_of(one) for one in objects})
    answers = await asyncio.gather(*(kubectl.may_create(one, space) for one in wanted))
    rights = dict(zip(wanted, answers, strict=True))
    known = None if "get csidrivers" in kubectl.refused else drivers
    return KubectlAnswers(
        version, definitions=definitions, drivers=known, rights=rights, refused=kubectl.refused, **found
    )


def _home(objects: Iterable[Body]) -> str:
    return next((one["metadata"]["namespace"] for one in objects if one["metadata"].get("namespace")), "understudy")


def resource_of(body: Body) -> str:
    """The name of an object's kind for ``kubectl auth can-i``: ``deployments.apps``, ``services``."""
    kind, group = body["kind"], body["apiVersion"].rpartition("/")[0]
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    return f"{plural}.{group}" if group else plural


class _Kubectl:
    """Runs kubectl, and records which requests failed."""

    def __init__(self, binary: str, context: str) -> None:
        self._command = (binary, *(("--context", context) if context else ()), "--request-timeout", f"{_PATIENCE:g}s")
        self.refused: dict[str, str] = {}
        self._gate = asyncio.Semaphore(4)

    async def ask(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """An answer's JSON; None without an answer."""
        code, output, complaint = await self._run(*arguments, "--output", "json")
        try:
            answer = json.loads(output) if output.strip() else None
        except ValueError:
            answer = None
        if code or (answer is None and output.strip()):
            self.refused[" ".join(arguments)] = " ".join(complaint.split())[:300] or f"exit code {code}"
        return answer

    async def items(self, *arguments: str) -> list[Body]:
        """The objects of a listing; empty if the request failed."""
        answer = await self.ask(*arguments)
        return list(answer.get("items") or ()) if isinstance(answer, dict) else []

    async def may_create(self, resource: str, namespace: str) -> bool:
        """Whether this account may create such objects."""
        _, output, _ = await self._run("auth", "can-i", "create", resource, "--namespace", namespace)
        return output.strip().splitlines()[-1:] == ["yes"]

    async def _run(self, *arguments: str) -> tuple[int, str, str]:
        async with self._gate:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(_PATIENCE + 5):
                    output, complaint = await child.communicate()
            except TimeoutError:
                child.kill()
                await child.wait()
                return 1, "", f"no answer within {_PATIENCE:g} s"
        return child.returncode or 0, output.decode(errors="replace"), complaint.decode(errors="replace")


def judge_cluster(cluster: KubectlAnswers, objects: Sequence[Body], now: datetime) -> list[Finding]:
    """All findings. ``objects`` are the manifests, if any."""
    may_not = [f"you may not create {what}" for what, yes in cluster.rights.items() if not yes]
    unread = [f"{what}: {why}" for what, why in cluster.refused.items()]
    return [
        *_versions(cluster.version),
        *judged(AREA, "you may create all objects of the manifests", may_not, "ask the administrator of the cluster"),
        *judged(AREA, "kubectl may read everything", unread, "what it may not read is not checked", Level.WARN),
        *judged(AREA, "there are enough nodes", _nodes(cluster, objects), "add nodes, or reduce the replicas"),
        *judged(
            AREA,
            "nodes have zones",
            _zones(cluster),
            "without zones members have no site: see docs/kubernetes.md",
            Level.WARN,
        ),
        *judged(
            AREA,
            "namespaces have the injection label",
            _spaces(cluster, objects),
            f"kubectl label namespace ... {INJECTION}=enabled",
        ),
        *judged(
            AREA,
            "resource definitions are installed",
            _undefined(cluster, objects),
            "install the operator that owns them",
        ),
        *judged(AREA, "the CSI drivers are installed", _drivers(cluster, objects), "install cert-manager's csi-driver"),
        *judged(
            AREA, "network policies are enforced", _network(cluster), "ask the administrator of the cluster", Level.WARN
        ),
        *_webhook(cluster, now),
        *_istio(cluster),
    ]


def _number(text: str) -> tuple[int, int]:
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _versions(told: str) -> Iterator[Finding]:
    version = _number(told)
    old = [f"it is {told}"] if version < OLDEST else []
    yield from judged(AREA, f"Kubernetes is {OLDEST[0]}.{OLDEST[1]} or newer", old, "upgrade the cluster")
    classic = [f"it is {told}: sidecars are ordinary containers"] if version < NATIVE_SIDECARS else []
    yield from judged(
        AREA,
        "sidecars can be native (1.29)",
        classic,
        "nothing to do: the injector chooses the form; see docs/injection.md",
        Level.WARN,
    )
    blind = [f"it is {told}: pods cannot read their zone"] if version < ZONE_IN_PODS else []
    yield from judged(
        AREA,
        "pods can read their zone (1.35)",
        blind,
        "set the annotation understudy.io/site if sites matter",
        Level.WARN,
    )


def _schedulable(cluster: KubectlAnswers) -> list[Body]:
    return [
        node
        for node in cluster.nodes
        if not (node.get("spec") or {}).get("unschedulable")
        and not any(
            taint.get("effect") in ("NoSchedule", "NoExecute") for taint in (node.get("spec") or {}).get("taints") or ()
        )
    ]


def _nodes(cluster: KubectlAnswers, objects: Sequence[Body]) -> Iterator[str]:
    if not cluster.nodes:
        return
    there = len(_schedulable(cluster))
    for name, wanted in replicas_apart(workloads(objects)).items():
        if wanted > there:
            yield f"{name} needs {wanted} nodes, but only {there} accept pods"


def _zones(cluster: KubectlAnswers) -> list[str]:
    bare = [
        node["metadata"]["name"]
        for node in _schedulable(cluster)
        if "topology.kubernetes.io/zone" not in (node["metadata"].get("labels") or {})
    ]
    return [f"{len(bare)} node(s) have no label topology.kubernetes.io/zone, such as {bare[0]}"] if bare else []


def _spaces(cluster: KubectlAnswers, objects: Sequence[Body]) -> Iterator[str]:
    labels = {one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in cluster.namespaces}
    ours = {one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"}
    wanting = {one.namespace for one in workloads(objects) if one.labels.get(INJECT) == "true"}
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    wanting |= {
        one["metadata"]["namespace"]
        for one in policies
        if POOL in ((one["spec"].get("podSelector") or {}).get("matchLabels") or {})
        and len(one["spec"]["podSelector"]["matchLabels"]) == 1
    }
    for space in sorted(wanting - ours):
        if space not in labels:
            yield f"namespace {space} is neither in the cluster nor among the manifests"
        elif labels[space].get(INJECTION) != "enabled":
            yield f"namespace {space} has no label {INJECTION}: enabled"


def _undefined(cluster: KubectlAnswers, objects: Sequence[Body]) -> list[str]:
    wanted = {resource_of(one) for one in objects if one["apiVersion"].startswith(f"{_MONITORING}/")}
    if not cluster.definitions:
        return []
    return [f"{one} is not defined" for one in sorted(wanted - cluster.definitions)]


def _drivers(cluster: KubectlAnswers, objects: Sequence[Body]) -> list[str]:
    if cluster.drivers is None:
        return []
    wanted = {
        str(volume["csi"]["driver"])
        for one in workloads(objects)
        for volume in one.pod.get("volumes") or ()
        if "csi" in volume
    }
    return [f"CSI driver {name} is not installed" for name in sorted(wanted - cluster.drivers)]


def _network(cluster: KubectlAnswers) -> list[str]:
    names = [one["metadata"]["name"] for one in cluster.daemon_sets]
    if any(known in name for name in names for known in _ENFORCING):
        return []
    return ["no network plugin was found that is known to enforce them: other pods may reach unencrypted ports"]


def _webhook(cluster: KubectlAnswers, now: datetime) -> Iterator[Finding]:
    ours = [one for one in cluster.webhooks if one["metadata"]["name"] == INJECTOR_NAME]
    if not ours:
        yield Finding(Level.SKIPPED, AREA, "the webhook can be reached", "it is not installed yet")
        return
    faults = []
    for hook in ours[0].get("webhooks") or ():
        bundle = (hook.get("clientConfig") or {}).get("caBundle") or ""
        if not bundle:
            faults.append(f"{hook['name']} has no caBundle")
            continue
        faults += bundle_faults(bundle, hook["name"], now)
        faults += [fault for secret in cluster.secrets for fault in chain_faults(bundle, secret)]
    yield from judged(AREA, "the webhook's certificate is trusted", faults, "see docs/injection.md")
    ready = [
        address
        for piece in cluster.slices
        for endpoint in piece.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint.get("addresses") or ()
    ]
    nobody = [] if ready else ["no injector is ready: pods that ask for a sidecar are rejected"]
    yield from judged(
        AREA, "the webhook can be reached", nobody, f"kubectl get pods -l app.kubernetes.io/component={INJECTOR_NAME}"
    )
    strangers = [
        one["metadata"]["name"]
        for one in cluster.namespaces
        for hook in ours[0].get("webhooks") or ()
        if one["metadata"]["name"] in ("kube-system", "kube-public", "kube-node-lease")
        and matches(hook.get("namespaceSelector") or {}, one["metadata"].get("labels") or {})
    ]
    yield from judged(AREA, "the webhook ignores system namespaces", strangers, "remove the injection label from them")


def _istio(cluster: KubectlAnswers) -> Iterator[Finding]:
    """Whether Istio, if it is installed, is new enough to route by slots. With our front Envoys it need not be."""
    what = f"Istio could route by slots ({ISTIO[0]}.{ISTIO[1]})"
    for one in cluster.istiods:
        tags = [str(each.get("image", "")).rpartition(":")[2] for made in workloads([one]) for each in made.containers]
        old = [f"istiod is {tag}" for tag in tags if (0, 0) < _number(tag) < ISTIO]
        yield from judged(AREA, what, old, "use the front Envoys that 'render kubernetes' writes", Level.WARN)
