"""Every command that reads YAML refuses what costs time or memory, or says two things at once, and tells the line."""

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.main import cli

HEAD = "apiVersion: v1\nkind: Pod\nmetadata: {name: cart}\n"
BOMB = HEAD + "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
LONG = HEAD + f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 1000}]\n"
TWICE = HEAD + "kind: Job\n"
TWICE_JSON = '{"apiVersion": "v1",\n"kind": "Pod",\n"kind": "Job"}'
WITHIN_ITSELF = HEAD + "a: &a [*a]\n"
DEEP = HEAD + "a: " + "[" * 200 + "]" * 200 + "\n"
DEEP_JSON = '{"kind": ' + "[" * 2000 + "]" * 2000 + "}"
OTHER_SPEC = "pool: cart\nslots: 8\nslots: 16\n"

IMPORT = ("import",)
INJECT = ("inject", "--sidecar-image", "understudy-sidecar:test", "--etcd", "etcd:2379", "-f")
PREFLIGHT = ("verify", "--preflight", "--manifests")


def told_by(command, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.yaml").write_text(text)
    refused = CliRunner().invoke(cli, [*command, "hostile.yaml"])
    assert (refused.exit_code, refused.stdout) == (2, ""), refused.output
    assert len(refused.stderr) < 1000
    return refused.stderr


@pytest.mark.parametrize("command", [IMPORT, INJECT, PREFLIGHT], ids=["import", "inject", "preflight"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases stand for more than 100000 values"),
        (LONG, "line 5: aliases stand for more than 100000 values"),
        (TWICE, "line 4: key 'kind' stands here for the second time"),
        (TWICE_JSON, "line 3: key 'kind' stands here for the second time"),
        (WITHIN_ITSELF, "line 4: *a stands within what it is an alias of"),
        (DEEP, "line 4: more than 100 levels"),
        (DEEP_JSON, "line 1: more than 100 levels"),
    ],
    ids=["bomb", "long", "twice", "twice in JSON", "within itself", "deep", "deep JSON"],
)
def test_files_of_documents_are_bounded_everywhere(command, text, said, tmp_path, monkeypatch):
    assert said in told_by(command, text, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        ("apply", "-f"),
        ("up", "-f"),
        ("render", "kubernetes", "--registry", "r.example", "--out", "out", "-f"),
        ("render", "istio", "--istio-version", "1.29", "--out", "out", "-f"),
        ("slo", "--from", "traces.json", "--spec"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.parametrize(
    ("text", "said"),
    [(OTHER_SPEC, "line 3: key 'slots'"), ("pool: cart\nmembers: &a {}\nchecks: [*a]\n", "line 3: aliases (*a)")],
    ids=["twice", "alias"],
)
def test_specs_are_read_by_one_rule_everywhere(command, text, said, tmp_path, monkeypatch):
    assert said in told_by(command, text, tmp_path, monkeypatch)


def test_a_kustomization_is_read_by_the_same_rules(tmp_path, monkeypatch):
    (tmp_path / "kustomization.yaml").write_text("resources: []\nresources: []\n")
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(cli, [*PREFLIGHT, "."])
    assert "line 2: key 'resources' stands here for the second time" in refused.stderr


def test_aliases_and_merges_in_moderation_are_read_as_kubectl_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = "base: &base {a: 1, b: 2}\nmore: &more {<<: *base, b: 3}\nlast: {<<: *more, c: [*base, *base]}\n"
    (tmp_path / "fine.yaml").write_text(HEAD + shared)
    done = CliRunner().invoke(cli, [*INJECT, "fine.yaml", "-o", "json"])
    assert done.exit_code == 0, done.output
    assert '"last": {\n    "a": 1,\n    "b": 3,\n    "c": [' in done.stdout
