"""Imports go downwards only: deploy -> xds | proxy -> statesync -> telemetry; no circles between sub-packages.

The map in docs/architecture.md names every file once, under its sub-package.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "telemetry": set(),
    "statesync": {"telemetry"},
    "xds": {"statesync", "telemetry"},
    "proxy": {"statesync", "telemetry"},
    "deploy": {"xds", "proxy", "statesync", "telemetry"},
}
OUTSIDE = {"tests", "bench"}


@functools.cache
def names_imported_by(source: str) -> set[str]:
    """The full names in any import statement, wherever it stands; ``from a import b`` is ``a.b``."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def packages_imported_by(source: str) -> set[str]:
    """The packages named by any import statement: ours without ``understudy``, and what is outside of the product."""
    parts = [name.split(".") for name in names_imported_by(source)]
    ours = {rest[0] for first, *rest in parts if first == "understudy" and rest}
    return ours & MAY_IMPORT.keys() | {first for first, *_ in parts} & OUTSIDE


def modules() -> Iterator[Path]:
    """Every product file, relative to the checkout."""
    for package in sorted(MAY_IMPORT):
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py")))


@functools.cache
def subpackage_of(name: str) -> str:
    """The sub-package that an imported name of ours is in: its longest beginning that is a folder."""
    parts = name.split(".")[1:]
    while parts and not (ROOT / Path(*parts) / "__init__.py").is_file():
        parts.pop()
    return ".".join(parts)


def imports_between_subpackages() -> set[tuple[str, str, str]]:
    """(file, its sub-package, the one that it imports)."""
    return {
        (str(path), ".".join(path.parent.parts), other)
        for path in modules()
        for name in names_imported_by((ROOT / path).read_text())
        if name.startswith("understudy.") and (other := subpackage_of(name)) != ".".join(path.parent.parts)
    }


def circle_in(edges: set[tuple[str, str]]) -> list[str]:
    """What is left when everything that imports nothing of the rest has been taken away, again and again."""
    rest = {one for edge in edges for one in edge}
    while leaves := {one for one in rest if not any(a == one and b in rest for a, b in edges)}:
        rest -= leaves
    return sorted(rest)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_from_the_packages_below_it(package: str) -> None:
    upwards = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for other in packages_imported_by(path.read_text()) - {package} - MAY_IMPORT[package]
    }
    assert upwards == set()


def test_an_import_inside_a_function_counts() -> None:
    source = "def f():\n    from understudy.xds.server.cache import ResourceCache\n    import understudy.proxy.sidecar"
    assert packages_imported_by(source) == {"xds", "proxy"}


def test_subpackages_import_each_other_in_no_circle() -> None:
    between = imports_between_subpackages()
    edges = {(importer, imported) for _, importer, imported in between}
    assert circle_in(edges) == []


def test_circles_are_found() -> None:
    assert circle_in({("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("e", "a")}) == ["a", "b", "c", "e"]
    assert circle_in({("a", "b"), ("b", "c"), ("a", "c")}) == []


def test_the_xds_server_imports_nothing_else_of_ours() -> None:
    others = {other for file, _, other in imports_between_subpackages() if file.startswith("xds/server/")}
    assert others == set()


def test_nothing_but_subpackages_is_in_a_package() -> None:
    assert {str(path) for path in modules() if len(path.parts) == 2} == {
        f"{package}/__init__.py" for package in MAY_IMPORT
    }


def test_the_tests_mirror_the_tree() -> None:
    folders = {path.parent for package in MAY_IMPORT for path in (ROOT / "tests" / package).rglob("*.py")}
    assert all((ROOT / folder.relative_to(ROOT / "tests") / "__init__.py").is_file() for folder in folders)


def test_the_map_names_every_file_once() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)/` \|.*\| ([^|]*) \|$", page.partition("## Where to look")[2], re.MULTILINE)
    named = [f"{folder}/{file}" for folder, files in rows for file in re.findall(r"`(\w+\.py)`", files)]
    assert sorted(named) == sorted(str(path) for path in modules() if not path.name.startswith("__"))
