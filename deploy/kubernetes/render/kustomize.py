"""The tree of files: a kustomize base, components, and overlays that combine them. Pure, except :func:`write`.

An overlay is applied with ``kubectl apply -k DIR/overlays/NAME``. The base lacks only the address of etcd, which
differs between trial and production.
"""

from collections.abc import Mapping
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.emit import emit
from understudy.deploy.kubernetes.base.folder import KUSTOMIZATION, Folder
from understudy.deploy.kubernetes.render.application import example_manifests
from understudy.deploy.kubernetes.render.autoscaling import autoscaling_manifests
from understudy.deploy.kubernetes.render.control import control_manifests
from understudy.deploy.kubernetes.render.etcd import trial_manifests
from understudy.deploy.kubernetes.render.front import front_manifests
from understudy.deploy.kubernetes.render.injector import injector_manifests
from understudy.deploy.kubernetes.render.mirror import mirror_manifests
from understudy.deploy.kubernetes.render.monitoring import monitoring_manifests
from understudy.deploy.kubernetes.render.namespaces import application_namespace, understudy_namespace
from understudy.deploy.kubernetes.render.operator import operator_manifests
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.policies import (
    etcd_clients,
    member_egress,
    member_policies,
    namespace_policies,
    own_etcd_egress,
    trial_etcd_egress,
    trial_etcd_policies,
)
from understudy.deploy.kubernetes.render.pool import pool_manifests
from understudy.deploy.kubernetes.render.production import production
from understudy.deploy.kubernetes.render.take_over import take_over_folders
from understudy.deploy.kubernetes.render.zones import keep_apart_from_witness

_WRITTEN = "# Written by 'understudy render "


def tree(plan: Plan) -> dict[str, Folder]:
    """All folders by their path."""
    folders = {
        "base": Folder(
            f"Understudy for {_what(plan)}. Apply an overlay, not this: it lacks where etcd is.",
            {
                "namespace.yaml": [understudy_namespace(plan)],
                "policies.yaml": namespace_policies(plan),
                "pool.yaml": [one for pool in plan.pools for one in pool_manifests(plan, pool)],
                "control.yaml": control_manifests(plan),
                "front.yaml": front_manifests(plan),
                "injector.yaml": injector_manifests(plan),
                "operator.yaml": operator_manifests(plan),
            },
        ),
        "components/application": Folder(
            "The application's namespace, in which pods get sidecars, and who may connect to members.",
            {"application.yaml": [*map(application_namespace, plan.app_namespaces), *member_policies(plan)]},
            component=True,
        ),
        "components/monitoring": Folder(
            "For the Prometheus operator and Grafana.",
            {"monitoring.yaml": monitoring_manifests(plan)},
            component=True,
        ),
        "components/trial-etcd": Folder(
            "Three members of etcd for a trial. Not for production: nobody backs it up.",
            {
                "etcd.yaml": trial_manifests(plan),
                "policies.yaml": [etcd_clients(plan, trial_etcd_egress(plan)), *trial_etcd_policies(plan)],
            },
            component=True,
        ),
        "components/example": Folder(
            "The example cart as the pool's application.",
            {"example.yaml": [one for pool in plan.pools for one in example_manifests(plan, pool)]},
            component=True,
        ),
        "overlays/trial": Folder(
            "Everything, with an etcd and an application of its own.",
            {},
            bases=["../../base"],
            components=[
                *("../../components/application", "../../components/trial-etcd", "../../components/example"),
                *(["../../components/mirror"] if plan.mirror else []),
            ],
        ),
    }
    if plan.etcd is not None:
        folders["components/closed-application"] = Folder(
            "For an application's namespace that denies what goes out. It confines the whole pod, so add your own.",
            {"egress.yaml": member_egress(plan, own_etcd_egress(plan.etcd.endpoints))},
            component=True,
        )
        folders["overlays/production"] = production(plan, plan.etcd)
    if plan.mirror is not None:
        folders["components/mirror"] = Folder(
            "Mirrors each pool on this site, or keeps it confirmed as the home; docs/sites.md, Two distant sites.",
            {"mirror.yaml": mirror_manifests(plan, plan.mirror)},
            component=True,
        )
    if plan.autoscale is not None:
        folders["components/autoscaling"] = Folder(
            "Autoscalers that follow understudy_wanted_members; docs/placement.md tells what they need.",
            {"autoscaling.yaml": autoscaling_manifests(plan, plan.autoscale)},
            component=True,
        )
    if plan.witness:
        keep_apart_from_witness(plan, folders)
    return folders | take_over_folders(plan)


def _what(plan: Plan) -> str:
    names = ", ".join(pool.name for pool in plan.pools)
    return f"pools {names} and others" if plan.shared else f"pool {names}"


def files(plan: Plan) -> dict[str, str]:
    """Every file of the tree: path -> content."""
    return files_of(tree(plan), "kubernetes")


def files_of(folders: Mapping[str, Folder], command: str) -> dict[str, str]:
    """The files of folders that a subcommand of ``render`` writes: path -> content."""
    header = f"{_WRITTEN}{command}'. Render again rather than edit: overlays of yours can patch it.\n"
    found = {}
    for path, folder in folders.items():
        found[f"{path}/{KUSTOMIZATION}"] = header + emit([folder.kustomization()])
        for name, manifests in {**folder.files, **folder.patches}.items():
            found[f"{path}/{name}"] = header + emit(manifests)
    return found


def write(content: Mapping[str, str], directory: Path) -> None:
    """Write files below a directory. Raises :class:`DeployError` if it has other files, or cannot be written."""
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
        return file.read(len(_WRITTEN)) == _WRITTEN.encode()
