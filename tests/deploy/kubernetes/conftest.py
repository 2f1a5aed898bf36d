"""Rendered trees, as users get them: by the command line, in a directory of their own."""

import functools
from pathlib import Path

import kubernetes_validate.utils
import pytest
import yaml
from click.testing import CliRunner

from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.preflight.load_manifests import load

SPEC = "pool: cart\nsession_key:\n  - header: x-session-id\n"
OWN_ETCD = ("--etcd", "https://etcd-0.etcd.data.svc:2379,https://10.9.8.7:2379,https://etcd.example.org:12379")


MIRROR = ("--mirror-site", "east", "--mirror-peer", "west=https://10.1.0.1:2379,https://10.1.0.2")
MIRROR += ("--mirror-peer-tls-secret", "west")


def render(directory, *arguments, spec=SPEC):
    """Run ``understudy render kubernetes``; returns click's result, and the directory it wrote to."""
    file = Path(directory) / "pool.yaml"
    file.write_text(spec)
    out = Path(directory) / "manifests"
    wanted = ("render", "kubernetes", "-f", str(file), "--out", str(out), "--registry", "registry.example", *arguments)
    return CliRunner().invoke(cli, list(wanted)), out


@pytest.fixture(scope="session", autouse=True)
def schemas_read_once():
    """The validator reads a megabyte of schemas for each object; here it does so once for each schema."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", read)
        yield


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """A whole tree with an etcd of the operator's own."""
    directory = tmp_path_factory.mktemp("rendered")
    secrets = ("--etcd-tls-secret", "etcd-client", "--etcd-login-secret", "etcd-login")
    result, out = render(directory, *OWN_ETCD, *secrets, *MIRROR)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session", params=["trial", "production"])
def overlay(request, rendered):
    """An overlay's folder."""
    return rendered / "overlays" / request.param


@pytest.fixture(scope="session")
def objects(overlay):
    """All objects of an overlay."""
    return load(overlay)


@pytest.fixture(scope="session")
def trial(rendered):
    """All objects of the trial."""
    return load(rendered / "overlays" / "trial")


def find(objects, kind, name):
    """One object."""
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def documents(path):
    """The documents of a YAML file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]
