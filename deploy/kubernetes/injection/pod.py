"""The mutation: adds the sidecar to a pod. Pure; a second call changes nothing.

What an earlier injection added, by this version or another, is replaced and never doubled. The given pod is not
changed; the result shares unchanged parts with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from understudy.deploy.common.sidecar_arguments import (
    MEMBER_VARIABLE,
    REDIS_VARIABLE,
    SESSION_API_VARIABLE,
    application_environment,
)
from understudy.deploy.kubernetes.base.injection_settings import CLASSIC, NATIVE, InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import (
    Body,
    InjectionRefused,
    mapping,
    names_of,
    number,
    objects,
    text,
    texts,
)
from understudy.deploy.kubernetes.base.names import INJECT, PEER_PORT, POOL
from understudy.deploy.kubernetes.base.objects import from_field
from understudy.deploy.kubernetes.injection import istio
from understudy.deploy.kubernetes.injection.annotations import INJECTED, PREFIX, Wishes, read_annotations
from understudy.deploy.kubernetes.injection.application import find_application
from understudy.deploy.kubernetes.injection.container import (
    SIDECAR,
    VOLUMES,
    application_hook,
    digest_of,
    hook_seconds,
    is_application_hook,
    place_of,
    probed_as,
    redis_of,
    session_api_of,
    sidecar_container,
    volumes_for,
)
from understudy.telemetry.tracing.setup import service_version

DEFAULT_GRACE = 30
STOPPING = 5.0
"""Seconds of the grace period that remain for the application after the handover."""
NAME_MOST = 63
DEFAULT_ETCD_PORT = 2379


@dataclass(frozen=True, slots=True)
class Injected:
    """A pod (or pod template) with its sidecar, and warnings for its owner."""

    pod: Body
    warnings: tuple[str, ...] = ()


def asks_for_sidecar(pod: Body) -> bool:
    """Whether the pod's label asks for a sidecar. Raises :class:`InjectionRefused` on malformed labels."""
    return texts(mapping(pod, "metadata", "pod"), "labels", "metadata").get(INJECT) == "true"


def inject(pod: Body, settings: InjectionSettings) -> Injected:
    """Add the sidecar to a pod, or to a workload's pod template.

    Raises:
        InjectionRefused: the pod cannot have one, or its annotations are wrong.
    """
    metadata, spec = mapping(pod, "metadata", "pod"), mapping(pod, "spec", "pod")
    annotations = texts(metadata, "annotations", "metadata")
    labels = texts(metadata, "labels", "metadata")
    before = _Before(annotations.get(INJECTED), spec)
    _refuse_impossible(metadata, spec, settings, before)
    wishes = read_annotations(annotations, labels)
    application = find_application(spec, wishes, annotations, known_health=before.health)
    drain, grace, warnings = _time_to_end(spec, settings, wishes)
    place = place_of(settings, wishes, app_port=application.port, app_health=application.health, drain=drain)
    container = sidecar_container(settings, wishes, place, grace=grace)
    digest = digest_of(container)
    hook = application_hook(wishes, drain) if wishes.wait_for_handover else None
    containers = []
    for each in objects(spec, "containers", "spec"):
        if each.get("name") == SIDECAR:
            continue
        mine = each.get("name") == application.container
        containers.append(_told(each, wishes, hook if mine else None, before, warnings, mine=mine))
    inits = [each for each in objects(spec, "initContainers", "spec") if each.get("name") != SIDECAR]
    around = _ports_around(wishes, settings)
    inits = istio.mended(inits, **around)
    own = before.container if before.container and before.digest == digest and before.form == settings.form else None
    at = before.position if own else None
    target = inits if settings.form == NATIVE else containers
    target.insert(len(target) if at is None else at, probed_as(own, container) if own else container)
    mark = {"version": service_version(), "form": settings.form, "digest": digest, "health": application.health}
    return Injected(
        {
            **pod,
            "metadata": {
                **metadata,
                "labels": {**labels, POOL: wishes.pool},
                "annotations": {**istio.excluding(annotations, **around), INJECTED: json.dumps(mark)},
            },
            "spec": {
                **spec,
                "containers": containers,
                **({"initContainers": inits} if inits or "initContainers" in spec else {}),
                **_volumes(spec, settings, wishes),
            },
        },
        tuple(warnings),
    )


class _Before:
    """The parts that an earlier injection added to the pod."""

    def __init__(self, mark: str | None, spec: Body) -> None:
        try:
            said = json.loads(mark) if mark else {}
        except ValueError:
            said = {}
        said = said if isinstance(said, dict) else {}
        self.marked = mark is not None
        self.digest, self.form = said.get("digest"), said.get("form")
        self.health = str(said.get("health") or "")
        self.container: Body | None = None
        self.position: int | None = None
        self.everybody: list[Body] = []
        for key in ("containers", "initContainers"):
            self.everybody += objects(spec, key, "spec")
            for position, container in enumerate(objects(spec, key, "spec")):
                if container.get("name") == SIDECAR:
                    self.container, self.position = container, position


