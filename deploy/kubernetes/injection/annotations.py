"""The annotations ``understudy.io/...`` of a pod: checked one by one, and every fault is named. Pure.

A wrong annotation rejects the pod. Otherwise the sidecar would start with other values than its owner wrote, and nobody
would notice before a failover.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter, ValidationError

from understudy.deploy.kubernetes.base.lenient_json import InjectionRefused
from understudy.deploy.kubernetes.base.names import (
    DOMAIN,
    HEALTH_PORT,
    INJECT,
    METRICS_PORT,
    PEER_PORT,
    POOL,
    REDIS_PORT,
    SESSION_API_PORT,
)
from understudy.statesync.pool.app_health import HEALTH_FORMS, AppHealth
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_parts import Name
from understudy.statesync.pool.spec_reader import parse_checks
from understudy.statesync.pool.spec_versions import VERSION_PATTERN

PREFIX = f"{DOMAIN}/"
INJECTED = f"{PREFIX}injected"
"""The injector's annotation on a pod that has its sidecar: what was added, and by which version."""
LOG_LEVELS = ("debug", "info", "warning", "error")
ZONE_LABEL = "topology.kubernetes.io/zone"
VERSION_LABEL = "version"
"""The pod label that tells the version of the application, as in Istio."""
TOPOLOGIES = {"zone": ZONE_LABEL, "region": "topology.kubernetes.io/region", "none": ""}
_QUANTITY = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
_POWERS = {unit: Decimal(1000) ** power for power, unit in enumerate(("", "k", "M", "G", "T", "P", "E"))} | {
    f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E")) if unit
}
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The parsed annotations of a pod; None and '' stand for missing ones."""

    pool: str
    app_port: int | str | None = None
    app_health: str = ""
    container: str = ""
    site: str = ""
    topology: str = "zone"
    weight: int | None = None
    priority: int | None = None
    app_version: str = ""
    checks: str = ""
    image: str = ""
    log_level: str = ""
    cpu_request: str = ""
    cpu_limit: str = ""
    memory_request: str = ""
    memory_limit: str = ""
    session_port: int = SESSION_API_PORT
    peer_port: int = PEER_PORT
    health_port: int = HEALTH_PORT
    metrics_port: int = METRICS_PORT
    redis_port: int = REDIS_PORT
    drain_seconds: float | None = None
    wait_for_handover: bool = True

    @property
    def ports(self) -> dict[str, int]:
        """The sidecar's own ports, with the annotation that sets each."""
        return {
            "session-port": self.session_port,
            "peer-port": self.peer_port,
            "health-port": self.health_port,
            "metrics-port": self.metrics_port,
            "redis-port": self.redis_port,
        }


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity such as ``250m`` or ``1.5Gi`` as a number. Raises ``ValueError``."""
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError("is not a quantity such as 100m or 256Mi")
    unit = match["unit"] or ""
    return Decimal(match["number"]) * (Decimal("0.001") if unit == "m" else _POWERS[unit])


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most and len(text) < 9):
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _port_or_name(text: str) -> int | str:
    if text.isdigit():
        return _whole(1, 65535)(text)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", text):
        raise ValueError("is neither a port number nor the name of a container's port")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 600:
        raise ValueError("is not a number of seconds from 0 to 600")
    return value


def _app_health(text: str) -> str:
    try:
        AppHealth.parse(text)
    except ValueError:
        raise ValueError(f"is not one of {HEALTH_FORMS}") from None
    return text


def _name(text: str) -> str:
    try:
        return _NAME.validate_python(text)
    except ValidationError:
        raise ValueError("is not a name: use 1 to 63 of a-z 0-9 . - and begin and end with a letter or digit") from None


def _version(text: str) -> str:
    if not re.fullmatch(VERSION_PATTERN, text):
        raise ValueError("is not a version: use 1 to 63 letters, digits and . _ -, as in the value of a label")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            raise ValueError(f"must be one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else ""))
        return text

    return parse


def _truth(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


def _quantity(text: str) -> str:
    quantity(text)
    return text


def _container(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("is not the name of a container")
    return text


def _image(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,500}", text):
        raise ValueError("is not an image reference")
    return text


def _checks(text: str) -> str:
    try:
        checks = parse_checks(text, where="")
    except SpecError as error:
        raise ValueError("; ".join(line.lstrip(": ") for line in str(error).splitlines())) from None
    if any(check.command for check in checks):
        raise ValueError("may only have http checks: a command would run in the sidecar's container, not in yours")
    return text


_ANNOTATIONS: Mapping[str, Callable[[str], Any]] = {
    "pool": _name,
    "app-port": _port_or_name,
    "app-health": _app_health,
    "container": _container,
    "site": _name,
    "topology": _one_of(*TOPOLOGIES),
    "weight": _whole(1, 1000),
    "priority": _whole(1, 1000),
    "app-version": _version,
    "checks": _checks,
    "image": _image,
    "log-level": _one_of(*LOG_LEVELS),
    "cpu-request": _quantity,
    "cpu-limit": _quantity,
    "memory-request": _quantity,
    "memory-limit": _quantity,
    "session-port": _whole(1024, 65535),
    "peer-port": _whole(1024, 65535),
    "health-port": _whole(1024, 65535),
    "metrics-port": _whole(1024, 65535),
    "redis-port": _whole(1024, 65535),
    "drain-seconds": _seconds,
    "wait-for-handover": _truth,
}


def read_annotations(annotations: Mapping[str, str], labels: Mapping[str, str]) -> Wishes:
    """The parsed annotations. The pool may also be a label. Raises :class:`InjectionRefused` with every fault."""
    ours = {name.removeprefix(PREFIX): text for name, text in annotations.items() if name.startswith(PREFIX)}
    ours.pop(INJECTED.removeprefix(PREFIX), None)
    faults, found = [], {}
    for name, text in ours.items():
        parse = _ANNOTATIONS.get(name)
        if parse is None:
            faults.append(f"annotation {PREFIX}{name} is unknown{_nearest(name)}")
            continue
        try:
            found[name.replace("-", "_")] = parse(text)
        except ValueError as error:
            faults.append(f"annotation {PREFIX}{name}: {text[:60]!r} {error}")
    _read_pool(found, ours, labels, faults)
    if "app-version" not in ours and labels.get(VERSION_LABEL):
        found["app_version"] = labels[VERSION_LABEL]
    if faults:
        raise InjectionRefused(*faults)
    wishes = Wishes(**found)
    faults = [*_swapped(wishes), *_doubled(wishes)]
    if faults:
        raise InjectionRefused(*faults)
    return wishes


def _read_pool(found: dict[str, Any], ours: Mapping[str, str], labels: Mapping[str, str], faults: list[str]) -> None:
    label = labels.get(POOL, "")
    if "pool" not in ours and not label:
        faults.append(f"annotation {POOL} is missing: name the pool that this pod belongs to")
    elif "pool" not in ours:
        try:
            found["pool"] = _name(label)
        except ValueError as error:
            faults.append(f"label {POOL}: {label[:60]!r} {error}")
    elif label and label != ours["pool"]:
        faults.append(f"label {POOL} says {label[:60]!r} and the annotation {ours['pool'][:60]!r}: keep one of them")


def _swapped(wishes: Wishes) -> list[str]:
    """Faults: requests above their limits."""
    return [
        f"annotation {PREFIX}{kind}-request: {request} is above {PREFIX}{kind}-limit, {limit}"
        for kind, request, limit in (
            ("cpu", wishes.cpu_request, wishes.cpu_limit),
            ("memory", wishes.memory_request, wishes.memory_limit),
        )
        if request and limit and quantity(request) > quantity(limit)
    ]


def _doubled(wishes: Wishes) -> list[str]:
    """Faults: two of the sidecar's ports with the same number."""
    seen: dict[int, str] = {}
    faults = []
    for name, port in wishes.ports.items():
        if port in seen:
            faults.append(f"annotation {PREFIX}{name}: {port} is already used for the sidecar's {seen[port]}")
        seen[port] = name
    return faults


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, _ANNOTATIONS, n=1)
    if near:
        return f"; did you mean {PREFIX}{near[0]}?"
    if name == INJECT.removeprefix(PREFIX):
        return f"; {INJECT} is a label"
    return f"; there are {', '.join(sorted(_ANNOTATIONS))}"
