"""Reads session persistence of the Gateway API: in routes, in BackendLBPolicy and in XBackendTrafficPolicy. Pure.

GEP-1619 describes ``sessionPersistence``: a gateway hands out a cookie, or a header, by which it finds the backend of
an earlier request. ``BackendLBPolicy`` was of ``gateway.networking.k8s.io/v1alpha2``; its place was taken by
``XBackendTrafficPolicy`` of ``gateway.networking.x-k8s.io/v1alpha1``.
"""

from collections.abc import Iterator, Sequence

from understudy.deploy.importing import keys
from understudy.deploy.importing.findings import Finding, Remark, Target
from understudy.deploy.importing.kube_objects import Field, KubeObject

GROUP = "gateway.networking.k8s.io"
ROUTES = ("HTTPRoute", "GRPCRoute")
STREAM_ROUTES = ("TCPRoute", "TLSRoute")
_POLICIES = {("BackendLBPolicy", GROUP), ("XBackendTrafficPolicy", "gateway.networking.x-k8s.io")}
_PROXY = "the gateway"


def is_route(one: KubeObject) -> bool:
    """Whether this is a route of HTTP or gRPC."""
    return one.group == GROUP and one.kind in ROUTES


def is_policy(one: KubeObject) -> bool:
    """Whether this is a policy that can have session persistence."""
    return (one.kind, one.group) in _POLICIES


def read_route(one: KubeObject) -> list[Finding]:
    """What the rules of a route mean for each Service that they lead to; empty without session persistence."""
    found: list[Finding] = []
    for rule in one.body.at("spec", "rules").entries():
        session = rule.at("sessionPersistence")
        if not session:
            continue
        key, remarks = _persistence(session)
        services = services_of_rule(one, rule)
        if len(services) > 1 and key is not None:
            remarks = (*remarks, _split(rule))
        if not services:
            found.append(Finding(one.place, None, remarks=(_no_service(session),)))
        found += [Finding(one.place, service, key, remarks, protocol_of(one.kind)) for service in services]
    return found


def read_policy(one: KubeObject) -> list[Finding]:
    """What a policy means for each Service that it is attached to; empty without session persistence."""
    session = one.body.at("spec", "sessionPersistence")
    if not session:
        return []
    key, remarks = _persistence(session)
    services = [
        Target(target.at("name").text(), one.namespace)
        for target in targets(one)
        if target.at("kind").text() == "Service" and target.at("name").text()
    ]
    if not services:
        return [Finding(one.place, None, remarks=(_no_service(session),))]
    return [Finding(one.place, service, key, remarks) for service in services]


def targets(policy: KubeObject) -> list[Field]:
    """The references of a policy to what it is attached to."""
    spec = policy.body.at("spec")
    one = spec.at("targetRef")
    return [*spec.at("targetRefs").entries(), *([one] if one else [])]


def services_of_rule(route: KubeObject, rule: Field) -> list[Target]:
    """The Services that a rule of a route leads to."""
    found = []
    for backend in rule.at("backendRefs").entries():
        name, kind = backend.at("name").text(), backend.at("kind").text()
        if name and kind in ("", "Service"):
            found.append(Target(name, backend.at("namespace").text() or route.namespace))
    return list(dict.fromkeys(found))


def services_of(route: KubeObject) -> list[Target]:
    """The Services that a route leads to."""
    rules = route.body.at("spec", "rules").entries()
    return list(dict.fromkeys(service for rule in rules for service in services_of_rule(route, rule)))


def protocol_of(kind: str) -> dict[str, str]:
    """The protocol of the application behind a route of this kind, as a key of the spec; empty for HTTP/1.1."""
    return {"protocol": "http2"} if kind == "GRPCRoute" else {}


def _persistence(session: Field) -> keys.Outcome:
    name, kind = session.at("sessionName").text(), session.at("type").text() or "Cookie"
    setting = session.at("sessionName").setting() if name else f"{session.path}.type: {kind}"
    if kind == "Header":
        key, remarks = keys.server_header(setting, _PROXY, name or "that it chooses")
    elif kind == "Cookie":
        key, remarks = keys.server_cookie_key(setting, _PROXY, name or "that it chooses")
    else:
        key, remarks = keys.no_key(session.at("type").setting(), f"Session persistence of the type {kind!r}")
    return key, (*remarks, *_lifetimes(session))


def _lifetimes(session: Field) -> Iterator[Remark]:
    for name in ("absoluteTimeout", "idleTimeout"):
        if session.at(name):
            yield keys.lifetime(session.at(name).setting())
    lasting = session.at("cookieConfig", "lifetimeType")
    if lasting.text() == "Permanent":
        yield keys.lifetime(lasting.setting())


def _split(rule: Field) -> Remark:
    return Remark(
        "lost",
        f"{rule.path}.backendRefs",
        "The rule splits its requests between several Services, and a pool is one application.",
        f"Each Service has a pool file. {keys.BY_VERSION}",
    )


def _no_service(field: Field) -> Remark:
    reason = "It leads to no Service, so there is no application for a pool."
    return Remark("lost", field.path, reason, "Import what names the Service, or write the pool by hand.")


def matching(policy: KubeObject, objects: Sequence[KubeObject]) -> Iterator[KubeObject]:
    """The objects of the same namespace that the ``targetSelectors`` of a policy choose by ``matchLabels``."""
    for selector in policy.body.at("spec", "targetSelectors").entries():
        wanted = selector.at("matchLabels")
        labels = {name: wanted.at(name).scalar() for name in wanted.names()}
        for one in objects:
            if one.kind != selector.at("kind").text() or one.namespace != policy.namespace or not labels:
                continue
            if all(one.labels().at(name).scalar() == value for name, value in labels.items()):
                yield one
