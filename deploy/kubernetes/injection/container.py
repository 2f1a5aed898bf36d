"""The sidecar's container for one pod, and the volumes that it needs. Pure.

Its arguments are those of ``understudy.deploy.common.sidecar_arguments``, with variables that the kubelet fills in from
the Downward API: the pod's name is the member's name, its address is where the member serves, and the zone of its node
is the site unless an annotation sets another.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from understudy.deploy.common.sidecar_arguments import SidecarOptions, sidecar_arguments
from understudy.deploy.kubernetes.base.csi_certificates import csi_volume, spiffe
from understudy.deploy.kubernetes.base.injection_settings import NATIVE, InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import Body
from understudy.deploy.kubernetes.base.names import MEMBER
from understudy.deploy.kubernetes.base.objects import container_security, from_field, http_probe, port
from understudy.deploy.kubernetes.injection.annotations import TOPOLOGIES, ZONE_LABEL, Wishes, quantity
from understudy.deploy.kubernetes.injection.istio import original_path
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.tls.pem_files import PemFiles

SIDECAR = "understudy"
PROGRAM = "understudy"
TLS, ETCD_TLS, SESSION_KEYS = "understudy-tls", "understudy-etcd-tls", "understudy-session-keys"
VOLUMES = frozenset({TLS, ETCD_TLS, SESSION_KEYS})
_SECRETS = "/etc/understudy"
_PORTS = {"peer": "us-peer", "health": "us-health", "metrics": "us-metrics"}
"""Names of the sidecar's ports; Kubernetes allows 15 characters."""
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
HOOK_MARGIN = 5.0
"""Seconds that hooks wait beyond the handover, so that Envoys learn of it."""
OUTLIVE_MARGIN = 3.0


def session_api_of(wishes: Wishes) -> str:
    """The variable with the address of the sidecar's session API, for the application."""
    return f"127.0.0.1:{wishes.session_port}"


def redis_of(wishes: Wishes) -> str:
    """Where the sidecar's Redis port is, for the application."""
    return f"127.0.0.1:{wishes.redis_port}"


def place_of(
    settings: InjectionSettings, wishes: Wishes, *, app_port: int, app_health: str, drain: float
) -> SidecarOptions:
    """The settings of one pod's sidecar."""
    pod_ip = "$(UNDERSTUDY_POD_IP)"
    etcd_tls = _pem_files("etcd", own=bool(settings.etcd_client_certificate)) if settings.etcd_tls_secret else None
    return SidecarOptions(
        member="$(UNDERSTUDY_MEMBER)",
        pool=wishes.pool,
        etcd=EtcdSettings(settings.etcd, etcd_tls),
        app=f"{pod_ip}:{app_port}",
        app_health=app_health,
        session_api=session_api_of(wishes),
        redis=redis_of(wishes),
        peer=f"{pod_ip}:{wishes.peer_port}",
        # On all addresses, since Istio's agent may send the probes instead of the kubelet, from inside the pod.
        health=f"*:{wishes.health_port}",
        metrics=f"{pod_ip}:{wishes.metrics_port}",
        site="$(UNDERSTUDY_SITE)",
        node="$(UNDERSTUDY_NODE)",
        weight=str(wishes.weight or ""),
        priority=str(wishes.priority or ""),
        drain_seconds=f"{drain:g}",
        checks=wishes.checks,
        session_keys=f"{_SECRETS}/session-keys/keys" if settings.session_keys_secret else "",
        log_level=wishes.log_level or settings.log_level,
        tls=_pem_files("tls", own=True) if settings.peer_certificates else None,
        insecure=settings.peer_certificates is None,
    )


def _pem_files(folder: str, *, own: bool) -> PemFiles:
    """The PEM files of a mounted secret; ``own``: it has a certificate and key of ours, and not only the CA."""
    cert, key, ca = (Path(_SECRETS, folder, name) for name in ("tls.crt", "tls.key", "ca.crt"))
    return PemFiles(cert, key, ca) if own else PemFiles(None, None, ca)


