"""The documentation builds as a site, without a dead link."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.places import ROOT


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="pip install 'understudy[docs]'")
def test_the_site_is_built_without_a_dead_link_and_has_every_page(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        str(ROOT / "deploy/site/mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {folder.name for folder in tmp_path.iterdir() if (folder / "index.html").exists()} >= pages
