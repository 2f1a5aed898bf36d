"""Preflight names the Secrets that somebody has to create first."""

import pytest

from understudy.deploy.kubernetes.preflight.missing_secrets import missing_secrets


def test_the_secrets_of_an_own_etcd_are_named(overlay, objects):
    wanted = ["understudy/etcd-client", "understudy/etcd-login"] if overlay.name == "production" else []

    assert missing_secrets(objects) == [*wanted, "understudy/west"]


@pytest.mark.parametrize(
    "pod",
    [
        {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]},
        {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]},
        {
            "containers": [
                {"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
            ]
        },
        {"initContainers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]},
    ],
    ids=["volume", "projected", "variable", "variables"],
)
def test_each_kind_of_reference_counts_unless_it_is_optional(pod):
    def body(**spec):
        return {"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}

    secret = {"kind": "Secret", "metadata": {"name": "s", "namespace": "shop"}}
    elsewhere = {"kind": "Secret", "metadata": {"name": "s", "namespace": "other"}}

    assert missing_secrets([body(**pod)]) == ["shop/s"]
    assert missing_secrets([body(**pod), elsewhere]) == ["shop/s"]
    assert missing_secrets([body(**pod), secret]) == []
    assert missing_secrets([body(volumes=[{"name": "v", "secret": {"secretName": "s", "optional": True}}])]) == []
