"""The tree of files: a kustomize base, components, and overlays that put them together. Pure but for :func:`write`.

An overlay is what gets applied (``kubectl apply -k DIR/overlays/NAME``). The base lacks only where etcd is, which is
the difference between a trial and production.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import DeployError
from deploy.kubernetes.control import control_manifests
from deploy.kubernetes.emit import Body, Manifest, emit
from deploy.kubernetes.etcd import config, trial_manifests
from deploy.kubernetes.front import front_manifests
from deploy.kubernetes.namespaces import understudy_namespace
from deploy.kubernetes.plan import Plan
from deploy.kubernetes.pool import pool_manifests

KUSTOMIZATION = "kustomization.yaml"
_HEADER = (
    "# Written by 'understudy render kubernetes'. Render again rather than edit: overlays of yours can patch it.\n"
)


@dataclass(frozen=True, slots=True)
class Folder:
    """One kustomization: its files, the folders it builds on (relative paths) and patches (file -> manifests)."""

    about: str
    files: Mapping[str, Sequence[Manifest]]
    bases: Sequence[str] = ()
    components: Sequence[str] = ()
    patches: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    component: bool = False

    def kustomization(self) -> Manifest:
        """The folder's ``kustomization.yaml``."""
        kind = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
        if not self.component:
            kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
        body: Body = {**kind, "resources": [*self.bases, *self.files]}
        if self.components:
            body["components"] = list(self.components)
        if self.patches:
            body["patches"] = [{"path": file} for file in self.patches]
        return Manifest(body, about=self.about)


def tree(plan: Plan) -> dict[str, Folder]:
    """All folders by their path."""
    folders = {
        "base": Folder(
            f"Understudy for pool {plan.pool}: control servers, front Envoys, pool spec. Apply an overlay, not this.",
            {
                "namespace.yaml": [understudy_namespace(plan)],
                "pool.yaml": pool_manifests(plan),
                "control.yaml": control_manifests(plan),
                "front.yaml": front_manifests(plan),
            },
        ),
        "components/trial-etcd": Folder(
            "Three members of etcd for a trial. Not for production.",
            {"etcd.yaml": trial_manifests(plan)},
            component=True,
        ),
        "overlays/trial": Folder(
            "Everything, with an etcd of its own.",
            {},
            bases=["../../base"],
            components=["../../components/trial-etcd"],
        ),
    }
    if plan.etcd is not None:
        folders["overlays/production"] = Folder(
            "With your etcd.",
            {"etcd.yaml": [config(plan, plan.etcd.endpoints)]},
            bases=["../../base"],
        )
    return folders


def files(plan: Plan) -> dict[str, str]:
    """Every file of the tree: path -> content."""
    found = {}
    for path, folder in tree(plan).items():
        found[f"{path}/{KUSTOMIZATION}"] = _HEADER + emit([folder.kustomization()])
        for name, manifests in {**folder.files, **folder.patches}.items():
            found[f"{path}/{name}"] = _HEADER + emit(manifests)
    return found


def write(content: Mapping[str, str], directory: Path) -> None:
    """Write files below a directory. Raises :class:`DeployError` if it holds other things, or cannot be written."""
    try:
        strangers = sorted(
            str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and not _ours(path)
        )
        if strangers:
            raise DeployError(
                f"{directory} holds files that 'render' has not written ({strangers[0]}): name another one with --out"
            )
        for path in directory.rglob("*"):
            if path.is_file() and str(path.relative_to(directory)) not in content:
                path.unlink()
        for name, text in content.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{error.filename or directory}: cannot be written: {error.strerror}") from None


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER.encode()
