"""Imports go downwards only: deploy -> xds | proxy -> statesync -> telemetry (DESIGN, section 3)."""

import ast
import re
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


def rooms_imported_by(source: str) -> set[str]:
    """The rooms named by any import statement, wherever it stands."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add((node.module or "").partition(".")[0])
    return imported & (MAY_IMPORT.keys() | OUTSIDE)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_from_the_rooms_below_it(room: str) -> None:
    upwards = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for other in rooms_imported_by(path.read_text()) - {room} - MAY_IMPORT[room]
    }
    assert upwards == set()


def test_an_import_inside_a_function_counts() -> None:
    assert rooms_imported_by("def f():\n    from xds.cache import ResourceCache\n    import proxy.sidecar") == {
        "xds",
        "proxy",
    }


def test_every_file_that_the_architecture_page_names_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    there = {str(path.relative_to(ROOT)) for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py")}
    for cells in (line.split("|") for line in page.partition("## Where to look")[2].splitlines() if line[:1] == "|"):
        names = re.findall(r"`([\w/]+\.py)`", cells[-2])
        assert all(any(path.endswith(f"/{name}") for path in there) for name in names), names
    for name in re.findall(r"`((?:deploy|xds|proxy|statesync|telemetry|tests)/[\w/]+\.py)`", page):
        assert (ROOT / name).is_file(), name


def test_the_architecture_page_names_every_folder_of_deploy() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "deploy").glob("*/__init__.py")} - {"examples"}
    assert all(f"`deploy/{folder}/`" in page for folder in folders)
