"""Rendered manifests and injector meet: the example's pods, as the injector leaves them, fit to everything else."""

import copy
from dataclasses import replace

import kubernetes_validate
import pytest

from tests.deploy.kubernetes.conftest import find
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults
from understudy.deploy.kubernetes.base.names import MEMBER, METRICS_PORT, POOL
from understudy.deploy.kubernetes.injection.container import SIDECAR
from understudy.deploy.kubernetes.injection.workloads import inject_objects
from understudy.deploy.kubernetes.preflight.lint_flows import FLOWS
from understudy.deploy.kubernetes.preflight.lint_reach import matches
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.deploy.kubernetes.render.injector import sidecar_settings
from understudy.deploy.kubernetes.render.monitoring import METRICS_PORT_NAME
from understudy.deploy.kubernetes.render.plan import Plan, Pool, choose_images
from understudy.deploy.kubernetes.webhook.cert_rotation import Keeper
from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace
from understudy.statesync.pool.spec import PoolSpec

PLAN = Plan((Pool(PoolSpec(pool="cart")),), choose_images("registry.example", "1"))
VERBS = {"GET": "get", "PUT": "update", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


@pytest.fixture(scope="module")
def injected(rendered):
    """The trial with its members' sidecars in them."""
    objects = copy.deepcopy(load(rendered / "overlays" / "trial"))
    told = find(objects, "ConfigMap", "understudy-etcd")["data"]["UNDERSTUDY_ETCD"]
    # What the kubelet does with $(UNDERSTUDY_ETCD) in the injector's command line.
    settings = replace(sidecar_settings(PLAN), etcd=tuple(told.split(",")))
    changed, outcomes = inject_objects(objects, settings)
    assert [one.name for one in outcomes if one.injected] == ["StatefulSet/cart"]
    return changed


def test_the_example_is_given_its_sidecar_and_still_fits(injected):
    assert faults(injected) == []
    assert standard_faults(injected) == []
    assert [one for one in habit_faults(injected) if SIDECAR in one] == []
    for version in ("1.29", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(find(injected, "StatefulSet", "cart"), version, strict=True)


def test_members_listen_where_the_policies_and_the_monitor_look_for_them(injected):
    (member,) = [one for one in workloads(injected) if one.namespace == "cart"]

    wanted = {flow.port for flow in FLOWS if flow.target == MEMBER and flow.port}
    assert wanted <= set(member.ports.values())
    assert member.ports[METRICS_PORT_NAME] == METRICS_PORT
    assert member.labels[POOL] == "cart"


def test_the_webhook_asks_for_the_namespace_and_the_pods_that_are_rendered(trial):
    (hook,) = find(trial, "MutatingWebhookConfiguration", "understudy-injector")["webhooks"]
    spaces = {one["metadata"]["name"]: one["metadata"]["labels"] for one in trial if one["kind"] == "Namespace"}
    pods = {one.where: one.labels for one in workloads(trial)}

    def asked(space):
        return matches(hook["namespaceSelector"], {**spaces[space], "kubernetes.io/metadata.name": space})

    assert asked("cart")
    assert not asked("understudy")
    assert [name for name, labels in pods.items() if matches(hook["objectSelector"], labels)] == [
        "StatefulSet cart/cart"
    ]


class Recorder:
    """An API server with the injector's two objects, which notes what is asked of it."""

    def __init__(self, objects):
        self.calls = set()
        self.objects = {
            "secrets": find(objects, "Secret", "understudy-injector-certificates"),
            "mutatingwebhookconfigurations": find(objects, "MutatingWebhookConfiguration", "understudy-injector"),
        }

    async def get(self, path):
        return self._noted("GET", path)

    async def replace(self, path, body):
        self._noted("PUT", path)
        self.objects[path.split("/")[-2]] = body
        return body

    def _noted(self, method, path):
        resource, name = path.split("/")[-2:]
        assert self.objects[resource]["metadata"]["name"] == name
        if resource == "secrets":
            assert "/namespaces/understudy/" in path
        self.calls.add((VERBS[method], resource, name))
        return self.objects[resource]


class Serving:
    current = None

    def take(self, certificate, key):
        self.current = (certificate, key)
        return True


async def test_the_injectors_rights_are_exactly_the_calls_that_it_makes(trial):
    recorder, serving = Recorder(copy.deepcopy(trial)), Serving()
    keeper = Keeper(recorder, InjectorPlace(namespace="understudy"), serving)
    await keeper.look()
    assert (keeper.trouble, serving.current is not None) == ("", True)

    granted = {
        (verb, resource, name)
        for kind in ("Role", "ClusterRole")
        for rule in find(trial, kind, "understudy-injector")["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule["resourceNames"]
    }
    assert granted == recorder.calls
