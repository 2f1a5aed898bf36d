"""What the cluster is told of the injector: valid manifests, the least rights, a command line that is understood."""

import sys
from dataclasses import replace

import click
import kubernetes_validate
import pytest
from click.testing import CliRunner

from tests.deploy.kubernetes.injection.harness import NEWEST, PLAIN, SECURED
from understudy.deploy.cli.commands_injector import injector
from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.base.injection_settings import CLASSIC, InjectionSettings, PeerCertificates
from understudy.deploy.kubernetes.webhook.cert_rotation import hosts_of
from understudy.deploy.kubernetes.webhook.configuration import (
    InjectorPlace,
    injector_arguments,
    injector_cluster_role,
    injector_role,
    webhook_configuration,
)

SELF_SIGNED = InjectorPlace("understudy-system")
CERT_MANAGER = InjectorPlace("understudy-system", secret="", inject_ca_from="understudy-system/injector")


@pytest.mark.parametrize("place", [SELF_SIGNED, CERT_MANAGER], ids=["self-signed", "cert-manager"])
@pytest.mark.parametrize("version", ["1.25", NEWEST])
def test_the_webhook_configuration_is_valid_and_concerns_only_who_asks(place: InjectorPlace, version: str) -> None:
    made = webhook_configuration(place, PLAIN)
    kubernetes_validate.validate(made, version, strict=True)
    (webhook,) = made["webhooks"]
    assert "caBundle" not in webhook["clientConfig"]
    assert webhook["timeoutSeconds"] <= 5
    assert (webhook["sideEffects"], webhook["reinvocationPolicy"], webhook["failurePolicy"]) == (
        "None",
        "IfNeeded",
        "Fail",
    )
    assert webhook["objectSelector"]["matchLabels"] == {"understudy.io/inject": "true"}
    assert webhook["namespaceSelector"]["matchLabels"] == {"understudy.io/injection": "enabled"}
    (excluded,) = webhook["namespaceSelector"]["matchExpressions"]
    assert {"kube-system", "understudy-system"} <= set(excluded["values"])
    (rule,) = webhook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
    told = made["metadata"].get("annotations", {})
    assert told == ({"cert-manager.io/inject-ca-from": "understudy-system/injector"} if not place.secret else {})


def test_its_rights_are_two_objects_by_name_and_none_if_others_make_certificates() -> None:
    assert injector_role(CERT_MANAGER) == injector_cluster_role(CERT_MANAGER) == []
    for rules in (injector_role(SELF_SIGNED), injector_cluster_role(SELF_SIGNED)):
        (rule,) = rules
        assert rule["verbs"] == ["get", "update"]
        assert len(rule["resourceNames"]) == 1
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "x"}}
    kubernetes_validate.validate({**role, "rules": injector_cluster_role(SELF_SIGNED)}, NEWEST, strict=True)
    assert hosts_of(SELF_SIGNED)[0] == "understudy-injector.understudy-system.svc"


SETTINGS = {
    "plain": PLAIN,
    "secured": SECURED,
    "classic": InjectionSettings("x:1", ("etcd:2379",), form=CLASSIC, peer_certificates=PeerCertificates(secret="c")),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_its_command_line_is_understood_and_says_what_was_meant(settings: InjectionSettings) -> None:
    command, *arguments = injector_arguments(SELF_SIGNED, settings)
    assert command == "injector"
    context = injector.make_context("injector", list(arguments))
    told = context.params
    given = {name for name in told if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    assert told["listen"] == "0.0.0.0:9443"
    assert told["sidecar_image"] == settings.image
    assert told["etcd_endpoints"].split(",") == list(settings.etcd)
    assert told["self_signed"] is True
    assert told["cert_dir"] is None
    assert told["form"] == ("classic" if settings.form == CLASSIC else "auto")
    assert PeerCertificates.parse(told["peer_certificates"]) == settings.peer_certificates
    for name in ("etcd_tls_secret", "etcd_client_certificate", "etcd_login_secret", "session_keys_secret"):
        assert told[name] == getattr(settings, name)
        assert (name in given) is bool(getattr(settings, name))


def test_with_cert_manager_the_certificate_is_read_from_a_mounted_secret() -> None:
    arguments = injector_arguments(CERT_MANAGER, replace(PLAIN, etcd=("$(UNDERSTUDY_ETCD)",)))
    assert "--self-signed" not in arguments
    assert arguments[arguments.index("--cert-dir") + 1] == "/var/run/understudy"
    assert arguments[arguments.index("--etcd") + 1] == "$(UNDERSTUDY_ETCD)"


def test_an_injector_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("injector", "server", "review"):
        monkeypatch.delitem(sys.modules, f"understudy.deploy.kubernetes.webhook.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "jsonpatch", None)

    refused = CliRunner().invoke(cli, ["injector", "--sidecar-image", "image", "--etcd", "etcd:2379", "--self-signed"])

    assert refused.exit_code == 2
    assert "jsonpatch is not installed: pip install 'understudy[injector]'" in refused.output
