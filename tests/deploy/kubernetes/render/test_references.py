"""The rendered objects fit together, and what would not fit is found."""

import copy

import pytest

from tests.deploy.kubernetes.conftest import find
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults


def test_everything_that_is_named_is_there(objects):
    assert faults(objects) == []


def test_all_pods_meet_the_restricted_standard_and_our_habits(objects):
    assert standard_faults(objects) == []
    assert habit_faults(objects) == []


def container(objects):
    return find(objects, "Deployment", "control-cart")["spec"]["template"]["spec"]["containers"][0]


def pod(objects):
    return find(objects, "Deployment", "control-cart")["spec"]["template"]


BREAKAGES = {
    "its selector does not match": lambda o: pod(o)["metadata"]["labels"].pop("app.kubernetes.io/name"),
    "names ConfigMap understudy-etcd": lambda o: o.remove(find(o, "ConfigMap", "understudy-etcd")),
    "names ServiceAccount control-cart": lambda o: o.remove(find(o, "ServiceAccount", "control-cart")),
    "mounts volume traces": lambda o: pod(o)["spec"].update(volumes=[]),
    "asks port http": lambda o: container(o)["ports"].pop(),
    "uses $(POD_IP)": lambda o: container(o)["env"].pop(1),
    "leads to port grpc": lambda o: container(o)["ports"].pop(0),
    "selects no pods": lambda o: find(o, "Service", "front-cart")["spec"]["selector"].update(x="y"),
    "protects no pods": lambda o: find(o, "PodDisruptionBudget", "etcd")["spec"].update(
        selector={"matchLabels": {"x": "y"}}
    ),
    "no node can be drained": lambda o: find(o, "PodDisruptionBudget", "control-cart")["spec"].update(maxUnavailable=0),
    "is there 2 times": lambda o: o.append(find(o, "Service", "front-cart")),
}


@pytest.mark.parametrize("told", BREAKAGES)
def test_each_thing_that_is_missing_is_named(trial, told):
    objects = copy.deepcopy(trial)
    BREAKAGES[told](objects)

    assert any(told in fault for fault in faults(objects))


SOFTENINGS = {
    "allowPrivilegeEscalation": lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    "runAsNonRoot": lambda o: pod(o)["spec"]["securityContext"].pop("runAsNonRoot"),
    "runAsUser": lambda o: pod(o)["spec"]["securityContext"].update(runAsUser=0),
    "drop ALL": lambda o: container(o)["securityContext"]["capabilities"].update(drop=["NET_RAW"]),
    "seccompProfile": lambda o: pod(o)["spec"]["securityContext"].pop("seccompProfile"),
    "hostPath is not allowed": lambda o: pod(o)["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "hostNetwork": lambda o: pod(o)["spec"].update(hostNetwork=True),
    "root file system": lambda o: container(o)["securityContext"].update(readOnlyRootFilesystem=False),
    "no limit of memory": lambda o: container(o)["resources"].pop("limits"),
    "requests no cpu": lambda o: container(o)["resources"]["requests"].pop("cpu"),
    "changes under its name": lambda o: container(o).update(image="registry.example/understudy-control:latest"),
}


@pytest.mark.parametrize("told", SOFTENINGS)
def test_each_carelessness_is_named(trial, told):
    objects = copy.deepcopy(trial)
    SOFTENINGS[told](objects)

    assert any(told in fault for fault in [*standard_faults(objects), *habit_faults(objects)])
