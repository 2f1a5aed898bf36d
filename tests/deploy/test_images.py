"""What the images are built of: held against the project. ``make images-try`` takes the build's steps for real."""

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from understudy.deploy.kubernetes.base.objects import USER
from understudy.deploy.kubernetes.render.plan import ETCD_IMAGE, choose_images

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "deploy" / "images"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name):
    """Package -> version, of a file in which each has digests of its own."""
    text = (IMAGES / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert all("--hash=sha256:" in line for line in lines)
    return dict(re.match(r"([A-Za-z0-9._-]+)==(\S+)", line).groups() for line in lines)


def instructions():
    text = (IMAGES / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_lock_has_all_that_the_project_wants_in_versions_that_it_allows():
    locked = {canonicalize_name(name): version for name, version in pins("requirements.txt").items()}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["encryption"]]

    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text


def test_the_builders_tools_are_pinned_and_are_not_in_the_images():
    tools = pins("build-requirements.txt")

    assert Requirement(PROJECT["build-system"]["requires"][0]).specifier.contains(tools["setuptools"])
    assert not set(tools) & set(pins("requirements.txt"))


def test_the_build_takes_every_package_of_the_project():
    packages = set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    script = (IMAGES / "install.sh").read_text()
    copied = set(re.search(r"for part in (.*); do", script)[1].split())

    assert copied - {"pyproject.toml", "README.md", *PROJECT["project"]["license-files"]} == packages
    from_context = {words.split()[0] for what, words in instructions() if what == "COPY" and "--from" not in words}
    assert packages <= from_context


def test_the_licence_is_named_as_the_registries_want_it_and_its_text_goes_with_every_wheel_and_image():
    project = PROJECT["project"]
    text = (ROOT / "LICENSE").read_text()

    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert [line.strip() for line in text.splitlines()[1:3]] == ["Apache License", "Version 2.0, January 2004"]
    assert "Apache-2.0" in (ROOT / "README.md").read_text()
    assert any("LICENSE" in words.split() for what, words in instructions() if what == "COPY")
    titles = [words for what, words in instructions() if what == "LABEL"]
    assert titles
    assert all('licenses="Apache-2.0"' in words for words in titles)


def test_what_the_dockerfile_copies_is_there_and_not_ignored():
    ignored = (IMAGES / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copies = [words.split()[:-1] for what, words in instructions() if what == "COPY" and "--from" not in words]

    for source in (one for sources in copies for one in sources):
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in allowed), source


def test_the_images_have_the_names_and_the_user_that_the_manifests_count_on():
    lines = instructions()
    stages = {words.split(" AS ")[1] for what, words in lines if what == "FROM"}
    images = choose_images("registry.example", "1")

    for part in ("control", "sidecar", "injector", "take-over"):
        assert part in stages
        assert getattr(images, part.replace("-", "_")) == f"registry.example/understudy-{part}:1"
    assert dict(lines)["USER"] == f"{USER}:{USER}"
    assert json.loads(dict(lines)["ENTRYPOINT"]) == ["understudy"]


def test_every_stage_begins_at_a_pinned_image():
    text = (IMAGES / "Dockerfile").read_text()
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)[1]
    image, _, tag = base.rpartition(":")

    assert image == "docker.io/library/python"
    assert re.match(r"3\.11\.\d+-slim-\w+$", tag)
    bases = {words.split()[0] for what, words in instructions() if what == "FROM"}
    assert bases <= {"${PYTHON_IMAGE}", "${ETCD_IMAGE}", "understudy"}
    assert re.search(r"^ARG ETCD_IMAGE=(\S+)$", text, re.MULTILINE)[1] == ETCD_IMAGE
    assert "ADD" not in {what for what, _ in instructions()}


@pytest.mark.parametrize("script", ["install.sh", "try-build.sh"])
def test_the_scripts_are_shell_that_any_sh_reads(script):
    read = subprocess.run(["sh", "-n", IMAGES / script], capture_output=True, text=True, check=False)

    assert (read.returncode, read.stderr) == (0, "")
