"""One import name: what is installed is the tree, as ``understudy.xds``, ``understudy.proxy`` and so on."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import understudy
from tests.test_layers import names_imported_by

ROOT = Path(__file__).parents[1]
TOP = ("deploy", "proxy", "statesync", "telemetry", "xds")
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders() -> list[Path]:
    """Every package of the product, relative to the checkout."""
    return sorted(path.parent.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("__init__.py"))


def test_every_package_of_the_tree_is_installed_and_no_other() -> None:
    assert SETUP["packages"] == ["understudy", *(".".join(("understudy", *folder.parts)) for folder in folders())]


def test_every_folder_with_code_is_a_package() -> None:
    code = {path.parent.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("*.py")}
    assert code == set(folders())


def test_each_top_level_folder_has_its_import_name() -> None:
    assert SETUP["package-dir"] == {"understudy": "understudy", **{f"understudy.{top}": top for top in TOP}}


def test_the_common_name_holds_the_version_and_nothing_else() -> None:
    assert [path.name for path in (ROOT / "understudy").iterdir() if path.name != "__pycache__"] == ["__init__.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", understudy.__version__)


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_each_package_says_what_it_is_responsible_for(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))


def test_the_xds_server_alone_needs_only_the_packages_that_the_documentation_names() -> None:
    names = {name for path in (ROOT / "xds/server").glob("*.py") for name in names_imported_by(path.read_text())}
    wanted = {name.partition(".")[0] for name in names}
    (command,) = re.findall(r"--no-deps \. && pip install (.*)", (ROOT / "docs/architecture.md").read_text())
    modules = {"grpcio": "grpc", "protobuf": "google"}

    assert wanted - set(sys.stdlib_module_names) - {"understudy"} == {
        modules.get(name, name) for name in command.split()
    }
