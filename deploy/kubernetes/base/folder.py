"""One folder of a kustomize tree, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from understudy.deploy.kubernetes.base.emit import Body, Manifest

KUSTOMIZATION = "kustomization.yaml"


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
