"""The files of others that the console serves are the published ones."""

import hashlib

import pytest

from understudy.deploy.console.render import FOLDER

UPLOT = {  # npm: uplot 1.6.32, dist/ and LICENSE
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.NOTICE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", UPLOT)
def test_a_vendored_file_is_unchanged(name: str) -> None:
    assert hashlib.sha256((FOLDER / "static" / name).read_bytes()).hexdigest() == UPLOT[name]


def test_every_file_of_others_is_known() -> None:
    own = {"acts.js", "charts.js", "console.css", "live.js", "replay.js", "slotmap.js", "stream.js"}
    assert {file.name for file in (FOLDER / "static").iterdir()} == own | UPLOT.keys()
