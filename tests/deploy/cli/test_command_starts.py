"""Commands as processes that have loaded nothing before.

Tests that need an answer fork commands from a process that has their modules (``tests.harness.forkserver``). Those that
are missing here are started for real by ``test_local_pool.py`` (``up`` with all parts, ``demo``, ``status``,
``explain``, ``sessions``), ``test_traces.py`` (``drill``), ``test_drain.py`` (``leave``) and ``test_review_server.py``.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.harness.waiting import free_port

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "arguments",
    [("failovers",), ("slo",), ("verify",), ("backup", "file"), ("site", "offline", "zone-1"), ("undrain", "cart-1")],
    ids=lambda arguments: arguments[0],
)
async def test_a_command_gets_as_far_as_etcd(arguments: tuple[str, ...], tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "understudy.deploy.cli",
            *arguments,
            "--etcd",
            f"127.0.0.1:{free_port()}",
            "--pool",
            "cart",
        ),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"is etcd running there?" in said, said.decode()