def sidecar_container(settings: InjectionSettings, wishes: Wishes, place: SidecarOptions, *, grace: int) -> Body:
    """The container; ``grace`` is the pod's terminationGracePeriodSeconds."""
    native = settings.form == NATIVE
    ports = {"peer": wishes.peer_port, "health": wishes.health_port, "metrics": wishes.metrics_port}
    return {
        "name": SIDECAR,
        "image": wishes.image or settings.image,
        "command": [PROGRAM],
        "args": list(sidecar_arguments(place)),
        **({"restartPolicy": "Always"} if native else {}),
        "env": _variables(settings, wishes),
        "ports": [port(_PORTS[name], number) for name, number in ports.items()],
        # By number: Istio compares numbers to see which ports are excluded, and leaves the probes of those alone.
        "startupProbe": http_probe("/started", wishes.health_port, period=1, failures=60),
        "readinessProbe": http_probe("/health", wishes.health_port, period=2, failures=2),
        "livenessProbe": http_probe("/live", wishes.health_port, period=10, failures=3, timeout=5),
        "lifecycle": {"preStop": {"exec": {"command": _leave(native=native, drain=place.drain_seconds, grace=grace)}}},
        "securityContext": _security(settings.run_as_user),
        "resources": _resources(settings, wishes),
        **_mounts(settings),
    }


def _mounts(settings: InjectionSettings) -> Body:
    wanted = {
        TLS: ("tls", settings.peer_certificates),
        ETCD_TLS: ("etcd", settings.etcd_tls_secret),
        SESSION_KEYS: ("session-keys", settings.session_keys_secret),
    }
    mounts = [
        {"name": name, "mountPath": f"{_SECRETS}/{path}", "readOnly": True}
        for name, (path, used) in wanted.items()
        if used
    ]
    return {"volumeMounts": mounts} if mounts else {}


def probed_as(kept: Body, ours: Body) -> Body:
    """A sidecar of an earlier injection, with the probes of ``ours`` where something has redirected them.

    Istio sends probes to its agent, those of init containers too. The agent may be in a container that starts only
    after our startup probe has succeeded, and it does not answer for ports that it was told to exclude.
    """
    return {**kept, **{name: ours[name] for name in _PROBES if _asked(kept.get(name)) != _asked(ours[name])}}


def _asked(probe: object) -> tuple[object, object]:
    """The path and port of an HTTP probe or hook, without its other fields."""
    asked = probe.get("httpGet") if isinstance(probe, dict) else None
    return (asked.get("path"), asked.get("port")) if isinstance(asked, dict) else (None, None)


def hook_seconds(drain: float) -> int:
    """Seconds that hooks wait for a handover of up to ``drain`` seconds."""
    return int(drain + HOOK_MARGIN)


def application_hook(wishes: Wishes, drain: float) -> Body:
    """The application's preStop hook: it keeps serving until its slots are handed over."""
    return {"httpGet": {"path": f"/drained?wait={hook_seconds(drain)}", "port": wishes.health_port}}


def is_application_hook(lifecycle: Body, everybody: Sequence[Body]) -> bool:
    """Whether a container has the preStop hook that we give to applications, directly or through Istio's agent.

    ``everybody`` are the pod's containers.
    """
    path, _ = _asked(lifecycle.get("preStop"))
    if not isinstance(path, str):
        return False
    before = original_path(everybody, path)
    return (before[0] if before else path).startswith("/drained?wait=")


def volumes_for(settings: InjectionSettings, wishes: Wishes, *, grouped: bool) -> list[Body]:
    """The volumes that the container mounts. ``grouped``: the pod has an ``fsGroup``, which may read the files."""
    found = []
    certificates = settings.peer_certificates
    if certificates and certificates.secret:
        found.append(_secret(TLS, certificates.secret, grouped=grouped))
    elif certificates:
        uri = spiffe(wishes.pool, MEMBER)
        found.append(csi_volume(TLS, certificates, uri=uri, fs_group=settings.run_as_user))
    if settings.etcd_tls_secret:
        found.append(_secret(ETCD_TLS, settings.etcd_tls_secret, grouped=grouped))
    if settings.session_keys_secret:
        found.append(_secret(SESSION_KEYS, settings.session_keys_secret, grouped=grouped))
    return found


