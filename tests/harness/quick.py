"""Which tests belong to ``make quick``: those that start no process and search nothing.

A test file is left out if it uses ``subprocess``, or if a module of ours that it imports does so, itself or by its own
imports. A single test is left out if one of its fixtures is an etcd, if Hypothesis runs it, or if it is marked as
heavy. What gets through and starts a process all the same fails at once. ``tests/model`` is left out as a whole: it
looks at every state.
"""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MODEL = TESTS / "model"
FIXTURES = frozenset({"etcd", "etcd_server"})
"""The fixtures of ``tests/conftest.py`` that start a process; others of its fixtures use these."""


def leaves_out_file(file: Path) -> bool:
    """Whether no test of this file is a quick one."""
    return file.is_relative_to(MODEL) or any(_uses_subprocess(path) for path in _reachable(file))


def is_quick(item: pytest.Item) -> bool:
    """Whether a test of a file that is not left out is a quick one."""
    searches = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    heavy = searches or item.get_closest_marker("heavy") is not None
    return not heavy and not FIXTURES & set(getattr(item, "fixturenames", ()))


def forbid_processes() -> None:
    """From now on it is an error to start a process, in whatever way ``subprocess`` or ``asyncio`` offer."""
    subprocess.Popen.__init__ = _refuse  # type: ignore[method-assign]


def _refuse(_: object, args: Any, *__: object, **___: object) -> NoReturn:
    raise AssertionError(f"a quick test starts no process, but this one starts {args}: see tests/harness/quick.py")


def _reachable(file: Path) -> set[Path]:
    """The file and all modules of ours that are imported with it."""
    found, left = {file}, [file]
    while left:
        new = _imported(left.pop()) - found
        found |= new
        left += new
    return found


@functools.cache
def _uses_subprocess(file: Path) -> bool:
    return "subprocess" in file.read_text()


@functools.cache
def _imported(file: Path) -> frozenset[Path]:
    """The files of ours that a file imports, or takes something from.

    A module of the product may import others later, within a function: that is not counted.
    """
    tree = ast.parse(file.read_text())
    names = set(_names(ast.walk(tree) if file.is_relative_to(TESTS) else iter(tree.body)))
    return frozenset(path for name in names if (path := _file_of(name)))


def _names(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@functools.cache
def _file_of(name: str) -> Path | None:
    """The file of one of our modules, below ``tests`` or in a package; None for other names."""
    if not name.startswith(("understudy.", "tests.", "bench.")):
        return None
    path = ROOT.joinpath(*name.removeprefix("understudy.").split(".")).with_suffix(".py")
    return path if path.is_file() else None
