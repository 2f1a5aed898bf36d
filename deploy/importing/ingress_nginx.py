"""Reads the affinity annotations of ingress-nginx. Pure.

Names and defaults: kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations. Where an Ingress has
both, ``affinity: cookie`` counts and ``upstream-hash-by`` does not (ingress-nginx's ``balancer.lua``).
"""

import re
from collections.abc import Iterator, Sequence

from understudy.deploy.importing import keys
from understudy.deploy.importing.findings import Finding, Remark, Target
from understudy.deploy.importing.kube_objects import Field, KubeObject

PREFIX = "nginx.ingress.kubernetes.io/"
_GROUPS = ("networking.k8s.io", "extensions")
_PROXY = "ingress-nginx"
_DEFAULT_COOKIE = "INGRESSCOOKIE"
_LIFETIMES = ("session-cookie-expires", "session-cookie-max-age")
_ATTRIBUTES = (
    "session-cookie-path",
    "session-cookie-domain",
    "session-cookie-samesite",
    "session-cookie-secure",
    "session-cookie-conditional-samesite-none",
)
_NOT_NEEDED = {
    "affinity-mode": "Slots move only when members change, and only as many as must.",
    "session-cookie-change-on-failure": "When a member fails, its slots move to their standby; the cookie stays.",
    "session-cookie-hash": "Envoy hashes the cookie's value by xxHash.",
}
_ONE_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_ADDRESSES = ("remote_addr", "binary_remote_addr", "realip_remote_addr")


def is_ingress(one: KubeObject) -> bool:
    """Whether this is an Ingress."""
    return one.kind == "Ingress" and one.group in _GROUPS


def read_ingress(one: KubeObject) -> list[Finding]:
    """What the annotations of an Ingress mean for each Service that it leads to; empty without such annotations."""
    notes = one.annotations()
    given = {name.removeprefix(PREFIX): notes.at(name) for name in notes.names() if name.startswith(PREFIX)}
    if not any(name.startswith(("affinity", "session-cookie-", "upstream-hash-by")) for name in given):
        return []
    if given.get("canary", notes.at("")).scalar() == "true":
        return [Finding(one.place, None, remarks=(_canary(given["canary"]),))]
    services = list(dict.fromkeys(_services(one)))
    if not services:
        return [Finding(one.place, None, remarks=(_NO_SERVICE,))]
    key, remarks = _key(given)
    if key is not None:
        remarks = (*remarks, *_backend_protocol(given))
    spec = {"protocol": "http2"} if key is not None and _protocol(given) in ("GRPC", "GRPCS") else {}
    return [Finding(one.place, Target(service, one.namespace), key, remarks, spec) for service in services]


def _key(given: dict[str, Field]) -> keys.Outcome:
    affinity, hashed = given.get("affinity"), given.get("upstream-hash-by")
    if affinity and affinity.scalar() == "cookie":
        name = given["session-cookie-name"].scalar() if "session-cookie-name" in given else ""
        key, remarks = keys.server_cookie_key(_said(affinity), _PROXY, name or _DEFAULT_COOKIE)
        unused = [_ignored(hashed, "affinity: cookie")] if hashed else []
        return key, (*remarks, *_details(given), *unused)
    if affinity and affinity.scalar():
        reason = f"{_PROXY} knows no other affinity than 'cookie', so it ignores this one."
        return None, (Remark("lost", _said(affinity), reason, "Say 'cookie', and import again."),)
    if hashed and hashed.scalar():
        key, remarks = _hashed(hashed)
        subset = (keys.hash_table(_said(field)) for name, field in given.items() if name.startswith(_SUBSET))
        return key, (*remarks, *subset)
    reason = f"Without 'affinity: cookie' or 'upstream-hash-by', {_PROXY} ignores this annotation."
    named = next(field for name, field in given.items() if name.startswith(("affinity", "session-", "upstream-hash")))
    return None, (Remark("lost", _said(named), reason, "Nothing to do, or say which affinity is meant."),)


_SUBSET = "upstream-hash-by-subset"


def _details(given: dict[str, Field]) -> Iterator[Remark]:
    """Remarks on the annotations beside ``affinity: cookie``."""
    for name, field in given.items():
        if name in _LIFETIMES:
            yield keys.lifetime(_said(field))
        elif name in _ATTRIBUTES and not _is_ours(name, field.scalar()):
            yield keys.cookie_attribute(_said(field))
        elif name in _NOT_NEEDED and field.scalar() != "false":
            yield Remark("changed", _said(field), _NOT_NEEDED[name], "Nothing to do.")
        elif name == "affinity-canary-behavior":
            yield _canary(field)


def _is_ours(name: str, value: str) -> bool:
    """Whether Envoy's cookie has this attribute anyway."""
    return (name, value.lower()) in {("session-cookie-path", "/"), ("session-cookie-samesite", "lax")} or (
        value == "false"
    )


def _hashed(field: Field) -> keys.Outcome:
    """The key in ``upstream-hash-by``: one nginx variable, or a text of several."""
    setting, value = _said(field), field.scalar().strip()
    found = _ONE_VARIABLE.fullmatch(value)
    variable = (found[1] or found[2]) if found else ""
    kind, _, name = variable.partition("_")
    if kind == "http" and name:
        return keys.header_key(setting, name.replace("_", "-"))
    if kind == "cookie" and name:
        return keys.cookie_key(setting, name)
    if kind == "arg" and name:
        return keys.query_parameter(setting, name)
    if variable in _ADDRESSES:
        return keys.source_address(setting, tcp=False)[0]
    return keys.no_key(setting, f"The nginx text {value!r}" if not variable else f"The nginx variable ${variable}")


def _services(one: KubeObject) -> Iterator[str]:
    spec = one.body.at("spec")
    backends = [spec.at("defaultBackend"), spec.at("backend")]
    for rule in spec.at("rules").entries():
        backends += [path.at("backend") for path in rule.at("http", "paths").entries()]
    for backend in backends:
        yield from filter(None, (backend.at("service", "name").text(), backend.at("serviceName").text()))


def _protocol(given: dict[str, Field]) -> str:
    return given["backend-protocol"].scalar().upper() if "backend-protocol" in given else ""


def _backend_protocol(given: dict[str, Field]) -> Sequence[Remark]:
    if _protocol(given) not in ("HTTPS", "GRPCS"):
        return ()
    reason = "Front Envoys speak to applications without TLS."
    remedy = "Let the application listen without TLS at an address that only its pod and front Envoys reach."
    return (Remark("lost", _said(given["backend-protocol"]), reason, remedy),)


def _canary(field: Field) -> Remark:
    reason = "A pool sends no share of its requests to another application: all new sessions begin on one version."
    return Remark("lost", _said(field), reason, keys.BY_VERSION)


def _ignored(field: Field, because: str) -> Remark:
    reason = f"{_PROXY} ignores it beside {because}, and so does the pool."
    return Remark("check", _said(field), reason, "Nothing to do, or put this key into session_key instead.")


def _said(field: Field) -> str:
    """The annotation as people write it, without the prefix."""
    return field.setting().removeprefix("metadata.annotations.").removeprefix(PREFIX)


_NO_SERVICE = Remark(
    "lost",
    "affinity",
    "The Ingress leads to no Service, so there is no application for a pool.",
    "Import the Ingress that names the Service, or write the pool by hand.",
)