def _secret(name: str, secret: str, *, grouped: bool) -> Body:
    """Without a group the files belong to root, so everybody in the container must be allowed to read them."""
    mode = {"defaultMode": 0o440} if grouped else {}
    return {"name": name, "secret": {"secretName": secret, **mode}}


def _variables(settings: InjectionSettings, wishes: Wishes) -> list[Body]:
    fields = {
        "UNDERSTUDY_MEMBER": "metadata.name",
        "UNDERSTUDY_NAMESPACE": "metadata.namespace",
        "UNDERSTUDY_POD_UID": "metadata.uid",
        "UNDERSTUDY_POD_IP": "status.podIP",
        "UNDERSTUDY_NODE": "spec.nodeName",
    }
    found = [from_field(name, path) for name, path in fields.items()]
    label = TOPOLOGIES[wishes.topology]
    if wishes.site or not label:
        found.append({"name": "UNDERSTUDY_SITE", "value": wishes.site})
    else:
        # Before Kubernetes 1.35 pods do not have this label. Their site is then empty, which means none.
        found.append(from_field("UNDERSTUDY_SITE", f"metadata.labels['{label}']"))
    found.append(from_field("UNDERSTUDY_ZONE", f"metadata.labels['{ZONE_LABEL}']"))  # the sidecar reads it by itself
    if wishes.app_version:  # a variable, since sidecars of earlier releases do not know the option
        found.append({"name": "UNDERSTUDY_APP_VERSION", "value": wishes.app_version})
    found.append({"name": "UNDERSTUDY_SESSION_API", "value": session_api_of(wishes)})
    resource = {
        "k8s.namespace.name": "$(UNDERSTUDY_NAMESPACE)",
        "k8s.pod.name": "$(UNDERSTUDY_MEMBER)",
        "k8s.pod.uid": "$(UNDERSTUDY_POD_UID)",
        "k8s.node.name": "$(UNDERSTUDY_NODE)",
        "k8s.container.name": SIDECAR,
    }
    attributes = ",".join(f"{name}={value}" for name, value in resource.items())
    found.append({"name": "OTEL_RESOURCE_ATTRIBUTES", "value": attributes})
    if settings.etcd_login_secret:
        for name, key in (("UNDERSTUDY_ETCD_USER", "username"), ("UNDERSTUDY_ETCD_PASSWORD", "password")):
            reference = {"name": settings.etcd_login_secret, "key": key}
            found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found


def _leave(*, native: bool, drain: str, grace: int) -> Sequence[str]:
    """The sidecar's own preStop hook. Kubelets run all preStop hooks of a pod at the same time."""
    if native:
        return [PROGRAM, "leave", "--wait", str(hook_seconds(float(drain)))]
    # A plain container gets SIGTERM together with the application, and must outlive it by itself.
    return [PROGRAM, "leave", "--wait", f"{max(grace - OUTLIVE_MARGIN, 1):g}", "--until", "application-gone"]


def _security(user: int) -> Body:
    identity = {"runAsUser": user, "runAsGroup": user} if user else {}
    return {
        **container_security(),
        "privileged": False,
        "runAsNonRoot": True,
        **identity,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(settings: InjectionSettings, wishes: Wishes) -> Body:
    """No CPU limit unless an annotation sets one: a throttled process looks dead to others."""
    memory_limit = wishes.memory_limit or settings.memory_limit
    requests = {
        "cpu": wishes.cpu_request or _at_most(settings.cpu_request, wishes.cpu_limit),
        "memory": wishes.memory_request or _at_most(settings.memory_request, memory_limit),
    }
    limits = {"cpu": wishes.cpu_limit, "memory": _at_least(memory_limit, wishes.memory_request)}
    return {"requests": requests, "limits": {name: amount for name, amount in limits.items() if amount}}


def _at_most(amount: str, limit: str) -> str:
    return limit if limit and quantity(limit) < quantity(amount) else amount


def _at_least(limit: str, amount: str) -> str:
    return amount if amount and quantity(amount) > quantity(limit) else limit


def digest_of(container: Body) -> str:
    """A digest that differs between versions of the container."""
    return hashlib.sha256(json.dumps(container, sort_keys=True).encode()).hexdigest()[:16]
