"""The drills of a cut link, on a pool whose sites really have networks of their own."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.links import UNDERSTUDY, local_pool
from tests.harness.netns import unable

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(unable()), reason=unable())]


def told(environment: Mapping[str, str], *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a command."""
    done = subprocess.run(
        [*UNDERSTUDY, *words, "-o", "json"], env=dict(environment), capture_output=True, timeout=240, check=False
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def test_a_cut_link_loses_nothing_alone_and_with_the_witness(tmp_path: Path) -> None:
    with local_pool(tmp_path) as environment:
        for kind, seconds in (("link", "3s"), ("link-witness", "6s")):
            code, view = told(environment, "drill", kind, "--link", "east,west", "--load", "40", "--for", seconds)
            (drill,) = view["drills"]
            assert (drill["lost_writes"], drill["second_writers"], drill["slots_taken_from"]) == (0, 0, {}), drill
            assert code == (1 if drill["missed"] else 0)
        _, statement = told(environment, "slo", "--window", "1h", "--statement")
        rows = {row["drill"]: row for row in statement["failures"]}
        for kind in ("link", "link-witness"):
            assert (rows[kind]["drills"], rows[kind]["compared"], rows[kind]["lost_writes"]) == (1, 1, 0), rows[kind]
