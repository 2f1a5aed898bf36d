"""Reviews of pods, their answers, and whether a pod is one that a cluster would take."""

import base64
import copy
import json
import uuid
from typing import Any

import kubernetes_validate

from understudy.deploy.kubernetes.base.injection_settings import CLASSIC, InjectionSettings, PeerCertificates
from understudy.deploy.kubernetes.injection.container import SIDECAR

Body = dict[str, Any]
OLDEST = {"native": "1.29", "classic": "1.25"}
NEWEST = "1.37"
PLAIN = InjectionSettings(
    image="registry.example/understudy-sidecar:0.1.0", etcd=("http://etcd-0.etcd:2379",)
).excluding("understudy-system")
CLASSIC_FORM = InjectionSettings(image=PLAIN.image, etcd=PLAIN.etcd, form=CLASSIC).excluding("understudy-system")
SECURED = InjectionSettings(
    image=PLAIN.image,
    etcd=("https://etcd-0.etcd:2379", "https://etcd-1.etcd:2380"),
    peer_certificates=PeerCertificates(issuer="understudy", issuer_kind="ClusterIssuer"),
    etcd_tls_secret="etcd-tls",
    etcd_client_certificate=True,
    etcd_login_secret="etcd-user",
    session_keys_secret="session-keys",
).excluding("understudy-system")


def review(pod: object, **request: Any) -> Body:
    """An AdmissionReview as an API server of 1.31 sends it for ``kubectl apply`` of a pod."""
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    namespace = metadata.get("namespace", "shop") if isinstance(metadata, dict) else "shop"
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": str(uuid.uuid4()),
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def patched(pod: Body, response: Body) -> Body:
    """The pod after the patch in an answer."""
    if "patch" not in response:
        return pod
    assert response["patchType"] == "JSONPatch"
    return dict(applied(pod, json.loads(base64.b64decode(response["patch"]))))


def applied(document: Any, operations: list[Body]) -> Any:
    """A document after a JSON patch (RFC 6902), by code that is not the library that made it."""
    root = {"": copy.deepcopy(document)}
    for operation in operations:
        value = copy.deepcopy(operation.get("value"))
        if "from" in operation:
            at, key = _place(root, operation["from"])
            value = copy.deepcopy(at[key])
        if operation["op"] in ("move", "remove"):
            at, key = _place(root, operation["from"] if operation["op"] == "move" else operation["path"])
            del at[key]
        if operation["op"] != "remove":
            at, key = _place(root, operation["path"])
            if operation["op"] == "replace":
                assert key in at if isinstance(at, dict) else 0 <= key < len(at)
            if isinstance(at, list) and operation["op"] != "replace":
                assert 0 <= key <= len(at)
                at.insert(key, value)
            else:
                at[key] = value
    return root[""]


def _place(root: Any, pointer: str) -> tuple[Any, Any]:
    """What a JSON pointer (RFC 6901) names, as a container and the key in it."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    at = root
    for part in parts[:-1]:
        at = at[int(part)] if isinstance(at, list) else at[part]
    last = parts[-1]
    return at, (len(at) if last == "-" else int(last)) if isinstance(at, list) else last


def validate(pod: Body, *versions: str) -> None:
    """Fail unless the pod is valid in the schemas of these Kubernetes versions, with nothing unknown in it."""
    named = {**pod, "metadata": {"name": "some", **pod["metadata"]}}
    for version in versions:
        kubernetes_validate.validate(named, version, strict=True)


def sidecars(pod: Body) -> list[Body]:
    """Every container of ours in a pod."""
    spec = pod["spec"]
    everyone = [one for key in ("containers", "initContainers") for one in spec.get(key) or ()]
    return [one for one in everyone if one.get("name") == SIDECAR]


def named(pod: Body, name: str, key: str = "containers") -> Body:
    """A container by name."""
    return next(one for one in pod["spec"][key] if one["name"] == name)
