"""Reads the consistent hash of Envoy Gateway's BackendTrafficPolicy. Pure.

``spec.loadBalancer.consistentHash`` has the types SourceIP, Header (deprecated), Headers, Cookie and QueryParams
(gateway.envoyproxy.io, API reference of v1alpha1). Envoy makes a missing cookie only if the policy has a ``ttl``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from understudy.deploy.importing import gateway_api, keys
from understudy.deploy.importing.findings import Finding, Remark, Target
from understudy.deploy.importing.kube_objects import Field, KubeObject, single

GROUP = "gateway.envoyproxy.io"
_OUR_ATTRIBUTES = {("path", "/"), ("httponly", "true"), ("httponly", ""), ("samesite", "lax")}


def is_policy(one: KubeObject) -> bool:
    """Whether this is a BackendTrafficPolicy of Envoy Gateway."""
    return (one.kind, one.group) == ("BackendTrafficPolicy", GROUP)


def read_policy(one: KubeObject, objects: Sequence[KubeObject]) -> list[Finding]:
    """What a policy means for each Service behind its targets in ``objects``; empty without a consistent hash."""
    balancer = one.body.at("spec", "loadBalancer")
    if balancer.at("endpointOverride"):
        return [Finding(one.place, None, remarks=(_override(balancer),))]
    if balancer.at("type").text() != "ConsistentHash":
        return []
    found = [
        Finding(one.place, target, *_outcome(one, balancer, kind, unsure), _spec(one, balancer, kind))
        for target, kind, unsure in dict.fromkeys(_applications(one, objects))
    ]
    return found or [Finding(one.place, None, remarks=(_no_target(),))]


def _outcome(policy: KubeObject, balancer: Field, kind: str, unsure: str) -> keys.Outcome:
    key, remarks = _key(policy, balancer.at("consistentHash"), tcp=kind in gateway_api.STREAM_ROUTES)
    if key is not None and unsure:
        remarks = (*remarks, _named_after(unsure))
    return key, remarks


def _key(policy: KubeObject, hashed: Field, *, tcp: bool) -> keys.Outcome:
    kind, setting = hashed.at("type").text(), hashed.at("type").setting()
    table = (keys.hash_table(hashed.at("tableSize").setting()),) if hashed.at("tableSize") else ()
    if kind == "SourceIP":
        key, remarks = keys.source_address(setting, tcp=tcp, send_proxy_protocol=_proxy_protocol(policy))[0]
    elif kind in ("Header", "Headers"):
        key, remarks = _header(setting, [hashed.at("header"), *hashed.at("headers").entries()])
    elif kind == "Cookie":
        key, remarks = _cookie(hashed.at("cookie"))
    elif kind == "QueryParams":
        names = [one.at("name").text() for one in hashed.at("queryParams").entries()]
        key, remarks = keys.query_parameter(setting, ", ".join(names) or "of the policy")
    else:
        key, remarks = keys.no_key(setting, f"A hash of the type {kind!r}")
    return key, (*remarks, *table)


def _header(setting: str, headers: Sequence[Field]) -> keys.Outcome:
    named = [header.at("name") for header in headers if header.at("name").text()]
    if len(named) == 1:
        return keys.header_key(named[0].setting(), named[0].text())
    names = ", ".join(name.text() for name in named) or "none"
    return keys.no_key(setting, f"A hash over several headers ({names})")


def _cookie(cookie: Field) -> keys.Outcome:
    name = cookie.at("name")
    make = keys.generated_key if cookie.at("ttl") else keys.cookie_key
    key, remarks = make(name.setting(), name.text())
    lifetime = (keys.lifetime(cookie.at("ttl").setting()),) if cookie.at("ttl") else ()
    return key, (*remarks, *lifetime, *_attributes(cookie.at("attributes")))


def _attributes(attributes: Field) -> Iterator[Remark]:
    for name in attributes.names():
        field = attributes.at(name)
        if (name.lower(), field.scalar().lower()) not in _OUR_ATTRIBUTES:
            yield keys.cookie_attribute(field.setting())


def _spec(policy: KubeObject, balancer: Field, kind: str) -> Mapping[str, Any]:
    if kind not in gateway_api.STREAM_ROUTES:
        return gateway_api.protocol_of(kind)
    by_address = balancer.at("consistentHash", "type").text() == "SourceIP"
    return keys.source_address("", tcp=True, send_proxy_protocol=_proxy_protocol(policy))[1] if by_address else {}


def _proxy_protocol(policy: KubeObject) -> str:
    """How the policy tells backends the client's address: v1, v2 or none."""
    version = policy.body.at("spec", "proxyProtocol", "version").text().lower()
    return version if version in ("v1", "v2") else "none"


def _applications(policy: KubeObject, objects: Sequence[KubeObject]) -> Iterator[tuple[Target, str, str]]:
    """Each application that the policy is for, the kind of its route, and what it is named after if unsure."""
    routes = list(gateway_api.matching(policy, objects))
    for reference in gateway_api.targets(policy):
        kind, name = reference.at("kind").text(), reference.at("name").text()
        found = single(objects, kind, policy.namespace, name)
        if kind == "Gateway":
            routes += [one for one in objects if one.kind in _ROUTES and _attached(one, name, policy.namespace)]
        elif found is not None:
            routes.append(found)
        elif name and kind in _ROUTES:
            yield Target(name, policy.namespace), kind, f"the {kind} {name}"
    for route in routes:
        for service in gateway_api.services_of(route):
            yield service, route.kind, ""


_ROUTES = (*gateway_api.ROUTES, *gateway_api.STREAM_ROUTES)


def _attached(route: KubeObject, gateway: str, namespace: str) -> bool:
    return any(
        parent.at("name").text() == gateway and (parent.at("namespace").text() or route.namespace) == namespace
        for parent in route.body.at("spec", "parentRefs").entries()
    )


def _named_after(what: str) -> Remark:
    reason = f"The input does not have {what}, so the Services behind it are unknown. The pool has its name."
    return Remark("check", "spec.targetRefs", reason, "Import the route too, or give the pool the application's name.")


def _no_target() -> Remark:
    reason = "The input has no route that this policy is attached to, so there is no application for a pool."
    return Remark("lost", "spec.targetRefs", reason, "Import the routes too: kubectl get httproutes,grpcroutes -A.")


def _override(balancer: Field) -> Remark:
    return Remark(
        "lost",
        balancer.at("endpointOverride").path,
        "Clients or filters choose the server by its address. In a pool the slot of the session key does.",
        "Write a session_key, such as a header with the session's id, and remove the header with addresses.",
    )
