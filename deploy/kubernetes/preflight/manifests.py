"""Checks manifests, rendered or edited, without a cluster: will this pool run, and is it safe? Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.names import (
    COMPONENT,
    CONTROL,
    ETCD,
    ETCD_CONFIG,
    ETCD_VARIABLE,
    FRONT,
    INJECT,
    INJECTION,
    INSTANCE,
    MEMBER,
    POOL,
)
from understudy.deploy.kubernetes.preflight.findings import Finding, Level, judged
from understudy.deploy.kubernetes.preflight.lint_flows import APP_PORT, FLOWS, PROMETHEUS, Flow
from understudy.deploy.kubernetes.preflight.lint_reach import End, Outside, Pod, Policies
from understudy.deploy.kubernetes.preflight.manifest_index import Workload, where, workloads
from understudy.deploy.kubernetes.preflight.missing_secrets import missing_secrets
from understudy.deploy.kubernetes.preflight.webhooks import webhook_findings
from understudy.deploy.kubernetes.render.plan import host_and_port
from understudy.deploy.kubernetes.render.pool import SPEC_FILE
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_reader import parse_spec

AREA = "manifests"
OLDEST_ENVOY = (1, 37)
"""The first version that selects clusters by hash and matches cookies, which the routes need."""
_STRANGER = Pod("a-namespace-of-somebody-else", {"app": "stranger"})
_DOCUMENTATION_ADDRESS = "192.0.2.1"
"""Stands for any unknown address (RFC 5737)."""


def judge_manifests(objects: Sequence[Body], now: datetime) -> list[Finding]:
    """All findings. ``now`` decides whether certificates have expired."""
    made = list(workloads(objects))
    return [
        *[
            Finding(Level.WARN, AREA, "required Secrets exist", f"{name} is not among the manifests", "create it first")
            for name in missing_secrets(objects)
        ],
        *judged(
            AREA, "images are pinned by digest", _tags(made), "render with --image PART=...@sha256:...", Level.WARN
        ),
        *judged(
            AREA,
            "network policies allow the traffic between the parts",
            _cut_flows(objects, made),
            "see docs/kubernetes.md",
        ),
        *judged(
            AREA,
            "unencrypted ports are closed to other pods",
            _open_ports(objects, made),
            "add the policies, or use certificates",
        ),
        *judged(AREA, "control servers are redundant", _few(made), "render with --replicas 3", Level.WARN),
        *judged(
            AREA,
            "namespaces of members have the injection label",
            _uninjected(objects, made),
            f"label it {INJECTION}=enabled",
        ),
        *judged(AREA, "Envoy is new enough", _old_envoys(made), "use 1.37 or newer"),
        *_etcd_findings(made),
        *_spec_findings(objects, made),
        *webhook_findings(objects, now),
    ]


def _tags(made: Iterable[Workload]) -> list[str]:
    images = {str(each.get("image", "")) for one in made for each in one.containers}
    return [
        f"{image}: another image can be pushed under the same tag"
        for image in sorted(images)
        if "@sha256:" not in image
    ]


def _old_envoys(made: Iterable[Workload]) -> Iterator[str]:
    """Front Envoys that would ignore a part of their routes and so send sessions to wrong members."""
    for one in made:
        for container in one.containers if one.labels.get(COMPONENT) == FRONT else ():
            version = re.search(r":v?(\d+)\.(\d+)", str(container.get("image", "")))
            if version and (int(version[1]), int(version[2])) < OLDEST_ENVOY:
                yield f"{one.where}: {container['image']} does not match cookies"


def _few(made: Iterable[Workload]) -> Iterator[str]:
    for one in made:
        if one.labels.get(COMPONENT) == CONTROL and one.replicas < 2:
            yield f"{one.where} has one replica: slot tables do not change while it restarts"


def _is_member(one: Workload) -> bool:
    return one.labels.get(INJECT) == "true"


def _uninjected(objects: Sequence[Body], made: Iterable[Workload]) -> Iterator[str]:
    spaces = {
        one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in objects if one["kind"] == "Namespace"
    }
    for one in made:
        # Labels of a namespace that is not among the manifests are checked in the cluster.
        if _is_member(one) and one.namespace in spaces and spaces[one.namespace].get(INJECTION) != "enabled":
            yield f"{one.where} asks for a sidecar, but namespace {one.namespace} has no label {INJECTION}: enabled"


# -- network policies --


def _cut_flows(objects: Sequence[Body], made: Sequence[Workload]) -> Iterator[str]:
    policies, ends = Policies(objects), _ends(objects, made)
    for flow in FLOWS:
        # Prometheus may be missing. No policies that we can see restrict clients and the API server.
        if flow.source == PROMETHEUS:
            continue
        for (source, _), (target, elsewhere) in product(ends.get(flow.source, ()), ends.get(flow.target, ())):
            port = elsewhere or _port_of(flow, target)
            if port and _one_pool(source, target) and not policies.allow(source, target, port):
                yield f"{flow.source} cannot reach {flow.target} at port {port} ({flow.why})"


def _one_pool(source: End, target: End) -> bool:
    return len({pool for pool in map(_pool_of, (source, target)) if pool}) < 2


def _pool_of(end: End) -> str:
    """The pool that a pod belongs to, as a member or as a part of Understudy; '' for parts that serve all pools."""
    return end.labels.get(POOL) or end.labels.get(INSTANCE, "") if isinstance(end, Pod) else ""


def _port_of(flow: Flow, target: End) -> int:
    """The port of a flow. For an application: its only port, or 0 if it has none or several."""
    if flow.port != APP_PORT:
        return flow.port
    ports = list(target.ports.values()) if isinstance(target, Pod) else []
    return ports[0] if len(ports) == 1 else 0


def _ends(objects: Sequence[Body], made: Iterable[Workload]) -> dict[str, list[tuple[End, int]]]:
    """The pods of each part with a port (0: the usual one); for an etcd outside the manifests, its address."""
    found: dict[str, list[tuple[End, int]]] = {}
    for one in made:
        part = MEMBER if _is_member(one) else one.labels.get(COMPONENT, "")
        found.setdefault(part, []).append((one.as_pod(), 0))
    if MEMBER not in found:
        pools = {_pool_of(end) for end, _ in found.get(CONTROL, ())} - {""}
        spaces = [
            one["metadata"]["name"]
            for one in objects
            if one["kind"] == "Namespace" and (one["metadata"].get("labels") or {}).get(INJECTION) == "enabled"
        ]
        found[MEMBER] = [(Pod(space, {POOL: pool}), 0) for space, pool in product(spaces, sorted(pools))]
    if ETCD not in found:
        found[ETCD] = list(_etcd_elsewhere(objects))
    return found


def _etcd_elsewhere(objects: Sequence[Body]) -> Iterator[tuple[End, int]]:
    for one in objects:
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == ETCD_CONFIG:
            for endpoint in str((one.get("data") or {}).get(ETCD_VARIABLE, "")).split(","):
                try:
                    host, port = host_and_port(endpoint)
                except DeployError:
                    continue
                yield _end_at(host), port


def _end_at(host: str) -> End:
    parts = host.split(".")
    if "svc" in parts[2:]:
        return Pod(parts[parts.index("svc") - 1], {})
    return Outside(host if re.fullmatch(r"[0-9.]+|[0-9a-f:]*:[0-9a-f:]*", host) else _DOCUMENTATION_ADDRESS)


def _open_ports(objects: Sequence[Body], made: Iterable[Workload]) -> Iterator[str]:
    """Ports without certificates that any pod of the cluster can reach."""
    policies = Policies(objects)
    for one in made:
        for container in one.containers:
            if "--insecure" not in (container.get("args") or ()):
                continue
            for port in container.get("ports") or ():
                if policies.allow(_STRANGER, one.as_pod(), port["containerPort"]):
                    yield f"{one.where}: any pod can reach port {port['containerPort']}, which is not encrypted"


# -- etcd and spec --


def _etcd_findings(made: Sequence[Workload]) -> Iterator[Finding]:
    for one in made:
        for container in one.containers:
            image = str(container.get("image", ""))
            version = re.search(r"etcd[^/]*:v?(\d+\.\d+\.\d+)", image)
            if version is None:
                continue
            status = EndpointStatus(one.where, version[1], leader=False, db_size=0, errors=())
            yield from judged(AREA, "etcd's version is safe", [status.at_risk] if status.at_risk else [], "")
            flags = _flags(container)
            yield from judged(
                AREA,
                "etcd compacts and has a quota",
                _missing_flags(one, flags),
                "each session write adds a revision: see docs/operations.md",
            )
            members = _members(one, flags, made)
            odd = members >= 3 and members % 2 == 1
            few = [] if odd else [f"{one.where} has {members} member(s): the loss of one stops all writes"]
            yield from judged(AREA, "etcd survives the loss of a member", few, "3 or 5", Level.WARN)


def _flags(container: Mapping[str, Any]) -> str:
    return " ".join(map(str, [*(container.get("command") or ()), *(container.get("args") or ())]))


def _members(one: Workload, flags: str, made: Sequence[Workload]) -> int:
    """How many members the etcd of a workload has: with those of other workloads that name the same cluster token."""
    token = re.search(r"--initial-cluster-token[= ]\S+", flags)
    if token is None:
        return one.replicas
    counted = [each for each in made if any(token[0] in _flags(part).split() for part in each.containers)]
    return sum(each.replicas for each in counted)


def _missing_flags(one: Workload, flags: str) -> list[str]:
    wanted = ("--auto-compaction-retention", "--quota-backend-bytes")
    return [f"{one.where}: {flag} is not given" for flag in wanted if flag not in flags]


def _spec_findings(objects: Sequence[Body], made: Sequence[Workload]) -> Iterator[Finding]:
    for one in objects:
        text = (one.get("data") or {}).get(SPEC_FILE) if one["kind"] == "ConfigMap" else None
        if text is None:
            continue
        try:
            spec = parse_spec(text, where=f"{where(one)}, {SPEC_FILE}")
        except SpecError as error:
            yield from judged(AREA, "the pool spec can be read", str(error).splitlines(), "correct it and render again")
            continue
        yield from judged(AREA, "the pool spec can be read", [], "")
        members = [each for each in made if _is_member(each) and each.labels.get(POOL) == spec.pool]
        yield from judged(
            AREA,
            "there are enough members for all copies",
            _short(spec, members),
            "more replicas, or fewer copies in the spec",
            Level.WARN,
        )


def _short(spec: PoolSpec, members: Sequence[Workload]) -> list[str]:
    count = sum(one.replicas for one in members)
    if not members or count >= spec.copies:
        return []
    return [f"pool {spec.pool} needs {spec.copies} members for the copies of each slot, but has {count}"]


def replicas_apart(made: Iterable[Workload]) -> Mapping[str, int]:
    """Workloads that require a node of its own for each pod: name -> number of nodes."""
    found = {}
    for one in made:
        anti = ((one.pod.get("affinity") or {}).get("podAntiAffinity") or {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"
        )
        if any(term.get("topologyKey") == "kubernetes.io/hostname" for term in anti or ()):
            found[one.where] = one.replicas
    return found
