"""What the cluster must know about the injector: webhook configuration, permissions, command line. Pure.

``understudy render kubernetes`` puts these into manifests, and the injector itself looks for the objects named here.
"""

from dataclasses import dataclass

from understudy.deploy.kubernetes.base.injection_settings import CLASSIC, InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import Body
from understudy.deploy.kubernetes.base.names import (
    INJECT,
    INJECTION,
    INJECTOR,
    INJECTOR_METRICS_PORT,
    INJECTOR_NAME,
    INJECTOR_PORT,
    NAMESPACE_NAME,
    labels,
)

PATH = "/mutate"
WEBHOOK = "sidecar.understudy.io"
TIMEOUT = 5
"""Seconds that an API server waits for a review."""
CERTIFICATES = "understudy-injector-certificates"
CERT_DIRECTORY = "/var/run/understudy"
CERT_MANAGER = "cert-manager.io/inject-ca-from"


@dataclass(frozen=True, slots=True)
class InjectorPlace:
    """The injector's objects in the cluster.

    ``name`` is the name of its Service and its MutatingWebhookConfiguration. ``secret`` holds the certificates that it
    makes itself. It is '' if cert-manager makes them (``inject_ca_from``: its Certificate, ``namespace/name``).
    """

    namespace: str
    name: str = INJECTOR_NAME
    secret: str = CERTIFICATES
    service_port: int = 443
    inject_ca_from: str = ""

    @property
    def host(self) -> str:
        """The DNS name that API servers use; the certificate must have it."""
        return f"{self.name}.{self.namespace}.svc"


def webhook_configuration(place: InjectorPlace, settings: InjectionSettings, *, ca_bundle: str = "") -> Body:
    """The MutatingWebhookConfiguration. ``ca_bundle`` is base64 of PEM, '' if something else fills it in later.

    ``failurePolicy: Fail``: this affects only pods that ask for a sidecar. Without its sidecar such a pod would
    run without its sessions, and nobody would notice. Its controller repeats the request until it is admitted.
    """
    annotations = {CERT_MANAGER: place.inject_ca_from} if place.inject_ca_from else {}
    client: Body = {
        "service": {"namespace": place.namespace, "name": place.name, "path": PATH, "port": place.service_port},
        **({"caBundle": ca_bundle} if ca_bundle else {}),
    }
    excluded = sorted(settings.excluding(place.namespace).excluded_namespaces)
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": place.name,
            "labels": labels(INJECTOR),
            **({"annotations": annotations} if annotations else {}),
        },
        "webhooks": [
            {
                "name": WEBHOOK,
                "clientConfig": client,
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                        "scope": "Namespaced",
                    }
                ],
                "namespaceSelector": {
                    "matchLabels": {INJECTION: "enabled"},
                    "matchExpressions": [{"key": NAMESPACE_NAME, "operator": "NotIn", "values": excluded}],
                },
                "objectSelector": {"matchLabels": {INJECT: "true"}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "reinvocationPolicy": "IfNeeded",
                "matchPolicy": "Equivalent",
                "failurePolicy": "Fail",
                "timeoutSeconds": TIMEOUT,
            }
        ],
    }


def injector_role(place: InjectorPlace) -> list[Body]:
    """Rules of the injector's Role: read and change its one Secret. Empty if it makes no certificates."""
    if not place.secret:
        return []
    return [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [place.secret], "verbs": ["get", "update"]}]


def injector_cluster_role(place: InjectorPlace) -> list[Body]:
    """Rules of its ClusterRole: read and change its webhook configuration, for the caBundle. Empty without a Secret."""
    if not place.secret:
        return []
    return [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [place.name],
            "verbs": ["get", "update"],
        }
    ]


def injector_arguments(place: InjectorPlace, settings: InjectionSettings) -> tuple[str, ...]:
    """The arguments of the injector's container after ``understudy``; etcd may be a ``$(VARIABLE)``."""
    options = {
        "--listen": f"0.0.0.0:{INJECTOR_PORT}",
        "--metrics": f"0.0.0.0:{INJECTOR_METRICS_PORT}",
        "--cert-dir": "" if place.secret else CERT_DIRECTORY,
        "--namespace": place.namespace,
        "--service": place.name,
        "--certificates-secret": place.secret,
        "--sidecar-image": settings.image,
        "--etcd": ",".join(settings.etcd),
        "--form": CLASSIC if settings.form == CLASSIC else "",
        "--peer-certificates": settings.peer_certificates.told() if settings.peer_certificates else "",
        "--etcd-tls-secret": settings.etcd_tls_secret,
        "--etcd-login-secret": settings.etcd_login_secret,
        "--session-keys-secret": settings.session_keys_secret,
    }
    given = tuple(part for option, value in options.items() if value for part in (option, value))
    flags = {"--self-signed": bool(place.secret), "--etcd-client-certificate": settings.etcd_client_certificate}
    return ("injector", *given, *(flag for flag, wanted in flags.items() if wanted))
