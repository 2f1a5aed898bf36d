"""A whole pool behind a hedging Envoy: late copies do nothing, and random faults break no promise.

Both are programs of their own, alone in a network namespace, where packets of single ports can be lost. The long
versions are ``python -m tests.faults.front_shapes`` and ``python -m tests.faults.front_rounds``.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.faults.front_shapes import STOPPED
from tests.harness.netns import unable

ROOT = Path(__file__).parents[2]
NO_NETWORKS = unable()

pytestmark = pytest.mark.skipif(bool(NO_NETWORKS), reason=f"no network namespaces: {NO_NETWORKS}")


async def played(program: str, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.faults.{program}", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.nightly
async def test_late_copies_of_a_request_do_nothing_whatever_part_of_a_member_stood_still(tmp_path: Path) -> None:
    code, output = await played("front_shapes", "--quick", "--dir", str(tmp_path))
    assert code == 0, output
    assert output.count("all three copies did nothing") == len(STOPPED) + 1, output


async def test_no_promise_is_broken_by_random_faults_behind_envoy(tmp_path: Path) -> None:
    seed = "ci" if "CI" in os.environ else ""
    code, output = await played(
        "front_rounds", "--rounds", "1", "--round", "20", "--dir", str(tmp_path), *(["--seed", seed] if seed else [])
    )
    assert code == 0, output
    assert " 0 violations" in output
