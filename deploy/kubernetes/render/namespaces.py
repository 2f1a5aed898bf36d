"""The namespaces: Understudy's own, and the application's, where pods get sidecars. Pure."""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import INJECTION
from understudy.deploy.kubernetes.render.plan import Plan

_PART_OF = {"app.kubernetes.io/part-of": "understudy"}


def understudy_namespace(plan: Plan) -> Manifest:
    """Understudy's own namespace."""
    return Manifest(
        _namespace(plan.namespace, {**_PART_OF, "pod-security.kubernetes.io/enforce": "restricted"}),
        about="Every pod in here meets the strictest Pod Security Standard.",
    )


def application_namespace(name: str) -> Manifest:
    """An application's namespace. Injection needs only a label on it."""
    return Manifest(_namespace(name, {INJECTION: "enabled"}))


def _namespace(name: str, labels: dict[str, str]) -> Body:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
