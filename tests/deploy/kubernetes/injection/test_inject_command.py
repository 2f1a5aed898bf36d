"""``understudy inject``: files in, files out, for every kind of workload."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.deploy.kubernetes.injection.harness import NEWEST, OLDEST, sidecars, validate
from tests.deploy.kubernetes.injection.shapes import container, pod
from understudy.deploy.cli.main import cli

TOLD = ("--sidecar-image", "understudy-sidecar:test", "--etcd", "etcd:2379")


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["inject", *arguments, *TOLD], input=stdin)


def template(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "cart"}, "annotations": {"understudy.io/pool": "cart"}},
        "spec": {"containers": [container(volumeMounts=None)], **more},
    }


def workload(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"template": template(**({"restartPolicy": "Never"} if kind in ("Job", "CronJob") else {}))}
    if kind != "Job" and kind != "CronJob":
        spec |= {"selector": {"matchLabels": {"app": "cart"}}}
    if kind == "StatefulSet":
        spec |= {"serviceName": "cart"}
    if kind == "CronJob":
        spec = {"schedule": "0 3 * * *", "jobTemplate": {"spec": spec}}
    version = "batch/v1" if kind in ("Job", "CronJob") else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "cart"}, "spec": spec}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "ReplicaSet", "Job", "CronJob"])
def test_every_kind_of_workload_gets_its_sidecar_in_its_template(kind: str) -> None:
    result = run("-f", "-", stdin=yaml.safe_dump(workload(kind)))
    assert result.exit_code == 0, result.output
    assert result.stderr == f"{kind}/cart: sidecar added\n"
    done = yaml.safe_load(result.stdout)
    made = done["spec"]["jobTemplate"]["spec"]["template"] if kind == "CronJob" else done["spec"]["template"]
    assert len(sidecars(made)) == 1
    validate({"apiVersion": "v1", "kind": "Pod", **made}, OLDEST["native"], NEWEST)
    validate(done, OLDEST["native"], NEWEST)
    assert run("-f", "-", stdin=result.stdout).stdout == result.stdout


def test_many_documents_lists_and_what_is_no_workload_in_one_file(tmp_path: Path) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart"}, "spec": {"ports": [{"port": 80}]}}
    listed = {"apiVersion": "v1", "kind": "List", "items": [workload("Deployment"), service]}
    other = workload("StatefulSet")
    del other["spec"]["template"]["metadata"]["annotations"]
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all([listed, other, service]) + "---\n")
    result = run("-f", str(file))
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "Deployment/cart: sidecar added",
        "Service/cart: not changed",
        "StatefulSet/cart: not changed; names no pool, or is labelled understudy.io/inject: 'false'",
        "Service/cart: not changed",
    ]
    done = list(yaml.safe_load_all(result.stdout))
    assert len(sidecars(done[0]["items"][0]["spec"]["template"])) == 1
    assert done[1:] == [other, service]
    named = run("-f", str(file), "--pool", "cart", "-o", "json")
    items = json.loads(named.stdout)["items"]
    assert len(sidecars(items[1]["spec"]["template"])) == 1


def test_who_says_no_keeps_its_pod() -> None:
    refusing = workload("Deployment")
    refusing["spec"]["template"]["metadata"]["labels"]["understudy.io/inject"] = "false"
    result = run("-f", "-", "--pool", "cart", stdin=yaml.safe_dump(refusing))
    assert (result.exit_code, yaml.safe_load(result.stdout)) == (0, refusing)


def test_a_version_chooses_the_form_and_a_job_without_native_sidecars_is_refused() -> None:
    result = run("-f", "-", "--kubernetes-version", "1.25", stdin=yaml.safe_dump(workload("Deployment")))
    done = yaml.safe_load(result.stdout)
    assert [one["name"] for one in done["spec"]["template"]["spec"]["containers"]] == ["app", "understudy"]
    validate(done, OLDEST["classic"], NEWEST)
    refused = run("-f", "-", "--kubernetes-version", "1.25", stdin=yaml.safe_dump(workload("Job")))
    assert refused.exit_code == 1
    assert "Job/cart: spec.restartPolicy: Never: with a sidecar in the classic form" in refused.stderr


def test_every_fault_of_every_workload_is_told_and_nothing_is_written() -> None:
    one, other = pod({"weigth": "3"}), workload("Deployment")
    other["spec"]["template"]["spec"]["hostNetwork"] = True
    result = run("-f", "-", stdin=yaml.safe_dump_all([one, other]))
    assert (result.exit_code, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("understudy: Pod/: annotation understudy.io/weigth is unknown; did you mean")
    assert second.startswith("understudy: Deployment/cart: spec.hostNetwork")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("- 1\n", "not a Kubernetes object"),
        ("kind: 3\n", "not a Kubernetes object"),
        ("x: y\n", "no kind"),
    ],
)
def test_what_is_no_manifest_is_wrong_use(text: str, words: str) -> None:
    result = run("-f", "-", stdin=text)
    assert result.exit_code == 2
    assert words in result.stderr


def test_what_kubectl_takes_for_a_text_stays_one() -> None:
    text = (
        "kind: ConfigMap\nmetadata: {name: x}\n"
        "data: {a: '1e3', b: '089', c: 'y', d: 22:22, e: 2026-01-01, f: 'no', g: '0x1f', h: '1_000'}\n"
    )
    result = run("-f", "-", stdin=text)
    assert "a: '1e3'" in result.stdout
    assert "d: '22:22'" in result.stdout
    kept = yaml.safe_load(result.stdout)["data"]
    assert kept == {
        "a": "1e3", "b": "089", "c": "y", "d": "22:22", "e": "2026-01-01", "f": "no", "g": "0x1f", "h": "1_000",
    }  # fmt: skip


def test_a_missing_file_and_a_wrong_setting_are_wrong_use() -> None:
    assert "cannot be read" in run("-f", "/nowhere/x.yaml").stderr
    result = run("-f", "-", "--peer-certificates", "vault", stdin="")
    assert result.exit_code == 2
    assert "say none, secret:NAME or csi:ISSUER" in result.stderr