def _refuse_impossible(metadata: Body, spec: Body, settings: InjectionSettings, before: _Before) -> None:
    faults = []
    names = [*names_of(objects(spec, "containers", "spec")), *names_of(objects(spec, "initContainers", "spec"))]
    operating_system = mapping(spec, "os", "spec").get("name") or texts(spec, "nodeSelector", "spec").get(
        "kubernetes.io/os"
    )
    if operating_system == "windows":
        faults.append("spec.os: the sidecar runs on Linux alone: take the label off pods for Windows")
    if spec.get("hostNetwork") is True:
        faults.append(
            "spec.hostNetwork: the session API on 127.0.0.1 would be open to every process of the node: "
            f"use the pod network, or take the label {INJECT} off"
        )
    if len(text(metadata, "name", "metadata")) > NAME_MOST:
        faults.append(f"metadata.name: a member's name has at most {NAME_MOST} characters: shorten the pod's")
    if SIDECAR in names and not before.marked:
        faults.append(f"spec: a container named {SIDECAR} exists already and is not ours: rename it")
    if names.count(SIDECAR) > 1:
        faults.append(f"spec: {names.count(SIDECAR)} containers are named {SIDECAR}: keep one of them or none")
    taken = VOLUMES & set(names_of(objects(spec, "volumes", "spec")))
    if taken and not before.marked:
        faults.append(f"spec.volumes: {', '.join(sorted(taken))} is reserved for the sidecar: rename the volume")
    policy = text(spec, "restartPolicy", "spec") or "Always"
    if settings.form == CLASSIC and policy != "Always":
        faults.append(
            f"spec.restartPolicy: {policy}: with a sidecar in the classic form such a pod would never finish: "
            "use Kubernetes 1.29 or newer with the native form, or remove the label"
        )
    if faults:
        raise InjectionRefused(*faults)


def _time_to_end(spec: Body, settings: InjectionSettings, wishes: Wishes) -> tuple[float, int, list[str]]:
    """The seconds for the handover, the pod's grace period in seconds, and warnings."""
    said = number(spec.get("terminationGracePeriodSeconds"))
    grace = DEFAULT_GRACE if said is None else said
    drain = settings.drain_seconds if wishes.drain_seconds is None else wishes.drain_seconds
    if hook_seconds(drain) + STOPPING <= grace:
        return drain, grace, []
    needed = int(hook_seconds(drain) + STOPPING)
    if wishes.drain_seconds is not None:
        raise InjectionRefused(
            f"annotation {PREFIX}drain-seconds: {drain:g} needs spec.terminationGracePeriodSeconds of {needed} or "
            f"more, and it is {grace}: raise that or lower this"
        )
    shorter = round(max(grace, 0) * 0.4, 1)
    warning = (
        f"terminationGracePeriodSeconds {grace} is short: the handover gets only {shorter:g} s; {needed} is enough"
    )
    return shorter, grace, [warning]


def _ports_around(wishes: Wishes, settings: InjectionSettings) -> dict[str, list[int]]:
    """The ports that Istio must exclude."""
    etcd = []
    for endpoint in settings.etcd:
        port = endpoint.rsplit("/", 1)[-1].rpartition(":")[2]
        etcd.append(int(port) if port.isdigit() else DEFAULT_ETCD_PORT)
    inbound = [wishes.peer_port, wishes.health_port, wishes.metrics_port]
    return {
        "inbound": inbound,
        "outbound": [*dict.fromkeys([wishes.peer_port, PEER_PORT]), *etcd, settings.control_port],
    }


_ADDRESSES = {SESSION_API_VARIABLE: "http://127.0.0.1:", REDIS_VARIABLE: "redis://127.0.0.1:"}
"""The variables with addresses of the sidecar, and how the values that we set begin."""


def _told(
    container: Body, wishes: Wishes, hook: Body | None, before: _Before, warnings: list[str], *, mine: bool
) -> Body:
    """A container of the pod's owner, with variables and hooks for the sidecar."""
    name = str(container.get("name", ""))
    if name in istio.PROXIES:
        return container
    environment = application_environment(session_api=session_api_of(wishes), redis=redis_of(wishes), member="")
    ours: Mapping[str, Body] = {
        **{name: {"name": name, "value": environment[name]} for name in _ADDRESSES},
        MEMBER_VARIABLE: from_field(MEMBER_VARIABLE, "metadata.name"),
    }
    given = objects(container, "env", f"container {name}")
    if before.marked:
        given = [_renewed(variable, ours) for variable in given]
    missing = [variable for key, variable in ours.items() if key not in names_of(given)]
    told = {**container, "env": [*given, *missing]}
    if mine:
        told = _with_hook(told, name, hook, before.everybody, warnings)
    return told


def _renewed(variable: Body, ours: Mapping[str, Body]) -> Body:
    """Set a variable, or replace the value of an earlier injection."""
    value = variable.get("value")
    start = _ADDRESSES.get(str(variable.get("name")))
    was_ours = start is not None and str(value).startswith(start)
    return ours[str(variable["name"])] if was_ours else variable


def _with_hook(container: Body, name: str, hook: Body | None, everybody: list[Body], warnings: list[str]) -> Body:
    lifecycle = mapping(container, "lifecycle", f"container {name}")
    if lifecycle.get("preStop") and not is_application_hook(lifecycle, everybody):
        if hook is not None:
            warnings.append(
                f"container {name} keeps its own preStop hook: it must last as long as the handover, or set "
                f"{PREFIX}wait-for-handover: 'false'"
            )
        return container
    kept = {key: value for key, value in lifecycle.items() if key != "preStop"}
    told = kept | ({"preStop": hook} if hook else {})
    if told or "preStop" not in lifecycle:
        return {**container, "lifecycle": told} if told else container
    return {key: value for key, value in container.items() if key != "lifecycle"}


def _volumes(spec: Body, settings: InjectionSettings, wishes: Wishes) -> Body:
    kept = [volume for volume in objects(spec, "volumes", "spec") if volume.get("name") not in VOLUMES]
    grouped = "fsGroup" in mapping(spec, "securityContext", "spec")
    wanted = volumes_for(settings, wishes, grouped=grouped)
    return {"volumes": [*kept, *wanted]} if wanted or "volumes" in spec else {}
