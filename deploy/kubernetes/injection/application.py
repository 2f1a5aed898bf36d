"""Finds the application's container in a pod, its port, and its health check. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from understudy.deploy.kubernetes.base.lenient_json import Body, InjectionRefused, mapping, names_of, number, objects
from understudy.deploy.kubernetes.injection.annotations import PREFIX, Wishes
from understudy.deploy.kubernetes.injection.container import SIDECAR
from understudy.deploy.kubernetes.injection.istio import PROXIES, original_path
from understudy.statesync.pool.app_health import HealthKind

DEFAULT_HEALTH = "/healthz"
_KUBECTL_DEFAULT = "kubectl.kubernetes.io/default-container"


@dataclass(frozen=True, slots=True)
class Application:
    """The name of the application's container, its port, and the path that answers 200 while it is healthy."""

    container: str
    port: int
    health: str


def find_application(
    spec: Body, wishes: Wishes, annotations: Mapping[str, str], *, known_health: str = ""
) -> Application:
    """The application of a pod.

    ``known_health`` is the path that was found at an earlier injection, in case the probe with it is gone. Raises
    :class:`InjectionRefused` if the application cannot be identified, or uses a port of the sidecar.
    """
    containers = [
        container
        for container in objects(spec, "containers", "spec")
        if container.get("name") != SIDECAR and container.get("name") not in PROXIES
    ]
    if not containers:
        raise InjectionRefused("spec.containers: there is no container of an application")
    container = _container(containers, wishes, annotations)
    port = _port(container, wishes)
    _refuse_collisions(spec, wishes, port)
    health = wishes.app_health or _health(spec, container, port) or known_health or DEFAULT_HEALTH
    return Application(str(container["name"]), port, health)


def _container(containers: list[Body], wishes: Wishes, annotations: Mapping[str, str]) -> Body:
    named = {name: container for container in containers if isinstance(name := container.get("name"), str)}
    if wishes.container:
        if wishes.container not in named:
            raise InjectionRefused(
                f"annotation {PREFIX}container: there is no container {wishes.container!r}; there are {_listed(named)}"
            )
        return named[wishes.container]
    if len(named) == 1:
        return next(iter(named.values()))
    default = named.get(annotations.get(_KUBECTL_DEFAULT, ""))
    if default is not None:
        return default
    fitting = [each for each in named.values() if wishes.app_port and _port_of(each, wishes.app_port)]
    if len(fitting) == 1:
        return fitting[0]
    raise InjectionRefused(
        f"annotation {PREFIX}container is missing: name the application's container; there are {_listed(named)}"
    )


def _port(container: Body, wishes: Wishes) -> int:
    name = container["name"]
    if isinstance(wishes.app_port, int):
        return wishes.app_port
    if isinstance(wishes.app_port, str):
        found = _port_of(container, wishes.app_port)
        if found is None:
            known = names_of(objects(container, "ports", f"container {name}"))
            raise InjectionRefused(
                f"annotation {PREFIX}app-port: container {name} has no port named {wishes.app_port!r}; "
                + (f"there are {_listed(known)}" if known else "give its number")
            )
        return found
    ports = [port for port in objects(container, "ports", f"container {name}") if _is_tcp(port)]
    numbers = {number(port.get("containerPort")) for port in ports}
    only = numbers.pop() if len(numbers) == 1 else None
    if only is None:
        told = f"has {len(ports)} ports" if ports else "names no port"
        raise InjectionRefused(
            f"annotation {PREFIX}app-port is missing, and container {name} {told}: give the port that takes requests"
        )
    return only


def _port_of(container: Body, wanted: int | str) -> int | None:
    """The number of a container's port, given by number or name; None if there is no such port."""
    for port in objects(container, "ports", f"container {container.get('name')}"):
        if _is_tcp(port) and wanted in (port.get("name"), port.get("containerPort")):
            return number(port.get("containerPort"))
    return None


def _is_tcp(port: Body) -> bool:
    return port.get("protocol") in (None, "", "TCP")


def _health(spec: Body, container: Body, port: int) -> str:
    """How the application's own readiness probe checks that port, over HTTP or gRPC; '' without such a probe."""
    where = f"container {container.get('name')}"
    probe = mapping(container, "readinessProbe", where)
    by_grpc = mapping(probe, "grpc", f"{where}.readinessProbe")
    if by_grpc and number(by_grpc.get("port")) == port:
        service = by_grpc.get("service")
        return f"{HealthKind.GRPC}:{service}" if isinstance(service, str) and service else HealthKind.GRPC.value
    asked = mapping(probe, "httpGet", f"{where}.readinessProbe")
    path, at = asked.get("path"), asked.get("port")
    if not isinstance(path, str):
        return ""
    everybody = [*objects(spec, "containers", "spec"), *objects(spec, "initContainers", "spec")]
    before = original_path(everybody, path)
    if before is not None:
        path, at = before
    found = at if number(at) is not None else _port_of(container, at) if isinstance(at, str) else None
    plain = asked.get("scheme") in (None, "", "HTTP") and not asked.get("host") and not asked.get("httpHeaders")
    return path if found == port and plain and path.startswith("/") else ""


def _refuse_collisions(spec: Body, wishes: Wishes, app_port: int) -> None:
    """Raise :class:`InjectionRefused` if the application or another container uses a port of the sidecar."""
    ours = {port: name for name, port in wishes.ports.items()}
    faults = []
    if app_port in ours:
        faults.append(f"{app_port} is used by the application and by the sidecar: set {PREFIX}{ours[app_port]}")
    for key in ("containers", "initContainers"):
        for container in objects(spec, key, "spec"):
            name = container.get("name")
            if name == SIDECAR or (key == "initContainers" and container.get("restartPolicy") != "Always"):
                continue
            for port in objects(container, "ports", f"container {name}"):
                taken = number(port.get("containerPort"))
                if taken in ours and taken != app_port and _is_tcp(port):
                    faults.append(
                        f"container {name} uses port {taken}, which is the sidecar's: set {PREFIX}{ours[taken]}"
                    )
    if faults:
        raise InjectionRefused(*faults)


def _listed(names: Mapping[str, Body] | list[str]) -> str:
    return ", ".join(sorted(names))
