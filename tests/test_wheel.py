"""The wheel beside PyPI's ``proxy.py`` and ``xds-protos``, which own the names ``proxy`` and ``xds``.

xds-protos brings old files of opentelemetry-proto as well, so only what does not use OpenTelemetry is tried beside it.
"""

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_packages import ROOT, TOP

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "understudy", *TOP)
FOREIGN = ("proxy.py", "xds-protos")
SHARED = Path(sysconfig.get_paths()["purelib"])
"""The packages that this test runs with."""
UNREACHABLE = (
    *("Failed to establish a new connection", "failure in name resolution", "Name or service not known"),
    *("Read timed out", "Connection reset by peer", "Max retries exceeded"),
)
"""What pip says when there is no package index, and not when a package is missing there."""
CHART = ROOT / "deploy/chart"
DATA = {".css", ".html", ".js", ".json", ".proto", ".pyi", ".txt", ".yaml"}
LIBRARY = """
import understudy.deploy.cli.main, understudy.proxy, understudy.xds.server.ads, understudy.xds.server.cache
print(understudy.xds.__file__)
"""
PROCESSES = """
import understudy.deploy.cli.main, understudy.proxy.sidecar.sidecar, understudy.xds.control.server
import understudy.telemetry.slo.page as page
page._templates().get_template("review.html")
print(understudy.xds.__file__)
"""
THEIRS = "import proxy.proxy, xds.type.v3.typed_struct_pb2; print(proxy.__file__)"


def pip(*arguments: str) -> str:
    """Run pip, and skip the test if there is no package index."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = next((reason for reason in UNREACHABLE if reason in done.stderr), "")
    if reason:
        pytest.skip(f"no package index: {reason}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheel and those of the two other projects."""
    place = tmp_path_factory.mktemp("wheels")
    source = place / "source"
    source.mkdir()
    for name in SOURCES:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    pip("wheel", "--no-deps", "--wheel-dir", str(place), str(source), *FOREIGN)
    return place


class Environment:
    """A fresh virtual environment. Programs in it also see the packages of this one, but not our editable install."""

    def __init__(self, place: Path, wheels: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        self.python = place / "bin" / "python"
        self.packages = next(place.glob("lib/python3*/site-packages"))
        self._wheels = wheels

    def install(self, *names: str) -> None:
        options = ("--no-deps", "--no-compile", "--no-index", "-f", str(self._wheels))
        pip("--python", str(self.python), "install", *options, *names)

    def uninstall(self, *names: str) -> None:
        pip("--python", str(self.python), "uninstall", "--yes", *names)

    def run(self, program: str) -> str:
        # In a folder of PYTHONPATH no .pth file is read, so that the editable install stays unknown.
        shared = {**os.environ, "PYTHONPATH": str(SHARED)}
        command = [self.python, "-P", "-c", program]
        done = subprocess.run(command, env=shared, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def damaged(self) -> list[str]:
        """Our installed files that are gone, or not as they were installed."""
        (record,) = self.packages.glob("understudy-*.dist-info/RECORD")
        with record.open(newline="") as file:
            rows = [(name, told.partition("=")[2]) for name, told, _ in csv.reader(file) if told]
        assert len(rows) > 300
        return [name for name, digest in rows if digest_of(self.packages / name) != digest]


def digest_of(file: Path) -> str:
    """As in a wheel's RECORD."""
    if not file.is_file():
        return ""
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")


@pytest.fixture
def environment(tmp_path: Path, wheels: Path) -> Environment:
    return Environment(tmp_path / "venv", wheels)


ORDERS: dict[str, Callable[[Environment], None]] = {
    "ours first": lambda environment: [environment.install("understudy"), environment.install(*FOREIGN)],
    "ours last": lambda environment: [environment.install(*FOREIGN), environment.install("understudy")],
}


@pytest.mark.parametrize("order", ["ours first", pytest.param("ours last", marks=pytest.mark.nightly)])
def test_the_wheel_lives_beside_the_owners_of_the_short_names(environment: Environment, order: str) -> None:
    ORDERS[order](environment)

    for program in (LIBRARY, THEIRS):
        assert Path(environment.run(program)).is_relative_to(environment.packages)
    assert environment.damaged() == []

    environment.uninstall(*FOREIGN)
    assert environment.damaged() == []
    for program in (LIBRARY, PROCESSES):
        assert Path(environment.run(program)).is_relative_to(environment.packages)


def test_the_wheel_holds_nothing_outside_of_our_name(wheels: Path) -> None:
    (ours,) = wheels.glob("understudy-*.whl")
    with zipfile.ZipFile(ours) as wheel:
        names = wheel.namelist()

    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"understudy"}
    data = [
        path
        for top in TOP
        for path in (ROOT / top).rglob("*")
        if path.suffix in DATA and not path.is_relative_to(CHART)  # Helm installs it from a checkout or an archive
    ]
    assert {f"understudy/{path.relative_to(ROOT)}" for path in data} - set(names) == {
        f"understudy/deploy/images/{name}" for name in ("build-requirements.txt", "requirements.txt")
    }
