"""``understudy inject`` as the page and the help show it: each of these commands works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.harness.places import ROOT
from understudy.deploy.cli.main import cli

PAGE = (ROOT / "docs/injection.md").read_text()
MANIFEST = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
HELP = CliRunner().invoke(cli, ["inject", "--help"]).output
TEXT = "\n".join((PAGE, HELP, (ROOT / "docs/kubernetes.md").read_text())).replace("\\\n", " ")
SHOWN = re.findall(r"understudy inject (-f [^|>`\n]+)", TEXT)
EXPORTED = dict(word.split("=") for line in re.findall(r"export (.*)", HELP) for word in line.split())


def test_the_page_and_the_help_show_commands() -> None:
    assert len(SHOWN) >= 3
    assert set(EXPORTED) == {"UNDERSTUDY_SIDECAR_IMAGE", "UNDERSTUDY_ETCD"}


@pytest.mark.parametrize("command", SHOWN)
def test_a_documented_command_adds_a_sidecar_to_the_documented_deployment(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)
    for name in ("UNDERSTUDY_SIDECAR_IMAGE", "UNDERSTUDY_ETCD"):
        monkeypatch.delenv(name, raising=False)
    if "--sidecar-image" not in arguments:
        for name, value in EXPORTED.items():
            monkeypatch.setenv(name, value)
    if (file := arguments[arguments.index("-f") + 1]) != "-":
        Path(file).write_text(MANIFEST)

    done = CliRunner().invoke(cli, ["inject", *arguments], input=MANIFEST)

    assert done.exit_code == 0, done.stderr
    deployment = list(yaml.safe_load_all(done.stdout))[-1]
    template = deployment["spec"]["template"]["spec"]
    assert "understudy" in {one["name"] for one in template.get("initContainers", [])}


def test_what_is_missing_is_named_with_the_variable_that_would_do() -> None:
    options = HELP.partition("Examples:")[0]
    assert all(name in options for name in EXPORTED)
