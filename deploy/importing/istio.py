"""Reads Istio's DestinationRules with a consistent hash, and Services with labels for persistent sessions. Pure.

``ConsistentHashLB``: istio.io/latest/docs/reference/config/networking/destination-rule. A missing cookie is made only
if ``httpCookie`` has a ``ttl``. Settings of a port or a subset replace those of the whole host. The labels
``istio.io/persistent-session: COOKIE[:PATH]`` and ``istio.io/persistent-session-header: HEADER`` work where istiod has
``PILOT_ENABLE_PERSISTENT_SESSION_FILTER``; the cookie counts if both are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from understudy.deploy.importing import keys
from understudy.deploy.importing.findings import Finding, Remark, Target
from understudy.deploy.importing.kube_objects import Field, KubeObject

GROUP = "networking.istio.io"
COOKIE_LABEL = "istio.io/persistent-session"
HEADER_LABEL = "istio.io/persistent-session-header"
_PROXY = "Istio"
_SVC = "svc"


def is_rule(one: KubeObject) -> bool:
    """Whether this is a DestinationRule."""
    return (one.kind, one.group) == ("DestinationRule", GROUP)


def is_service(one: KubeObject) -> bool:
    """Whether this is a Service of Kubernetes."""
    return (one.kind, one.group) == ("Service", "")


def read_rule(one: KubeObject, objects: Sequence[KubeObject]) -> list[Finding]:
    """What a DestinationRule means for its host; empty without a consistent hash."""
    spec = one.body.at("spec")
    whole = spec.at("trafficPolicy")
    subsets = spec.at("subsets").entries()
    parts = [("", whole), *_ports("", whole)]
    for subset in subsets:
        name = subset.at("name").text()
        parts += [(name, subset.at("trafficPolicy")), *_ports(name, subset.at("trafficPolicy"))]
    hashed = [(part, policy) for part, policy in parts if policy.at("loadBalancer", "consistentHash")]
    if not hashed:
        return []
    target = _application(spec.at("host").text(), one.namespace)
    if target is None:
        return [Finding(one.place, None, remarks=(_any_host(spec.at("host")),))]
    tcp = _speaks_tcp(target, objects)
    found = [_finding(one, replace(target, part=part), policy, tcp=tcp) for part, policy in hashed]
    if subsets and hashed[0][0] == "":
        found[0] = replace(found[0], remarks=(*found[0].remarks, _subsets(spec.at("subsets"))))
    return found


def read_service(one: KubeObject) -> list[Finding]:
    """What the labels and the ``sessionAffinity`` of a Service mean; empty without any."""
    target = Target(one.name, one.namespace)
    cookie, header = one.labels().at(COOKIE_LABEL), one.labels().at(HEADER_LABEL)
    found = []
    if cookie.scalar():
        name, _, path = cookie.scalar().partition(":")
        key, remarks = keys.server_cookie_key(_label(cookie), _PROXY, name)
        extra = (keys.cookie_attribute(_label(cookie)),) if path not in ("", "/") else ()
        found.append(Finding(one.place, target, key, (*remarks, *extra)))
    elif header.scalar():
        found.append(Finding(one.place, target, *keys.server_header(_label(header), _PROXY, header.scalar())))
    affinity = one.body.at("spec", "sessionAffinity")
    if affinity.text() == "ClientIP":
        (key, remarks), spec = keys.source_address(affinity.setting(), tcp=_has_tcp_ports(one))
        timeout = one.body.at("spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds")
        extra = (keys.lifetime(timeout.setting()),) if timeout and key is not None else ()
        found.append(Finding(one.place, target, key, (*remarks, *extra), spec))
    return found


def _ports(part: str, policy: Field) -> Iterator[tuple[str, Field]]:
    for settings in policy.at("portLevelSettings").entries():
        number = settings.at("port", "number").scalar()
        yield "-".join(filter(None, (part, number or "port"))), settings


def _finding(one: KubeObject, target: Target, policy: Field, *, tcp: bool) -> Finding:
    balancer = policy.at("loadBalancer")
    spec: dict[str, Any] = {}
    hashed = balancer.at("consistentHash")
    if hashed.at("useSourceIp").is_true():
        (key, remarks), spec = keys.source_address(hashed.at("useSourceIp").setting(), tcp=tcp)
    else:
        key, remarks = _key(hashed)
    sizes = [
        hashed.at("minimumRingSize"),
        hashed.at("ringHash", "minimumRingSize"),
        hashed.at("maglev", "tableSize"),
    ]
    tables = (keys.hash_table(size.setting()) for size in sizes if size)
    places = balancer.at("localityLbSetting")
    sites = (_locality(places),) if places and key is not None else ()
    return Finding(one.place, target, key, (*remarks, *tables, *sites), spec)


def _key(hashed: Field) -> keys.Outcome:
    header, cookie, query = hashed.at("httpHeaderName"), hashed.at("httpCookie"), hashed.at("httpQueryParameterName")
    if header:
        return keys.header_key(header.setting(), header.text())
    if query:
        return keys.query_parameter(query.setting(), query.text())
    if not cookie:
        return keys.no_key(hashed.path, "A consistent hash without a known kind of key")
    name, ttl, path = cookie.at("name"), cookie.at("ttl"), cookie.at("path")
    if not ttl:
        return keys.cookie_key(name.setting(), name.text())
    key, remarks = keys.generated_key(name.setting(), name.text())
    if ttl.scalar() not in ("0s", "0"):
        remarks = (*remarks, keys.lifetime(ttl.setting()))
    return key, (*remarks, *((keys.cookie_attribute(path.setting()),) if path.text() not in ("", "/") else ()))


def _application(host: str, namespace: str) -> Target | None:
    """The Service of a host: a short name, or a full one of the cluster; another host has its own name."""
    if not host or "*" in host:
        return None
    name, *rest = host.split(".")
    if not rest:
        return Target(name, namespace)
    return Target(name, rest[0]) if rest[1:2] == [_SVC] else Target(host)


def _speaks_tcp(target: Target, objects: Sequence[KubeObject]) -> bool:
    services = (one for one in objects if is_service(one) and one.name == target.name)
    return any(_has_tcp_ports(one) for one in services if one.namespace in ("", target.namespace))


def _has_tcp_ports(service: KubeObject) -> bool:
    """Whether all ports of a Service say by name or ``appProtocol`` that they are TCP and not HTTP."""
    ports = service.body.at("spec", "ports").entries()
    said = [port.at("appProtocol").text() or port.at("name").text().partition("-")[0] for port in ports]
    return bool(said) and all(one in ("tcp", "tls", "mysql", "mongo", "redis", "postgres") for one in said)


def _label(field: Field) -> str:
    return field.setting().removeprefix("metadata.labels.")


def _any_host(host: Field) -> Remark:
    reason = "The rule is for many hosts or for none, and a pool is one application."
    return Remark("lost", host.setting(), reason, "Write a rule for each host, and import again.")


def _subsets(field: Field) -> Remark:
    return Remark(
        "lost",
        field.path,
        "Subsets split an application, and all members of a pool get slots.",
        keys.BY_VERSION,
    )


def _locality(field: Field) -> Remark:
    return Remark(
        "changed",
        field.path,
        "A slot has one active, wherever its clients are; with 'sites' in the spec, new sessions can begin on theirs.",
        "Start sidecars with --site and --zone, so that a slot's copies are not all in one zone (docs/sites.md).",
    )
