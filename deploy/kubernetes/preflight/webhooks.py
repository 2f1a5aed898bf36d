"""Checks the admission webhook: is its certificate trusted and valid, and can it block its own start? Pure."""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.names import INJECTION, INJECTOR_NAME, NAMESPACE_NAME
from understudy.deploy.kubernetes.preflight.findings import Finding, judged
from understudy.deploy.kubernetes.preflight.lint_reach import matches
from understudy.deploy.kubernetes.preflight.manifest_index import namespace_of, where
from understudy.deploy.kubernetes.webhook.configuration import CERT_MANAGER

AREA = "manifests"


def webhook_findings(objects: Sequence[Body], now: datetime) -> Iterator[Finding]:
    """Findings about our webhook configuration, if it is among the objects. ``now`` decides about certificates."""
    for body in objects:
        if body["kind"] == "MutatingWebhookConfiguration" and body["metadata"]["name"] == INJECTOR_NAME:
            for hook in body.get("webhooks") or ():
                yield from judged(
                    AREA, "the webhook blocks nothing that it needs itself", _harm(body, hook, objects), "render again"
                )
                yield from judged(
                    AREA, "the webhook is trusted", _trust(body, hook, objects, now), "see docs/injection.md"
                )


def _harm(body: Body, hook: Mapping[str, Any], objects: Sequence[Body]) -> Iterator[str]:
    name = f"{where(body)}, {hook['name']}"
    if hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
        yield f"{name}: sideEffects must be None, otherwise dry runs are rejected"
    if hook.get("timeoutSeconds", 10) > 5:
        yield f"{name}: timeoutSeconds is {hook.get('timeoutSeconds', 10)}: if it hangs, each pod waits that long"
    service = (hook.get("clientConfig") or {}).get("service") or {}
    spaces = {
        one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in objects if one["kind"] == "Namespace"
    }
    for space in {service.get("namespace", ""), "kube-system"} - {""}:
        # If somebody sets the label there by mistake, its own pods could not start without it.
        labels = {**spaces.get(space, {}), NAMESPACE_NAME: space, INJECTION: "enabled"}
        if matches(hook.get("namespaceSelector") or {}, labels):
            yield f"{name}: it also handles pods of {space}: while it is down, nobody can repair {space}"


def _trust(body: Body, hook: Mapping[str, Any], objects: Sequence[Body], now: datetime) -> Iterator[str]:
    bundle = (hook.get("clientConfig") or {}).get("caBundle")
    if not bundle:
        if CERT_MANAGER not in (body["metadata"].get("annotations") or {}) and not _kept_up(body, objects):
            yield (
                f"{where(body)}, {hook['name']}: caBundle is empty, and nothing would fill it in: there is "
                "neither cert-manager's annotation nor a ClusterRole that lets the injector update it"
            )
        return
    yield from bundle_faults(bundle, f"{where(body)}, {hook['name']}", now)
    service = (hook.get("clientConfig") or {}).get("service") or {}
    for secret in objects:
        if secret["kind"] == "Secret" and namespace_of(secret) == service.get("namespace"):
            yield from chain_faults(bundle, secret)


def _kept_up(body: Body, objects: Sequence[Body]) -> bool:
    return any(
        "mutatingwebhookconfigurations" in (rule.get("resources") or ())
        and "update" in (rule.get("verbs") or ())
        and body["metadata"]["name"] in (rule.get("resourceNames") or (body["metadata"]["name"],))
        for one in objects
        if one["kind"] == "ClusterRole"
        for rule in one.get("rules") or ()
    )


def bundle_faults(bundle: str, name: str, now: datetime) -> Iterator[str]:
    """What is wrong with a ``caBundle`` (base64 of PEM). Expiry is checked if 'cryptography' is installed."""
    try:
        pem = base64.b64decode(bundle, validate=True)
    except (binascii.Error, ValueError):
        yield f"{name}: caBundle is not base64"
        return
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        yield f"{name}: caBundle holds no certificate"
        return
    try:
        from cryptography import x509
    except ImportError:
        return
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        yield f"{name}: caBundle cannot be read: {error}"
        return
    best = max(one.not_valid_after_utc for one in certificates)
    if best <= now:
        yield f"{name}: the CA certificate expired on {best:%Y-%m-%d}"


def chain_faults(bundle: str, secret: Body) -> Iterator[str]:
    """A fault if no CA of the bundle signed the serving certificate (``tls.crt``) of a Secret."""
    data = secret.get("data") or {}
    if "tls.crt" not in data:
        return
    try:
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature
    except ImportError:
        return
    try:
        authorities = x509.load_pem_x509_certificates(base64.b64decode(bundle))
        own = x509.load_pem_x509_certificates(base64.b64decode(data["tls.crt"]))[0]
    except (ValueError, IndexError) as error:
        yield f"{where(secret)}: tls.crt cannot be read: {error}"
        return
    for authority in authorities:
        try:
            own.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    yield f"{where(secret)}: its certificate is not signed by a CA in the webhook's caBundle"
